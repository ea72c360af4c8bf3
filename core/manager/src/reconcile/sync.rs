//! The schedule of syncs: each replica on its own clock, every half of its share type's `replication:rpo_seconds`.
//!
//! A look at a share asks its active instance whether anything changed since the newest point. Nothing changed and the
//! replica has that point: it is confirmed, in memory, and costs no write. Otherwise a sync is admitted.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use tandem_contract::{
    Epoch, Error, ErrorKind, Health, InstanceId, ObserveInstance, PointId, ReplicaReport, ReplicaState,
    ResourceId, Role, Style, UpdateReplicaState,
};
use tokio::sync::{Semaphore, mpsc};

use super::backends::cx;
use crate::admission::{admit_resync, admit_sync, new_op};
use crate::backends::Slot;
use crate::chores::Chore;
use crate::clock::Timestamp;
use crate::core::SharedCore;
use crate::denied::Denied;
use crate::draft::{Draft, active_of};
use crate::model::{Instance, InstanceStatus, Intent, OnSplitBrain, OpStatus, Share};
use crate::oplog::{Effect, Ending, Event};
use crate::plan::by_storage;
use crate::run::paused;
use crate::store::Family;
use crate::watched::AtRest;

/// Between two looks at which shares are due.
const TICK: Duration = Duration::from_millis(500);
/// When a share is due that is being looked at.
const BEING_LOOKED_AT: Timestamp = Timestamp(i64::MAX);
/// Before a share that could not be looked at is tried again.
const AFTER_FAILURE: Duration = Duration::from_secs(10);
/// Every so many ticks the schedule is read from the store again, for shares that came.
const REREAD_TICKS: u64 = 120;
/// Families read at once.
const READS: usize = 8;
/// Shares that are due at once after a start, a second: more are spread.
const SPREAD: u64 = 200;

/// Shares that are looked at without delay at one tick; the others at the next.
const AT_ONCE: usize = 100;

/// Keeps the schedule for as long as the manager runs. A share whose look takes long delays no other.
pub(super) async fn schedule(core: &SharedCore) {
    let reads = Arc::new(Semaphore::new(READS));
    let (tell, mut told) = mpsc::unbounded_channel();
    let mut due: HashMap<ResourceId, Timestamp> = HashMap::new();
    for tick in 0_u64.. {
        if tick % REREAD_TICKS == 0
            && let Err(error) = read(core, &mut due).await
        {
            tracing::warn!(%error, "The schedule of syncs could not be read.");
        }
        let now = core.clock.now();
        let mut ready: Vec<ResourceId> =
            due.iter().filter(|(_, at)| **at <= now).map(|(id, _)| *id).collect();
        ready.sort();
        for share in ready {
            due.insert(share, BEING_LOOKED_AT);
            let (core, reads, tell) = (Arc::clone(core), Arc::clone(&reads), tell.clone());
            core.tasks.clone().spawn(async move {
                let again = look(&core, &reads, share).await.unwrap_or_else(|error| {
                    tracing::debug!(%share, %error, "A share could not be looked at; again in a while.");
                    AFTER_FAILURE
                });
                // The other end goes only when the manager stops.
                let _ = tell.send((share, again));
            });
        }
        if paused(core, TICK).await {
            return;
        }
        for share in core.board.take_to_look_at(AT_ONCE) {
            let at = due.entry(share).or_insert(core.clock.now());
            if *at == BEING_LOOKED_AT {
                // That look may have begun before there was something to see.
                core.board.look_at(share);
            } else {
                *at = (*at).min(core.clock.now());
            }
        }
        while let Ok((share, again)) = told.try_recv() {
            due.insert(share, core.clock.now().plus(again));
        }
    }
}

/// Reads which shares have followers. New ones are due at once, or one after another where they are very many.
async fn read(core: &SharedCore, due: &mut HashMap<ResourceId, Timestamp>) -> Result<(), Denied> {
    let shares: BTreeSet<ResourceId> = core.store.following().await?.into_iter().collect();
    let now = core.clock.now();
    due.retain(|share, _| shares.contains(share));
    for (n, share) in (0_u64..).zip(shares) {
        due.entry(share).or_insert_with(|| now.plus(Duration::from_secs(n / SPREAD)));
    }
    Ok(())
}

