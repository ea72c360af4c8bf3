//! The driver's settings.

use std::path::PathBuf;

use serde::Deserialize;
use tandem_sdk::{Error, ExportSettings, Result, schemars, settings};

use crate::drbd::settings::Drbd;
use crate::{Filesystem, names};

/// Settings of a back end of LVM thin volumes.
#[derive(Clone, Debug, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The volume group. It must exist.
    pub group: String,
    /// The devices that the group lies on (its physical volumes), such as `["/dev/disk/by-id/nvme-…"]`. LVM looks at
    /// these and at no others.
    pub devices: Vec<PathBuf>,
    /// The thin pool in the group. It must exist.
    #[serde(default = "default_thin_pool")]
    pub thin_pool: String,
    /// The name of the back end's one pool, as the scheduler shows it; the group's when absent.
    #[serde(default)]
    pub pool: Option<String>,
    /// The folder under which shares are mounted.
    #[serde(default = "default_mounts")]
    pub mounts: PathBuf,
    /// How shares are exported: `{ kind = "none" }` or `{ kind = "nfs", address = "192.0.2.1" }`.
    #[serde(default)]
    pub export: ExportSettings,
    /// Permissions of a new share's root folder, octal.
    #[serde(default = "default_mode")]
    pub share_mode: String,
    /// The file system of shares whose type says nothing of it (`lvm:filesystem`).
    #[serde(default)]
    pub filesystem: Filesystem,
    /// From this fullness of the thin pool on, data or metadata, the pool warns; in percent.
    #[serde(default = "default_warn")]
    pub warn_percent: u8,
    /// From this fullness on no share is made and none grows; in percent.
    #[serde(default = "default_refuse")]
    pub refuse_percent: u8,
    /// The program that runs LVM for the driver; `tandem-lvm-worker` beside the driver's library when absent.
    #[serde(default)]
    pub worker: Option<PathBuf>,
    /// Replication by DRBD; none when absent.
    #[serde(default)]
    pub drbd: Option<Drbd>,
    /// The folder for locks and for LVM's settings; one that a boot empties.
    #[serde(default = "default_run")]
    pub run: PathBuf,
}

fn default_thin_pool() -> String {
    "pool".to_owned()
}

fn default_mounts() -> PathBuf {
    "/srv/tandem".into()
}

fn default_mode() -> String {
    "0755".to_owned()
}

const fn default_warn() -> u8 {
    80
}

const fn default_refuse() -> u8 {
    95
}

fn default_run() -> PathBuf {
    "/run/tandem/lvm".into()
}

impl Config {
    /// Refuses what no pool could serve. The permissions of a share's root.
    pub(crate) fn check(&self) -> Result<u32> {
        for (key, name) in [("group", &self.group), ("thin_pool", &self.thin_pool)] {
            if !names::is_name(name) {
                return Err(Error::invalid(format!("`{key}` is `{name}`, which is no name in LVM")));
            }
        }
        if self.devices.is_empty() {
            return Err(Error::invalid(
                "`devices` is empty; it must name the devices that the volume group lies on",
            ));
        }
        if let Some(odd) = self.devices.iter().find(|d| !d.to_str().is_some_and(names::is_device)) {
            return Err(Error::invalid(format!(
                "`devices` holds `{}`; it must be a path below /dev of letters, digits and `+_.:-`",
                odd.display()
            )));
        }
        let pool = self.pool();
        settings::pool_name(pool)?;
        settings::plain_path("mounts", &self.mounts)?;
        settings::plain_path("run", &self.run)?;
        if self.worker.as_ref().is_some_and(|path| !path.is_absolute()) {
            return Err(Error::invalid("`worker` must be an absolute path"));
        }
        if self.refuse_percent > 100 || self.warn_percent > self.refuse_percent {
            return Err(Error::invalid(
                "`warn_percent` must not be above `refuse_percent`, and that not above 100",
            ));
        }
        if let Some(drbd) = &self.drbd {
            drbd.check()?;
        }
        settings::share_mode(&self.share_mode)
    }

    /// The pool's name towards the manager.
    pub(crate) fn pool(&self) -> &str {
        self.pool.as_deref().unwrap_or(&self.group)
    }

    /// A volume of the group, as LVM's commands name it.
    pub(crate) fn of_group(&self, volume: &str) -> String {
        format!("{}/{volume}", self.group)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(more: serde_json::Value) -> Result<u32> {
        let mut settings = serde_json::json!({"group": "g", "devices": ["/dev/sdb"]});
        settings.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        serde_json::from_value::<Config>(settings).map_err(|e| Error::invalid(e.to_string()))?.check()
    }

    #[test]
    fn settings_are_checked() {
        assert_eq!(check(serde_json::json!({})).unwrap(), 0o755);
        for wrong in [
            serde_json::json!({"group": "a/b"}),
            serde_json::json!({"thin_pool": "-x"}),
            serde_json::json!({"devices": []}),
            serde_json::json!({"devices": ["/dev/sd*"]}),
            serde_json::json!({"devices": ["sdb"]}),
            serde_json::json!({"pool": "a@b"}),
            serde_json::json!({"mounts": "srv"}),
            serde_json::json!({"run": "/run/../etc"}),
            serde_json::json!({"worker": "worker"}),
            serde_json::json!({"filesystem": "btrfs"}),
            serde_json::json!({"filesystem": "ocfs2"}),
            serde_json::json!({"warn_percent": 99}),
            serde_json::json!({"refuse_percent": 101}),
            serde_json::json!({"share_mode": "0655"}),
            serde_json::json!({"colour": "red"}),
        ] {
            assert!(check(wrong.clone()).is_err(), "{wrong}");
        }
    }
}
