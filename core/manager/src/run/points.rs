//! Steps that make, carry and release points.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use tandem_contract::{
    DiscardPartial, Epoch, Error, InstanceId, InstanceInfo, MakePoint, Observation, Outcome, PointId,
    PointInfo, ReceiveSpec, ReleasePoint, ReplicaState, Retry, SendSpec, Style,
};
use tandem_host::{CallContext, transfer};

use super::execute::Run;
use super::steps::{Done, Scene, set_exports};
use crate::chores::Chore;
use crate::model::{Instance, InstanceStatus, Intent, Operation, Part, PointRecord};
use crate::oplog::Event;
use crate::plan::{Step, common_format, newest_common};

/// A call that shows progress may take as long as it likes; this is only what the host is told.
const AS_LONG_AS_IT_MOVES: Duration = Duration::from_secs(30 * 24 * 3600);

impl Run {
    pub(super) async fn make_point(
        &self,
        scene: &Scene,
        source: InstanceId,
        point: PointId,
    ) -> Result<Done, Error> {
        let row = scene.row(source)?;
        let backend = self.core.backends.of(row).await?;
        let verb = MakePoint { instance: source, epoch: scene.share.epoch, point };
        let _alone = self.core.points.lock(source).await;
        let info = self.moving(async |cx| backend.call(&cx, verb.clone()).await).await?.into_inner();
        // The log's time of the step, not that of a repeated call: the point may have been made by the first.
        let made_at = self.started_at;
        Ok(Done::with(move |draft| {
            if let Some(share) = &mut draft.share {
                match share.points.iter_mut().find(|p| p.info.id == info.id) {
                    Some(known) => known.info = info.clone(),
                    None => share.points.push(PointRecord { info: info.clone(), made_at }),
                }
            }
            Vec::new()
        }))
    }

    pub(super) async fn transfer(
        &self,
        scene: &Scene,
        source: InstanceId,
        dest: InstanceId,
        point: PointId,
    ) -> Result<Done, Error> {
        let record = scene
            .share
            .points
            .iter()
            .find(|p| p.info.id == point)
            .cloned()
            .ok_or_else(|| Error::not_found(format!("point {point} is not on record")))?;
        let (source_row, dest_row) = (scene.row(source)?, scene.row(dest)?);
        let (from_backend, to_backend) =
            (self.core.backends.of(source_row).await?, self.core.backends.of(dest_row).await?);
        let here = there(self.observe(source_row).await?, source)?;
        let at_dest = there(self.observe(dest_row).await?, dest)?;
        let arrived_before = |p: &PointInfo| p.id == point && p.fingerprint == record.info.fingerprint;
        if at_dest.points.last().is_some_and(arrived_before) {
            // What was on its way from another active one, or came a second time: nothing asks for it any more.
            if at_dest.resume.is_some() {
                self.ask(&to_backend, DiscardPartial { instance: dest }).await?;
            }
            let epoch = scene.epoch_of(dest_row);
            return Ok(arrived(dest, record, (0, 0), None, epoch, Some(at_dest)));
        }
        if at_dest.points.iter().any(arrived_before) {
            return Err(Error::conflict(format!(
                "instance {dest} went past point {point} while it followed another one; a newer point brings it back"
            )));
        }
        let mut resume = at_dest.resume.clone();
        if resume.as_ref().is_some_and(|r| r.to.is_some_and(|to| to != point)) {
            self.ask(&to_backend, DiscardPartial { instance: dest }).await?;
            resume = None;
        }
        // Nothing is built upon what is damaged.
        let from = newest_common(&here, &at_dest).filter(|_| dest_row.damage.is_none());
        let had = dest_row.point.is_some() || !at_dest.points.is_empty();
        let remark = (from.is_none() && had).then(|| match &dest_row.damage {
            Some(damage) => {
                format!("everything was carried again, since a content check had found: {damage}")
            }
            None => "no point in common any more: everything was carried again".to_owned(),
        });
        let format =
            common_format(from_backend.capabilities(), to_backend.capabilities()).ok_or_else(|| {
                Error::unsupported(format!(
                    "back ends `{}` and `{}` have no stream format in common",
                    from_backend.name(),
                    to_backend.name()
                ))
            })?;
        let send = SendSpec {
            instance: source,
            epoch: scene.epoch_of(source_row),
            to: point,
            from: from.clone(),
            resume: resume.clone(),
            format: format.clone(),
            bandwidth: self.core.settings.bandwidth,
        };
        let epoch = scene.epoch_of(dest_row);
        let receive = ReceiveSpec { instance: dest, epoch, to: record.info.clone(), from, resume, format };
        let carried = self
            .moving(async |cx| transfer(&from_backend, send.clone(), &to_backend, receive.clone(), &cx).await)
            .await?;
        let (received, sent) = match carried.received {
            Outcome::Changed(r) | Outcome::Unchanged(r) => (r, carried.sent),
        };
        // Each side counts from its own end; the receiver knows what had arrived.
        let bytes = (received.bytes.max(sent.bytes), received.resumed_bytes);
        self.keeps_metadata(&received.lacks)?;
        let mut remarks: Vec<String> = remark.into_iter().collect();
        remarks.extend(sent.remarks);
        remarks.extend(received.remarks);
        remarks.dedup();
        let remark = (!remarks.is_empty()).then(|| remarks.join("; "));
        // What users may read can be reached only once something whole has arrived.
        let first = dest_row.exports.is_empty()
            && dest_row.part == Part::Whole
            && scene.share.replication == Some(Style::Readable);
        let now = if first { self.observe(dest_row).await? } else { None };
        Ok(arrived(dest, record, bytes, remark, epoch, now))
    }