/// Looks at one share. Answers when to look again.
async fn look(core: &SharedCore, reads: &Semaphore, share: ResourceId) -> Result<Duration, Denied> {
    if let Some(at_rest) = core.board.watched.get(share)
        && glance(core, &at_rest).await
    {
        return Ok(half(at_rest.rpo));
    }
    let generation = core.board.watched.generation(share);
    let family = {
        let _one = reads.acquire().await;
        core.store.family(share).await?
    };
    let (Some(row), Some(share_type)) = (&family.share, &family.share_type) else { return Ok(AFTER_FAILURE) };
    let rpo = share_type.rpo_seconds();
    let again = half(Duration::from_secs(rpo));
    if row.replication.is_none() {
        return Ok(again);
    }
    if row.replication == Some(Style::Writable) {
        super::writable::look(core, row, &family).await?;
        return Ok(again);
    }
    let active = active_of(&family.instances);
    let (followers, others): (Vec<&Instance>, Vec<&Instance>) =
        family.instances.iter().filter(|i| Some(i.id) != active.map(|a| a.id)).partition(|i| follows(i));
    let active = active.filter(|_| !followers.is_empty());
    // Who is not asked tells nothing.
    let unasked = family.instances.iter().filter(|_| active.is_none()).chain(others);
    unasked.for_each(|i| core.board.set_freshness(i.id, |f| f.degraded = None));
    let Some(active) = active else { return Ok(again) };
    let asked_at = core.clock.now();
    let active_report = report(core, active, row.epoch).await;
    core.board.set_freshness(active.id, |f| f.degraded = degraded(&active_report));
    let mut rests =
        active_report.as_ref().is_ok_and(|a| a.changed_since_point == Some(false) && a.health == Health::Ok);
    if !is_busy(&family, active)
        && active.status == InstanceStatus::Available
        && let Some(why) = failure(&active_report)
    {
        observed(core, active, Some(InstanceStatus::Error), None, Some(why)).await?;
    }
    let point = next_point(&active_report);
    for follower in followers {
        // One that its storage brings up to date by itself may fall behind while an operation waits for it.
        let waits = is_by_storage(core, follower) && only_waits(&family, follower);
        if is_busy(&family, follower) && !waits {
            continue;
        }
        let own = report(core, follower, row.epoch).await;
        core.board.set_freshness(follower.id, |f| f.degraded = degraded(&own));
        if let Some(why) = failure(&own) {
            observed(core, follower, None, Some(ReplicaState::Error), Some(why)).await?;
        } else if is_by_storage(core, follower) {
            if own.as_ref().is_ok_and(|own| own.up_to_date == Some(true)) {
                tell_exports(core, row, follower).await;
            }
            let policy = share_type.on_split_brain();
            judge_storage(core, follower, &active_report, own, (rpo, policy)).await?;
        } else {
            // One that was found damaged is not at the point that it says.
            let strayed = has_strayed(follower, &own) || follower.damage.is_some();
            rests &= !strayed && own.as_ref().is_ok_and(|own| own.health == Health::Ok);
            judge(core, follower, &active_report, strayed, point, asked_at, rpo).await?;
        }
    }
    if rests && let Some(at_rest) = at_rest(&family, active, rpo) {
        core.board.watched.keep(share, generation, at_rest);
    }
    Ok(again)
}

/// Half of an interval, for what is to be no older than the whole.
fn half(rpo: Duration) -> Duration {
    (rpo / 2).max(Duration::from_millis(500))
}

/// A look at a share at rest: one call. Answers whether it still is.
async fn glance(core: &SharedCore, share: &AtRest) -> bool {
    let Some(slot) = core.backends.slot(&share.backend) else { return false };
    let asked_at = core.clock.now();
    let unchanged = ask(core, slot, share.active, share.epoch).await.is_ok_and(|report| {
        report.changed_since_point == Some(false)
            && report.health == Health::Ok
            && report.newest_point.is_some_and(|p| p.id == share.point)
    });
    if unchanged {
        for follower in &share.followers {
            confirm(core, *follower, asked_at, share.rpo);
        }
    }
    unchanged
}

