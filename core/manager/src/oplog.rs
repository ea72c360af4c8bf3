//! The operation log: small typed events, and the one pure function that folds them.
//!
//! The same [`OpState::next`] is used while running and while recovering, so a log that makes no sense is found, not
//! guessed at. Events carry the statuses they set ([`Effect`]), so that every status can be rebuilt from the log.

use serde::{Deserialize, Serialize};
use tandem_contract::{Epoch, Error, InstanceId, ResumeToken};

use crate::clock::Timestamp;
use crate::model::{InstanceStatus, Intent, OpStatus};
use crate::plan::Step;

/// A status that an event set.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "set", rename_all = "snake_case")]
pub enum Effect {
    /// An instance's status.
    Status {
        /// The instance.
        instance: InstanceId,
        /// The status.
        status: InstanceStatus,
    },
    /// A replica's state; `None` takes it away.
    ReplicaState {
        /// The instance.
        instance: InstanceId,
        /// The state.
        state: Option<tandem_contract::ReplicaState>,
    },
    /// The share's epoch.
    Epoch {
        /// The epoch.
        epoch: Epoch,
    },
    /// The instance is no more.
    Gone {
        /// The instance.
        instance: InstanceId,
    },
}

/// How an operation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ending {
    /// As asked.
    Done,
    /// By an error.
    Failed,
    /// Because it was asked to.
    Cancelled,
}

/// One event of an operation.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    /// The request was admitted.
    Accepted {
        /// What was asked for.
        intent: Intent,
    },
    /// The steps it will take.
    Planned {
        /// In order.
        steps: Vec<Step>,
    },
    /// A step is about to be taken: durable before the driver is called.
    StepStarted {
        /// Its place in the plan, from 0.
        step: usize,
    },
    /// A driver's durable continuation within a step.
    Checkpoint {
        /// The step.
        step: usize,
        /// The token.
        token: ResumeToken,
    },
    /// A step ended well.
    StepDone {
        /// The step.
        step: usize,
        /// Bytes a transfer carried.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        bytes: Option<u64>,
        /// Bytes that an earlier, cut transfer had carried already.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        resumed_bytes: Option<u64>,
        /// What a person should know.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        remark: Option<String>,
    },
    /// A step failed for good; what follows is the undo plan.
    StepFailed {
        /// The step.
        step: usize,
        /// Why.
        error: Error,
        /// What takes back what was done, in order; may be empty. The steps join the plan's end.
        undo: Vec<Step>,
    },
    /// A step failed for good, and the operation goes on another way: these steps follow in the place of those that were
    /// left, what takes back the first way at their beginning.
    Replanned {
        /// The step.
        step: usize,
        /// Why.
        error: Error,
        /// In order.
        steps: Vec<Step>,
    },
    /// Somebody asked for it to end.
    CancelRequested,
    /// Somebody told it to go on after its first phase.
    ProceedRequested,
    /// Nothing more comes.
    Finished {
        /// How.
        ending: Ending,
        /// Why, unless done.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        error: Option<Error>,
    },
}

/// An event as it stands in the log.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Logged {
    /// The operation.
    pub op: tandem_contract::OpId,
    /// From 1, without a gap.
    pub seq: u64,
    /// When it was written.
    pub at: Timestamp,
    /// The event.
    #[serde(flatten)]
    pub event: Event,
    /// The statuses it set.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub effects: Vec<Effect>,
}

/// What the log says of an operation.
#[derive(Clone, Debug, PartialEq)]
pub struct OpState {
    /// Sequence number of the newest event; 0 before the first.
    pub seq: u64,
    /// What was asked for.
    pub intent: Option<Intent>,
    /// Where it stands.
    pub status: OpStatus,
    /// The plan, the undo steps at its end.
    pub steps: Vec<Step>,
    /// The step to take next; `steps.len()` when all are taken.
    pub next: usize,
    /// That step was started and has no end: observe first, then repeat.
    pub started: bool,
    /// Where the undo steps begin.
    pub undo_from: Option<usize>,
    /// The newest checkpoint of the started step.
    pub token: Option<ResumeToken>,
    /// Somebody asked for it to end.
    pub cancel: bool,
    /// Somebody told it to go on after its first phase.
    pub proceed: bool,
    /// Why it failed.
    pub error: Option<Error>,
    /// Bytes carried.
    pub bytes: u64,
    /// Bytes that earlier, cut transfers had carried already.
    pub resumed_bytes: u64,
    /// What a person should know.
    pub remarks: Vec<String>,
}

/// An event that cannot follow what came before it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("event `{event}` (number {seq}) cannot follow an operation that is {status} at step {next}")]
pub struct IllegalEvent {
    /// The event's word.
    pub event: &'static str,
    /// Its number.
    pub seq: u64,
    /// The status before it.
    pub status: &'static str,
    /// The step that was next.
    pub next: usize,
}

impl Default for OpState {
    fn default() -> Self {
        Self {
            seq: 0,
            intent: None,
            status: OpStatus::Accepted,
            steps: Vec::new(),
            next: 0,
            started: false,
            undo_from: None,
            token: None,
            cancel: false,
            proceed: false,
            error: None,
            bytes: 0,
            resumed_bytes: 0,
            remarks: Vec::new(),
        }
    }
}

impl Event {
    /// Its word, as `event` in JSON.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Accepted { .. } => "accepted",
            Self::Planned { .. } => "planned",
            Self::StepStarted { .. } => "step_started",
            Self::Checkpoint { .. } => "checkpoint",
            Self::StepDone { .. } => "step_done",
            Self::StepFailed { .. } => "step_failed",
            Self::Replanned { .. } => "replanned",
            Self::CancelRequested => "cancel_requested",
            Self::ProceedRequested => "proceed_requested",
            Self::Finished { .. } => "finished",
        }
    }
}

