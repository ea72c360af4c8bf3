//! What runs inside a guest: its first process, which builds a world for it, and the agent, which runs commands.

mod init;
mod serve;
mod world;

use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// In the environment of a guest's first process: the folder with its [`Setup`].
pub(crate) const SETUP: &str = "TANDEM_GUEST_SETUP";
/// The name of that file.
pub(crate) const SETUP_FILE: &str = "setup.json";
/// The argument of the agent below the first process.
pub(crate) const SERVE: &str = "serve";

/// What a guest has to know before anything runs in it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Setup {
    pub(crate) name: String,
    /// Folders of the outside world that are visible, writable, at the same path.
    pub(crate) shared: Vec<PathBuf>,
    /// Folder with modules beyond Debian's own, if there is one; seen at [`MODULES`].
    pub(crate) modules: Option<PathBuf>,
    /// Added to the outside world's clock, in seconds.
    pub(crate) clock_offset: i64,
}

/// Where a guest sees the modules that were built for it.
pub(crate) const MODULES: &str = "/run/tandem/modules";
/// The serial line of the agent.
const LINE: &str = "/dev/ttyS0";

pub(crate) use init::main as init;
pub(crate) use serve::main as serve;
