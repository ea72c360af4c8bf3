//! The stream's frames.
//!
//! ```text
//! frame    kind (1 byte), payload length (u32 LE), payload
//! payload  checked by 8 bytes of BLAKE3 in front; a chunk instead by the hash of its content
//! ```
//! A stream is a [`Header`], then for each change a `Remove`, `Gone` or `Put`, after a `Put` of a file its chunks and
//! a `Done`, and at last `End`. Versions: a reader refuses a header of a version it does not know; within a version
//! nothing changes.

use std::io::{ErrorKind, Read, Write};

use crate::codec::{Take, put_bytes, put_i64, put_u64};
use crate::control::{Control, Limit};
use crate::diff::{Run, Source};
use crate::entry::{CHUNK, Content, Entry, Extent, Hash, Time, is_safe};
use crate::error::{Error, Result};

/// Name and version of the stream, for drivers to compare.
pub const STREAM_FORMAT: &str = "tandem.tree.v1";

const VERSION: u64 = 1;
const WHAT: &str = "the stream";

/// What starts a stream.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Header {
    /// What the driver wants to find again on the other side (a point's name).
    pub label: Vec<u8>,
    /// Root hash of the manifest that the stream builds upon; `None` for a full copy.
    pub base: Option<Hash>,
    /// Root hash of the manifest that it leads to.
    pub root: Hash,
    /// Bytes of content that this stream is going to carry, as far as known at its start.
    pub bytes: u64,
    /// Where it continues.
    pub resume: Resume,
}

/// Where a cut stream continues: what the receiver has.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Resume {
    /// Every change up to this path, in the order of the tree, has arrived.
    pub done: Option<Vec<u8>>,
    /// A file that arrived in part.
    pub partial: Option<Partial>,
    /// Nothing is missing but the end.
    pub ended: bool,
}

/// A file that arrived in part.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Partial {
    /// Its path.
    pub path: Vec<u8>,
    /// What it was going to be: proves that sender and receiver speak of the same content.
    pub proof: Hash,
    /// Chunks that arrived, in the order they are carried.
    pub chunks: u64,
}

impl Resume {
    /// Whether it says nothing: the stream starts at its start.
    pub fn is_start(&self) -> bool {
        *self == Self::default()
    }

    /// As text, for a token.
    pub fn to_text(&self) -> String {
        let mut out = Vec::new();
        self.encode(&mut out);
        crate::manifest::hex(&out)
    }

    /// From text.
    pub fn from_text(text: &str) -> Result<Self> {
        let bad = || Error::malformed("the resume token", "it is not one of this driver's");
        let bytes = crate::manifest::unhex(text).ok_or_else(bad)?;
        let mut take = Take::new("the resume token", &bytes);
        let resume = Self::decode(&mut take)?;
        take.end()?;
        Ok(resume)
    }

    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        let flags =
            u8::from(self.done.is_some()) | u8::from(self.partial.is_some()) << 1 | u8::from(self.ended) << 2;
        out.push(flags);
        if let Some(path) = &self.done {
            put_bytes(out, path);
        }
        if let Some(partial) = &self.partial {
            put_bytes(out, &partial.path);
            out.extend_from_slice(&partial.proof);
            put_u64(out, partial.chunks);
        }
    }

    pub(crate) fn decode(take: &mut Take<'_>) -> Result<Self> {
        let flags = take.u8()?;
        let done = if flags & 1 != 0 { Some(take.bytes()?.to_vec()) } else { None };
        let partial = if flags & 2 != 0 {
            Some(Partial { path: take.bytes()?.to_vec(), proof: take_hash(take)?, chunks: take.u64()? })
        } else {
            None
        };
        Ok(Self { done, partial, ended: flags & 4 != 0 })
    }
}

