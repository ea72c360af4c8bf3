//! Copying content between two files of one host: shared blocks where the file system can, in the kernel where it
//! cannot, by hand at last.

use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{FallocateFlags, copy_file_range, fallocate, ioctl_ficlone};
use rustix::io::{Errno, pread, pwrite};

use crate::control::Control;
use crate::entry::{CHUNK, Content, Extent};
use crate::error::{At, Error, Result, show};

/// Copied between two looks at the cancel flag.
const PIECE: u64 = 8 * 1024 * 1024;

/// Brings the chunks that `keep` names from `old` into the new, empty file `to`, holes as `content` has them. What
/// is not kept is left undefined for the caller to write.
pub(crate) fn copy(
    old: &OwnedFd,
    to: &OwnedFd,
    content: &Content,
    old_size: u64,
    keep: &dyn Fn(u64) -> bool,
    path: &[u8],
    control: &Control<'_>,
) -> Result<()> {
    if old_size > 0 && ioctl_ficlone(to, old).is_ok() {
        rustix::fs::ftruncate(to, content.size).at("set the length of", path)?;
        return punch_gaps(to, content, path);
    }
    let chunks = content.chunks.len() as u64;
    let mut at = 0;
    while at < chunks {
        if !keep(at) {
            at += 1;
            continue;
        }
        let from = at;
        while at < chunks && keep(at) {
            at += 1;
        }
        for part in content.data_within(from * CHUNK, (at * CHUNK).min(content.size)) {
            copy_part(old, to, part, path, control)?;
        }
    }
    Ok(())
}

fn copy_part(old: &OwnedFd, to: &OwnedFd, part: Extent, path: &[u8], control: &Control<'_>) -> Result<()> {
    let mut at = part.start;
    let mut by_hand = false;
    let mut buffer = Vec::new();
    while at < part.end {
        control.check()?;
        let len = (part.end - at).min(PIECE) as usize;
        let copied = if by_hand {
            buffer.resize(len.min(CHUNK as usize), 0);
            let n = pread(old, &mut buffer, at).at("read", path)?;
            let mut written = 0;
            while written < n {
                written += pwrite(to, &buffer[written..n], at + written as u64).at("write", path)?;
            }
            n
        } else {
            let (mut from, mut into) = (at, at);
            match copy_file_range(old, Some(&mut from), to, Some(&mut into), len) {
                Ok(n) => n,
                Err(Errno::XDEV | Errno::NOSYS | Errno::INVAL | Errno::OPNOTSUPP | Errno::PERM) => {
                    by_hand = true;
                    continue;
                }
                Err(Errno::INTR) => continue,
                Err(e) => return Err(e).at("copy", path),
            }
        };
        if copied == 0 {
            return Err(Error::BaseChanged { path: show(path), why: "it is shorter than it was".into() });
        }
        at += copied as u64;
    }
    Ok(())
}

/// Makes the holes that `content` has and a cloned file may lack.
fn punch_gaps(to: impl AsFd, content: &Content, path: &[u8]) -> Result<()> {
    let Some(extents) = &content.extents else { return Ok(()) };
    let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    let mut at = 0;
    let end = Extent { start: content.size, end: content.size };
    for extent in extents.iter().chain([&end]) {
        if extent.start > at {
            fallocate(&to, flags, at, extent.start - at).at("make a hole in", path)?;
        }
        at = extent.end;
    }
    Ok(())
}
