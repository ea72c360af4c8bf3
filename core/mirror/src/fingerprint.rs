//! The fingerprint of a tree: what it holds, read again from the disk, as one digest for each aspect. Two trees of equal
//! digests are the same to every reader, on whatever file system: holes count as the zeros that they read as.
//!
//! An aspect that one side does not keep (owners, where its driver may not give files away) is left out there, and only
//! what both sides give is compared. [`Recorded`] tells what is known of the tree beside itself: the same walk then finds
//! what is not as it was recorded, and so on which side of two that differ the damage lies.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::io::BufReader;
use std::path::Path;
use std::time::Duration;

use rustix::fs::FileType;
use rustix::io::Errno;

use crate::codec::{put_bytes, put_i64, put_u64};
use crate::content::is_zero;
use crate::control::Control;
use crate::diff::Variants;
use crate::entry::{Entry, HOLE, Kind, compare};
use crate::error::{Error, Result, show};
use crate::manifest::{ManifestReader, hex, read_summary};
use crate::meta::Skipped;
use crate::scan::{Job, Links, Met, ScanReport, Walk, finish, is_known};
use crate::tree::Tree;

/// The form of these fingerprints. Another one gets another name: only those of one form are compared.
pub const FINGERPRINT_SCHEME: &str = "tree/1";

/// Names looked at before they are read together.
const BATCH: usize = 1024;
/// What the disk gave back with an error is read again after so long: the way to a disk may fail for a moment.
const AGAIN: Duration = Duration::from_secs(2);
/// Where so many names of a batch cannot be read, and no more can, it is no rot: the disk as a whole fails.
const TOO_MANY: usize = 3;
/// Damaged names that are told.
const NAMED: usize = 16;
/// The aspects, in the order of [`Portions`].
const ASPECTS: [&str; 8] = ["names", "contents", "modes", "setids", "owners", "times", "xattrs", "devices"];
const NAMES: usize = 0;
const CONTENTS: usize = 1;
const MODES: usize = 2;
const SETIDS: usize = 3;
const OWNERS: usize = 4;
const TIMES: usize = 5;
const XATTRS: usize = 6;
const DEVICES: usize = 7;

/// What is known of a tree beside itself.
#[derive(Clone, Copy, Debug)]
pub enum Recorded<'a> {
    /// Nothing: what is found stands.
    Nothing,
    /// It was received as this manifest says, but for files that were sent in a newer form. The fingerprint is that of the
    /// manifest as long as everything is as it was received.
    Copy {
        /// The manifest.
        manifest: &'a Path,
        /// Newer forms.
        variants: &'a Variants,
    },
    /// It was as this manifest says, and its users wrote since. What did not change since is read; of the rest the
    /// fingerprint has what the manifest says.
    Source {
        /// The manifest.
        manifest: &'a Path,
        /// Forms that were sent instead of what it says.
        sent: &'a Variants,
    },
}

/// What a tree holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fingerprint {
    /// A BLAKE3 digest in hexadecimal for each aspect that is kept; none when something could not be read.
    pub parts: BTreeMap<&'static str, String>,
    /// Names.
    pub entries: u64,
    /// Bytes of content that were read, or known from the manifest.
    pub bytes: u64,
    /// What is not as it was recorded, or cannot be read, a sentence each; at most 16.
    pub damaged: Vec<String>,
    /// How many names are.
    pub wrong: u64,
}

/// Reads the whole tree. `lacks`: what could not be set when it was made, and is left out therefore.
///
/// # Errors
/// What keeps the walk from its end, `Cancelled` among it. Content that the disk gives back with an error, twice, is no
/// error here but damage; so is a copy's manifest that is not whole.
pub fn fingerprint(
    tree: &Tree,
    recorded: Recorded<'_>,
    lacks: Skipped,
    control: &Control<'_>,
) -> Result<Fingerprint> {
    let mut read = attempt(tree, recorded, lacks, control);
    if read.as_ref().is_err_and(is_rot) {
        control.pause(AGAIN)?;
        read = attempt(tree, recorded, lacks, control);
    }
    let lost = match read {
        Err(error) if is_rot(&error) => error.to_string(),
        // Whatever was received can be received again, and with it what is noted of it.
        Err(error @ Error::Malformed { .. }) if matches!(recorded, Recorded::Copy { .. }) => {
            error.to_string()
        }
        read => return read,
    };
    let mut found = Fingerprint::default();
    found.note(lost);
    Ok(found)
}

