//! The folder in which a new tree is built while its stream arrives, and what it remembers so that a cut stream
//! continues: after a kill from the page cache, after a power cut from the last durable mark.
//!
//! ```text
//! tree/      the new tree, growing
//! header     what is arriving: label, base, root; written before anything else
//! delta      log of changes that arrived completely, in order
//! progress   how much of the log counts, and where the sender continues
//! durable    the same as of the last time everything was synced
//! manifest   the new tree's manifest, once it is complete
//! ```

use std::fs::{File, OpenOptions};
use std::io::{BufReader, Read, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use crate::codec::{Take, put_bytes, put_u64};
use crate::entry::{Entry, Hash};
use crate::error::{At, Error, Result};
use crate::meta::Skipped;
use crate::wire::{Header, Resume, encode_entry, take_entry};

const WHAT: &str = "the staging folder";

/// What lies in a staging folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Staged {
    /// The label of the stream that was cut.
    pub label: Vec<u8>,
    /// Root hash of what it builds upon.
    pub base: Option<Hash>,
    /// Root hash of what it leads to.
    pub root: Hash,
    /// Where it continues.
    pub resume: Resume,
    /// Bytes of content that arrived.
    pub bytes: u64,
}

/// A change that arrived completely.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Logged {
    Remove(Vec<u8>),
    Gone(Entry),
    Put { entry: Entry, original: Option<Entry> },
}

impl Logged {
    pub(crate) fn path(&self) -> &[u8] {
        match self {
            Self::Remove(path) => path,
            Self::Gone(entry) | Self::Put { entry, .. } => &entry.path,
        }
    }

    fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Self::Remove(path) => {
                out.push(0);
                put_bytes(out, path);
            }
            Self::Gone(entry) => {
                out.push(1);
                encode_entry(out, Some(entry));
            }
            Self::Put { entry, original } => {
                out.push(2);
                encode_entry(out, Some(entry));
                encode_entry(out, original.as_ref());
            }
        }
    }

    fn decode(bytes: &[u8]) -> Result<Self> {
        let mut take = Take::new(WHAT, bytes);
        let entry = |take: &mut Take<'_>| take_entry(take)?.ok_or_else(|| take.bad("an entry is missing"));
        let logged = match take.u8()? {
            0 => Self::Remove(take.bytes()?.to_vec()),
            1 => Self::Gone(entry(&mut take)?),
            2 => Self::Put { entry: entry(&mut take)?, original: take_entry(&mut take)? },
            _ => return Err(take.bad("a record of the log is of no known kind")),
        };
        take.end()?;
        Ok(logged)
    }
}

/// Where a transfer stands, as the files `progress` and `durable` hold it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Mark {
    /// Length of the log that counts.
    pub(crate) log: u64,
    pub(crate) bytes: u64,
    pub(crate) resume: Resume,
    /// What could not be set so far.
    pub(crate) skipped: Skipped,
}

impl Mark {
    fn encode(&self, boot: &[u8]) -> Vec<u8> {
        let mut body = Vec::new();
        put_bytes(&mut body, boot);
        put_u64(&mut body, self.log);
        put_u64(&mut body, self.bytes);
        self.resume.encode(&mut body);
        for count in [self.skipped.owners, self.skipped.xattrs, self.skipped.devices] {
            put_u64(&mut body, count);
        }
        let mut out = blake3::hash(&body).as_bytes()[..8].to_vec();
        put_bytes(&mut out, &body);
        out
    }

    /// `None` when it is not whole, or of another boot than the one asked for.
    fn decode(bytes: &[u8], boot: Option<&[u8]>) -> Option<Self> {
        let mut take = Take::new(WHAT, bytes);
        let check = take.raw(8).ok()?;
        let body = take.bytes().ok()?;
        if blake3::hash(body).as_bytes()[..8] != *check {
            return None;
        }
        let mut take = Take::new(WHAT, body);
        let written = take.bytes().ok()?;
        if boot.is_some_and(|boot| boot != written) {
            return None;
        }
        let (log, bytes) = (take.u64().ok()?, take.u64().ok()?);
        let resume = Resume::decode(&mut take).ok()?;
        let mut count = || take.u64().ok();
        let skipped = Skipped { owners: count()?, xattrs: count()?, devices: count()? };
        Some(Self { log, bytes, resume, skipped })
    }
}

