//! The runner: claims operations from the queue and carries each to its end, one task an operation.

mod copy;
mod execute;
mod finish;
mod migration;
mod patience;
mod peers;
mod place;
mod points;
mod rules;
#[cfg(test)]
pub(crate) use rules::mark;
mod sides;
mod steps;
mod verify;
mod writable;

use std::sync::Arc;
use std::time::Duration;

use tandem_contract::InstanceId;
use tokio::sync::OwnedSemaphorePermit;

use crate::core::SharedCore;
use crate::denied::Denied;
use crate::queue::Claim;

/// After the database failed: long enough not to spin, short enough to go on soon.
const AFTER_STORE_FAILURE: Duration = Duration::from_secs(1);

/// Starts recovery, the runner, and reconciliation.
pub(crate) fn start(core: &SharedCore) {
    let runner = Arc::clone(core);
    core.tasks.spawn(async move {
        recover(&runner).await;
        crate::reconcile::start(&runner);
        dispatch(&runner).await;
    });
}

/// Stops. What does not stop in time is left to the log.
pub(crate) async fn stop(core: &SharedCore, within: Duration) {
    core.stop.cancel();
    core.tasks.close();
    if tokio::time::timeout(within, core.tasks.wait()).await.is_err() {
        tracing::warn!(
            running = core.queue.running(),
            "Operations did not stop in time; the next start carries them on."
        );
    }
}

/// Fills the queue with everything that a crash or a stop interrupted. What a step had begun is observed by that step
/// itself when it is taken again.
async fn recover(core: &SharedCore) {
    loop {
        match core.store.unfinished().await {
            Ok(operations) => {
                if !operations.is_empty() {
                    tracing::info!(operations = operations.len(), "Carrying on what was interrupted.");
                }
                for op in &operations {
                    core.queue.note(op);
                }
                copy::forget_others(&core.settings, &operations);
                core.recovered.store(true, std::sync::atomic::Ordering::Release);
                return;
            }
            Err(error) => {
                tracing::error!(%error, "Cannot read the unfinished operations; trying again.");
                if paused(core, AFTER_STORE_FAILURE).await {
                    return;
                }
            }
        }
    }
}

/// Sleeps; answers whether the manager stops.
pub(crate) async fn paused(core: &SharedCore, duration: Duration) -> bool {
    tokio::select! {
        biased;
        () = core.clock.sleep(duration) => false,
        () = core.stop.cancelled() => true,
    }
}

async fn dispatch(core: &SharedCore) {
    loop {
        for claim in core.queue.claim() {
            let core = Arc::clone(core);
            core.tasks.clone().spawn(async move { one(&core, claim).await });
        }
        tokio::select! {
            biased;
            () = core.wake.notified() => {}
            () = core.stop.cancelled() => return,
        }
    }
}

/// Room for one more sync into the back end that a replica is on.
async fn room(core: &SharedCore, replica: InstanceId) -> Option<OwnedSemaphorePermit> {
    let row = core.store.instance(replica).await.ok()??;
    let syncs = Arc::clone(&core.backends.slot(row.backend()?)?.syncs);
    syncs.acquire_owned().await.ok()
}

/// Carries one operation on, and gives its place in the queue back.
async fn one(core: &SharedCore, claim: Claim) {
    let _check = if claim.verify {
        tokio::select! {
            biased;
            () = core.stop.cancelled() => return,
            () = claim.cancel.cancelled() => None,
            permit = Arc::clone(&core.checks).acquire_owned() => permit.ok(),
        }
    } else {
        None
    };
    let _permit = match claim.sync {
        Some(instance) => {
            tokio::select! {
                biased;
                () = core.stop.cancelled() => return,
                // A cancelled sync need not wait for room to end.
                () = claim.cancel.cancelled() => None,
                permit = room(core, instance) => permit,
            }
        }
        None => None,
    };
    let result = execute::run(core, &claim).await;
    core.board.ended(claim.op);
    if result == Ok(true) {
        copy::forget(&core.settings, claim.op);
    }
    match result {
        Ok(true) => core.queue.ended(claim.share, claim.op),
        Ok(false) => {}
        Err(Denied::Store(error)) => {
            tracing::error!(op = %claim.op, %error, "An operation cannot write its log; it goes on when the database answers.");
            if paused(core, AFTER_STORE_FAILURE).await {
                return;
            }
        }
        Err(error) => {
            tracing::error!(op = %claim.op, %error, "An operation cannot go on; see `tandem doctor`.");
            // It is left unfinished and unclaimed: doctor names it, and the next start tries it again.
            return;
        }
    }
    core.queue.released(claim.share, claim.op);
    core.wake.notify_one();
}