fn attempt(
    tree: &Tree,
    recorded: Recorded<'_>,
    lacks: Skipped,
    control: &Control<'_>,
) -> Result<Fingerprint> {
    let manifest = match recorded {
        Recorded::Nothing => None,
        Recorded::Copy { manifest, .. } | Recorded::Source { manifest, .. } => Some(manifest),
    };
    let total = manifest.map(read_summary).transpose()?.map(|summary| summary.bytes);
    control.start("scan", total.or(control.expected()));
    let mut reading = Reading {
        recorded,
        links: match manifest {
            None => Grouping::Found(Links::default()),
            Some(manifest) => Grouping::recorded(manifest, control)?,
        },
        digests: Digests::new(lacks),
        found: Fingerprint::default(),
        left_out: HashSet::new(),
        rotten: false,
    };
    reading.walk(tree, manifest, control)?;
    if !reading.rotten {
        reading.found.parts = reading.digests.finish();
    }
    Ok(reading.found)
}

/// Whether the disk says of itself that what it holds is damaged.
fn is_rot(error: &Error) -> bool {
    let Error::Io { source, .. } = error else { return false };
    matches!(Errno::from_io_error(source), Some(Errno::IO | Errno::BADMSG | Errno::UCLEAN))
}

impl Fingerprint {
    fn note(&mut self, sentence: String) {
        self.wrong += 1;
        if self.damaged.len() < NAMED {
            self.damaged.push(sentence);
        }
    }
}

/// A name in the tree, in the record, or in both.
struct Slot {
    path: Vec<u8>,
    record: Option<Entry>,
    /// It is in the tree.
    met: bool,
}

struct Reading<'a> {
    recorded: Recorded<'a>,
    links: Grouping,
    digests: Digests,
    found: Fingerprint,
    /// First names that could not be made, so that their further names are not there either.
    left_out: HashSet<Vec<u8>>,
    /// Something could not be read: there is no digest, and no reason to read on.
    rotten: bool,
}

