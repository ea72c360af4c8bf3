//! Plans: desired and observed go in, steps come out. Pure.

use serde::{Deserialize, Serialize};
use tandem_contract::{Demotion, Error, InstanceId, PointId};

use crate::model::Intent;

mod migration;
#[cfg(test)]
mod migration_tests;
mod replication;
mod share;
#[cfg(test)]
pub(crate) mod tests;
mod world;

pub(crate) use migration::{Approach, approach, instead};
pub(crate) use replication::overtaken;
pub(crate) use world::{
    Link, Sides, World, by_storage, can_quiesce, common_form, common_format, common_protocol, newest_common,
};

/// One step of an operation. Every step may be taken again after a crash: its executor looks first.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "step", rename_all = "snake_case")]
pub enum Step {
    /// Choose a pool.
    Place {
        /// The instance.
        instance: InstanceId,
    },
    /// Make an empty active instance.
    CreateInstance {
        /// The instance.
        instance: InstanceId,
    },
    /// Make an empty secondary.
    CreateReplica {
        /// The instance.
        instance: InstanceId,
    },
    /// Let the storage replicate from the active instance to this one.
    Connect {
        /// The secondary.
        instance: InstanceId,
    },
    /// End that.
    Disconnect {
        /// The secondary.
        instance: InstanceId,
    },
    /// Serve it again as its role says, at the share's epoch.
    Ensure {
        /// The instance.
        instance: InstanceId,
    },
    /// Make the rules hold.
    ApplyAccess {
        /// The instance.
        instance: InstanceId,
    },
    /// Make a point.
    MakePoint {
        /// On this instance.
        source: InstanceId,
        /// With this name.
        point: PointId,
    },
    /// Carry a point.
    Transfer {
        /// From.
        source: InstanceId,
        /// To.
        instance: InstanceId,
        /// What.
        point: PointId,
    },
    /// Compare what both hold at a point.
    Compare {
        /// The active instance.
        source: InstanceId,
        /// The replica.
        instance: InstanceId,
        /// At this point.
        point: PointId,
    },
    /// Let go of the points that no replica needs.
    ReleasePoints,
    /// Let storage that replicates by itself carry a migration's source to its destination, and wait until both hold the same.
    Follow {
        /// From.
        source: InstanceId,
        /// To.
        instance: InstanceId,
    },
    /// End that on this side.
    Leave {
        /// On this side.
        instance: InstanceId,
        /// The other side.
        peer: InstanceId,
    },
    /// Take away what lets an instance replicate whose share's type does not.
    EndReplication {
        /// The instance.
        instance: InstanceId,
    },
    /// Wait for storage that replicates by itself.
    AwaitUpToDate {
        /// The secondary.
        instance: InstanceId,
    },
    /// Serve users beside the active one, at its epoch: of a `writable` share.
    Join {
        /// The secondary, which is up to date.
        instance: InstanceId,
    },
    /// Hold writers back.
    Quiesce {
        /// The active instance.
        instance: InstanceId,
        /// Seconds to let users settle.
        wait_seconds: Option<u64>,
    },
    /// Let rules grant at most read, or what they say again: holds writers back where the driver cannot quiesce.
    Cast {
        /// The active instance.
        instance: InstanceId,
        /// At most read.
        read_only: bool,
    },
    /// Let writers go on.
    ResumeWrites {
        /// The instance.
        instance: InstanceId,
    },
    /// Raise the epoch in the store.
    RaiseEpoch,
    /// Make the active one something else.
    Demote {
        /// The instance.
        instance: InstanceId,
        /// What it becomes.
        to: Demotion,
    },
    /// Make a secondary active.
    Promote {
        /// The instance.
        instance: InstanceId,
        /// The old active cannot be asked.
        forced: bool,
    },
    /// Make an empty instance that the source's driver fills.
    Prepare {
        /// The destination.
        instance: InstanceId,
    },
    /// Copy one instance onto another, from host to host.
    Mirror {
        /// From.
        source: InstanceId,
        /// To.
        instance: InstanceId,
        /// Writers are held back: this pass ends with the proof that both are the same.
        last: bool,
        /// Nobody is served any more: what came until then is carried.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        fenced: bool,
    },
    /// Serve an instance to nobody, so that nothing comes that is not carried.
    Withdraw {
        /// The source.
        instance: InstanceId,
    },
    /// Let the source's driver begin to carry.
    Assist {
        /// From.
        source: InstanceId,
        /// To.
        instance: InstanceId,
    },
    /// Let it carry what it can while users write.
    Carry {
        /// From.
        source: InstanceId,
        /// To.
        instance: InstanceId,
    },
    /// Wait to be told to go on.
    AwaitProceed {
        /// The driver carried.
        assisted: bool,
    },
    /// Let the driver carry the rest, and serve users by the destination.
    TakeOver {
        /// From.
        source: InstanceId,
        /// To.
        instance: InstanceId,
    },
    /// Make a destination that was filled by points active, once its source, which serves nobody any more, is proven to hold
    /// no more than it.
    Succeed {
        /// From.
        source: InstanceId,
        /// To.
        instance: InstanceId,
    },
    /// End what the driver began: the source is as before.
    Unwind {
        /// From.
        source: InstanceId,
        /// To.
        instance: InstanceId,
    },
    /// Let the driver forget the source.
    LetGo {
        /// From.
        source: InstanceId,
        /// To.
        instance: InstanceId,
    },
    /// Take the path away through which the manager copied.
    Detach {
        /// The instance.
        instance: InstanceId,
    },
    /// Make the rules hold on the destination, before anybody depends on them.
    Grant {
        /// The destination.
        instance: InstanceId,
    },
    /// Make the destination what users reach: the store alone, at one stroke.
    Switch {
        /// From.
        source: InstanceId,
        /// To.
        instance: InstanceId,
    },
    /// Change the size.
    Resize {
        /// The instance.
        instance: InstanceId,
        /// GiB.
        size_gb: u64,
    },
    /// Remove an instance.
    DeleteInstance {
        /// The instance.
        instance: InstanceId,
    },
    /// Remove a secondary.
    DeleteReplica {
        /// The instance.
        instance: InstanceId,
    },
}

