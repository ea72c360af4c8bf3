//! The types of the face of the manager: what requests carry and what is shown that is not stored.

use std::collections::BTreeMap;

use serde::Serialize;
use tandem_contract::{AccessLevel, Capabilities, Epoch, Pool};
use uuid::Uuid;

use crate::clock::Timestamp;

/// Who asks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Caller {
    /// User.
    pub user_id: String,
    /// Project.
    pub project_id: String,
    /// Whether policy lets the caller act as administrator in this request (promote what is not in sync).
    pub admin: bool,
    /// `req-…`, for the operation's record.
    pub request_id: Option<String>,
}

/// A share to make.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct NewShare {
    /// Name.
    pub name: Option<String>,
    /// Description.
    pub description: Option<String>,
    /// GiB, at least 1.
    pub size_gb: u64,
    /// `NFS`, `CIFS`, …; upper case.
    pub protocol: String,
    /// Share type.
    pub share_type_id: Uuid,
    /// Zone wished for.
    pub availability_zone: Option<String>,
    /// Public.
    pub is_public: bool,
    /// Names and values.
    pub metadata: BTreeMap<String, String>,
    /// Only on this pool (Manila's `scheduler_hints.only_host`).
    pub only_host: Option<String>,
}

/// What to change of a share; `None` leaves as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ShareChange {
    /// Name; `Some(None)` takes it away.
    pub name: Option<Option<String>>,
    /// Description; `Some(None)` takes it away.
    pub description: Option<Option<String>>,
    /// Public.
    pub is_public: Option<bool>,
}

/// A rule to add.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewRule {
    /// `ip`, `user`, `cert`, `cephx`; checked by the API.
    pub access_type: String,
    /// To whom; checked by the API.
    pub access_to: String,
    /// What it permits.
    pub access_level: AccessLevel,
    /// Names and values.
    pub metadata: BTreeMap<String, String>,
}

/// A replica to make.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NewReplica {
    /// Zone wished for.
    pub availability_zone: Option<String>,
    /// Names and values.
    pub metadata: BTreeMap<String, String>,
    /// Only on this pool (Manila's `scheduler_hints.only_host`).
    pub only_host: Option<String>,
}

/// A share type to make.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NewType {
    /// Unique name.
    pub name: String,
    /// Description.
    pub description: Option<String>,
    /// For every project.
    pub is_public: bool,
    /// Extra specs; `driver_handles_share_servers` must be among them (checked by the API).
    pub extra_specs: BTreeMap<String, String>,
}

/// What to change of a share type; `None` leaves as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TypeChange {
    /// Name.
    pub name: Option<String>,
    /// Description; `Some(None)` takes it away.
    pub description: Option<Option<String>>,
    /// For every project.
    pub is_public: Option<bool>,
}

/// What metadata is changed to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MetadataChange {
    /// These join or replace those of the same name.
    Merge(BTreeMap<String, String>),
    /// These and no others.
    Replace(BTreeMap<String, String>),
    /// This one goes; `NotFound` is the API's to say, by reading first.
    Remove(String),
}

/// Whether a back end serves.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum BackendState {
    /// It does.
    Up,
    /// It does not; a sentence says why. Its driver is asked again from time to time.
    Down {
        /// Why.
        reason: String,
    },
}

/// A back end, as the APIs show it.
#[derive(Clone, Debug, Serialize)]
pub struct BackendView {
    /// Its name in the settings.
    pub name: String,
    /// `host` of `host@backend`.
    pub host: String,
    /// Its driver's name and version.
    pub driver: String,
    /// Version of that driver.
    pub driver_version: String,
    /// Zone.
    pub availability_zone: String,
    /// Whether it serves.
    #[serde(flatten)]
    pub state: BackendState,
    /// When `state` last changed.
    pub since: Timestamp,
    /// What it can do; default (nothing) when it never answered.
    pub capabilities: Capabilities,
    /// Its pools as last asked.
    pub pools: Vec<Pool>,
    /// Percent kept free, in scheduling.
    pub reserved_percentage: u32,
    /// How many times the total a thin pool may be promised.
    pub max_over_subscription_ratio: f64,
    /// When pools were last asked.
    pub pools_at: Option<Timestamp>,
}

/// A pool with what the scheduler knows of it: what `scheduler-stats/pools/detail` shows.
#[derive(Clone, Debug)]
pub struct PoolView {
    /// `host@backend#pool`.
    pub address: crate::model::PoolAddress,
    /// Zone of its back end.
    pub availability_zone: String,
    /// Its back end.
    pub backend: BackendView,
    /// The pool.
    pub pool: Pool,
    /// Bytes promised to instances there, by the store.
    pub provisioned_bytes: u64,
}

/// What the arbiter says to one side of a share whose sides are cut off from each other.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "outcome", rename_all = "snake_case")]
pub enum Verdict {
    /// It goes on, at this epoch.
    Won {
        /// The epoch.
        epoch: Epoch,
    },
    /// It does not: it takes no writes until it has followed.
    Lost {
        /// Why, as a sentence.
        why: String,
    },
}