impl Reading<'_> {
    fn walk(&mut self, tree: &Tree, manifest: Option<&Path>, control: &Control<'_>) -> Result<()> {
        let mut reader: Option<ManifestReader<BufReader<_>>> =
            manifest.map(ManifestReader::open).transpose()?;
        let mut next = || reader.as_mut().map_or(Ok(None), ManifestReader::read_next);
        let mut ahead = next()?;
        let mut walk = Walk::new(tree);
        let (mut slots, mut jobs) = (Vec::with_capacity(BATCH), Vec::with_capacity(BATCH));
        loop {
            control.check()?;
            let met = walk.next()?;
            while let Some(entry) = ahead.take_if(|entry| {
                met.as_ref().is_none_or(|met| compare(&entry.path, &met.path) == std::cmp::Ordering::Less)
            }) {
                control.check()?;
                slots.push(Slot { path: entry.path.clone(), record: Some(entry), met: false });
                ahead = next()?;
                if slots.len() >= BATCH {
                    self.batch(tree, &mut slots, &mut jobs, control)?;
                }
            }
            if self.rotten {
                return Ok(());
            }
            let Some(met) = met else { break };
            let record = ahead.take_if(|entry| entry.path == met.path);
            if record.is_some() {
                ahead = next()?;
            }
            let path = met.path.clone();
            let read = match (&self.recorded, &record) {
                // Written since: none of the point's.
                (Recorded::Source { .. }, None) => continue,
                (Recorded::Source { .. }, Some(record)) => !path.is_empty() && is_known(record, &met),
                _ => true,
            };
            if read {
                jobs.push(self.links.job(met, record.as_ref()));
            }
            slots.push(Slot { path, record, met: read });
            if slots.len() >= BATCH {
                self.batch(tree, &mut slots, &mut jobs, control)?;
            }
        }
        self.batch(tree, &mut slots, &mut jobs, control)
    }

    fn batch(
        &mut self,
        tree: &Tree,
        slots: &mut Vec<Slot>,
        jobs: &mut Vec<Job>,
        control: &Control<'_>,
    ) -> Result<()> {
        let work = std::mem::take(jobs);
        let read = match finish(tree, work.clone(), &mut ScanReport::default(), control) {
            Err(error) if is_rot(&error) => {
                control.pause(AGAIN)?;
                self.one_by_one(tree, work, control)?
            }
            read => read?,
        };
        if self.rotten {
            slots.clear();
        }
        let mut read = read.into_iter().peekable();
        for slot in slots.drain(..) {
            let found = if slot.met { read.next_if(|entry| entry.path == slot.path) } else { None };
            self.judge(&slot.path, found, slot.record);
        }
        Ok(())
    }

    /// Reads a batch once more, each name by itself. What fails again is rotten.
    fn one_by_one(&mut self, tree: &Tree, work: Vec<Job>, control: &Control<'_>) -> Result<Vec<Entry>> {
        let (mut read, mut rotten) = (Vec::new(), Vec::new());
        for job in work {
            match finish(tree, vec![job], &mut ScanReport::default(), control) {
                Err(error) if is_rot(&error) => rotten.push(error.to_string()),
                found => read.extend(found?),
            }
        }
        if rotten.len() >= TOO_MANY && rotten.len() >= read.len() {
            let why = format!("neither can {} more; its disk, or the way to it, fails", rotten.len() - 1);
            let first = rotten.swap_remove(0);
            return Err(Error::Io { action: "go on", path: first, source: std::io::Error::other(why) });
        }
        self.rotten |= !rotten.is_empty();
        rotten.into_iter().for_each(|sentence| self.found.note(sentence));
        Ok(read)
    }

    fn judge(&mut self, path: &[u8], found: Option<Entry>, record: Option<Entry>) {
        match (self.recorded, found, record) {
            (_, None, None) => {}
            (Recorded::Nothing, Some(found), _) => self.take(&found),
            (Recorded::Nothing, None, Some(record)) => self.take(&record),
            (Recorded::Source { sent, .. }, found, Some(record)) => match found {
                // It still has the times that it had: its content is what it was, or the disk has lost it.
                Some(found) if found.local == record.local && !self.digests.same(&found, &record) => {
                    let mut forms = sent.get(path).into_iter().flatten().flatten();
                    let went = forms.any(|form| self.digests.same(form, &found));
                    let went = if went { ", and what it is now was sent to replicas" } else { "" };
                    self.found.note(format!(
                        "`{}` is not what it was, although nobody wrote to it, unless through a memory mapping{went}",
                        show(path)
                    ));
                    self.take(&found);
                }
                _ => self.take(&record),
            },
            (Recorded::Source { .. }, Some(_), None) => {}
            (Recorded::Copy { variants, .. }, found, Some(record)) => {
                let leader = match &record.kind {
                    Kind::HardLink { to } => Some(to),
                    _ => None,
                };
                let forms = variants.get(path);
                let newer = |found: Option<&Entry>| {
                    leader.is_some_and(|to| variants.contains_key(to))
                        || forms.is_some_and(|forms| {
                            forms.iter().any(|form| match (form, found) {
                                (Some(form), Some(found)) => self.digests.same(form, found),
                                (None, None) => true,
                                _ => false,
                            })
                        })
                };
                match found {
                    Some(mut found) => {
                        if path.is_empty() {
                            // Its keeper takes permissions away from the root, and knows which.
                            found.meta.mode = record.meta.mode;
                        }
                        if self.digests.same(&found, &record) || newer(Some(&found)) {
                            return self.take(&record);
                        }
                        let what = self.digests.difference(&found, &record);
                        self.found.note(format!("`{}` is not what was received: {what}", show(path)));
                        self.take(&found);
                    }
                    None if newer(None) => self.take(&record),
                    None if self.digests.is_left_out(&record) => {
                        if self.links.leads(path) {
                            self.left_out.insert(path.to_owned());
                        }
                        self.take(&record);
                    }
                    None if leader.is_some_and(|to| self.left_out.contains(to)) => self.take(&record),
                    None => self.found.note(format!("`{}` is missing", show(path))),
                }
            }
            (Recorded::Copy { .. }, Some(found), None) => {
                self.found.note(format!("`{}` was not received", show(path)));
                self.take(&found);
            }
        }
    }

    fn take(&mut self, entry: &Entry) {
        self.found.entries += 1;
        self.found.bytes += entry.content().map_or(0, |content| content.size);
        self.digests.push(entry);
    }
}