impl Step {
    /// Whether a failure of it is only remarked: what it leaves is for reconciliation, and what it follows is past the
    /// operation's commit point.
    pub const fn is_soft(&self) -> bool {
        matches!(
            self,
            Self::ApplyAccess { .. }
                | Self::ReleasePoints
                | Self::LetGo { .. }
                // It serves its users with it as well.
                | Self::EndReplication { .. }
        )
    }

    /// Whether it goes on trying while the storage is away, for as long as nobody cancels: removals, which have
    /// nothing to give back.
    pub const fn is_patient(&self) -> bool {
        matches!(
            self,
            Self::DeleteInstance { .. }
                | Self::DeleteReplica { .. }
                | Self::Disconnect { .. }
                | Self::Detach { .. }
                | Self::Leave { .. }
                // It may have switched although its answer was lost: only the storage can tell.
                | Self::TakeOver { .. }
                // The storage has switched: there is only forward.
                | Self::Switch { .. }
        )
    }

    /// Whether its driver call may be told to stop when the operation is cancelled.
    pub const fn is_cancellable(&self) -> bool {
        matches!(
            self,
            Self::CreateInstance { .. }
                | Self::CreateReplica { .. }
                | Self::MakePoint { .. }
                | Self::Transfer { .. }
                | Self::Compare { .. }
                | Self::AwaitUpToDate { .. }
                | Self::Follow { .. }
                | Self::Quiesce { .. }
                | Self::Prepare { .. }
                | Self::Mirror { .. }
                | Self::Assist { .. }
                | Self::Carry { .. }
        )
    }
}

