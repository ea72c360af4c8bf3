//! Describing a tree: a walk in the tree's order, with every regular file hashed, or known again from an earlier
//! manifest by what the file system says about it.

use std::collections::HashMap;
use std::io::Read;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::fs::{FileType, Statx};
use rustix::io::Errno;

use crate::content::{extents, hash_chunks, open_file};
use crate::control::Control;
use crate::entry::{CHUNK, Content, Entry, Hash, Kind, Local, Time, compare};
use crate::error::{At, Error, Result, lost, show};
use crate::manifest::{ManifestReader, ManifestWriter};
use crate::meta::{meta_of, xattrs_of_fd, xattrs_of_path};
use crate::tree::{Dirs, Tree, local_of, mtime_of, names, proc_path, stat, stat_fd};

/// How often a file that changes while it is read is read again.
pub const ATTEMPTS: u32 = 3;
/// A change within this time of the look at a file may leave no trace in its times (their clock ticks that coarsely),
/// so that what is so young is not taken as known by a later scan.
const TICK: Duration = Duration::from_millis(50);
/// Larger files are hashed by all threads together.
const LARGE: u64 = 16 * 1024 * 1024;
const BATCH: usize = 1024;
/// Names kept for the report.
const NAMED: usize = 16;

/// What a scan found worth telling.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ScanReport {
    /// Files that changed each time they were read: described as last read, which may mix old and new content.
    pub unstable: Vec<String>,
    /// Regular files whose hashes were computed.
    pub hashed: u64,
    /// Regular files known from the earlier manifest.
    pub known: u64,
}

/// One name met on a walk.
#[derive(Clone)]
pub(crate) struct Met {
    pub(crate) path: Vec<u8>,
    pub(crate) st: Statx,
}

impl Met {
    pub(crate) fn kind(&self) -> FileType {
        FileType::from_raw_mode(self.st.stx_mode.into())
    }

    pub(crate) fn local(&self) -> Local {
        local_of(&self.st)
    }
}

/// Walks a tree in its order, one stat a name.
pub(crate) struct Walk<'t> {
    dirs: Dirs<'t>,
    started: bool,
    /// Folders being walked: path, names left (reversed).
    stack: Vec<(Vec<u8>, Vec<Vec<u8>>)>,
}

impl<'t> Walk<'t> {
    pub(crate) fn new(tree: &'t Tree) -> Self {
        Self { dirs: tree.dirs(), started: false, stack: Vec::new() }
    }

    pub(crate) fn next(&mut self) -> Result<Option<Met>> {
        if !self.started {
            self.started = true;
            let st = stat_fd(self.dirs.dir(b"").at("open", b"")?).at("stat", b"")?;
            self.enter(Vec::new())?;
            return Ok(Some(Met { path: Vec::new(), st }));
        }
        while let Some((dir, left)) = self.stack.last_mut() {
            let Some(name) = left.pop() else {
                self.stack.pop();
                continue;
            };
            let mut path = Vec::with_capacity(dir.len() + 1 + name.len());
            path.extend_from_slice(dir);
            if !path.is_empty() {
                path.push(b'/');
            }
            path.extend_from_slice(&name);
            let st = match self
                .dirs
                .dir(dir)
                .map_err(Errno::try_from_io)
                .and_then(|fd| stat(fd, &name).map_err(Ok))
            {
                Ok(st) => st,
                // Gone since its folder was listed, or its folder was replaced.
                Err(Ok(Errno::NOENT | Errno::NOTDIR | Errno::LOOP)) => continue,
                Err(Ok(e)) => return Err(e).at("stat", &path),
                Err(Err(e)) => return Err(e).at("open the folder of", &path),
            };
            let met = Met { path, st };
            if met.kind() == FileType::Directory && !self.enter(met.path.clone())? {
                continue;
            }
            return Ok(Some(met));
        }
        Ok(None)
    }

    /// Lists a folder; `false` when it is gone.
    fn enter(&mut self, path: Vec<u8>) -> Result<bool> {
        let fd = match self.dirs.dir(&path) {
            Ok(fd) => fd,
            Err(e) if !path.is_empty() && gone(&e) => return Ok(false),
            Err(e) => return Err(e).at("open", &path),
        };
        let mut left = names(fd).at("list", &path)?;
        left.reverse();
        self.stack.push((path, left));
        Ok(true)
    }
}

/// Turns an I/O error back into the system's number where it has one.
trait TryFromIo {
    fn try_from_io(e: std::io::Error) -> std::result::Result<Errno, std::io::Error>;
}

