//! Takes one step: looks where it must, calls the driver, and says what rows and statuses follow. Every step may be
//! taken again.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Map, Value};
use tandem_contract::{
    AccessReport, AccessSpec, CreateInstance, CreateReplica, DeleteInstance, DeleteReplica, DemoteReplica,
    Demotion, EnsureInstance, Epoch, Error, ErrorKind, InstanceId, InstanceInfo, InstanceSpec, Observation,
    ObserveInstance, PromoteReplica, Promotion, Quiesce, ReplicaState, ReplicationSpec, ResizeInstance,
    ResourceKind, ResumeWrites, Retry, Role, Style, Transport, UpdateAccess, Verb,
};
use tandem_host::{Backend, CallContext};

use super::copy::Phase;
use super::execute::Run;
use super::points::there;
use crate::chores::Chore;
use crate::clock::Timestamp;
use crate::draft::{Draft, holds_back};
use crate::model::{Export, Instance, InstanceStatus, Intent, Part, PointRecord, PoolAddress, Share};
use crate::oplog::{Effect, Event};
use crate::plan::{Step, by_storage};
use crate::store::Family;

/// Bytes in a GiB, Manila's unit of sizes.
pub(super) const GIB: u64 = 1 << 30;

/// Rows and statuses that follow from a step that ended well.
pub(super) type Rows = Box<dyn Fn(&mut Draft) -> Vec<Effect> + Send + Sync>;

/// Why a step that ended well is not put on record after all: something else came first.
pub(super) type Unless = Box<dyn Fn(&Draft) -> Option<Error> + Send + Sync>;

/// A step that ended well.
pub(super) struct Done {
    pub bytes: Option<u64>,
    pub resumed_bytes: Option<u64>,
    pub remark: Option<String>,
    pub rows: Rows,
    pub unless: Unless,
}

impl Done {
    pub fn nothing() -> Self {
        Self::with(|_| Vec::new())
    }

    pub fn with(rows: impl Fn(&mut Draft) -> Vec<Effect> + Send + Sync + 'static) -> Self {
        Self {
            bytes: None,
            resumed_bytes: None,
            remark: None,
            rows: Box::new(rows),
            unless: Box::new(|_| None),
        }
    }
}

/// What a step works on, freshly read.
pub(super) struct Scene {
    pub share: Share,
    pub family: Family,
}

impl Scene {
    pub fn row(&self, id: InstanceId) -> Result<&Instance, Error> {
        self.family
            .instances
            .iter()
            .find(|i| i.id == id)
            .ok_or_else(|| Error::not_found(format!("instance {id} is not in the store any more")))
    }

    /// The epoch that an instance is called with: what a migration fills lives at the next one, which is the share's
    /// from the switch on.
    pub fn epoch_of(&self, row: &Instance) -> Epoch {
        if row.part == Part::Incoming { self.share.epoch.next() } else { self.share.epoch }
    }
}

impl Run {
    pub(super) async fn scene(&self) -> Result<Scene, Error> {
        let family =
            self.core.store.family(self.share).await.map_err(|e| Error::unavailable(e.to_string()))?;
        let share = family.share.clone().ok_or_else(|| Error::not_found("the share is gone"))?;
        Ok(Scene { share, family })
    }

    /// The context of a driver call within the present step.
    pub(super) fn cx(&self) -> CallContext {
        self.context(
            self.may_turn_back() && self.state.steps.get(self.state.next).is_none_or(Step::is_cancellable),
        )
    }

    fn context(&self, heeds_cancel: bool) -> CallContext {
        let (board, op) = (Arc::clone(&self.core), self.op);
        let cancel = self.core.stop.child_token();
        if heeds_cancel {
            let (asked, call) = (self.cancel.clone(), cancel.clone());
            // Ends with the call: the child is cancelled when the context goes, through its guard.
            let watch = cancel.clone();
            tokio::spawn(async move {
                tokio::select! {
                    biased;
                    () = asked.cancelled() => call.cancel(),
                    () = watch.cancelled() => {}
                }
            });
        }
        let (core, share, step) = (Arc::clone(&self.core), self.share, self.state.next);
        CallContext::new(self.op)
            .cancel(cancel)
            .deadline(Duration::from_secs(self.core.settings.call_deadline_seconds))
            .on_progress(move |progress| board.board.progress(op, progress))
            .on_checkpoint(move |token| {
                let core = Arc::clone(&core);
                async move {
                    core.change(share, |draft| {
                        if let Some(row) = draft.unfinished().into_iter().find(|o| o.id == op) {
                            draft.append(
                                row,
                                Event::Checkpoint { step, token: token.clone() },
                                Vec::new(),
                                None,
                            );
                        }
                        Ok(())
                    })
                    .await
                    .map_err(|e| Error::unavailable(format!("the checkpoint was not written: {e}")))
                }
            })
    }

