//! The driver's settings.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use tandem_sdk::{Error, ExportSettings, Result, schemars, settings};

use crate::names;

/// Settings of a back end of ZFS datasets.
#[derive(Clone, Debug, Deserialize, Serialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The dataset that holds everything, such as `tank/tandem`; made when it is missing. Its ZFS pool must exist.
    pub dataset: String,
    /// The name of the back end's one pool, as the scheduler shows it; the ZFS pool's when absent.
    #[serde(default)]
    pub pool: Option<String>,
    /// The folder under which shares are mounted.
    #[serde(default = "default_mounts")]
    pub mounts: PathBuf,
    /// How shares are exported: `{ kind = "none" }` or `{ kind = "nfs", address = "192.0.2.1" }`.
    #[serde(default)]
    pub export: ExportSettings,
    /// Pools mirror to each other within one domain.
    #[serde(default = "default_domain")]
    pub replication_domain: String,
    /// Permissions of a new share's root folder, octal.
    #[serde(default = "default_mode")]
    pub share_mode: String,
    /// Where the key of encrypted replicas is read from, as `zfs load-key -L` takes it (`file:///etc/tandem/zfs.key`);
    /// without it somebody has to load the key before such a replica can be mounted.
    #[serde(default)]
    pub key_location: Option<String>,
    /// Whether the manager may copy an encrypted share from host to host, which is how one moves that its driver cannot move:
    /// the copy is encrypted only if where it goes is.
    #[serde(default)]
    pub copy_encrypted: bool,
    /// Whether deleting a share also destroys snapshots that somebody else made of it; refused otherwise.
    #[serde(default)]
    pub delete_foreign_snapshots: bool,
    /// The folder for locks and the like; one that a boot empties.
    #[serde(default = "default_run")]
    pub run: PathBuf,
}

fn default_mounts() -> PathBuf {
    "/srv/tandem".into()
}

fn default_domain() -> String {
    "zfs".to_owned()
}

fn default_mode() -> String {
    "0755".to_owned()
}

fn default_run() -> PathBuf {
    "/run/tandem/zfs".into()
}

impl Config {
    /// Refuses what no pool could serve. The permissions of a share's root.
    pub(crate) fn check(&self) -> Result<u32> {
        if !names::is_dataset(&self.dataset) || !self.dataset.contains('/') {
            return Err(Error::invalid(format!(
                "`dataset` is `{}`; it must be a dataset below a ZFS pool, such as `tank/tandem`",
                self.dataset
            )));
        }
        let pool = self.pool();
        settings::pool_name(pool)?;
        settings::plain_path("mounts", &self.mounts)?;
        settings::plain_path("run", &self.run)?;
        if self.key_location.as_ref().is_some_and(|l| !l.starts_with("file:///")) {
            return Err(Error::invalid("`key_location` must be a URL such as `file:///etc/tandem/zfs.key`"));
        }
        settings::share_mode(&self.share_mode)
    }

    /// The ZFS pool.
    pub(crate) fn zpool(&self) -> &str {
        names::pool_of(&self.dataset)
    }

    /// The pool's name towards the manager.
    pub(crate) fn pool(&self) -> &str {
        self.pool.as_deref().unwrap_or_else(|| self.zpool())
    }
}
