//! Admission: may this request be, and what does it set? Pure code over a [`Draft`], committed with compare-and-set;
//! nothing here takes a step or calls a driver.

mod access;
mod claim;
mod migration;
mod migration_check;
mod operation;
mod replica;
mod share;
mod types;

pub(crate) use claim::{appoint, step_out};
pub(crate) use replica::{admit_resync, admit_sync, admit_verify};

use tandem_contract::{InstanceId, OpId, ReplicaState, ResourceId};

use crate::denied::Denied;
use crate::draft::Draft;
use crate::face::Caller;
use crate::model::{Instance, InstanceStatus, Intent, Operation, Part, Share, TaskState};
use crate::oplog::{Effect, Ending, Event};

impl Draft {
    fn need_share(&self, id: ResourceId) -> Result<&Share, Denied> {
        self.share.as_ref().ok_or(Denied::NoShare(id))
    }

    fn need_instance(&self, id: InstanceId) -> Result<&Instance, Denied> {
        self.instance(id).ok_or(Denied::NoInstance(id))
    }

    fn need_idle(&self, id: ResourceId) -> Result<(), Denied> {
        match &self.need_share(id)?.task_state {
            Some(state) if is_busy(state) => Err(Denied::Busy { share: id, task_state: state.clone() }),
            // An admin's reset of the task state does not end what may wait for days, and would be waited for.
            _ if self.moves() => {
                Err(Denied::Busy { share: id, task_state: TaskState::InProgress.as_str().to_owned() })
            }
            _ => Ok(()),
        }
    }

    /// Whether a migration has not switched yet.
    fn moves(&self) -> bool {
        self.unfinished().iter().any(|op| match op.intent {
            Intent::Migrate { destination, .. } => {
                self.instance(destination).is_some_and(|i| i.part == Part::Incoming)
            }
            _ => false,
        })
    }

    /// Asks every unfinished operation that `which` picks to end, since a stronger one follows.
    fn preempt(&mut self, which: impl Fn(&Operation) -> bool) {
        for op in self.unfinished() {
            if which(&op) {
                self.request_cancel(&op);
            }
        }
    }

    /// An admin's override: logged, done at once.
    fn reset(
        &mut self,
        instance: InstanceId,
        status: Option<InstanceStatus>,
        state: Option<ReplicaState>,
        caller: &Caller,
    ) -> Operation {
        let mut effects = Vec::new();
        effects.extend(status.map(|status| Effect::Status { instance, status }));
        effects.extend(state.map(|state| Effect::ReplicaState { instance, state: Some(state) }));
        let intent = Intent::Reset { instance, status, replica_state: state };
        let op = self.admit(new_op(), intent, effects, Some(caller));
        let op = self.append(op, Event::Finished { ending: Ending::Done, error: None }, Vec::new(), None);
        if let Some(row) = self.instance_mut(instance) {
            row.reset_by_admin = true;
        }
        op
    }
}

/// Whether a task state makes a share busy.
fn is_busy(task_state: &str) -> bool {
    TaskState::parse(task_state).is_some_and(TaskState::is_busy)
}

/// A new operation's id: UUID v7, so that ids sort by time.
pub(crate) fn new_op() -> OpId {
    OpId(crate::ids::by_time())
}
