//! Heals: what is in error and reported whole again is repaired, and an old active that came back is fenced.

use std::time::Duration;

use tandem_contract::{Health, InstanceId, ObserveInstance, ReplicaState};

use super::backends::cx;
use crate::admission::new_op;
use crate::core::SharedCore;
use crate::denied::Denied;
use crate::model::{Instance, InstanceStatus, Intent};
use crate::run::paused;
use crate::store::InstanceQuery;

/// Looks, round after round, for as long as the manager runs.
pub(super) async fn rounds(core: &SharedCore) {
    let every = Duration::from_secs(core.settings.heal_interval_seconds.max(1));
    loop {
        if let Err(error) = round(core).await {
            tracing::warn!(%error, "A round of healing could not read the store.");
        }
        if paused(core, every).await {
            return;
        }
    }
}

async fn round(core: &SharedCore) -> Result<(), Denied> {
    let error = InstanceQuery { status: Some(InstanceStatus::Error), ..InstanceQuery::default() };
    let broken = InstanceQuery { replica_state: Some(ReplicaState::Error), ..InstanceQuery::default() };
    let mut rows = core.store.instances(&error).await?.items;
    rows.extend(core.store.instances(&broken).await?.items);
    rows.sort_by_key(|r| r.id);
    rows.dedup_by_key(|r| r.id);
    for row in rows {
        let deleting = matches!(row.status, InstanceStatus::Deleting | InstanceStatus::ErrorDeleting);
        if !row.reset_by_admin && !deleting && is_whole(core, &row).await {
            admit(core, &row, Intent::Repair { instance: row.id }).await?;
        }
    }
    let unfenced = InstanceQuery { unfenced: true, ..InstanceQuery::default() };
    for row in core.store.instances(&unfenced).await?.items {
        if row.backend().and_then(|name| core.backends.slot(name)).is_some_and(|slot| slot.is_up()) {
            admit(core, &row, Intent::Fence { instance: row.id }).await?;
        }
    }
    Ok(())
}

/// Whether the driver says that the instance is there and whole.
async fn is_whole(core: &SharedCore, row: &Instance) -> bool {
    let Some(slot) = row.backend().and_then(|name| core.backends.slot(name)) else { return false };
    if !slot.is_up() {
        return false;
    }
    let Ok(backend) = slot.opened().await else { return false };
    match backend.call(&cx(core), ObserveInstance { instance: row.id }).await {
        Ok(Some(seen)) => matches!(seen.health, Health::Ok | Health::Degraded { .. }),
        _ => false,
    }
}

/// Admits an operation for an instance unless one is on its way.
async fn admit(core: &SharedCore, row: &Instance, intent: Intent) -> Result<(), Denied> {
    let id: InstanceId = row.id;
    core.change(row.share_id, |draft| {
        let busy = draft.unfinished().iter().any(|op| op.intent.instance().is_none_or(|i| i == id));
        if !busy && draft.instance(id).is_some() {
            draft.admit(new_op(), intent.clone(), Vec::new(), None);
        }
        Ok(())
    })
    .await
}
