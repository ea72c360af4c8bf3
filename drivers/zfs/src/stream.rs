//! Points, and the streams between them.

use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use tandem_sdk::contract::{
    DiscardPartial, MakePoint, Outcome, PointInfo, Receive, ReceiveSpec, ReleasePoint, Role, SendSpec,
    SendStream, TransferReport,
};
use tandem_sdk::{Error, ErrorKind, OpContext, PointId, Result, Retry, Stream, Streamed};

use crate::apart::{Apart, Way};
use crate::header::{self, Header};
use crate::image::{Image, Version};
use crate::lzc::{self, Flags};
use crate::pump::{self, Pump};
use crate::token::Token;
use crate::{FORMAT, Inner, TOKEN, UNEMBEDDED, Zfs, error, names, tool};

impl Streamed for Zfs {
    async fn make_point(&self, cx: &OpContext, call: MakePoint) -> Result<Outcome<PointInfo>> {
        self.inner.make_point(cx, &call).await
    }

    async fn release_point(&self, cx: &OpContext, call: ReleasePoint) -> Result<Outcome<()>> {
        let Some(image) = self.inner.find(cx, call.instance).await? else {
            return Ok(Outcome::Unchanged(()));
        };
        let mut changed = false;
        for version in &image.versions {
            let there = version.points.iter().chain(&version.bookmarks).any(|m| m.point == call.point);
            if there {
                self.inner.destroy_point(cx, version, call.point).await?;
                changed = true;
            }
        }
        Ok(Outcome::of(changed, ()))
    }

    async fn send(&self, cx: &OpContext, call: SendStream, stream: OwnedFd) -> Result<TransferReport> {
        self.inner.send(cx, &call.spec, stream).await
    }

    async fn receive(
        &self,
        cx: &OpContext,
        call: Receive,
        stream: OwnedFd,
    ) -> Result<Outcome<TransferReport>> {
        self.inner.receive(cx, &call.spec, stream).await
    }

    async fn discard_partial(&self, cx: &OpContext, call: DiscardPartial) -> Result<Outcome<()>> {
        let Some(mut locked) = self.inner.lock(cx, call.instance).await? else {
            return Ok(Outcome::Unchanged(()));
        };
        let changed = self.inner.discard(cx, &mut locked.image).await?;
        Ok(Outcome::of(changed, ()))
    }
}

/// Whether blocks that are embedded in their pointers go as they are in a format, which must be ours.
fn embeds(format: &str) -> Result<bool> {
    match format {
        FORMAT => Ok(true),
        UNEMBEDDED => Ok(false),
        _ => Err(Error::invalid(format!(
            "the stream format `{format}` is unknown here; this driver speaks `{FORMAT}` and `{UNEMBEDDED}`"
        ))),
    }
}

/// Refuses what the kernel would call an invalid argument only.
fn check_fits(image: &Image, spec: &ReceiveSpec, header: &Header) -> Result<()> {
    let id = spec.instance;
    let encrypted = match &spec.from {
        Some(_) => content(image)?.encrypted,
        None => image.encrypted,
    };
    let why = if encrypted && !header.raw && header.embedded {
        format!(
            "instance {id} is encrypted, and what arrives has blocks embedded in their pointers, which cannot be; restart \
             the server, so that it asks for a stream without them"
        )
    } else if !encrypted && header.raw && spec.from.is_some() {
        format!(
            "what arrives is encrypted as it is, and instance {id} holds it in clear, so that it cannot follow; nothing was \
             changed. Delete this replica and make it anew: a full copy is encrypted"
        )
    } else {
        return Ok(());
    };
    Err(Error::conflict(why).retry(Retry::AfterOperator))
}

/// The guid behind a fingerprint.
fn guid(point: &PointInfo) -> Result<u64> {
    point.fingerprint.parse().map_err(|_| {
        Error::conflict(format!(
            "point {} has the fingerprint `{}`, which is no ZFS guid",
            point.id, point.fingerprint
        ))
    })
}

