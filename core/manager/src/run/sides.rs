//! What both sides of a migration can do for each other.

use serde_json::Value;
use tandem_contract::{Error, ErrorKind, InstanceId, MigrationCheckCompatibility, MigrationSpec};
use tandem_host::Backend;

use crate::core::Core;
use crate::model::MigrationRequest;
use crate::plan::{Sides, common_format, common_protocol};
use crate::store::Family;

impl Core {
    /// Asks both sides what they can do for each other. Changes nothing.
    ///
    /// # Errors
    /// When one of them is away.
    pub(crate) async fn sides(
        &self,
        family: &Family,
        source: InstanceId,
        destination: InstanceId,
        request: &MigrationRequest,
    ) -> Result<Sides, Error> {
        let row = family.instances.iter().find(|i| i.id == source);
        let (Some(row), Some(share)) = (row, &family.share) else { return Ok(Sides::default()) };
        let here = self.backends.of(row).await?;
        let there = match self.backends.slot(request.backend()) {
            Some(slot) => slot.opened().await?,
            None => return Err(Error::not_found(format!("there is no back end `{}`", request.backend()))),
        };
        let both = (here.capabilities(), there.capabilities());
        let streams = common_format(both.0, both.1).is_some();
        // A share whose type does not replicate begins to.
        let can = share.replication.is_some() || both.0.replication.as_ref().is_some_and(|r| r.converts);
        let peers = can && common_protocol(both.0, both.1).is_some();
        let mut sides = Sides { streams, peers, ..Sides::default() };
        match [&here, &there].into_iter().find(|backend| backend.crosses_network()) {
            // What is attached there is no path of this host.
            Some(away) => {
                sides.remark = Some(format!(
                    "the driver of back end `{}` runs on another host, where the manager cannot copy",
                    away.name()
                ));
            }
            None => sides.attach = (here.capabilities().attach, there.capabilities().attach),
        }
        let Some(migration) = &here.capabilities().migration else { return Ok(sides) };
        let driver = there.manifest().name.clone();
        if !migration.to_drivers.contains(&driver) || there.capabilities().migration.is_none() {
            return Ok(sides);
        }
        let spec = MigrationSpec {
            resource: share.id,
            kind: request.kind,
            source,
            destination,
            epoch: share.epoch,
            endpoint: Value::Null,
            destination_driver: description(&there, &request.host),
        };
        let cx = crate::reconcile::cx(self);
        match here.call(&cx, MigrationCheckCompatibility { migration: spec }).await {
            Ok(compatibility) => sides.compatibility = compatibility,
            Err(error) if error.kind == ErrorKind::Unavailable => return Err(error),
            Err(error) => {
                // What its driver refuses is not done by another way behind its back.
                (sides.streams, sides.peers) = (false, false);
                sides.remark = Some(format!("the source's driver was asked: {error}"));
            }
        }
        Ok(sides)
    }
}

/// The destination's back end, as data for the source's driver.
pub(super) fn description(there: &Backend, host: &str) -> serde_json::Map<String, Value> {
    let capabilities = serde_json::to_value(there.capabilities()).unwrap_or_default();
    [
        ("driver", Value::String(there.manifest().name.clone())),
        ("backend", Value::String(there.name().to_owned())),
        ("host", Value::String(host.to_owned())),
        ("capabilities", capabilities),
    ]
    .into_iter()
    .map(|(key, value)| (key.to_owned(), value))
    .collect()
}
