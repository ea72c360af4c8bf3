//! What an operator says of Keystone.

use serde::Deserialize;
use std::path::PathBuf;

/// The variable that has the service user's password where no file has it.
pub const PASSWORD_VARIABLE: &str = "TANDEM_KEYSTONE_PASSWORD";

/// Where Keystone is, and as whom it is asked.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct KeystoneSettings {
    /// Its address: `https://keystone.example:5000/v3`.
    pub url: String,
    /// Its address for clients, which a refusal names; `url` when absent.
    pub public_url: Option<String>,
    /// Name of the service user.
    pub username: String,
    /// Name of the service user's domain.
    pub user_domain: String,
    /// Name of the project in which the service user has the role `service`.
    pub project: String,
    /// Name of that project's domain.
    pub project_domain: String,
    /// The file with the password; the variable [`PASSWORD_VARIABLE`] when absent.
    pub password_file: Option<PathBuf>,
    /// Never used: a password does not belong into this file, and is refused without being shown.
    pub password: Option<Hidden>,
    /// Certificates (PEM) of the authorities that Keystone's own may come from; the system's when absent.
    pub ca_file: Option<PathBuf>,
    /// Seconds after which Keystone is asked again about a token: the time in which a revocation is noticed.
    pub check_seconds: u64,
    /// Seconds that Keystone may take for an answer.
    pub timeout_seconds: u64,
    /// How many good tokens are remembered.
    pub cached_tokens: usize,
}

/// Something that was written where it must not be; its content is gone.
#[derive(Debug, Clone)]
pub struct Hidden;

impl<'de> Deserialize<'de> for Hidden {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        serde::de::IgnoredAny::deserialize(deserializer).map(|_| Self)
    }
}

impl Default for KeystoneSettings {
    fn default() -> Self {
        Self {
            url: String::new(),
            public_url: None,
            username: "tandem".into(),
            user_domain: "Default".into(),
            project: "service".into(),
            project_domain: "Default".into(),
            password_file: None,
            password: None,
            ca_file: None,
            check_seconds: 30,
            timeout_seconds: 5,
            cached_tokens: 10_000,
        }
    }
}

impl KeystoneSettings {
    /// Whether the settings can be meant.
    ///
    /// # Errors
    /// A sentence that names the key.
    pub fn check(&self) -> Result<(), String> {
        if self.password.is_some() {
            return Err(format!(
                "auth.keystone.password: a password does not belong into the settings; put it into a file that only the \
                 server can read (auth.keystone.password_file) or into the variable {PASSWORD_VARIABLE}, and change it \
                 if others could read it here."
            ));
        }
        let public = self.public_url.as_deref().map(|url| ("public_url", url));
        for (key, url) in [("url", self.url.as_str())].into_iter().chain(public) {
            let rest = url.strip_prefix("https://").or_else(|| url.strip_prefix("http://"));
            let plain = |c: char| c.is_ascii_graphic() && !"\"\\@?#".contains(c);
            if !rest.is_some_and(|rest| !rest.is_empty() && !rest.starts_with('/') && rest.chars().all(plain))
            {
                return Err(format!(
                    "auth.keystone.{key} must be Keystone's address, such as https://keystone.example:5000/v3."
                ));
            }
        }
        for (key, name) in [
            ("username", &self.username),
            ("user_domain", &self.user_domain),
            ("project", &self.project),
            ("project_domain", &self.project_domain),
        ] {
            if name.is_empty() {
                return Err(format!("auth.keystone.{key} must not be empty."));
            }
        }
        for (key, value) in [("check_seconds", self.check_seconds), ("timeout_seconds", self.timeout_seconds)]
        {
            if !(1..=60).contains(&value) {
                return Err(format!("auth.keystone.{key} must be from 1 to 60."));
            }
        }
        if !(1..=1_000_000).contains(&self.cached_tokens) {
            return Err("auth.keystone.cached_tokens must be from 1 to 1000000.".into());
        }
        Ok(())
    }

    /// The address with the version, without a slash at its end.
    pub(super) fn base(&self) -> String {
        let url = self.url.trim_end_matches('/');
        format!("{}/v3", url.strip_suffix("/v3").unwrap_or(url))
    }

    /// Whether the password would cross a network in the clear.
    pub(super) fn is_in_the_clear(&self) -> bool {
        let local = |rest: &str| {
            ["127.0.0.1", "localhost", "[::1]"].iter().any(|host| {
                rest.strip_prefix(host).is_some_and(|rest| rest.is_empty() || rest.starts_with([':', '/']))
            })
        };
        self.url.strip_prefix("http://").is_some_and(|rest| !local(rest))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(url: &str) -> KeystoneSettings {
        KeystoneSettings { url: url.into(), ..KeystoneSettings::default() }
    }

    #[test]
    fn the_version_may_be_left_out() {
        for url in ["http://k:5000", "http://k:5000/", "http://k:5000/v3", "http://k:5000/v3/"] {
            assert_eq!(at(url).base(), "http://k:5000/v3");
        }
        assert_eq!(at("https://k/identity/v3").base(), "https://k/identity/v3");
    }

    #[test]
    fn what_cannot_be_meant_is_refused() {
        at("https://k/identity").check().unwrap();
        for url in
            ["", "k:5000", "ftp://k", "http://", "http:///v3", "http://a:b@k/", "http://k/\" x", "http://k?a"]
        {
            assert!(at(url).check().unwrap_err().contains("auth.keystone.url"), "{url}");
        }
        let odd = KeystoneSettings { public_url: Some("k".into()), ..at("http://k") };
        assert!(odd.check().unwrap_err().contains("public_url"));
        for seconds in [0, 61] {
            let odd = KeystoneSettings { check_seconds: seconds, ..at("http://k") };
            assert!(odd.check().unwrap_err().contains("check_seconds"));
        }
    }

    #[test]
    fn passwords_go_in_the_clear_over_loopback_only() {
        for (url, clear) in [
            ("http://127.0.0.1:5000/v3", false),
            ("http://localhost/v3", false),
            ("https://k/v3", false),
            ("http://[::1]:5000", false),
            ("http://localhost.example", true),
            ("http://k:5000", true),
        ] {
            assert_eq!(at(url).is_in_the_clear(), clear, "{url}");
        }
    }
}
