//! One name that is no folder: copied, or brought up to date, by one of several threads.

use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{
    AtFlags, FallocateFlags, FileType, Mode, OFlags, Statx, fallocate, ftruncate, ioctl_ficlone, makedev,
    mknodat, openat, symlinkat, unlinkat,
};
use rustix::io::{Errno, pread, pwrite};

use super::Pass;
use crate::content::{extents, hash, open_file, read_chunk};
use crate::control::Control;
use crate::entry::{CHUNK, Content, Entry, HOLE, Hash, Kind};
use crate::error::{At, Error, Result, show};
use crate::meta::{Me, drop_xattrs, meta_of, set_on_fd, set_on_name, xattrs_of_fd};
use crate::scan::{ATTEMPTS, Described, Met, describe, settled};
use crate::tree::{Dirs, Tree, local_of, mtime_of, remove, stat_fd};

/// Smaller files are written anew when they change.
const WORTH_PATCHING: u64 = 1024 * 1024;
/// Smaller files are not worth the question whether blocks can be shared.
const WORTH_SHARING: u64 = 128 * 1024;

pub(super) struct Copier<'a> {
    source_tree: &'a Tree,
    source: Dirs<'a>,
    dest: Dirs<'a>,
    me: Me,
    control: &'a Control<'a>,
    buffer: Vec<u8>,
    there: Vec<u8>,
    /// Whether the file system refused to share blocks.
    no_sharing: bool,
    pub report: Pass,
}

/// What a file in the destination holds before it is brought up to date.
enum Old<'e> {
    /// Nothing: it is new.
    Nothing,
    /// The same blocks as the source.
    Shared,
    /// These chunks: what an earlier pass left there.
    Known(&'e [Hash]),
    /// Something: it is read and compared.
    Unknown,
}

impl<'a> Copier<'a> {
    pub fn new(source: &'a Tree, dest: &'a Tree, me: Me, control: &'a Control<'a>) -> Self {
        Self {
            source_tree: source,
            source: source.dirs(),
            dest: dest.dirs(),
            me,
            control,
            buffer: Vec::new(),
            there: Vec::new(),
            no_sharing: false,
            report: Pass::default(),
        }
    }

    /// Copies what was met in the source; `None` when it is not there any more.
    pub fn copy(
        &mut self,
        met: &Met,
        there: Option<&Statx>,
        earlier: Option<&Entry>,
    ) -> Result<Option<Entry>> {
        if met.kind() == FileType::RegularFile {
            return self.regular(met, there, earlier);
        }
        match describe(self.source_tree, &mut self.source, met, 1, &mut self.buffer, self.control)? {
            Described::Gone => Ok(None),
            Described::Entry(entry, _) => {
                self.special(&entry, there)?;
                Ok(Some(entry))
            }
        }
    }

    fn special(&mut self, entry: &Entry, there: Option<&Statx>) -> Result<()> {
        let path = &entry.path;
        let (here, name) = self.dest.parent(path).at("open the folder of", path)?;
        if there.is_some_and(|st| super::looks_like(entry, Some(st)) && same_special(entry, st, here, name)) {
            let st = there.map(|st| (st.stx_uid, st.stx_gid));
            let xattrs = crate::meta::xattrs_of_path(&crate::tree::proc_path(here, name));
            if st == Some((entry.meta.uid, entry.meta.gid)) && xattrs.is_ok_and(|x| x == entry.meta.xattrs) {
                return Ok(());
            }
        }
        if there.is_some() {
            remove(here, name, &|| self.control.cancelled())?;
            self.report.removed += 1;
        }
        let mode = Mode::RUSR | Mode::WUSR;
        let made = match &entry.kind {
            Kind::Symlink { target } => symlinkat(target, here, name),
            Kind::Fifo => mknodat(here, name, FileType::Fifo, mode, 0),
            Kind::Socket => mknodat(here, name, FileType::Socket, mode, 0),
            Kind::CharDevice { major, minor } => {
                mknodat(here, name, FileType::CharacterDevice, mode, makedev(*major, *minor))
            }
            Kind::BlockDevice { major, minor } => {
                mknodat(here, name, FileType::BlockDevice, mode, makedev(*major, *minor))
            }
            Kind::Dir | Kind::File(_) | Kind::HardLink { .. } => Ok(()),
        };
        let device = matches!(entry.kind, Kind::CharDevice { .. } | Kind::BlockDevice { .. });
        match made {
            Err(Errno::PERM) if device => {
                self.report.skipped.devices += 1;
                return Ok(());
            }
            other => other.at("create", path)?,
        }
        self.report.made += 1;
        let symlink = matches!(entry.kind, Kind::Symlink { .. });
        set_on_name(here, name, &entry.meta, symlink, self.me, &mut self.report.skipped)
    }

