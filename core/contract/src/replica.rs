//! Replication: states, points, transfers, peers.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{Epoch, Health, InstanceId, PointId, PointInfo};

/// Manila's `replica_state`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ReplicaState {
    /// The instance that users write to.
    Active,
    /// Follows within the share type's `replication:rpo_seconds`.
    InSync,
    /// Follows further behind, or not yet.
    OutOfSync,
    /// Cannot follow; also what an unknown word means.
    #[serde(other)]
    Error,
}

impl ReplicaState {
    /// Manila's word for it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::InSync => "in_sync",
            Self::OutOfSync => "out_of_sync",
            Self::Error => "error",
        }
    }
}

/// Where a cut transfer continues. Opaque to the manager; `kind` and `version` tell a driver whether it can read it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ResumeToken {
    /// What kind of token (`zfs.receive_resume_token`, `directory.have`).
    pub kind: String,
    /// Version of that kind.
    pub version: u32,
    /// The point it is on the way to, where known.
    #[serde(default)]
    pub to: Option<PointId>,
    /// The token.
    pub data: Value,
}

/// What `update_replica_state` answers: fast, no transfer inside.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ReplicaReport {
    /// The state by what the storage itself knows. A streamed driver answers `out_of_sync` or `error`, or `in_sync`
    /// while it holds a whole point; the manager judges lag against the share type.
    pub state: ReplicaState,
    /// The newest whole point here.
    #[serde(default)]
    pub newest_point: Option<PointInfo>,
    /// On the active instance, and on one that was fenced while it was active: whether anything changed since the newest
    /// point; `None` where the driver cannot tell.
    #[serde(default)]
    pub changed_since_point: Option<bool>,
    /// Bytes behind, exactly, where the storage can tell.
    #[serde(default)]
    pub lag_bytes: Option<u64>,
    /// Whether storage that replicates by itself is up to date this moment.
    #[serde(default)]
    pub up_to_date: Option<bool>,
    /// Progress of a resync that the storage runs by itself now; `None` while it has no link to run it over.
    #[serde(default)]
    pub resync: Option<crate::Progress>,
    /// Whether two sides diverged, and how, as a sentence.
    #[serde(default)]
    pub split_brain: Option<String>,
    /// Where its data stands, in the storage's own words: told to a person of both sides that diverged.
    #[serde(default)]
    pub position: Option<String>,
    /// Whether it is whole.
    pub health: Health,
}

/// How an instance becomes active.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Promotion {
    /// The old active was quiesced (where the driver can) and demoted; the data is at this point, or up to date by
    /// the storage's own replication (`None`).
    Planned {
        /// The last point synced.
        point: Option<PointId>,
    },
    /// The old active cannot be asked. What came after this point may be lost.
    Forced {
        /// The newest whole point here, as far as the manager knows.
        point: Option<PointId>,
    },
}

/// What a demoted instance becomes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Demotion {
    /// A secondary that will follow the new active.
    Secondary,
    /// Fenced: serves nobody and follows nobody until told which side to keep.
    Fenced,
}

/// A stream from a source instance.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SendSpec {
    /// The instance that is read.
    pub instance: InstanceId,
    /// Its epoch.
    pub epoch: Epoch,
    /// The point to send.
    pub to: PointId,
    /// The newest point that both sides have; everything is sent when absent.
    #[serde(default)]
    pub from: Option<PointInfo>,
    /// What the receiver observed of an earlier, cut transfer to the same point.
    #[serde(default)]
    pub resume: Option<ResumeToken>,
    /// A stream format both sides know.
    pub format: String,
    /// At most so many bytes a second; unlimited when absent.
    #[serde(default)]
    pub bandwidth: Option<u64>,
}

/// A stream into a secondary or a destination. Atomic: the newest whole point stays in place until the new one is
/// verified.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ReceiveSpec {
    /// The instance that is written.
    pub instance: InstanceId,
    /// The resource's epoch.
    pub epoch: Epoch,
    /// The point that arrives, as the source made it; the fingerprint is what is proven.
    pub to: PointInfo,
    /// The newest point that both sides have.
    #[serde(default)]
    pub from: Option<PointInfo>,
    /// What this side observed of an earlier, cut transfer.
    #[serde(default)]
    pub resume: Option<ResumeToken>,
    /// The stream's format.
    pub format: String,
}

/// What one side of a transfer did.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct TransferReport {
    /// Bytes that went through the stream.
    pub bytes: u64,
    /// Bytes of content that an earlier, cut transfer had already carried.
    pub resumed_bytes: u64,
    /// What could not be carried (an xattr the storage refuses, an owner), as sentences; bounded.
    pub remarks: Vec<String>,
    /// Of the remarks, what metadata of files the receiver could not keep, in all that it holds now; bounded. A migration
    /// that is to keep all metadata ends by it.
    pub lacks: Vec<String>,
    /// Whether the receiver proved the content after it was written.
    pub verified: bool,
}

/// What an instance holds at a point, as it was read from its storage: one digest for each aspect that is kept there.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ContentFingerprint {
    /// The form: only fingerprints of one form are compared.
    pub form: String,
    /// A digest for each aspect (`names`, `contents`, `modes`, …). An aspect that this storage does not keep is absent,
    /// and only what both sides have is compared.
    pub parts: BTreeMap<String, String>,
    /// Names.
    pub entries: u64,
    /// Bytes of content.
    pub bytes: u64,
    /// What is not as this side itself knows that it was, or cannot be read, as sentences; bounded. Empty where nothing is
    /// known to be damaged: two sides that differ then leave open which of them is.
    pub damaged: Vec<String>,
}

/// A side's address for its peers: opaque to the manager, understood by drivers that share a replication protocol.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Endpoint {
    /// The instance.
    pub instance: InstanceId,
    /// A protocol of [`Transport::Storage`](crate::Transport::Storage).
    pub protocol: String,
    /// The address.
    pub data: Value,
}
