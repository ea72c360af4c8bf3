//! One thing in a tree, described exactly, and its encoding.

use std::cmp::Ordering;

use crate::codec::{Take, put_bytes, put_i64, put_u64};
use crate::error::{Result, show};

/// Content is hashed and carried in pieces of this many bytes; the last one of a file may be shorter. Small enough that
/// scattered writes into a large file carry little, large enough that hashes are 1/2048 of the content.
pub const CHUNK: u64 = 64 * 1024;

/// BLAKE3 of a chunk's content, holes read as zeros.
pub type Hash = [u8; 32];

/// Stands for a chunk that lies wholly in a hole: it is never read, carried or written.
pub const HOLE: Hash = [0; 32];

/// A moment, to the nanosecond.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Time {
    /// Seconds since 1970; negative before.
    pub sec: i64,
    /// Nanoseconds, below 1,000,000,000.
    pub nsec: u32,
}

/// An extended attribute.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Xattr {
    /// Its full name, such as `user.colour`.
    pub name: Vec<u8>,
    /// Its value.
    pub value: Vec<u8>,
}

/// Who may do what, and when it was changed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Meta {
    /// Permission bits with setuid, setgid and sticky (0o7777).
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Time of the last change of content.
    pub mtime: Time,
    /// Extended attributes, ACLs among them, sorted by name.
    pub xattrs: Vec<Xattr>,
}

/// A run of bytes that is allocated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// First byte.
    pub start: u64,
    /// The byte after the last.
    pub end: u64,
}

/// What a regular file holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Content {
    /// Length in bytes.
    pub size: u64,
    /// One hash for each [`CHUNK`].
    pub chunks: Vec<Hash>,
    /// Where the data lies when there are holes, ascending; `None` for a file without holes.
    pub extents: Option<Vec<Extent>>,
}

impl Content {
    /// One hash over the whole content and its holes: equal when two files are the same to a reader and in allocation.
    pub fn digest(&self) -> Hash {
        let mut out = Vec::with_capacity(16);
        put_u64(&mut out, self.size);
        encode_extents(&mut out, self.extents.as_deref());
        let mut hasher = blake3::Hasher::new();
        hasher.update(&out);
        hasher.update(self.chunks.as_flattened());
        *hasher.finalize().as_bytes()
    }

    /// Length of chunk `index` in bytes.
    pub fn chunk_len(&self, index: u64) -> u64 {
        self.size.saturating_sub(index * CHUNK).min(CHUNK)
    }

    /// The allocated parts of the bytes `from..to`.
    pub fn data_within(&self, from: u64, to: u64) -> Vec<Extent> {
        let Some(extents) = &self.extents else {
            return if from < to { vec![Extent { start: from, end: to }] } else { Vec::new() };
        };
        let first = extents.partition_point(|e| e.end <= from);
        extents[first..]
            .iter()
            .take_while(|e| e.start < to)
            .map(|e| Extent { start: e.start.max(from), end: e.end.min(to) })
            .collect()
    }

    /// Bytes of data, holes left out.
    pub fn data_bytes(&self) -> u64 {
        match &self.extents {
            None => self.size,
            Some(extents) => extents.iter().map(|e| e.end - e.start).sum(),
        }
    }
}

/// What an entry is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A folder.
    Dir,
    /// A regular file.
    File(Content),
    /// A symbolic link.
    Symlink {
        /// Where it points, as written.
        target: Vec<u8>,
    },
    /// A named pipe.
    Fifo,
    /// A socket's name.
    Socket,
    /// A character device.
    CharDevice {
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
    },
    /// A block device.
    BlockDevice {
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
    },
    /// A further name of an entry that came before. Its metadata is that entry's and is left at its default here.
    HardLink {
        /// The first name, in the order of the tree.
        to: Vec<u8>,
    },
}

