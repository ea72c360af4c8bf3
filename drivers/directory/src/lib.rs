//! Tandem driver: plain folders on any local Linux file system. Needs nothing installed and no root.
//!
//! A share is a folder; its export is the path of a symlink to it, on this host. Points are manifests with content
//! hashes, replicas follow by streams that carry only what changed, and each new version of a replica is built beside
//! the old one and put in its place by one rename. To another back end of folders on the same host a share is migrated
//! in place, while its users write. What a folder cannot do is not claimed: it enforces no access rules,
//! cannot be quiesced, and cannot hold a size; a share over its size is reported, and replicated no further.

mod config;
mod instance;
mod migration;
mod observe;
mod replication;
mod store;
mod stream;
mod verify;

pub use crate::config::Config;
use crate::store::Store;

/// Kind of this driver's resume tokens, and the version it writes.
pub(crate) const TOKEN: (&str, u32) = ("directory.have", 1);

/// A back end of plain folders.
#[derive(Debug)]
pub struct Directory {
    store: Store,
}

tandem_sdk::export_driver!(Directory: Replication, Streamed, Verifiable, Attachable, Reachable, Migration);
