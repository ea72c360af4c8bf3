//! Writing the difference between two manifests as a stream, from a tree that may change meanwhile.
//!
//! What is sent is read now, though the manifest was made earlier. A file that changed since is described again and sent
//! as it is now, together with what the manifest says about it, so that the receiver can prove both the manifest and
//! what it really holds. Such a form is told to `on_variant` **before** it is sent: from then on a receiver may hold it.

use std::io::{BufWriter, Write};
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{FileType, Statx};
use rustix::io::Errno;

use crate::content::{hash, open_file, read_chunk};
use crate::control::Control;
use crate::diff::{Change, Moved, Run, Variants, carried, diff};
use crate::entry::{CHUNK, Content, Entry, HOLE, Kind, compare};
use crate::error::{At, Result, show};
use crate::manifest::{ManifestReader, read_summary};
use crate::scan::{ATTEMPTS, Described, describe_file};
use crate::tree::{Dirs, Tree, local_of, stat_fd};
use crate::wire::{ChunkHead, FrameWriter, Header, Put, Resume};

/// Bytes of changes that are remembered between counting and sending them.
const REMEMBERED: usize = 32 << 20;

/// What to send.
#[derive(Debug)]
pub struct Outgoing<'a> {
    /// The tree that is read.
    pub tree: &'a Tree,
    /// The manifest it leads to.
    pub manifest: &'a Path,
    /// The manifest that the receiver has; a full copy when absent.
    pub base: Option<&'a Path>,
    /// Forms of the base that receivers may hold otherwise than its manifest says.
    pub variants: &'a Variants,
    /// What the receiver finds in the header.
    pub label: &'a [u8],
    /// What the receiver has of an earlier stream for the same two manifests.
    pub resume: Resume,
    /// At most so many bytes a second.
    pub bandwidth: Option<u64>,
}

/// Told of a form of a file that is about to be sent instead of what the manifest says; must make it durable.
pub type OnVariant<'a> = dyn FnMut(&[u8], Option<&Entry>) -> Result<()> + 'a;

/// What was sent.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SendReport {
    /// Bytes of the stream.
    pub bytes: u64,
    /// Bytes of content that the receiver had already from an earlier stream.
    pub resumed_bytes: u64,
    /// Files that changed each time they were read; what was sent is consistent by itself, but mixes moments.
    pub unstable: Vec<String>,
    /// Files sent as they are now, since they changed after the manifest was made.
    pub newer: u64,
    /// Files among those whose times say that nobody wrote to them: their disk may have lost what they held. At most 16.
    pub rotten: Vec<String>,
}

/// Sends it.
pub fn send(
    out: &mut dyn Write,
    outgoing: &Outgoing<'_>,
    on_variant: &mut OnVariant<'_>,
    control: &Control<'_>,
) -> Result<SendReport> {
    let open_base = || -> Result<_> {
        let reader = outgoing.base.map(ManifestReader::open).transpose()?;
        Ok(reader.into_iter().flatten())
    };
    let open_new = || ManifestReader::open(outgoing.manifest);
    let moved = if outgoing.base.is_some() {
        Moved::find(open_base()?, open_new()?, outgoing.variants)?
    } else {
        Moved::default()
    };
    let (mut total, mut resumed) = (0, 0);
    // The changes are counted first. As long as they are few they are kept, so that the manifests are not read again.
    let mut few = Some(Vec::new());
    let mut room = REMEMBERED;
    for change in diff(open_base()?, open_new()?, &moved, outgoing.variants) {
        control.check()?;
        let change = change?;
        if let Change::Put { entry, carry, .. } = &change {
            let bytes = carried_bytes(entry, carry);
            if is_done(&outgoing.resume, &entry.path) {
                resumed += bytes;
            } else {
                total += bytes;
            }
            room = room
                .saturating_sub(200 + entry.path.len() + entry.content().map_or(0, |c| c.chunks.len() * 32));
        }
        room = room.saturating_sub(100);
        if room == 0 {
            few = None;
        } else if let Some(few) = &mut few {
            few.push(Ok(change));
        }
    }
    let header = Header {
        label: outgoing.label.to_vec(),
        base: outgoing.base.map(read_summary).transpose()?.map(|s| s.root),
        root: read_summary(outgoing.manifest)?.root,
        bytes: total,
        resume: outgoing.resume.clone(),
    };
    control.start("transfer", Some(total));
    let mut out = BufWriter::with_capacity(256 * 1024, out);
    let mut sender = Sender {
        tree: outgoing.tree,
        dirs: outgoing.tree.dirs(),
        out: FrameWriter::new(&mut out, outgoing.bandwidth, control),
        on_variant,
        control,
        buffer: Vec::new(),
        report: SendReport { resumed_bytes: resumed, ..SendReport::default() },
    };
    sender.out.header(&header)?;
    let changes: Box<dyn Iterator<Item = Result<Change>> + '_> = match few {
        Some(few) => Box::new(few.into_iter()),
        None => Box::new(diff(open_base()?, open_new()?, &moved, outgoing.variants)),
    };
    for change in changes {
        control.check()?;
        match change? {
            Change::Remove(path) if !is_done(&outgoing.resume, &path) => sender.out.remove(&path)?,
            Change::Put { entry, source, carry } if !is_done(&outgoing.resume, &entry.path) => {
                let put = Put { entry, original: None, source, carry, skip: 0 };
                if put.carry.is_empty() {
                    sender.out.put(&put)?;
                } else {
                    sender.file(put, &outgoing.resume)?;
                }
            }
            _ => {}
        }
    }
    sender.out.end()?;
    sender.report.bytes = sender.out.sent;
    Ok(sender.report)
}

