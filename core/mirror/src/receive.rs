//! Building a new tree beside the old one from a stream.
//!
//! While the stream arrives only regular files with content of their own are made; everything else is logged, and made
//! by [`build`](crate::build) once the end has come. Nothing of the old tree is altered.

use std::io::{BufReader, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, FallocateFlags, Mode, OFlags, openat};
use rustix::io::{Errno, pwrite};

use crate::build::{Built, build};
use crate::content::{hash, open_file, read_chunk};
use crate::control::Control;
use crate::diff::Source;
use crate::entry::{CHUNK, Content, Entry, HOLE, Hash};
use crate::error::{At, Error, Result, show};
use crate::meta::{Me, Skipped, drop_default_acl, set_on_fd};
use crate::staging::{Logged, Staging};
use crate::tree::{Dirs, Tree, mtime_of, stat_fd};
use crate::wire::{ChunkHead, Frame, FrameReader, Partial, Put};

/// The tree that a stream builds upon.
#[derive(Debug)]
pub struct Base<'a> {
    /// The tree.
    pub tree: &'a Tree,
    /// Its manifest.
    pub manifest: &'a Path,
}

/// The tree before the base, which nobody needs any more. What it shares with the new tree is moved out of it, instead of
/// being linked and removed: an increment then costs what changed, not what there is. Whoever still reads it sees
/// things vanish, never a mixture.
#[derive(Debug)]
pub struct Spare<'a> {
    /// The tree. It is useless afterwards, and the caller removes it.
    pub tree: &'a Tree,
    /// What made the base from it: the file `delta` of the base's own staging folder, from an incremental stream.
    pub delta: &'a Path,
}

/// What arrived.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ReceiveReport {
    /// The label of the stream.
    pub label: Vec<u8>,
    /// Bytes of the stream.
    pub bytes: u64,
    /// Bytes of content that an earlier, cut stream had brought.
    pub resumed_bytes: u64,
    /// What could not be reproduced.
    pub skipped: Skipped,
    /// The new tree's manifest, whose root hash was proven.
    pub summary: crate::manifest::Summary,
    /// Nothing differs from the base: no new tree was built, and the staging folder is of no use.
    pub unchanged: bool,
    /// Paths that hold something newer than the manifest says, since they changed before they could be sent.
    pub newer: u64,
}

/// After so many bytes of content, what arrived is made to survive a power cut.
const DURABLE_EVERY: u64 = 1 << 30;
/// After so many, to survive this process.
const SAVE_EVERY: u64 = 4 << 20;

/// Receives a stream into the staging folder `dir`. When it returns, `dir/tree` is the new tree, `dir/manifest` its
/// manifest, and `dir/variants` tells where the tree is newer; all of it durable. After an error, what arrived is kept
/// (see [`staged`](crate::staged)).
pub fn receive(
    input: &mut dyn Read,
    dir: &Path,
    base: Option<&Base<'_>>,
    spare: Option<&Spare<'_>>,
    label: &[u8],
    control: &Control<'_>,
) -> Result<ReceiveReport> {
    let mut input = BufReader::with_capacity(256 * 1024, input);
    let mut frames = FrameReader::new(&mut input, control);
    let mut chunk = Vec::new();
    let Frame::Header(header) = frames.next(&mut chunk)? else {
        return Err(Error::malformed("the stream", "it does not start with a header"));
    };
    if header.label != label {
        return Err(Error::OutOfStep("it carries another point than was announced".into()));
    }
    let have = base.map(|b| crate::manifest::read_summary(b.manifest)).transpose().map_err(unusable)?;
    let have = have.map(|s| s.root);
    if header.base.is_some() && header.base != have {
        return Err(Error::OutOfStep("it builds upon a point that is not here".into()));
    }
    let base = base.filter(|_| header.base.is_some());
    let staging = Staging::open(dir, &header)?;
    let resumed_bytes = staging.mark.bytes;
    control.start("transfer", Some(header.bytes));
    let tree = Tree::open(&staging.path("tree"))?;
    drop_default_acl(tree.fd());
    rustix::fs::fchmod(tree.fd(), Mode::RWXU).at("set the permissions of", b"")?;
    let mut receiver = Receiver {
        staging,
        tree: tree.dirs(),
        base: base.map(|b| b.tree.dirs()),
        me: Me::get(),
        saved: resumed_bytes,
        synced: resumed_bytes,
        control,
    };
    let arrived = receiver.run(&mut frames, &mut chunk);
    let bytes = frames.received;
    let mut staging = receiver.staging;
    if let Err(e) = arrived {
        // Best effort: the transfer's own error is what matters; an older mark stays good.
        let _ = staging.save();
        return Err(e);
    }
    if header.base == Some(header.root) && staging.is_empty() {
        let summary =
            base.map(|b| crate::manifest::read_summary(b.manifest)).transpose()?.unwrap_or_default();
        return Ok(ReceiveReport {
            label: header.label,
            bytes,
            summary,
            unchanged: true,
            ..ReceiveReport::default()
        });
    }
    let built: Built =
        build(&mut staging, &tree, base, spare.filter(|_| base.is_some()), &header.root, control)?;
    let mut skipped = staging.mark.skipped;
    skipped.add(built.skipped);
    Ok(ReceiveReport {
        label: header.label,
        bytes,
        resumed_bytes,
        skipped,
        summary: built.summary,
        unchanged: false,
        newer: built.newer,
    })
}

