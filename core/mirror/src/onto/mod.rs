//! One tree onto another, in place, in passes: what a host-assisted migration copies with.
//!
//! A pass walks both trees side by side, in their common order, and makes the destination what the source is: names
//! that are not in the source go, what is new or changed is copied, and what the pass before knows unchanged is not even
//! read. Passes may run while the source is written; the last one runs once writers are held back, and is short.
//! [`Mirror::prove`] then reads the destination and compares it with what was read from the source.
//!
//! The state folder holds a manifest of either side from the pass before. It only saves time: a pass that finds none
//! (after a crash, on another host) reads the source again and copies what differs.

mod file;
mod folder;
mod prove;

use std::cmp::Ordering;
use std::fs::File;
use std::io::{BufReader, BufWriter};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering as Atomic};

use rustix::fs::{FileType, Statx};

use crate::control::Control;
use crate::entry::{Entry, Kind, Time, compare};
use crate::error::{At, Result, lost};
use crate::manifest::{ManifestReader, ManifestWriter};
use crate::meta::{Me, Skipped};
use crate::scan::{Described, Known, Links, Met, Walk, describe, is_known, settled};
use crate::tree::{Dirs, Tree, mtime_of, remove};
use crate::watch::RootMode;

pub use prove::Proof;

/// Names looked at together.
const BATCH: usize = 1024;
/// Names kept for the report.
const NAMED: usize = 16;

/// A copy of one tree onto another.
#[derive(Debug)]
pub struct Mirror<'a> {
    /// What is copied; never written.
    pub source: &'a Tree,
    /// What becomes equal to it.
    pub dest: &'a Tree,
    /// A folder of the caller's own, there before the first pass, the same for every pass of one copy.
    pub state: &'a Path,
    /// Whether the permissions of the root are copied: not while its keeper has taken some away.
    pub root: RootMode,
}

/// What a pass found and did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pass {
    /// Names in the source, its root included.
    pub entries: u64,
    /// Lengths of its regular files, each counted once.
    pub bytes: u64,
    /// Regular files that were made or changed.
    pub copied: u64,
    /// Bytes written into them.
    pub written: u64,
    /// Names that were removed from the destination.
    pub removed: u64,
    /// Folders, symlinks, special files and further names that were made.
    pub made: u64,
    /// Names whose metadata alone was set.
    pub adjusted: u64,
    /// Files that changed each time they were read: a later pass has to read them again.
    pub unstable: Vec<String>,
    /// What this pass and those before could not reproduce.
    pub skipped: Skipped,
}

impl Pass {
    /// Whether the destination was as the source already, but for metadata.
    pub const fn is_unchanged(&self) -> bool {
        self.copied == 0 && self.removed == 0 && self.made == 0 && self.unstable.is_empty()
    }
}

impl Mirror<'_> {
    /// One pass.
    ///
    /// # Errors
    /// The first file that cannot be read or written, by its path; `Cancelled`. What was copied until then stays, and the
    /// next pass goes on from there.
    pub fn pass(&self, control: &Control<'_>) -> Result<Pass> {
        let total = crate::manifest::read_summary(&self.state.join("source")).ok().map(|s| s.bytes);
        control.start("copy", total);
        let mut work = Work {
            mirror: self,
            control,
            me: Me::get(),
            here: self.dest.dirs(),
            report: Pass::default(),
            seconds: Vec::new(),
            folders: Vec::new(),
        };
        let new = self.state.join("source.new");
        let mut out = ManifestWriter::create(&new)?;
        work.walk(&mut out)?;
        work.finish()?;
        let summary = out.finish_durable()?;
        rustix::fs::syncfs(self.dest.fd()).at("sync", b"")?;
        std::fs::rename(&new, self.state.join("source")).at("rename", b"source.new")?;
        let mut skipped = self.skipped();
        skipped.add(work.report.skipped);
        let text = format!("{} {} {}", skipped.owners, skipped.xattrs, skipped.devices);
        crate::staging::write_whole(self.state, "skipped", text.as_bytes())?;
        work.report.skipped = skipped;
        work.report.entries = summary.entries;
        work.report.bytes = summary.bytes;
        Ok(work.report)
    }

    /// What all passes so far could not reproduce.
    fn skipped(&self) -> Skipped {
        let text = std::fs::read_to_string(self.state.join("skipped")).unwrap_or_default();
        let mut numbers = text.split(' ').map(|n| n.parse().unwrap_or(0));
        let mut next = || numbers.next().unwrap_or(0);
        Skipped { owners: next(), xattrs: next(), devices: next() }
    }

    fn earlier(&self, name: &str) -> Option<ManifestReader<BufReader<File>>> {
        ManifestReader::open(&self.state.join(name)).ok()
    }
}

