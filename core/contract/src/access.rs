//! Access rules, as Manila's.

use serde::{Deserialize, Serialize};

/// One rule a tenant set.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct AccessRule {
    /// The rule's id, as the tenant sees it.
    pub id: uuid::Uuid,
    /// `ip`, `user`, `cert`, `cephx`.
    pub access_type: String,
    /// An address or network, a name, …
    pub access_to: String,
    /// Read-write or read-only.
    pub access_level: AccessLevel,
}

/// What a rule permits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AccessLevel {
    /// Read and write.
    Rw,
    /// Read only; also what an unknown word means, since it grants least.
    #[serde(other)]
    Ro,
}

/// What became of one rule.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RuleReport {
    /// The rule.
    pub id: uuid::Uuid,
    /// Whether the storage enforces it.
    pub enforced: bool,
    /// Why it could not be applied; a sentence. `None` when it was, or when nothing enforces rules here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}
