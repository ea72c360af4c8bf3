//! Puts the parts together: store, drivers, manager, API.

use std::fs::File;
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::Path;
use std::sync::Arc;

use axum::Router;
use rustix::fs::{FlockOperation, flock};
use tandem_manager::Manager;
use tandem_manager::clock::{Clock as _, SystemClock};
use tandem_manager::store::kill_at;
use tandem_manager::store::sqlite::SqliteStore;
use tandem_server::App;
use tandem_server::auth::{
    Authenticator, Keystone, KeystoneSettings, NoAuth, PASSWORD_VARIABLE, Password, Secret, Tokens,
};
use tandem_server::native::{Native, Secrets};
use tandem_server::policy::Policy;

use crate::drivers::Drivers;
use crate::settings::{AuthMode, Settings};

/// Characters of the shortest secret that is no mistake.
const SHORTEST_SECRET: usize = 16;

/// The parts, put together.
pub(crate) struct Wired {
    pub(crate) manager: Arc<Manager>,
    pub(crate) router: Router,
    /// Held while the server runs: one server to a state folder.
    _lock: File,
}

/// Opens what the settings name. Nothing runs yet.
///
/// # Errors
/// A sentence that says what cannot be opened. A bad driver is none: its back end is down, and says why.
pub(crate) async fn wire(settings: &Settings) -> Result<Wired, String> {
    let auth = authenticator(settings)?;
    let policy = policy(settings)?;
    let lock = lock_state(&settings.state)?;
    let store = SqliteStore::open(&settings.database()).await.map_err(|error| {
        format!("The database {} cannot be opened: {error}.", settings.database().display())
    })?;
    let store = kill_at::from_environment(Arc::new(store))?;
    let discovery = tandem_host::discover(&settings.plugins);
    for refusal in &discovery.refused {
        tracing::warn!(file = %refusal.path.display(), "A driver was refused: {}.", refusal.reason);
    }
    for (name, library) in &discovery.drivers {
        tracing::info!(driver = name, version = library.manifest().version, "A driver was loaded.");
    }
    let drivers = Drivers::new(settings, discovery);
    let backends = settings.backends.iter().map(|b| drivers.backend(b)).collect();
    let mut managing = settings.manager.clone();
    managing.host = settings.host.clone().unwrap_or_else(host_name);
    managing.verify = settings.verify.clone();
    managing.work_dir = settings.state.join("copies");
    let clock = Arc::new(SystemClock);
    let started_at = clock.now();
    let manager = Arc::new(Manager::new(store, clock, backends, managing));
    let app = Arc::new(App { manager: manager.clone(), auth, policy, settings: api(settings) });
    let secrets = secrets(settings)?;
    let native = Native { app: app.clone(), drivers: drivers.files(), started_at, secrets };
    let router = tandem_server::native::router(Arc::new(native)).merge(tandem_server::router(app));
    Ok(Wired { manager, router, _lock: lock })
}

fn authenticator(settings: &Settings) -> Result<Arc<dyn Authenticator>, String> {
    let auth = &settings.auth;
    match (auth.mode, &auth.tokens_file, &auth.keystone) {
        (AuthMode::Tokens, Some(file), _) => {
            let tokens = Tokens::load(file.clone()).map_err(|error| format!("{error}."))?;
            Ok(Arc::new(tokens))
        }
        (AuthMode::Keystone, _, Some(settings)) => {
            let keystone =
                Keystone::new(settings, password(settings)?).map_err(|why| format!("Keystone: {why}"))?;
            let keystone = Arc::new(keystone);
            let first = keystone.clone();
            tokio::spawn(async move { first.prepare().await });
            Ok(keystone)
        }
        _ => Ok(Arc::new(NoAuth { anywhere: auth.noauth_beyond_loopback })),
    }
}

/// Where the service user's password is.
fn password(settings: &KeystoneSettings) -> Result<Password, String> {
    if let Some(file) = &settings.password_file {
        return Ok(Password::File(file.clone()));
    }
    match std::env::var(PASSWORD_VARIABLE) {
        Ok(password) if !password.is_empty() => Ok(Password::Given(Secret::new(password))),
        _ => Err(format!(
            "The password of Keystone's user '{}' is nowhere: name its file in auth.keystone.password_file, or set the \
             variable {PASSWORD_VARIABLE}.",
            settings.username
        )),
    }
}

