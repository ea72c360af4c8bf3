//! Steps of a migration, the task states that they show, and what its end sets.

use std::collections::HashMap;
use std::time::Duration;

use serde_json::Value;
use tandem_contract::{
    Compatibility, DemoteReplica, Demotion, Detach, EnsureInstance, Error, ErrorKind, ExportLocation,
    GetEndpoint, InstanceId, InstanceInfo, InstanceSpec, MigrationCancel, MigrationComplete,
    MigrationContinue, MigrationRelease, MigrationSpec, MigrationStart, PrepareDestination, Progress,
    PromoteReplica, Promotion, ReplicaState, ReplicationSpec, ResourceKind, Retry, Role, Style,
    UpdateReplicaState,
};
use tandem_host::Backend;

use super::execute::Run;
use super::finish::{note, status};
use super::sides::description;
use super::steps::{Done, Scene, served};
use crate::admission::new_op;
use crate::chores::Chore;
use crate::draft::Draft;
use crate::model::{
    Counted, InstanceStatus, Intent, MigrationRequest, Part, RuleState, ShareType, TaskState,
};
use crate::oplog::{Effect, Ending};
use crate::plan::{Sides, Step, by_storage, can_quiesce};

/// Between two rounds of a driver's first phase.
const NEXT_ROUND: Duration = Duration::from_millis(500);

impl Run {
    /// The type that an instance has: that of the share, but for the destination of a migration that changes it.
    pub(super) async fn type_of(&self, scene: &Scene, id: InstanceId) -> Result<ShareType, Error> {
        let gone = || Error::not_found("the share type is gone");
        let row = scene.row(id)?;
        if row.share_type_id == scene.share.share_type_id {
            return scene.family.share_type.clone().ok_or_else(gone);
        }
        let found = self.core.store.share_type(row.share_type_id).await;
        found.map_err(|e| Error::unavailable(e.to_string()))?.ok_or_else(gone)
    }

    /// How an instance replicates: as its share does, but for the destination of a migration that changes it.
    pub(super) fn style_of(
        &self,
        scene: &Scene,
        id: InstanceId,
        share_type: &ShareType,
    ) -> Result<Option<Style>, Error> {
        let changes = scene.row(id)?.share_type_id != scene.share.share_type_id;
        Ok(if changes { share_type.replication() } else { scene.share.replication })
    }

    /// Both sides as the source's driver is told of them, and that driver.
    async fn pair(
        &self,
        scene: &Scene,
        source: InstanceId,
        instance: InstanceId,
    ) -> Result<(Backend, MigrationSpec), Error> {
        let to = scene.row(instance)?;
        let there = self.core.backends.of(to).await?;
        let endpoint = match self.ask(&there, GetEndpoint { instance }).await {
            Ok(endpoint) => serde_json::to_value(endpoint).unwrap_or_default(),
            // What is not there any more has no address.
            Err(error) if error.kind == ErrorKind::NotFound => Value::Null,
            Err(error) => return Err(error),
        };
        let host = to.pool.as_ref().map(ToString::to_string).unwrap_or_default();
        let (here, spec) = self.half(scene, source, instance).await?;
        Ok((here, MigrationSpec { endpoint, destination_driver: description(&there, &host), ..spec }))
    }

    /// The same where the destination may be away: it is not asked.
    async fn half(
        &self,
        scene: &Scene,
        source: InstanceId,
        instance: InstanceId,
    ) -> Result<(Backend, MigrationSpec), Error> {
        let here = self.core.backends.of(scene.row(source)?).await?;
        let spec = MigrationSpec {
            resource: scene.share.id,
            kind: self.kind(),
            source,
            destination: instance,
            epoch: scene.share.epoch,
            endpoint: Value::Null,
            destination_driver: serde_json::Map::new(),
        };
        Ok((here, spec))
    }

    /// The best that can be said of both sides.
    async fn whoever(
        &self,
        scene: &Scene,
        source: InstanceId,
        instance: InstanceId,
    ) -> Result<(Backend, MigrationSpec), Error> {
        match self.pair(scene, source, instance).await {
            Ok(pair) => Ok(pair),
            Err(_) => self.half(scene, source, instance).await,
        }
    }