/// One frame.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(clippy::large_enum_variant)] // each lives for one turn of a loop
pub(crate) enum Frame {
    Header(Header),
    /// The path goes.
    Remove(Vec<u8>),
    /// The manifest has this, but it vanished before it could be sent.
    Gone(Entry),
    Put(Put),
    /// The data that follows was read into the buffer that the reader was given.
    Chunk(ChunkHead),
    /// The file is complete; and what it is when that is not what its `Put` said.
    Done(Option<Entry>),
    End,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Put {
    pub(crate) entry: Entry,
    /// What the manifest says, when what is sent is newer.
    pub(crate) original: Option<Entry>,
    pub(crate) source: Source,
    pub(crate) carry: Vec<Run>,
    /// Carried chunks that the receiver has already.
    pub(crate) skip: u64,
}

impl Put {
    /// Proves that two sides mean the same partial file.
    pub(crate) fn proof(&self) -> Hash {
        let mut out = Vec::new();
        put_source(&mut out, &self.source);
        put_runs(&mut out, &self.carry);
        let mut hasher = blake3::Hasher::new();
        hasher.update(&self.entry.content().map(Content::digest).unwrap_or_default());
        hasher.update(&out);
        *hasher.finalize().as_bytes()
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ChunkHead {
    pub(crate) index: u64,
    pub(crate) hash: Hash,
    /// Length of the chunk.
    pub(crate) len: u64,
    /// Where its data lies, relative to the file; what is between is a hole.
    pub(crate) parts: Vec<Extent>,
}

fn take_hash(take: &mut Take<'_>) -> Result<Hash> {
    let mut hash = [0; 32];
    hash.copy_from_slice(take.raw(32)?);
    Ok(hash)
}

fn put_source(out: &mut Vec<u8>, source: &Source) {
    match source {
        Source::Nothing => out.push(0),
        Source::Base { path, identity, whole } => {
            out.push(1 | u8::from(identity.is_some()) << 1 | u8::from(*whole) << 2);
            put_bytes(out, path);
            if let Some((size, mtime)) = identity {
                put_u64(out, *size);
                put_i64(out, mtime.sec);
                put_u64(out, u64::from(mtime.nsec));
            }
        }
    }
}

fn take_source(take: &mut Take<'_>) -> Result<Source> {
    let flags = take.u8()?;
    if flags & 1 == 0 {
        return Ok(Source::Nothing);
    }
    let path = take.bytes()?.to_vec();
    if !is_safe(&path) {
        return Err(take.bad("a source lies outside the tree"));
    }
    let identity =
        if flags & 2 != 0 { Some((take.u64()?, Time { sec: take.i64()?, nsec: take.u32()? })) } else { None };
    Ok(Source::Base { path, identity, whole: flags & 4 != 0 })
}

fn put_runs(out: &mut Vec<u8>, runs: &[Run]) {
    put_u64(out, runs.len() as u64);
    for (from, to) in runs {
        put_u64(out, *from);
        put_u64(out, to - from);
    }
}

fn put_entry(out: &mut Vec<u8>, entry: Option<&Entry>) {
    out.push(u8::from(entry.is_some()));
    if let Some(entry) = entry {
        entry.encode(&[], out);
    }
}

pub(crate) fn take_entry(take: &mut Take<'_>) -> Result<Option<Entry>> {
    if take.u8()? == 0 { Ok(None) } else { Entry::decode(&[], take).map(Some) }
}

/// An optional entry, as it stands in frames and logs.
pub(crate) fn encode_entry(out: &mut Vec<u8>, entry: Option<&Entry>) {
    put_entry(out, entry);
}

/// Writes frames, held to a bandwidth.
pub(crate) struct FrameWriter<'a> {
    out: &'a mut dyn Write,
    limit: Option<Limit>,
    control: &'a Control<'a>,
    pub(crate) sent: u64,
    payload: Vec<u8>,
}

impl<'a> FrameWriter<'a> {
    pub(crate) fn new(out: &'a mut dyn Write, bandwidth: Option<u64>, control: &'a Control<'a>) -> Self {
        Self { out, limit: bandwidth.map(Limit::new), control, sent: 0, payload: Vec::new() }
    }

    pub(crate) fn header(&mut self, header: &Header) -> Result<()> {
        self.payload.clear();
        put_u64(&mut self.payload, VERSION);
        put_bytes(&mut self.payload, &header.label);
        self.payload.push(u8::from(header.base.is_some()));
        self.payload.extend_from_slice(&header.base.unwrap_or_default());
        self.payload.extend_from_slice(&header.root);
        put_u64(&mut self.payload, header.bytes);
        header.resume.encode(&mut self.payload);
        self.checked(b'H')
    }

    pub(crate) fn remove(&mut self, path: &[u8]) -> Result<()> {
        self.payload.clear();
        put_bytes(&mut self.payload, path);
        self.checked(b'R')
    }

    pub(crate) fn gone(&mut self, original: &Entry) -> Result<()> {
        self.payload.clear();
        put_entry(&mut self.payload, Some(original));
        self.checked(b'G')
    }