    /// One quick call.
    pub(super) async fn ask<V: Verb + 'static>(&self, backend: &Backend, verb: V) -> Result<V::Reply, Error> {
        let cx = self.cx();
        let _ends = cx.cancel.clone().drop_guard();
        backend.call(&cx, verb).await
    }

    /// What is there. A driver that has to walk a whole tree for it may take as long as it moves.
    pub(super) async fn observe(&self, row: &Instance) -> Result<Option<Observation>, Error> {
        let backend = self.core.backends.of(row).await?;
        self.walking(&backend, ObserveInstance { instance: row.id }).await
    }

    /// A call that takes as long as there are files, and moves no bytes: it tells that it moves, but that is no progress
    /// of the operation.
    pub(super) async fn walking<V: Verb + 'static>(
        &self,
        backend: &Backend,
        verb: V,
    ) -> Result<V::Reply, Error> {
        let cx = self.cx().on_progress(|_| {});
        self.moving_with(cx, async |cx| backend.call(&cx, verb).await).await
    }

    /// Takes a step.
    pub(super) async fn take(&self, step: &Step) -> Result<Done, Error> {
        let scene = self.scene().await?;
        match step {
            Step::Place { instance } => self.place(&scene, *instance).await,
            Step::CreateInstance { instance } => {
                let (backend, spec) = self.spec(&scene, *instance).await?;
                let info = self.ask(&backend, CreateInstance { spec }).await?.into_inner();
                Ok(served(*instance, info, &scene.share))
            }
            Step::CreateReplica { instance } => {
                let (backend, spec) = self.spec(&scene, *instance).await?;
                let spec = super::migration::as_replica(spec, &backend);
                let info = self.ask(&backend, CreateReplica { spec }).await?.into_inner();
                Ok(served(*instance, info, &scene.share))
            }
            Step::Connect { instance } => self.connect(&scene, *instance).await,
            Step::Disconnect { instance } => self.disconnect(&scene, *instance).await,
            Step::Ensure { instance } => self.ensure(&scene, *instance).await,
            Step::ApplyAccess { instance } => self.apply_access(&scene, *instance).await,
            Step::MakePoint { source, point } => self.make_point(&scene, *source, *point).await,
            Step::Transfer { source, instance, point } => {
                self.transfer(&scene, *source, *instance, *point).await
            }
            Step::Compare { source, instance, point } => {
                self.compare(&scene, *source, *instance, *point).await
            }
            Step::ReleasePoints => self.release_points(&scene).await,
            Step::AwaitUpToDate { instance } => self.await_up_to_date(&scene, *instance).await,
            Step::Follow { source, instance } => self.follow(&scene, *source, *instance).await,
            Step::Leave { instance, peer } => self.leave_peer(&scene, *instance, *peer).await,
            Step::EndReplication { instance } => self.end_replication(&scene, *instance).await,
            Step::Quiesce { instance, wait_seconds } => {
                let backend = self.core.backends.of(scene.row(*instance)?).await?;
                let verb =
                    Quiesce { instance: *instance, epoch: scene.share.epoch, wait_seconds: *wait_seconds };
                self.ask(&backend, verb).await?;
                Ok(Done::nothing())
            }
            Step::Cast { instance, read_only } => self.cast(&scene, *instance, *read_only).await,
            Step::ResumeWrites { instance } => {
                let backend = self.core.backends.of(scene.row(*instance)?).await?;
                self.ask(&backend, ResumeWrites { instance: *instance, epoch: scene.share.epoch }).await?;
                Ok(Done::nothing())
            }
            Step::RaiseEpoch => Ok(self.raise_epoch()),
            Step::Demote { instance, to } => self.demote(&scene, *instance, *to).await,
            Step::Promote { instance, forced } => self.promote(&scene, *instance, *forced).await,
            Step::Join { instance } => self.join(&scene, *instance).await,
            Step::Prepare { instance } => self.prepare(&scene, *instance).await,
            Step::Mirror { source, instance, last, fenced } => {
                let how = Phase::of(*last, *fenced);
                self.mirror(&scene, *source, *instance, how).await
            }
            Step::Succeed { source, instance } => self.succeed(&scene, *source, *instance).await,
            Step::Withdraw { instance } => self.withdraw(&scene, *instance).await,
            Step::Assist { source, instance } => self.assist(&scene, *source, *instance).await,
            Step::Carry { source, instance } => self.carry(&scene, *source, *instance).await,
            Step::AwaitProceed { .. } => self.await_proceed().await,
            Step::TakeOver { source, instance } => self.take_over(&scene, *source, *instance).await,
            Step::Unwind { source, instance } => self.unwind(&scene, *source, *instance).await,
            Step::LetGo { source, instance } => self.let_go(&scene, *source, *instance).await,
            Step::Detach { instance } => self.detach(&scene, *instance).await,
            Step::Grant { instance } => self.grant(&scene, *instance).await,
            Step::Switch { source, instance } => self.switch(&scene, *source, *instance).await,
            Step::Resize { instance, size_gb } => {
                let row = scene.row(*instance)?;
                if matches!(self.intent(), Intent::Resize { .. })
                    && let Some(remark) = self.told(&scene, row).await?
                {
                    return Ok(Done { remark: Some(remark), ..Done::nothing() });
                }
                let backend = self.core.backends.of(row).await?;
                let size_bytes = size_gb.saturating_mul(GIB);
                let verb = ResizeInstance { instance: *instance, epoch: scene.share.epoch, size_bytes };
                self.ask(&backend, verb).await?;
                // Where it is reached stays. One whose epoch is not confirmed yet after an absence would say: nowhere.
                let (id, epoch) = (*instance, scene.share.epoch);
                Ok(Done::with(move |draft| {
                    confirm(draft, id, epoch);
                    Vec::new()
                }))
            }
            Step::DeleteInstance { instance } => {
                let Some(backend) = self.placed(&scene, *instance).await? else { return Ok(Done::nothing()) };
                self.walking(&backend, DeleteInstance { instance: *instance }).await?;
                Ok(unserved(*instance))
            }
            Step::DeleteReplica { instance } => {
                let Some(backend) = self.placed(&scene, *instance).await? else { return Ok(Done::nothing()) };
                self.walking(&backend, DeleteReplica { instance: *instance }).await?;
                Ok(unserved(*instance))
            }
        }
    }

    /// The driver of an instance, unless the instance is nowhere.
    pub(super) async fn placed(&self, scene: &Scene, id: InstanceId) -> Result<Option<Backend>, Error> {
        match scene.row(id) {
            Ok(row) if row.pool.is_some() => Ok(Some(self.core.backends.of(row).await?)),
            _ => Ok(None),
        }
    }

    pub(super) async fn spec(&self, scene: &Scene, id: InstanceId) -> Result<(Backend, InstanceSpec), Error> {
        let row = scene.row(id)?;
        let backend = self.core.backends.of(row).await?;
        let pool = row.pool.as_ref().map(|p: &PoolAddress| p.pool.clone()).unwrap_or_default();
        let driver = self.core.backends.driver_of(row);
        let share_type = self.type_of(scene, id).await?;
        let style = self.style_of(scene, id, &share_type)?;
        let options: Map<String, Value> = share_type
            .extra_specs
            .iter()
            .filter_map(|(key, value)| {
                let (scope, key) = key.split_once(':')?;
                (scope == driver).then(|| (key.to_owned(), Value::String(value.clone())))
            })
            .collect();
        let spec = InstanceSpec {
            instance: id,
            resource: scene.share.id,
            kind: ResourceKind::Share,
            pool,
            size_bytes: scene.share.size_gb.saturating_mul(GIB),
            protocol: scene.share.protocol.clone(),
            epoch: scene.epoch_of(row),
            replication: style.map(|style| ReplicationSpec { style, instances: 2 }),
            options,
        };
        Ok((backend, spec))
    }

    async fn apply_access(&self, scene: &Scene, id: InstanceId) -> Result<Done, Error> {
        Ok(self.access(scene, id).await?.0)
    }

    pub(super) async fn access(&self, scene: &Scene, id: InstanceId) -> Result<(Done, AccessReport), Error> {
        let backend = self.core.backends.of(scene.row(id)?).await?;
        // A sync applies rules beside a change of them: whichever comes later has the newer ones.
        let _one = self.core.rules.lock(id).await;
        let scene = self.scene().await?;
        let row = scene.row(id)?;
        let access = AccessSpec {
            rules: super::rules::wanted(&scene.family.rules),
            read_only: row.cast_rules_to_readonly,
        };
        let granted: BTreeSet<_> = access.rules.iter().map(|rule| rule.id).collect();
        let verb = UpdateAccess { instance: id, epoch: scene.epoch_of(row), access };
        let report = self.ask(&backend, verb).await?.into_inner();
        self.core.board.chores.done(Chore::Rules(id));
        let told = report.clone();
        let done = Done::with(move |draft| {
            super::rules::applied(draft, id, &granted, &told);
            Vec::new()
        });
        Ok((done, report))
    }

    /// Holds writers back by the rules, or gives them what their rules say again.
    async fn cast(&self, scene: &Scene, id: InstanceId, read_only: bool) -> Result<Done, Error> {
        let backend = self.core.backends.of(scene.row(id)?).await?;
        let access = AccessSpec { rules: super::rules::wanted(&scene.family.rules), read_only };
        self.ask(&backend, UpdateAccess { instance: id, epoch: scene.share.epoch, access }).await?;
        Ok(Done::with(move |draft| {
            if let Some(row) = draft.instance_mut(id) {
                row.cast_rules_to_readonly = read_only;
            }
            Vec::new()
        }))
    }

    async fn demote(&self, scene: &Scene, id: InstanceId, to: Demotion) -> Result<Done, Error> {
        let backend = self.core.backends.of(scene.row(id)?).await?;
        let epoch = scene.share.epoch;
        let info = match self.ask(&backend, DemoteReplica { instance: id, epoch, to }).await {
            // What is to be removed may be gone.
            Err(error) if error.kind == ErrorKind::NotFound && self.intent().deletes() => {
                InstanceInfo::default()
            }
            other => other?.into_inner(),
        };
        let read_only = scene.share.replication == Some(Style::Readable);
        Ok(Done::with(move |draft| {
            set_exports(draft, id, &info);
            if let Some(row) = draft.instance_mut(id) {
                row.epoch = epoch;
                row.cast_rules_to_readonly = read_only;
                row.fenced = to == Demotion::Fenced;
                row.unfenced = false;
            }
            Vec::new()
        }))
    }

    async fn promote(&self, scene: &Scene, id: InstanceId, forced: bool) -> Result<Done, Error> {
        let row = scene.row(id)?;
        let backend = self.core.backends.of(row).await?;
        let (epoch, point) = (scene.share.epoch, row.point.clone());
        let held = point.as_ref().map(|p| p.info.id);
        let promotion = if forced {
            Promotion::Forced { point: held }
        } else if self.state.undoing() {
            if let Some(new) = self.not_taken_back(&scene.family) {
                return Err(waits_for(new));
            }
            let seen = self.ask(&backend, ObserveInstance { instance: id }).await?;
            given_back(&there(seen, id)?, &backend)
        } else {
            Promotion::Planned { point: held }
        };
        let info = self.ask(&backend, PromoteReplica { instance: id, epoch, promotion }).await?.into_inner();
        let remark = forced.then(|| {
            let current = self.core.board.freshness(id).confirmed_at;
            let stepped_down = |step: &Step| matches!(step, Step::Demote { .. });
            if self.state.steps.iter().any(stepped_down) {
                return KEPT.to_owned();
            }
            lost(row, by_storage(backend.capabilities()).then_some(current), self.core.clock.now())
        });
        let rows = move |draft: &mut Draft| {
            set_exports(draft, id, &info);
            let mut effects = vec![Effect::ReplicaState { instance: id, state: Some(ReplicaState::Active) }];
            for other in &mut draft.instances {
                if other.id == id {
                    other.epoch = epoch;
                    other.cast_rules_to_readonly = false;
                    (other.fenced, other.unfenced, other.yields) = (false, false, false);
                    other.reason = None;
                } else if other.replica_state == Some(ReplicaState::Active) {
                    // Planned: the old active made the point that the new one has. Forced: nobody knows yet.
                    // One that stepped down for this at the same epoch serves nobody.
                    let stepped_down = other.epoch >= epoch;
                    other.unfenced = forced && !stepped_down;
                    if !forced {
                        other.point.clone_from(&point);
                    }
                    let state = if forced || point.is_none() {
                        ReplicaState::OutOfSync
                    } else {
                        ReplicaState::InSync
                    };
                    effects.push(Effect::ReplicaState { instance: other.id, state: Some(state) });
                    // A size that could not be changed is no reason for a replica not to follow.
                    if matches!(
                        other.status,
                        InstanceStatus::ExtendingError
                            | InstanceStatus::ShrinkingError
                            | InstanceStatus::ShrinkingPossibleDataLossError
                    ) {
                        let status = InstanceStatus::Available;
                        effects.push(Effect::Status { instance: other.id, status });
                    }
                }
            }
            if let Some(share) = &mut draft.share {
                share.points = point.iter().cloned().collect();
            }
            effects
        };
        Ok(Done { remark, ..Done::with(rows) })
    }

    /// The new side of a promotion that is being undone, where it could not be demoted: it may be serving its users.
    fn not_taken_back(&self, family: &Family) -> Option<InstanceId> {
        let undo = self.state.steps.get(self.state.undo_from?..self.state.next)?;
        let mut new = undo.iter().filter_map(|step| match step {
            Step::Demote { instance, .. } => Some(*instance),
            _ => None,
        });
        new.find(|id| family.instances.iter().any(|i| i.id == *id && i.unfenced))
    }

    /// Brings an instance back to what its role says, at the share's epoch.
    async fn ensure(&self, scene: &Scene, id: InstanceId) -> Result<Done, Error> {
        let row = scene.row(id)?;
        let backend = self.core.backends.of(row).await?;
        let epoch = scene.epoch_of(row);
        // One that lost an arbitration follows first, whatever its row was set to.
        let is_active = row.replica_state.is_none_or(|s| s == ReplicaState::Active) && !row.yields;
        if is_active && row.status == InstanceStatus::Error && matches!(self.intent(), Intent::Repair { .. })
        {
            self.end_old_move(scene, id).await?;
        }
        let seen = there(self.observe(row).await?, id)?;
        let writable = scene.share.replication == Some(Style::Writable);
        // One that waits to be told who goes on would be told so by a newer epoch.
        let serves = seen.role == Role::Active && !(writable && seen.epoch < epoch);
        if is_active
            && !serves
            && let Some(other) = holds_back(&scene.family.instances, row)
        {
            return Err(waits_for(other));
        }
        if is_active {
            self.settle(&scene.share, id, &seen).await?;
        }
        // Active at an older epoch: a promotion that was given up has raised it meanwhile.
        if is_active && (seen.role != Role::Active || seen.epoch < epoch) {
            let others = scene.family.instances.iter().any(|i| i.id != id && i.part == Part::Whole);
            // What a migration had fenced is given back as it was.
            let back = PromoteReplica { instance: id, epoch, promotion: given_back(&seen, &backend) };
            let as_it_was = PromoteReplica { promotion: Promotion::Planned { point: None }, ..back.clone() };
            let given = match seen.role {
                Role::Fenced if !others => self.ask(&backend, as_it_was).await,
                _ => self.ask(&backend, back.clone()).await,
            };
            match given {
                // Drivers of before knew it of what does not replicate only.
                Err(error)
                    if !others && matches!(error.kind, ErrorKind::Conflict | ErrorKind::InvalidArgument) =>
                {
                    self.ask(&backend, back).await?;
                }
                other => drop(other?),
            }
        } else if !is_active && seen.role == Role::Active {
            let to = if row.fenced { Demotion::Fenced } else { Demotion::Secondary };
            self.ask(&backend, DemoteReplica { instance: id, epoch, to }).await?;
        }
        if seen.quiesced {
            self.ask(&backend, ResumeWrites { instance: id, epoch }).await?;
        }
        let info = self.ask(&backend, EnsureInstance { instance: id, epoch }).await?.into_inner();
        if matches!(self.intent(), Intent::Repair { .. }) {
            self.keep_size(&scene.share, &backend, &seen, (id, epoch)).await?;
            if !is_active && by_storage(backend.capabilities()) && !row.fenced && !row.unfenced {
                self.parted(&backend, id, epoch).await?;
            }
        }
        Ok(served(id, info, &scene.share))
    }

    /// Gives an instance the size of its share: a change of size that failed may have left it another one.
    async fn keep_size(
        &self,
        share: &Share,
        backend: &Backend,
        seen: &Observation,
        (instance, epoch): (InstanceId, Epoch),
    ) -> Result<(), Error> {
        let size_bytes = share.size_gb.saturating_mul(GIB);
        if seen.size_bytes == size_bytes {
            return Ok(());
        }
        match self.ask(backend, ResizeInstance { instance, epoch, size_bytes }).await {
            Err(error) if seen.size_bytes > size_bytes && error.kind != ErrorKind::Unavailable => {
                tracing::debug!(%instance, %error, "An instance stays larger than its share.");
                Ok(())
            }
            other => other.map(drop),
        }
    }
}

