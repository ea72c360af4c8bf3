//! The schedule of content checks: each replica once an interval, one after another, those that were not checked for longest
//! first. A check gives way to whatever else is asked of its replica, and is tried again at a later round.

use std::time::Duration;

use tandem_contract::InstanceId;

use crate::admission::admit_verify;
use crate::clock::Timestamp;
use crate::core::SharedCore;
use crate::denied::Denied;
use crate::draft::active_of;
use crate::model::{Instance, OpStatus, Operation};
use crate::plan::common_form;
use crate::reconcile::sync::follows;
use crate::run::paused;
use crate::store::{InstanceQuery, OperationQuery};

/// Rows read at once.
const PAGE: u64 = 500;
/// Shortest and longest time between two rounds.
const ROUNDS: (Duration, Duration) = (Duration::from_secs(60), Duration::from_secs(3600));
/// Between two looks at whether a check has ended.
const LOOK: Duration = Duration::from_secs(1);

/// Checks, round after round, for as long as the manager runs.
pub(super) async fn rounds(core: &SharedCore) {
    let Some(interval) = core.settings.verify.interval else { return };
    let every = (interval / 20).clamp(ROUNDS.0, ROUNDS.1);
    while !paused(core, every).await {
        if let Err(error) = round(core, interval).await {
            tracing::warn!(%error, "A round of content checks could not read the store.");
        }
    }
}

/// The replicas that are due, checked one after another.
async fn round(core: &SharedCore, interval: Duration) -> Result<(), Denied> {
    for (_, id) in due(core, interval).await? {
        let Some(row) = core.store.instance(id).await?.filter(|row| is_due(core, row, interval)) else {
            continue;
        };
        if was_tried(core, &row, interval).await? || !can_be_checked(core, &row).await? {
            continue;
        }
        let op = match core.change(row.share_id, |draft| admit_verify(draft, id, None)).await {
            Ok(op) => op,
            // It was promoted or removed meanwhile.
            Err(denied) => {
                tracing::debug!(instance = %id, %denied, "A replica is not checked now.");
                continue;
            }
        };
        while core.store.operation(op.id).await?.is_some_and(|op| !op.status.is_finished()) {
            if paused(core, LOOK).await {
                return Ok(());
            }
        }
    }
    Ok(())
}

/// Whether a check within the interval came to its end, however it ended: what it found is told, and is not read again
/// before its time.
async fn was_tried(core: &SharedCore, row: &Instance, interval: Duration) -> Result<bool, Denied> {
    let query =
        OperationQuery { instance: Some(row.id), kind: Some("verify".into()), ..OperationQuery::default() };
    let ended = |op: &Operation| matches!(op.status, OpStatus::Done | OpStatus::Failed);
    let soon = |op: &Operation| op.updated_at.plus(interval) > core.clock.now();
    Ok(core.store.operations(&query).await?.iter().any(|op| ended(op) && soon(op)))
}

/// Replicas that were not checked for an interval, the longest first.
async fn due(core: &SharedCore, interval: Duration) -> Result<Vec<(Timestamp, InstanceId)>, Denied> {
    let mut due = Vec::new();
    let mut offset = 0;
    loop {
        let limit = Some(PAGE);
        let query = InstanceQuery { replicas_only: true, offset, limit, ..InstanceQuery::default() };
        let rows = core.store.instances(&query).await?.items;
        let last = (rows.len() as u64) < PAGE;
        due.extend(rows.iter().filter(|row| is_due(core, row, interval)).map(|row| (since(row), row.id)));
        if last {
            break;
        }
        offset += PAGE;
    }
    due.sort_unstable();
    Ok(due)
}

/// When it was last known to hold what it should.
fn since(row: &Instance) -> Timestamp {
    row.checked.as_ref().map(|c| c.at).or(row.launched_at).unwrap_or(row.created_at)
}

fn is_due(core: &SharedCore, row: &Instance, interval: Duration) -> bool {
    follows(row) && row.damage.is_none() && since(row).plus(interval) <= core.clock.now()
}

/// Whether it is a follower at rest whose content both sides can read.
async fn can_be_checked(core: &SharedCore, row: &Instance) -> Result<bool, Denied> {
    let family = core.store.family(row.share_id).await?;
    let busy = family.operations.iter().any(|op| op.status != OpStatus::Done && op.intent.concerns(row.id));
    let Some(active) = active_of(&family.instances).filter(|active| active.id != row.id && !busy) else {
        return Ok(false);
    };
    let capabilities = |row| core.backends.capabilities_of(row);
    let (Some(here), Some(there)) = (capabilities(active), capabilities(row)) else { return Ok(false) };
    Ok(row.point.is_some() && common_form(&here, &there).is_some())
}
