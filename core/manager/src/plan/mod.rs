//! Plans: desired and observed go in, steps come out. Pure.

use serde::{Deserialize, Serialize};
use tandem_contract::{Demotion, InstanceId, PointId};

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
    /// Let go of the points that no replica needs.
    ReleasePoints,
    /// Wait for storage that replicates by itself.
    AwaitUpToDate {
        /// The secondary.
        instance: InstanceId,
    },
    /// Hold writers back.
    Quiesce {
        /// The active instance.
        instance: InstanceId,
        /// Seconds to let users settle.
        wait_seconds: Option<u64>,
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