fn is_done(resume: &Resume, path: &[u8]) -> bool {
    resume.ended
        || resume.done.as_ref().is_some_and(|done| compare(path, done) != std::cmp::Ordering::Greater)
}

fn carried_bytes(entry: &Entry, carry: &[Run]) -> u64 {
    let Some(content) = entry.content() else { return 0 };
    carry.iter().map(|(from, to)| (to * CHUNK).min(content.size).saturating_sub(from * CHUNK)).sum()
}

struct Sender<'a> {
    tree: &'a Tree,
    dirs: Dirs<'a>,
    out: FrameWriter<'a>,
    on_variant: &'a mut OnVariant<'a>,
    control: &'a Control<'a>,
    buffer: Vec<u8>,
    report: SendReport,
}

impl Sender<'_> {
    /// Sends a regular file with content to carry.
    fn file(&mut self, mut put: Put, resume: &Resume) -> Result<()> {
        let path = put.entry.path.clone();
        let Some((mut file, mut before)) = self.open(&path)? else { return self.gone(put.entry) };
        let known = put.entry.local.is_some();
        let same = put.entry.local.is_none_or(|local| local == local_of(&before));
        if !same {
            let Described::Entry(now, _) =
                describe_file(self.tree, &mut self.dirs, &path, 1, &mut self.buffer, self.control)?
            else {
                return self.gone(put.entry);
            };
            if !now.same(&put.entry) {
                let present = present_after(&put.entry, &put.carry);
                if let Kind::File(content) = &now.kind {
                    put.carry = carried(content, |index| present.get(index).and_then(Option::as_ref));
                }
                put.original = Some(std::mem::replace(&mut put.entry, now));
                self.newer(&path, Some(&put.entry))?;
            }
            match self.open(&path)? {
                Some(opened) => (file, before) = opened,
                None => return self.gone(put.original.unwrap_or(put.entry)),
            }
        }
        if let Some(partial) = resume.partial.as_ref().filter(|p| p.path == path && p.proof == put.proof()) {
            put.skip = partial.chunks;
        }
        self.out.put(&put)?;
        if put.carry.is_empty() {
            // What it is now needs nothing that the receiver lacks.
            return Ok(());
        }
        let original = put.original.unwrap_or_else(|| put.entry.clone());
        let mut sent = put.entry;
        let indices = put.carry.iter().flat_map(|(from, to)| *from..*to).skip(put.skip as usize);
        let skipped: u64 = put
            .carry
            .iter()
            .flat_map(|(from, to)| *from..*to)
            .take(put.skip as usize)
            .map(|i| sent.content().map_or(0, |c| c.chunk_len(i)))
            .sum();
        self.report.resumed_bytes += skipped;
        self.control.add("transfer", skipped, &path);
        let torn = self.chunks(&file, &mut sent, indices, &path)?;
        let still = unchanged(&before, &file, &path)?;
        if !torn && still {
            return self.out.done(None);
        }
        if still && known && same && self.report.rotten.len() < 16 {
            self.report.rotten.push(show(&path));
        }
        self.amend(sent, &original, &path)
    }

    /// The file changed while it was sent: describes it again and sends what differs from what went out, a few times.
    fn amend(&mut self, mut sent: Entry, original: &Entry, path: &[u8]) -> Result<()> {
        let mut stable = false;
        for _ in 0..ATTEMPTS {
            // Gone now: what went out was consistent chunk by chunk, and stays.
            let Some((file, before)) = self.open(path)? else { break };
            let Described::Entry(now, _) =
                describe_file(self.tree, &mut self.dirs, path, 1, &mut self.buffer, self.control)?
            else {
                break;
            };
            let (Some(new), Some(old)) = (now.content(), sent.content()) else { break };
            let changed: Vec<u64> = (0..new.chunks.len())
                .filter(|i| {
                    let tail = new.chunk_len(*i as u64) != old.chunk_len(*i as u64);
                    old.chunks.get(*i) != new.chunks.get(*i) || tail
                })
                .map(|i| i as u64)
                .collect();
            sent = now;
            let torn = self.chunks(&file, &mut sent, changed.into_iter(), path)?;
            if !torn && unchanged(&before, &file, path)? {
                stable = true;
                break;
            }
        }
        if !stable && self.report.unstable.len() < 16 {
            self.report.unstable.push(show(path));
        }
        if !sent.same(original) {
            self.newer(path, Some(&sent))?;
        }
        self.out.done(Some(&sent))
    }

    /// Sends chunks; where one is not what `sent` says, `sent` is set to what went out, and the answer is `true`.
    fn chunks(
        &mut self,
        file: &OwnedFd,
        sent: &mut Entry,
        indices: impl Iterator<Item = u64>,
        path: &[u8],
    ) -> Result<bool> {
        let Kind::File(content) = &mut sent.kind else { return Ok(false) };
        let mut torn = false;
        for index in indices {
            self.control.check()?;
            let from = index * CHUNK;
            let len = content.chunk_len(index);
            let slot = index as usize;
            let parts = content.data_within(from, from + len);
            if content.chunks.get(slot) == Some(&HOLE) {
                self.out.chunk(&ChunkHead { index, hash: HOLE, len, parts: Vec::new() }, &[])?;
                continue;
            }
            torn |= !read_chunk(file, content, index, &mut self.buffer).at("read", path)?;
            let hash = hash(&self.buffer);
            if content.chunks.get(slot) != Some(&hash) {
                torn = true;
                content.chunks[slot] = hash;
            }
            self.out.chunk(&ChunkHead { index, hash, len, parts }, &self.buffer)?;
            self.control.add("transfer", len, path);
        }
        Ok(torn)
    }

    fn gone(&mut self, original: Entry) -> Result<()> {
        self.newer(&original.path, None)?;
        self.out.gone(&original)
    }

    fn newer(&mut self, path: &[u8], form: Option<&Entry>) -> Result<()> {
        self.report.newer += 1;
        (self.on_variant)(path, form)
    }

    fn open(&mut self, path: &[u8]) -> Result<Option<(OwnedFd, Statx)>> {
        let opened = self.dirs.parent(path).map(|(dir, name)| open_file(dir, name));
        let file = match opened {
            Ok(Ok(file)) => file,
            Ok(Err(Errno::NOENT | Errno::LOOP | Errno::NXIO | Errno::NOTDIR)) => return Ok(None),
            Ok(Err(e)) => return Err(e).at("open", path),
            Err(e) => match Errno::from_io_error(&e) {
                Some(Errno::NOENT | Errno::LOOP | Errno::NOTDIR) => return Ok(None),
                _ => return Err(e).at("open the folder of", path),
            },
        };
        let st = stat_fd(&file).at("stat", path)?;
        let regular = FileType::from_raw_mode(st.stx_mode.into()) == FileType::RegularFile;
        Ok(regular.then_some((file, st)))
    }
}

/// What the receiver has before any chunk comes: every chunk that is not carried.
fn present_after(entry: &Entry, carry: &[Run]) -> Vec<Option<[u8; 32]>> {
    let mut present: Vec<_> =
        entry.content().map(|c: &Content| c.chunks.iter().copied().map(Some).collect()).unwrap_or_default();
    for (from, to) in carry {
        for slot in &mut present[*from as usize..*to as usize] {
            *slot = None;
        }
    }
    present
}

fn unchanged(before: &Statx, file: &OwnedFd, path: &[u8]) -> Result<bool> {
    let after = stat_fd(file).at("stat", path)?;
    Ok(local_of(before) == local_of(&after) && before.stx_size == after.stx_size)
}
