//! Shares: what a tenant owns.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use tandem_contract::{Epoch, InstanceId, ReplicaState, ResourceId, Style};
use uuid::Uuid;

use super::{Instance, InstanceStatus, Part};
use crate::clock::Timestamp;

/// A share. Its status is that of its instances ([`Share::representative`]).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Share {
    /// Id, as the tenant sees it.
    pub id: ResourceId,
    /// Compare-and-set version; 0 before the first write.
    #[serde(skip)]
    pub version: i64,
    /// Owning project.
    pub project_id: String,
    /// User that made it.
    pub user_id: String,
    /// Name a person gave.
    pub name: Option<String>,
    /// Description a person gave.
    pub description: Option<String>,
    /// Size in GiB.
    pub size_gb: u64,
    /// `NFS`, `CIFS`, …
    pub protocol: String,
    /// Share type.
    pub share_type_id: Uuid,
    /// Whether every project sees it.
    pub is_public: bool,
    /// The tenant's names and values.
    #[serde(default)]
    pub metadata: BTreeMap<String, String>,
    /// Zone asked for at creation.
    #[serde(default)]
    pub availability_zone: Option<String>,
    /// Style, when its type replicates; fixed at creation, as Manila's `replication_type`.
    #[serde(default)]
    pub replication: Option<Style>,
    /// Fencing number; raised by every promotion.
    pub epoch: Epoch,
    /// The newest arbitration between sides of a `writable` share that were cut off from each other, while it stands.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub arbitration: Option<Arbitration>,
    /// Points that are protected on the active instance, oldest first.
    #[serde(default)]
    pub points: Vec<super::PointRecord>,
    /// Manila's `task_state`.
    #[serde(default)]
    pub task_state: Option<String>,
    /// Manila's snapshot words, copied from the type at creation: snapshot_support,
    /// create_share_from_snapshot_support, revert_to_snapshot_support, mount_snapshot_support.
    #[serde(default)]
    pub snapshot_support: [bool; 4],
    /// When it was accepted.
    pub created_at: Timestamp,
    /// When it last changed.
    pub updated_at: Option<Timestamp>,
}

/// What was decided between sides that were cut off from each other. It stands until the epoch rises once more or a side
/// joins the winner: until then the winner gets the same answer again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Arbitration {
    /// Who goes on.
    pub winner: InstanceId,
    /// The epoch at which all sides served.
    pub before: Epoch,
    /// The epoch at which the winner goes on.
    pub epoch: Epoch,
    /// When it was decided.
    pub at: Timestamp,
}

impl Share {
    /// The instance that speaks for the share, by Manila's order of preference: reverting, replication_change,
    /// migrating, available, error, then any; an active replica before others.
    pub fn representative<'a>(&self, instances: &'a [Instance]) -> Option<&'a Instance> {
        let rank = |i: &Instance| {
            let by_status = match i.status {
                InstanceStatus::ReplicationChange => 0,
                InstanceStatus::Migrating => 1,
                InstanceStatus::Available => 2,
                InstanceStatus::Error => 3,
                _ => 4,
            };
            let inactive = self.replication.is_some() && i.replica_state != Some(ReplicaState::Active);
            (i.part != Part::Whole, inactive, by_status, i.created_at)
        };
        instances.iter().min_by_key(|i| rank(i))
    }

    /// Whether more than one instance is kept (Manila's `has_replicas`).
    pub fn has_replicas(&self, instances: &[Instance]) -> bool {
        self.replication.is_some() && instances.iter().filter(|i| i.part == Part::Whole).count() > 1
    }
}