/// What is said of a promotion where both sides have what the other lacks.
const KEPT: &str = "what only this replica had is kept; what only the one that was active has is kept on that one, until it is given up by \
                    its `resync`";

/// What a forced promotion may have lost, for a person. `current`: of storage that replicates by itself, when it was last
/// seen to have everything.
fn lost(row: &Instance, current: Option<Option<Timestamp>>, now: Timestamp) -> String {
    let unfenced = "the old active is unfenced until it is seen again";
    let since = |at: Timestamp| format!("{} ({} s before)", at.iso(), now.seconds_since(at));
    match (current, &row.point) {
        (Some(Some(at)), _) => format!(
            "forced: it was last seen up to date at {}; what was written since may be lost; {unfenced}",
            since(at)
        ),
        (Some(None), _) => format!(
            "forced: nobody knows when it was last up to date, and what was written since may be lost; {unfenced}"
        ),
        (None, Some(PointRecord { made_at, .. })) => {
            format!("forced: what was written after {} may be lost; {unfenced}", since(*made_at))
        }
        (None, None) => {
            format!("forced: this replica had no whole point; everything may be lost; {unfenced}")
        }
    }
}

fn waits_for(other: InstanceId) -> Error {
    Error::unavailable(format!(
        "instance {other} was promoted and may be serving its users, but does not answer; what it took would be lost. Once \
         it answers this goes on by itself; to go on without it, delete it by force"
    ))
    .retry(Retry::AfterOperator)
}

