//! What the end of an operation sets.

use std::collections::BTreeSet;

use tandem_contract::{Error, ErrorKind, InstanceId, PointId, ReplicaState, Style};

use crate::admission::admit_sync;
use crate::chores::Chore;
use crate::core::Core;
use crate::draft::{Draft, active_beside};
use crate::model::{AccessRulesStatus, Counted, Instance, InstanceStatus, Intent, Part};
use crate::oplog::{Effect, Ending};
use crate::plan::Step;

/// Rows and statuses at the end of an operation, in the same commit as its last event. What is to be deleted meanwhile
/// stays so: nothing else may be asked of it. `planned`: it got as far as its first step.
pub(super) fn rows(
    core: &Core,
    draft: &mut Draft,
    intent: &Intent,
    planned: bool,
    ending: Ending,
    error: Option<&Error>,
) -> Vec<Effect> {
    let mut effects = set(core, draft, intent, planned, ending, error);
    if !intent.deletes() {
        let deleted =
            |id: InstanceId| draft.instance(id).is_some_and(|i| i.status == InstanceStatus::Deleting);
        effects.retain(|e| !matches!(e, Effect::Status { instance, .. } if deleted(*instance)));
    }
    effects
}

fn set(
    core: &Core,
    draft: &mut Draft,
    intent: &Intent,
    planned: bool,
    ending: Ending,
    error: Option<&Error>,
) -> Vec<Effect> {
    let done = ending == Ending::Done;
    let reason = error.map(ToString::to_string);
    match intent {
        Intent::CreateShare { instance, .. } => {
            note(draft, *instance, done, reason);
            created(core, draft, *instance, done);
            vec![status(*instance, if done { InstanceStatus::Available } else { InstanceStatus::Error })]
        }
        Intent::DeleteShare { .. } if done => delete_share(core, draft),
        Intent::DeleteShare { .. } => {
            let ids: Vec<InstanceId> = draft.instances.iter().map(|i| i.id).collect();
            for id in &ids {
                note(draft, *id, false, reason.clone());
            }
            ids.into_iter().map(|id| status(id, InstanceStatus::ErrorDeleting)).collect()
        }
        Intent::CreateReplica { instance, .. } => {
            note(draft, *instance, done, reason);
            created(core, draft, *instance, done);
            if done {
                // The first sync is admitted with the last word of the creation: a crash cannot come between.
                let _ = admit_sync(draft, *instance, None);
                vec![status(*instance, InstanceStatus::Available)]
            } else {
                vec![status(*instance, InstanceStatus::Error), state(*instance, ReplicaState::Error)]
            }
        }
        Intent::DeleteReplica { instance, .. } if done => {
            core.board.gone(*instance);
            // Another deletion, forced or not, may have come first.
            if draft.instance(*instance).is_some() {
                return_replica(draft);
            }
            // Its own release of points may have been cut short, or have come before it was known to be gone.
            release_later(core, draft, None, Some(*instance));
            let last = !draft
                .instances
                .iter()
                .any(|i| i.id != *instance && i.replica_state.is_some_and(|s| s != ReplicaState::Active));
            if last
                && let Some(active) = draft.active().map(|a| a.id)
                && let Some(row) = draft.instance_mut(active)
            {
                // There is nothing to compare it with any more, and so no way to say that it was mended.
                super::verify::mended(row);
                core.board.set_freshness(active, |f| f.degraded = None);
            }
            vec![Effect::Gone { instance: *instance }]
        }
        Intent::DeleteReplica { instance, .. } => {
            note(draft, *instance, false, reason);
            let is_active = |i: &&Instance| i.replica_state == Some(ReplicaState::Active);
            if draft.instances.iter().filter(is_active).map(|i| i.id).eq([*instance]) {
                // A promotion came first: it serves its users, and nothing of it was removed. While it was to be deleted
                // it was passed over.
                super::rules::give_up(draft, *instance);
                core.board.chores.note(Chore::Repair(*instance), draft.now);
                return vec![status(*instance, InstanceStatus::Available)];
            }
            vec![status(*instance, InstanceStatus::ErrorDeleting), state(*instance, ReplicaState::Error)]
        }
        Intent::Sync { instance, point, .. } => {
            if !planned && let Some(point) = point {
                // Another operation may have kept it for this one, and no step of its own lets go of it.
                release_later(core, draft, Some(*point), None);
            }
            sync(core, draft, *instance, ending, reason)
        }
        Intent::Promote { instance, .. } => {
            note(draft, *instance, done, reason);
            let writable = draft.share.as_ref().is_some_and(|s| s.replication == Some(Style::Writable));
            if done && writable {
                // It may have been passed over while its share grew.
                core.board.chores.note(Chore::Repair(*instance), draft.now);
            }
            if !done && let Some(active) = draft.active() {
                // It was away, and may be active at an epoch before the one that was raised for the promotion.
                core.board.chores.note(Chore::Repair(active.id), draft.now);
            }
            vec![status(*instance, InstanceStatus::Available)]
        }
        Intent::Verify { instance, .. } => super::verify::found(core, draft, *instance, ending, error),
        Intent::Fence { instance } => {
            if !done {
                note(draft, *instance, false, reason);
            } else if let Some(active) = draft.active() {
                // It may have waited for this.
                core.board.chores.hurry(Chore::Repair(active.id), draft.now);
            }
            Vec::new()
        }
        Intent::Repair { instance } => {
            let chore = Chore::Repair(*instance);
            if done {
                core.board.chores.done(chore)
            } else {
                core.board.chores.note(chore, draft.now)
            }
            repair(core, draft, *instance, done, reason)
        }
        Intent::Resize { from_gb, to_gb } => resize(draft, *from_gb, *to_gb, done, error),
        Intent::UpdateAccess if !done => {
            // Cancelled: the rules stand, and so does what is to be done about them.
            for row in draft.instances.clone() {
                if row.access_rules_status == AccessRulesStatus::Syncing {
                    super::rules::give_up(draft, row.id);
                    core.board.chores.note(Chore::Rules(row.id), draft.now);
                }
            }
            Vec::new()
        }
        Intent::UpdateAccess => {
            // Asked for while it ran, and counted on by nobody else: a call that was given up may have come late.
            for id in super::rules::queued(draft) {
                core.board.chores.note(Chore::Rules(id), draft.now);
            }
            Vec::new()
        }
        Intent::Migrate { source, destination, request } => {
            super::migration::ended(draft, *source, *destination, request, ending, reason)
        }
        Intent::Release { instance, .. } if done => {
            core.board.gone(*instance);
            vec![Effect::Gone { instance: *instance }]
        }
        Intent::Release { instance, .. }
            if draft.instance(*instance).is_some_and(|i| i.part == Part::Whole) =>
        {
            Vec::new()
        }
        Intent::Release { instance, .. } => {
            core.board.chores.note(Chore::Leftover(*instance), draft.now);
            note(draft, *instance, false, reason);
            vec![status(*instance, InstanceStatus::ErrorDeleting)]
        }
        Intent::Reset { .. }
        | Intent::ResetTask { .. }
        | Intent::Observed { .. }
        | Intent::Arbitrate { .. } => Vec::new(),
    }
}

