//! The arbiter: of sides of a `writable` share that are cut off from each other exactly one goes on.
//!
//! Each side's kernel holds all writes back when it loses the other, and asks. The first claim at the present epoch wins: in
//! one commit the epoch rises, the winner is put on record and every other active side is marked. Whoever asks at an older
//! epoch has lost; only the winner whose answer was lost on its way gets the same one again.

use tandem_contract::{Epoch, InstanceId, ReplicaState, ResourceId, Style};

use super::{admit_sync, new_op};
use crate::chores::Chore;
use crate::core::Core;
use crate::denied::Denied;
use crate::draft::Draft;
use crate::face::Verdict;
use crate::model::{Arbitration, Instance, InstanceStatus, Intent, Part, TaskState};
use crate::oplog::{Effect, Ending, Event};

impl Core {
    /// Decides a claim; durable once this answers.
    pub(crate) async fn claim(
        &self,
        share: ResourceId,
        instance: InstanceId,
        epoch: Epoch,
    ) -> Result<Verdict, Denied> {
        let verdict = self.change(share, |draft| claim(draft, share, instance, epoch)).await?;
        match &verdict {
            Verdict::Won { epoch } => {
                tracing::warn!(%share, %instance, %epoch, "Sides of a share are cut off from each other; this one goes on.");
                // It is told its new epoch, and the others follow it once they can be asked.
                self.board.chores.note(Chore::Repair(instance), self.clock.now());
                self.board.look_at(share);
            }
            Verdict::Lost { why } => tracing::info!(%share, %instance, why, "A claim was lost."),
        }
        Ok(verdict)
    }
}

fn claim(draft: &mut Draft, share: ResourceId, id: InstanceId, epoch: Epoch) -> Result<Verdict, Denied> {
    let row = draft.share.as_ref().ok_or(Denied::NoShare(share))?;
    if row.replication != Some(Style::Writable) {
        return Err(Denied::NotArbitrated(share));
    }
    let (now, standing) = (row.epoch, row.arbitration.filter(|a| a.epoch == row.epoch));
    let claimer = draft.instance(id).ok_or(Denied::NoInstance(id))?.clone();
    if let Some(decided) = standing.filter(|a| a.winner == id && a.before == epoch) {
        return Ok(Verdict::Won { epoch: decided.epoch });
    }
    if let Some(why) = refusal(draft, &claimer, epoch, now) {
        return Ok(Verdict::Lost { why });
    }
    let won = epoch.next();
    decide(draft, id, epoch, won);
    Ok(Verdict::Won { epoch: won })
}

/// One goes on at this epoch; every other active one has lost.
fn decide(draft: &mut Draft, winner: InstanceId, before: Epoch, won: Epoch) {
    let mut effects = vec![Effect::Epoch { epoch: won }];
    for other in draft.instances.iter_mut().filter(|i| i.id != winner && is_active(i)) {
        loses(
            other,
            format!(
                "it was cut off from instance {winner}, which goes on at epoch {won}; it follows again by itself once both can \
                 be reached"
            ),
        );
        effects.push(Effect::ReplicaState { instance: other.id, state: Some(ReplicaState::OutOfSync) });
    }
    if let Some(row) = &mut draft.share {
        row.arbitration = Some(Arbitration { winner, before, epoch: won, at: draft.now });
    }
    let op = draft.admit(new_op(), Intent::Arbitrate { instance: winner, epoch: won }, effects, None);
    draft.append(op, Event::Finished { ending: Ending::Done, error: None }, Vec::new(), None);
}

fn loses(row: &mut Instance, why: String) {
    row.yields = true;
    row.exports.clear();
    row.reason = Some(why);
}

/// Lets an active side go on alone at its share's epoch, which is newer than its own: a promotion past it was given up, or it
/// won and was not told. Answers why it may not: then another one does, and it follows.
pub(crate) fn appoint(draft: &mut Draft, id: InstanceId, from: Epoch) -> Option<String> {
    let Some(share) = &draft.share else { return Some("the share is gone".into()) };
    let (now, standing) = (share.epoch, share.arbitration.filter(|a| a.epoch == share.epoch));
    if standing.is_some_and(|a| a.winner == id) {
        return None;
    }
    if draft.instance(id).is_none_or(|row| !is_active(row) || row.yields) {
        return Some(format!("instance {id} is no active replica any more; it follows the one that is"));
    }
    let mut others = draft.instances.iter().filter(|i| i.id != id && is_active(i)).peekable();
    if let Some(other) = others.clone().find(|other| other.epoch >= now) {
        let why = format!("instance {} serves at epoch {now}; it follows that one", other.id);
        step_out(draft, id, why.clone());
        return Some(why);
    }
    if others.peek().is_some() {
        decide(draft, id, from, now);
    }
    None
}

/// An active side that does not serve, while another one does, follows that one again. What it holds alone was acknowledged to
/// nobody: to be told to go on without the other it would have had to ask.
pub(crate) fn step_out(draft: &mut Draft, id: InstanceId, why: String) {
    let Some(row) = draft.instance_mut(id) else { return };
    loses(row, why.clone());
    let replica_state = Some(ReplicaState::OutOfSync);
    let intent = Intent::Observed { instance: id, status: None, replica_state, reason: Some(why) };
    let effects = vec![Effect::ReplicaState { instance: id, state: replica_state }];
    let op = draft.admit(new_op(), intent, effects, None);
    draft.append(op, Event::Finished { ending: Ending::Done, error: None }, Vec::new(), None);
    // It is there.
    let _ = admit_sync(draft, id, None);
}

fn is_active(row: &Instance) -> bool {
    row.part == Part::Whole && row.replica_state == Some(ReplicaState::Active)
}

/// Why a claim does not win, as a sentence.
fn refusal(draft: &Draft, claimer: &Instance, epoch: Epoch, now: Epoch) -> Option<String> {
    let id = claimer.id;
    if epoch != now {
        return Some(format!("it asks at epoch {epoch}, and the share is at epoch {now}"));
    }
    if !is_active(claimer) || claimer.yields || claimer.fenced || claimer.unfenced {
        return Some("it is no active replica; another one goes on, or it is still to follow".into());
    }
    let others = || draft.instances.iter().filter(|i| i.id != id && is_active(i));
    if claimer.status == InstanceStatus::Error && others().any(|i| i.status != InstanceStatus::Error) {
        return Some("it is in error, and another active replica is not".into());
    }
    let switches = draft.share.as_ref().and_then(|s| s.task_state.as_deref()).and_then(TaskState::parse)
        == Some(TaskState::Completing);
    let against = |intent: &Intent| match intent {
        Intent::DeleteReplica { instance, .. } | Intent::Fence { instance } => *instance == id,
        Intent::DeleteShare { .. } => true,
        // Its destination may be about to serve.
        Intent::Migrate { .. } => switches,
        // A promotion past it raises the epoch: whichever is first in the database.
        _ => false,
    };
    let op = draft.unfinished().into_iter().find(|op| against(&op.intent))?;
    Some(format!("operation {} ({}) decides otherwise", op.id, op.intent.kind()))
}

#[cfg(test)]
#[path = "claim_tests.rs"]
mod tests;
