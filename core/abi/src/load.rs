//! Loads a driver's library: probe, layout check, entry points. Shared by the host and the conformance suite.
#![allow(unsafe_code)] // dlopen, and reading the probe

use std::path::{Path, PathBuf};

use abi_stable::library::lib_header_from_path;
use libloading::os::unix::{Library as RawLibrary, RTLD_LOCAL, RTLD_NOW};

use crate::probe::SYMBOL;
use crate::{DriverSide, GENERATION, HostSide, Probe, v1};

/// A loaded library. It stays loaded until the process ends: threads and statics of it may outlive every handle.
pub struct Module {
    path: PathBuf,
    probe: Probe,
    module: v1::DriverModule_Ref,
}

/// Why a file is no driver that can be used here. Each is one sentence.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LoadError {
    /// The dynamic linker refused it.
    #[error("{path} cannot be loaded as a library: {reason}")]
    NotALibrary {
        /// The file.
        path: PathBuf,
        /// The linker's words.
        reason: String,
    },
    /// It lacks the probe.
    #[error("{path} is a library, but not a Tandem driver: it does not export `tandem_plugin_abi`")]
    NotADriver {
        /// The file.
        path: PathBuf,
    },
    /// Another generation of the binary interface.
    #[error(
        "{path} speaks generation {theirs} of the binary interface, this program speaks {ours}; \
         rebuild the driver with the SDK of this release"
    )]
    Generation {
        /// The file.
        path: PathBuf,
        /// Its generation.
        theirs: u32,
        /// Ours.
        ours: u32,
    },
    /// A contract that this program does not know.
    #[error(
        "{path} was built for contract {}.{}, this program knows {}.{}; {}",
        theirs.0, theirs.1, ours.0, ours.1,
        if theirs.0 > ours.0 { "upgrade the server" } else { "rebuild the driver with a newer SDK" }
    )]
    Contract {
        /// The file.
        path: PathBuf,
        /// Its contract.
        theirs: (u32, u32),
        /// Ours.
        ours: (u32, u32),
    },
    /// The layout check failed, although the generation is ours.
    #[error(
        "{path} was built with another layout of the binary interface; rebuild the driver with this release's SDK"
    )]
    Layout {
        /// The file.
        path: PathBuf,
        /// What differs: long, for the debug log.
        detail: String,
    },
}

impl Module {
    /// Loads the library at `path` for a program that knows `contract`. A minor step of the contract only adds, so
    /// only another major is refused.
    ///
    /// Runs the library's initialisers: check first who may write the file.
    ///
    /// # Errors
    /// [`LoadError`], one sentence each.
    pub fn load(path: &Path, contract: (u32, u32)) -> Result<Self, LoadError> {
        let probe = read_probe(path)?;
        let theirs = (probe.contract_major, probe.contract_minor);
        if probe.generation != GENERATION {
            return Err(LoadError::Generation {
                path: path.into(),
                theirs: probe.generation,
                ours: GENERATION,
            });
        }
        if theirs.0 != contract.0 {
            return Err(LoadError::Contract { path: path.into(), theirs, ours: contract });
        }
        // Not `RootModule::load_from_file`: that answers the first library again for every later path.
        let module = lib_header_from_path(path)
            .and_then(|header| header.init_root_module::<v1::DriverModule_Ref>())
            .map_err(|e| LoadError::Layout { path: path.into(), detail: e.to_string() })?;
        Ok(Self { path: path.into(), probe, module })
    }

    /// The file it came from.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The contract it was built against.
    pub fn contract(&self) -> (u32, u32) {
        (self.probe.contract_major, self.probe.contract_minor)
    }

    /// JSON of its manifest.
    pub fn manifest(&self) -> Vec<u8> {
        self.module.manifest()().into_vec()
    }

    /// Opens a back end; `opening` is JSON of an `Opening`.
    ///
    /// # Errors
    /// JSON of a contract error; without bytes when the library panicked.
    pub async fn open(
        &self,
        host: Box<dyn HostSide>,
        opening: Vec<u8>,
    ) -> Result<Box<dyn DriverSide>, Vec<u8>> {
        let driver = v1::open_remote(self.module, host, opening).await?;
        Ok(Box::new(driver))
    }
}

fn read_probe(path: &Path) -> Result<Probe, LoadError> {
    // SAFETY: initialisers of the library run here; the caller has checked who may write the file. The flags make a
    // missing symbol an error now, and keep its names from other libraries.
    let library = unsafe { RawLibrary::open(Some(path), RTLD_NOW | RTLD_LOCAL) }
        .map_err(|e| LoadError::NotALibrary { path: path.into(), reason: e.to_string() })?;
    // SAFETY: the symbol is only read as an address.
    let address = unsafe { library.get::<*const Probe>(SYMBOL) }.map(|symbol| symbol.as_raw_ptr());
    let probe = match address {
        // SAFETY: a static of this name is a `Probe` by the interface, and the magic is compared first of all.
        Ok(address) if !address.is_null() => Some(unsafe { address.cast::<Probe>().read_unaligned() }),
        _ => None,
    };
    // Never unloaded: nothing can prove that no thread or pointer is left in it.
    std::mem::forget(library);
    probe.filter(Probe::is_genuine).ok_or_else(|| LoadError::NotADriver { path: path.into() })
}