/// Names this run of the kernel: what a process wrote survives the process, but not the kernel.
fn boot() -> Vec<u8> {
    std::fs::read("/proc/sys/kernel/random/boot_id").unwrap_or_default()
}

/// An open staging folder.
pub(crate) struct Staging {
    dir: PathBuf,
    log: File,
    progress: File,
    buffer: Vec<u8>,
    boot: Vec<u8>,
    pub(crate) mark: Mark,
}

impl std::fmt::Debug for Staging {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Staging").field("dir", &self.dir).field("mark", &self.mark).finish_non_exhaustive()
    }
}

fn bytes_of(path: &Path) -> &[u8] {
    use std::os::unix::ffi::OsStrExt;
    path.as_os_str().as_bytes()
}

/// What a cut transfer left in `dir`; `None` when nothing that could be continued lies there.
pub fn staged(dir: &Path) -> Result<Option<Staged>> {
    let header = match std::fs::read(dir.join("header")) {
        Ok(bytes) => bytes,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(e).at("read", bytes_of(dir)),
    };
    let mut take = Take::new(WHAT, &header);
    let mut parse = || -> Result<(Vec<u8>, bool, Hash, Hash)> {
        let label = take.bytes()?.to_vec();
        let has_base = take.u8()? == 1;
        let mut hashes = [[0; 32]; 2];
        for hash in &mut hashes {
            hash.copy_from_slice(take.raw(32)?);
        }
        Ok((label, has_base, hashes[0], hashes[1]))
    };
    // A header is renamed into place whole; one that does not parse is of another version, and worth nothing.
    let Ok((label, has_base, base, root)) = parse() else { return Ok(None) };
    let mark = read_mark(dir).unwrap_or_default();
    Ok(Some(Staged { label, base: has_base.then_some(base), root, resume: mark.resume, bytes: mark.bytes }))
}

fn read_mark(dir: &Path) -> Option<Mark> {
    let progress = std::fs::read(dir.join("progress")).unwrap_or_default();
    Mark::decode(&progress, Some(&boot()))
        .or_else(|| Mark::decode(&std::fs::read(dir.join("durable")).unwrap_or_default(), None))
}

impl Staging {
    /// Continues what lies in `dir` when `header` does so exactly, or starts anew when `header` starts.
    pub(crate) fn open(dir: &Path, header: &Header) -> Result<Self> {
        let found = staged(dir)?;
        let same =
            found.filter(|s| s.label == header.label && s.base == header.base && s.root == header.root);
        let fits = same.as_ref().is_some_and(|s| s.resume == header.resume);
        if !fits || header.resume.is_start() {
            if !header.resume.is_start() {
                if same.is_some() {
                    return Err(Error::MovedOn);
                }
                return Err(Error::OutOfStep("it continues a transfer of which nothing is left here".into()));
            }
            Self::clear(dir)?;
            std::fs::create_dir_all(dir.join("tree")).at("create", bytes_of(dir))?;
            let mut bytes = Vec::new();
            put_bytes(&mut bytes, &header.label);
            bytes.push(u8::from(header.base.is_some()));
            bytes.extend_from_slice(&header.base.unwrap_or_default());
            bytes.extend_from_slice(&header.root);
            write_whole(dir, "header", &bytes)?;
        }
        let open = |name: &str| {
            let file =
                OpenOptions::new().read(true).write(true).create(true).truncate(false).open(dir.join(name));
            file.at("open", name.as_bytes())
        };
        let mark = read_mark(dir).unwrap_or_default();
        let staging = Self {
            dir: dir.to_owned(),
            log: open("delta")?,
            progress: open("progress")?,
            buffer: Vec::new(),
            boot: boot(),
            mark,
        };
        staging.log.set_len(staging.mark.log).at("shorten", b"delta")?;
        Ok(staging)
    }

