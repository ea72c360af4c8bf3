//! Carries one operation from wherever its log stands to its end.
//!
//! ```text
//! accepted ─ plan ▶ running ─ step, step, … ▶ finished (done)
//!     │                └ a step fails, or a cancel turns back ▶ undoing ─ step, … ▶ finished (failed | cancelled)
//!     └ no plan, or cancelled ▶ finished
//! ```
//! The same code serves a fresh operation and one that a crash interrupted: it folds the log and goes on. Each event is
//! durable before what follows it.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tandem_contract::{Error, ErrorKind, OpId, PointId, ReplicaState, ResourceId, Retry};
use tokio_util::sync::CancellationToken;

use super::patience::{FIRST_PAUSE, LONGEST_PAUSE, SECONDS};
use crate::chores::Chore;
use crate::clock::Timestamp;
use crate::core::SharedCore;
use crate::denied::Denied;
use crate::draft::Draft;
use crate::model::{Intent, MigrationRequest, OpStatus, Part};
use crate::oplog::{Effect, Ending, Event, OpState};
use crate::plan::{self, Link, Sides, Step, World};
use crate::queue::Claim;
use crate::store::Family;

/// One operation being carried on.
pub(super) struct Run {
    pub core: SharedCore,
    pub op: OpId,
    pub share: ResourceId,
    pub cancel: CancellationToken,
    pub proceed: CancellationToken,
    pub state: OpState,
    /// When the present step was started, by the log.
    pub started_at: Timestamp,
    /// Since when the present step fails.
    pub fails_since: Option<Timestamp>,
}

/// Carries an operation to its end, or to where the manager stops. Answers whether it has ended.
pub(super) async fn run(core: &SharedCore, claim: &Claim) -> Result<bool, Denied> {
    let mut run = Run {
        core: Arc::clone(core),
        op: claim.op,
        share: claim.share,
        cancel: claim.cancel.clone(),
        proceed: claim.proceed.clone(),
        state: OpState::default(),
        started_at: Timestamp::default(),
        fails_since: None,
    };
    run.reload().await?;
    while !run.state.status.is_finished() && !core.stop.is_cancelled() {
        match run.state.status {
            OpStatus::Accepted => run.plan().await?,
            _ if run.state.next < run.state.steps.len() => run.step().await?,
            _ => run.finish().await?,
        }
    }
    Ok(run.state.status.is_finished())
}

impl Run {
    /// Folds the log.
    async fn reload(&mut self) -> Result<(), Denied> {
        let log = self.core.store.log(self.op).await?;
        self.state = OpState::fold(&log)
            .map_err(|e| Denied::Invalid(format!("the log of operation {} is broken: {e}", self.op)))?;
        if let Some(last) = log.iter().rev().find(|l| matches!(l.event, Event::StepStarted { .. })) {
            self.started_at = last.at;
        }
        Ok(())
    }

    pub fn intent(&self) -> Intent {
        self.state.intent.clone().unwrap_or(Intent::UpdateAccess)
    }

    pub fn cancelled(&self) -> bool {
        self.state.cancel || self.cancel.is_cancelled()
    }

    /// Appends an event, with the rows and statuses that go with it, in one commit. Only a cancel request or a
    /// checkpoint can have come in between; then the log is folded again.
    pub async fn record(
        &mut self,
        event: Event,
        rows: impl FnMut(&mut Draft) -> Vec<Effect>,
    ) -> Result<(), Denied> {
        self.record_unless(event, |_| None, rows).await.map(drop)
    }