struct Receiver<'a> {
    staging: Staging,
    tree: Dirs<'a>,
    base: Option<Dirs<'a>>,
    me: Me,
    saved: u64,
    synced: u64,
    control: &'a Control<'a>,
}

impl Receiver<'_> {
    fn run(&mut self, frames: &mut FrameReader<'_>, chunk: &mut Vec<u8>) -> Result<()> {
        loop {
            match frames.next(chunk)? {
                Frame::Remove(path) => self.push(&Logged::Remove(path))?,
                Frame::Gone(entry) => self.push(&Logged::Gone(entry))?,
                Frame::Put(put) if put.entry.content().is_some() => self.file(put, frames, chunk)?,
                Frame::Put(Put { entry, original, .. }) => self.push(&Logged::Put { entry, original })?,
                Frame::End => {
                    self.staging.mark.resume.ended = true;
                    return self.staging.save();
                }
                Frame::Header(_) | Frame::Chunk(_) | Frame::Done(_) => {
                    return Err(Error::malformed("the stream", "its frames are out of order"));
                }
            }
        }
    }

    fn push(&mut self, logged: &Logged) -> Result<()> {
        let done = self.staging.mark.resume.done.as_deref();
        if done.is_some_and(|done| crate::entry::compare(logged.path(), done) != std::cmp::Ordering::Greater)
        {
            return Err(Error::malformed("the stream", "its changes are out of order"));
        }
        self.staging.push(logged)
    }

    fn file(&mut self, put: Put, frames: &mut FrameReader<'_>, chunk: &mut Vec<u8>) -> Result<()> {
        let proof = put.proof();
        let path = put.entry.path.clone();
        let Put { mut entry, mut original, source, carry, skip } = put;
        let mut hashes = entry.content().map(|c| c.chunks.clone()).unwrap_or_default();
        if let (Source::Base { path: from, whole: true, identity }, true) = (&source, carry.is_empty())
            && self.link(from, &path, *identity)?
        {
            return self.push(&Logged::Put { entry, original });
        }
        let partial = self.staging.mark.resume.partial.take();
        let continues =
            partial.filter(|p| p.path == path && p.proof == proof && p.chunks == skip && skip > 0);
        let file = if continues.is_some() {
            self.staging.mark.resume.partial = continues;
            let (dir, name) = self.tree.parent(&path).at("open the folder of", &path)?;
            // It may have been complete already, with its own permissions, when this side was killed.
            let _ = rustix::fs::chmodat(dir, name, Mode::RUSR | Mode::WUSR, AtFlags::empty());
            openat(dir, name, OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())
                .at("open", &path)?
        } else if skip > 0 {
            return Err(Error::OutOfStep(format!(
                "it continues `{}`, which did not begin here",
                show(&path)
            )));
        } else {
            let file = self.create(&path)?;
            let content = entry.content().cloned().unwrap_or_default();
            if let Source::Base { path: from, identity, .. } = &source {
                let carried: Vec<u64> = carry.iter().flat_map(|(a, b)| *a..*b).collect();
                self.copy_base(from, *identity, &file, &content, &carried, &path)?;
            }
            // What is written from its start to its end gets its length by that.
            if carry.is_empty() || content.extents.is_some() || source != Source::Nothing {
                rustix::fs::ftruncate(&file, content.size).at("set the length of", &path)?;
            }
            file
        };
        if !carry.is_empty() {
            let mut expected = carry.iter().flat_map(|(from, to)| *from..*to).skip(skip as usize).peekable();
            let mut arrived = skip;
            loop {
                match frames.next(chunk)? {
                    Frame::Chunk(head) => {
                        let foreseen = expected.next_if_eq(&head.index).is_some();
                        if !foreseen && expected.peek().is_some() {
                            return Err(Error::malformed("the stream", "its chunks are out of order"));
                        }
                        write_chunk(&file, &head, chunk, !foreseen).at("write", &path)?;
                        // A file that grew meanwhile grows piece by piece; a damaged number would exhaust memory.
                        let slot = head.index as usize;
                        if slot > hashes.len() {
                            return Err(Error::malformed(
                                "the stream",
                                "a chunk lies far behind its file's end",
                            ));
                        }
                        if hashes.len() <= slot {
                            hashes.resize(slot + 1, HOLE);
                        }
                        hashes[slot] = head.hash;
                        self.staging.mark.bytes += head.len;
                        self.control.add("transfer", head.len, &path);
                        if foreseen && original_hash(&entry, slot) == Some(&head.hash) {
                            arrived += 1;
                            self.staging.mark.resume.partial =
                                Some(Partial { path: path.clone(), proof, chunks: arrived });
                            self.save_now_and_then()?;
                        } else {
                            // It changed while it was sent: only the whole file makes sense, so a cut starts it again.
                            self.staging.mark.resume.partial = None;
                            arrived = u64::MAX / 2;
                        }
                    }
                    Frame::Done(amended) => {
                        if let Some(now) = amended {
                            if now.path != path || now.content().is_none() {
                                return Err(Error::malformed("the stream", "a file ends as another"));
                            }
                            let announced = std::mem::replace(&mut entry, now);
                            original.get_or_insert(announced);
                            let size = entry.content().map_or(0, |c| c.size);
                            rustix::fs::ftruncate(&file, size).at("set the length of", &path)?;
                        }
                        break;
                    }
                    _ => return Err(Error::malformed("the stream", "a file has no end")),
                }
            }
            let content = entry.content().cloned().unwrap_or_default();
            hashes.truncate(content.chunks.len());
            if expected.peek().is_some() || hashes != content.chunks {
                return Err(Error::Mismatch {
                    path: show(&path),
                    why: "what arrived is not all of it".into(),
                });
            }
        }
        set_on_fd(&file, &entry.meta, self.me, &path, &mut self.staging.mark.skipped)?;
        self.push(&Logged::Put { entry, original })?;
        self.save_now_and_then()
    }

    fn create(&mut self, path: &[u8]) -> Result<OwnedFd> {
        let (dir, name) = crate::entry::split(path).ok_or(Errno::INVAL).at("create", path)?;
        let dir = self.tree.dir_or_make(dir).at("create the folder of", path)?;
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        match openat(dir, name, flags, Mode::RUSR | Mode::WUSR) {
            Err(Errno::EXIST) => {
                // Left by a stream that was cut within this file.
                rustix::fs::unlinkat(dir, name, AtFlags::empty()).at("replace", path)?;
                openat(dir, name, flags, Mode::RUSR | Mode::WUSR).at("create", path)
            }
            other => other.at("create", path),
        }
    }

    /// Gives a file of the base another name in the new tree. `false` where the file system does not allow it.
    fn link(&mut self, from: &[u8], to: &[u8], identity: Option<(u64, crate::entry::Time)>) -> Result<bool> {
        let Some(base) = &mut self.base else { return Err(no_base(from)) };
        let (old_dir, old_name) = base.parent(from).map_err(|e| lacking(from, &e))?;
        let st = crate::tree::stat(old_dir, old_name).map_err(|e| lacking(from, &e.into()))?;
        if identity.is_some_and(|identity| identity != (st.stx_size, mtime_of(&st))) {
            return Err(altered(from));
        }
        let (dir, name) = crate::entry::split(to).ok_or(Errno::INVAL).at("create", to)?;
        let dir = self.tree.dir_or_make(dir).at("create the folder of", to)?;
        crate::build::link(old_dir, old_name, dir, name).at("link", to)
    }

    fn copy_base(
        &mut self,
        from: &[u8],
        identity: Option<(u64, crate::entry::Time)>,
        to: &OwnedFd,
        content: &Content,
        carried: &[u64],
        path: &[u8],
    ) -> Result<()> {
        let Some(base) = &mut self.base else { return Err(no_base(from)) };
        let (dir, name) = base.parent(from).map_err(|e| lacking(from, &e))?;
        let old = open_file(dir, name).map_err(|e| lacking(from, &e.into()))?;
        let st = stat_fd(&old).at("stat", from)?;
        // Without a known identity, or with another one, only the hashes can tell what is usable.
        let known = identity == Some((st.stx_size, mtime_of(&st)));
        let keep = |index: u64| {
            content.chunks.get(index as usize) != Some(&HOLE) && carried.binary_search(&index).is_err()
        };
        if !known {
            return copy_proven(&old, to, content, &keep, from, self.control);
        }
        crate::copy::copy(&old, to, content, st.stx_size, &keep, path, self.control)
    }

    fn save_now_and_then(&mut self) -> Result<()> {
        let bytes = self.staging.mark.bytes;
        if bytes - self.synced >= DURABLE_EVERY {
            (self.synced, self.saved) = (bytes, bytes);
            self.staging.save_durably()
        } else if bytes - self.saved >= SAVE_EVERY {
            self.saved = bytes;
            self.staging.save()
        } else {
            Ok(())
        }
    }
}