impl TryFromIo for Errno {
    fn try_from_io(e: std::io::Error) -> std::result::Result<Errno, std::io::Error> {
        Errno::from_io_error(&e).ok_or(e)
    }
}

fn gone(e: &std::io::Error) -> bool {
    matches!(Errno::from_io_error(e), Some(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::STALE))
}

/// Describes the tree into `out`. Hashes are taken from `previous`, an earlier manifest of the same tree on this host,
/// for files whose inode, size and times did not change since. `root_mode` is described instead of the permissions that
/// the root has, when its keeper took some away.
pub fn scan<R: Read, W: std::io::Write>(
    tree: &Tree,
    previous: Option<ManifestReader<R>>,
    root_mode: Option<u32>,
    out: &mut ManifestWriter<W>,
    control: &Control<'_>,
) -> Result<ScanReport> {
    control.start("scan", None);
    let mut known = Known::new(previous);
    let mut walk = Walk::new(tree);
    let mut links = Links::default();
    let mut report = ScanReport::default();
    let mut allocated = 0;
    let mut batch = Vec::with_capacity(BATCH);
    loop {
        let met = walk.next()?;
        let ended = met.is_none();
        if let Some(met) = met {
            control.check()?;
            let earlier = known.at(&met.path)?;
            let job = if let Some(leader) = links.leader(&met) {
                let kind = Kind::HardLink { to: leader };
                let local = settled(met.local());
                Job::Done(Entry { path: met.path, meta: Default::default(), kind, local })
            } else {
                allocated += met.st.stx_blocks * 512;
                match earlier.filter(|e| is_known(e, &met)) {
                    Some(entry) => {
                        report.known += u64::from(entry.content().is_some());
                        control.add("scan", entry.content().map_or(0, |c| c.size), &entry.path);
                        Job::Done(entry)
                    }
                    None => Job::Todo(met),
                }
            };
            batch.push(job);
        }
        if batch.len() == BATCH || (ended && !batch.is_empty()) {
            for mut entry in finish(tree, std::mem::take(&mut batch), &mut report, control)? {
                if let (true, Some(mode)) = (entry.path.is_empty(), root_mode) {
                    entry.meta.mode = mode;
                }
                out.push(&entry)?;
            }
        }
        if ended {
            break;
        }
    }
    out.set_allocated(allocated);
    Ok(report)
}

/// Whether an earlier entry still describes what was met.
pub(crate) fn is_known(earlier: &Entry, met: &Met) -> bool {
    let kind = match &earlier.kind {
        Kind::Dir => FileType::Directory,
        Kind::File(content) if content.size == met.st.stx_size => FileType::RegularFile,
        Kind::Symlink { .. } => FileType::Symlink,
        Kind::Fifo => FileType::Fifo,
        Kind::Socket => FileType::Socket,
        Kind::CharDevice { .. } => FileType::CharacterDevice,
        Kind::BlockDevice { .. } => FileType::BlockDevice,
        Kind::File(_) | Kind::HardLink { .. } => return false,
    };
    kind == met.kind() && earlier.local == Some(met.local()) && earlier.meta.mtime == mtime_of(&met.st)
}

/// The identity, unless it is so young that a further change might not show.
pub(crate) fn settled(local: Local) -> Option<Local> {
    let now = SystemTime::now().checked_sub(TICK)?.duration_since(UNIX_EPOCH).ok()?;
    let limit = Time { sec: now.as_secs() as i64, nsec: now.subsec_nanos() };
    (local.ctime < limit).then_some(local)
}

/// Reads an earlier manifest alongside the walk.
pub(crate) struct Known<R: Read> {
    reader: Option<ManifestReader<R>>,
    ahead: Option<Entry>,
}

impl<R: Read> Known<R> {
    pub(crate) fn new(reader: Option<ManifestReader<R>>) -> Self {
        Self { reader, ahead: None }
    }

    pub(crate) fn at(&mut self, path: &[u8]) -> Result<Option<Entry>> {
        let Some(reader) = &mut self.reader else { return Ok(None) };
        loop {
            if self.ahead.is_none() {
                self.ahead = reader.read_next()?;
            }
            match self.ahead.as_ref().map(|e| compare(&e.path, path)) {
                Some(std::cmp::Ordering::Less) => self.ahead = None,
                Some(std::cmp::Ordering::Equal) => return Ok(self.ahead.take()),
                Some(std::cmp::Ordering::Greater) | None => return Ok(None),
            }
        }
    }
}

/// First names of things with several names; forgotten once all were met.
#[derive(Default)]
pub(crate) struct Links {
    first: HashMap<(u64, u64), (Vec<u8>, u32)>,
}

