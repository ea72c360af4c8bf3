//! Access rules.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use tandem_contract::{AccessLevel, InstanceId, ResourceId};
use uuid::Uuid;

use crate::clock::Timestamp;

/// Manila's state of a rule on one instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RuleState {
    /// Could not be applied.
    Error,
    /// Waits to be applied.
    QueuedToApply,
    /// Being applied.
    Applying,
    /// Waits to be removed.
    QueuedToDeny,
    /// Being removed.
    Denying,
    /// Holds (or is kept where nothing enforces rules).
    Active,
}

impl RuleState {
    /// Manila's word.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::QueuedToApply => "queued_to_apply",
            Self::Applying => "applying",
            Self::QueuedToDeny => "queued_to_deny",
            Self::Denying => "denying",
            Self::Active => "active",
        }
    }
}

/// A rule that a tenant set on a share.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AccessRule {
    /// Id.
    pub id: Uuid,
    /// Compare-and-set version; 0 before the first write.
    #[serde(skip)]
    pub version: i64,
    /// The share.
    pub share_id: ResourceId,
    /// `ip`, `user`, `cert`, `cephx`.
    pub access_type: String,
    /// To whom.
    pub access_to: String,
    /// What it permits.
    pub access_level: AccessLevel,
    /// Its state on each instance.
    #[serde(default)]
    pub states: BTreeMap<InstanceId, RuleState>,
    /// Whether some storage enforces it; false where the driver's `access_enforcement` is none.
    #[serde(default)]
    pub enforced: bool,
    /// The tenant's names and values.
    #[serde(default)]
    pub metadata: BTreeMap<String, String>,
    /// When it was accepted.
    pub created_at: Timestamp,
    /// When it last changed.
    pub updated_at: Option<Timestamp>,
}

impl AccessRule {
    /// Whether somebody took it back, and some instance may still have it: it is granted to none any more.
    pub fn is_denied(&self) -> bool {
        self.states.values().any(|s| matches!(s, RuleState::QueuedToDeny | RuleState::Denying))
    }

    /// Forgets an instance. Answers whether anything is left of the rule: one that was taken back ends with the last
    /// instance that had it.
    pub(crate) fn forget(&mut self, instance: InstanceId) -> bool {
        let denied = self.is_denied();
        self.states.remove(&instance);
        !(denied && self.states.is_empty())
    }

    /// Its state over all instances: the worst one, in Manila's order; `queued_to_apply` while there is no instance.
    pub fn state(&self) -> RuleState {
        self.states.values().copied().min().unwrap_or(RuleState::QueuedToApply)
    }
}