impl Inner {
    async fn make_point(&self, cx: &OpContext, call: &MakePoint) -> Result<Outcome<PointInfo>> {
        let mut locked = self.lock_existing(cx, call.instance).await?;
        let image = &mut locked.image;
        let rose = image.meta.epoch.see(call.epoch)?;
        image.meta.require_own("it makes no points")?;
        if rose {
            self.save(cx, image).await?;
        }
        let current = content(image)?;
        let (snapshot, bookmark) = (current.snapshot(call.point), current.bookmark(call.point));
        let made = match current.point(call.point) {
            Some(known) if known.held && current.bookmarks.iter().any(|m| m.point == call.point) => {
                return Ok(Outcome::Unchanged(known.info()));
            }
            Some(_) => false,
            None => {
                self.replay(cx, image).await?;
                tool::kernel(cx, "snapshot", &snapshot, lzc::snapshot).await?;
                true
            }
        };
        tool::kernel(cx, "hold", &snapshot, move |snapshot| {
            tolerate(lzc::hold(snapshot, names::HOLD), error::EEXIST)?;
            // From it the next increment starts, should somebody destroy the snapshot.
            tolerate(lzc::bookmark(&bookmark, snapshot), error::EEXIST)
        })
        .await?;
        self.refresh(cx, image).await?;
        let point = content(image)?.point(call.point).map(crate::image::Moment::info).ok_or_else(|| {
            Error::unavailable(format!("the snapshot `{snapshot}` vanished while it was made"))
                .retry(Retry::Safe)
        })?;
        Ok(Outcome::of(made, point))
    }

    /// Lets a point go: snapshot and bookmark. A snapshot that somebody else holds or has cloned goes with them.
    pub(crate) async fn destroy_point(
        &self,
        cx: &OpContext,
        version: &Version,
        point: PointId,
    ) -> Result<()> {
        let (snapshot, bookmark) = (version.snapshot(point), version.bookmark(point));
        let marked = version.bookmarks.iter().any(|m| m.point == point);
        let taken = version.point(point).copied();
        tool::kernel(cx, "destroy", &snapshot, move |snapshot| {
            if marked {
                tolerate(lzc::destroy_bookmark(&bookmark), error::ENOENT)?;
            }
            let Some(moment) = taken else { return Ok(()) };
            if moment.held {
                tolerate(tolerate_gone(lzc::release(snapshot, names::HOLD)), error::ESRCH)?;
            }
            patiently(|| tolerate_gone(lzc::destroy_snapshot(snapshot)))
        })
        .await
    }

    async fn send(&self, cx: &OpContext, spec: &SendSpec, stream: OwnedFd) -> Result<TransferReport> {
        let embedded = embeds(&spec.format)?;
        let image = self.existing(cx, spec.instance).await?;
        let meta = &image.meta;
        meta.epoch.admit(spec.epoch)?;
        meta.require_own("it sends nothing")?;
        let current = content(&image)?;
        let absent = |id| Error::not_found(format!("instance {} holds no point {id}", spec.instance));
        let to = current.point(spec.to).ok_or_else(|| absent(spec.to))?;
        let mut from = None;
        if let Some(base) = &spec.from {
            let (name, here) = match current.point(base.id) {
                Some(moment) => (current.snapshot(base.id), moment),
                None => {
                    let mark = current.bookmarks.iter().find(|m| m.point == base.id);
                    (current.bookmark(base.id), mark.ok_or_else(|| absent(base.id))?)
                }
            };
            if here.guid != guid(base)? {
                return Err(Error::conflict(format!(
                    "the other side's point {} is another one than ours",
                    base.id
                )));
            }
            from = Some((name, here.guid));
        }
        let token = resume(spec, to.guid, from.as_ref().map_or(0, |(_, guid)| *guid))?;
        let flags = match &token {
            Some(token) => token.flags(),
            // An encrypted dataset travels as it is: the other side needs no key. What came in clear goes so: an increment
            // cannot be raw where what it builds on is clear.
            None => Flags { raw: current.encrypted && !meta.clear, embedded, ..Flags::whole() },
        };
        let snapshot = current.snapshot(spec.to);
        let (limit, resumed) = (spec.bandwidth, token.as_ref().map_or(0, |t| t.bytes));
        let from = from.map(|(name, _)| name);
        tool::alive(&snapshot)?;
        let bytes = cx
            .blocking(move |cx| {
                let at = token.map(|t| (t.object, t.offset));
                push(cx, &snapshot, from.as_deref(), flags, at, resumed, limit, stream)
            })
            .await?;
        Ok(TransferReport { bytes, resumed_bytes: resumed, ..TransferReport::default() })
    }