    /// The same unless something stands against it in that very commit. Answers what.
    async fn record_unless(
        &mut self,
        event: Event,
        unless: impl Fn(&Draft) -> Option<Error>,
        mut rows: impl FnMut(&mut Draft) -> Vec<Effect>,
    ) -> Result<Option<Error>, Denied> {
        loop {
            let (op_id, before) = (self.op, self.state.clone());
            let written = self
                .core
                .change(self.share, |draft| {
                    let op = draft
                        .unfinished()
                        .into_iter()
                        .find(|o| o.id == op_id)
                        .ok_or(Denied::NoOperation(op_id))?;
                    if op.seq != before.seq {
                        return Ok(None);
                    }
                    if let Some(against) = unless(draft) {
                        return Ok(Some(Err(against)));
                    }
                    let after = before.clone().next(&event).map_err(|e| Denied::Invalid(e.to_string()))?;
                    let effects = rows(draft);
                    draft.append(op, event.clone(), effects, Some(&before));
                    Ok(Some(Ok(after)))
                })
                .await?;
            match written {
                Some(Ok(after)) => {
                    self.state = after;
                    return Ok(None);
                }
                Some(Err(against)) => return Ok(Some(against)),
                None => self.reload().await?,
            }
        }
    }

    async fn plan(&mut self) -> Result<(), Denied> {
        if self.cancelled() {
            return self.end(Ending::Cancelled, Some(Error::cancelled("cancelled before it began"))).await;
        }
        let family = self.core.store.family(self.share).await?;
        let mut intent = self.intent();
        let links = self.look(&intent, &family).await;
        if let Intent::Promote { instance, keep, .. } = &mut intent {
            *keep &= self.has_parted(&family, *instance).await;
        }
        let sides = match &intent {
            Intent::Migrate { source, destination, request } => {
                match self.sides(&family, *source, *destination, request).await {
                    Ok(sides) => Some(sides),
                    Err(_) if self.core.stop.is_cancelled() => return Ok(()),
                    Err(error) if self.cancelled() => {
                        return self.end(Ending::Cancelled, Some(error)).await;
                    }
                    Err(error) => return self.end(Ending::Failed, Some(error)).await,
                }
            }
            _ => None,
        };
        match self.with_world(&family, &links, sides, |world| plan::plan(&intent, world)).await {
            Some(Ok(steps)) => {
                let planned = Event::Planned { steps };
                self.record(planned, |draft| {
                    if intent == Intent::UpdateAccess {
                        // From here on it waits no more: a rule that counts on that it does is asked for anew.
                        draft.touch();
                    }
                    Vec::new()
                })
                .await
            }
            Some(Err(error)) if error.kind == ErrorKind::Cancelled => {
                self.end(Ending::Cancelled, Some(error)).await
            }
            Some(Err(error)) => self.end(Ending::Failed, Some(error)).await,
            None => self.end(Ending::Failed, Some(Error::not_found("the share is gone"))).await,
        }
    }

