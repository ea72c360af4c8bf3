//! The arbiter of the style `writable`, as the settings name it.

use std::path::PathBuf;

use serde::Deserialize;
use tandem_sdk::{Error, Result, schemars};

/// The arbiter: the server itself, as this host reaches it.
#[derive(Clone, Debug, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Arbiter {
    /// Its address, such as `https://tandem.example`. It should be reached another way than the peer is.
    pub url: String,
    /// The file with the secret of this back end, the same as the server's `claim_secret_file`. Nobody else may read it.
    pub secret_file: PathBuf,
    /// The file of the authorities that the server's certificate may come from; the system's when absent.
    #[serde(default)]
    pub ca_file: Option<PathBuf>,
}

impl Arbiter {
    /// Refuses what nobody could be asked with.
    pub(crate) fn check(&self) -> Result<()> {
        let Self { url, secret_file, ca_file } = self;
        let rest = url.strip_prefix("https://").or_else(|| url.strip_prefix("http://"));
        let plain = |c: char| c.is_ascii_alphanumeric() || "-._~:/[]".contains(c);
        if !rest
            .is_some_and(|rest| !rest.is_empty() && !rest.starts_with([':', '/']) && rest.chars().all(plain))
        {
            return Err(Error::invalid(format!(
                "`drbd.writable.arbiter.url` is `{url}`; it is the server's address, as `https://tandem.example:8786`"
            )));
        }
        let files = [("secret_file", Some(secret_file)), ("ca_file", ca_file.as_ref())];
        match files.into_iter().find(|(_, file)| file.is_some_and(|file| !file.is_absolute())) {
            Some((key, _)) => {
                Err(Error::invalid(format!("`drbd.writable.arbiter.{key}` must be an absolute path")))
            }
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_checked() {
        let of = |arbiter: serde_json::Value| {
            serde_json::from_value::<Arbiter>(arbiter)
                .map_err(|e| e.to_string())?
                .check()
                .map_err(|e| e.to_string())
        };
        for url in ["https://tandem.example", "http://192.0.2.9:8786/", "https://[2001:db8::1]:8786/tandem"] {
            assert_eq!(of(serde_json::json!({"url": url, "secret_file": "/etc/s"})), Ok(()), "{url}");
        }
        for wrong in [
            serde_json::json!({}),
            serde_json::json!({"url": "https://a"}),
            serde_json::json!({"url": "tandem.example", "secret_file": "/etc/s"}),
            serde_json::json!({"url": "https://", "secret_file": "/etc/s"}),
            serde_json::json!({"url": "https:///x", "secret_file": "/etc/s"}),
            serde_json::json!({"url": "https://me:word@a", "secret_file": "/etc/s"}),
            serde_json::json!({"url": "https://a/?b", "secret_file": "/etc/s"}),
            serde_json::json!({"url": "ftp://a", "secret_file": "/etc/s"}),
            serde_json::json!({"url": "https://a", "secret_file": "s"}),
            serde_json::json!({"url": "https://a", "secret_file": "/s", "ca_file": "ca.pem"}),
            serde_json::json!({"url": "https://a", "secret": "x"}),
        ] {
            assert!(of(wrong.clone()).is_err(), "{wrong}");
        }
    }
}
