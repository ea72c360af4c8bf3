//! The settings file: one struct, every key of which `docs/operating.md` explains.
//!
//! What is unknown is refused with the key's name, so that a typing error never becomes a default. The sample files in
//! `docs/samples` are loaded by the tests below, the invalid ones with the sentence they must give.

use serde::Deserialize;
use std::collections::{BTreeMap, HashSet};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use tandem_host::remote::{TlsFiles, host_name};
use tandem_server::auth::{Authenticator as _, KeystoneSettings, NoAuth};

/// Everything that an operator decides.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Settings {
    /// Address and port to serve on.
    pub(crate) listen: SocketAddr,
    /// `host` of `host@backend#pool`; the machine's name when absent.
    pub(crate) host: Option<String>,
    /// Folder of the database and of everything else that must survive a restart.
    pub(crate) state: PathBuf,
    /// Folder of the drivers (`*.so`).
    pub(crate) plugins: PathBuf,
    /// What is logged, and how.
    pub(crate) log: Log,
    /// Who may come in.
    pub(crate) auth: Auth,
    /// Who may do what.
    pub(crate) policy: Policy,
    /// Where state is stored.
    pub(crate) database: Database,
    /// What the API offers.
    pub(crate) api: Api,
    /// How the manager runs: deadlines, intervals, transfers.
    pub(crate) manager: tandem_manager::Settings,
    /// How replicas are checked against what their active instance holds.
    pub(crate) verify: tandem_manager::VerifySettings,
    /// How the server ends.
    pub(crate) shutdown: Shutdown,
    /// Who this server is, where drivers run on other hosts.
    pub(crate) tls: Option<TlsFiles>,
    /// Other hosts on which drivers run, by name.
    pub(crate) hosts: BTreeMap<String, Host>,
    /// The program that runs drivers in processes of their own; beside this one when absent.
    pub(crate) driver_host: Option<PathBuf>,
    /// The configured drivers.
    pub(crate) backends: Vec<Backend>,
}

/// A host on which a `tandem-driver-host` runs.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Host {
    /// Address (or DNS name) and port.
    pub(crate) address: String,
}

/// Where a driver's code runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Runs {
    /// In the server.
    #[default]
    Local,
    /// In a process of its own on this machine.
    Process,
}

/// What is logged, and how. The log goes to standard error.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Log {
    /// For people or for machines.
    pub(crate) format: LogFormat,
    /// Levels, by module where needed: `info`, `warn,tandem_manager=debug`.
    pub(crate) filter: String,
}

/// How a line of the log looks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum LogFormat {
    /// One line for people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// Who may come in.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Auth {
    /// How callers are known.
    pub(crate) mode: AuthMode,
    /// The file of hashed tokens, for `tokens`.
    pub(crate) tokens_file: Option<PathBuf>,
    /// Where Keystone is and as whom it is asked, for `keystone`.
    pub(crate) keystone: Option<KeystoneSettings>,
    /// Lets `noauth` listen beyond loopback. Everybody who reaches the port is then an administrator.
    pub(crate) noauth_beyond_loopback: bool,
}

/// How callers are known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum AuthMode {
    /// Everybody is the administrator; on loopback only.
    #[default]
    Noauth,
    /// By a token of the file.
    Tokens,
    /// By a token of OpenStack's identity service.
    Keystone,
}

/// Who may do what.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Policy {
    /// Rules over Manila's defaults, in oslo.policy's language (`policy.yaml` or `policy.json`).
    pub(crate) file: Option<PathBuf>,
}

/// Where state is stored.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Database {
    /// `sqlite:///path/to/file`, or a path within the state folder; `tandem.db` there when absent.
    pub(crate) url: Option<String>,
}

/// What the API offers.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Api {
    /// What links in answers start with (`https://storage.example`), behind a proxy; the request's own address when
    /// absent.
    pub(crate) public_url: Option<String>,
    /// Name of the share type that a share gets when none is asked for.
    pub(crate) default_share_type: String,
    /// Share protocols that may be asked for.
    pub(crate) protocols: Vec<String>,
}

/// How the server ends.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Shutdown {
    /// Seconds that requests and driver calls get to end by themselves. What has not ended by then is carried on by
    /// the next start.
    pub(crate) drain_seconds: u64,
}

