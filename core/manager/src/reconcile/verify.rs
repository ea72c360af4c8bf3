//! The schedule of content checks: each replica once an interval, one after another, those that were not checked for longest
//! first. A check gives way to whatever else is asked of its replica, and is tried again at a later round.

use std::time::Duration;

use tandem_contract::{InstanceId, OpId};

use crate::admission::admit_verify;
use crate::clock::Timestamp;
use crate::core::{Core, SharedCore};
use crate::denied::Denied;
use crate::draft::active_of;
use crate::model::{Instance, OpStatus};
use crate::plan::common_form;
use crate::reconcile::sync::follows;
use crate::run::paused;
use crate::store::InstanceQuery;

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

/// The replicas that are due, checked one after another; as many at once as the settings say.
async fn round(core: &SharedCore, interval: Duration) -> Result<(), Denied> {
    let mut running = Vec::new();
    for (_, id) in due(core, interval).await? {
        let Some(row) = core.store.instance(id).await?.filter(|row| is_due(core, row, interval)) else {
            continue;
        };
        if !can_be_checked(core, &row).await? {
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
        running.push(op.id);
        if !fewer_than(core, &mut running, core.settings.verify.concurrent.max(1)).await? {
            return Ok(());
        }
    }
    fewer_than(core, &mut running, 1).await.map(drop)
}

/// Waits until fewer than so many of these operations run. `false` when the manager stops.
async fn fewer_than(core: &SharedCore, running: &mut Vec<OpId>, room: usize) -> Result<bool, Denied> {
    loop {
        let mut left = Vec::new();
        for id in running.drain(..) {
            if core.store.operation(id).await?.is_some_and(|op| !op.status.is_finished()) {
                left.push(id);
            }
        }
        *running = left;
        if running.len() < room {
            return Ok(true);
        }
        if paused(core, LOOK).await {
            return Ok(false);
        }
    }
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

/// When it was last known to hold what it should, or its check came to another end: what that found is told, and is not
/// read again before its time.
fn since(row: &Instance) -> Timestamp {
    row.tried_at.map_or(known(row), |tried| tried.max(known(row)))
}

/// When it was last known to hold what it should.
fn known(row: &Instance) -> Timestamp {
    row.checked.as_ref().map(|c| c.at).or(row.launched_at).unwrap_or(row.created_at)
}

/// Whether no check of a follower has come to a good end for two intervals.
pub(crate) fn is_overdue(core: &Core, row: &Instance, active: &Instance) -> bool {
    let capabilities = |row| core.backends.capabilities_of(row);
    let alike = capabilities(active).zip(capabilities(row)).and_then(|(a, b)| common_form(&a, &b)).is_some();
    let overdue = |interval: Duration| {
        follows(row) && row.damage.is_none() && known(row).plus(interval * 2) <= core.clock.now()
    };
    alike && core.settings.verify.interval.is_some_and(overdue)
}

fn is_due(core: &Core, row: &Instance, interval: Duration) -> bool {
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
