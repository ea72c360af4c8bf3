//! Replication by DRBD 8.4, below the file system.
//!
//! ```text
//! GROUP/tandem-<instance>         the share's data; its tags say minor, port, peer (module `record`)
//! GROUP/tandem-<instance>.drbd    DRBD's metadata for it: external, so that nothing moves when the share grows
//! /dev/drbd<minor>                what is mounted, on the active side only
//! GROUP/tandem-<instance>.read0   and `.read1`: what users read of a follower in the style `readable` (module `view`)
//! ```
//!
//! Why so: `docs/decisions/0008-drbd-by-its-tools.md`. The kernel holds nothing that the tags cannot give back: after a boot a
//! resource is made anew (`stack`), and only when `ensure_instance` or a later call asks for it.

pub(crate) mod arbiter;
mod convert;
pub(crate) mod fence;
pub(crate) mod generation;
mod grow;
pub(crate) mod handshake;
mod helper;
mod lay;
mod lost;
pub(crate) mod numbers;
mod peers;
pub(crate) mod record;
mod report;
mod roles;
pub(crate) mod settings;
mod stack;
pub(crate) mod starved;
pub(crate) mod status;
pub(crate) mod tools;
mod view;
mod watch;
pub(crate) mod writable;

/// The replication protocol, as endpoints and capabilities name it.
pub(crate) const PROTOCOL: &str = "drbd-8.4";
/// DRBD's major number: Documentation/admin-guide/devices.txt.
pub(crate) const MAJOR: u32 = 147;