/// One configured driver.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Backend {
    /// `backend` of `host@backend#pool`.
    pub(crate) name: String,
    /// The driver's name, as its plug-in says it.
    pub(crate) driver: String,
    /// Where its code runs on this machine.
    #[serde(default)]
    pub(crate) runs: Runs,
    /// The host on which its code runs instead, one of `hosts`.
    #[serde(default)]
    pub(crate) host: Option<String>,
    /// Its zone.
    #[serde(default = "default_zone")]
    pub(crate) availability_zone: String,
    /// Handed to the driver, which checks it.
    #[serde(default)]
    pub(crate) settings: serde_json::Map<String, serde_json::Value>,
    /// The file of the secret with which its host claims that a side of a `writable` share goes on; without one it cannot.
    #[serde(default)]
    pub(crate) claim_secret_file: Option<PathBuf>,
    /// Percent of each pool that no new share may take.
    #[serde(default)]
    pub(crate) reserved_percentage: u32,
    /// How many times its total a thin pool may be promised.
    #[serde(default = "default_over_subscription")]
    pub(crate) max_over_subscription_ratio: f64,
}

fn default_zone() -> String {
    "nova".into()
}

fn default_over_subscription() -> f64 {
    20.0
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 8786)),
            host: None,
            state: "/var/lib/tandem".into(),
            plugins: "/usr/lib/tandem/plugins".into(),
            log: Log::default(),
            auth: Auth::default(),
            policy: Policy::default(),
            database: Database::default(),
            api: Api::default(),
            manager: tandem_manager::Settings::default(),
            verify: tandem_manager::VerifySettings::default(),
            shutdown: Shutdown::default(),
            tls: None,
            hosts: BTreeMap::new(),
            driver_host: None,
            backends: Vec::new(),
        }
    }
}

impl Default for Log {
    fn default() -> Self {
        Self { format: LogFormat::Text, filter: "info".into() }
    }
}

impl Default for Api {
    fn default() -> Self {
        Self {
            public_url: None,
            default_share_type: "default".into(),
            protocols: vec!["NFS".into(), "CIFS".into()],
        }
    }
}

impl Default for Shutdown {
    fn default() -> Self {
        Self { drain_seconds: 10 }
    }
}

impl Settings {
    /// Reads and checks a settings file. Relative paths in it start at its folder.
    ///
    /// # Errors
    /// A sentence with the file, and the line and key where there is one.
    pub(crate) fn load(file: &Path) -> Result<Self, String> {
        let text = std::fs::read_to_string(file)
            .map_err(|error| format!("The settings file {} cannot be read: {error}.", file.display()))?;
        let folder = file.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let folder = std::path::absolute(folder)
            .map_err(|error| format!("The folder of {} cannot be found: {error}.", file.display()))?;
        let mut settings = Self::parse(&text, &folder).map_err(|why| format!("{}: {why}", file.display()))?;
        settings.state = tidy_path(&settings.state);
        Ok(settings)
    }

    fn parse(text: &str, folder: &Path) -> Result<Self, String> {
        let mut settings: Self = toml::from_str(text).map_err(|error| error.to_string())?;
        let paths = [Some(&mut settings.state), Some(&mut settings.plugins)];
        let optional = [
            settings.auth.tokens_file.as_mut(),
            settings.policy.file.as_mut(),
            settings.driver_host.as_mut(),
        ];
        let keystone = settings.auth.keystone.as_mut();
        let keystone = keystone.map(|keystone| [keystone.password_file.as_mut(), keystone.ca_file.as_mut()]);
        for path in paths.into_iter().chain(optional).chain(keystone.into_iter().flatten()).flatten() {
            *path = folder.join(&*path);
        }
        if let Some(tls) = &mut settings.tls {
            tls.within(folder);
        }
        for file in settings.backends.iter_mut().filter_map(|backend| backend.claim_secret_file.as_mut()) {
            *file = folder.join(&*file);
        }
        Ok(settings)
    }