    async fn receive(
        &self,
        cx: &OpContext,
        spec: &ReceiveSpec,
        stream: OwnedFd,
    ) -> Result<Outcome<TransferReport>> {
        embeds(&spec.format)?;
        let mut locked = self.lock_existing(cx, spec.instance).await?;
        let image = &mut locked.image;
        let rose = image.meta.epoch.see(spec.epoch)?;
        if image.meta.role != Role::Secondary {
            return Err(Error::conflict(format!(
                "instance {} is no secondary, so that it receives nothing",
                spec.instance
            )));
        }
        if rose {
            self.save(cx, image).await?;
        }
        let wanted = guid(&spec.to)?;
        if let Some(point) = image.current().and_then(|v| v.point(spec.to.id)) {
            if point.guid != wanted {
                return Err(Error::conflict(format!(
                    "point {} is here already, with another content",
                    spec.to.id
                )));
            }
            return Ok(Outcome::Unchanged(TransferReport { verified: true, ..TransferReport::default() }));
        }
        let base = base(image, spec)?;
        let (header, record, stream) = self.announced(cx, spec, wanted, base, stream).await?;
        check_fits(image, spec, &header)?;
        let clear = image.encrypted && !header.raw;
        if header.raw || image.meta.version == 0 {
            // Already now, should all end right after the stream. Else once it is here: what was encrypted by itself must never
            // be taken for clear.
            image.meta.clear = clear;
            self.save(cx, image).await?;
        }
        let resumed = self.make_ready(cx, image, spec, header).await?;
        let target = match &spec.from {
            Some(_) => content(image)?.snapshot(spec.to.id),
            None => {
                format!("{}/{}@{}", image.name, names::of_version(image.next()), names::of_point(spec.to.id))
            }
        };
        let (raw, snapshot) = (header.raw, target.clone());
        tool::alive(&target)?;
        let bytes = match cx.blocking(move |cx| pull(cx, &snapshot, raw, record, stream)).await {
            Ok(bytes) => bytes,
            Err(e) => return Err(self.failed(cx, image, e).await),
        };
        tool::kernel(cx, "hold", &target, |snapshot| {
            tolerate(lzc::hold(snapshot, names::HOLD), error::EEXIST)
        })
        .await?;
        self.refresh(cx, image).await?;
        self.prove(cx, image, spec, wanted).await?;
        image.meta.clear = clear;
        self.save(cx, image).await?;
        // A full copy takes its place, and is served in the stead of the old one.
        self.recover(cx, image).await?;
        if image.meta.is_served() && !self.is_exported(image) {
            self.serve(cx, image).await?;
        }
        tracing::debug!(instance = %spec.instance, point = %spec.to.id, bytes, "Received a point.");
        Ok(Outcome::Changed(TransferReport {
            bytes,
            resumed_bytes: resumed,
            verified: true,
            ..TransferReport::default()
        }))
    }

