//! Looks at shares whose instances are all active: who is not joins again, who does not serve while another one does follows
//! it, and who does not serve as its row says is repaired.

use std::collections::HashMap;
use std::time::Duration;

use tandem_contract::{Error, Health, InstanceId, ReplicaReport, ReplicaState, Style};

use super::sync::{behind, degraded, failure, follows, give_up, is_busy, observed, parted, report, set};
use crate::admission::{admit_sync, step_out};
use crate::chores::Chore;
use crate::core::SharedCore;
use crate::denied::Denied;
use crate::model::{Instance, InstanceStatus, OnSplitBrain, Part, Share, ShareType};
use crate::store::Family;

/// After this time a repair is tried again while nobody serves: each leaves an operation in the log.
const SOON: Duration = Duration::from_secs(60);

type Reports = HashMap<InstanceId, Result<ReplicaReport, Error>>;

/// Looks at one share.
pub(super) async fn look(core: &SharedCore, share: &Share, family: &Family) -> Result<(), Denied> {
    debug_assert_eq!(share.replication, Some(Style::Writable));
    let mut reports = Reports::new();
    for row in family.instances.iter().filter(|row| row.pool.is_some() && row.part == Part::Whole) {
        if is_active(row) || (follows(row) && !is_busy(family, row)) {
            reports.insert(row.id, report(core, row, share.epoch).await);
        }
    }
    for row in &family.instances {
        core.board
            .set_freshness(row.id, |f| f.degraded = reports.get(&row.id).and_then(|own| waits(row, own)));
    }
    let leads = |row: &&Instance| {
        is_active(row) && row.epoch == share.epoch && reports.get(&row.id).is_some_and(serves)
    };
    let lead = family.instances.iter().find(leads);
    let led = lead.and_then(|lead| reports.get(&lead.id));
    for (id, own) in &reports {
        if family.instances.iter().any(|row| row.id == *id && !is_active(row)) {
            core.board.set_freshness(*id, |f| f.lag_bytes = behind(led, Some(own)));
        }
    }
    for row in family.instances.iter().filter(|row| follows(row) && !is_busy(family, row)) {
        let Some(own) = reports.get(&row.id) else { continue };
        if let Some(why) = failure(own) {
            let works = |other: &&Instance| {
                other.id != row.id
                    && is_active(other)
                    && reports.get(&other.id).is_some_and(|own| failure(own).is_none())
            };
            broken(core, row, family.instances.iter().find(works).map(|other| other.id), why).await?;
        } else if is_active(row) {
            active(core, share, row, own, lead).await?;
        } else if let (Ok(own), Some(lead)) = (own, lead) {
            let policy = family.share_type.as_ref().map(ShareType::on_split_brain).unwrap_or_default();
            join(core, row, own, reports.get(&lead.id), policy).await?;
        }
    }
    if lead.is_none() {
        hurry(core, family);
    }
    Ok(())
}

fn is_active(row: &Instance) -> bool {
    row.replica_state == Some(ReplicaState::Active)
}

fn serves(report: &Result<ReplicaReport, Error>) -> bool {
    report
        .as_ref()
        .is_ok_and(|own| own.state == ReplicaState::Active && !matches!(own.health, Health::Failed { .. }))
}

/// Why the users of an active one wait, where they do; or what else is wrong.
fn waits(row: &Instance, own: &Result<ReplicaReport, Error>) -> Option<String> {
    let idle = own.as_ref().is_ok_and(|own| is_active(row) && own.state != ReplicaState::Active);
    let why = || row.reason.clone().unwrap_or_else(|| "its storage does not serve it".into());
    degraded(own).or_else(|| idle.then(why))
}

/// One that does not serve is no active one while another is, which is not broken as well.
async fn broken(
    core: &SharedCore,
    row: &Instance,
    other: Option<InstanceId>,
    why: String,
) -> Result<(), Denied> {
    core.change(row.share_id, |draft| {
        let beside = other.is_some_and(|other| draft.instance(other).is_some_and(is_active));
        if beside || !is_active(row) {
            set(draft, row, None, Some(ReplicaState::Error), Some(&why));
        } else {
            set(draft, row, Some(InstanceStatus::Error), None, Some(&why));
        }
        Ok(())
    })
    .await
}

/// An active one that its storage does not serve follows the one that serves, or is brought to serve where none does.
async fn active(
    core: &SharedCore,
    share: &Share,
    row: &Instance,
    own: &Result<ReplicaReport, Error>,
    lead: Option<&Instance>,
) -> Result<(), Denied> {
    let Ok(own) = own else { return Ok(()) };
    let other = lead.filter(|lead| lead.id != row.id);
    let split = own.split_brain.as_ref().zip(other);
    core.board.set_freshness(row.id, |f| f.parted = split.is_some());
    if let Some((how, _)) = split {
        return observed(core, row, None, Some(ReplicaState::Error), Some(how.clone())).await;
    }
    let idle = own.state != ReplicaState::Active;
    match other {
        Some(other) if idle => {
            let why = format!("it was not served any more; it follows instance {} again by itself", other.id);
            core.change(share.id, |draft| {
                let is = |id, state| draft.instance(id).is_some_and(|i| i.replica_state == state);
                let as_seen = draft.share.as_ref().is_some_and(|now| now.epoch == share.epoch)
                    && is(other.id, Some(ReplicaState::Active))
                    && is(row.id, row.replica_state);
                if as_seen {
                    step_out(draft, row.id, why.clone());
                }
                Ok(())
            })
            .await
        }
        _ => {
            if idle || row.epoch < share.epoch {
                core.board.chores.note(Chore::Repair(row.id), core.clock.now());
            }
            Ok(())
        }
    }
}

/// It follows, and serves again once it is up to date; unless it holds what somebody has to decide about.
async fn join(
    core: &SharedCore,
    row: &Instance,
    own: &ReplicaReport,
    lead: Option<&Result<ReplicaReport, Error>>,
    policy: OnSplitBrain,
) -> Result<(), Denied> {
    let split = own.split_brain.as_ref().filter(|_| !row.yields);
    core.board.set_freshness(row.id, |f| f.parted = split.is_some());
    match (split, lead) {
        // It was told the look before.
        (Some(_), Some(Ok(_)))
            if row.replica_state == Some(ReplicaState::Error) && policy == OnSplitBrain::DiscardSecondary =>
        {
            give_up(core, row).await
        }
        (Some(_), _) if row.replica_state == Some(ReplicaState::Error) => Ok(()),
        (Some(how), Some(lead)) => {
            observed(core, row, None, Some(ReplicaState::Error), Some(parted(how, lead))).await
        }
        (Some(how), None) => observed(core, row, None, Some(ReplicaState::Error), Some(how.clone())).await,
        (None, _) => core.change(row.share_id, |draft| admit_sync(draft, row.id, None).map(drop)).await,
    }
}

/// Nobody serves: what was tried before is tried again soon, for something may have changed.
fn hurry(core: &SharedCore, family: &Family) {
    let soon = core.clock.now().plus(SOON);
    for row in family.instances.iter().filter(|row| is_active(row)) {
        core.board.chores.hurry(Chore::Repair(row.id), soon);
    }
}