    /// A regular file, read again a few times when it changes meanwhile.
    fn regular(
        &mut self,
        met: &Met,
        there: Option<&Statx>,
        earlier: Option<&Entry>,
    ) -> Result<Option<Entry>> {
        let path = &met.path;
        let mut last = None;
        for attempt in 0..ATTEMPTS {
            let opened = self.source.parent(path).map(|(fd, name)| open_file(fd, name));
            let file = match opened {
                Ok(Ok(file)) => file,
                Ok(Err(Errno::NOENT | Errno::LOOP | Errno::NXIO | Errno::NOTDIR)) => return Ok(None),
                Ok(Err(e)) => return Err(e).at("open", path),
                Err(e) => match Errno::from_io_error(&e) {
                    Some(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::STALE) => return Ok(None),
                    _ => return Err(e).at("open the folder of", path),
                },
            };
            let before = stat_fd(&file).at("stat", path)?;
            if FileType::from_raw_mode(before.stx_mode.into()) != FileType::RegularFile {
                return Ok(None);
            }
            let size = before.stx_size;
            let dense = before.stx_blocks * 512 >= size && size < CHUNK;
            let holes = if dense { None } else { extents(&file, size).at("look for holes in", path)? };
            let mut content = Content { size, chunks: Vec::new(), extents: holes };
            let xattrs = xattrs_of_fd(file.as_fd()).at("read the attributes of", path)?;
            let mut entry =
                Entry { path: path.clone(), meta: meta_of(&before, xattrs), kind: Kind::Fifo, local: None };
            // What an earlier attempt left there is not what was met.
            let there = if attempt == 0 { there } else { None };
            self.content(&file, &mut content, &entry, &before, there, earlier)?;
            entry.kind = Kind::File(content);
            let after = stat_fd(&file).at("stat", path)?;
            let local = local_of(&before);
            if local == local_of(&after) && size == after.stx_size && mtime_of(&before) == mtime_of(&after) {
                entry.local = settled(local);
                return Ok(Some(entry));
            }
            last = Some(entry);
        }
        self.report.unstable.push(show(path));
        Ok(last)
    }

