//! The `export` setting of a driver.

use std::net::IpAddr;
use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tandem_contract::{Error, Result};

/// How shares are exported: `{ kind = "none" }` or `{ kind = "nfs", address = "192.0.2.1" }`.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum ExportSettings {
    /// Not at all: a share is reached by its path on this host, and access rules are not enforced.
    None {},
    /// By this host's kernel NFS server.
    Nfs(NfsSettings),
}

impl Default for ExportSettings {
    fn default() -> Self {
        Self::None {}
    }
}

/// Exports by the kernel's NFS server.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct NfsSettings {
    /// The address or name by which clients reach this host; the part before the colon of an export location.
    pub address: String,
    /// Whether a client's root is nobody. Off by default, since the tenant's own root sets up a share.
    #[serde(default)]
    pub root_squash: bool,
    /// Further options of exports(5) for every export, such as `sec=krb5p` or `fsid=…`.
    #[serde(default)]
    pub options: Vec<String>,
    /// Where the open exports are noted; a folder that a boot empties.
    #[serde(default = "default_run")]
    pub run: PathBuf,
    /// The exportfs tool.
    #[serde(default = "default_exportfs")]
    pub exportfs: PathBuf,
}

fn default_run() -> PathBuf {
    "/run/tandem/exports".into()
}

fn default_exportfs() -> PathBuf {
    "/usr/sbin/exportfs".into()
}

/// What must not be said twice, or would undo what the driver says.
const OURS: &[&str] = &["ro", "rw", "root_squash", "no_root_squash", "mp", "mountpoint", "async", "nohide"];

impl NfsSettings {
    pub(super) fn checked(&self) -> Result<Self> {
        let plain = |c: char| c.is_ascii_alphanumeric() || ".-_:".contains(c);
        if self.address.is_empty() || !self.address.chars().all(plain) {
            return Err(Error::invalid(format!(
                "`export.address` is `{}`; it must be the address or name by which clients reach this host",
                self.address
            )));
        }
        for option in &self.options {
            let word = option.split('=').next().unwrap_or_default();
            let plain = |c: char| c.is_ascii_graphic() && !"(),\"\\".contains(c);
            if word.is_empty() || !option.chars().all(plain) || OURS.contains(&word) {
                return Err(Error::invalid(format!(
                    "`export.options` holds `{option}`, which is no option of exports(5) or is the driver's to set"
                )));
            }
        }
        for (key, path) in [("run", &self.run), ("exportfs", &self.exportfs)] {
            if !path.is_absolute() {
                return Err(Error::invalid(format!("`export.{key}` must be an absolute path")));
            }
        }
        Ok(self.clone())
    }

    /// The address as it stands before a colon.
    pub(super) fn shown_address(&self) -> String {
        match self.address.parse() {
            Ok(IpAddr::V6(address)) => format!("[{address}]"),
            _ => self.address.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<NfsSettings> {
        let parsed: ExportSettings = serde_json::from_str(text).map_err(|e| Error::invalid(e.to_string()))?;
        match parsed {
            ExportSettings::Nfs(nfs) => nfs.checked(),
            ExportSettings::None {} => Err(Error::invalid("none")),
        }
    }

    #[test]
    fn settings_are_checked() {
        assert!(parse(r#"{"kind":"nfs","address":"192.0.2.1","options":["sec=krb5p"]}"#).is_ok());
        for wrong in [
            r#"{"kind":"nfs"}"#,
            r#"{"kind":"nfs","address":""}"#,
            r#"{"kind":"nfs","address":"a b"}"#,
            r#"{"kind":"nfs","address":"a","options":["rw"]}"#,
            r#"{"kind":"nfs","address":"a","options":["sec=sys,rw"]}"#,
            r#"{"kind":"nfs","address":"a","run":"here"}"#,
            r#"{"kind":"nfs","address":"a","port":1}"#,
            r#"{"kind":"smb"}"#,
            r#"{"kind":"none","address":"a"}"#,
        ] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
        assert!(serde_json::from_str::<ExportSettings>(r#"{"kind":"none"}"#).is_ok());
    }

    #[test]
    fn an_address_of_version_6_is_bracketed() {
        let of = |a: &str| parse(&format!(r#"{{"kind":"nfs","address":"{a}"}}"#)).unwrap().shown_address();
        assert_eq!(of("2001:db8::1"), "[2001:db8::1]");
        assert_eq!(of("192.0.2.1"), "192.0.2.1");
        assert_eq!(of("nas.example"), "nas.example");
    }
}
