//! The settings of the style `writable`.

use serde::Deserialize;
use tandem_sdk::{Result, schemars};

use super::arbiter::Arbiter;

/// What a host needs so that shares can be written to on it and on another one at once.
#[derive(Clone, Debug, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Writable {
    /// Who decides which side goes on when the two lose each other.
    pub arbiter: Arbiter,
}

impl Writable {
    /// Refuses what could not work.
    pub(crate) fn check(&self) -> Result<()> {
        self.arbiter.check()
    }
}
