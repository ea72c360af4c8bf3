//! Instances: placed copies of a share; a share replica is one.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use tandem_contract::{Epoch, InstanceId, PointId, PointInfo, ReplicaState, ResourceId};
use uuid::Uuid;

use super::Part;
use crate::clock::Timestamp;

/// Manila's `status` of a share instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum InstanceStatus {
    /// Being made.
    Creating,
    /// At rest, usable.
    Available,
    /// At rest, broken.
    Error,
    /// Being removed.
    Deleting,
    /// At rest: removing failed.
    ErrorDeleting,
    /// Being promoted.
    ReplicationChange,
    /// Growing.
    Extending,
    /// At rest: growing failed.
    ExtendingError,
    /// Shrinking.
    Shrinking,
    /// At rest: shrinking failed.
    ShrinkingError,
    /// At rest: shrinking would lose data.
    ShrinkingPossibleDataLossError,
    /// Source of a migration.
    Migrating,
    /// Destination of a migration.
    MigratingTo,
    /// A word of Manila's that an admin may set and that nothing here enters by itself.
    Inactive,
    /// Likewise.
    ServerMigrating,
}

impl InstanceStatus {
    /// All of them.
    pub const ALL: [Self; 15] = [
        Self::Creating,
        Self::Available,
        Self::Error,
        Self::Deleting,
        Self::ErrorDeleting,
        Self::ReplicationChange,
        Self::Extending,
        Self::ExtendingError,
        Self::Shrinking,
        Self::ShrinkingError,
        Self::ShrinkingPossibleDataLossError,
        Self::Migrating,
        Self::MigratingTo,
        Self::Inactive,
        Self::ServerMigrating,
    ];

    /// Manila's word.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Creating => "creating",
            Self::Available => "available",
            Self::Error => "error",
            Self::Deleting => "deleting",
            Self::ErrorDeleting => "error_deleting",
            Self::ReplicationChange => "replication_change",
            Self::Extending => "extending",
            Self::ExtendingError => "extending_error",
            Self::Shrinking => "shrinking",
            Self::ShrinkingError => "shrinking_error",
            Self::ShrinkingPossibleDataLossError => "shrinking_possible_data_loss_error",
            Self::Migrating => "migrating",
            Self::MigratingTo => "migrating_to",
            Self::Inactive => "inactive",
            Self::ServerMigrating => "server_migrating",
        }
    }

    /// Whether a live operation must own it (law 1).
    pub const fn is_transient(self) -> bool {
        matches!(
            self,
            Self::Creating
                | Self::Deleting
                | Self::ReplicationChange
                | Self::Extending
                | Self::Shrinking
                | Self::Migrating
                | Self::MigratingTo
                | Self::ServerMigrating
        )
    }
}

impl fmt::Display for InstanceStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for InstanceStatus {
    type Err = ();
    fn from_str(word: &str) -> Result<Self, ()> {
        Self::ALL.into_iter().find(|s| s.as_str() == word).ok_or(())
    }
}

/// Manila's `access_rules_status`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AccessRulesStatus {
    /// All rules are as asked.
    #[default]
    Active,
    /// Being applied.
    Syncing,
    /// Some could not be applied.
    Error,
}

impl AccessRulesStatus {
    /// Manila's word.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::Syncing => "syncing",
            Self::Error => "error",
        }
    }
}

/// A pool, addressed as Manila does: `host@backend#pool`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct PoolAddress {
    /// The server's host name.
    pub host: String,
    /// Back end, by its name in the settings.
    pub backend: String,
    /// Pool of that back end.
    pub pool: String,
}

impl fmt::Display for PoolAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}#{}", self.host, self.backend, self.pool)
    }
}

impl FromStr for PoolAddress {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let whole = || format!("`{text}` is not of the form host@backend#pool");
        let (host, rest) = text.split_once('@').ok_or_else(whole)?;
        let (backend, pool) = rest.split_once('#').ok_or_else(whole)?;
        if host.is_empty() || backend.is_empty() || pool.is_empty() {
            return Err(whole());
        }
        Ok(Self { host: host.into(), backend: backend.into(), pool: pool.into() })
    }
}

