//! Looks at shares whose instances are all active: who is not joins again, and who does not serve as its row says is
//! repaired.

use tandem_contract::{ReplicaReport, ReplicaState, Style};

use super::sync::{failure, follows, is_busy, observed, report};
use crate::admission::admit_sync;
use crate::chores::Chore;
use crate::core::SharedCore;
use crate::denied::Denied;
use crate::draft::{active_beside, active_of};
use crate::model::{Instance, InstanceStatus, Share};
use crate::store::Family;

/// Looks at one share.
pub(super) async fn look(core: &SharedCore, share: &Share, family: &Family) -> Result<(), Denied> {
    debug_assert_eq!(share.replication, Some(Style::Writable));
    let Some(lead) = active_of(&family.instances) else { return Ok(()) };
    let leads = report(core, lead, share.epoch).await;
    for row in family.instances.iter().filter(|row| follows(row) && !is_busy(family, row)) {
        let own = if row.id == lead.id { leads.clone() } else { report(core, row, share.epoch).await };
        if let Some(why) = failure(&own) {
            broken(core, family, row, why).await?;
        } else if row.replica_state == Some(ReplicaState::Active) {
            let idle = own.as_ref().is_ok_and(|own| own.state != ReplicaState::Active);
            if idle || row.epoch < share.epoch {
                core.board.chores.note(Chore::Repair(row.id), core.clock.now());
            }
        } else if let (Ok(own), true) = (own, leads.is_ok() && lead.epoch == share.epoch) {
            join(core, row, own).await?;
        }
    }
    Ok(())
}

/// One that does not serve is no active one while another is.
async fn broken(core: &SharedCore, family: &Family, row: &Instance, why: String) -> Result<(), Denied> {
    if active_beside(&family.instances, row.id).is_some() {
        return observed(core, row, None, Some(ReplicaState::Error), Some(why)).await;
    }
    observed(core, row, Some(InstanceStatus::Error), None, Some(why)).await
}

/// It follows, and serves again once it is up to date; unless it holds what somebody has to decide about.
async fn join(core: &SharedCore, row: &Instance, own: ReplicaReport) -> Result<(), Denied> {
    let parted = own.split_brain.filter(|_| !row.yields);
    core.board.set_freshness(row.id, |f| {
        f.lag_bytes = own.lag_bytes;
        f.parted = parted.is_some();
    });
    match parted {
        Some(_) if row.replica_state == Some(ReplicaState::Error) => Ok(()),
        Some(how) => observed(core, row, None, Some(ReplicaState::Error), Some(how)).await,
        None => core.change(row.share_id, |draft| admit_sync(draft, row.id, None, None).map(drop)).await,
    }
}
