//! Points, and the streams between them.
//!
//! A stream is one line of JSON (which points, where it starts, how long it is) and a body: what to set and what to
//! remove, as JSON, from the given offset on. The point's fingerprint proves the result.

use std::os::fd::OwnedFd;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tandem_sdk::{
    ContentFingerprint, Epoch, Error, InstanceId, OpContext, Outcome, PointId, PointInfo, Progress,
    ReadFingerprint, ReceiveSpec, Result, ResumeToken, Role, SendSpec, TransferReport,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::unix::pipe::{Receiver, Sender};

use crate::driver::Fake;
use crate::instance::{Instance, Partial, Point, find, fingerprint};
use crate::observe::TOKEN;
use crate::world::{Data, Sites};

/// The stream format.
pub(crate) const FORMAT: &str = "fake/1";
/// The form of fingerprints.
pub(crate) const PRINTS: &str = "fake/1";
/// A header longer than this is none.
const LONGEST_HEADER: usize = 4096;
/// How much may arrive before it is stored, when storing means writing a file.
const UNSAVED: usize = 64 << 10;

#[derive(Debug, Serialize, Deserialize)]
struct Header {
    format: String,
    to: PointId,
    from: Option<PointId>,
    offset: usize,
    total: usize,
}

#[derive(Debug, Serialize, Deserialize)]
struct Delta {
    #[serde(with = "crate::hex::named")]
    set: Data,
    remove: Vec<String>,
}

impl Delta {
    fn between(from: &Data, to: &Data) -> Self {
        let set = to.iter().filter(|(name, content)| from.get(*name) != Some(content));
        let remove = from.keys().filter(|name| !to.contains_key(*name));
        Self { set: set.map(|(n, c)| (n.clone(), c.clone())).collect(), remove: remove.cloned().collect() }
    }

    fn apply(self, mut base: Data) -> Data {
        for name in &self.remove {
            base.remove(name);
        }
        base.extend(self.set);
        base
    }
}

impl Fake {
    pub(crate) fn point(
        &self,
        sites: &mut Sites,
        id: InstanceId,
        epoch: Epoch,
        point: PointId,
    ) -> Result<Outcome<PointInfo>> {
        let instance = find(sites, &self.config.site, id)?;
        instance.admit(epoch)?;
        if let Some(existing) = instance.point(point) {
            return Ok(Outcome::Unchanged(existing.info()));
        }
        if !matches!(instance.role, Role::Active | Role::Fenced) {
            return Err(Error::conflict(format!(
                "instance {id} is not active; points are made on the active one, or once it is fenced"
            )));
        }
        let made = Point { id: point, fingerprint: fingerprint(&instance.data), data: instance.data.clone() };
        let info = made.info();
        instance.points.push(made);
        if instance.role == Role::Fenced {
            instance.whole = Some(info.clone());
        }
        Ok(Outcome::Changed(info))
    }

    pub(crate) fn release(&self, sites: &mut Sites, id: InstanceId, point: PointId) -> Outcome<()> {
        let Ok(instance) = find(sites, &self.config.site, id) else { return Outcome::Unchanged(()) };
        let before = instance.points.len();
        instance.points.retain(|p| p.id != point);
        if instance.points.len() < before { Outcome::Changed(()) } else { Outcome::Unchanged(()) }
    }

    pub(crate) async fn send_stream(
        &self,
        cx: &OpContext,
        spec: SendSpec,
        stream: OwnedFd,
        cut: Option<u64>,
    ) -> Result<TransferReport> {
        check_format(&spec.format)?;
        let (body, from) = self.world.with(|sites| {
            let instance = find(sites, &self.config.site, spec.instance)?;
            instance.check_epoch(spec.epoch)?;
            let to = instance.point(spec.to).ok_or_else(|| {
                Error::not_found(format!("instance {} has no point {}", spec.instance, spec.to))
            })?;
            let base = base_of(instance, spec.from.as_ref())?;
            let body = serde_json::to_vec(&Delta::between(&base, &to.data));
            Ok((
                body.map_err(|e| Error::bug(format!("a stream does not encode: {e}")))?,
                spec.from.as_ref().map(|p| p.id),
            ))
        })?;
        let offset = offset_of(spec.resume.as_ref(), spec.to, from, body.len())?;
        let header = Header { format: FORMAT.to_owned(), to: spec.to, from, offset, total: body.len() };
        let mut header =
            serde_json::to_vec(&header).map_err(|e| Error::bug(format!("a header does not encode: {e}")))?;
        header.push(b'\n');

        let mut pipe = Sender::from_owned_fd(stream)
            .map_err(|e| Error::invalid(format!("the stream is no pipe: {e}")))?;
        let mut sent = 0;
        for chunk in
            std::iter::once(header.as_slice()).chain(body[offset..].chunks(self.config.chunk_bytes.max(1)))
        {
            let most = cut
                .map_or(chunk.len(), |cut| usize::try_from(cut.saturating_sub(sent)).unwrap_or(usize::MAX));
            let part = &chunk[..chunk.len().min(most)];
            cx.or_cancelled(async {
                pipe.write_all(part)
                    .await
                    .map_err(|e| Error::unavailable(format!("the reader went away: {e}")))
            })
            .await?;
            sent += part.len() as u64;
            if part.len() < chunk.len() {
                return Err(Error::unavailable(format!("injected: the stream broke after {sent} bytes")));
            }
            cx.progress(Progress::of(
                "transfer",
                offset as u64 + sent,
                Some((body.len() + header.len()) as u64),
            ));
            if let Some(bandwidth) = spec.bandwidth.filter(|b| *b > 0) {
                let pause = Duration::from_micros(part.len() as u64 * 1_000_000 / bandwidth);
                cx.sleep(pause).await?;
            }
            tokio::task::yield_now().await;
            cx.check()?;
        }
        Ok(TransferReport { bytes: sent, resumed_bytes: offset as u64, ..TransferReport::default() })
    }

    pub(crate) async fn receive_stream(
        &self,
        cx: &OpContext,
        spec: ReceiveSpec,
        stream: OwnedFd,
        cut: Option<u64>,
    ) -> Result<Outcome<TransferReport>> {
        check_format(&spec.format)?;
        let there = self.world.with(|sites| {
            let instance = find(sites, &self.config.site, spec.instance)?;
            instance.admit(spec.epoch)?;
            if instance.role != Role::Secondary && instance.role != Role::Destination {
                return Err(Error::conflict(format!(
                    "instance {} follows nobody: it is no secondary",
                    spec.instance
                )));
            }
            match &instance.whole {
                Some(whole) if whole.id == spec.to.id && whole.fingerprint == spec.to.fingerprint => Ok(true),
                Some(whole) if whole.id == spec.to.id => {
                    Err(Error::conflict(format!("point {} is here with another content", whole.id)))
                }
                _ => base_of(instance, spec.from.as_ref()).map(|_| false),
            }
        })?;
        if there {
            let report = TransferReport { verified: true, ..TransferReport::default() };
            return Ok(Outcome::Unchanged(report));
        }
        let pipe = Receiver::from_owned_fd(stream)
            .map_err(|e| Error::invalid(format!("the stream is no pipe: {e}")))?;
        let mut arriving = Arriving { pipe, taken: 0, cut };
        let header = arriving.header(cx).await?;
        let from = spec.from.as_ref().map(|p| p.id);
        if header.format != FORMAT || header.to != spec.to.id || header.from != from {
            return Err(Error::conflict("the stream carries another point than the one announced"));
        }
        let mut partial = self.start_partial(&spec, &header)?;
        let resumed = partial.body.len();
        let every = if self.world.is_in_folder() { UNSAVED } else { 1 };
        let mut unsaved = 0;
        let ended = loop {
            if partial.body.len() >= header.total {
                break Ok(());
            }
            match arriving.chunk(cx, self.config.chunk_bytes.max(1)).await {
                Ok(chunk) if chunk.is_empty() => {
                    break Err(Error::unavailable(format!(
                        "the stream ended after {} of {} bytes",
                        partial.body.len(),
                        header.total
                    )));
                }
                Ok(chunk) => {
                    unsaved += chunk.len();
                    partial.body.extend(chunk);
                }
                Err(e) => break Err(e),
            }
            if unsaved >= every {
                self.save_partial(&spec, &partial)?;
                unsaved = 0;
            }
            cx.progress(Progress::of("transfer", partial.body.len() as u64, Some(header.total as u64)));
            tokio::task::yield_now().await;
        };
        self.save_partial(&spec, &partial)?;
        ended?;
        self.adopt(&spec, partial)?;
        let report = TransferReport {
            bytes: arriving.taken,
            resumed_bytes: resumed as u64,
            verified: true,
            ..TransferReport::default()
        };
        Ok(Outcome::Changed(report))
    }

    /// What has arrived of this stream before, if the stream goes on from there.
    fn start_partial(&self, spec: &ReceiveSpec, header: &Header) -> Result<Partial> {
        self.world.with(|sites| {
            let instance = find(sites, &self.config.site, spec.instance)?;
            let fits =
                |p: &&Partial| p.to == header.to && p.from == header.from && p.body.len() == header.offset;
            match instance.partial.as_ref().filter(fits) {
                Some(partial) => Ok(partial.clone()),
                None if header.offset == 0 => {
                    Ok(Partial { to: header.to, from: header.from, body: Vec::new() })
                }
                None => Err(Error::conflict(format!(
                    "the stream starts at {}, which is not where it was cut",
                    header.offset
                ))),
            }
        })
    }

    fn save_partial(&self, spec: &ReceiveSpec, partial: &Partial) -> Result<()> {
        self.world.with(|sites| {
            let instance = find(sites, &self.config.site, spec.instance)?;
            instance.check_epoch(spec.epoch)?;
            instance.partial = Some(partial.clone());
            Ok(())
        })
    }

    /// Proves what has arrived and makes it the newest point.
    fn adopt(&self, spec: &ReceiveSpec, partial: Partial) -> Result<()> {
        let proven = self.world.with(|sites| {
            let instance = find(sites, &self.config.site, spec.instance)?;
            instance.check_epoch(spec.epoch)?;
            instance.partial = None;
            let base = base_of(instance, spec.from.as_ref())?;
            let Ok(delta) = serde_json::from_slice::<Delta>(&partial.body) else { return Ok(false) };
            let data = delta.apply(base.clone());
            if fingerprint(&data) != spec.to.fingerprint {
                return Ok(false);
            }
            // What is not carried stays as it lies there.
            instance.rot.retain(|name, _| spec.from.is_some() && data.get(name) == base.get(name));
            instance.data.clone_from(&data);
            instance.whole = Some(PointInfo { held: true, ..spec.to.clone() });
            instance.points.retain(|p| p.id != spec.to.id);
            instance.points.push(Point { id: spec.to.id, fingerprint: spec.to.fingerprint.clone(), data });
            Ok(true)
        })?;
        if proven {
            return Ok(());
        }
        Err(Error::unavailable("the stream was damaged on the way; what arrived was thrown away"))
    }

    /// What is read of a point: what rotted reads otherwise than it was written.
    pub(crate) fn read_again(&self, sites: &mut Sites, call: &ReadFingerprint) -> Result<ContentFingerprint> {
        if call.form != PRINTS {
            return Err(Error::invalid(format!(
                "fingerprints of the form `{}` are not known here",
                call.form
            )));
        }
        let instance = find(sites, &self.config.site, call.instance)?;
        let point = instance.point(call.point).ok_or_else(|| {
            Error::not_found(format!("instance {} has no point {}", call.instance, call.point))
        })?;
        let read = instance.as_read(&point.data);
        let bytes = read.values().map(|content| content.len() as u64).sum();
        Ok(ContentFingerprint {
            form: PRINTS.to_owned(),
            parts: [("contents".to_owned(), fingerprint(&read))].into_iter().collect(),
            entries: read.len() as u64,
            bytes,
            damaged: Vec::new(),
        })
    }

    pub(crate) fn discard(&self, sites: &mut Sites, id: InstanceId) -> Result<Outcome<()>> {
        let Ok(instance) = find(sites, &self.config.site, id) else { return Ok(Outcome::Unchanged(())) };
        Ok(if instance.partial.take().is_some() { Outcome::Changed(()) } else { Outcome::Unchanged(()) })
    }
}

/// The stream as it comes in.
struct Arriving {
    pipe: Receiver,
    taken: u64,
    cut: Option<u64>,
}

impl Arriving {
    async fn chunk(&mut self, cx: &OpContext, most: usize) -> Result<Vec<u8>> {
        let left = self.cut.map_or(u64::MAX, |cut| cut.saturating_sub(self.taken));
        if left == 0 {
            return Err(Error::unavailable(format!("injected: the stream broke after {} bytes", self.taken)));
        }
        let mut buffer = vec![0; most.min(usize::try_from(left).unwrap_or(usize::MAX))];
        let n = cx
            .or_cancelled(async {
                self.pipe
                    .read(&mut buffer)
                    .await
                    .map_err(|e| Error::unavailable(format!("the stream broke: {e}")))
            })
            .await?;
        self.taken += n as u64;
        buffer.truncate(n);
        Ok(buffer)
    }

    async fn header(&mut self, cx: &OpContext) -> Result<Header> {
        let mut line = Vec::new();
        loop {
            let byte = self.chunk(cx, 1).await?;
            match byte.first() {
                None => return Err(Error::unavailable("the stream ended before it began")),
                Some(b'\n') => break,
                Some(byte) => line.push(*byte),
            }
            if line.len() > LONGEST_HEADER {
                return Err(Error::unavailable("the stream was damaged on the way: it has no header"));
            }
        }
        serde_json::from_slice(&line)
            .map_err(|e| Error::unavailable(format!("the stream was damaged on the way: its header: {e}")))
    }
}

fn check_format(format: &str) -> Result<()> {
    if format == FORMAT {
        Ok(())
    } else {
        Err(Error::invalid(format!("the stream format `{format}` is not known here")))
    }
}

/// The content that an increment builds on.
fn base_of(instance: &Instance, from: Option<&PointInfo>) -> Result<Data> {
    let Some(from) = from else { return Ok(Data::new()) };
    let point = instance.point(from.id).ok_or_else(|| {
        Error::not_found(format!(
            "instance {} has no point {} to go on from",
            instance.spec.instance, from.id
        ))
    })?;
    if point.fingerprint != from.fingerprint {
        return Err(Error::conflict(format!("point {} is here with another content", from.id)));
    }
    Ok(point.data.clone())
}

/// Where a resumed stream starts.
fn offset_of(
    resume: Option<&ResumeToken>,
    to: PointId,
    from: Option<PointId>,
    total: usize,
) -> Result<usize> {
    let Some(token) = resume else { return Ok(0) };
    let of = serde_json::from_value::<Option<PointId>>(token.data["from"].clone()).ok().flatten();
    if token.kind != TOKEN || token.version != 1 || token.to != Some(to) || of != from {
        return Err(Error::invalid("the resume token belongs to another stream"));
    }
    let offset = token.data["offset"].as_u64().and_then(|offset| usize::try_from(offset).ok());
    offset.filter(|offset| *offset <= total).ok_or_else(|| Error::invalid("the resume token is damaged"))
}
