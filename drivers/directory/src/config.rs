//! The driver's settings.

use std::path::PathBuf;

use serde::Deserialize;
use tandem_sdk::{Error, Result, schemars, settings};

/// Settings of a back end of plain folders.
#[derive(Clone, Debug, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The folder that holds everything; made when it is missing. An absolute path, on any local file system.
    pub root: PathBuf,
    /// The name of its one pool.
    #[serde(default = "default_pool")]
    pub pool: String,
    /// Room that shares may be given, in GiB; the file system's when absent.
    #[serde(default)]
    pub capacity_gib: Option<u64>,
    /// Pools mirror to each other within one domain.
    #[serde(default = "default_domain")]
    pub replication_domain: String,
    /// Permissions of a new share's root folder, octal.
    #[serde(default = "default_mode")]
    pub share_mode: String,
}

fn default_pool() -> String {
    "pool".to_owned()
}

fn default_domain() -> String {
    "directory".to_owned()
}

fn default_mode() -> String {
    "0755".to_owned()
}

impl Config {
    /// Refuses what no file system could serve.
    pub(crate) fn check(&self) -> Result<u32> {
        if !self.root.is_absolute() {
            return Err(Error::invalid(format!(
                "`root` is `{}`; it must be an absolute path",
                self.root.display()
            )));
        }
        settings::pool_name(&self.pool)?;
        settings::share_mode(&self.share_mode)
    }
}
