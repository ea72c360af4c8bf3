//! Tandem driver: LVM thin volumes on Linux.
//!
//! A share is a thin volume with a file system, mounted and exported by the driver alone. Everything that the driver
//! knows of it stands in tags of the volume (module `meta`): the volume group is the only memory.
//!
//! ```text
//! GROUP/POOL                  the settings `group` and `thin_pool`; both must be there
//! GROUP/tandem-<instance>.drbd    DRBD's metadata for it, where it replicates (module `drbd`)
//! GROUP/tandem-<instance>     a share; bears the tags tandem:1, tandem:role=…, tandem:epoch=… and the rest
//! ```
//!
//! LVM's library runs in a process of its own, the worker (module `worker` here, `worker/main.rs` there), with settings
//! of its own that let it see the devices of the group and no others.

mod config;
mod drbd;
mod error;
mod filesystem;
mod holders;
mod image;
mod instance;
mod meta;
mod mount;
mod names;
mod note;
mod o2cb;
mod observe;
mod program;
mod report;
mod serve;
mod shared;
mod store;
mod system;
mod wire;
mod worker;

use std::sync::Arc;

use tandem_sdk::Exporter;

pub use crate::config::Config;
pub use crate::drbd::arbiter::Arbiter;
pub use crate::drbd::settings::Drbd;
pub use crate::drbd::writable::Writable;
pub use crate::filesystem::Filesystem;

/// A back end of LVM thin volumes.
#[derive(Clone, Debug)]
pub struct Lvm {
    inner: Arc<Inner>,
}

#[derive(Debug)]
pub(crate) struct Inner {
    pub(crate) config: Config,
    pub(crate) share_mode: u32,
    pub(crate) exporter: Exporter,
    pub(crate) worker: worker::Worker,
    /// Hosts that did not answer.
    pub(crate) silent: drbd::handshake::Silent,
    /// Instances whose disk was left for want of room.
    pub(crate) starved: drbd::starved::Starved,
}

tandem_sdk::export_driver!(Lvm: Attachable, Replication, Reachable, StorageReplicated);
