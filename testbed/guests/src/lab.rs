//! A laboratory: guests with a network between them, in a folder that goes away with its owner.

use crate::guest::{Guest, Plan};
use crate::keeper::Keeper;
use crate::network::Network;
use crate::{Result, place};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// As many guests may run at once in one test: each takes a processor and a gigabyte or two.
pub const MOST_GUESTS: usize = 2;

/// Everything that a test with guests owns.
#[derive(Debug)]
pub struct Lab {
    inner: Arc<Inner>,
    program: PathBuf,
    guests: AtomicUsize,
}

/// What guests share.
#[derive(Debug)]
pub(crate) struct Inner {
    pub(crate) folder: PathBuf,
    pub(crate) network: Network,
    pub(crate) second: Network,
    /// Dropped last: it sweeps the folder.
    pub(crate) keeper: Keeper,
}

impl Lab {
    /// A laboratory whose agent and keeper are the program `tandem-guest` at that path.
    pub fn new(program: &Path) -> Result<Self> {
        place::kernel()?;
        let folder = tempfile::Builder::new()
            .prefix("tandem-lab-")
            .tempdir_in(place::scratch())
            .map_err(|error| format!("making a folder for the laboratory: {error}."))?
            .keep();
        let keeper = Keeper::start(program, &folder)?;
        if std::env::var_os("KEEP").is_some_and(|keep| !keep.is_empty() && keep != "0") {
            keeper.keep_folder()?;
            eprintln!("KEEP: the laboratory stays in {}.", folder.display());
        }
        let inner = Inner { folder, network: Network::default(), second: Network::default(), keeper };
        Ok(Self { inner: Arc::new(inner), program: program.into(), guests: AtomicUsize::new(0) })
    }

    /// Builds a guest by this plan; it is off until it is booted.
    ///
    /// # Errors
    /// When there are [`MOST_GUESTS`] already.
    pub fn guest(&self, plan: Plan) -> Result<Guest> {
        let number = self.guests.fetch_add(1, Ordering::Relaxed);
        if number >= MOST_GUESTS {
            return Err(format!("a laboratory has at most {MOST_GUESTS} guests at once."));
        }
        Guest::new(self.inner.clone(), &self.program, number, plan)
    }

    /// The network; hosts are numbered in the order in which they were built, from 0.
    pub fn network(&self) -> &Network {
        &self.inner.network
    }

    /// The network between the second cards of those that have one: what goes there is cut apart from all else.
    pub fn second_network(&self) -> &Network {
        &self.inner.second
    }

    /// The folder of everything, which guests do not see.
    pub fn folder(&self) -> &Path {
        &self.inner.folder
    }
}