    /// Reads the stream's first record, and refuses a stream that is not the one announced.
    async fn announced(
        &self,
        cx: &OpContext,
        spec: &ReceiveSpec,
        to: u64,
        from: u64,
        stream: OwnedFd,
    ) -> Result<(Header, [u8; header::BYTES], Stream)> {
        let point = spec.to.id;
        cx.blocking(move |cx| {
            let mut stream = Stream::new(stream, cx)?;
            let mut record = [0; header::BYTES];
            stream.read_exact(&mut record).map_err(|e| match e.kind() {
                std::io::ErrorKind::UnexpectedEof => Error::unavailable("the stream ended before it had begun"),
                _ => stream.error(&e),
            })?;
            let header = Header::parse(&record)?;
            if (header.to, header.from) != (to, from) {
                return Err(Error::conflict(format!(
                    "what arrives is not point {point} as it was announced: it is snapshot {} on {}, expected was {to} \
                     on {from}",
                    header.to, header.from
                )));
            }
            Ok((header, record, stream))
        })
        .await
    }

    /// Makes way for a stream: nothing half arrived unless the stream goes on from it, nothing newer than its base. The
    /// bytes that had arrived already.
    async fn make_ready(
        &self,
        cx: &OpContext,
        image: &mut Image,
        spec: &ReceiveSpec,
        header: Header,
    ) -> Result<u64> {
        let partial =
            image.partial().and_then(|(version, token)| Some((version.number, Token::parse(token)?)));
        if let Some((_, token)) = &partial
            && header.resuming
            && (token.to, token.from) == (header.to, header.from)
        {
            return Ok(token.bytes);
        }
        if header.resuming {
            return Err(Error::conflict(format!(
                "the stream goes on from a transfer of which instance {} has nothing; start it again",
                spec.instance
            )));
        }
        self.discard(cx, image).await?;
        let Some(from) = &spec.from else { return Ok(0) };
        let current = content(image)?;
        let Some(base) = current.point(from.id).copied() else { return Ok(0) };
        let newer: Vec<PointId> =
            current.points.iter().filter(|m| m.txg > base.txg).map(|m| m.point).collect();
        if newer.is_empty() && current.written == 0 {
            return Ok(0);
        }
        // It was active once and was written to after that point: it was told to follow, so that goes.
        for point in newer {
            self.destroy_point(cx, current, point).await?;
        }
        let (dataset, snapshot) = (current.name.clone(), current.snapshot(from.id));
        tracing::info!(%dataset, point = %from.id, "Takes back what was written after the point in common.");
        tool::kernel(cx, "roll back to", &snapshot, move |snapshot| lzc::rollback(&dataset, snapshot))
            .await?;
        Ok(0)
    }

    /// The guid of what arrived must be the point's fingerprint.
    async fn prove(&self, cx: &OpContext, image: &mut Image, spec: &ReceiveSpec, wanted: u64) -> Result<()> {
        let arrived = match &spec.from {
            Some(_) => image.current(),
            None => image.incoming(),
        };
        let found = arrived.and_then(|v| Some((v, v.point(spec.to.id)?.guid)));
        match found {
            Some((_, guid)) if guid == wanted => Ok(()),
            Some((version, guid)) => {
                let error = Error::conflict(format!(
                    "what arrived is snapshot {guid}, not point {} as it was announced ({wanted})",
                    spec.to.id
                ));
                match spec.from {
                    Some(_) => self.destroy_point(cx, version, spec.to.id).await?,
                    None => self.destroy(cx, version).await?,
                }
                Err(error)
            }
            None => Err(Error::unavailable(format!("point {} vanished after it had arrived", spec.to.id))
                .retry(Retry::Safe)),
        }
    }

    /// What a failed receive leaves: what arrived, to go on from, unless it takes the room that is lacking.
    async fn failed(&self, cx: &OpContext, image: &mut Image, e: Error) -> Error {
        if e.kind != ErrorKind::OutOfSpace {
            return e;
        }
        let cleaned = match self.refresh(cx, image).await {
            Ok(()) => self.discard(cx, image).await.map(drop),
            Err(also) => Err(also),
        };
        match cleaned {
            Ok(()) => e,
            Err(also) => e.with("and_while_cleaning_up", also),
        }
    }