/// What the file system on this host says about an entry, by which a later scan knows that it did not change.
/// Not part of what is carried or proven.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Local {
    /// Device.
    pub dev: u64,
    /// Inode.
    pub ino: u64,
    /// Time of the last change of anything.
    pub ctime: Time,
}

/// One name in a tree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Path from the root of the tree, parts joined by `/`; the root itself is empty. Any bytes but NUL.
    pub path: Vec<u8>,
    /// Owner, permissions, time, attributes.
    pub meta: Meta,
    /// What it is.
    pub kind: Kind,
    /// How to know it again on this host; `None` when it came from elsewhere or was changed too recently to be sure.
    pub local: Option<Local>,
}

impl Entry {
    /// The content, when it is a regular file.
    pub fn content(&self) -> Option<&Content> {
        match &self.kind {
            Kind::File(content) => Some(content),
            _ => None,
        }
    }

    /// Whether both describe the same thing, on whatever host.
    pub fn same(&self, other: &Self) -> bool {
        self.path == other.path && self.same_but_path(other)
    }

    /// Whether both are the same but for their names.
    pub fn same_but_path(&self, other: &Self) -> bool {
        self.meta == other.meta && self.kind == other.kind
    }

    /// Writes what is carried and proven. `previous` is the path of the entry before it in the same list.
    pub(crate) fn encode(&self, previous: &[u8], out: &mut Vec<u8>) {
        let shared = self.path.iter().zip(previous).take_while(|(a, b)| a == b).count();
        put_u64(out, shared as u64);
        put_bytes(out, &self.path[shared..]);
        out.push(match &self.kind {
            Kind::Dir => 0,
            Kind::File(_) => 1,
            Kind::Symlink { .. } => 2,
            Kind::Fifo => 3,
            Kind::Socket => 4,
            Kind::CharDevice { .. } => 5,
            Kind::BlockDevice { .. } => 6,
            Kind::HardLink { .. } => 7,
        });
        match &self.kind {
            Kind::HardLink { to } => return put_bytes(out, to),
            Kind::File(content) => {
                put_u64(out, content.size);
                encode_extents(out, content.extents.as_deref());
                out.extend_from_slice(content.chunks.as_flattened());
            }
            Kind::Symlink { target } => put_bytes(out, target),
            Kind::CharDevice { major, minor } | Kind::BlockDevice { major, minor } => {
                put_u64(out, u64::from(*major));
                put_u64(out, u64::from(*minor));
            }
            Kind::Dir | Kind::Fifo | Kind::Socket => {}
        }
        put_u64(out, u64::from(self.meta.mode));
        put_u64(out, u64::from(self.meta.uid));
        put_u64(out, u64::from(self.meta.gid));
        put_i64(out, self.meta.mtime.sec);
        put_u64(out, u64::from(self.meta.mtime.nsec));
        put_u64(out, self.meta.xattrs.len() as u64);
        for xattr in &self.meta.xattrs {
            put_bytes(out, &xattr.name);
            put_bytes(out, &xattr.value);
        }
    }