/// What a glance needs, when every instance rests at the same point and Tandem carries the data.
fn at_rest(family: &Family, active: &Instance, rpo: u64) -> Option<AtRest> {
    let share = family.share.as_ref()?;
    let followers: Vec<&Instance> = family.instances.iter().filter(|i| i.id != active.id).collect();
    let point = followers.first()?.point.as_ref()?.info.id;
    let rests = |i: &&Instance| {
        follows(i)
            && i.replica_state == Some(ReplicaState::InSync)
            && i.point.as_ref().is_some_and(|p| p.info.id == point)
    };
    let all = family.operations.is_empty()
        && active.status == InstanceStatus::Available
        && followers.iter().all(rests);
    all.then(|| {
        let ids = followers.iter().map(|i| i.id).collect();
        let backend = active.backend().unwrap_or_default().to_owned();
        AtRest::new(active.id, backend, share.epoch, point, ids, Duration::from_secs(rpo))
    })
}

/// The point that all followers found behind are brought to: the active's newest while nothing changed since.
fn next_point(active: &Result<ReplicaReport, Error>) -> PointId {
    let newest = active.as_ref().ok().filter(|a| a.changed_since_point == Some(false));
    newest.and_then(|a| a.newest_point.as_ref()).map_or_else(|| PointId(crate::ids::by_time()), |p| p.id)
}

/// Notes that the active was unchanged since a replica's newest point when it was asked.
fn confirm(core: &SharedCore, replica: InstanceId, asked_at: Timestamp, rpo: Duration) {
    core.board.set_freshness(replica, |f| {
        f.confirmed_at = Some(asked_at);
        f.unchanged_until = Some(asked_at.plus(rpo));
        f.lag_bytes = Some(0);
    });
}

/// Whether a replica is to be kept up to date.
pub(super) fn follows(row: &Instance) -> bool {
    row.status == InstanceStatus::Available
        && row.pool.is_some()
        && !row.fenced
        && !row.unfenced
        && !row.reset_by_admin
}

/// Whether an operation owns it now, or the whole share.
pub(super) fn is_busy(family: &Family, row: &Instance) -> bool {
    family.operations.iter().any(|op| match op.intent {
        // What gives way keeps nobody waiting.
        Intent::UpdateAccess | Intent::Verify { .. } => false,
        _ => op.status != OpStatus::Done && op.intent.concerns(row.id),
    })
}

/// Whether nothing but syncs own it now.
pub(super) fn only_waits(family: &Family, row: &Instance) -> bool {
    let is_sync = |intent: &Intent| matches!(intent, Intent::Sync { .. } | Intent::UpdateAccess);
    family.operations.iter().filter(|op| op.intent.concerns(row.id)).all(|op| is_sync(&op.intent))
}

pub(super) async fn report(core: &SharedCore, row: &Instance, epoch: Epoch) -> Result<ReplicaReport, Error> {
    match row.backend().and_then(|name| core.backends.slot(name)) {
        Some(slot) => ask(core, slot, row.id, epoch).await,
        None => Err(Error::unavailable("its back end is not in the settings")),
    }
}

async fn ask(
    core: &SharedCore,
    slot: &Slot,
    instance: InstanceId,
    epoch: Epoch,
) -> Result<ReplicaReport, Error> {
    if !slot.is_up() {
        return Err(Error::unavailable("its back end is down"));
    }
    let _one = slot.looks.acquire().await;
    slot.opened().await?.call(&cx(core), UpdateReplicaState { instance, epoch }).await
}

/// What a driver reports as broken. That it cannot be asked is another matter: its back end is down.
pub(super) fn failure(report: &Result<ReplicaReport, Error>) -> Option<String> {
    match report {
        Ok(ReplicaReport { health: Health::Failed { reason }, .. }) => Some(reason.clone()),
        Err(error) if error.kind == ErrorKind::NotFound => Some(error.to_string()),
        _ => None,
    }
}

/// What is wrong with one that serves or follows nevertheless.
pub(super) fn degraded(report: &Result<ReplicaReport, Error>) -> Option<String> {
    match report {
        Ok(ReplicaReport { health: Health::Degraded { reason }, .. }) => Some(reason.clone()),
        _ => None,
    }
}

