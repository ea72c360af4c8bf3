//! What a side of a `writable` share is told: to serve beside the others, or to go on without them.

use tandem_contract::{Error, InstanceId, Observation, PromoteReplica, Promotion, ReplicaState, Role, Style};

use super::execute::Run;
use super::points::there;
use super::steps::{Done, Scene, set_exports};
use crate::admission::appoint;
use crate::draft::{Draft, active_beside};
use crate::model::{Instance, Intent, Share};
use crate::oplog::Effect;
use crate::plan::overtaken;

impl Run {
    /// Serves users beside the active one. Where anything was decided since this step began, the side follows first: it would
    /// be at another epoch than the one that went on.
    pub(super) async fn join(&self, scene: &Scene, id: InstanceId) -> Result<Done, Error> {
        let (row, epoch) = (scene.row(id)?, scene.share.epoch);
        if let Some(decided) = scene.share.arbitration.filter(|a| a.epoch == epoch) {
            return Err(Error::conflict(format!(
                "instance {} was told meanwhile to go on at epoch {epoch}; this one is to follow it first",
                decided.winner
            )));
        }
        let lead = active_beside(&scene.family.instances, id);
        if let Some(lead) = lead.filter(|lead| lead.epoch != epoch) {
            return Err(Error::conflict(format!(
                "instance {} is not known to be at epoch {epoch} yet; this one serves beside it after that",
                lead.id
            )));
        }
        let backend = self.core.backends.of(row).await?;
        let seen = there(self.observe(row).await?, id)?;
        if seen.role == Role::Active && seen.epoch < epoch {
            return Err(Error::conflict(format!(
                "instance {id} served at epoch {} and lost an arbitration; it is to follow first",
                seen.epoch
            )));
        }
        let promotion = Promotion::Planned { point: None };
        let info = self.ask(&backend, PromoteReplica { instance: id, epoch, promotion }).await?.into_inner();
        Ok(Done::with(move |draft| {
            // Decided against it meanwhile.
            if draft.share.as_ref().is_none_or(|share| share.epoch != epoch) {
                return Vec::new();
            }
            set_exports(draft, id, &info);
            let Some(row) = draft.instance_mut(id) else { return Vec::new() };
            row.epoch = epoch;
            row.cast_rules_to_readonly = false;
            (row.fenced, row.unfenced, row.yields) = (false, false, false);
            row.reason = None;
            vec![Effect::ReplicaState { instance: id, state: Some(ReplicaState::Active) }]
        }))
    }

    /// A promotion that goes past the active ones is decided by the same number as a claim: whichever is first.
    pub(super) fn raise_epoch(&self) -> Done {
        let asked = match self.intent() {
            Intent::Promote { epoch, .. } if !self.state.undoing() => epoch,
            _ => None,
        };
        let raise = |draft: &mut Draft| {
            draft.share.as_ref().map(|s| Effect::Epoch { epoch: s.epoch.next() }).into_iter().collect()
        };
        let unless = move |draft: &Draft| {
            let share = draft.share.as_ref().filter(|s| s.replication == Some(Style::Writable))?;
            asked.filter(|asked| *asked != share.epoch).map(|_| overtaken(share.epoch))
        };
        Done { unless: Box::new(unless), ..Done::with(raise) }
    }

    /// Before an active side is brought from an older epoch to its share's, which lets it go on alone: nobody else is, from
    /// here on.
    pub(super) async fn settle(
        &self,
        share: &Share,
        id: InstanceId,
        seen: &Observation,
    ) -> Result<(), Error> {
        if share.replication != Some(Style::Writable) || seen.epoch >= share.epoch {
            return Ok(());
        }
        let from = seen.epoch;
        let settled = self.core.change(self.share, |draft| Ok(appoint(draft, id, from))).await;
        match settled.map_err(|e| Error::unavailable(e.to_string()))? {
            Some(why) => Err(Error::conflict(why)),
            None => Ok(()),
        }
    }

    /// A change of size amid an arbitration: the winner may not have been told its epoch yet, and who lost gets its size when
    /// it follows. Answers why nothing is to be done now.
    pub(super) async fn told(&self, scene: &Scene, row: &Instance) -> Result<Option<String>, Error> {
        if scene.share.replication != Some(Style::Writable) {
            return Ok(None);
        }
        let (id, epoch) = (row.id, scene.share.epoch);
        if row.replica_state != Some(ReplicaState::Active) {
            return Ok(row
                .yields
                .then(|| format!("instance {id} is not active; it gets its size when it follows")));
        }
        if row.epoch < epoch {
            let backend = self.core.backends.of(row).await?;
            let seen = there(self.observe(row).await?, id)?;
            self.settle(&scene.share, id, &seen).await?;
            let promotion = Promotion::Planned { point: None };
            self.ask(&backend, PromoteReplica { instance: id, epoch, promotion }).await?;
        }
        Ok(None)
    }
}

/// A side is about to be joined, and both may serve from now on: the winner of an earlier arbitration has to ask again, as
/// everybody does. What the side held back until now it gives up where it comes to that.
pub(super) fn joining(draft: &mut Draft, id: InstanceId) {
    if let Some(share) = &mut draft.share {
        share.arbitration = None;
    }
    if let Some(row) = draft.instance_mut(id) {
        row.yields = true;
    }
}