    pub(crate) fn put(&mut self, put: &Put) -> Result<()> {
        self.payload.clear();
        put_entry(&mut self.payload, Some(&put.entry));
        put_entry(&mut self.payload, put.original.as_ref());
        put_source(&mut self.payload, &put.source);
        put_runs(&mut self.payload, &put.carry);
        put_u64(&mut self.payload, put.skip);
        self.checked(b'P')
    }

    pub(crate) fn done(&mut self, amended: Option<&Entry>) -> Result<()> {
        self.payload.clear();
        put_entry(&mut self.payload, amended);
        self.checked(b'D')
    }

    pub(crate) fn end(&mut self) -> Result<()> {
        self.payload.clear();
        self.checked(b'E')?;
        self.out.flush().map_err(|e| self.lost(e))
    }

    /// Sends the allocated parts of a chunk, whose content is `chunk`.
    pub(crate) fn chunk(&mut self, head: &ChunkHead, chunk: &[u8]) -> Result<()> {
        self.payload.clear();
        put_u64(&mut self.payload, head.index);
        self.payload.extend_from_slice(&head.hash);
        put_u64(&mut self.payload, head.len);
        let from = head.index * CHUNK;
        put_u64(&mut self.payload, head.parts.len() as u64);
        for part in &head.parts {
            put_u64(&mut self.payload, part.start - from);
            put_u64(&mut self.payload, part.end - part.start);
        }
        let mut bytes = Vec::with_capacity(5);
        let data: usize = head.parts.iter().map(|p| (p.end - p.start) as usize).sum();
        bytes.push(b'C');
        bytes.extend_from_slice(&(self.payload.len() as u32).to_le_bytes());
        bytes.extend_from_slice(&self.payload);
        self.write(&bytes)?;
        for part in &head.parts {
            self.write(&chunk[(part.start - from) as usize..(part.end - from) as usize])?;
        }
        debug_assert!(data as u64 <= head.len);
        Ok(())
    }

    fn checked(&mut self, kind: u8) -> Result<()> {
        let len = u32::try_from(self.payload.len())
            .map_err(|_| Error::malformed(WHAT, "a file is too large for this version of the stream"))?;
        let mut head = vec![kind];
        head.extend_from_slice(&len.to_le_bytes());
        head.extend_from_slice(&check(kind, &self.payload));
        self.write(&head)?;
        let payload = std::mem::take(&mut self.payload);
        let written = self.write(&payload);
        self.payload = payload;
        written
    }

    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        if let Some(limit) = &mut self.limit {
            limit.pass(bytes.len(), &|| self.control.cancelled())?;
        }
        self.sent += bytes.len() as u64;
        self.out.write_all(bytes).map_err(|e| self.lost(e))
    }

    fn lost(&self, e: std::io::Error) -> Error {
        match e.kind() {
            _ if self.control.cancelled() => Error::Cancelled,
            ErrorKind::BrokenPipe | ErrorKind::ConnectionReset | ErrorKind::ConnectionAborted => Error::Cut,
            _ => Error::Io { action: "write", path: WHAT.into(), source: e },
        }
    }
}

fn check(kind: u8, payload: &[u8]) -> [u8; 8] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&[kind]);
    hasher.update(payload);
    let mut check = [0; 8];
    check.copy_from_slice(&hasher.finalize().as_bytes()[..8]);
    check
}

/// Reads frames.
pub(crate) struct FrameReader<'a> {
    input: &'a mut dyn Read,
    control: &'a Control<'a>,
    pub(crate) received: u64,
    payload: Vec<u8>,
}

impl<'a> FrameReader<'a> {
    pub(crate) fn new(input: &'a mut dyn Read, control: &'a Control<'a>) -> Self {
        Self { input, control, received: 0, payload: Vec::new() }
    }

    /// The next frame; a chunk's content goes to `chunk`, holes as zeros, and is proven by its hash.
    pub(crate) fn next(&mut self, chunk: &mut Vec<u8>) -> Result<Frame> {
        self.control.check()?;
        let mut head = [0; 5];
        self.read(&mut head)?;
        let kind = head[0];
        let len = u64::from(u32::from_le_bytes([head[1], head[2], head[3], head[4]]));
        if kind == b'C' {
            self.fill(len)?;
            return self.chunk(chunk).map(Frame::Chunk);
        }
        let mut expected = [0; 8];
        self.read(&mut expected)?;
        self.fill(len)?;
        if check(kind, &self.payload) != expected {
            return Err(Error::malformed(WHAT, "a frame does not fit its check"));
        }
        let mut take = Take::new(WHAT, &self.payload);
        let frame = match kind {
            b'H' => Frame::Header(take_header(&mut take)?),
            b'R' => {
                let path = take.bytes()?.to_vec();
                if path.is_empty() || !is_safe(&path) {
                    return Err(take.bad("a removal leads out of the tree"));
                }
                Frame::Remove(path)
            }
            b'G' => Frame::Gone(take_entry(&mut take)?.ok_or_else(|| take.bad("nothing is gone"))?),
            b'P' => Frame::Put(take_put(&mut take)?),
            b'D' => Frame::Done(take_entry(&mut take)?),
            b'E' => Frame::End,
            other => return Err(take.bad(&format!("a frame of kind {other} is unknown"))),
        };
        take.end()?;
        Ok(frame)
    }