pub(super) const fn status(instance: InstanceId, status: InstanceStatus) -> Effect {
    Effect::Status { instance, status }
}

pub(super) const fn state(instance: InstanceId, state: ReplicaState) -> Effect {
    Effect::ReplicaState { instance, state: Some(state) }
}

/// Keeps why, or forgets it.
pub(super) fn note(draft: &mut Draft, instance: InstanceId, done: bool, reason: Option<String>) {
    let now = draft.now;
    if let Some(row) = draft.instance_mut(instance) {
        row.reason = reason;
        if done && row.launched_at.is_none() {
            row.launched_at = Some(now);
        }
    }
}

/// Its back end may have come up in the middle, after the step that made it: then it is not served yet.
fn created(core: &Core, draft: &Draft, instance: InstanceId, done: bool) {
    let chore = Chore::Repair(instance);
    if done {
        core.board.chores.hurry(chore, draft.now);
    } else {
        core.board.chores.done(chore);
    }
}

fn delete_share(core: &Core, draft: &mut Draft) -> Vec<Effect> {
    let gone: Vec<InstanceId> = draft.instances.iter().map(|i| i.id).collect();
    if let Some(share) = &draft.share {
        let size = i64::try_from(share.size_gb).unwrap_or(i64::MAX);
        let replicated = share.replication.is_some();
        let _ = draft.reserve(Counted::Shares, -1);
        let _ = draft.reserve(Counted::Gigabytes, -size);
        if replicated {
            for _ in 0..draft.counted() {
                return_replica(draft);
            }
        }
    }
    for id in &gone {
        core.board.gone(*id);
    }
    draft.share = None;
    draft.rules.clear();
    gone.into_iter().map(|instance| Effect::Gone { instance }).collect()
}