    /// Throws away what a cut transfer left.
    pub(crate) async fn discard(&self, cx: &OpContext, image: &mut Image) -> Result<bool> {
        let mut changed = false;
        for version in image.versions.clone() {
            let current = version.number == image.meta.version;
            if current && version.token.is_some() {
                tool::zfs(cx, &version.name, &["receive", "-A", &version.name]).await?;
                changed = true;
            } else if version.number > image.meta.version {
                self.destroy(cx, &version).await?;
                changed = true;
            }
        }
        let version = image.meta.version;
        image.versions.retain(|v| v.number <= version);
        for version in &mut image.versions {
            version.token = None;
        }
        Ok(changed)
    }
}

/// The current version, which must be there.
pub(crate) fn content(image: &Image) -> Result<&Version> {
    image.current().ok_or_else(|| {
        Error::conflict(format!("nothing whole has arrived at instance {} yet", image.meta.spec.instance))
    })
}

/// The guid of the point that a stream builds on; 0 for a full one. Refuses a base that cannot be one.
fn base(image: &Image, spec: &ReceiveSpec) -> Result<u64> {
    let Some(from) = &spec.from else { return Ok(0) };
    let gone = || Error::conflict(format!("point {}, on which the stream builds, is not here", from.id));
    let current = image.current().ok_or_else(gone)?;
    let moment = current.point(from.id).ok_or_else(gone)?;
    if moment.guid != guid(from)? {
        return Err(gone());
    }
    if let Some(foreign) = current.foreign_since(moment.txg) {
        return Err(Error::conflict(format!(
            "the replica cannot follow past the snapshot `{foreign}`, which somebody made of it after point {}; destroy \
             or move that snapshot",
            from.id
        ))
        .retry(Retry::AfterOperator));
    }
    Ok(moment.guid)
}

/// Where to go on, when the token is about this very transfer; else everything is sent.
fn resume(spec: &SendSpec, to: u64, from: u64) -> Result<Option<Token>> {
    let Some(token) = &spec.resume else { return Ok(None) };
    if (token.kind.as_str(), token.version) != TOKEN {
        return Err(Error::invalid(format!(
            "the resume token is of kind `{}`, which is unknown here",
            token.kind
        )));
    }
    let token = token.data.as_str().and_then(Token::parse);
    Ok(token.filter(|token| (token.to, token.from) == (to, from)))
}

pub(crate) fn tolerate(done: Result<(), lzc::Errno>, fine: lzc::Errno) -> Result<(), lzc::Errno> {
    match done {
        Err(errno) if errno == fine => Ok(()),
        other => other,
    }
}

pub(crate) fn tolerate_gone(done: Result<(), lzc::Errno>) -> Result<(), lzc::Errno> {
    tolerate(done, error::ENOENT)
}

/// What read a snapshot and was given up, or killed, lets go of it in moments.
pub(crate) fn patiently(destroy: impl Fn() -> Result<(), lzc::Errno>) -> Result<(), lzc::Errno> {
    for _ in 0..100 {
        match destroy() {
            Err(error::EBUSY) => std::thread::sleep(Duration::from_millis(50)),
            done => return done,
        }
    }
    destroy()
}

