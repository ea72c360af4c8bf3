//! The list of everything in a tree, on disk: written and read as a stream, so that its size is bounded by the disk only.
//!
//! ```text
//! magic "TNDMMAN1"
//! record*   length, portable part (what is carried and proven), local part (how to know it again here)
//! 0         end of records
//! footer    entries, content bytes, allocated bytes: u64 LE each; root hash: 32 bytes; magic again
//! ```
//! The root hash covers the portable parts in order: two trees with one root hash are the same to every reader.

use std::fs::File;
use std::io::{BufReader, BufWriter, ErrorKind, Read, Seek, SeekFrom, Write};
use std::path::Path;

use crate::codec::{Take, put_bytes, put_i64, put_u64};
use crate::entry::{Entry, Hash, Local, Time, compare};
use crate::error::{At, Error, Result, show};

const MAGIC: &[u8; 8] = b"TNDMMAN1";
const FOOTER: usize = 8 * 3 + 32 + 8;
/// No honest record is larger: the hashes of a file of 64 TiB. What claims more is damage.
const LARGEST: u64 = 1 << 35;
const WHAT: &str = "the manifest";

/// What a manifest says about its tree as a whole.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// Names in the tree, its root included.
    pub entries: u64,
    /// Lengths of all regular files, each counted once however many names it has.
    pub bytes: u64,
    /// Bytes allocated on the disk where it was scanned; 0 when it came from elsewhere. Not part of the root hash.
    pub allocated: u64,
    /// The hash that proves it.
    pub root: Hash,
}

impl Summary {
    /// The root hash as text.
    pub fn fingerprint(&self) -> String {
        hex(&self.root)
    }
}

/// Lower-case hexadecimal.
pub fn hex(bytes: &[u8]) -> String {
    let digit = |n: u8| char::from_digit(u32::from(n), 16).unwrap_or('?');
    bytes.iter().flat_map(|b| [digit(b >> 4), digit(b & 15)]).collect()
}

/// Bytes from hexadecimal; `None` when it is not.
pub fn unhex(text: &str) -> Option<Vec<u8>> {
    let digit = |c: u8| char::from(c).to_digit(16).map(|d| d as u8);
    let (pairs, rest) = text.as_bytes().as_chunks::<2>();
    if !rest.is_empty() {
        return None;
    }
    pairs.iter().map(|[a, b]| Some(digit(*a)? << 4 | digit(*b)?)).collect()
}

/// The root hash, computed entry by entry.
#[derive(Debug)]
pub(crate) struct Rooter {
    hasher: blake3::Hasher,
    previous: Vec<u8>,
    summary: Summary,
}

impl Rooter {
    pub(crate) fn new() -> Self {
        Self { hasher: blake3::Hasher::new(), previous: Vec::new(), summary: Summary::default() }
    }

    /// Takes the next entry and gives its portable part.
    pub(crate) fn push(&mut self, entry: &Entry, portable: &mut Vec<u8>) -> Result<()> {
        if self.summary.entries > 0 && compare(&entry.path, &self.previous) != std::cmp::Ordering::Greater {
            return Err(Error::malformed(WHAT, format!("`{}` is out of order", show(&entry.path))));
        }
        portable.clear();
        entry.encode(&self.previous, portable);
        self.hasher.update(&(portable.len() as u64).to_le_bytes());
        self.hasher.update(portable);
        self.previous.clear();
        self.previous.extend_from_slice(&entry.path);
        self.summary.entries += 1;
        self.summary.bytes += entry.content().map_or(0, |c| c.size);
        Ok(())
    }

    pub(crate) fn finish(mut self) -> Summary {
        self.summary.root = *self.hasher.finalize().as_bytes();
        self.summary
    }
}

/// Writes a manifest; entries come in the order of the tree.
#[derive(Debug)]
pub struct ManifestWriter<W: Write> {
    out: W,
    rooter: Rooter,
    portable: Vec<u8>,
    local: Vec<u8>,
    allocated: u64,
}

