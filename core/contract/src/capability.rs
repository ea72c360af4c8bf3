//! What a driver can do. An ability that a driver lacks is absent here, never a method that does nothing.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// What a resource is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum ResourceKind {
    /// Files, reached through an export.
    Share,
    /// A virtual machine.
    Server,
    /// A kind that this side does not know yet.
    #[serde(other)]
    Unknown,
}

/// How replicas of a resource behave: Manila's `replication_type`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Style {
    /// Synchronous; all instances are active and writable.
    Writable,
    /// Secondaries can be read while they follow.
    Readable,
    /// Secondaries cannot be reached until one is promoted.
    Dr,
    /// A style that this side does not know yet.
    #[serde(other)]
    Unknown,
}

impl Style {
    /// Manila's word for it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Writable => "writable",
            Self::Readable => "readable",
            Self::Dr => "dr",
            Self::Unknown => "unknown",
        }
    }

    /// The style that Manila's word names.
    pub fn parse(word: &str) -> Option<Self> {
        match word {
            "writable" => Some(Self::Writable),
            "readable" => Some(Self::Readable),
            "dr" => Some(Self::Dr),
            _ => None,
        }
    }
}

/// Which access rules the storage really enforces.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AccessEnforcement {
    /// None: rules are kept by the manager and shown as not enforced.
    #[default]
    None,
    /// Every rule the driver accepts is enforced.
    #[serde(other)]
    Full,
}

/// Everything a driver can do, and facts of its storage that the scheduler matches share types against.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Capabilities {
    /// Kinds of resources it keeps.
    pub resources: Vec<ResourceKind>,
    /// Manila's share protocols it serves (`NFS`, `CIFS`, …), upper case.
    pub share_protocols: Vec<String>,
    /// Which access rules hold.
    pub access_enforcement: AccessEnforcement,
    /// Access types it takes (`ip`, `user`, …); any when enforcement is none.
    pub access_types: Vec<String>,
    /// Whether a share can grow in place.
    pub extend: bool,
    /// Whether a share can shrink in place.
    pub shrink: bool,
    /// Whether only what is used takes room in the pool.
    pub thin: bool,
    /// Mirroring.
    pub replication: Option<ReplicationCapability>,
    /// Driver-assisted migration.
    pub migration: Option<MigrationCapability>,
    /// What `attach` gives, for the host-assisted copy.
    pub attach: Option<AttachKind>,
    /// Further facts, matched by a share type's extra specs (`capabilities:NAME` or `NAME`); shown with the pools.
    pub extra: Map<String, Value>,
}

/// What a driver can do for replicas.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ReplicationCapability {
    /// Styles it offers.
    pub styles: Vec<Style>,
    /// Who moves the data.
    pub transport: Transport,
    /// Pools replicate with each other only within one domain; Manila's `replication_domain`.
    #[serde(default)]
    pub domain: Option<String>,
    /// The most instances of one resource, the active one included; unlimited when absent.
    #[serde(default)]
    pub max_instances: Option<u32>,
    /// Whether writers can be held back, so that a planned promotion loses no acknowledged byte.
    #[serde(default)]
    pub quiesce: bool,
    /// Whether `update_replica_state` tells the lag in bytes.
    #[serde(default)]
    pub lag_bytes: bool,
    /// Whether an instance that was made without replication can begin to replicate and end it again, so that it can be moved
    /// like a replica: of storage that replicates by itself.
    #[serde(default)]
    pub converts: bool,
    /// Forms of fingerprints that `fingerprint` takes of what an instance holds, best first; two sides need one in
    /// common to be compared. Empty where the driver cannot read it again.
    #[serde(default)]
    pub fingerprints: Vec<String>,
}

/// Who moves a replica's data.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
#[non_exhaustive]
pub enum Transport {
    /// Tandem: points, `send` and `receive`.
    Streamed {
        /// Stream formats it writes and reads, best first; two back ends need one in common.
        formats: Vec<String>,
        /// Whether a cut transfer continues where it stopped.
        resumable: bool,
    },
    /// The storage itself (DRBD, arrays); Tandem connects the peers, watches and steers.
    Storage {
        /// Peers it understands; two back ends need one in common.
        protocols: Vec<String>,
    },
    /// A transport that this side does not know yet.
    #[serde(other)]
    Unknown,
}

/// What a driver can do for migrations.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct MigrationCapability {
    /// Destinations it understands by themselves (driver names).
    pub to_drivers: Vec<String>,
    /// Whether the switch, the release of the source and the revert can be asked for one by one.
    pub revert: bool,
    /// Whether a running migration can be forced to complete.
    pub force_complete: bool,
}

/// What `attach` gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum AttachKind {
    /// A folder.
    Tree,
    /// A block device.
    Block,
    /// Something this side does not know yet.
    #[serde(other)]
    Unknown,
}

/// One pool of a back end. Sizes in bytes; `None` where the storage cannot tell (Manila's `unknown`).
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Pool {
    /// The `pool` of `host@backend#pool`.
    pub name: String,
    /// All room.
    pub total_bytes: Option<u64>,
    /// Room left.
    pub free_bytes: Option<u64>,
    /// Room promised to shares.
    pub allocated_bytes: Option<u64>,
    /// A warning for people (nearly full, degraded).
    pub warning: Option<String>,
    /// Facts that hold for this pool only, over those of the driver.
    pub extra: Map<String, Value>,
}
