//! Drivers that do not run in this process: in a child of it, or on another host.
//!
//! ```text
//! Backend ─ layers ─ Elsewhere ─ Held ══ frames ══ Serving ─ gate ─ driver (.so)
//!                                 └ relay ═ a TLS connection for each stream ═ relay ┘
//! ```
//! The messages are those of the binary interface, so every layer above and every driver below is the same. See
//! `docs/decisions/0005-driver-hosts.md` for why it is as it is.

mod berths;
mod dial;
mod far;
mod frame;
mod hosts;
mod message;
mod process;
mod relay;
mod serve;
mod station;
mod stop_at;
mod tls;

use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use serde_json::Value;
use tandem_abi::HostSide;
use tandem_contract::{Capabilities, Error, Manifest, Request, Result};
use tokio_util::sync::CancellationToken;

pub use hosts::{DriverHost, HostReport};
pub use message::FarDriver;
pub use process::{Processes, driver_host_program};
pub(crate) use relay::new_pipe;
pub use serve::{Listening, listen, serve_child};
pub use tls::{TlsFiles, host_name};

use crate::library::{Entry, Library};
use crate::plugin::Loaded;
use crate::{Backend, BoxFuture, Options, Plugin};
use far::{Far, Held, Terms, Welcomed};
use message::failed;
use process::KillOnDrop;

/// A connection on which a driver can be opened.
pub(crate) struct Opened {
    welcomed: Welcomed,
    terms: Terms,
    /// Ends the child at once.
    kill: Option<CancellationToken>,
    /// Lets the child end.
    guard: Option<Arc<KillOnDrop>>,
}

impl Opened {
    /// The manifest of a driver there.
    fn manifest(&self, driver: &str) -> Result<Manifest> {
        let drivers = &self.welcomed.welcome.drivers;
        let manifests = drivers.iter().filter_map(|file| file.driver.as_ref().ok());
        manifests.clone().find(|manifest| manifest.name == driver).cloned().ok_or_else(|| {
            let known: Vec<&str> = manifests.map(|manifest| manifest.name.as_str()).collect();
            let refused = drivers.iter().filter_map(|file| file.driver.as_ref().err());
            let refused: String = refused.map(|reason| format!("; {reason}")).collect();
            let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
            Error::not_found(format!(
                "{} has no driver `{driver}`; it has {known}{refused}",
                self.terms.place
            ))
        })
    }
}

/// Checks the settings, opens the driver, and puts the layers around it.
async fn open_on(
    mut opened: Opened,
    backend: &str,
    driver: &str,
    settings: &Value,
    options: Options,
) -> Result<Backend> {
    let manifest = opened.manifest(driver)?;
    let (kill, guard) = (opened.kill.take(), opened.guard.take());
    let remote = opened.terms.dialer.is_some();
    let far = Arc::default();
    let entry = Once {
        opened: Mutex::new(Some(opened)),
        driver: driver.to_owned(),
        backend: backend.to_owned(),
        far: Arc::clone(&far),
    };
    let library = Library::of(Arc::new(entry), manifest);
    let (loaded, router) = library.load_opened(backend, settings, &options).await?;
    let far = far.lock().unwrap_or_else(PoisonError::into_inner).take();
    let far = far.ok_or_else(|| Error::bug("a driver was opened on no connection"))?;
    let elsewhere = Elsewhere { loaded, far, kill, _guard: guard, remote };
    Ok(Backend::new(backend, library.manifest_arc(), Arc::new(elsewhere), router, options))
}

/// A connection as a library from which one back end can be opened.
struct Once {
    opened: Mutex<Option<Opened>>,
    driver: String,
    backend: String,
    far: Arc<Mutex<Option<Arc<Far>>>>,
}

impl Entry for Once {
    fn path(&self) -> Option<&Path> {
        None
    }

    fn open(&self, host: Box<dyn HostSide>, opening: Vec<u8>) -> BoxFuture<'_, tandem_abi::Opened> {
        let opened = self.opened.lock().unwrap_or_else(PoisonError::into_inner).take();
        Box::pin(async move {
            let Some(Opened { welcomed, terms, .. }) = opened else {
                return Err(failed(&Error::bug("a connection serves one back end"))
                    .err()
                    .unwrap_or_default());
            };
            let held = welcomed.open(terms, &self.driver, &self.backend, host, opening).await?;
            *self.far.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::clone(&held.0));
            Ok(Box::new(held) as Box<dyn tandem_abi::DriverSide>)
        })
    }
}

/// A driver elsewhere.
struct Elsewhere {
    loaded: Loaded,
    far: Arc<Far>,
    kill: Option<CancellationToken>,
    _guard: Option<Arc<KillOnDrop>>,
    /// Whether its streams cross a network.
    remote: bool,
}

impl Plugin for Elsewhere {
    fn capabilities(&self) -> &Capabilities {
        self.loaded.capabilities()
    }

    fn call(&self, request: Request, fds: Vec<OwnedFd>) -> BoxFuture<'static, Result<Value>> {
        self.loaded.call(request, fds)
    }

    fn shutdown(&self) -> BoxFuture<'static, ()> {
        self.loaded.shutdown()
    }

    fn lost(&self) -> Option<CancellationToken> {
        Some(self.far.lost())
    }

    fn crosses_network(&self) -> bool {
        self.remote
    }

    fn hangs(&self, verb: &str) -> bool {
        let Some(kill) = &self.kill else { return false };
        tracing::error!(
            "The driver's process is ended, since it does not end `{verb}`; another one is started."
        );
        self.far.lose(&format!("the process was ended, since it did not end `{verb}`"));
        kill.cancel();
        true
    }
}

/// Opens drivers without any layer: for a suite that is its own host.
#[derive(Clone)]
pub enum Bare {
    /// In processes.
    Process(Processes),
    /// On a host.
    Host(DriverHost),
}

impl Bare {
    /// The manifest of a driver there.
    ///
    /// # Errors
    /// As [`DriverHost::open`].
    pub async fn manifest(&self, driver: &str) -> Result<Manifest> {
        self.connect(&uuid::Uuid::new_v4().to_string(), driver).await?.manifest(driver)
    }

    async fn connect(&self, backend: &str, driver: &str) -> Result<Opened> {
        match self {
            Self::Process(processes) => processes.start(backend, driver).await,
            Self::Host(host) => host.connect().await,
        }
    }

    /// Opens a back end; `opening` is JSON of an `Opening`.
    ///
    /// # Errors
    /// JSON of a contract error.
    pub async fn open(&self, driver: &str, host: Box<dyn HostSide>, opening: Vec<u8>) -> tandem_abi::Opened {
        let error = |e: Error| failed(&e).err().unwrap_or_default();
        let backend = uuid::Uuid::new_v4().to_string();
        let opened = self.connect(&backend, driver).await.map_err(error)?;
        let Opened { welcomed, terms, guard, .. } = opened;
        let held = welcomed.open(terms, driver, &backend, host, opening).await?;
        Ok(Box::new(BareDriver { held, _guard: guard }))
    }
}

/// A driver elsewhere, and the process that it may be in.
struct BareDriver {
    held: Held,
    _guard: Option<Arc<KillOnDrop>>,
}

impl tandem_abi::DriverSide for BareDriver {
    fn capabilities(&self) -> Vec<u8> {
        self.held.capabilities()
    }
    fn call(&self, request: Vec<u8>, fds: Vec<OwnedFd>) -> BoxFuture<'static, tandem_abi::Answer> {
        self.held.call(request, fds)
    }
    fn shutdown(&self) -> BoxFuture<'static, ()> {
        self.held.shutdown()
    }
}