/// How what was the active one becomes so again: with what it holds, which nobody has gone past.
fn given_back(seen: &Observation, backend: &Backend) -> Promotion {
    let replication = backend.capabilities().replication.as_ref();
    match seen.points.last() {
        Some(point) => Promotion::Planned { point: Some(point.id) },
        // Written to after its newest point.
        None if replication.is_some_and(|r| matches!(r.transport, Transport::Streamed { .. })) => {
            Promotion::Forced { point: None }
        }
        None => Promotion::Planned { point: None },
    }
}

/// The rows that follow from a call that serves an instance.
pub(super) fn served(id: InstanceId, info: InstanceInfo, share: &Share) -> Done {
    let epoch = share.epoch;
    Done::with(move |draft| {
        set_exports(draft, id, &info);
        confirm(draft, id, epoch);
        Vec::new()
    })
}

/// The instance has taken a call at this epoch of its share.
fn confirm(draft: &mut Draft, id: InstanceId, epoch: Epoch) {
    if let Some(row) = draft.instance_mut(id) {
        row.epoch = if row.part == Part::Incoming { epoch.next() } else { epoch };
    }
}

/// The rows that follow from a removal that the instance's row outlives.
fn unserved(id: InstanceId) -> Done {
    Done::with(move |draft| {
        set_exports(draft, id, &InstanceInfo::default());
        Vec::new()
    })
}

/// Takes over exports; those whose path stays keep their id.
pub(super) fn set_exports(draft: &mut Draft, id: InstanceId, info: &InstanceInfo) {
    let now = draft.now;
    let Some(row) = draft.instance_mut(id) else { return };
    let old = std::mem::take(&mut row.exports);
    row.exports = info
        .exports
        .iter()
        .map(|new| match old.iter().find(|o| o.path == new.path) {
            Some(kept) if kept.preferred == new.preferred && kept.admin_only == new.admin_only => {
                kept.clone()
            }
            Some(kept) => Export {
                preferred: new.preferred,
                admin_only: new.admin_only,
                updated_at: Some(now),
                ..kept.clone()
            },
            None => Export {
                id: crate::ids::random(),
                path: new.path.clone(),
                preferred: new.preferred,
                admin_only: new.admin_only,
                created_at: now,
                updated_at: None,
            },
        })
        .collect();
}
