//! Watches each back end: opens its driver, asks for its pools, and serves its instances again when it comes up.

use std::sync::Arc;
use std::time::Duration;

use tandem_contract::{EnsureInstance, Error, ErrorKind, ListInstances, OpId, Pools, ReplicaState, Style};
use tandem_host::CallContext;
use uuid::Uuid;

use crate::backends::Slot;
use crate::chores::Chore;
use crate::core::{Core, SharedCore};
use crate::model::{Instance, InstanceStatus, Part};
use crate::run::paused;
use crate::store::{InstanceQuery, OperationQuery};

/// Instances of a back end read at once.
const PAGE: u64 = 500;
/// Half of the first pause after a driver's process or the way to its host was lost.
const SOON: Duration = Duration::from_millis(100);
/// Every so many looks, what no row names is looked for.
const ORPHANS_EVERY: u64 = 30;

/// Looks at one back end for as long as the manager runs.
pub(super) async fn watch(core: &SharedCore, slot: &Arc<Slot>) {
    let every = Duration::from_secs(core.settings.pool_interval_seconds.max(1));
    let mut soon = SOON;
    for round in 0_u64.. {
        let pause = match ask_pools(core, slot).await {
            Ok(came) => {
                soon = SOON;
                if came {
                    serve_again(core, slot).await;
                    core.wake.notify_one();
                }
                if came || round % ORPHANS_EVERY == 0 {
                    remove_orphans(core, slot).await;
                }
                every
            }
            // One that is away comes back soon, most often; then less and less often is asked.
            Err(error) => {
                slot.set_down(&error, core.clock.now());
                soon = (soon * 2).min(every);
                soon
            }
        };
        tokio::select! {
            biased;
            stopping = paused(core, pause) => if stopping { return },
            () = slot.lost() => {}
        }
    }
}

/// A call on behalf of reconciliation.
pub(crate) fn cx(core: &Core) -> CallContext {
    CallContext::new(OpId(Uuid::nil()))
        .cancel(core.stop.child_token())
        .deadline(Duration::from_secs(core.settings.call_deadline_seconds))
}

/// Asks for the pools. Answers whether the back end came up just now.
async fn ask_pools(core: &SharedCore, slot: &Arc<Slot>) -> Result<bool, Error> {
    let backend = slot.opened().await?;
    let pools = backend.call(&cx(core), Pools {}).await?;
    Ok(slot.set_up(pools, core.clock.now()))
}

/// After a start or an absence nothing is served before its epoch is confirmed: now it is, by the store's.
async fn serve_again(core: &SharedCore, slot: &Arc<Slot>) {
    let name = slot.name();
    let mut offset = 0;
    loop {
        let query = InstanceQuery {
            backend: Some(name.clone()),
            offset,
            limit: Some(PAGE),
            ..InstanceQuery::default()
        };
        let Ok(page) = core.store.instances(&query).await else { return };
        for row in &page.items {
            if core.stop.is_cancelled() {
                return;
            }
            if row.replica_state.is_some() {
                core.board.look_at(row.share_id);
            }
            if row.status == InstanceStatus::Creating || row.part == Part::Incoming {
                // Its operation goes on, and may be past the step that made or switched to it and served it.
                core.board.chores.note(Chore::Repair(row.id), core.clock.now());
            } else if let Err(error) = ensure(core, slot, row).await {
                tracing::warn!(instance = %row.id, backend = name, %error, "An instance could not be served again.");
                // What is not there cannot be repaired; the doctor names it.
                if error.kind != ErrorKind::NotFound {
                    core.board.chores.anew(Chore::Repair(row.id), core.clock.now());
                }
            }
        }
        if (page.items.len() as u64) < PAGE {
            return;
        }
        offset += PAGE;
    }
}

/// Everything that is not being made or removed, and is no side of a migration that serves nobody: what is in error, or belongs to an operation that serves nothing (it
/// grows), would stay unserved for ever. A promotion that has raised the epoch makes the driver refuse. What is fenced
/// or unfenced is served by nobody, nor who lost an arbitration: it follows first.
fn is_served(row: &Instance) -> bool {
    use InstanceStatus as S;
    !matches!(row.status, S::Creating | S::Deleting | S::ErrorDeleting)
        && row.part == Part::Whole
        && !row.unfenced
        && !row.fenced
        && !row.yields
}

async fn ensure(core: &SharedCore, slot: &Arc<Slot>, row: &Instance) -> Result<(), Error> {
    let backend = slot.opened().await?;
    // The page may be old: what it says of share and instance is read again, together. An operation admitted after that
    // may still raise the epoch: the driver refuses a stale one, and that is right.
    let family = core.store.family(row.share_id).await.map_err(|e| Error::unavailable(e.to_string()))?;
    let now = family.instances.iter().find(|i| i.id == row.id);
    if let (Some(share), Some(row)) = (&family.share, now.filter(|row| is_served(row))) {
        // A promotion that has raised the epoch is on its way past this one: whether it serves is for a repair to say,
        // which waits for the promotion. A driver that took the new epoch from us would serve beside the new side.
        if row.replica_state == Some(ReplicaState::Active) && row.epoch < share.epoch {
            core.board.chores.note(Chore::Repair(row.id), core.clock.now());
            return Ok(());
        }
        let call = EnsureInstance { instance: row.id, epoch: share.epoch };
        let served = backend.call(&cx(core), call).await?.into_inner();
        // Rows are changed by operations only: users are told where it is by a repair.
        let unknown = served.exports.iter().any(|at| row.exports.iter().all(|known| known.path != at.path));
        // Its host came back, and with it a secondary.
        let idle = share.replication == Some(Style::Writable)
            && row.replica_state == Some(ReplicaState::Active)
            && served.exports.is_empty();
        if unknown || idle {
            core.board.chores.note(Chore::Repair(row.id), core.clock.now());
        }
    }
    Ok(())
}

/// Removes instances that no row names although our own log made them: what a forced removal could not reach.
async fn remove_orphans(core: &SharedCore, slot: &Arc<Slot>) {
    let Ok(orphans) = core.orphans(slot).await else { return };
    for id in orphans {
        let Ok(backend) = slot.opened().await else { return };
        match backend.call(&cx(core), tandem_contract::DeleteInstance { instance: id }).await {
            Ok(_) => {
                tracing::info!(instance = %id, backend = slot.name(), "Removed an instance that nothing owns any more.")
            }
            Err(error) => {
                tracing::warn!(instance = %id, backend = slot.name(), %error, "An orphan could not be removed.")
            }
        }
    }
}

impl Core {
    /// Instances on a back end that no row names and no unfinished operation concerns, although our own log made them.
    /// What our log does not know belongs to somebody else and is never touched.
    pub(crate) async fn orphans(&self, slot: &Arc<Slot>) -> Result<Vec<tandem_contract::InstanceId>, Error> {
        let away = |e: crate::store::StoreError| Error::unavailable(e.to_string());
        let backend = slot.opened().await?;
        let mut orphans = Vec::new();
        for id in backend.call(&cx(self), ListInstances {}).await? {
            if self.store.instance(id).await.map_err(away)?.is_some() {
                continue;
            }
            let ours = OperationQuery { instance: Some(id), ..OperationQuery::default() };
            let log = self.store.operations(&ours).await.map_err(away)?;
            if !log.is_empty() && log.iter().all(|op| op.status.is_finished()) {
                orphans.push(id);
            }
        }
        Ok(orphans)
    }
}