/// Which names are further names of others.
enum Grouping {
    /// By what the file system says.
    Found(Links),
    /// Only those that the record groups: versions of a copy share files, so that most of them have further names elsewhere,
    /// and to remember each would take memory by the size of the tree.
    Recorded { leaders: HashSet<Vec<u8>>, inodes: HashMap<Vec<u8>, (u64, u64)> },
}

impl Grouping {
    fn recorded(manifest: &Path, control: &Control<'_>) -> Result<Self> {
        let mut leaders = HashSet::new();
        for entry in ManifestReader::open(manifest)? {
            control.check()?;
            if let Kind::HardLink { to } = entry?.kind {
                leaders.insert(to);
            }
        }
        Ok(Self::Recorded { leaders, inodes: HashMap::new() })
    }

    /// Whether it is recorded as having further names.
    fn leads(&self, path: &[u8]) -> bool {
        matches!(self, Self::Recorded { leaders, .. } if leaders.contains(path))
    }

    fn job(&mut self, met: Met, record: Option<&Entry>) -> Job {
        let leader = match self {
            Self::Found(links) => links.leader(&met),
            Self::Recorded { leaders, inodes } => {
                let here = (met.local().dev, met.local().ino);
                if leaders.contains(&met.path) {
                    inodes.insert(met.path.clone(), here);
                }
                match record.map(|record| &record.kind) {
                    Some(Kind::HardLink { to })
                        if inodes.get(to) == Some(&here) && met.kind() != FileType::Directory =>
                    {
                        Some(to.clone())
                    }
                    _ => None,
                }
            }
        };
        match leader {
            Some(to) => Job::Done(Entry {
                path: met.path,
                meta: Default::default(),
                kind: Kind::HardLink { to },
                local: None,
            }),
            None => Job::Todo(met),
        }
    }
}

/// What one entry adds to each aspect; empty where it has nothing of it.
type Portions = [Vec<u8>; ASPECTS.len()];

struct Digests {
    lacks: Skipped,
    hashers: Vec<blake3::Hasher>,
}

impl Digests {
    fn new(lacks: Skipped) -> Self {
        Self { lacks, hashers: vec![blake3::Hasher::new(); ASPECTS.len()] }
    }

    /// Whether an aspect is not kept here. Who may not give files away may not keep the bits that giving away clears.
    const fn lacks(&self, aspect: usize) -> bool {
        match aspect {
            OWNERS | SETIDS => self.lacks.owners > 0,
            XATTRS => self.lacks.xattrs > 0,
            DEVICES => self.lacks.devices > 0,
            _ => false,
        }
    }

    fn is_left_out(&self, entry: &Entry) -> bool {
        let portions = portions(entry);
        (0..ASPECTS.len()).all(|aspect| self.lacks(aspect) || portions[aspect].is_empty())
    }

    fn same(&self, a: &Entry, b: &Entry) -> bool {
        let (a, b) = (portions(a), portions(b));
        (0..ASPECTS.len()).all(|aspect| self.lacks(aspect) || a[aspect] == b[aspect])
    }