    /// What both sides of a migration can do for each other. Either may be back in seconds, as when its host's program is upgraded.
    async fn sides(
        &self,
        family: &Family,
        source: tandem_contract::InstanceId,
        destination: tandem_contract::InstanceId,
        request: &MigrationRequest,
    ) -> Result<Sides, Error> {
        let mut pause = FIRST_PAUSE;
        for attempt in 1.. {
            match self.core.sides(family, source, destination, request).await {
                Err(error) if error.retry == Retry::Safe && attempt < SECONDS && !self.cancelled() => {
                    tracing::warn!(op = %self.op, %error, "Both sides of a migration are asked again.");
                    self.core.board.blocked(self.op, &error);
                }
                answer => return answer,
            }
            self.rest(pause, true).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
        Err(Error::bug("nobody was asked"))
    }

    /// Waits, at most until the manager stops or a cancel that still counts.
    async fn rest(&self, pause: Duration, may_turn_back: bool) {
        tokio::select! {
            biased;
            () = self.core.clock.sleep(pause) => {}
            () = self.core.stop.cancelled() => {}
            () = self.cancel.cancelled(), if may_turn_back => {}
        }
    }

    /// Looks at the instances that a plan depends on.
    async fn look(&self, intent: &Intent, family: &Family) -> HashMap<tandem_contract::InstanceId, Link> {
        let mut links = HashMap::new();
        let (Intent::Sync { instance, .. }
        | Intent::Verify { instance, .. }
        | Intent::Promote { instance, .. }
        | Intent::Fence { instance }) = intent
        else {
            return links;
        };
        let is_sync = matches!(intent, Intent::Sync { .. } | Intent::Verify { .. });
        let first = crate::draft::active_of(&family.instances).map(|a| a.id);
        let is_active = |i: &crate::model::Instance| {
            Some(i.id) == first || (i.part == Part::Whole && i.replica_state == Some(ReplicaState::Active))
        };
        for row in family.instances.iter().filter(|i| i.id == *instance || is_active(i)) {
            let link = match self.observe(row).await {
                Ok(seen) => Link::Seen(seen.map(Box::new)),
                // One call that got no answer may have met a busy driver whose users are served: only a back end that
                // is down is gone past by force.
                Err(error) if error.kind == ErrorKind::Unavailable && (is_sync || self.is_down(row)) => {
                    Link::Away(error.to_string())
                }
                Err(error) => Link::Faulty(error),
            };
            links.insert(row.id, link);
        }
        links
    }

    /// Whether a replica says that both sides have what the other lacks.
    async fn has_parted(&self, family: &Family, instance: tandem_contract::InstanceId) -> bool {
        let (Some(row), Some(share)) = (family.instances.iter().find(|i| i.id == instance), &family.share)
        else {
            return false;
        };
        let Ok(backend) = self.core.backends.of(row).await else { return false };
        self.parted(&backend, instance, share.epoch).await.is_ok_and(|how| how.is_some())
    }

    /// Whether the back end of an instance does not answer, or can be called no more.
    fn is_down(&self, row: &crate::model::Instance) -> bool {
        let slot = row.backend().and_then(|name| self.core.backends.slot(name));
        slot.is_none_or(|slot| !slot.is_up() || slot.open_now().is_none_or(|backend| backend.is_lost()))
    }

    pub(super) async fn with_world<T>(
        &self,
        family: &Family,
        links: &HashMap<tandem_contract::InstanceId, Link>,
        sides: Option<Sides>,
        ask: impl FnOnce(&World<'_>) -> T,
    ) -> Option<T> {
        let share = family.share.as_ref()?;
        let mut capabilities = HashMap::new();
        for row in family.instances.iter().filter(|i| i.pool.is_some()) {
            // Opens a driver that nobody has asked since the start.
            if let Ok(backend) = self.core.backends.of(row).await {
                capabilities.insert(row.id, backend.capabilities().clone());
            }
        }
        let new_points = std::array::from_fn(|_| PointId(crate::ids::by_time()));
        Some(ask(&World {
            instances: &family.instances,
            capabilities: &capabilities,
            links,
            sides,
            style: share.replication,
            epoch: share.epoch,
            size_gb: share.size_gb,
            new_points,
        }))
    }

    async fn step(&mut self) -> Result<(), Denied> {
        let (n, step) = (self.state.next, self.state.steps[self.state.next].clone());
        if self.cancelled() && self.may_turn_back() {
            return self.step_failed(n, Error::cancelled("cancelled on request")).await;
        }
        if !self.state.started {
            let mark = step.clone();
            self.record(Event::StepStarted { step: n }, |draft| super::rules::mark(draft, &mark)).await?;
            self.started_at = self.core.clock.now();
        }
        let most = self.most_attempts(&step);
        let mut pause = FIRST_PAUSE;
        self.fails_since = None;
        for attempt in 1.. {
            let error = match self.take(&step).await {
                Ok(done) => {
                    let event = Event::StepDone {
                        step: n,
                        bytes: done.bytes,
                        resumed_bytes: done.resumed_bytes,
                        remark: done.remark.clone(),
                    };
                    match self.record_unless(event, &done.unless, |draft| (done.rows)(draft)).await? {
                        Some(against) => against,
                        None => return Ok(()),
                    }
                }
                Err(error) => error,
            };
            if self.core.stop.is_cancelled() {
                // Whatever this error is, the stop may have caused it: the next start takes the step again.
                return Ok(());
            }
            self.fails_since.get_or_insert(self.core.clock.now());
            let turned = self.cancelled() && self.may_turn_back();
            if error.retry == Retry::Safe && attempt < most && !turned {
                tracing::warn!(op = %self.op, step = n, %error, "A step failed; it is taken again.");
                self.core.board.blocked(self.op, &error);
                self.rest(pause, self.may_turn_back()).await;
                if self.core.stop.is_cancelled() {
                    return Ok(());
                }
                pause = (pause * 2).min(LONGEST_PAUSE);
                continue;
            }
            return self.step_failed(n, error).await;
        }
        Ok(())
    }

    /// Whether a cancel still takes everything back.
    pub fn may_turn_back(&self) -> bool {
        !self.state.undoing()
            && plan::may_turn_back(
                &self.intent(),
                &self.state.steps,
                self.state.next,
                self.state.next + usize::from(self.state.started),
            )
    }

    /// Whether the request said to forget what cannot be removed.
    pub(super) fn forced(&self) -> bool {
        matches!(
            self.intent(),
            Intent::DeleteShare { force: true }
                | Intent::DeleteReplica { force: true, .. }
                | Intent::Release { force: true, .. }
        )
    }

    async fn step_failed(&mut self, n: usize, error: Error) -> Result<(), Denied> {
        let step = self.state.steps[n].clone();
        let chore = match &step {
            Step::ReleasePoints => Some(Chore::Release(self.share)),
            Step::ApplyAccess { instance } => Some(Chore::Rules(*instance)),
            Step::Resize { instance, .. } if self.state.undoing() => Some(Chore::Repair(*instance)),
            Step::EndReplication { instance } => Some(Chore::Repair(*instance)),
            _ => None,
        };
        if let Some(chore) = chore {
            self.core.board.chores.note(chore, self.core.clock.now());
        }
        // A soft step that was stopped takes everything back while that is possible; past that, only its own work is left.
        let stopped = error.kind == ErrorKind::Cancelled && self.may_turn_back();
        if self.state.started
            && (self.forced() || (plan::is_soft(&self.intent(), &self.state.steps, n) && !stopped))
        {
            tracing::warn!(op = %self.op, step = n, %error, "A step failed; the operation goes on without it.");
            let remark = Some(error.to_string());
            let event = Event::StepDone { step: n, bytes: None, resumed_bytes: None, remark };
            return self.record(event, |draft| super::rules::failed(draft, &step)).await;
        }
        tracing::warn!(op = %self.op, kind = self.intent().kind(), step = n, %error, "A step failed.");
        if self.state.undoing() {
            let left = step.clone();
            return self
                .record(Event::StepFailed { step: n, error: error.clone(), undo: Vec::new() }, |draft| {
                    super::migration::left_behind(draft, &left, &error)
                })
                .await;
        }
        if let Some(steps) = self.another_way(&step, &error).await {
            return self
                .record(Event::Replanned { step: n, error, steps: steps.clone() }, |_| Vec::new())
                .await;
        }
        let family = self.core.store.family(self.share).await?;
        let undo = self
            .with_world(&family, &HashMap::new(), None, |world| {
                plan::undo(&self.intent(), &self.state.steps, n, world)
            })
            .await
            .unwrap_or_default();
        self.record(Event::StepFailed { step: n, error, undo }, |draft| super::rules::failed(draft, &step))
            .await
    }

    async fn finish(&mut self) -> Result<(), Denied> {
        match (self.state.undoing(), self.state.error.clone()) {
            (false, _) => self.end(Ending::Done, None).await,
            (true, error) if error.as_ref().is_some_and(|e| e.kind == ErrorKind::Cancelled) => {
                self.end(Ending::Cancelled, error).await
            }
            (true, error) => self.end(Ending::Failed, error).await,
        }
    }

    async fn end(&mut self, ending: Ending, error: Option<Error>) -> Result<(), Denied> {
        let (core, intent) = (Arc::clone(&self.core), self.intent());
        let event = Event::Finished { ending, error: error.clone() };
        let planned = !self.state.steps.is_empty();
        self.record(event, |draft| {
            super::finish::rows(&core, draft, &intent, planned, ending, error.as_ref())
        })
        .await?;
        match error {
            Some(error) if ending == Ending::Failed => {
                tracing::warn!(op = %self.op, kind = intent.kind(), share = %self.share, %error, "Operation failed.");
            }
            _ => {
                tracing::info!(op = %self.op, kind = intent.kind(), share = %self.share, ?ending, "Operation ended.")
            }
        }
        Ok(())
    }
}