    /// Brings the content into the destination and learns its hashes on the way.
    fn content(
        &mut self,
        file: &OwnedFd,
        content: &mut Content,
        entry: &Entry,
        before: &Statx,
        there: Option<&Statx>,
        earlier: Option<&Entry>,
    ) -> Result<()> {
        let path = &entry.path;
        let there = there.filter(|st| FileType::from_raw_mode(st.stx_mode.into()) == FileType::RegularFile);
        // A file with several names here and one there must not be written through.
        let alone = there.is_some_and(|st| st.stx_nlink == 1 || before.stx_nlink > 1);
        let known = earlier
            .and_then(|e| Some((e, e.content()?)))
            .filter(|(e, c)| there.is_some_and(|st| c.size == st.stx_size && e.meta.mtime == mtime_of(st)));
        if there.is_some_and(|st| alone && st.stx_size == content.size && mtime_of(st) == entry.meta.mtime) {
            // As an earlier pass left it, by length and time; that its content is the same is proven at the end.
            let new = self.hash_only(file, content, path)?;
            if known.is_none_or(|(_, old)| old.chunks == new) {
                content.chunks = new;
                return self.only_meta(entry, there);
            }
        }
        let patch = there.is_some_and(|st| alone && st.stx_nlink == 1 && st.stx_size >= WORTH_PATCHING)
            && content.size >= WORTH_PATCHING;
        let (to, old) = if patch {
            let (here, name) = self.dest.parent(path).at("open the folder of", path)?;
            let flags = OFlags::RDWR | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
            let mut opened = openat(here, name, flags, Mode::empty());
            if opened.as_ref().err() == Some(&Errno::ACCESS) {
                rustix::fs::chmodat(here, name, Mode::RUSR | Mode::WUSR, AtFlags::empty())
                    .at("open the permissions of", path)?;
                opened = openat(here, name, flags, Mode::empty());
            }
            let to = opened.at("open", path)?;
            (to, known.map_or(Old::Unknown, |(_, old)| Old::Known(&old.chunks)))
        } else {
            let (here, name) = self.dest.parent(path).at("open the folder of", path)?;
            let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let mut made = openat(here, name, flags, Mode::RUSR | Mode::WUSR);
            if made.as_ref().err() == Some(&Errno::EXIST) {
                match unlinkat(here, name, AtFlags::empty()) {
                    Ok(()) | Err(Errno::NOENT) => {}
                    Err(Errno::ISDIR | Errno::PERM) => remove(here, name, &|| self.control.cancelled())?,
                    Err(e) => return Err(e).at("replace", path),
                }
                made = openat(here, name, flags, Mode::RUSR | Mode::WUSR);
            }
            let to = made.at("create", path)?;
            let shared = content.size >= WORTH_SHARING && !self.no_sharing && {
                let shared = ioctl_ficlone(&to, file).is_ok();
                self.no_sharing = !shared;
                shared
            };
            (to, if shared { Old::Shared } else { Old::Nothing })
        };
        // A new file without holes gets its length by being written.
        if !matches!(old, Old::Nothing) || content.extents.is_some() {
            ftruncate(&to, content.size).at("set the length of", path)?;
        }
        self.report.copied += 1;
        content.chunks = self.chunks(file, &to, content, &old, path)?;
        if patch {
            let old = xattrs_of_fd(to.as_fd()).at("read the attributes of", path)?;
            drop_xattrs(to.as_fd(), &old, &entry.meta.xattrs);
        } else {
            // What a new file inherited from its folder is not the source's.
            let old = xattrs_of_fd(to.as_fd()).at("read the attributes of", path)?;
            if !old.is_empty() {
                drop_xattrs(to.as_fd(), &old, &entry.meta.xattrs);
            }
        }
        set_on_fd(&to, &entry.meta, self.me, path, &mut self.report.skipped)
    }

    /// Owner, permissions, attributes of a file whose content stays.
    fn only_meta(&mut self, entry: &Entry, there: Option<&Statx>) -> Result<()> {
        let (path, meta) = (&entry.path, &entry.meta);
        let (here, name) = self.dest.parent(path).at("open the folder of", path)?;
        let opened = match open_file(here, name) {
            Err(Errno::ACCESS) => {
                rustix::fs::chmodat(here, name, Mode::RUSR | Mode::WUSR, AtFlags::empty())
                    .at("open the permissions of", path)?;
                open_file(here, name)
            }
            other => other,
        };
        let to = opened.at("open", path)?;
        let old = xattrs_of_fd(to.as_fd()).at("read the attributes of", path)?;
        // Who may not give files away finds the copy his own, and leaves it so.
        let same = there.is_some_and(|st| {
            let kept = self.me.uid != 0 && st.stx_uid == self.me.uid;
            u32::from(st.stx_mode) & 0o7777 == meta.mode
                && (kept || (st.stx_uid, st.stx_gid) == (meta.uid, meta.gid))
        });
        if same && old == meta.xattrs {
            return Ok(());
        }
        self.report.adjusted += 1;
        drop_xattrs(to.as_fd(), &old, &meta.xattrs);
        set_on_fd(&to, meta, self.me, path, &mut self.report.skipped)
    }

    fn hash_only(&mut self, file: &OwnedFd, content: &Content, path: &[u8]) -> Result<Vec<Hash>> {
        let mut hashes = Vec::with_capacity(content.size.div_ceil(CHUNK) as usize);
        for index in 0..content.size.div_ceil(CHUNK) {
            self.control.check()?;
            hashes.push(self.read(file, content, index, path)?);
            self.control.add("copy", content.chunk_len(index), path);
        }
        Ok(hashes)
    }