impl ManifestWriter<BufWriter<File>> {
    /// Creates (or empties) the file at `path`.
    pub fn create(path: &Path) -> Result<Self> {
        use std::os::unix::ffi::OsStrExt;
        let file = File::create(path).at("create", path.as_os_str().as_bytes())?;
        Self::new(BufWriter::with_capacity(256 * 1024, file))
    }

    /// Ends the manifest and makes it durable.
    pub fn finish_durable(self) -> Result<Summary> {
        let (summary, out) = self.finish()?;
        let file = out.into_inner().map_err(|e| e.into_error()).at("write", b"the manifest")?;
        file.sync_all().at("sync", b"the manifest")?;
        Ok(summary)
    }
}

impl<W: Write> ManifestWriter<W> {
    /// Starts a manifest.
    pub fn new(mut out: W) -> Result<Self> {
        out.write_all(MAGIC).at("write", b"the manifest")?;
        Ok(Self { out, rooter: Rooter::new(), portable: Vec::new(), local: Vec::new(), allocated: 0 })
    }

    /// Adds an entry.
    pub fn push(&mut self, entry: &Entry) -> Result<()> {
        self.rooter.push(entry, &mut self.portable)?;
        self.local.clear();
        if let Some(local) = &entry.local {
            put_u64(&mut self.local, local.dev);
            put_u64(&mut self.local, local.ino);
            put_i64(&mut self.local, local.ctime.sec);
            put_u64(&mut self.local, u64::from(local.ctime.nsec));
        }
        let mut head = Vec::with_capacity(10);
        put_u64(&mut head, self.portable.len() as u64);
        let mut tail = Vec::with_capacity(40);
        put_bytes(&mut tail, &self.local);
        for part in [&head, &self.portable, &tail] {
            self.out.write_all(part).at("write", b"the manifest")?;
        }
        Ok(())
    }

    /// Tells what the tree takes on its disk.
    pub fn set_allocated(&mut self, bytes: u64) {
        self.allocated = bytes;
    }

    /// Ends it, and gives the writer back, flushed.
    pub fn finish(mut self) -> Result<(Summary, W)> {
        let mut summary = self.rooter.finish();
        summary.allocated = self.allocated;
        let mut footer = vec![0];
        for number in [summary.entries, summary.bytes, summary.allocated] {
            footer.extend_from_slice(&number.to_le_bytes());
        }
        footer.extend_from_slice(&summary.root);
        footer.extend_from_slice(MAGIC);
        self.out.write_all(&footer).and_then(|()| self.out.flush()).at("write", b"the manifest")?;
        Ok((summary, self.out))
    }
}

/// Reads a manifest entry by entry, and checks its root hash at the end.
#[derive(Debug)]
pub struct ManifestReader<R: Read> {
    input: R,
    previous: Vec<u8>,
    record: Vec<u8>,
    hasher: blake3::Hasher,
    entries: u64,
    summary: Option<Summary>,
    failed: bool,
}

impl ManifestReader<BufReader<File>> {
    /// Opens the manifest at `path`.
    pub fn open(path: &Path) -> Result<Self> {
        use std::os::unix::ffi::OsStrExt;
        let file = File::open(path).at("open", path.as_os_str().as_bytes())?;
        Self::new(BufReader::with_capacity(256 * 1024, file))
    }
}

impl<R: Read> ManifestReader<R> {
    /// Starts reading.
    pub fn new(mut input: R) -> Result<Self> {
        let mut magic = [0; 8];
        read(&mut input, &mut magic)?;
        if &magic != MAGIC {
            return Err(Error::malformed(WHAT, "it does not start as one"));
        }
        Ok(Self {
            input,
            previous: Vec::new(),
            record: Vec::new(),
            hasher: blake3::Hasher::new(),
            entries: 0,
            summary: None,
            failed: false,
        })
    }

    /// The summary, once every entry has been read.
    pub fn summary(&self) -> Option<&Summary> {
        self.summary.as_ref()
    }

    /// The next entry; `None` after the last.
    pub fn read_next(&mut self) -> Result<Option<Entry>> {
        if self.summary.is_some() || self.failed {
            return Ok(None);
        }
        let result = self.record();
        self.failed = result.is_err();
        result
    }