    fn chunk(&mut self, chunk: &mut Vec<u8>) -> Result<ChunkHead> {
        let mut take = Take::new(WHAT, &self.payload);
        let index = take.u64()?;
        let hash = take_hash(&mut take)?;
        let len = take.u64()?;
        if len > CHUNK || index > u64::MAX / CHUNK - 1 {
            return Err(take.bad("a chunk is too large"));
        }
        let mut parts: Vec<Extent> = Vec::new();
        let mut at = 0;
        for _ in 0..take.count(2)? {
            let (start, size) = (take.u64()?, take.u64()?);
            let end = start.checked_add(size).filter(|end| start >= at && size > 0 && *end <= len);
            let Some(end) = end else { return Err(take.bad("a part lies outside its chunk")) };
            parts.push(Extent { start: index * CHUNK + start, end: index * CHUNK + end });
            at = end;
        }
        take.end()?;
        chunk.clear();
        chunk.resize(len as usize, 0);
        for part in &parts {
            let from = (part.start - index * CHUNK) as usize;
            let to = (part.end - index * CHUNK) as usize;
            self.read(&mut chunk[from..to])?;
        }
        let head = ChunkHead { index, hash, len, parts };
        let proven = if head.parts.is_empty() && hash == crate::entry::HOLE {
            true
        } else {
            crate::content::hash(chunk) == hash
        };
        if proven { Ok(head) } else { Err(Error::malformed(WHAT, "a chunk does not fit its hash")) }
    }

    fn fill(&mut self, len: u64) -> Result<()> {
        self.payload.clear();
        let got = (&mut self.input).take(len).read_to_end(&mut self.payload);
        let got = got.map_err(|e| lost(self.control, e))? as u64;
        self.received += got;
        if got == len { Ok(()) } else { Err(Error::Cut) }
    }

    fn read(&mut self, into: &mut [u8]) -> Result<()> {
        self.input.read_exact(into).map_err(|e| lost(self.control, e))?;
        self.received += into.len() as u64;
        Ok(())
    }
}

fn lost(control: &Control<'_>, e: std::io::Error) -> Error {
    match e.kind() {
        _ if control.cancelled() => Error::Cancelled,
        ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset | ErrorKind::ConnectionAborted => Error::Cut,
        _ => Error::Io { action: "read", path: WHAT.into(), source: e },
    }
}

fn take_header(take: &mut Take<'_>) -> Result<Header> {
    let version = take.u64()?;
    if version != VERSION {
        return Err(take.bad(&format!("it is of version {version}, this side knows version {VERSION}")));
    }
    let label = take.bytes()?.to_vec();
    let has_base = take.u8()? == 1;
    let base = Some(take_hash(take)?).filter(|_| has_base);
    Ok(Header { label, base, root: take_hash(take)?, bytes: take.u64()?, resume: Resume::decode(take)? })
}

fn take_put(take: &mut Take<'_>) -> Result<Put> {
    let entry = take_entry(take)?.ok_or_else(|| take.bad("nothing is put"))?;
    let original = take_entry(take)?;
    let source = take_source(take)?;
    let chunks = entry.content().map_or(0, |c| c.chunks.len() as u64);
    let mut carry: Vec<Run> = Vec::new();
    let mut at = 0;
    for _ in 0..take.count(2)? {
        let (from, len) = (take.u64()?, take.u64()?);
        let to = from.checked_add(len).filter(|to| from >= at && len > 0 && *to <= chunks);
        let Some(to) = to else { return Err(take.bad("a carried chunk lies outside its file")) };
        carry.push((from, to));
        at = to;
    }
    let skip = take.u64()?;
    Ok(Put { entry, original, source, carry, skip })
}