    /// Whether the settings fit together, once the command line has had its say.
    ///
    /// # Errors
    /// A sentence that says which do not, and what to do.
    pub(crate) fn check(&self) -> Result<(), String> {
        self.check_auth()?;
        if let Some(url) = &self.database.url {
            if url.starts_with("postgres:") || url.starts_with("postgresql:") {
                return Err(
                    "database.url: PostgreSQL is not served by this version; use sqlite:///path.".into()
                );
            }
            if !url.starts_with("sqlite:") {
                return Err(
                    "database.url must start with sqlite:, such as sqlite:///var/lib/tandem/tandem.db."
                        .into(),
                );
            }
        }
        self.check_manager()?;
        if let Some(host) = &self.host {
            plain_name("host", host)?;
        }
        self.check_hosts()?;
        let mut names = HashSet::new();
        for backend in &self.backends {
            plain_name("A back end's name", &backend.name)?;
            if !names.insert(&backend.name) {
                return Err(format!(
                    "Two back ends are named {:?}; each needs a name of its own.",
                    backend.name
                ));
            }
            backend.check()?;
            if let Some(host) = backend.host.as_ref().filter(|host| !self.hosts.contains_key(*host)) {
                return Err(format!(
                    "Back end {:?} is on host {host:?}, but there is no [hosts.{host}].",
                    backend.name
                ));
            }
        }
        Ok(())
    }

    fn check_hosts(&self) -> Result<(), String> {
        for (name, host) in &self.hosts {
            host_name(name).map_err(|why| format!("[hosts]: {why}."))?;
            let port = host.address.rsplit_once(':').and_then(|(_, port)| port.parse::<u16>().ok());
            if port.is_none_or(|port| port == 0) {
                return Err(format!(
                    "hosts.{name}.address is {:?}; it must be an address and a port, such as \"192.0.2.20:8787\".",
                    host.address
                ));
            }
        }
        if !self.hosts.is_empty() && self.tls.is_none() {
            return Err(
                "There are [hosts], so [tls] must name this server's certificate, its key and the CA; \
                        `tandem cert` makes them."
                    .into(),
            );
        }
        if !self.hosts.is_empty() {
            let Some(own) = &self.host else {
                return Err(
                    "There are [hosts], so `host` must say this server's name, as its certificate does."
                        .into(),
                );
            };
            host_name(own).map_err(|why| format!("host: {why}."))?;
        }
        Ok(())
    }

    fn check_auth(&self) -> Result<(), String> {
        let auth = &self.auth;
        if let Some(keystone) = &auth.keystone {
            keystone.check()?;
        }
        match auth.mode {
            AuthMode::Noauth => {
                let noauth = NoAuth { anywhere: auth.noauth_beyond_loopback };
                noauth.unfit_for(self.listen).map_or(Ok(()), |why| {
                    Err(format!("auth.mode is \"noauth\": {why} (auth.noauth_beyond_loopback = true)."))
                })
            }
            AuthMode::Tokens if auth.tokens_file.is_none() => {
                Err("auth.mode is \"tokens\", so auth.tokens_file must name the file of tokens.".into())
            }
            AuthMode::Keystone if auth.keystone.is_none() => {
                Err("auth.mode is \"keystone\", so [auth.keystone] must say where it is.".into())
            }
            AuthMode::Tokens | AuthMode::Keystone => Ok(()),
        }
    }

    fn check_manager(&self) -> Result<(), String> {
        let manager = &self.manager;
        if manager.host != tandem_manager::Settings::default().host {
            return Err("manager.host is set by the key `host` at the top of the file.".into());
        }
        for (key, value) in [
            ("concurrent_syncs", manager.concurrent_syncs as u64),
            ("pool_interval_seconds", manager.pool_interval_seconds),
            ("heal_interval_seconds", manager.heal_interval_seconds),
            ("call_deadline_seconds", manager.call_deadline_seconds),
            ("stall_deadline_seconds", manager.stall_deadline_seconds),
        ] {
            if value == 0 {
                return Err(format!("manager.{key} must be at least 1."));
            }
        }
        if manager.bandwidth == Some(0) {
            return Err("manager.bandwidth must be at least 1; without the key nothing limits it.".into());
        }
        if self.verify.concurrent == 0 || self.verify.bandwidth == Some(0) {
            return Err("verify.concurrent and verify.bandwidth must be at least 1; verify.interval = \"off\" makes no checks."
                .into());
        }
        Ok(())
    }

    /// The file of the database that is used.
    pub(crate) fn database(&self) -> PathBuf {
        let named = self.database.url.as_deref().and_then(|url| url.strip_prefix("sqlite:"));
        match named.map(|rest| rest.strip_prefix("//").unwrap_or(rest)) {
            Some(path) => self.state.join(path),
            None => self.state.join("tandem.db"),
        }
    }
}