/// Writes a stream; the bytes that went.
#[allow(clippy::too_many_arguments)] // one call, of one function
fn push(
    cx: &OpContext,
    snapshot: &str,
    from: Option<&str>,
    flags: Flags,
    at: Option<(u64, u64)>,
    resumed: u64,
    limit: Option<u64>,
    stream: OwnedFd,
) -> Result<u64> {
    // An estimate that the kernel cannot make is not worth failing for.
    let total = lzc::send_space(snapshot, from, flags).ok().map(|total| total.saturating_sub(resumed));
    let (name, base) = (snapshot.to_owned(), from.map(str::to_owned));
    let send = move |to: &OwnedFd| pump::sent(to, lzc::send(&name, base.as_deref(), to.as_fd(), flags, at));
    let (sent, bytes) = match limit {
        None => {
            waits(&stream, true, cx)?;
            pump::narrow(&stream);
            Apart::run(snapshot, Way::Out, stream, send)?.watch(cx, 0, None, total)?
        }
        Some(_) => {
            waits(&stream, false, cx)?;
            let (read, write) = pump::pipe()?;
            let sending = Apart::run(snapshot, Way::Out, write, send)?;
            let mut pump = Pump { cx, dataset: snapshot, limit, total, bytes: 0 };
            let pumped = pump.run(read.as_fd(), stream.as_fd());
            drop(read);
            let sent = sending.end();
            pumped?;
            (sent?, pump.bytes)
        }
    };
    match sent {
        Ok(()) => Ok(bytes),
        Err(error::EPIPE) => Err(pump::left()),
        Err(errno) => Err(error::of_errno("send", snapshot, errno)),
    }
}

/// Whether a stream from a snapshot to what its dataset holds now, which must not be mounted, would carry nothing: it is a
/// first record and a last one then. For little that was written.
pub(crate) fn is_empty(cx: &OpContext, dataset: &str, snapshot: &str, flags: Flags) -> Result<bool> {
    let (read, write) = pump::pipe()?;
    let (name, from) = (dataset.to_owned(), snapshot.to_owned());
    let send = move |to: &OwnedFd| lzc::send(&name, Some(&from), to.as_fd(), flags, None);
    let sending = Apart::run(dataset, Way::Out, write, send)?;
    let memory = rustix::fs::memfd_create("compared", rustix::fs::MemfdFlags::CLOEXEC)
        .map_err(|e| Error::unavailable(format!("no memory for a stream: {e}")))?;
    let mut pump = Pump { cx, dataset, limit: None, total: None, bytes: 0 };
    let pumped = pump.run(read.as_fd(), memory.as_fd());
    drop(read);
    let sent = sending.end();
    pumped?;
    sent?.map_err(|errno| error::of_errno("compare", dataset, errno))?;
    // With the first one goes what the other side needs of an encrypted dataset's keys.
    let mut length = [0; 4];
    rustix::io::pread(&memory, &mut length, 4)
        .map_err(|e| Error::unavailable(format!("a stream could not be read again: {e}")))?;
    Ok(pump.bytes <= 2 * header::BYTES as u64 + u64::from(u32::from_ne_bytes(length)))
}

/// Reads a stream whose first record has been read; its bytes.
fn pull(
    cx: &OpContext,
    snapshot: &str,
    raw: bool,
    record: [u8; header::BYTES],
    stream: Stream,
) -> Result<u64> {
    let stream = stream.into_fd();
    waits(&stream, true, cx)?;
    let (name, own) = (snapshot.to_owned(), cx.clone());
    let receive = move |from: &OwnedFd| {
        let received = lzc::receive(&name, raw, Some(&record), from.as_fd());
        if received.is_ok() {
            // The kernel is done at the last record, before the sender has seen that it was taken.
            pump::see_off(&own, from.as_fd());
        }
        received
    };
    let before = record.len() as u64;
    let (received, bytes) = Apart::run(snapshot, Way::In, stream, receive)?.watch(cx, before, None, None)?;
    received.map_err(|errno| error::of_errno("receive", snapshot, errno))?;
    Ok(before.saturating_add(bytes))
}

/// Makes calls on a stream wait for the other side, or not.
fn waits(stream: &OwnedFd, wait: bool, cx: &OpContext) -> Result<()> {
    fcntl_getfl(stream)
        .and_then(|mut flags| {
            flags.set(OFlags::NONBLOCK, !wait);
            fcntl_setfl(stream, flags)
        })
        .map_err(|e| Error::invalid(format!("the stream of `{}` cannot be used: {e}", cx.verb())))
}