fn original_hash(entry: &Entry, slot: usize) -> Option<&Hash> {
    entry.content().and_then(|c| c.chunks.get(slot))
}

/// Writes the allocated parts of a chunk. `again` when something else may lie there already.
fn write_chunk(file: &OwnedFd, head: &ChunkHead, chunk: &[u8], again: bool) -> rustix::io::Result<()> {
    let from = head.index * CHUNK;
    let dense = head.parts.iter().map(|p| p.end - p.start).sum::<u64>() == head.len;
    if again && !dense {
        punch(file, from, head.len)?;
    }
    for part in &head.parts {
        let mut bytes = &chunk[(part.start - from) as usize..(part.end - from) as usize];
        let mut at = part.start;
        while !bytes.is_empty() {
            match pwrite(file, bytes, at) {
                Ok(0) => return Err(Errno::IO),
                Ok(n) => {
                    bytes = &bytes[n..];
                    at += n as u64;
                }
                Err(Errno::INTR) => {}
                Err(e) => return Err(e),
            }
        }
    }
    Ok(())
}

/// Makes a hole; where the file system has none, zeros.
fn punch(file: &OwnedFd, from: u64, len: u64) -> rustix::io::Result<()> {
    let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    match rustix::fs::fallocate(file.as_fd(), flags, from, len) {
        Err(Errno::OPNOTSUPP) => {
            let zeros = vec![0; len as usize];
            pwrite(file, &zeros, from).map(drop)
        }
        other => other,
    }
}