    /// The aspects in which two differ, for a person.
    fn difference(&self, a: &Entry, b: &Entry) -> String {
        let (a, b) = (portions(a), portions(b));
        let differ = (0..ASPECTS.len()).filter(|aspect| !self.lacks(*aspect) && a[*aspect] != b[*aspect]);
        differ.map(|aspect| ASPECTS[aspect]).collect::<Vec<_>>().join(", ")
    }

    fn push(&mut self, entry: &Entry) {
        for (hasher, portion) in self.hashers.iter_mut().zip(portions(entry)) {
            if !portion.is_empty() {
                hasher.update(&(portion.len() as u64).to_le_bytes());
                hasher.update(&portion);
            }
        }
    }

    fn finish(&self) -> BTreeMap<&'static str, String> {
        let kept = (0..ASPECTS.len()).filter(|aspect| !self.lacks(*aspect));
        kept.map(|aspect| (ASPECTS[aspect], hex(self.hashers[aspect].finalize().as_bytes()))).collect()
    }
}

fn portions(entry: &Entry) -> Portions {
    let mut out = Portions::default();
    let start = |portion: &mut Vec<u8>| put_bytes(portion, &entry.path);
    let kind = match &entry.kind {
        Kind::CharDevice { major, minor } | Kind::BlockDevice { major, minor } => {
            // All of a device is one aspect: where none can be made, its name is not there either.
            let portion = &mut out[DEVICES];
            start(portion);
            portion.push(u8::from(matches!(entry.kind, Kind::BlockDevice { .. })));
            let meta = &entry.meta;
            for number in [*major, *minor, meta.mode, meta.uid, meta.gid, meta.mtime.nsec] {
                put_u64(portion, u64::from(number));
            }
            put_i64(portion, meta.mtime.sec);
            return out;
        }
        Kind::Dir => 0,
        Kind::File(_) => 1,
        Kind::Symlink { .. } => 2,
        Kind::Fifo => 3,
        Kind::Socket => 4,
        Kind::HardLink { .. } => 7,
    };
    start(&mut out[NAMES]);
    out[NAMES].push(kind);
    match &entry.kind {
        Kind::HardLink { to } => {
            put_bytes(&mut out[NAMES], to);
            return out;
        }
        Kind::Symlink { target } => put_bytes(&mut out[NAMES], target),
        Kind::File(content) => {
            let portion = &mut out[CONTENTS];
            start(portion);
            put_u64(portion, content.size);
            for (index, hash) in (0..).zip(&content.chunks) {
                // Zeros are zeros, whether they were written or left out.
                let zero = *hash == HOLE || is_zero(hash, content.chunk_len(index));
                portion.extend_from_slice(if zero { &HOLE } else { hash });
            }
        }
        _ => {}
    }
    let meta = &entry.meta;
    for (aspect, numbers) in
        [(MODES, [meta.mode & 0o1777, 0]), (SETIDS, [meta.mode & 0o6000, 0]), (OWNERS, [meta.uid, meta.gid])]
    {
        start(&mut out[aspect]);
        numbers.iter().for_each(|number| put_u64(&mut out[aspect], u64::from(*number)));
    }
    start(&mut out[TIMES]);
    put_i64(&mut out[TIMES], meta.mtime.sec);
    put_u64(&mut out[TIMES], u64::from(meta.mtime.nsec));
    start(&mut out[XATTRS]);
    let kept = || meta.xattrs.iter().filter(|xattr| !is_hosts(&xattr.name));
    put_u64(&mut out[XATTRS], kept().count() as u64);
    for xattr in kept() {
        put_bytes(&mut out[XATTRS], &xattr.name);
        put_bytes(&mut out[XATTRS], &xattr.value);
    }
    out
}

/// Whether an attribute is what a host's own kernel gives to files by its own rules: labels and measurements.
fn is_hosts(name: &[u8]) -> bool {
    const NAMES: [&[u8]; 3] = [b"security.selinux", b"security.ima", b"security.evm"];
    NAMES.contains(&name) || name.starts_with(b"security.SMACK64")
}
