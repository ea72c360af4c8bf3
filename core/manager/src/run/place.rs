//! Chooses the pool of a new instance.

use std::time::Duration;

use tandem_contract::{Error, ErrorKind, InstanceId, Retry};

use super::execute::Run;
use super::steps::{Done, Scene};
use crate::BackendState;
use crate::draft::active_of;
use crate::model::Intent;
use crate::schedule::{PlacementRequest, ReplicationRequest, place};

/// Between two looks at whether the back ends have answered after a start.
const SETTLE: Duration = Duration::from_millis(50);

impl Run {
    pub(super) async fn place(&self, scene: &Scene, id: InstanceId) -> Result<Done, Error> {
        if scene.row(id)?.pool.is_some() {
            return Ok(Done::nothing());
        }
        while !self.core.backends.settled() {
            if self.cancelled() || crate::run::paused(&self.core, SETTLE).await {
                return Err(Error::cancelled("stopped before the back ends had answered"));
            }
        }
        let only_host = match self.intent() {
            Intent::CreateShare { only_host, .. } | Intent::CreateReplica { only_host, .. } => only_host,
            Intent::Migrate { request, .. } => Some(request.host),
            _ => return Err(Error::bug("only a creation places an instance")),
        };
        let share_type = self.type_of(scene, id).await?;
        let replica = matches!(self.intent(), Intent::CreateReplica { .. });
        let replication = self.style_of(scene, id, &share_type)?.map(|style| {
            let active = if replica { active_of(&scene.family.instances) } else { None };
            ReplicationRequest {
                style,
                existing: scene.family.instances.iter().filter_map(|i| i.pool.clone()).collect(),
                active: active.and_then(|a| {
                    Some((a.pool.clone()?, self.core.backends.capabilities_of(a).unwrap_or_default()))
                }),
                new_instances: 1,
            }
        });
        let request = PlacementRequest {
            size_gb: scene.share.size_gb,
            protocol: scene.share.protocol.clone(),
            extra_specs: share_type.extra_specs,
            availability_zone: scene.row(id)?.availability_zone.clone(),
            replication,
            only_host,
        };
        let pools = self.core.pool_views().await.map_err(|e| Error::unavailable(e.to_string()))?;
        let address = place(&request, &pools).map_err(|e| self.nowhere(&request, e.to_string()))?;
        let zone = self.core.backends.zone_of(&address.backend);
        Ok(Done::with(move |draft| {
            let now = draft.now;
            if let Some(row) = draft.instance_mut(id) {
                row.pool = Some(address.clone());
                row.availability_zone.clone_from(&zone);
                row.scheduled_at = Some(now);
            }
            Vec::new()
        }))
    }

    /// Why nothing could be placed. A back end that is away may be back at once, as after a restart, and may be the one:
    /// it is named, for one that never answered has no pool that a filter could name, and the step is taken again.
    fn nowhere(&self, request: &PlacementRequest, why: String) -> Error {
        let mut why = why;
        let mut retry = Retry::AfterOperator;
        for backend in self.core.backends.views() {
            let BackendState::Down { reason } = &backend.state else { continue };
            let may_serve = match (&request.only_host, &request.availability_zone) {
                (Some(host), _) => {
                    let name = format!("{}@{}", backend.host, backend.name);
                    let asked = host.split_once('#').map_or(host.as_str(), |(host, _)| host);
                    asked == name || asked == backend.host
                }
                (None, Some(zone)) => *zone == backend.availability_zone,
                (None, None) => true,
            };
            if may_serve {
                retry = Retry::Safe;
                if backend.pools.is_empty() {
                    why += &format!("; back end `{}` is down: {reason}", backend.name);
                }
            }
        }
        Error::new(ErrorKind::OutOfSpace, why).retry(retry)
    }
}