/// Whether a replica is not at the point that it was brought to: its driver found it written to since.
fn has_strayed(row: &Instance, own: &Result<ReplicaReport, Error>) -> bool {
    let known = row.point.as_ref().map(|p| p.info.id);
    own.as_ref().is_ok_and(|own| own.newest_point.as_ref().map(|p| p.id) != known)
}

fn is_by_storage(core: &SharedCore, row: &Instance) -> bool {
    core.backends.capabilities_of(row).is_some_and(|capabilities| by_storage(&capabilities))
}

async fn judge(
    core: &SharedCore,
    row: &Instance,
    active: &Result<ReplicaReport, Error>,
    strayed: bool,
    point: PointId,
    asked_at: Timestamp,
    rpo: u64,
) -> Result<(), Denied> {
    let unchanged = active.as_ref().is_ok_and(|a| {
        let newest = a.newest_point.as_ref().map(|p| p.id);
        a.changed_since_point == Some(false)
            && newest.is_some()
            && newest == row.point.as_ref().map(|p| p.info.id)
    }) && !strayed;
    if unchanged {
        confirm(core, row.id, asked_at, Duration::from_secs(rpo));
    } else if active.is_ok() {
        core.board.set_freshness(row.id, |f| f.unchanged_until = None);
        // One that was written to may be said to hold the point that it strayed from: a new one is carried.
        let point = (!strayed).then_some(point);
        core.change(row.share_id, |draft| admit_sync(draft, row.id, point).map(drop)).await?;
        // The sync itself sets the state when it ends; only an old lag is judged here.
    }
    let in_time = core.lag(row).seconds.is_some_and(|lag| lag <= rpo);
    let should = if in_time { ReplicaState::InSync } else { ReplicaState::OutOfSync };
    let stays = row.replica_state == Some(should) || row.replica_state == Some(ReplicaState::Error);
    // A replica becomes in_sync by a sync or by a confirmation, never by waiting.
    if !stays && (should == ReplicaState::OutOfSync || unchanged) {
        let why = active.as_ref().err().map(ToString::to_string);
        observed(core, row, None, Some(should), why).await?;
    }
    Ok(())
}

async fn judge_storage(
    core: &SharedCore,
    row: &Instance,
    active: &Result<ReplicaReport, Error>,
    report: Result<ReplicaReport, Error>,
    (rpo, policy): (u64, OnSplitBrain),
) -> Result<(), Denied> {
    let now = core.clock.now();
    let idle =
        |r: &ReplicaReport| r.up_to_date == Some(false) && r.resync.is_none() && r.split_brain.is_none();
    if active.is_ok() && report.as_ref().is_ok_and(idle) {
        // It is behind and nothing moves: an operation that should have connected it failed. A sync connects it.
        core.change(row.share_id, |draft| admit_sync(draft, row.id, None).map(drop)).await?;
    }
    let split = report.as_ref().is_ok_and(|r| r.split_brain.is_some());
    let gives_up = split && active.is_ok() && policy == OnSplitBrain::DiscardSecondary;
    let lag_bytes = behind(Some(active), Some(&report));
    let (should, why) = match report {
        Ok(report) => {
            core.board.set_freshness(row.id, |f| {
                f.lag_bytes = lag_bytes;
                f.parted = report.split_brain.is_some();
                let current = report.up_to_date == Some(true);
                f.unchanged_until = current.then(|| now.plus(Duration::from_secs(rpo)));
                if current {
                    f.confirmed_at = Some(now);
                }
            });
            match (&report.split_brain, report.up_to_date) {
                (Some(how), _) => (ReplicaState::Error, Some(parted(how, active))),
                (None, Some(true)) => (ReplicaState::InSync, None),
                // Its storage knows exactly: no `rpo_seconds` make up for what it lacks.
                (None, Some(false)) => (ReplicaState::OutOfSync, None),
                _ if core.lag(row).seconds.is_some_and(|lag| lag <= rpo) => (ReplicaState::InSync, None),
                _ => (ReplicaState::OutOfSync, None),
            }
        }
        Err(error) => {
            core.board.set_freshness(row.id, |f| f.lag_bytes = lag_bytes);
            (ReplicaState::OutOfSync, Some(error.to_string()))
        }
    };
    if row.replica_state != Some(should) {
        observed(core, row, None, Some(should), why).await?;
    }
    if gives_up {
        give_up(core, row).await?;
    }
    Ok(())
}

