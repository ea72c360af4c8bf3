//! Heals: what is in error and reported whole again is repaired, and an old active that came back is fenced.

use std::collections::HashSet;
use std::time::Duration;

use tandem_contract::{
    Health, InstanceId, ObserveInstance, PointId, ReplicaState, ResourceId, Role, UpdateReplicaState,
};

use super::backends::cx;
use crate::admission::new_op;
use crate::chores::Chore;
use crate::core::SharedCore;
use crate::denied::Denied;
use crate::draft::{active_of, holds_back};
use crate::model::{AccessRulesStatus, Instance, InstanceStatus, Intent, Part};
use crate::plan::by_storage;
use crate::run::paused;
use crate::store::{InstanceQuery, ShareQuery};

/// Shares read at once.
const PAGE: u64 = 500;

/// Looks, round after round, for as long as the manager runs.
pub(super) async fn rounds(core: &SharedCore) {
    let every = Duration::from_secs(core.settings.heal_interval_seconds.max(1));
    if let Err(error) = remember(core).await {
        tracing::warn!(%error, "What an earlier run could not do is not known; the next change of each share shows it.");
    }
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
        // What was gone past and not yet fenced holds what nobody else may have: it is for the fence to say what it becomes.
        if !row.reset_by_admin && !row.unfenced && !deleting && is_whole(core, &row).await {
            admit(core, &row, Intent::Repair { instance: row.id }).await?;
        }
    }
    let unfenced = InstanceQuery { unfenced: true, ..InstanceQuery::default() };
    // A migration's destination that could not be withdrawn is removed instead.
    let whole = |row: &Instance| row.part == Part::Whole;
    for row in core.store.instances(&unfenced).await?.items.into_iter().filter(whole) {
        if is_up(core, &row) {
            admit(core, &row, Intent::Fence { instance: row.id }).await?;
        }
    }
    for chore in core.board.chores.due(core.clock.now()) {
        if !still_needed(core, chore).await? {
            core.board.chores.done(chore);
        }
    }
    Ok(())
}

/// Finds the chores again that a start forgot: points that nobody needs, and rules that could not be applied.
async fn remember(core: &SharedCore) -> Result<(), Denied> {
    let now = core.clock.now();
    let mut offset = 0;
    loop {
        let query = ShareQuery { offset, limit: Some(PAGE), ..ShareQuery::default() };
        let page = core.store.shares(&query).await?.items;
        let ids: Vec<ResourceId> = page.iter().map(|s| s.id).collect();
        let query = InstanceQuery { share_ids: Some(ids), ..InstanceQuery::default() };
        let rows = core.store.instances(&query).await?.items;
        let left = |row: &&Instance| {
            row.part != Part::Whole && row.status == InstanceStatus::ErrorDeleting && !row.reset_by_admin
        };
        for row in rows.iter().filter(left) {
            core.board.chores.note(Chore::Leftover(row.id), now);
        }
        for row in rows.iter().filter(|row| row.access_rules_status == AccessRulesStatus::Error) {
            core.board.chores.note(Chore::Rules(row.id), now);
        }
        let needed: HashSet<PointId> = rows.into_iter().filter_map(|row| Some(row.point?.info.id)).collect();
        for share in page.iter().filter(|s| s.points.iter().any(|p| !needed.contains(&p.info.id))) {
            core.board.chores.note(Chore::Release(share.id), now);
        }
        if (page.len() as u64) < PAGE {
            return Ok(());
        }
        offset += PAGE;
    }
}

/// Admits what does a chore, once it can be done. Answers whether it is still to be done.
async fn still_needed(core: &SharedCore, chore: Chore) -> Result<bool, Denied> {
    match chore {
        Chore::Repair(id) | Chore::Rules(id) => {
            let Some(row) = core.store.instance(id).await? else { return Ok(false) };
            // What is fenced is served by nobody, and what is being removed neither.
            let leaves = matches!(row.status, InstanceStatus::Deleting | InstanceStatus::ErrorDeleting);
            if row.fenced || row.unfenced || leaves {
                return Ok(false);
            }
            if is_up(core, &row) {
                admit(core, &row, Intent::Repair { instance: id }).await?;
            }
        }
        Chore::Leftover(id) => {
            let Some(row) = core.store.instance(id).await? else { return Ok(false) };
            if row.part == Part::Whole || row.reset_by_admin {
                return Ok(false);
            }
            if is_up(core, &row) {
                admit(core, &row, Intent::Release { instance: id, force: false }).await?;
            }
        }
        Chore::Release(share) => {
            let family = core.store.family(share).await?;
            let Some(active) = active_of(&family.instances) else { return Ok(false) };
            let placed = family.instances.iter().filter(|i| i.pool.is_some() && i.part == Part::Whole);
            let all_up = placed.into_iter().all(|i| is_up(core, i));
            if all_up {
                admit(core, active, Intent::Repair { instance: active.id }).await?;
            }
        }
    }
    Ok(true)
}

fn is_up(core: &SharedCore, row: &Instance) -> bool {
    row.backend().and_then(|name| core.backends.slot(name)).is_some_and(|slot| slot.is_up())
}

/// Whether the driver says that the instance is there and whole.
async fn is_whole(core: &SharedCore, row: &Instance) -> bool {
    let Some(slot) = row.backend().and_then(|name| core.backends.slot(name)) else { return false };
    if !slot.is_up() {
        return false;
    }
    let Ok(backend) = slot.opened().await else { return false };
    let Ok(Some(seen)) = backend.call(&cx(core), ObserveInstance { instance: row.id }).await else {
        return false;
    };
    if !matches!(seen.health, Health::Ok | Health::Degraded { .. }) {
        return false;
    }
    let Ok(family) = core.store.family(row.share_id).await else { return false };
    let Some(share) = &family.share else { return false };
    if row.status != InstanceStatus::Error && by_storage(backend.capabilities()) {
        // Two sides that parted are no fault that could be repaired: somebody has to say which one is to be kept.
        let asks = UpdateReplicaState { instance: row.id, epoch: share.epoch };
        return matches!(backend.call(&cx(core), asks).await, Ok(report) if report.split_brain.is_none());
    }
    seen.role == Role::Active || holds_back(&family.instances, row).is_none()
}

/// Admits an operation for an instance unless one is on its way.
async fn admit(core: &SharedCore, row: &Instance, intent: Intent) -> Result<(), Denied> {
    let id: InstanceId = row.id;
    core.change(row.share_id, |draft| {
        let busy =
            draft.unfinished().iter().any(|op| op.intent.concerns(id) && !op.intent.gives_way_to(&intent));
        if !busy && draft.instance(id).is_some() {
            draft.admit(new_op(), intent.clone(), Vec::new(), None);
        }
        Ok(())
    })
    .await
}