    /// Lets go of every point but the newest that two instances have in common (whichever is promoted, the others can
    /// follow it by increments), those of replicas and of unfinished operations, and what a partial transfer waits for.
    /// Observes first and asks the store afterwards: a point made in between is not yet seen.
    pub(super) async fn release_points(&self, scene: &Scene) -> Result<Done, Error> {
        let mut seen = Vec::new();
        let mut keep = BTreeSet::new();
        let mut unseen = false;
        let mut gone = BTreeSet::new();
        // What a migration makes or left needs no point, and what could not be deleted follows nobody any more.
        let leaving = |i: &Instance| i.status == InstanceStatus::ErrorDeleting;
        let whole = |i: &&Instance| i.pool.is_some() && i.part == Part::Whole && !leaving(i);
        for row in scene.family.instances.iter().filter(whole) {
            match self.observe(row).await {
                Ok(Some(observed)) => {
                    keep.extend(observed.resume.as_ref().and_then(|r| r.to));
                    seen.push((row.clone(), observed));
                }
                Ok(None) => {
                    gone.insert(row.id);
                }
                Err(error) => {
                    // What a replica that is away has, and may still want, is not known: its increments are kept
                    // from the newest point on record that it is known to have.
                    tracing::debug!(instance = %row.id, %error, "A replica is away; points newer than its own stay.");
                    unseen = true;
                    keep.extend(wanted_by(row.point.as_ref(), &scene.share.points));
                }
            }
        }
        let now = self.scene().await?;
        // A replica that is being removed needs nothing any more, although its row is still there.
        let leaves = match self.intent() {
            Intent::DeleteReplica { instance, .. } => Some(instance),
            _ => None,
        };
        let stays = |i: &&Instance| Some(i.id) != leaves && i.part == Part::Whole && !leaving(i);
        let stay = now.family.instances.iter().filter(stays);
        // What the active one once received as a replica is needed by others only, and what has no storage gets all anew.
        let follow = stay.filter(|i| i.replica_state != Some(ReplicaState::Active) && !gone.contains(&i.id));
        keep.extend(follow.filter_map(|i| i.point.as_ref()).map(|p| p.info.id));
        keep.extend(in_common(seen.iter().filter(|(row, _)| Some(row.id) != leaves).map(|(_, seen)| seen)));
        for op in now.family.operations.iter().filter(|op| op.id != self.op) {
            keep.extend(self.points_of(op).await?);
        }
        for (row, observed) in seen {
            let backend = self.core.backends.of(&row).await?;
            let _alone = self.core.points.lock(row.id).await;
            for point in observed.points.iter().filter(|p| !keep.contains(&p.id)) {
                self.ask(&backend, ReleasePoint { instance: row.id, point: point.id }).await?;
            }
        }
        let (chores, chore) = (&self.core.board.chores, Chore::Release(self.share));
        if unseen {
            chores.note(chore, self.core.clock.now())
        } else {
            chores.done(chore)
        }
        Ok(Done::with(move |draft| {
            if let Some(share) = &mut draft.share {
                share.points.retain(|p| keep.contains(&p.info.id));
            }
            Vec::new()
        }))
    }