    fn record(&mut self) -> Result<Option<Entry>> {
        let len = self.number()?;
        if len == 0 {
            return self.end().map(|()| None);
        }
        if len > LARGEST {
            return Err(Error::malformed(WHAT, "a record is too large"));
        }
        self.fill(len)?;
        self.hasher.update(&len.to_le_bytes());
        self.hasher.update(&self.record);
        let mut take = Take::new(WHAT, &self.record);
        let mut entry = Entry::decode(&self.previous, &mut take)?;
        take.end()?;
        let len = self.number()?;
        if len > 64 {
            return Err(Error::malformed(WHAT, "a local part is too large"));
        }
        self.fill(len)?;
        let mut take = Take::new(WHAT, &self.record);
        if !take.is_empty() {
            entry.local = Some(Local {
                dev: take.u64()?,
                ino: take.u64()?,
                ctime: Time { sec: take.i64()?, nsec: take.u32()? },
            });
            take.end()?;
        }
        self.previous.clear();
        self.previous.extend_from_slice(&entry.path);
        self.entries += 1;
        Ok(Some(entry))
    }

    fn end(&mut self) -> Result<()> {
        let mut footer = [0; FOOTER];
        read(&mut self.input, &mut footer)?;
        let summary = parse_footer(&footer)?;
        if summary.entries != self.entries || summary.root != *self.hasher.finalize().as_bytes() {
            return Err(Error::malformed(WHAT, "its root hash does not fit its entries"));
        }
        self.summary = Some(summary);
        Ok(())
    }

    fn number(&mut self) -> Result<u64> {
        let mut bytes = [0u8; 10];
        for at in 0..bytes.len() {
            read(&mut self.input, &mut bytes[at..=at])?;
            if bytes[at] & 0x80 == 0 {
                return Take::new(WHAT, &bytes[..=at]).u64();
            }
        }
        Err(Error::malformed(WHAT, "a length is too long"))
    }

    fn fill(&mut self, len: u64) -> Result<()> {
        self.record.clear();
        let got = (&mut self.input).take(len).read_to_end(&mut self.record).at("read", b"the manifest")?;
        if got as u64 == len { Ok(()) } else { Err(Error::malformed(WHAT, "it ends too early")) }
    }
}

impl<R: Read> Iterator for ManifestReader<R> {
    type Item = Result<Entry>;
    fn next(&mut self) -> Option<Self::Item> {
        self.read_next().transpose()
    }
}

/// Reads only what a manifest says about its tree as a whole. Quick, whatever its size.
pub fn read_summary(path: &Path) -> Result<Summary> {
    use std::os::unix::ffi::OsStrExt;
    let name = path.as_os_str().as_bytes();
    let mut file = File::open(path).at("open", name)?;
    let len = file.metadata().at("stat", name)?.len();
    if len < (MAGIC.len() + 1 + FOOTER) as u64 {
        return Err(Error::malformed(WHAT, "it ends too early"));
    }
    file.seek(SeekFrom::End(-(FOOTER as i64))).at("read", name)?;
    let mut footer = [0; FOOTER];
    read(&mut file, &mut footer)?;
    parse_footer(&footer)
}

fn parse_footer(footer: &[u8; FOOTER]) -> Result<Summary> {
    let number = |at: usize| {
        let mut bytes = [0; 8];
        bytes.copy_from_slice(&footer[at * 8..at * 8 + 8]);
        u64::from_le_bytes(bytes)
    };
    if &footer[FOOTER - 8..] != MAGIC {
        return Err(Error::malformed(WHAT, "it does not end as one"));
    }
    let mut root = [0; 32];
    root.copy_from_slice(&footer[24..56]);
    Ok(Summary { entries: number(0), bytes: number(1), allocated: number(2), root })
}

fn read(input: &mut impl Read, into: &mut [u8]) -> Result<()> {
    input.read_exact(into).map_err(|e| match e.kind() {
        ErrorKind::UnexpectedEof => Error::malformed(WHAT, "it ends too early"),
        _ => Error::Io { action: "read", path: "the manifest".into(), source: e },
    })
}
