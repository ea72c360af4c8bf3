//! Instances: one placed copy of a resource on one pool.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::{
    AccessRule, Epoch, InstanceId, PointId, ResourceId, ResourceKind, ResumeToken, RuleReport, Style,
};

/// Whether a call changed anything. Repeating a finished call answers `Unchanged`, never an error.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "outcome", content = "value", rename_all = "snake_case")]
pub enum Outcome<T> {
    /// It was done now.
    Changed(T),
    /// It was so already.
    Unchanged(T),
}

impl<T> Outcome<T> {
    /// `Changed` or `Unchanged`.
    pub const fn of(changed: bool, value: T) -> Self {
        if changed { Self::Changed(value) } else { Self::Unchanged(value) }
    }

    /// The value, whichever it is.
    pub fn into_inner(self) -> T {
        match self {
            Self::Changed(value) | Self::Unchanged(value) => value,
        }
    }

    /// Whether the call changed something.
    pub const fn is_changed(&self) -> bool {
        matches!(self, Self::Changed(_))
    }
}

/// What an instance is for its resource.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Role {
    /// Serves its users read-write.
    Active,
    /// Follows the active one: mounted read-only (`readable`) or not at all (`dr`).
    Secondary,
    /// Receives a migration; not served.
    Destination,
    /// Was active and was fenced: serves nobody, keeps what it has, follows nothing until told.
    Fenced,
    /// A role that this side does not know yet.
    #[serde(other)]
    Unknown,
}

impl Role {
    /// The word for it, on the wire and for what a driver keeps.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::Secondary => "secondary",
            Self::Destination => "destination",
            Self::Fenced => "fenced",
            Self::Unknown => "unknown",
        }
    }

    /// The role that the word means; `None` where it means none.
    pub fn named(word: &str) -> Option<Self> {
        [Self::Active, Self::Secondary, Self::Destination, Self::Fenced]
            .into_iter()
            .find(|role| role.as_str() == word)
    }
}

/// What an instance is to be. Stored with the instance on the storage, as far as `observe_instance` needs it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct InstanceSpec {
    /// The instance.
    pub instance: InstanceId,
    /// The resource that it is a copy of.
    pub resource: ResourceId,
    /// The resource's kind.
    pub kind: ResourceKind,
    /// Pool of the back end, by name.
    pub pool: String,
    /// Size in bytes.
    pub size_bytes: u64,
    /// Manila's share protocol, upper case; empty for servers.
    #[serde(default)]
    pub protocol: String,
    /// The resource's epoch at birth.
    pub epoch: Epoch,
    /// Set when the resource replicates: what must be laid down at birth (DRBD metadata) is.
    #[serde(default)]
    pub replication: Option<ReplicationSpec>,
    /// Extra specs of the share type in the driver's scope (`NAME:key` of the driver's name), scope removed.
    #[serde(default)]
    pub options: Map<String, Value>,
}

/// How an instance's resource replicates.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReplicationSpec {
    /// The style.
    pub style: Style,
    /// The number of instances to prepare for, the active one included.
    pub instances: u32,
}

/// Where users reach an instance.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExportLocation {
    /// `HOST:/path`, or a plain path.
    pub path: String,
    /// Whether clients should prefer it.
    #[serde(default)]
    pub preferred: bool,
    /// Whether only administrators see it.
    #[serde(default)]
    pub admin_only: bool,
}

/// What a changing call on an instance answers.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct InstanceInfo {
    /// Every export of it that is open now; empty while it cannot be reached.
    pub exports: Vec<ExportLocation>,
    /// Handed back to the driver unread in each later `observe`; for what a driver must find again (a device, a port).
    pub hints: Map<String, Value>,
}

/// A point, as the storage knows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PointInfo {
    /// The manager's name for it.
    pub id: PointId,
    /// What proves that two instances mean the same moment: a ZFS guid, a manifest's root hash. Equal on both sides.
    pub fingerprint: String,
    /// Whether it is kept on this instance by a hold of Tandem's.
    #[serde(default)]
    pub held: bool,
}

/// What is really there. The only truth a driver has: it remembers nothing between calls.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Observation {
    /// The resource that it is a copy of.
    pub resource: ResourceId,
    /// What it is now.
    pub role: Role,
    /// The highest epoch seen here.
    pub epoch: Epoch,
    /// Size in bytes.
    pub size_bytes: u64,
    /// Bytes in use, where cheap to tell.
    #[serde(default)]
    pub used_bytes: Option<u64>,
    /// Exports that are open now.
    #[serde(default)]
    pub exports: Vec<ExportLocation>,
    /// Whether users are held back from writing.
    #[serde(default)]
    pub read_only: bool,
    /// Whether writers are quiesced by us.
    #[serde(default)]
    pub quiesced: bool,
    /// Points it holds, oldest first.
    #[serde(default)]
    pub points: Vec<PointInfo>,
    /// Where a cut `receive` would continue; wins over any token that was recorded elsewhere.
    #[serde(default)]
    pub resume: Option<ResumeToken>,
    /// Whether it is whole and served as its role says.
    pub health: Health,
}

/// Whether something is whole.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "snake_case")]
#[non_exhaustive]
pub enum Health {
    /// It is.
    Ok,
    /// It serves, with a fault.
    Degraded {
        /// A sentence.
        reason: String,
    },
    /// It does not serve.
    Failed {
        /// A sentence.
        reason: String,
    },
    /// Something this side does not know yet.
    #[serde(other)]
    Unknown,
}

/// Which rules are to hold on an instance: always the full list.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AccessSpec {
    /// Every rule that is to hold.
    pub rules: Vec<AccessRule>,
    /// Grant at most read, whatever a rule says (Manila's `cast_rules_to_readonly`).
    pub read_only: bool,
}

/// What became of the rules.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct AccessReport {
    /// One entry for each rule.
    pub rules: Vec<RuleReport>,
}

/// Where an instance was attached on its host, for the host-assisted copy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attachment {
    /// A folder or a block device.
    pub kind: crate::AttachKind,
    /// Its path on the driver's host.
    pub path: String,
    /// Permissions of a folder as its users set them, where the driver has taken some away from it meanwhile.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub root_mode: Option<u32>,
}