impl Links {
    pub(crate) fn leader(&mut self, met: &Met) -> Option<Vec<u8>> {
        if met.st.stx_nlink < 2 || met.kind() == FileType::Directory {
            return None;
        }
        let local = met.local();
        let key = (local.dev, local.ino);
        if let Some((path, left)) = self.first.get_mut(&key) {
            *left = left.saturating_sub(1);
            let (path, left) = (path.clone(), *left);
            if left == 0 {
                self.first.remove(&key);
            }
            return Some(path);
        }
        self.first.insert(key, (met.path.clone(), met.st.stx_nlink - 1));
        None
    }
}

/// A name to be described.
#[derive(Clone)]
pub(crate) enum Job {
    /// It is.
    Done(Entry),
    /// It is to be.
    Todo(Met),
}

/// Describes a batch: small things by several threads, each large file by all of them.
pub(crate) fn finish(
    tree: &Tree,
    batch: Vec<Job>,
    report: &mut ScanReport,
    control: &Control<'_>,
) -> Result<Vec<Entry>> {
    let mut slots: Vec<Option<Entry>> = Vec::with_capacity(batch.len());
    let mut todo = Vec::new();
    for job in batch {
        match job {
            Job::Done(entry) => slots.push(Some(entry)),
            Job::Todo(met) => {
                todo.push((slots.len(), met));
                slots.push(None);
            }
        }
    }
    let is_large = |met: &Met| met.kind() == FileType::RegularFile && met.st.stx_size > LARGE;
    let next = AtomicUsize::new(0);
    let work = || -> Result<Vec<(usize, Described)>> {
        let mut dirs = tree.dirs();
        let mut buffer = Vec::new();
        let mut found = Vec::new();
        while let Some((slot, met)) = todo.get(next.fetch_add(1, Ordering::Relaxed)) {
            if !is_large(met) {
                found.push((*slot, describe(tree, &mut dirs, met, 1, &mut buffer, control)?));
            }
        }
        Ok(found)
    };
    let small = todo.iter().filter(|(_, met)| !is_large(met)).count();
    let mut found = Vec::new();
    if small < 16 {
        found.extend(work()?);
    } else {
        std::thread::scope(|scope| -> Result<()> {
            let threads: Vec<_> = (0..control.threads()).map(|_| scope.spawn(work)).collect();
            for thread in threads {
                found.extend(thread.join().map_err(|_| lost())??);
            }
            Ok(())
        })?;
    }
    let mut dirs = tree.dirs();
    for (slot, met) in todo.iter().filter(|(_, met)| is_large(met)) {
        found.push((*slot, describe(tree, &mut dirs, met, control.threads(), &mut Vec::new(), control)?));
    }
    for (slot, described) in found {
        if let Described::Entry(entry, stable) = described {
            report.hashed += u64::from(entry.content().is_some());
            if !stable && report.unstable.len() < NAMED {
                report.unstable.push(show(&entry.path));
            }
            slots[slot] = Some(entry);
        }
    }
    Ok(slots.into_iter().flatten().collect())
}

/// What became of a name between the walk and the closer look.
pub(crate) enum Described {
    /// Described; and whether it stood still meanwhile.
    Entry(Entry, bool),
    /// It is not there any more.
    Gone,
}

pub(crate) fn describe(
    tree: &Tree,
    dirs: &mut Dirs<'_>,
    met: &Met,
    threads: usize,
    buffer: &mut Vec<u8>,
    control: &Control<'_>,
) -> Result<Described> {
    let path = &met.path;
    if met.kind() == FileType::RegularFile {
        return describe_file(tree, dirs, path, threads, buffer, control);
    }
    let (xattrs, kind) = if met.kind() == FileType::Directory {
        let fd = match dirs.dir(path) {
            Ok(fd) => fd,
            Err(e) if gone(&e) && !path.is_empty() => return Ok(Described::Gone),
            Err(e) => return Err(e).at("open", path),
        };
        (xattrs_of_fd(fd).at("read the attributes of", path)?, Kind::Dir)
    } else {
        let (fd, name) = match dirs.parent(path) {
            Ok(found) => found,
            Err(e) if gone(&e) => return Ok(Described::Gone),
            Err(e) => return Err(e).at("open the folder of", path),
        };
        let (major, minor) = (met.st.stx_rdev_major, met.st.stx_rdev_minor);
        let kind = match met.kind() {
            FileType::Symlink => match rustix::fs::readlinkat(fd, name, Vec::new()) {
                Ok(target) => Kind::Symlink { target: target.into_bytes() },
                Err(Errno::NOENT | Errno::INVAL) => return Ok(Described::Gone),
                Err(e) => return Err(e).at("read the symlink", path),
            },
            FileType::Fifo => Kind::Fifo,
            FileType::Socket => Kind::Socket,
            FileType::CharacterDevice => Kind::CharDevice { major, minor },
            FileType::BlockDevice => Kind::BlockDevice { major, minor },
            _ => return Err(Error::Mismatch { path: show(path), why: "it is of no known kind".into() }),
        };
        let xattrs = match xattrs_of_path(&proc_path(fd, name)) {
            Ok(xattrs) => xattrs,
            Err(Errno::NOENT) => return Ok(Described::Gone),
            Err(e) => return Err(e).at("read the attributes of", path),
        };
        (xattrs, kind)
    };
    let local = settled(met.local());
    Ok(Described::Entry(Entry { path: path.clone(), meta: meta_of(&met.st, xattrs), kind, local }, true))
}

