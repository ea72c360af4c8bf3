//! Operations: the durable record of one accepted request.

use serde::{Deserialize, Serialize};
use tandem_contract::{Epoch, Error, InstanceId, OpId, PointId, ReplicaState, ResourceId};

use super::{InstanceStatus, MigrationRequest};
use crate::clock::Timestamp;

/// What was asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Intent {
    /// Make a share: its first instance.
    CreateShare {
        /// The instance.
        instance: InstanceId,
        /// Only on this pool or host (Manila's scheduler hint).
        #[serde(default)]
        only_host: Option<String>,
    },
    /// Remove a share with its instances.
    DeleteShare {
        /// Forget what cannot be removed.
        force: bool,
    },
    /// Make a further instance that follows the active one.
    CreateReplica {
        /// The instance.
        instance: InstanceId,
        /// Only on this pool or host (Manila's scheduler hint).
        only_host: Option<String>,
    },
    /// Remove a replica.
    DeleteReplica {
        /// The instance.
        instance: InstanceId,
        /// Forget what cannot be removed.
        force: bool,
    },
    /// Bring a replica to a new point of the active one.
    Sync {
        /// The replica.
        instance: InstanceId,
        /// Somebody asked for it, rather than the schedule.
        asked: bool,
        /// The point to bring it to: the same for all replicas that one look found behind, so that they have it in
        /// common whichever is promoted. `None`: one of its own.
        #[serde(default)]
        point: Option<PointId>,
    },
    /// Make a replica the active one.
    Promote {
        /// The replica.
        instance: InstanceId,
        /// Seconds to let users settle.
        quiesce_wait_seconds: Option<u64>,
        /// The share's epoch when it was asked for: where somebody was told to go on since, nobody is gone past.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        epoch: Option<Epoch>,
        /// Where the active one and this one each have what the other lacks, this one is to be kept.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        keep: bool,
    },
    /// Compare what a replica holds with what the active one holds, by reading both again.
    Verify {
        /// The replica.
        instance: InstanceId,
        /// Somebody asked for it, rather than the schedule.
        asked: bool,
    },
    /// Put an old active, back after a forced promotion, out of service.
    Fence {
        /// The old active.
        instance: InstanceId,
    },
    /// Bring an instance back to what its role says, after an error has passed.
    Repair {
        /// The instance.
        instance: InstanceId,
    },
    /// What reconciliation saw of an instance: logged, done at once, no step.
    Observed {
        /// The instance.
        instance: InstanceId,
        /// Its status, where that changed.
        #[serde(default)]
        status: Option<InstanceStatus>,
        /// Its state, where that changed.
        #[serde(default)]
        replica_state: Option<ReplicaState>,
        /// Why, as a sentence.
        reason: Option<String>,
    },
    /// Sides of a `writable` share were cut off from each other, and one was told to go on: logged, done at once, no step.
    Arbitrate {
        /// Who goes on.
        instance: InstanceId,
        /// At this epoch.
        epoch: Epoch,
    },
    /// Move the resource to another pool.
    Migrate {
        /// Where it is.
        source: InstanceId,
        /// Where it goes.
        destination: InstanceId,
        /// How it is to go.
        request: MigrationRequest,
    },
    /// Remove the instance that a migration left, or did not come to need.
    Release {
        /// The instance.
        instance: InstanceId,
        /// Forget it when it cannot be removed.
        #[serde(default)]
        force: bool,
    },
    /// An admin's override of the task state: logged, done at once, no step.
    ResetTask {
        /// The state set.
        task_state: Option<String>,
    },
    /// Make the rules hold on every instance.
    UpdateAccess,
    /// Change the size.
    Resize {
        /// GiB before.
        from_gb: u64,
        /// GiB after.
        to_gb: u64,
    },
    /// An admin's override of a status or state: logged, done at once, no step.
    Reset {
        /// The instance.
        instance: InstanceId,
        /// The status set.
        status: Option<InstanceStatus>,
        /// The state set.
        replica_state: Option<ReplicaState>,
    },
}