    /// Points that an unfinished operation's intent or plan names.
    async fn points_of(&self, op: &Operation) -> Result<Vec<PointId>, Error> {
        let asked = match op.intent {
            Intent::Sync { point, .. } => point,
            _ => None,
        };
        let log = self.core.store.log(op.id).await.map_err(|e| Error::unavailable(e.to_string()))?;
        let steps = log.into_iter().filter_map(|l| match l.event {
            Event::Planned { steps } => Some(steps),
            _ => None,
        });
        let planned = steps.flatten().filter_map(|s| match s {
            Step::MakePoint { point, .. } | Step::Transfer { point, .. } | Step::Compare { point, .. } => {
                Some(point)
            }
            _ => None,
        });
        Ok(asked.into_iter().chain(planned).collect())
    }

    /// Runs a long call for as long as it shows progress; without any for `stall_deadline_seconds` it is told to stop.
    pub(super) async fn moving<T>(
        &self,
        call: impl AsyncFnOnce(CallContext) -> Result<T, Error>,
    ) -> Result<T, Error> {
        self.moving_with(self.cx(), call).await
    }

    /// The same in this context.
    pub(super) async fn moving_with<T>(
        &self,
        cx: CallContext,
        call: impl AsyncFnOnce(CallContext) -> Result<T, Error>,
    ) -> Result<T, Error> {
        let mut cx = cx.deadline(AS_LONG_AS_IT_MOVES);
        let _ends = cx.cancel.clone().drop_guard();
        let (clock, report) = (Arc::clone(&self.core.clock), Arc::clone(&cx.on_progress));
        let moved_at = Arc::new(AtomicI64::new(clock.now().0));
        let (moved, now) = (Arc::clone(&moved_at), Arc::clone(&clock));
        let before = AtomicI64::new(-1);
        cx.on_progress = Arc::new(move |progress| {
            // A stopped transfer may go on reporting the same figure.
            let done = i64::try_from(progress.done).unwrap_or(i64::MAX);
            if before.swap(done, Ordering::Relaxed) != done {
                moved.store(now.now().0, Ordering::Relaxed);
            }
            report(progress);
        });
        let stall = Duration::from_secs(self.core.settings.stall_deadline_seconds.max(1));
        let cancel = cx.cancel.clone();
        let work = call(cx);
        tokio::pin!(work);
        let mut stalled = false;
        loop {
            tokio::select! {
                biased;
                answer = &mut work => {
                    return match answer {
                        Err(_) if stalled => Err(Error::unavailable(format!(
                            "nothing moved for {} s; the call was stopped", stall.as_secs()
                        )).retry(Retry::Never)),
                        other => other,
                    };
                }
                () = clock.sleep(stall / 4), if !stalled => {
                    let still = clock.now().0 - moved_at.load(Ordering::Relaxed);
                    if i128::from(still) > i128::try_from(stall.as_micros()).unwrap_or(i128::MAX) {
                        stalled = true;
                        cancel.cancel();
                    }
                }
            }
        }
    }
}

