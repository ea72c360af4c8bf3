//! Migrations: how a resource is to go to another pool.

use std::fmt;

use serde::{Deserialize, Serialize};
use tandem_contract::{Compatibility, ResourceKind};
use uuid::Uuid;

/// How a resource is to go.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MigrationRequest {
    /// What it is.
    pub kind: ResourceKind,
    /// `host@backend#pool`, or `host@backend` for any pool there.
    pub host: String,
    /// Not by the driver, even where it could.
    #[serde(default)]
    pub host_assisted: bool,
    /// What the driver must promise; anything of it rules the host-assisted copy out.
    #[serde(default)]
    pub needs: Needs,
    /// The type that it has afterwards, when that changes.
    #[serde(default)]
    pub new_type: Option<Uuid>,
    /// Whether that type replicates: a replica was taken from the quota for it.
    #[serde(default)]
    pub replicates: bool,
    /// It goes on after the first phase by itself.
    #[serde(default)]
    pub at_once: bool,
}

impl MigrationRequest {
    /// Name of the destination's back end.
    pub fn backend(&self) -> &str {
        let (_, rest) = self.host.split_once('@').unwrap_or_default();
        rest.split('#').next().unwrap_or_default()
    }
}

/// What a migration must be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Needs {
    /// Users write during the first phase.
    pub writable: bool,
    /// Users notice nothing.
    pub nondisruptive: bool,
    /// All metadata of files is kept.
    pub preserve_metadata: bool,
    /// Snapshots move along.
    pub preserve_snapshots: bool,
}

impl Needs {
    /// Whether anything is needed.
    pub fn any(self) -> bool {
        self != Self::default()
    }

    /// What is needed and not promised, in Manila's words.
    pub fn missing(self, promised: &Compatibility) -> Vec<&'static str> {
        [
            (self.writable && !promised.writable, "writable"),
            (self.nondisruptive && !promised.nondisruptive, "nondisruptive"),
            (self.preserve_metadata && !promised.preserve_metadata, "preserve_metadata"),
            (self.preserve_snapshots && !promised.preserve_snapshots, "preserve_snapshots"),
        ]
        .into_iter()
        .filter_map(|(missing, word)| missing.then_some(word))
        .collect()
    }
}

/// What an instance is to its resource.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Part {
    /// One of its copies.
    #[default]
    Whole,
    /// It is being filled by a migration, and counts for nothing until the switch.
    Incoming,
    /// A migration has left it.
    Outgoing,
}

/// Manila's `task_state` of a share that migrates or did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TaskState {
    /// Accepted.
    Starting,
    /// A place is looked for, the destination is made.
    InProgress,
    /// The driver begins.
    DriverStarting,
    /// The driver carries.
    DriverInProgress,
    /// The driver has carried what it could while users write.
    DriverPhase1Done,
    /// The manager begins to copy.
    CopyingStarting,
    /// The manager copies.
    CopyingInProgress,
    /// The copy is being proven.
    CopyingCompleting,
    /// The manager has copied what it could while users write.
    CopyingCompleted,
    /// A word of Manila's that only an administrator sets here.
    CopyingCancelled,
    /// Likewise.
    CopyingError,
    /// Second phase: the last pass and the switch.
    Completing,
    /// Ended as asked.
    Success,
    /// Ended by an error; the source serves as before.
    Error,
    /// Ended because it was asked to.
    Cancelled,
}

impl TaskState {
    /// All of them.
    pub const ALL: [Self; 15] = [
        Self::Starting,
        Self::InProgress,
        Self::Completing,
        Self::Success,
        Self::Error,
        Self::Cancelled,
        Self::DriverStarting,
        Self::DriverInProgress,
        Self::DriverPhase1Done,
        Self::CopyingStarting,
        Self::CopyingInProgress,
        Self::CopyingCompleting,
        Self::CopyingCompleted,
        Self::CopyingCancelled,
        Self::CopyingError,
    ];

    /// Manila's word.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Starting => "migration_starting",
            Self::InProgress => "migration_in_progress",
            Self::DriverStarting => "migration_driver_starting",
            Self::DriverInProgress => "migration_driver_in_progress",
            Self::DriverPhase1Done => "migration_driver_phase1_done",
            Self::CopyingStarting => "data_copying_starting",
            Self::CopyingInProgress => "data_copying_in_progress",
            Self::CopyingCompleting => "data_copying_completing",
            Self::CopyingCompleted => "data_copying_completed",
            Self::CopyingCancelled => "data_copying_cancelled",
            Self::CopyingError => "data_copying_error",
            Self::Completing => "migration_completing",
            Self::Success => "migration_success",
            Self::Error => "migration_error",
            Self::Cancelled => "migration_cancelled",
        }
    }

    /// The state that a word names.
    pub fn parse(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|state| state.as_str() == word)
    }

    /// Whether the share can do nothing else meanwhile (Manila's BUSY_TASK_STATES).
    pub const fn is_busy(self) -> bool {
        !matches!(
            self,
            Self::Success | Self::Error | Self::Cancelled | Self::CopyingCancelled | Self::CopyingError
        )
    }

    /// Whether it waits to be told to go on.
    pub const fn is_first_phase_done(self) -> bool {
        matches!(self, Self::DriverPhase1Done | Self::CopyingCompleted)
    }
}

impl fmt::Display for TaskState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
