//! Describes, carries and reproduces a tree of files exactly: contents, holes, hard links, symlinks, special files,
//! extended attributes, ACLs, owners, permissions and times to the nanosecond; names of any bytes, folders of any depth.
//!
//! The parts, each of use alone:
//! - [`scan()`] describes a tree as a [manifest](ManifestWriter), reusing hashes that an earlier one knows;
//! - [`diff()`] tells what turns one manifest into another, moved content included;
//! - [`send()`] writes the difference as a stream, and [`receive()`] builds the new tree beside the old one from it,
//!   continuing where an earlier stream was cut;
//! - [`Mirror`] makes one tree equal to another in place, in passes, and proves it;
//! - [`mirror_device`] does so with block devices;
//! - [`fingerprint()`] reads a tree again, and tells by digests what it holds;
//! - [`Tree`] reaches into a tree without ever following a symlink.
//!
//! All calls block; [`Control`] carries progress out and a cancel in.

mod build;
mod codec;
mod content;
mod control;
mod copy;
mod device;
mod diff;
mod entry;
mod error;
mod fingerprint;
mod keep;
mod manifest;
mod meta;
mod onto;
mod receive;
mod recycle;
mod scan;
mod send;
mod staging;
mod tree;
mod variants;
mod watch;
mod wire;

pub use control::{Control, Step};
pub use device::mirror_device;
pub use diff::{Change, Diff, Moved, Run, Source, Variants, diff};
pub use entry::{
    CHUNK, Content, Entry, Extent, HOLE, Hash, Kind, Local, Meta, Time, Xattr, compare, is_below, split,
};
pub use error::{Error, Result, is_full, show};
pub use fingerprint::{FINGERPRINT_SCHEME, Fingerprint, Recorded, fingerprint};
pub use manifest::{ManifestReader, ManifestWriter, Summary, hex, read_summary, unhex};
pub use meta::Skipped;
pub use onto::{Mirror, Pass, Proof};
pub use receive::{Base, ReceiveReport, Spare, receive};
pub use scan::{ATTEMPTS, ScanReport, scan};
pub use send::{OnVariant, Outgoing, SendReport, send};
pub use staging::{Staged, staged, write_whole};
pub use tree::{Dirs, Tree, remove, remove_path};
pub use variants::{append_variant, read_variants};
pub use watch::{RootMode, changed, usage};
pub use wire::{Header, Partial, Resume, STREAM_FORMAT};