    /// Removes everything in `dir`.
    fn clear(dir: &Path) -> Result<()> {
        crate::tree::remove_path(dir, &|| false)?;
        std::fs::create_dir_all(dir).at("create", bytes_of(dir))
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// Logs a complete change.
    pub(crate) fn push(&mut self, logged: &Logged) -> Result<()> {
        let mut record = Vec::new();
        logged.encode(&mut record);
        put_bytes(&mut self.buffer, &record);
        self.mark.resume.done = Some(logged.path().to_vec());
        self.mark.resume.partial = None;
        if self.buffer.len() > 64 * 1024 { self.save() } else { Ok(()) }
    }

    /// Makes what arrived so far survive this process.
    pub(crate) fn save(&mut self) -> Result<()> {
        self.log.write_all_at(&self.buffer, self.mark.log).at("write", b"delta")?;
        self.mark.log += self.buffer.len() as u64;
        self.buffer.clear();
        let bytes = self.mark.encode(&self.boot);
        self.progress.write_all_at(&bytes, 0).at("write", b"progress")
    }

    /// Makes what arrived so far survive the machine.
    pub(crate) fn save_durably(&mut self) -> Result<()> {
        self.save()?;
        rustix::fs::syncfs(&self.log).at("sync", bytes_of(&self.dir))?;
        write_whole(&self.dir, "durable", &self.mark.encode(&self.boot))
    }

    /// Whether no change has arrived.
    pub(crate) fn is_empty(&self) -> bool {
        self.mark.log == 0 && self.buffer.is_empty()
    }

    /// The changes that count, in order.
    pub(crate) fn changes(&mut self) -> Result<Changes> {
        self.save()?;
        Changes::open(&self.path("delta"), self.mark.log)
    }
}

/// Writes a small file so that it is there whole or not at all, and survives the machine.
pub fn write_whole(dir: &Path, name: &str, bytes: &[u8]) -> Result<()> {
    let temporary = dir.join(format!(".{name}.new"));
    let mut file = File::create(&temporary).at("create", name.as_bytes())?;
    file.write_all(bytes).at("write", name.as_bytes())?;
    file.sync_all().at("sync", name.as_bytes())?;
    std::fs::rename(&temporary, dir.join(name)).at("rename", name.as_bytes())?;
    File::open(dir).and_then(|d| d.sync_all()).at("sync", bytes_of(dir))
}

/// Reads the log.
pub(crate) struct Changes {
    input: BufReader<std::io::Take<File>>,
    ahead: Option<Logged>,
}

impl Changes {
    /// Reads the first `len` bytes of a log.
    pub(crate) fn open(log: &Path, len: u64) -> Result<Self> {
        let file = File::open(log).at("open", b"delta")?;
        Ok(Self { input: BufReader::with_capacity(256 * 1024, file.take(len)), ahead: None })
    }

    /// The next change, without taking it.
    pub(crate) fn peek(&mut self) -> Result<Option<&Logged>> {
        if self.ahead.is_none() {
            self.ahead = self.read()?;
        }
        Ok(self.ahead.as_ref())
    }

    pub(crate) fn take(&mut self) -> Option<Logged> {
        self.ahead.take()
    }

    fn read(&mut self) -> Result<Option<Logged>> {
        let mut len = Vec::new();
        loop {
            let mut byte = [0];
            if self.input.read(&mut byte).at("read", b"delta")? == 0 {
                if len.is_empty() {
                    return Ok(None);
                }
                return Err(Error::malformed(WHAT, "its log ends within a record"));
            }
            len.push(byte[0]);
            if byte[0] & 0x80 == 0 {
                break;
            }
        }
        let len = Take::new(WHAT, &len).u64()?;
        let mut record = Vec::new();
        let got = (&mut self.input).take(len).read_to_end(&mut record).at("read", b"delta")?;
        if got as u64 != len {
            return Err(Error::malformed(WHAT, "its log ends within a record"));
        }
        Logged::decode(&record).map(Some)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cut_transfer_remembers_what_could_not_be_set() {
        let dir = tempfile::tempdir().unwrap();
        let start = Header { label: b"x".to_vec(), root: [7; 32], ..Header::default() };
        let mut staging = Staging::open(dir.path(), &start).unwrap();
        staging.mark.skipped.owners = 3;
        staging.push(&Logged::Remove(b"a".to_vec())).unwrap();
        staging.save().unwrap();
        let resume = staged(dir.path()).unwrap().unwrap().resume;
        let again = Staging::open(dir.path(), &Header { resume, ..start }).unwrap();
        assert_eq!(again.mark.skipped, Skipped { owners: 3, ..Skipped::default() });
    }
}