    /// Reads what [`Entry::encode`] wrote, and refuses what could lead out of the tree.
    pub(crate) fn decode(previous: &[u8], take: &mut Take<'_>) -> Result<Self> {
        let shared = take.u64()? as usize;
        let Some(prefix) = previous.get(..shared) else {
            return Err(take.bad("a path builds upon a longer one than came before"));
        };
        let mut path = prefix.to_vec();
        path.extend_from_slice(take.bytes()?);
        if !is_safe(&path) {
            return Err(take.bad(&format!("`{}` is no path within a tree", show(&path))));
        }
        let kind = match take.u8()? {
            0 => Kind::Dir,
            1 => Kind::File(decode_content(take)?),
            2 => Kind::Symlink { target: take.bytes()?.to_vec() },
            3 => Kind::Fifo,
            4 => Kind::Socket,
            5 => Kind::CharDevice { major: take.u32()?, minor: take.u32()? },
            6 => Kind::BlockDevice { major: take.u32()?, minor: take.u32()? },
            7 => {
                let to = take.bytes()?.to_vec();
                if !is_safe(&to) || compare(&to, &path) != Ordering::Less {
                    return Err(take.bad("a hard link points forward or out of the tree"));
                }
                return Ok(Self { path, meta: Meta::default(), kind: Kind::HardLink { to }, local: None });
            }
            other => return Err(take.bad(&format!("kind {other} of an entry is unknown"))),
        };
        if path.is_empty() && kind != Kind::Dir {
            return Err(take.bad("the root is not a folder"));
        }
        let mut meta = Meta {
            mode: take.u32()? & 0o7777,
            uid: take.u32()?,
            gid: take.u32()?,
            mtime: Time { sec: take.i64()?, nsec: take.u32()? },
            xattrs: Vec::new(),
        };
        if meta.mtime.nsec >= 1_000_000_000 {
            return Err(take.bad("a time has too many nanoseconds"));
        }
        for _ in 0..take.count(2)? {
            meta.xattrs.push(Xattr { name: take.bytes()?.to_vec(), value: take.bytes()?.to_vec() });
        }
        Ok(Self { path, meta, kind, local: None })
    }
}

fn encode_extents(out: &mut Vec<u8>, extents: Option<&[Extent]>) {
    let Some(extents) = extents else { return out.push(0) };
    out.push(1);
    put_u64(out, extents.len() as u64);
    let mut at = 0;
    for extent in extents {
        put_u64(out, extent.start - at);
        put_u64(out, extent.end - extent.start);
        at = extent.end;
    }
}

fn decode_content(take: &mut Take<'_>) -> Result<Content> {
    let size = take.u64()?;
    let mut content = Content { size, chunks: Vec::new(), extents: None };
    if take.u8()? == 1 {
        let mut extents = Vec::new();
        let mut at = 0u64;
        for _ in 0..take.count(2)? {
            let (gap, len) = (take.u64()?, take.u64()?);
            let end = at.checked_add(gap).and_then(|start| start.checked_add(len));
            let Some(end) = end.filter(|end| *end <= size && len > 0) else {
                return Err(take.bad("an extent lies outside its file"));
            };
            extents.push(Extent { start: end - len, end });
            at = end;
        }
        content.extents = Some(extents);
    }
    let count = usize::try_from(size.div_ceil(CHUNK)).map_err(|_| take.bad("a file is too large"))?;
    let raw = take.raw(count.saturating_mul(32))?;
    content.chunks = raw.as_chunks::<32>().0.to_vec();
    Ok(content)
}

/// Whether a path stays within its tree: no empty, `.` or `..` part and no NUL.
pub(crate) fn is_safe(path: &[u8]) -> bool {
    path.is_empty()
        || (!path.contains(&0)
            && path.split(|b| *b == b'/').all(|part| !part.is_empty() && part != b"." && part != b".."))
}

/// The order of a tree: parents before children, names by their bytes within a folder.
pub fn compare(a: &[u8], b: &[u8]) -> Ordering {
    // A path sorts as if `/` were lower than any byte of a name, for a name never contains NUL.
    let key = |byte: &u8| if *byte == b'/' { 0 } else { *byte };
    a.iter().map(key).cmp(b.iter().map(key))
}

/// Whether `path` lies below the folder `dir`.
pub fn is_below(path: &[u8], dir: &[u8]) -> bool {
    if dir.is_empty() {
        return !path.is_empty();
    }
    path.len() > dir.len() && path.starts_with(dir) && path[dir.len()] == b'/'
}

/// The folder a path lies in, and its last part; `None` for the root.
pub fn split(path: &[u8]) -> Option<(&[u8], &[u8])> {
    if path.is_empty() {
        return None;
    }
    Some(match path.iter().rposition(|b| *b == b'/') {
        Some(at) => (&path[..at], &path[at + 1..]),
        None => (&[], path),
    })
}
