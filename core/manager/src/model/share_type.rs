//! Share types: what an administrator offers.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use tandem_contract::Style;
use uuid::Uuid;

use crate::clock::Timestamp;

/// Seconds a replica may be behind and still count as `in_sync`, where the type does not say.
pub const DEFAULT_RPO_SECONDS: u64 = 60;

/// A share type with its extra specs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ShareType {
    /// Id.
    pub id: Uuid,
    /// Compare-and-set version; 0 before the first write.
    #[serde(skip)]
    pub version: i64,
    /// Unique name.
    pub name: String,
    /// Description.
    pub description: Option<String>,
    /// Whether every project may use it.
    pub is_public: bool,
    /// Extra specs, Manila's and ours.
    pub extra_specs: BTreeMap<String, String>,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it last changed.
    pub updated_at: Option<Timestamp>,
}

/// What becomes of two sides that each have what the other lacks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnSplitBrain {
    /// `wait`: they are left alone until somebody says which one is to be kept.
    #[default]
    Wait,
    /// `discard-secondary`, as DRBD's drbd.conf(5) calls it: what only the replica has is given up, and it follows the active one.
    DiscardSecondary,
}

impl OnSplitBrain {
    /// What the word of an extra spec means.
    pub fn named(word: &str) -> Option<Self> {
        match word.trim() {
            "wait" => Some(Self::Wait),
            "discard-secondary" => Some(Self::DiscardSecondary),
            _ => None,
        }
    }
}

impl ShareType {
    /// `replication_type`, when it names a style.
    pub fn replication(&self) -> Option<Style> {
        self.extra_specs.get("replication_type").and_then(|word| Style::parse(word))
    }

    /// `replication:rpo_seconds`, at least 1.
    pub fn rpo_seconds(&self) -> u64 {
        self.extra_specs
            .get("replication:rpo_seconds")
            .and_then(|text| text.trim().parse().ok())
            .filter(|&seconds| seconds > 0)
            .unwrap_or(DEFAULT_RPO_SECONDS)
    }

    /// `replication:split_brain`: who is right where two sides each have what the other lacks.
    pub fn on_split_brain(&self) -> OnSplitBrain {
        let word = self.extra_specs.get("replication:split_brain");
        word.and_then(|word| OnSplitBrain::named(word)).unwrap_or_default()
    }

    /// Manila's snapshot words: snapshot_support, create_share_from_snapshot_support, revert_to_snapshot_support,
    /// mount_snapshot_support.
    pub fn snapshot_support(&self) -> [bool; 4] {
        [
            "snapshot_support",
            "create_share_from_snapshot_support",
            "revert_to_snapshot_support",
            "mount_snapshot_support",
        ]
        .map(|spec| self.flag(spec))
    }

    /// A boolean extra spec as Manila reads it (`True`, `<is> True`, …).
    pub fn flag(&self, name: &str) -> bool {
        self.extra_specs.get(name).is_some_and(|value| {
            let word = value.trim().trim_start_matches("<is>").trim();
            ["true", "1", "yes", "on", "t", "y"].iter().any(|yes| word.eq_ignore_ascii_case(yes))
        })
    }
}