/// How far behind a replica is, by the manager's clock.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Lag {
    /// Seconds since its newest point; 0 while the active one is unchanged since. `None` without a point.
    pub seconds: Option<u64>,
    /// Bytes, where the driver can tell.
    pub bytes: Option<u64>,
}

/// What a migration would do.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct MigrationCheck {
    /// Where it would go.
    pub host: String,
    /// `driver`, `points` (as a replica is, by the streams of both drivers),
    /// `peers` (as a replica is, by storage that replicates by itself), `host` (the manager copies), `none` (it is there already), or empty when it cannot be.
    pub approach: &'static str,
    /// Why it cannot be, a sentence each; empty when it can.
    pub refused: Vec<String>,
    /// Whether users can write during the first phase.
    pub writable: bool,
    /// Whether users notice nothing.
    pub nondisruptive: bool,
    /// What users notice, in words.
    pub interruption: String,
    /// What does not come along.
    pub lost: Vec<String>,
    /// Bytes to be carried, where the storage can tell.
    pub bytes: Option<u64>,
    /// Seconds that the first phase may take: an estimate.
    pub seconds: Option<u64>,
    /// Seconds for which users may be unable to write: an estimate, where little is written meanwhile.
    pub interruption_seconds: Option<u64>,
}

impl MigrationCheck {
    pub(crate) fn refuse(&mut self, why: String) {
        self.refused.push(why);
    }
}

/// Everything a law of the manager forbids and that was found nevertheless.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// Number of the law in `docs/states.md`; 0 for an orphan on storage.
    pub law: u32,
    /// `error` breaks a law; `notice` is a logged exception (an admin's reset, a back end that cannot be asked).
    pub severity: &'static str,
    /// What it is about: a share, an instance, an operation, a back end.
    pub subject: String,
    /// A sentence: what is wrong and what to do.
    pub message: String,
}

/// How the manager runs. Every figure has a default that serves.
#[derive(Clone, Debug, PartialEq, serde::Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// The `host` of `host@backend#pool`; set by whoever starts the manager.
    #[serde(skip)]
    pub host: String,
    /// Syncs that run at once.
    pub concurrent_syncs: usize,
    /// Seconds between two looks at each back end's pools and health.
    pub pool_interval_seconds: u64,
    /// Seconds between two looks at what is in error.
    pub heal_interval_seconds: u64,
    /// Seconds a call without a transfer inside may take.
    pub call_deadline_seconds: u64,
    /// Seconds a transfer, or the making of a point, may go without any progress.
    pub stall_deadline_seconds: u64,
    /// Days for which ended syncs and content checks are kept in the log.
    pub keep_sync_days: u64,
    /// Bytes a second of each transfer, at most; unlimited when absent.
    pub bandwidth: Option<u64>,
    /// How contents are checked; set by whoever starts the manager.
    #[serde(skip)]
    pub verify: VerifySettings,
    /// Where copies from host to host note what they have read; set by whoever starts the manager. What is lost there
    /// is read again.
    #[serde(skip)]
    pub work_dir: std::path::PathBuf,
}

/// How replicas are checked against what their active instance holds.
#[derive(Clone, Debug, PartialEq, Eq, serde::Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct VerifySettings {
    /// Between two checks of a replica: `30d`, `12h`, `90m`, or `off`.
    #[serde(deserialize_with = "interval")]
    pub interval: Option<std::time::Duration>,
    /// Bytes that a check reads a second on each side, at most; 50 MB/s when absent, 0 for no limit.
    pub bandwidth: Option<u64>,
    /// Checks that run at once.
    pub concurrent: usize,
}

impl Default for VerifySettings {
    fn default() -> Self {
        Self {
            // Reading everything costs what the operator should have asked for.
            interval: None,
            bandwidth: Some(50_000_000),
            concurrent: 1,
        }
    }
}

/// A whole number and its unit.
fn interval<'de, D: serde::Deserializer<'de>>(from: D) -> Result<Option<std::time::Duration>, D::Error> {
    let text = <String as serde::Deserialize>::deserialize(from)?;
    if text == "off" {
        return Ok(None);
    }
    let unit = |last: char| match last {
        'd' => Some(24 * 3600),
        'h' => Some(3600),
        'm' => Some(60),
        _ => None,
    };
    let read = || {
        let seconds = unit(text.chars().last()?)?;
        let number: u64 = text[..text.len() - 1].parse().ok()?;
        number.checked_mul(seconds).filter(|seconds| (60..=3650 * 24 * 3600).contains(seconds))
    };
    match read() {
        Some(seconds) => Ok(Some(std::time::Duration::from_secs(seconds))),
        None => Err(serde::de::Error::custom(format!(
            "`{text}` is no interval: a whole number with d, h or m behind it, from 1m to 3650d; or `off`"
        ))),
    }
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            host: "localhost".into(),
            concurrent_syncs: 4,
            pool_interval_seconds: 10,
            heal_interval_seconds: 10,
            call_deadline_seconds: 60,
            stall_deadline_seconds: 120,
            keep_sync_days: 7,
            bandwidth: None,
            verify: VerifySettings::default(),
            work_dir: std::env::temp_dir().join("tandem-copies"),
        }
    }
}