    fn kind(&self) -> ResourceKind {
        match self.intent() {
            Intent::Migrate { request, .. } => request.kind,
            _ => ResourceKind::Share,
        }
    }

    pub(super) async fn prepare(&self, scene: &Scene, instance: InstanceId) -> Result<Done, Error> {
        let (backend, spec) = self.spec(scene, instance).await?;
        let info = self.ask(&backend, PrepareDestination { spec }).await?.into_inner();
        Ok(served(instance, info, &scene.share))
    }

    pub(super) async fn assist(
        &self,
        scene: &Scene,
        source: InstanceId,
        instance: InstanceId,
    ) -> Result<Done, Error> {
        let (backend, migration) = self.pair(scene, source, instance).await?;
        self.ask(&backend, MigrationStart { migration }).await?;
        Ok(Done::nothing())
    }

    /// Round after round until the first phase is done.
    pub(super) async fn carry(
        &self,
        scene: &Scene,
        source: InstanceId,
        instance: InstanceId,
    ) -> Result<Done, Error> {
        let (backend, migration) = self.pair(scene, source, instance).await?;
        let carried = self
            .moving(async |cx| {
                loop {
                    let verb = MigrationContinue { migration: migration.clone() };
                    let now = backend.call(&cx, verb).await?;
                    let done = now.progress.done;
                    (cx.on_progress)(Progress { phase: "carry".into(), ..now.progress });
                    if now.first_phase_done {
                        return Ok(done);
                    }
                    tokio::select! {
                        biased;
                        () = self.core.clock.sleep(NEXT_ROUND) => {}
                        () = cx.cancel.cancelled() => return Err(Error::cancelled("stopped between two rounds")),
                    }
                }
            })
            .await?;
        Ok(Done { bytes: Some(carried), ..Done::nothing() })
    }

    /// What follows where the driver's attempt fails in its first phase: points, or a copy from host to host, unless the request
    /// wants what only the driver can, the driver refuses, or the other way would fail for the same reason.
    pub(super) async fn another_way(&self, step: &Step, error: &Error) -> Option<Vec<Step>> {
        use ErrorKind as K;
        let Intent::Migrate { source, destination, request } = self.intent() else { return None };
        let attempt = matches!(step, Step::Prepare { .. } | Step::Assist { .. } | Step::Carry { .. });
        // What the driver refuses at its start is no accident, and is not done behind its back.
        let refused = matches!(step, Step::Assist { .. })
            && matches!(error.kind, K::Conflict | K::Unsupported | K::InvalidArgument);
        let hopeless = refused || matches!(error.kind, K::Cancelled | K::OutOfSpace | K::StaleEpoch);
        if !attempt || hopeless || !self.state.started || self.state.undoing() || self.cancelled() {
            return None;
        }
        let scene = self.scene().await.ok()?;
        // Both sides have to answer.
        self.observe(scene.row(source).ok()?).await.ok()?;
        self.observe(scene.row(destination).ok()?).await.ok()?;
        let sides = self.core.sides(&scene.family, source, destination, &request).await.ok()?;
        let sides = Sides { compatibility: Compatibility::default(), ..sides };
        let taken = &self.state.steps[..=self.state.next];
        self.with_world(&scene.family, &HashMap::new(), Some(sides), |world| {
            crate::plan::instead(world, source, destination, &request, taken)
        })
        .await
        .flatten()
    }

    /// Waits for the word to go on; a cancel ends the wait.
    pub(super) async fn await_proceed(&self) -> Result<Done, Error> {
        tokio::select! {
            biased;
            () = self.proceed.cancelled() => {
                Ok(Done::with(|draft| {
                    show(draft, TaskState::Completing);
                    Vec::new()
                }))
            }
            () = self.cancel.cancelled() => Err(Error::cancelled("cancelled on request")),
            () = self.core.stop.cancelled() => Err(Error::cancelled("the server stops")),
        }
    }