impl Backend {
    fn check(&self) -> Result<(), String> {
        let name = &self.name;
        if self.driver.is_empty() {
            return Err(format!("Back end {name:?} names no driver."));
        }
        if self.host.is_some() && self.runs == Runs::Process {
            return Err(format!(
                "Back end {name:?} runs on a host and in a process of this one; remove `host` or `runs`."
            ));
        }
        if self.availability_zone.is_empty() {
            return Err(format!("Back end {name:?} has an empty availability_zone."));
        }
        if self.reserved_percentage > 100 {
            return Err(format!(
                "Back end {name:?}: reserved_percentage is {}, and a hundred percent is all there is.",
                self.reserved_percentage
            ));
        }
        if !self.max_over_subscription_ratio.is_finite() || self.max_over_subscription_ratio < 1.0 {
            return Err(format!(
                "Back end {name:?}: max_over_subscription_ratio is {}, but a pool can always be promised once (1.0).",
                self.max_over_subscription_ratio
            ));
        }
        Ok(())
    }
}

/// A name that stands in `host@backend#pool`.
fn plain_name(what: &str, name: &str) -> Result<(), String> {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if !name.is_empty() && name.len() <= 64 && name.chars().all(plain) {
        return Ok(());
    }
    Err(format!("{what} is {name:?}; it may have letters, digits, '-', '_' and '.', and at most 64 of them."))
}

/// The same path without `.` in it, so that messages read well.
fn tidy_path(path: &Path) -> PathBuf {
    path.components().filter(|part| !matches!(part, std::path::Component::CurDir)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn samples(folder: &str) -> Vec<PathBuf> {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/samples").join(folder);
        let mut files: Vec<PathBuf> = std::fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .filter(|path| path.extension().is_some_and(|e| e == "toml"))
            .collect();
        files.sort();
        assert!(!files.is_empty());
        files
    }

    #[test]
    fn the_samples_load() {
        for file in samples("") {
            let settings = Settings::load(&file).unwrap();
            settings.check().unwrap_or_else(|why| panic!("{}: {why}", file.display()));
        }
    }

    /// The first line of each says which sentence it must give.
    #[test]
    fn the_invalid_samples_are_refused_with_their_sentence() {
        for file in samples("invalid") {
            let text = std::fs::read_to_string(&file).unwrap();
            let expected = text.lines().next().and_then(|line| line.strip_prefix("# expect: ")).unwrap();
            let refused = Settings::load(&file).and_then(|settings| settings.check()).unwrap_err();
            assert!(refused.contains(expected), "{}: {refused}", file.display());
        }
    }

    #[test]
    fn an_empty_file_is_a_server_on_loopback_without_back_ends() {
        let settings = Settings::parse("", Path::new("/etc/tandem")).unwrap();
        settings.check().unwrap();
        assert!(settings.listen.ip().is_loopback() && settings.backends.is_empty());
        assert_eq!(settings.database(), Path::new("/var/lib/tandem/tandem.db"));
    }

    #[test]
    fn the_database_is_where_its_url_says() {
        for (url, file) in [
            ("sqlite:///srv/t.db", "/srv/t.db"),
            ("sqlite:/srv/t.db", "/srv/t.db"),
            ("sqlite://t.db", "/state/t.db"),
            ("sqlite:t.db", "/state/t.db"),
        ] {
            let text = format!("state = \"/state\"\n[database]\nurl = \"{url}\"");
            let settings = Settings::parse(&text, Path::new("/etc/tandem")).unwrap();
            assert_eq!(settings.database(), Path::new(file), "{url}");
        }
    }

    #[test]
    fn relative_paths_start_at_the_file() {
        let text = "state = \".\"\nplugins = \"p\"\n[policy]\nfile = \"policy.yaml\"";
        let settings = Settings::parse(text, Path::new("/etc/tandem")).unwrap();
        assert_eq!(tidy_path(&settings.state), Path::new("/etc/tandem"));
        assert_eq!(settings.plugins, Path::new("/etc/tandem/p"));
        assert_eq!(settings.policy.file.as_deref(), Some(Path::new("/etc/tandem/policy.yaml")));
    }
}