/// Describes a regular file as it is now, reading it again a few times when it changes meanwhile.
pub(crate) fn describe_file(
    tree: &Tree,
    dirs: &mut Dirs<'_>,
    path: &[u8],
    threads: usize,
    buffer: &mut Vec<u8>,
    control: &Control<'_>,
) -> Result<Described> {
    let mut last = None;
    for _ in 0..ATTEMPTS {
        let opened = dirs.parent(path).map(|(fd, name)| open_file(fd, name));
        let file = match opened {
            Ok(Ok(file)) => file,
            Ok(Err(Errno::NOENT | Errno::LOOP | Errno::NXIO | Errno::NOTDIR)) => return Ok(Described::Gone),
            Ok(Err(e)) => return Err(e).at("open", path),
            Err(e) if gone(&e) => return Ok(Described::Gone),
            Err(e) => return Err(e).at("open the folder of", path),
        };
        let before = stat_fd(&file).at("stat", path)?;
        if FileType::from_raw_mode(before.stx_mode.into()) != FileType::RegularFile {
            return Ok(Described::Gone);
        }
        let size = before.stx_size;
        // A file that has at least as many blocks as bytes has no holes, unless its file system allocates ahead,
        // which it does for large ones only.
        let dense = before.stx_blocks * 512 >= size && size < CHUNK;
        let extents = if dense { None } else { extents(&file, size).at("look for holes in", path)? };
        let mut content = Content { size, chunks: Vec::new(), extents };
        content.chunks = if threads > 1 {
            hash_by_many(tree, path, &content, threads, control)?
        } else {
            hash_chunks(&file, &content, 0, size.div_ceil(CHUNK), path, buffer, control)?
        };
        let xattrs = xattrs_of_fd(file.as_fd()).at("read the attributes of", path)?;
        let after = stat_fd(&file).at("stat", path)?;
        let local = local_of(&before);
        let stable =
            local == local_of(&after) && size == after.stx_size && mtime_of(&before) == mtime_of(&after);
        let local = if stable { settled(local) } else { None };
        let entry =
            Entry { path: path.to_vec(), meta: meta_of(&before, xattrs), kind: Kind::File(content), local };
        if stable {
            return Ok(Described::Entry(entry, true));
        }
        last = Some(entry);
    }
    Ok(last.map_or(Described::Gone, |entry| Described::Entry(entry, false)))
}

fn hash_by_many(
    tree: &Tree,
    path: &[u8],
    content: &Content,
    threads: usize,
    control: &Control<'_>,
) -> Result<Vec<Hash>> {
    let chunks = content.size.div_ceil(CHUNK);
    let piece = 64;
    let next = AtomicUsize::new(0);
    let work = || -> Result<Vec<(u64, Vec<Hash>)>> {
        let mut buffer = Vec::new();
        let mut dirs = tree.dirs();
        let (fd, name) = dirs.parent(path).at("open the folder of", path)?;
        let file = open_file(fd, name).at("open", path)?;
        let mut found = Vec::new();
        loop {
            let from = next.fetch_add(1, Ordering::Relaxed) as u64 * piece;
            if from >= chunks {
                return Ok(found);
            }
            let to = (from + piece).min(chunks);
            found.push((from, hash_chunks(&file, content, from, to, path, &mut buffer, control)?));
        }
    };
    let mut pieces = Vec::new();
    std::thread::scope(|scope| -> Result<()> {
        let running: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        for thread in running {
            pieces.extend(thread.join().map_err(|_| lost())??);
        }
        Ok(())
    })?;
    pieces.sort_unstable_by_key(|(from, _)| *from);
    Ok(pieces.into_iter().flat_map(|(_, hashes)| hashes).collect())
}