pub(super) fn there(seen: Option<Observation>, id: InstanceId) -> Result<Observation, Error> {
    seen.ok_or_else(|| Error::not_found(format!("the storage of instance {id} is gone")))
}

/// The newest point in common of each two.
fn in_common<'a>(seen: impl Iterator<Item = &'a Observation>) -> BTreeSet<PointId> {
    let seen: Vec<&Observation> = seen.collect();
    let pairs = seen.iter().enumerate().flat_map(|(n, a)| seen[..n].iter().map(move |b| (a, b)));
    pairs.filter_map(|(a, b)| newest_common(a, b)).map(|p| p.id).collect()
}

/// The points that a replica which is away may need: all that are newer than what it is known to have, and the newest
/// that is not. It may be ahead of the others, and follows from that one then.
fn wanted_by(known: Option<&PointRecord>, records: &[PointRecord]) -> Vec<PointId> {
    let Some(known) = known.map(|p| p.made_at) else { return records.iter().map(|p| p.info.id).collect() };
    let base = records.iter().filter(|p| p.made_at <= known).max_by_key(|p| p.made_at);
    let newer = records.iter().filter(|p| p.made_at >= known);
    base.into_iter().chain(newer).map(|p| p.info.id).collect()
}

/// The rows that follow from an arrived point, for which so many bytes were carried and so many had been before; `seen`
/// brings where the destination is reached since; the destination took it at this epoch.
fn arrived(
    dest: InstanceId,
    record: PointRecord,
    (bytes, resumed_bytes): (u64, u64),
    remark: Option<String>,
    epoch: Epoch,
    seen: Option<Observation>,
) -> Done {
    // One whose epoch is not confirmed yet after a start is exported a moment later, at the same place.
    let seen = seen.filter(|seen| !seen.exports.is_empty());
    let info = seen.map(|seen| InstanceInfo { exports: seen.exports, ..InstanceInfo::default() });
    Done {
        bytes: Some(bytes),
        resumed_bytes: (resumed_bytes > 0).then_some(resumed_bytes),
        remark,
        ..Done::with(move |draft| {
            if let Some(info) = &info {
                set_exports(draft, dest, info);
            }
            if let Some(row) = draft.instance_mut(dest) {
                row.point = Some(record.clone());
                row.epoch = epoch;
                (row.damage, row.damaged_at) = (None, None);
            }
            Vec::new()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Timestamp;

    fn at(n: i64) -> PointRecord {
        let id = PointId(uuid::Uuid::from_u128(u128::from(n.unsigned_abs())));
        let info = PointInfo { id, fingerprint: String::new(), held: true };
        PointRecord { info, made_at: Timestamp(n) }
    }

    #[test]
    fn a_replica_that_is_away_keeps_what_it_can_follow_from() {
        let records = [at(1), at(2), at(4), at(5)];
        let kept = |known: Option<PointRecord>| {
            let mut kept = wanted_by(known.as_ref(), &records);
            kept.sort_unstable();
            kept.dedup();
            kept
        };
        let ids = |all: &[i64]| all.iter().map(|n| at(*n).info.id).collect::<Vec<_>>();
        assert_eq!(kept(None), ids(&[1, 2, 4, 5]));
        assert_eq!(kept(Some(at(4))), ids(&[4, 5]));
        // What it has was given up: it follows from the one before.
        assert_eq!(kept(Some(at(3))), ids(&[2, 4, 5]));
        // It is ahead of everybody, after a forced promotion of another one.
        assert_eq!(kept(Some(at(9))), ids(&[5]));
        assert!(wanted_by(Some(&at(1)), &[]).is_empty());
    }
}