/// An export location with the id and times that the API shows.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Export {
    /// Id; kept while the path stays.
    pub id: Uuid,
    /// The path users mount or open.
    pub path: String,
    /// Preferred among several.
    pub preferred: bool,
    /// Shown to administrators only.
    pub admin_only: bool,
    /// When it appeared.
    pub created_at: Timestamp,
    /// When it last changed.
    pub updated_at: Option<Timestamp>,
}

/// A point that an instance holds, with the manager's time of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PointRecord {
    /// The point.
    pub info: PointInfo,
    /// When the active made it, by the manager's clock: when the call that made it was sent.
    pub made_at: Timestamp,
}

/// A content check that found a replica equal to the active instance.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Checked {
    /// When it began: what rots after it was read is not seen.
    pub at: Timestamp,
    /// The point at which both were compared.
    pub point: PointId,
    /// When that point was made, where that is on record.
    pub made_at: Option<Timestamp>,
}

/// One placed copy of a share.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Instance {
    /// Id; also the replica's id.
    pub id: InstanceId,
    /// Compare-and-set version; 0 before the first write.
    #[serde(skip)]
    pub version: i64,
    /// The share.
    pub share_id: ResourceId,
    /// Owning project, repeated for queries.
    pub project_id: String,
    /// Share type; that of the share but during a retype.
    pub share_type_id: Uuid,
    /// Where it is; `None` until placed.
    pub pool: Option<PoolAddress>,
    /// Zone: asked for, then that of its back end.
    pub availability_zone: Option<String>,
    /// Status.
    pub status: InstanceStatus,
    /// State, when the share replicates.
    pub replica_state: Option<ReplicaState>,
    /// Whether the rules hold.
    #[serde(default)]
    pub access_rules_status: AccessRulesStatus,
    /// Whether rules grant at most read here.
    #[serde(default)]
    pub cast_rules_to_readonly: bool,
    /// Where users reach it.
    #[serde(default)]
    pub exports: Vec<Export>,
    /// The tenant's names and values (replica metadata).
    #[serde(default)]
    pub metadata: BTreeMap<String, String>,
    /// Highest epoch that this instance is known to have taken.
    #[serde(default)]
    pub epoch: Epoch,
    /// It was active, another was promoted by force, and it has not been fenced since.
    #[serde(default)]
    pub unfenced: bool,
    /// It was fenced after a forced promotion; it follows only once a resync says which side to keep.
    #[serde(default)]
    pub fenced: bool,
    /// Of a `writable` share: what it holds that no other side has was acknowledged to nobody, and is given up when it
    /// follows again. It lost an arbitration, or was about to join the active ones.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub yields: bool,
    /// What it is to its resource.
    #[serde(default)]
    pub part: Part,
    /// The newest whole point it has.
    #[serde(default)]
    pub point: Option<PointRecord>,
    /// The last content check that found it equal to the active instance.
    #[serde(default)]
    pub checked: Option<Checked>,
    /// When the last content check came to an end that was not a cancel, whatever it found.
    #[serde(default)]
    pub tried_at: Option<Timestamp>,
    /// What a content check found damaged, as a sentence. A replica is carried again in full therefore.
    #[serde(default)]
    pub damage: Option<String>,
    /// When it found that.
    #[serde(default)]
    pub damaged_at: Option<Timestamp>,
    /// Why it is in error, as a sentence.
    #[serde(default)]
    pub reason: Option<String>,
    /// An admin's reset set the status or state; reconcile leaves it alone until the next operation.
    #[serde(default)]
    pub reset_by_admin: bool,
    /// Whether its birth replicates and how many instances it was prepared for are the driver's to know.
    pub created_at: Timestamp,
    /// When it was placed.
    #[serde(default)]
    pub scheduled_at: Option<Timestamp>,
    /// When it first became available.
    #[serde(default)]
    pub launched_at: Option<Timestamp>,
    /// When it last changed.
    pub updated_at: Option<Timestamp>,
}

impl Instance {
    /// Whether it is an active one, and not on its way out.
    pub fn stays_active(&self) -> bool {
        self.replica_state == Some(ReplicaState::Active)
            && !matches!(self.status, InstanceStatus::Deleting | InstanceStatus::ErrorDeleting)
    }

    /// Back end it is placed on.
    pub fn backend(&self) -> Option<&str> {
        self.pool.as_ref().map(|p| p.backend.as_str())
    }
}
