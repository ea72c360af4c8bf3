//! What drivers say has changed by itself: its share is looked at without delay.

use std::sync::Arc;
use std::time::Duration;

use tandem_contract::InstanceId;

use super::sync::{is_busy, only_waits};
use crate::backends::Slot;
use crate::core::SharedCore;
use crate::denied::Denied;
use crate::run::paused;

/// Between two rounds: a driver that has much to say costs a look a second at most.
const CALM: Duration = Duration::from_secs(1);

/// Listens to one back end for as long as the manager runs.
pub(super) async fn listen(core: &SharedCore, slot: &Arc<Slot>) {
    loop {
        let changed = tokio::select! {
            biased;
            () = core.stop.cancelled() => return,
            changed = slot.changed() => changed,
        };
        for instance in changed {
            if let Err(error) = take(core, instance).await {
                tracing::debug!(%instance, %error, "What changed could not be read; the schedule looks at it.");
            }
        }
        if paused(core, CALM).await {
            return;
        }
    }
}

async fn take(core: &SharedCore, instance: InstanceId) -> Result<(), Denied> {
    let Some(row) = core.store.instance(instance).await? else { return Ok(()) };
    let family = core.store.family(row.share_id).await?;
    // An operation changes it, and judges what it has done.
    if !is_busy(&family, &row) || only_waits(&family, &row) {
        core.board.watched.forget(row.share_id);
        core.board.look_at(row.share_id);
    }
    Ok(())
}