/// The secrets with which hosts of back ends claim.
fn secrets(settings: &Settings) -> Result<Secrets, String> {
    let mut secrets = Secrets::default();
    for backend in &settings.backends {
        let Some(file) = &backend.claim_secret_file else { continue };
        let of = |why: String| {
            format!("Back end {:?}: claim_secret_file {}: {why}.", backend.name, file.display())
        };
        let mode = std::fs::metadata(file).map_err(|error| of(error.to_string()))?.permissions().mode();
        if mode & 0o077 != 0 {
            return Err(of("others can read or write it; take that away with chmod go-rwx".into()));
        }
        let text = std::fs::read_to_string(file).map_err(|error| of(error.to_string()))?;
        let secret = text.trim();
        if secret.len() < SHORTEST_SECRET {
            return Err(of(format!(
                "a secret has {SHORTEST_SECRET} characters or more; `openssl rand -hex 32` makes one"
            )));
        }
        secrets.add(&backend.name, secret);
    }
    Ok(secrets)
}

fn policy(settings: &Settings) -> Result<Arc<Policy>, String> {
    let policy = match &settings.policy.file {
        Some(file) => Policy::load(file.clone()).map_err(|mistake| mistake.to_string())?,
        None => Policy::defaults(),
    };
    Ok(Arc::new(policy))
}

fn api(settings: &Settings) -> tandem_server::Settings {
    let api = &settings.api;
    tandem_server::Settings {
        public_url: api.public_url.clone(),
        default_share_type: Some(api.default_share_type.clone()).filter(|name| !name.is_empty()),
        protocols: api.protocols.iter().map(|protocol| protocol.to_uppercase()).collect(),
        ..tandem_server::Settings::default()
    }
}

/// Makes the state folder, for its owner only, and takes it for this server.
fn lock_state(state: &Path) -> Result<File, String> {
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(state)
        .map_err(|error| format!("The state folder {} cannot be made: {error}.", state.display()))?;
    let file = state.join("lock");
    let lock = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&file)
        .map_err(|error| format!("{} cannot be opened: {error}.", file.display()))?;
    flock(&lock, FlockOperation::NonBlockingLockExclusive)
        .map_err(|_| format!("Another tandemd uses the state folder {}; stop it first.", state.display()))?;
    Ok(lock)
}

/// The machine's name, as far as it can stand in `host@backend#pool`.
fn host_name() -> String {
    let name = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let plain: String = name.chars().filter(|c| c.is_ascii_alphanumeric() || "-_.".contains(*c)).collect();
    if plain.is_empty() { "localhost".into() } else { plain }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_server_to_a_state_folder() {
        let folder = tempfile::tempdir().unwrap();
        let state = folder.path().join("state");
        let lock = lock_state(&state).unwrap();
        assert!(lock_state(&state).unwrap_err().contains("Another tandemd uses the state folder"));
        drop(lock);
        lock_state(&state).unwrap();
    }

    #[tokio::test]
    async fn a_back_end_without_a_driver_says_where_it_was_looked_for() {
        let folder = tempfile::tempdir().unwrap();
        let text = format!(
            "state = {0:?}\nplugins = {0:?}\n[[backends]]\nname = \"a\"\ndriver = \"nowhere\"",
            folder.path()
        );
        let file = folder.path().join("tandem.toml");
        std::fs::write(&file, text).unwrap();
        let settings = Settings::load(&file).unwrap();
        let drivers = Drivers::new(&settings, tandem_host::discover(&settings.plugins));
        let config = drivers.backend(&settings.backends[0]);
        let Err(error) = (config.open)().await else { panic!("it was opened") };
        assert!(error.message.contains("no driver `nowhere` was loaded from"), "{error}");
        let wired = wire(&settings).await.unwrap();
        assert_eq!(wired.manager.backends().len(), 1);
    }
}
