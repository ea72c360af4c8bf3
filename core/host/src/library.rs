//! A loaded library: what it says of itself, and opening back ends from it.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::Value;
use tandem_abi::{HostSide, LoadError, Module};
use tandem_contract::{CONTRACT_VERSION, Error, Manifest, Opening, Result};

use crate::plugin::{Loaded, decode, decode_error, encode};
use crate::router::{HostOf, Router};
use crate::{Backend, BoxFuture, Options, check_settings};

/// A driver's library. Any number of back ends can be opened from it.
#[derive(Clone)]
pub struct Library {
    entry: Arc<dyn Entry>,
    manifest: Arc<Manifest>,
}

/// The two entry points of a library: loaded from a file, linked into this process, or behind a connection.
pub(crate) trait Entry: Send + Sync {
    fn path(&self) -> Option<&Path>;
    fn open(&self, host: Box<dyn HostSide>, opening: Vec<u8>) -> BoxFuture<'_, tandem_abi::Opened>;
}

impl Entry for Module {
    fn path(&self) -> Option<&Path> {
        Some(self.path())
    }
    fn open(&self, host: Box<dyn HostSide>, opening: Vec<u8>) -> BoxFuture<'_, tandem_abi::Opened> {
        Box::pin(self.open(host, opening))
    }
}

struct Linked<L>(std::marker::PhantomData<fn() -> L>);

impl<L: tandem_abi::Library> Entry for Linked<L> {
    fn path(&self) -> Option<&Path> {
        None
    }
    fn open(&self, host: Box<dyn HostSide>, opening: Vec<u8>) -> BoxFuture<'_, tandem_abi::Opened> {
        L::open(host, opening)
    }
}

impl Library {
    /// Loads one file. Check first who may write it: [`discover()`](crate::discover()) does.
    ///
    /// # Errors
    /// One sentence that names the file.
    pub fn load(path: &Path) -> Result<Self> {
        let module = Module::load(path, CONTRACT_VERSION).map_err(|e| {
            if let LoadError::Layout { detail, .. } = &e {
                tracing::debug!(path = %path.display(), "layout check: {detail}");
            }
            Error::invalid(e.to_string())
        })?;
        let name = path.display().to_string();
        let manifest: Manifest = decode(&name, "its manifest", &module.manifest())?;
        if manifest.contract.0 != CONTRACT_VERSION.0 || manifest.name.is_empty() {
            return Err(Error::bug(format!(
                "{name} says two different things of itself: its manifest does not fit its probe"
            )));
        }
        Ok(Self { entry: Arc::new(module), manifest: Arc::new(manifest) })
    }

    /// A driver that is linked into this process: for simulations.
    ///
    /// # Errors
    /// `Bug` when its manifest does not decode.
    pub fn linked<L: tandem_abi::Library>() -> Result<Self> {
        let manifest = decode("the linked driver", "its manifest", &L::manifest())?;
        Ok(Self { entry: Arc::new(Linked::<L>(std::marker::PhantomData)), manifest: Arc::new(manifest) })
    }

    pub(crate) fn of(entry: Arc<dyn Entry>, manifest: Manifest) -> Self {
        Self { entry, manifest: Arc::new(manifest) }
    }

    /// What it says of itself.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    pub(crate) fn manifest_arc(&self) -> Arc<Manifest> {
        Arc::clone(&self.manifest)
    }

    /// Opens a back end for another host than this process's layers.
    pub(crate) fn open_side(
        &self,
        host: Box<dyn HostSide>,
        opening: Vec<u8>,
    ) -> BoxFuture<'_, tandem_abi::Opened> {
        self.entry.open(host, opening)
    }

    /// The file it came from; `None` when it is linked in.
    pub fn path(&self) -> Option<PathBuf> {
        self.entry.path().map(Path::to_owned)
    }

    /// Checks settings against the driver's schema and opens a back end with them.
    ///
    /// # Errors
    /// `InvalidArgument` naming the key that does not fit; else what the driver says. It never ends the process.
    pub async fn open(&self, backend: &str, settings: &Value, options: Options) -> Result<Backend> {
        let (plugin, router) = self.load_opened(backend, settings, &options).await?;
        Ok(Backend::new(backend, Arc::clone(&self.manifest), Arc::new(plugin), router, options))
    }

    /// The same without the layers.
    pub(crate) async fn load_opened(
        &self,
        backend: &str,
        settings: &Value,
        options: &Options,
    ) -> Result<(Loaded, Arc<Router>)> {
        let driver = self.manifest.name.as_str();
        check_settings(&self.manifest.settings, settings).map_err(|e| {
            Error::invalid(format!("settings of back end `{backend}` (driver `{driver}`): {e}"))
        })?;
        let opening = encode(&Opening {
            backend: backend.to_owned(),
            contract: CONTRACT_VERSION,
            features: Vec::new(),
            log: options.log.clone(),
            settings: settings.clone(),
        })?;
        let router = Router::new(backend, driver);
        let opened = tokio::time::timeout(
            options.open_within,
            self.entry.open(Box::new(HostOf(Arc::clone(&router))), opening),
        )
        .await
        .map_err(|_| {
            Error::unavailable(format!(
                "driver `{driver}` has not opened back end `{backend}` within {} s",
                options.open_within.as_secs()
            ))
        })?
        .map_err(|bytes| decode_error("its answer to `open`", &bytes))?;
        Ok((Loaded::new(&format!("driver `{driver}`"), opened)?, router))
    }
}

impl std::fmt::Debug for Library {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Library")
            .field("name", &self.manifest.name)
            .field("path", &self.entry.path())
            .finish()
    }
}