    /// The driver switches. Where its answer is lost, the storage tells whether it has; a cancel takes it back where the
    /// source's driver still can.
    pub(super) async fn take_over(
        &self,
        scene: &Scene,
        source: InstanceId,
        instance: InstanceId,
    ) -> Result<Done, Error> {
        let answer = match self.cancelled() {
            true => Err(Error::cancelled("cancelled on request")),
            false => self.complete(scene, source, instance).await,
        };
        let exports = match answer {
            Ok(exports) => exports,
            Err(error) => match self.observe(scene.row(instance)?).await {
                Ok(Some(seen)) if seen.role == Role::Active && !seen.exports.is_empty() => seen.exports,
                Ok(Some(seen)) if seen.role == Role::Active => {
                    self.serve_destination(scene, instance).await?
                }
                // It is tried again; so it is at the next start where the server stops.
                _ if self.core.stop.is_cancelled() => return Err(error),
                _ if error.retry == Retry::Safe && !self.cancelled() && !self.fails_long() => {
                    return Err(error);
                }
                seen => return Err(self.call_off(scene, source, instance, error, seen.is_ok()).await),
            },
        };
        let info = InstanceInfo { exports, ..InstanceInfo::default() };
        Ok(served(instance, info, &scene.share))
    }

    /// Whether the present step has failed for so long that waiting on keeps the users from their share for nothing.
    fn fails_long(&self) -> bool {
        let most = self.core.settings.stall_deadline_seconds.saturating_mul(2);
        self.fails_since.is_some_and(|since| self.core.clock.now().seconds_since(since) > most)
    }

    /// Serves what has switched and did not come to serving its users. Where that fails, a repair does it: the switch has
    /// happened.
    async fn serve_destination(
        &self,
        scene: &Scene,
        instance: InstanceId,
    ) -> Result<Vec<ExportLocation>, Error> {
        let row = scene.row(instance)?;
        let backend = self.core.backends.of(row).await?;
        match self.ask(&backend, EnsureInstance { instance, epoch: scene.epoch_of(row) }).await {
            Ok(served) => Ok(served.into_inner().exports),
            Err(error) => {
                tracing::warn!(%instance, %error, "What has switched is not served yet.");
                self.core.board.chores.note(Chore::Repair(instance), self.core.clock.now());
                Ok(Vec::new())
            }
        }
    }

    async fn complete(
        &self,
        scene: &Scene,
        source: InstanceId,
        instance: InstanceId,
    ) -> Result<Vec<ExportLocation>, Error> {
        let (backend, migration) = self.pair(scene, source, instance).await?;
        let switched = self
            .moving(async |cx| {
                let call = backend.call(&cx, MigrationComplete { migration });
                tokio::pin!(call);
                tokio::select! {
                    biased;
                    answer = &mut call => return answer,
                    () = self.cancel.cancelled() => cx.cancel.cancel(),
                }
                call.await
            })
            .await?;
        Ok(switched.into_inner().exports)
    }

    /// Asks the source's driver to end a switch that failed or was cancelled. Only where it says that it has not switched
    /// may anything be taken back; anything else is tried again.
    async fn call_off(
        &self,
        scene: &Scene,
        source: InstanceId,
        instance: InstanceId,
        why: Error,
        destination_answers: bool,
    ) -> Error {
        let asked = match self.half(scene, source, instance).await {
            Ok((backend, migration)) => self.ask(&backend, MigrationCancel { migration }).await.map(drop),
            Err(error) => Err(error),
        };
        match asked {
            Ok(()) if self.cancelled() => Error::cancelled("cancelled on request"),
            // There is nothing left to try again.
            Ok(()) => why.retry(Retry::Never),
            Err(error) if error.kind == ErrorKind::Conflict => Error::unavailable(format!(
                "the storage has switched, and its new side does not answer; it is waited for ({error})"
            ))
            .retry(Retry::Safe),
            // Gone with everything in it, and its other side is not active.
            Err(error) if error.kind == ErrorKind::NotFound && destination_answers => error,
            Err(error) => {
                Error::unavailable(format!("whether the storage has switched is not known: {error}"))
                    .retry(Retry::Safe)
            }
        }
    }

    pub(super) async fn unwind(
        &self,
        scene: &Scene,
        source: InstanceId,
        instance: InstanceId,
    ) -> Result<Done, Error> {
        let (backend, migration) = self.whoever(scene, source, instance).await?;
        self.ask(&backend, MigrationCancel { migration }).await?;
        Ok(Done::nothing())
    }