/// Points on record, and one more that may lie on the storage, are to be let go of where no replica is at them once
/// one of them has left.
fn release_later(core: &Core, draft: &Draft, more: Option<PointId>, leaves: Option<InstanceId>) {
    let Some(share) = &draft.share else { return };
    let stay = draft.instances.iter().filter(|i| Some(i.id) != leaves);
    let needed: BTreeSet<PointId> = stay.filter_map(|i| Some(i.point.as_ref()?.info.id)).collect();
    if share.points.iter().map(|p| p.info.id).chain(more).any(|id| !needed.contains(&id)) {
        core.board.chores.note(Chore::Release(share.id), draft.now);
    }
}

fn return_replica(draft: &mut Draft) {
    // A change of size that is admitted at this moment counts this replica, or does not: not half.
    draft.touch();
    // Growth that is on its way was paid for by every instance when it was admitted.
    let growing = draft.resizing().filter(|(from_gb, to_gb)| to_gb > from_gb).map(|(_, to_gb)| to_gb);
    let size = growing.or(draft.share.as_ref().map(|s| s.size_gb)).unwrap_or(0);
    let size = i64::try_from(size).unwrap_or(i64::MAX);
    let _ = draft.reserve(Counted::ShareReplicas, -1);
    let _ = draft.reserve(Counted::ReplicaGigabytes, -size);
}

/// A sync that failed or was preempted leaves the state to the lag: reconciliation judges that.
fn sync(
    core: &Core,
    draft: &mut Draft,
    instance: InstanceId,
    ending: Ending,
    reason: Option<String>,
) -> Vec<Effect> {
    let rpo = draft
        .before()
        .share_type
        .as_ref()
        .map_or(crate::model::DEFAULT_RPO_SECONDS, crate::model::ShareType::rpo_seconds);
    let writable = draft.share.as_ref().is_some_and(|share| share.replication == Some(Style::Writable));
    let Some(row) = draft.instance_mut(instance) else { return Vec::new() };
    if row.replica_state == Some(ReplicaState::Active) {
        return Vec::new();
    }
    if writable {
        // It joins, or lags behind: there is nothing between.
        row.reason = reason.or(row.reason.take());
        let parted = row.replica_state == Some(ReplicaState::Error);
        return if parted { Vec::new() } else { vec![state(instance, ReplicaState::OutOfSync)] };
    }
    match ending {
        Ending::Done => row.reason = None,
        Ending::Failed => row.reason = reason,
        Ending::Cancelled => {}
    }
    let now = if core.lag(row).seconds.is_some_and(|lag| lag <= rpo)
        || (ending == Ending::Done && row.point.is_none())
    {
        ReplicaState::InSync
    } else {
        ReplicaState::OutOfSync
    };
    // Only a sync that was done makes it in_sync.
    if row.replica_state == Some(now) || (ending != Ending::Done && now == ReplicaState::InSync) {
        return Vec::new();
    }
    vec![state(instance, now)]
}

