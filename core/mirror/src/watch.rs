//! Cheap questions about a live tree: did anything change since a manifest, and how much room does it take.

use std::io::Read;

use rustix::fs::FileType;

use crate::control::Control;
use crate::entry::{Entry, Kind, Meta};
use crate::error::Result;
use crate::manifest::ManifestReader;
use crate::scan::{Described, Links, Met, Walk, describe_file, is_known};
use crate::tree::{Tree, mtime_of};

/// Larger files are not read again to tell whether they changed.
const READ_AGAIN: u64 = 16 * 1024 * 1024;

/// Whether the permissions of a tree's root count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RootMode {
    /// They do.
    Counts,
    /// They do not: its keeper takes them away and gives them back.
    Aside,
}

/// Whether the tree differs from an earlier manifest of it on this host: one stat a name, nothing read. Ends at the
/// first difference.
///
/// What was changed within the tick of the clock in which the manifest was made has no identity in it; it is compared by
/// length, owner, permissions and time, and a file by its content, so that nothing is missed. A large such file counts
/// as changed.
pub fn changed<R: Read>(
    tree: &Tree,
    mut manifest: ManifestReader<R>,
    root: RootMode,
    control: &Control<'_>,
) -> Result<bool> {
    let mut walk = Walk::new(tree);
    let mut links = Links::default();
    loop {
        control.check()?;
        match (walk.next()?, manifest.read_next()?) {
            (None, None) => return Ok(false),
            (Some(met), Some(entry)) if met.path == entry.path => {
                let leader = links.leader(&met);
                let same = match (&entry.kind, leader) {
                    (Kind::HardLink { to }, Some(leader)) => *to == leader,
                    (Kind::HardLink { .. }, None) | (_, Some(_)) => false,
                    (Kind::Dir, None) if entry.path.is_empty() && root == RootMode::Aside => {
                        met.kind() == FileType::Directory && entry.meta.mtime == mtime_of(&met.st)
                    }
                    _ if entry.local.is_some() => is_known(&entry, &met),
                    _ => looks_same(&entry.kind, &entry.meta, &met) && reads_same(tree, &entry, control)?,
                };
                if !same {
                    return Ok(true);
                }
            }
            _ => return Ok(true),
        }
    }
}

/// Whether a regular file has the content that the manifest says.
fn reads_same(tree: &Tree, entry: &Entry, control: &Control<'_>) -> Result<bool> {
    let Some(content) = entry.content() else { return Ok(true) };
    if content.size > READ_AGAIN {
        return Ok(false);
    }
    let cancelled = || control.cancelled();
    let quiet = Control::new(&cancelled, &|_| {});
    match describe_file(tree, &mut tree.dirs(), &entry.path, 1, &mut Vec::new(), &quiet)? {
        Described::Entry(now, stable) => Ok(stable && now.same(entry)),
        Described::Gone => Ok(false),
    }
}

fn looks_same(kind: &Kind, meta: &Meta, met: &Met) -> bool {
    let kind = match kind {
        Kind::Dir => met.kind() == FileType::Directory,
        Kind::File(content) => met.kind() == FileType::RegularFile && content.size == met.st.stx_size,
        Kind::Symlink { target } => met.kind() == FileType::Symlink && target.len() as u64 == met.st.stx_size,
        Kind::Fifo => met.kind() == FileType::Fifo,
        Kind::Socket => met.kind() == FileType::Socket,
        Kind::CharDevice { .. } => met.kind() == FileType::CharacterDevice,
        Kind::BlockDevice { .. } => met.kind() == FileType::BlockDevice,
        Kind::HardLink { .. } => false,
    };
    let st = &met.st;
    kind && meta.mtime == mtime_of(st)
        && meta.mode == u32::from(st.stx_mode) & 0o7777
        && (meta.uid, meta.gid) == (st.stx_uid, st.stx_gid)
}

/// Bytes allocated by a tree, each file counted once however many names it has.
pub fn usage(tree: &Tree, control: &Control<'_>) -> Result<u64> {
    let mut walk = Walk::new(tree);
    let mut links = Links::default();
    let mut bytes = 0;
    while let Some(met) = walk.next()? {
        control.check()?;
        if links.leader(&met).is_none() {
            bytes += met.st.stx_blocks * 512;
        }
    }
    Ok(bytes)
}
