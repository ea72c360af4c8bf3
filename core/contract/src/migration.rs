//! Driver-assisted migration of a resource from one instance to another.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::{Epoch, ExportLocation, InstanceId, Progress, ResourceId, ResourceKind};

/// The two sides of a migration, as each call on it names them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MigrationSpec {
    /// The resource.
    pub resource: ResourceId,
    /// Its kind: one trait moves shares and servers.
    pub kind: ResourceKind,
    /// Where it is.
    pub source: InstanceId,
    /// Where it goes; exists, empty, in the role `destination`. Not yet when compatibility is checked.
    pub destination: InstanceId,
    /// The resource's epoch. The destination was prepared at the next one, and is active at that from the switch on:
    /// what still holds the source's epoch can take nothing back.
    pub epoch: Epoch,
    /// What the destination's driver said of itself in `endpoint`; opaque to the manager. Null when compatibility is
    /// checked, and where the destination is gone.
    pub endpoint: Value,
    /// The destination's back end, as data: `driver` (its name), `backend`, `host` (`host@backend#pool`, or
    /// `host@backend`), `capabilities`.
    #[serde(default)]
    pub destination_driver: Map<String, Value>,
}

/// What a driver can promise for a given source and destination: Manila's five words.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Compatibility {
    /// The driver can move it at all.
    pub compatible: bool,
    /// Users write during the first phase.
    pub writable: bool,
    /// Users notice nothing, not even a remount.
    pub nondisruptive: bool,
    /// All metadata of files is kept.
    pub preserve_metadata: bool,
    /// Snapshots move along.
    pub preserve_snapshots: bool,
}

/// How far a migration is.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct MigrationProgress {
    /// Bytes done of bytes in all.
    pub progress: Progress,
    /// Whether the first phase is done and `migration_complete` may come.
    pub first_phase_done: bool,
    /// Named byte counters (Nova's memory_total_bytes, disk_processed_bytes, …).
    pub counters: Map<String, Value>,
}

/// What the switch answers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Switched {
    /// Where users reach the resource now.
    pub exports: Vec<ExportLocation>,
}