    /// Lets the driver of an instance end the migration away from it whose taking back failed. None, and one that knows
    /// nothing of it, is no error.
    pub(super) async fn end_old_move(&self, scene: &Scene, source: InstanceId) -> Result<(), Error> {
        let asked = crate::store::OperationQuery {
            share_id: Some(self.share),
            kind: Some("migrate".into()),
            limit: Some(1),
            ..Default::default()
        };
        let found = self.core.store.operations(&asked).await;
        let last = found.map_err(|e| Error::unavailable(e.to_string()))?.pop();
        let Some(Intent::Migrate { source: from, destination, .. }) = last.map(|op| op.intent) else {
            return Ok(());
        };
        let (backend, migration) = self.half(scene, source, destination).await?;
        if from != source || backend.capabilities().migration.is_none() {
            return Ok(());
        }
        self.ask(&backend, MigrationCancel { migration }).await.map(drop)
    }

    /// Nobody reaches the source any more; what is written up to here is carried. One whose driver cannot do so goes on
    /// with writers held back.
    pub(super) async fn withdraw(&self, scene: &Scene, instance: InstanceId) -> Result<Done, Error> {
        let backend = self.core.backends.of(scene.row(instance)?).await?;
        let epoch = scene.epoch_of(scene.row(instance)?);
        let verb = DemoteReplica { instance, epoch, to: Demotion::Fenced };
        match self.ask(&backend, verb).await {
            Err(error) if error.kind == ErrorKind::Unsupported => {
                Ok(Done { remark: Some(error.message), ..Done::nothing() })
            }
            other => other.map(|_| Done::nothing()),
        }
    }

    pub(super) async fn let_go(
        &self,
        scene: &Scene,
        source: InstanceId,
        instance: InstanceId,
    ) -> Result<Done, Error> {
        let (backend, migration) = self.whoever(scene, source, instance).await?;
        self.walking(&backend, MigrationRelease { migration }).await?;
        Ok(Done::nothing())
    }