impl OpState {
    /// Folds a whole log.
    ///
    /// # Errors
    /// The first event that cannot follow what came before it, or a gap in the numbers.
    pub fn fold<'a>(log: impl IntoIterator<Item = &'a Logged>) -> Result<Self, IllegalEvent> {
        let mut state = Self::default();
        for logged in log {
            if logged.seq != state.seq + 1 {
                return Err(state.illegal(&logged.event));
            }
            state = state.next(&logged.event)?;
        }
        Ok(state)
    }

    /// Whether the undo steps are running.
    pub fn undoing(&self) -> bool {
        self.undo_from.is_some()
    }

    /// The state after one more event: the whole machine.
    ///
    /// # Errors
    /// When the event cannot follow.
    pub fn next(mut self, event: &Event) -> Result<Self, IllegalEvent> {
        use OpStatus as S;
        match (self.status, event) {
            (S::Accepted, Event::Accepted { intent }) if self.intent.is_none() => {
                self.intent = Some(intent.clone())
            }
            (S::Accepted, Event::Planned { steps }) if self.intent.is_some() => {
                self.steps.clone_from(steps);
                self.status = S::Running;
            }
            (S::Running | S::Undoing, Event::StepStarted { step })
                if *step == self.next && *step < self.steps.len() =>
            {
                self.started = true;
            }
            (S::Running | S::Undoing, Event::Checkpoint { step, token })
                if self.started && *step == self.next =>
            {
                self.token = Some(token.clone());
            }
            (S::Running | S::Undoing, Event::StepDone { step, bytes, resumed_bytes, remark })
                if self.started && *step == self.next =>
            {
                self.bytes += bytes.unwrap_or(0);
                self.resumed_bytes += resumed_bytes.unwrap_or(0);
                self.remarks.extend(remark.clone());
                self.end_step();
                self.next += 1;
            }
            (S::Running, Event::StepFailed { step, error, undo })
                if *step == self.next && *step < self.steps.len() =>
            {
                self.error = Some(error.clone());
                self.end_step();
                self.steps.truncate(self.next + 1);
                self.steps.extend(undo.iter().cloned());
                self.next += 1;
                self.undo_from = Some(self.next);
                self.status = S::Undoing;
            }
            (S::Running, Event::Replanned { step, error, steps }) if self.started && *step == self.next => {
                self.remarks.push(format!("went on another way: {error}"));
                self.end_step();
                self.next += 1;
                self.steps.truncate(self.next);
                self.steps.extend(steps.iter().cloned());
            }
            // A failing undo step is remembered and passed over: reconcile and doctor own what it left.
            (S::Undoing, Event::StepFailed { step, error, undo })
                if self.started && *step == self.next && undo.is_empty() =>
            {
                self.remarks.push(format!("could not take back: {error}"));
                self.end_step();
                self.next += 1;
            }
            (S::Accepted | S::Running | S::Undoing, Event::CancelRequested) if self.intent.is_some() => {
                self.cancel = true
            }
            // What turns back does not go on.
            (S::Accepted | S::Running, Event::ProceedRequested) if self.intent.is_some() => {
                self.proceed = true
            }
            (S::Accepted | S::Running | S::Undoing, Event::Finished { ending, error })
                if self.intent.is_some() && !self.started =>
            {
                if let Some(error) = error {
                    self.error = Some(error.clone());
                }
                self.status = match ending {
                    Ending::Done => S::Done,
                    Ending::Failed => S::Failed,
                    Ending::Cancelled => S::Cancelled,
                };
            }
            _ => return Err(self.illegal(event)),
        }
        self.seq += 1;
        Ok(self)
    }

    fn end_step(&mut self) {
        self.started = false;
        self.token = None;
    }

    fn illegal(&self, event: &Event) -> IllegalEvent {
        IllegalEvent { event: event.name(), seq: self.seq + 1, status: self.status.as_str(), next: self.next }
    }
}

/// Statuses rebuilt from the log alone: what the rows must agree with.
#[derive(Clone, Debug, Default)]
pub struct Rebuilt {
    instances: std::collections::HashMap<InstanceId, Statuses>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Statuses {
    status: Option<InstanceStatus>,
    state: Option<tandem_contract::ReplicaState>,
}

impl Rebuilt {
    /// Takes the next event, in the order of commits.
    pub fn take(&mut self, logged: &Logged) {
        for effect in &logged.effects {
            match effect {
                Effect::Status { instance, status } => {
                    self.instances.entry(*instance).or_default().status = Some(*status);
                }
                Effect::ReplicaState { instance, state } => {
                    self.instances.entry(*instance).or_default().state = *state;
                }
                Effect::Gone { instance } => {
                    self.instances.remove(instance);
                }
                Effect::Epoch { .. } => {}
            }
        }
    }

    /// How a row differs from what its log says, a sentence each.
    pub fn differences(&self, row: &crate::model::Instance) -> Vec<String> {
        let Some(rebuilt) = self.instances.get(&row.id) else {
            return vec!["the log knows nothing of it".into()];
        };
        let mut all = Vec::new();
        if rebuilt.status != Some(row.status) {
            all.push(format!("it is {}, but its log says {:?}", row.status, rebuilt.status));
        }
        if rebuilt.state != row.replica_state {
            all.push(format!(
                "its replica state is {:?}, but its log says {:?}",
                row.replica_state, rebuilt.state
            ));
        }
        all
    }
}
