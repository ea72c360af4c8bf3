//! Progress: what a person watching a long call sees.

use serde::{Deserialize, Serialize};

/// How far a call is. `done` never falls within one operation, and reaches a stated total only on success.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// What is being done now, in a word or two (`scan`, `transfer`, `verify`, `resync`).
    pub phase: String,
    /// Bytes done so far.
    pub done: u64,
    /// Bytes in all, when known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub total: Option<u64>,
    /// Whether `total` is only an estimate.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub estimate: bool,
    /// What the call waits for, when it does not move.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub blocked_on: Option<String>,
    /// What is being worked on, e.g. a file's path (lossy when not UTF-8).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub current: Option<String>,
}

impl Progress {
    /// Progress of `done` bytes of `total` in `phase`.
    pub fn of(phase: impl Into<String>, done: u64, total: Option<u64>) -> Self {
        Self { phase: phase.into(), done, total, ..Self::default() }
    }

    /// Whole percent, at most 99 until the call has ended; `None` without a total.
    pub fn percent(&self) -> Option<u8> {
        let total = self.total?;
        if total == 0 {
            return Some(0);
        }
        Some((u128::from(self.done) * 100 / u128::from(total)).min(99) as u8)
    }
}