    /// Where the driver attaches nothing, nothing is attached.
    pub(super) async fn detach(&self, scene: &Scene, instance: InstanceId) -> Result<Done, Error> {
        if let Some(backend) = self.placed(scene, instance).await?
            && backend.capabilities().attach.is_some()
        {
            match self.ask(&backend, Detach { instance }).await {
                Err(error) if error.kind != ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        Ok(Done::nothing())
    }

    /// The destination holds the last point. A writer that had a file open may have gone on until the source was fenced: then
    /// it is given back with everything in it.
    pub(super) async fn succeed(
        &self,
        scene: &Scene,
        source: InstanceId,
        instance: InstanceId,
    ) -> Result<Done, Error> {
        let (from, to) = (scene.row(source)?, scene.row(instance)?);
        let here = self.core.backends.of(from).await?;
        let carried = to.point.as_ref().map(|p| p.info.id);
        // Storage that replicates by itself makes nothing active that lacks anything.
        if !by_storage(here.capabilities()) {
            let verb = UpdateReplicaState { instance: source, epoch: scene.share.epoch };
            let report = self.walking(&here, verb).await?;
            let more = report.newest_point.is_some_and(|newest| Some(newest.id) != carried);
            // Only where writers were held back for certain may it be left open.
            if more || report.changed_since_point.unwrap_or(!can_quiesce(here.capabilities())) {
                return Err(Error::conflict(
                    "the source was written to although writers were held back; stop what has a file of it open, and migrate \
                     again",
                ));
            }
        }
        let there = self.core.backends.of(to).await?;
        let promotion = Promotion::Planned { point: carried };
        let verb = PromoteReplica { instance, epoch: scene.epoch_of(to), promotion };
        let info = self.ask(&there, verb).await?.into_inner();
        Ok(served(instance, info, &scene.share))
    }

    /// Whoever asked that a migration keeps all metadata is told before the switch what could not be kept.
    pub(super) fn keeps_metadata(&self, lost: &[String]) -> Result<(), Error> {
        match (self.intent(), lost.first()) {
            (Intent::Migrate { request, .. }, Some(what)) if request.needs.preserve_metadata => {
                Err(Error::conflict(format!("the destination cannot keep all metadata of files: {what}")))
            }
            _ => Ok(()),
        }
    }

    /// As the rules are applied anywhere, but one that the destination refuses ends the migration before the switch.
    pub(super) async fn grant(&self, scene: &Scene, instance: InstanceId) -> Result<Done, Error> {
        let (done, report) = self.access(scene, instance).await?;
        match report.rules.iter().find_map(|r| r.error.clone()) {
            Some(why) => Err(Error::conflict(format!(
                "an access rule cannot be applied where the share would go: {why}; deny it, or choose another \
                 destination"
            ))),
            None => Ok(done),
        }
    }

    /// One commit: before it users reach the source, after it the destination.
    pub(super) async fn switch(
        &self,
        scene: &Scene,
        source: InstanceId,
        instance: InstanceId,
    ) -> Result<Done, Error> {
        let share_type = self.type_of(scene, instance).await?;
        let style = self.style_of(scene, instance, &share_type)?;
        let epoch = scene.share.epoch.next();
        Ok(Done::with(move |draft| {
            let now = draft.now;
            let kept = draft.instance(source).map(|i| i.exports.clone()).unwrap_or_default();
            if let Some(row) = draft.instance_mut(source) {
                row.part = Part::Outgoing;
                row.cast_rules_to_readonly = false;
            }
            let mut by_points = false;
            if let Some(row) = draft.instance_mut(instance) {
                row.part = Part::Whole;
                row.epoch = epoch;
                // It follows nobody; the points that it came by are released.
                by_points = row.point.take().is_some();
                row.launched_at = Some(now);
                for export in &mut row.exports {
                    // Where users notice nothing, nothing has a new name.
                    if let Some(same) = kept.iter().find(|k| k.path == export.path) {
                        export.clone_from(same);
                    }
                }
            }
            draft.rules.retain_mut(|rule| {
                let stays = rule.forget(source);
                if stays && !rule.is_denied() {
                    rule.states.entry(instance).or_insert(RuleState::QueuedToApply);
                }
                stays
            });
            let replicated = style.is_some();
            if draft.share.as_ref().is_some_and(|s| s.replication.is_some()) && !replicated {
                count_replica(draft, -1);
            }
            if let Some(share) = &mut draft.share {
                if !by_points {
                    // Points were the source's.
                    share.points.clear();
                }
                if share.share_type_id != share_type.id {
                    share.share_type_id = share_type.id;
                    share.snapshot_support = share_type.snapshot_support();
                    share.replication = style;
                }
            }
            show(draft, TaskState::Success);
            let state = |instance, state| Effect::ReplicaState { instance, state };
            let mut effects = vec![
                Effect::Epoch { epoch },
                status(instance, InstanceStatus::Available),
                status(source, InstanceStatus::Deleting),
                state(source, None),
            ];
            if replicated {
                effects.push(state(instance, Some(ReplicaState::Active)));
            }
            effects
        }))
    }
}

fn show(draft: &mut Draft, state: TaskState) {
    if let Some(share) = &mut draft.share {
        share.task_state = Some(state.as_str().to_owned());
    }
}

/// What is made as a replica is: the destination of a migration by points, of a share that may have none.
pub(super) fn as_replica(spec: InstanceSpec, there: &Backend) -> InstanceSpec {
    let styles = there.capabilities().replication.as_ref().map_or(&[][..], |r| &r.styles);
    let style = if styles.contains(&Style::Readable) && !styles.contains(&Style::Dr) {
        Style::Readable
    } else {
        Style::Dr
    };
    InstanceSpec { replication: spec.replication.or(Some(ReplicationSpec { style, instances: 2 })), ..spec }
}

/// A step of a migration starts: the share's task state shows it.
pub(super) fn mark(draft: &mut Draft, step: &Step) {
    let now = draft.share.as_ref().and_then(|s| s.task_state.as_deref()).and_then(TaskState::parse);
    let migrates = draft.unfinished().iter().any(|op| matches!(op.intent, Intent::Migrate { .. }));
    if !migrates {
        return;
    }
    use TaskState as T;
    let carried = matches!(
        now,
        Some(T::CopyingInProgress | T::CopyingCompleted | T::DriverInProgress | T::DriverPhase1Done)
    );
    let state = match step {
        Step::Place { .. } => TaskState::InProgress,
        Step::Assist { .. } | Step::CreateReplica { .. } => TaskState::DriverStarting,
        Step::Carry { .. } => TaskState::DriverInProgress,
        Step::MakePoint { .. } | Step::Follow { .. } if now != Some(TaskState::Completing) => {
            TaskState::DriverInProgress
        }
        Step::Mirror { last: false, .. } if now != Some(TaskState::Completing) => {
            TaskState::CopyingInProgress
        }
        Step::AwaitProceed { assisted: true } => TaskState::DriverPhase1Done,
        Step::AwaitProceed { assisted: false } => TaskState::CopyingCompleted,
        Step::Cast { read_only: true, .. } if carried => TaskState::Completing,
        Step::TakeOver { .. } | Step::Quiesce { .. } => TaskState::Completing,
        _ => return,
    };
    show(draft, state);
}

/// A step of the way back failed: what a migration leaves is in error, and says why.
pub(super) fn left_behind(draft: &mut Draft, step: &Step, error: &Error) -> Vec<Effect> {
    let (instance, what) = match step {
        Step::Unwind { source, .. } => (*source, "its driver could not end the migration"),
        Step::Ensure { instance } => (*instance, "could not be served again"),
        Step::Withdraw { instance } => {
            // The destination: its answer was lost, and it may serve users until it is removed.
            if let Some(row) = draft.instance_mut(*instance) {
                row.unfenced = true;
            }
            return Vec::new();
        }
        _ => return super::finish::left_behind(draft, step, error),
    };
    if let Some(row) = draft.instance_mut(instance) {
        row.reason = Some(format!("{what}: {error}"));
    }
    vec![status(instance, InstanceStatus::Error)]
}

/// What the end of a migration sets: the loser of the two is handed to an operation of its own.
pub(super) fn ended(
    draft: &mut Draft,
    source: InstanceId,
    destination: InstanceId,
    request: &MigrationRequest,
    ending: Ending,
    reason: Option<String>,
) -> Vec<Effect> {
    // Past the switch the source is the one that goes, whatever was left to do there.
    let switched = draft.instance(source).is_some_and(|i| i.part == Part::Outgoing);
    let done = ending == Ending::Done || switched;
    let loser = if done { source } else { destination };
    let mut effects = Vec::new();
    if done {
        note(draft, destination, true, None);
    } else {
        show(draft, if ending == Ending::Cancelled { TaskState::Cancelled } else { TaskState::Error });
        for rule in &mut draft.rules {
            rule.states.remove(&destination);
        }
        // What could not be made writable again is in error, and says why.
        if draft.instance(source).is_some_and(|i| i.status == InstanceStatus::Migrating) {
            let reason = if ending == Ending::Failed { reason } else { None };
            note(draft, source, false, reason);
            effects.push(status(source, InstanceStatus::Available));
        }
        // The type that it would have got counts replicas, and the one that it has does not.
        if request.replicates && draft.share.as_ref().is_some_and(|s| s.replication.is_none()) {
            count_replica(draft, -1);
        }
    }
    match draft.instance(loser).map(|i| i.pool.is_some()) {
        Some(true) => {
            if !done {
                effects.push(status(loser, InstanceStatus::Deleting));
            }
            draft.admit(new_op(), Intent::Release { instance: loser, force: false }, Vec::new(), None);
        }
        Some(false) => effects.push(Effect::Gone { instance: loser }),
        None => {}
    }
    effects
}

/// Takes the room of a replica from the quota, or gives it back.
fn count_replica(draft: &mut Draft, sign: i64) {
    let size = draft.share.as_ref().map_or(0, |s| i64::try_from(s.size_gb).unwrap_or(i64::MAX));
    let _ = draft.reserve(Counted::ShareReplicas, sign);
    let _ = draft.reserve(Counted::ReplicaGigabytes, sign * size);
}
