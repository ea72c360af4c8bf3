//! Reading a regular file: where its data lies, and the hash of each chunk.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::OnceLock;

use rustix::fs::{Mode, OFlags, SeekFrom, openat, seek};
use rustix::io::{Errno, pread};

use crate::control::Control;
use crate::entry::{CHUNK, Content, Extent, HOLE, Hash};
use crate::error::{At, Result};

/// Opens a regular file for reading. A fifo that took its place since it was looked at does not block.
pub(crate) fn open_file(dir: BorrowedFd<'_>, name: &[u8]) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::NOCTTY;
    openat(dir, name, flags, Mode::empty())
}

/// Where the data of a file lies; `None` when it has no holes. File systems that cannot tell have none.
pub(crate) fn extents(file: impl AsFd, size: u64) -> rustix::io::Result<Option<Vec<Extent>>> {
    let mut found = Vec::new();
    let mut at = 0;
    while at < size {
        let start = match seek(&file, SeekFrom::Data(at)) {
            Ok(start) if start < size => start,
            Ok(_) | Err(Errno::NXIO) => break,
            Err(Errno::INVAL | Errno::OPNOTSUPP) => return Ok(None),
            Err(e) => return Err(e),
        };
        let end = match seek(&file, SeekFrom::Hole(start)) {
            Ok(end) => end.min(size),
            Err(Errno::NXIO) => size,
            Err(e) => return Err(e),
        };
        if end <= start {
            // The file changes under us; its times tell, and it is read again.
            break;
        }
        found.push(Extent { start, end });
        at = end;
    }
    let whole = found == [Extent { start: 0, end: size }] || size == 0;
    Ok(if whole { None } else { Some(found) })
}

/// Reads the bytes of chunk `index` into `buffer` (made as long as the chunk), holes as zeros. `false` when the file
/// ends before that: it was cut short meanwhile.
pub(crate) fn read_chunk(
    file: impl AsFd,
    content: &Content,
    index: u64,
    buffer: &mut Vec<u8>,
) -> rustix::io::Result<bool> {
    let len = content.chunk_len(index) as usize;
    let from = index * CHUNK;
    buffer.resize(len, 0);
    if content.extents.is_none() {
        return read_full(&file, buffer, from);
    }
    buffer.fill(0);
    let mut whole = true;
    for part in content.data_within(from, from + len as u64) {
        let slice = &mut buffer[(part.start - from) as usize..(part.end - from) as usize];
        whole &= read_full(&file, slice, part.start)?;
    }
    Ok(whole)
}

fn read_full(file: impl AsFd, mut into: &mut [u8], mut at: u64) -> rustix::io::Result<bool> {
    while !into.is_empty() {
        match pread(&file, &mut *into, at) {
            Ok(0) => {
                into.fill(0);
                return Ok(false);
            }
            Ok(n) => {
                at += n as u64;
                into = &mut into[n..];
            }
            Err(Errno::INTR) => {}
            Err(e) => return Err(e),
        }
    }
    Ok(true)
}

/// The hashes of the chunks `from..to`.
pub(crate) fn hash_chunks(
    file: impl AsFd,
    content: &Content,
    from: u64,
    to: u64,
    path: &[u8],
    buffer: &mut Vec<u8>,
    control: &Control<'_>,
) -> Result<Vec<Hash>> {
    let mut hashes = Vec::with_capacity((to - from) as usize);
    for index in from..to {
        control.check()?;
        let len = content.chunk_len(index);
        if content.extents.is_some() && content.data_within(index * CHUNK, index * CHUNK + len).is_empty() {
            hashes.push(HOLE);
        } else {
            control.pace_read(len)?;
            read_chunk(&file, content, index, buffer).at("read", path)?;
            hashes.push(hash(buffer));
        }
        control.add("scan", len, path);
    }
    Ok(hashes)
}

/// BLAKE3 of a chunk; never [`HOLE`], which is no hash of anything known.
pub(crate) fn hash(bytes: &[u8]) -> Hash {
    *blake3::hash(bytes).as_bytes()
}

/// Whether it is the hash of so many zeros, at most a chunk of them; or of a hole.
pub(crate) fn is_zero(zeros: &Hash, len: u64) -> bool {
    static ZEROS: [u8; CHUNK as usize] = [0; CHUNK as usize];
    static WHOLE: OnceLock<Hash> = OnceLock::new();
    // Nearly all are whole chunks: their hash is computed once.
    let of_zeros = || hash(&ZEROS[..len.min(CHUNK) as usize]);
    *zeros == HOLE || *zeros == if len == CHUNK { *WHOLE.get_or_init(of_zeros) } else { of_zeros() }
}