/// What is to be done about a name that is no folder.
enum Job {
    /// Nothing; this is what it is.
    Done(Entry),
    /// Something.
    Todo(Box<Todo>),
}

/// What was met in the source, and what lies there in the destination.
struct Todo {
    met: Met,
    there: Option<Statx>,
    /// What the pass before knew of it.
    earlier: Option<Entry>,
}

struct Work<'a> {
    mirror: &'a Mirror<'a>,
    control: &'a Control<'a>,
    me: Me,
    here: Dirs<'a>,
    report: Pass,
    /// Further names with the first ones: made once those are all there.
    seconds: Vec<(Vec<u8>, Vec<u8>)>,
    /// Folders, whose metadata is set once everything in them is done.
    folders: Vec<Entry>,
}

impl Work<'_> {
    fn walk(&mut self, out: &mut ManifestWriter<BufWriter<File>>) -> Result<()> {
        let mut known = Known::new(self.mirror.earlier("source"));
        let mut source = Walk::new(self.mirror.source);
        let mut there = Ahead::new(Walk::new(self.mirror.dest));
        let mut links = Links::default();
        let mut source_dirs = self.mirror.source.dirs();
        let mut batch = Vec::with_capacity(BATCH);
        let mut allocated = 0;
        loop {
            self.control.check()?;
            let met = source.next()?;
            // What sorts before it, or after the last, is not in the source.
            while let Some(extra) = there.before(met.as_ref().map(|m| m.path.as_slice()))? {
                self.remove(&extra)?;
            }
            let Some(met) = met else { break };
            let twin = there.take(&met.path)?;
            let earlier = known.at(&met.path)?;
            if met.kind() == FileType::Directory {
                let folder = match describe(
                    self.mirror.source,
                    &mut source_dirs,
                    &met,
                    1,
                    &mut Vec::new(),
                    self.control,
                )? {
                    Described::Entry(entry, _) => entry,
                    Described::Gone => continue,
                };
                self.make_folder(&met, twin.as_ref())?;
                self.folders.push(folder.clone());
                batch.push(Job::Done(folder));
            } else if let Some(leader) = links.leader(&met) {
                self.seconds.push((leader.clone(), met.path.clone()));
                let local = settled(met.local());
                let kind = Kind::HardLink { to: leader };
                batch.push(Job::Done(Entry { path: met.path, meta: Default::default(), kind, local }));
            } else {
                allocated += met.st.stx_blocks * 512;
                let there = twin.map(|t| t.st);
                match earlier {
                    Some(entry) if is_known(&entry, &met) && looks_like(&entry, there.as_ref()) => {
                        self.control.add("copy", met.st.stx_size, &met.path);
                        batch.push(Job::Done(entry));
                    }
                    earlier => batch.push(Job::Todo(Box::new(Todo { met, there, earlier }))),
                }
            }
            if batch.len() == BATCH {
                self.flush(&mut batch, out)?;
            }
        }
        self.flush(&mut batch, out)?;
        out.set_allocated(allocated);
        Ok(())
    }

    /// Copies what waits, by several threads, and writes it down in order.
    fn flush(&mut self, batch: &mut Vec<Job>, out: &mut ManifestWriter<BufWriter<File>>) -> Result<()> {
        let mut slots = Vec::with_capacity(batch.len());
        let mut todo = Vec::new();
        for job in batch.drain(..) {
            match job {
                Job::Done(entry) => slots.push(Some(entry)),
                Job::Todo(job) => {
                    todo.push((slots.len(), job));
                    slots.push(None);
                }
            }
        }
        let threads = if todo.len() < 16 { 1 } else { self.control.threads() };
        let next = AtomicUsize::new(0);
        // Those taken at the same time lie far apart: in one folder, threads would wait for each other.
        let stretch = todo.len().div_ceil(threads);
        let apart = |n: usize| (n % threads) * stretch + n / threads;
        let work = || -> Result<(Vec<(usize, Entry)>, Pass)> {
            let mut copier = file::Copier::new(self.mirror.source, self.mirror.dest, self.me, self.control);
            let mut made = Vec::new();
            loop {
                let n = next.fetch_add(1, Atomic::Relaxed);
                if n >= stretch * threads {
                    break;
                }
                let Some((slot, job)) = todo.get(apart(n)) else { continue };
                self.control.check()?;
                if let Some(entry) = copier.copy(&job.met, job.there.as_ref(), job.earlier.as_ref())? {
                    made.push((*slot, entry));
                }
            }
            Ok((made, copier.report))
        };
        let mut done = Vec::new();
        if threads == 1 {
            done.push(work()?);
        } else {
            std::thread::scope(|scope| -> Result<()> {
                let running: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
                for thread in running {
                    done.push(thread.join().map_err(|_| lost())??);
                }
                Ok(())
            })?;
        }
        for (made, report) in done {
            for (slot, entry) in made {
                slots[slot] = Some(entry);
            }
            self.report.add(report);
        }
        for entry in slots.into_iter().flatten() {
            out.push(&entry)?;
        }
        Ok(())
    }

    /// Removes a name that the source does not have, with everything below it.
    fn remove(&mut self, met: &Met) -> Result<()> {
        let (dir, name) = match self.here.parent(&met.path) {
            Ok(found) => found,
            // It went with its folder.
            Err(_) => return Ok(()),
        };
        self.report.removed += 1;
        remove(dir, name, &|| self.control.cancelled())?;
        self.here.forget();
        Ok(())
    }
}