    /// Reads one chunk into the buffer; [`HOLE`] where there is nothing to read.
    fn read(&mut self, file: &OwnedFd, content: &Content, index: u64, path: &[u8]) -> Result<Hash> {
        let (from, len) = (index * CHUNK, content.chunk_len(index));
        if content.extents.is_some() && content.data_within(from, from + len).is_empty() {
            return Ok(HOLE);
        }
        read_chunk(file, content, index, &mut self.buffer).at("read", path)?;
        Ok(hash(&self.buffer))
    }

    fn chunks(
        &mut self,
        file: &OwnedFd,
        to: &OwnedFd,
        content: &Content,
        old: &Old<'_>,
        path: &[u8],
    ) -> Result<Vec<Hash>> {
        let count = content.size.div_ceil(CHUNK);
        let mut hashes = Vec::with_capacity(count as usize);
        for index in 0..count {
            self.control.check()?;
            let (from, len) = (index * CHUNK, content.chunk_len(index));
            let new = self.read(file, content, index, path)?;
            let stays = match old {
                Old::Shared => true,
                Old::Nothing => new == HOLE,
                Old::Known(old) => old.get(index as usize) == Some(&new),
                Old::Unknown if new == HOLE => false,
                Old::Unknown => {
                    self.there.resize(len as usize, 0);
                    let n = pread(to, &mut self.there[..], from).at("read", path)?;
                    n as u64 == len && self.there == self.buffer
                }
            };
            if stays {
                // It is there.
            } else {
                let mut at = from;
                let end = crate::entry::Extent { start: from + len, end: from + len };
                for part in content.data_within(from, from + len).into_iter().chain([end]) {
                    if part.start > at && !matches!(old, Old::Nothing) {
                        self.clear(to, at, part.start - at, from, path)?;
                    }
                    self.write(to, part.start, part.start - from, part.end - part.start, path)?;
                    at = part.end;
                }
            }
            hashes.push(new);
            self.control.add("copy", len, path);
        }
        Ok(hashes)
    }

    /// Makes a hole of what the source has none of; zeros where the file system has no holes.
    fn clear(&mut self, to: &OwnedFd, at: u64, len: u64, chunk: u64, path: &[u8]) -> Result<()> {
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        if fallocate(to, flags, at, len).is_ok() {
            return Ok(());
        }
        let skip = (at - chunk) as usize;
        if self.buffer.len() < skip + len as usize {
            self.buffer.resize(skip + len as usize, 0);
        }
        self.buffer[skip..skip + len as usize].fill(0);
        self.write(to, at, at - chunk, len, path)
    }

    /// Writes `len` bytes of the buffer, from `skip` on, at `at`.
    fn write(&mut self, to: &OwnedFd, at: u64, skip: u64, len: u64, path: &[u8]) -> Result<()> {
        self.control.pace(len)?;
        let mut done = 0;
        while done < len {
            let bytes = &self.buffer[(skip + done) as usize..(skip + len) as usize];
            match pwrite(to, bytes, at + done) {
                Ok(0) => {
                    let why = "the file system takes no more of it".to_owned();
                    return Err(Error::Mismatch { path: show(path), why });
                }
                Ok(n) => done += n as u64,
                Err(Errno::INTR) => {}
                Err(e) => return Err(e).at("write", path),
            }
        }
        self.report.written += len;
        Ok(())
    }
}

/// Whether a symlink or device that looks right is right.
fn same_special(entry: &Entry, st: &Statx, here: std::os::fd::BorrowedFd<'_>, name: &[u8]) -> bool {
    match &entry.kind {
        Kind::Symlink { target } => {
            rustix::fs::readlinkat(here, name, Vec::new()).is_ok_and(|t| t.as_bytes() == target.as_slice())
        }
        Kind::CharDevice { major, minor } | Kind::BlockDevice { major, minor } => {
            (st.stx_rdev_major, st.stx_rdev_minor) == (*major, *minor)
        }
        _ => true,
    }
}