/// Whether a failure of this step is only remarked: [`Step::is_soft`], and what turns the replication round after a
/// promotion, which a sync does as well. Who is to serve beside others does not before its rules hold.
pub(crate) fn is_soft(intent: &Intent, steps: &[Step], n: usize) -> bool {
    let joins = |step: &Step| matches!(step, Step::Join { .. });
    if steps.get(n + 1).is_some_and(joins) {
        return false;
    }
    let turns = |step: &Step| matches!((intent, step), (Intent::Promote { .. }, Step::Connect { .. }));
    let joined = steps.iter().any(joins);
    steps.get(n).is_some_and(|step| step.is_soft() || (turns(step) && !joined))
}

/// The steps of an operation.
///
/// # Errors
/// When there is nothing that could be done: the operation fails with this.
pub(crate) fn plan(intent: &Intent, world: &World<'_>) -> Result<Vec<Step>, Error> {
    match intent {
        Intent::CreateShare { instance, .. } => Ok(share::create(*instance)),
        Intent::DeleteShare { .. } => Ok(share::delete(world)),
        Intent::Resize { from_gb, to_gb } => Ok(share::resize(world, *from_gb, *to_gb)),
        Intent::UpdateAccess => Ok(share::update_access(world)),
        Intent::Repair { instance } => Ok(share::repair(world, *instance)),
        Intent::CreateReplica { instance, .. } => replication::create(world, *instance),
        Intent::DeleteReplica { instance, .. } => replication::delete(world, *instance),
        Intent::Sync { instance, point, asked } => replication::sync(world, *instance, *point, *asked),
        Intent::Promote { instance, quiesce_wait_seconds, epoch, keep } => {
            replication::promote(world, *instance, *quiesce_wait_seconds, *epoch, *keep)
        }
        Intent::Verify { instance, .. } => replication::verify(world, *instance),
        Intent::Fence { instance } => replication::fence(world, *instance),
        Intent::Migrate { source, destination, request } => {
            migration::migrate(world, *source, *destination, request)
        }
        Intent::Release { instance, .. } => migration::release(world, *instance),
        Intent::Reset { .. }
        | Intent::ResetTask { .. }
        | Intent::Observed { .. }
        | Intent::Arbitrate { .. } => Ok(Vec::new()),
    }
}

/// What takes back the steps before `failed`, and what `failed` itself may have left.
pub(crate) fn undo(intent: &Intent, steps: &[Step], failed: usize, world: &World<'_>) -> Vec<Step> {
    match intent {
        Intent::CreateShare { instance, .. } => share::undo_create(*instance, steps, failed),
        Intent::CreateReplica { instance, .. } => replication::undo_create(world, *instance, steps, failed),
        Intent::Sync { .. } => replication::undo_sync(steps),
        Intent::Promote { instance, .. } => replication::undo_promote(*instance, steps, failed),
        Intent::Resize { from_gb, .. } => share::undo_resize(world, *from_gb, steps, failed),
        Intent::Migrate { source, destination, .. } => migration::undo(*source, *destination, steps, failed),
        _ => Vec::new(),
    }
}

/// Whether cancelling still takes everything back, after `done` steps and with the first `begun` begun; past that,
/// recovery goes forward.
pub(crate) fn may_turn_back(intent: &Intent, steps: &[Step], done: usize, begun: usize) -> bool {
    let among = |first: usize, commits: fn(&Step) -> bool| steps.iter().take(first).any(commits);
    match intent {
        // What is lost and was told to leave serves nobody any more.
        Intent::Promote { .. } => {
            !among(begun, |s| matches!(s, Step::Promote { .. } | Step::Disconnect { .. }))
        }
        Intent::Migrate { .. } => {
            !among(begun, |s| matches!(s, Step::TakeOver { .. } | Step::Switch { .. }))
                && !among(done, |s| matches!(s, Step::Succeed { .. }))
        }
        // One that only waits for its storage may be cancelled; what is removed stays removed.
        intent if intent.deletes() => {
            !among(done, |s| matches!(s, Step::DeleteReplica { .. } | Step::DeleteInstance { .. }))
        }
        _ => true,
    }
}