impl Intent {
    /// Its word, as `kind` in JSON.
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::CreateShare { .. } => "create_share",
            Self::DeleteShare { .. } => "delete_share",
            Self::CreateReplica { .. } => "create_replica",
            Self::DeleteReplica { .. } => "delete_replica",
            Self::Sync { .. } => "sync",
            Self::Promote { .. } => "promote",
            Self::Verify { .. } => "verify",
            Self::Fence { .. } => "fence",
            Self::Repair { .. } => "repair",
            Self::Observed { .. } => "observed",
            Self::Arbitrate { .. } => "arbitrate",
            Self::Migrate { .. } => "migrate",
            Self::Release { .. } => "release",
            Self::ResetTask { .. } => "reset_task",
            Self::UpdateAccess => "update_access",
            Self::Resize { .. } => "resize",
            Self::Reset { .. } => "reset",
        }
    }

    /// Whether it removes what it is about.
    pub const fn deletes(&self) -> bool {
        matches!(self, Self::DeleteReplica { .. } | Self::DeleteShare { .. } | Self::Release { .. })
    }

    /// Whether it only reads, and gives way to this one: that concerns the same instance, or the whole share.
    pub fn gives_way_to(&self, other: &Self) -> bool {
        let stronger = !matches!(
            other,
            Self::Verify { .. }
                | Self::UpdateAccess
                | Self::Observed { .. }
                | Self::Arbitrate { .. }
                | Self::Reset { .. }
                | Self::ResetTask { .. }
        );
        let whole = matches!(other, Self::Promote { .. } | Self::Migrate { .. } | Self::Fence { .. });
        matches!(self, Self::Verify { .. })
            && stronger
            && (whole || self.instance().is_some_and(|id| other.concerns(id)))
    }

    /// Whether it may change this instance.
    pub fn concerns(&self, id: InstanceId) -> bool {
        match self {
            Self::Migrate { source, destination, .. } => *source == id || *destination == id,
            _ => self.instance().is_none_or(|instance| instance == id),
        }
    }

    /// The one instance that it concerns; of a migration the one that it makes; `None` when it concerns the share.
    pub const fn instance(&self) -> Option<InstanceId> {
        match self {
            Self::CreateShare { instance, .. }
            | Self::CreateReplica { instance, .. }
            | Self::DeleteReplica { instance, .. }
            | Self::Sync { instance, .. }
            | Self::Promote { instance, .. }
            | Self::Verify { instance, .. }
            | Self::Fence { instance }
            | Self::Repair { instance }
            | Self::Observed { instance, .. }
            | Self::Arbitrate { instance, .. }
            | Self::Migrate { destination: instance, .. }
            | Self::Release { instance, .. }
            | Self::Reset { instance, .. } => Some(*instance),
            Self::DeleteShare { .. } | Self::ResetTask { .. } | Self::UpdateAccess | Self::Resize { .. } => {
                None
            }
        }
    }
}

/// Where an operation stands; derived from its log ([`crate::oplog`]), kept in the row for queries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OpStatus {
    /// Waits for its turn.
    Accepted,
    /// Its steps run.
    Running,
    /// Takes back what it did.
    Undoing,
    /// Ended as asked.
    Done,
    /// Ended by an error; what it had begun was taken back, or is at rest in an error status.
    Failed,
    /// Ended because it was asked to.
    Cancelled,
}

impl OpStatus {
    /// Its word.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Accepted => "accepted",
            Self::Running => "running",
            Self::Undoing => "undoing",
            Self::Done => "done",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
        }
    }

    /// Whether nothing more comes.
    pub const fn is_finished(self) -> bool {
        matches!(self, Self::Done | Self::Failed | Self::Cancelled)
    }
}

/// The row of an operation. The log is the truth; everything here can be folded from it again.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Operation {
    /// Id; UUID v7, so that ids sort by time.
    pub id: OpId,
    /// Sequence number of the newest event: the next one must be this and one more.
    pub seq: u64,
    /// The share.
    pub share_id: ResourceId,
    /// Project of the share.
    pub project_id: String,
    /// What was asked for.
    pub intent: Intent,
    /// The request that asked (`req-…`); `None` when the manager itself did.
    #[serde(default)]
    pub request_id: Option<String>,
    /// Where it stands.
    pub status: OpStatus,
    /// Somebody asked for it to end.
    #[serde(default)]
    pub cancel: bool,
    /// Somebody told it to go on after its first phase.
    #[serde(default)]
    pub proceed: bool,
    /// Why it failed.
    #[serde(default)]
    pub error: Option<Error>,
    /// Bytes that its transfers carried.
    #[serde(default)]
    pub bytes: u64,
    /// Bytes that earlier, cut transfers had carried already.
    #[serde(default)]
    pub resumed_bytes: u64,
    /// What a person should know of how it ended (what a forced promotion may have lost, a full resend and why).
    #[serde(default)]
    pub remarks: Vec<String>,
    /// When it was accepted.
    pub created_at: Timestamp,
    /// When its newest event was written.
    pub updated_at: Timestamp,
}
