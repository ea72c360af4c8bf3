//! Reconciliation: what is true now against what should be. It looks, judges, and admits operations; only what can be
//! derived from the store at any time (serving again after a boot, removing what no row names) is done directly.

mod backends;
pub(crate) use backends::cx;
mod heal;
mod news;
mod sync;
mod verify;
mod writable;
pub(crate) use verify::is_overdue;

use std::sync::Arc;
use std::time::Duration;

use crate::core::SharedCore;
use crate::run::paused;

/// Between two rounds of pruning the log.
const PRUNE_EVERY: Duration = Duration::from_secs(3600);

/// Starts every task of reconciliation.
pub(crate) fn start(core: &SharedCore) {
    for slot in core.backends.slots() {
        let (core, slot) = (Arc::clone(core), Arc::clone(slot));
        let (one, same) = (Arc::clone(&core), Arc::clone(&slot));
        core.tasks.spawn(async move { news::listen(&one, &same).await });
        core.tasks.clone().spawn(async move { backends::watch(&core, &slot).await });
    }
    let one = Arc::clone(core);
    core.tasks.spawn(async move { sync::schedule(&one).await });
    let one = Arc::clone(core);
    core.tasks.spawn(async move { heal::rounds(&one).await });
    let one = Arc::clone(core);
    core.tasks.spawn(async move { verify::rounds(&one).await });
    let one = Arc::clone(core);
    core.tasks.spawn(async move { prune(&one).await });
}

async fn prune(core: &SharedCore) {
    loop {
        let keep = Duration::from_secs(core.settings.keep_sync_days.saturating_mul(24 * 3600));
        let before = crate::clock::Timestamp(
            core.clock.now().0.saturating_sub(i64::try_from(keep.as_micros()).unwrap_or(i64::MAX)),
        );
        match core.store.prune(before).await {
            Ok(0) => {}
            Ok(removed) => tracing::info!(removed, "Pruned the log of ended syncs and checks."),
            Err(error) => tracing::warn!(%error, "Could not prune the log."),
        }
        if paused(core, PRUNE_EVERY).await {
            return;
        }
    }
}