/// What only this side has is given up, as the operator chose in the share type.
pub(super) async fn give_up(core: &SharedCore, row: &Instance) -> Result<(), Denied> {
    tracing::warn!(replica = %row.id, "By its share type, what only this side has is given up.");
    core.change(row.share_id, |draft| admit_resync(draft, row.id, None).map(drop)).await
}

/// Users are told where they read a replica once its storage has something to show them: by a repair, since rows are changed by
/// operations only.
async fn tell_exports(core: &SharedCore, share: &Share, row: &Instance) {
    if share.replication != Some(Style::Readable) || !row.exports.is_empty() {
        return;
    }
    let Some(slot) = row.backend().and_then(|name| core.backends.slot(name)) else { return };
    let Ok(backend) = slot.opened().await else { return };
    let seen = backend.call(&cx(core), ObserveInstance { instance: row.id }).await;
    if matches!(seen, Ok(Some(seen)) if seen.role == Role::Secondary && !seen.exports.is_empty()) {
        core.board.chores.note(Chore::Repair(row.id), core.clock.now());
    }
}

/// Bytes that a replica of storage that replicates by itself is behind. One that is cut off does not know; the active one
/// counts what it could not hand on.
pub(super) fn behind(
    active: Option<&Result<ReplicaReport, Error>>,
    own: Option<&Result<ReplicaReport, Error>>,
) -> Option<u64> {
    let told = |report: &Result<ReplicaReport, Error>| report.as_ref().ok().and_then(|r| r.lag_bytes);
    own.and_then(told).or(active.and_then(told))
}

/// What is said of a replica that went on by itself, with where the active one stands.
pub(super) fn parted(how: &str, active: &Result<ReplicaReport, Error>) -> String {
    match active.as_ref().ok().and_then(|active| active.position.as_ref()) {
        Some(position) => format!("{how}. The active one is at {position}"),
        None => how.to_owned(),
    }
}

/// Logs what was seen of an instance, and sets it.
pub(super) async fn observed(
    core: &SharedCore,
    row: &Instance,
    status: Option<InstanceStatus>,
    state: Option<ReplicaState>,
    reason: Option<String>,
) -> Result<(), Denied> {
    core.change(row.share_id, |draft| {
        set(draft, row, status, state, reason.as_ref());
        Ok(())
    })
    .await
}

/// The same, within a change.
pub(super) fn set(
    draft: &mut Draft,
    row: &Instance,
    status: Option<InstanceStatus>,
    state: Option<ReplicaState>,
    reason: Option<&String>,
) {
    let id = row.id;
    let Some(now) = draft.instance_mut(id) else { return };
    // Something happened since the look.
    if now.replica_state != row.replica_state || now.status != row.status || now.damage != row.damage {
        return;
    }
    now.reason = reason.cloned();
    let mut effects = Vec::new();
    effects.extend(status.map(|status| Effect::Status { instance: id, status }));
    effects.extend(state.map(|state| Effect::ReplicaState { instance: id, state: Some(state) }));
    let intent = Intent::Observed { instance: id, status, replica_state: state, reason: reason.cloned() };
    let op = draft.admit(new_op(), intent, effects, None);
    draft.append(op, Event::Finished { ending: Ending::Done, error: None }, Vec::new(), None);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_active_one_tells_how_far_a_replica_is_behind_that_cannot() {
        let told = |lag_bytes| {
            Ok(ReplicaReport {
                state: ReplicaState::OutOfSync,
                newest_point: None,
                changed_since_point: None,
                lag_bytes,
                up_to_date: Some(false),
                resync: None,
                split_brain: None,
                position: None,
                health: Health::Ok,
            })
        };
        let away = || Err(Error::unavailable("unplugged"));
        for (active, own, lag) in [
            (told(Some(8)), told(Some(4)), Some(4)),
            (told(Some(8)), told(None), Some(8)),
            (told(Some(8)), away(), Some(8)),
            (away(), told(None), None),
        ] {
            assert_eq!(behind(Some(&active), Some(&own)), lag);
        }
    }
}