fn repair(
    core: &Core,
    draft: &mut Draft,
    instance: InstanceId,
    done: bool,
    reason: Option<String>,
) -> Vec<Effect> {
    let Some(row) = draft.instance_mut(instance) else { return Vec::new() };
    if !done {
        row.reason = reason;
        return Vec::new();
    }
    let mut set = Vec::new();
    if row.status == InstanceStatus::Error {
        set.push(status(instance, InstanceStatus::Available));
    }
    if row.replica_state == Some(ReplicaState::Error) && core.board.freshness(instance).parted {
        // It is whole, and follows nobody before somebody says which side is to be kept.
        return set;
    }
    row.reason = None;
    if row.replica_state == Some(ReplicaState::Error) {
        set.push(state(instance, ReplicaState::OutOfSync));
    }
    if row.replica_state.is_some_and(|state| state != ReplicaState::Active) && !row.fenced && !row.unfenced {
        // Its creation may have ended before it was connected.
        let _ = admit_sync(draft, instance, None);
    }
    set
}

fn resize(draft: &mut Draft, from_gb: u64, to_gb: u64, done: bool, error: Option<&Error>) -> Vec<Effect> {
    let grown = to_gb > from_gb;
    let by = i64::try_from(to_gb.abs_diff(from_gb)).unwrap_or(i64::MAX);
    if done && let Some(share) = &mut draft.share {
        share.size_gb = to_gb;
    }
    // Growth was paid for at admission; what was not grown, and what was shrunk, is given back.
    if grown != done {
        let replicated = draft.share.as_ref().is_some_and(|s| s.replication.is_some());
        let _ = draft.reserve(Counted::Gigabytes, -by);
        if replicated {
            let all = by.saturating_mul(draft.counted());
            let _ = draft.reserve(Counted::ReplicaGigabytes, -all);
        }
    }
    let to = match (done, grown, error.map(|e| e.kind)) {
        (true, ..) => InstanceStatus::Available,
        (false, true, _) => InstanceStatus::ExtendingError,
        (false, false, Some(ErrorKind::OutOfSpace | ErrorKind::Conflict)) => {
            InstanceStatus::ShrinkingPossibleDataLossError
        }
        (false, false, _) => InstanceStatus::ShrinkingError,
    };
    // What failed is told of the share, by its active instance. One that was active when this was asked, and is a
    // replica now, goes on following.
    let moving = |s: InstanceStatus| matches!(s, InstanceStatus::Extending | InstanceStatus::Shrinking);
    let active = draft.active().map(|active| active.id);
    let told = |id: InstanceId| active.is_none_or(|active| active == id);
    let mut set = Vec::new();
    for row in draft.instances.clone() {
        if told(row.id) && (moving(row.status) || !done) {
            note(draft, row.id, false, error.map(ToString::to_string));
            set.push(status(row.id, to));
        } else if moving(row.status) {
            set.push(status(row.id, InstanceStatus::Available));
        }
    }
    set
}

/// An undo step could not be taken: what it leaves is marked, so that reconciliation and doctor own it.
pub(super) fn left_behind(draft: &mut Draft, step: &Step, error: &Error) -> Vec<Effect> {
    match step {
        Step::Demote { instance, .. } => {
            let epoch = draft.share.as_ref().map(|share| share.epoch);
            let others = active_beside(&draft.instances, *instance).is_some();
            let Some(row) = draft.instance_mut(*instance) else { return Vec::new() };
            let was_active = row.replica_state == Some(ReplicaState::Active);
            if was_active && !others {
                // All sides of a share are active, and of this one's nobody else is: it is repaired, not fenced.
                return Vec::new();
            }
            row.unfenced = true;
            // As far as anybody knows it serves since the newest promotion.
            row.epoch = epoch.unwrap_or(row.epoch);
            // An active one would never be fenced.
            was_active.then(|| state(*instance, ReplicaState::OutOfSync)).into_iter().collect()
        }
        Step::Promote { instance, .. } => {
            if let Some(row) = draft.instance_mut(*instance) {
                row.reason = Some(format!("could not be made active again: {error}"));
            }
            vec![status(*instance, InstanceStatus::Error)]
        }
        Step::Cast { instance, .. } | Step::ResumeWrites { instance } => {
            if let Some(row) = draft.instance_mut(*instance) {
                row.cast_rules_to_readonly = false;
                // That it could not be made active again says more.
                if row.status == InstanceStatus::Error {
                    return Vec::new();
                }
                row.reason = Some(format!("could not be made writable again: {error}"));
            }
            vec![status(*instance, InstanceStatus::Error)]
        }
        _ => Vec::new(),
    }
}
