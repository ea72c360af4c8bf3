//! One block device (or image file) onto another, in place: what is the same is not written, what is empty stays empty.

use std::fs::{File, OpenOptions};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::Path;

use rustix::fs::{FallocateFlags, SeekFrom, fallocate, seek};

use crate::content::extents;
use crate::control::Control;
use crate::entry::Extent;
use crate::error::{At, Error, Result, show};

/// Read and compared at once.
const PIECE: usize = 1024 * 1024;

/// Copies a device onto another that is at least as large; answers how many bytes were written. With `prove`, both are
/// read again and compared.
///
/// Only what the source says is allocated is read, where it can tell (thin images, sparse files); pieces of zeros are
/// not written where the destination has none either. Run again, it reads both and writes what differs.
///
/// # Errors
/// What cannot be read or written; `Mismatch` when the destination is too small or the proof fails; `Cancelled`.
pub fn mirror_device(source: &Path, dest: &Path, prove: bool, control: &Control<'_>) -> Result<u64> {
    let (from_path, to_path) = (source.as_os_str().as_bytes(), dest.as_os_str().as_bytes());
    let from = File::open(source).at("open", from_path)?;
    let to = OpenOptions::new().read(true).write(true).open(dest).at("open", to_path)?;
    let size = length(&from).at("measure", from_path)?;
    if to.metadata().at("stat", to_path)?.is_file() && length(&to).at("measure", to_path)? < size {
        to.set_len(size).at("set the length of", to_path)?;
    }
    if length(&to).at("measure", to_path)? < size {
        let why = format!("the source has {size} bytes, and it is smaller");
        return Err(Error::Mismatch { path: show(to_path), why });
    }
    control.start("copy", Some(size));
    let copied = Copy { from: &from, to: &to, size, from_path, to_path, control };
    let written = copied.run(true)?;
    to.sync_all().at("sync", to_path)?;
    if prove {
        // What was just written is read from the device, not from memory.
        let _ = rustix::fs::fadvise(&to, 0, None, rustix::fs::Advice::DontNeed);
        control.start("prove", Some(size));
        if copied.run(false)? > 0 {
            return Err(Error::Mismatch { path: show(to_path), why: "it differs from the source".into() });
        }
    }
    Ok(written)
}

/// Length of a file or of a device, which has none in its metadata.
fn length(file: &File) -> rustix::io::Result<u64> {
    seek(file, SeekFrom::End(0))
}

fn phase(write: bool) -> &'static str {
    if write { "copy" } else { "prove" }
}

struct Copy<'a> {
    from: &'a File,
    to: &'a File,
    size: u64,
    from_path: &'a [u8],
    to_path: &'a [u8],
    control: &'a Control<'a>,
}

impl Copy<'_> {
    /// Compares everything; answers how many bytes differed, and writes those when asked to.
    fn run(&self, write: bool) -> Result<u64> {
        let whole = [Extent { start: 0, end: self.size }];
        let data = extents(self.from.as_fd(), self.size).at("look for holes in", self.from_path)?;
        let there = extents(self.to.as_fd(), self.size).at("look for holes in", self.to_path)?;
        let there = there.as_deref().unwrap_or(&whole);
        let (mut at, mut differed) = (0, 0);
        let end = Extent { start: self.size, end: self.size };
        for extent in data.as_deref().unwrap_or(&whole).iter().chain([&end]) {
            differed += self.hole(at, extent.start, there, write)?;
            differed += self.range(extent.start, extent.end, false, write)?;
            at = extent.end;
        }
        Ok(differed)
    }

    /// Nothing lies there in the source: where the destination has nothing either, neither is read.
    fn hole(&self, from: u64, to: u64, there: &[Extent], write: bool) -> Result<u64> {
        let (mut at, mut differed) = (from, 0);
        let first = there.partition_point(|extent| extent.end <= from);
        for extent in there[first..].iter().take_while(|extent| extent.start < to) {
            let (start, end) = (extent.start.max(from), extent.end.min(to));
            self.control.add(phase(write), start - at, self.from_path);
            differed += self.range(start, end, true, write)?;
            at = end;
        }
        self.control.add(phase(write), to.saturating_sub(at), self.from_path);
        Ok(differed)
    }

    /// One run of bytes; of a hole, the source is known to be zeros.
    fn range(&self, from: u64, to: u64, hole: bool, write: bool) -> Result<u64> {
        let (mut here, mut there) = (vec![0; PIECE], vec![0; PIECE]);
        let (mut at, mut differed) = (from, 0);
        while at < to {
            self.control.check()?;
            let len = (to - at).min(PIECE as u64) as usize;
            let (here, there) = (&mut here[..len], &mut there[..len]);
            if !hole {
                self.from.read_exact_at(here, at).at("read", self.from_path)?;
            }
            self.to.read_exact_at(there, at).at("read", self.to_path)?;
            if here != there {
                differed += len as u64;
                if write {
                    self.put(here, at)?;
                }
            }
            at += len as u64;
            self.control.add(phase(write), len as u64, self.from_path);
        }
        Ok(differed)
    }

    fn put(&self, bytes: &[u8], at: u64) -> Result<()> {
        self.control.pace(bytes.len() as u64)?;
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        if bytes.iter().all(|b| *b == 0) && fallocate(self.to, flags, at, bytes.len() as u64).is_ok() {
            return Ok(());
        }
        self.to.write_all_at(bytes, at).at("write", self.to_path)
    }
}
