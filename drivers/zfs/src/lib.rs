//! Tandem driver: ZFS datasets on Linux, OpenZFS 2.1 to 2.3.
//!
//! A share is a dataset, exported over NFS or reached by its path; a point is a snapshot; a replica follows by `zfs send`
//! streams that libzfs_core writes and reads. Everything that the driver knows of an instance stands in user properties
//! of its datasets (module `image`); nothing is mounted or exported by the system itself.
//!
//! ```text
//! POOL/…/PARENT                      the setting `dataset`
//! POOL/…/PARENT/<instance>           never mounted; bears tandem:role, tandem:epoch and the rest
//! POOL/…/PARENT/<instance>/v1        the content; its snapshots tandem-<point> are the points
//! POOL/…/PARENT/<instance>/v2        a full copy that arrives; replaces v1 when it is whole
//! ```

mod apart;
mod aside;
mod carry;
mod config;
mod error;
mod folder;
mod header;
mod image;
mod instance;
mod keys;
mod lzc;
mod meta;
mod migration;
mod mount;
mod moves;
mod names;
mod observe;
mod pump;
mod replication;
mod serve;
mod store;
mod stream;
mod token;
mod tool;
mod verify;

use std::sync::Arc;

use tandem_sdk::Exporter;

pub use crate::config::Config;

/// Kind of this driver's resume tokens, and the version it writes.
pub(crate) const TOKEN: (&str, u32) = ("zfs.receive_resume_token", 1);
/// The stream format: what `zfs send` writes, every block as it is.
pub(crate) const FORMAT: &str = "zfs/1";
/// The same without blocks that are embedded in their pointers, which no encrypted dataset can hold.
pub(crate) const UNEMBEDDED: &str = "zfs/1-unembedded";

/// A back end of ZFS datasets.
#[derive(Clone, Debug)]
pub struct Zfs {
    inner: Arc<Inner>,
    /// Whether what is received here in clear gets encrypted.
    encrypts: bool,
}

#[derive(Debug)]
pub(crate) struct Inner {
    pub(crate) config: Config,
    pub(crate) share_mode: u32,
    pub(crate) exporter: Exporter,
}

tandem_sdk::export_driver!(Zfs: Replication, Streamed, Verifiable, Quiescable, Attachable, Reachable, Migration);