impl Pass {
    fn add(&mut self, other: Self) {
        self.copied += other.copied;
        self.written += other.written;
        self.removed += other.removed;
        self.made += other.made;
        self.adjusted += other.adjusted;
        self.unstable.extend(other.unstable);
        self.unstable.truncate(NAMED);
        self.skipped.add(other.skipped);
    }
}

/// Whether what lies in the destination still is what an earlier pass left there for this entry.
fn looks_like(entry: &Entry, there: Option<&Statx>) -> bool {
    let Some(st) = there else { return false };
    let kind = FileType::from_raw_mode(st.stx_mode.into());
    let fits = match &entry.kind {
        Kind::File(content) => kind == FileType::RegularFile && content.size == st.stx_size,
        Kind::Symlink { target } => kind == FileType::Symlink && target.len() as u64 == st.stx_size,
        Kind::Fifo => kind == FileType::Fifo,
        Kind::Socket => kind == FileType::Socket,
        Kind::CharDevice { .. } => kind == FileType::CharacterDevice,
        Kind::BlockDevice { .. } => kind == FileType::BlockDevice,
        Kind::Dir | Kind::HardLink { .. } => false,
    };
    fits && entry.meta.mtime == mtime_of(st) && u32::from(st.stx_mode) & 0o7777 == entry.meta.mode
}

/// A walk that can be looked at before it is taken.
struct Ahead<'t> {
    walk: Walk<'t>,
    ahead: Option<Met>,
    ended: bool,
}

impl<'t> Ahead<'t> {
    fn new(walk: Walk<'t>) -> Self {
        Self { walk, ahead: None, ended: false }
    }

    fn peek(&mut self) -> Result<Option<&Met>> {
        if self.ahead.is_none() && !self.ended {
            self.ahead = self.walk.next()?;
            self.ended = self.ahead.is_none();
        }
        Ok(self.ahead.as_ref())
    }

    /// The next name, if it sorts before `path`.
    fn before(&mut self, path: Option<&[u8]>) -> Result<Option<Met>> {
        let earlier = match (self.peek()?, path) {
            (Some(met), Some(path)) => compare(&met.path, path) == Ordering::Less,
            (Some(_), None) => true,
            (None, _) => false,
        };
        Ok(if earlier { self.ahead.take() } else { None })
    }

    /// The next name, if it is `path`.
    fn take(&mut self, path: &[u8]) -> Result<Option<Met>> {
        let same = self.peek()?.is_some_and(|met| met.path == path);
        Ok(if same { self.ahead.take() } else { None })
    }
}
