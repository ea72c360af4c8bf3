//! Quotas and what is in use.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// What quotas count.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Counted {
    /// Shares.
    Shares,
    /// GiB of shares.
    Gigabytes,
    /// Instances of replicated shares, the active ones included, as Manila counts.
    ShareReplicas,
    /// GiB of those.
    ReplicaGigabytes,
}

impl Counted {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Shares, Self::Gigabytes, Self::ShareReplicas, Self::ReplicaGigabytes];

    /// Manila's word.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Shares => "shares",
            Self::Gigabytes => "gigabytes",
            Self::ShareReplicas => "share_replicas",
            Self::ReplicaGigabytes => "replica_gigabytes",
        }
    }
}

/// A project's limits, where they differ from the defaults. Keys are Manila's (`shares`, `snapshots`, …); -1 is
/// unlimited. Keys that nothing here counts are kept and shown.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Quota {
    /// The project.
    pub project_id: String,
    /// Compare-and-set version; 0 before the first write.
    #[serde(skip)]
    pub version: i64,
    /// Limits.
    pub limits: BTreeMap<String, i64>,
}

/// What a project uses. Written in the same transaction as what changes it, so two requests cannot both take the last
/// of it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Usage {
    /// The project.
    pub project_id: String,
    /// Compare-and-set version; 0 before the first write.
    #[serde(skip)]
    pub version: i64,
    /// In use, by [`Counted`].
    pub in_use: BTreeMap<Counted, i64>,
}

impl Usage {
    /// How much of it is in use.
    pub fn of(&self, what: Counted) -> i64 {
        self.in_use.get(&what).copied().unwrap_or(0)
    }

    /// Adds to (or takes from) it; never below zero.
    pub fn add(&mut self, what: Counted, amount: i64) {
        let entry = self.in_use.entry(what).or_default();
        *entry = (*entry + amount).max(0);
    }
}

/// Manila's default limits (`quota.*` options of Manila 23).
pub fn default_limits() -> BTreeMap<String, i64> {
    [
        ("shares", 50),
        ("gigabytes", 1000),
        ("snapshots", 50),
        ("snapshot_gigabytes", 1000),
        ("share_networks", 10),
        ("share_groups", 50),
        ("share_group_snapshots", 50),
        ("share_replicas", 100),
        ("replica_gigabytes", 1000),
        ("per_share_gigabytes", -1),
        ("backups", 10),
        ("backup_gigabytes", 1000),
        ("encryption_keys", 100),
    ]
    .into_iter()
    .map(|(key, value)| (key.to_owned(), value))
    .collect()
}