/// Copies chunks whose hash proves them.
fn copy_proven(
    old: &OwnedFd,
    to: &OwnedFd,
    content: &Content,
    keep: &dyn Fn(u64) -> bool,
    from: &[u8],
    control: &Control<'_>,
) -> Result<()> {
    let mut buffer = Vec::new();
    let plain = Content { size: content.size, ..Content::default() };
    for (index, expected) in content.chunks.iter().enumerate() {
        let index = index as u64;
        if !keep(index) {
            continue;
        }
        control.check()?;
        let whole = read_chunk(old, &plain, index, &mut buffer).at("read", from)?;
        if !whole || hash(&buffer) != *expected {
            return Err(altered(from));
        }
        let start = index * CHUNK;
        let parts = content.data_within(start, start + buffer.len() as u64);
        let head = ChunkHead { index, hash: *expected, len: buffer.len() as u64, parts };
        write_chunk(to, &head, &buffer, false).at("write", from)?;
    }
    Ok(())
}

fn altered(path: &[u8]) -> Error {
    Error::BaseChanged {
        path: show(path),
        why: "it has another length or time than when it was received".into(),
    }
}

fn lacking(path: &[u8], e: &std::io::Error) -> Error {
    Error::BaseChanged { path: show(path), why: format!("it cannot be opened: {e}") }
}

fn no_base(path: &[u8]) -> Error {
    Error::malformed("the stream", format!("it takes `{}` from a base that it does not name", show(path)))
}

/// A base whose manifest is damaged is a base no more: only a full copy helps.
pub(crate) fn unusable(error: Error) -> Error {
    match error {
        Error::Malformed { what, why } => {
            Error::BaseChanged { path: show(b""), why: format!("{what} of it is damaged: {why}") }
        }
        other => other,
    }
}
