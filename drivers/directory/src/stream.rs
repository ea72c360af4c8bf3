//! Points, and the streams between them.

use std::fs;
use std::os::fd::OwnedFd;
use std::path::Path;

use tandem_sdk::contract::{
    DiscardPartial, MakePoint, Outcome, PointInfo, Progress, Receive, ReceiveSpec, ReleasePoint, Retry, Role,
    SendSpec, SendStream, TransferReport,
};
use tandem_sdk::mirror::{
    self, Base, Control, ManifestReader, ManifestWriter, Outgoing, Resume, STREAM_FORMAT, Spare, Step, Tree,
};
use tandem_sdk::{Error, OpContext, Result, Stream, Streamed};

use crate::store::{Instance, KNOWN, Store, from_mirror, io_error, sync_dir};
use crate::{Directory, TOKEN, observe};

/// A pipe that holds this much switches less often between its two sides.
const PIPE: usize = 1 << 20;

impl Streamed for Directory {
    async fn make_point(&self, cx: &OpContext, call: MakePoint) -> Result<Outcome<PointInfo>> {
        self.run(cx, move |store, cx| make_point(store, &call, cx)).await
    }

    async fn release_point(&self, cx: &OpContext, call: ReleasePoint) -> Result<Outcome<()>> {
        self.run(cx, move |store, _| {
            let Some(mut instance) = store.lock(call.instance)? else { return Ok(Outcome::Unchanged(())) };
            let meta = &mut instance.meta;
            let held = meta.points.len();
            meta.points.retain(|p| p.id != call.point);
            let newest = meta.point.take_if(|p| p.id == call.point).is_some();
            let changed = newest || meta.points.len() != held;
            if changed {
                instance.save()?;
            }
            instance.prune_points()?;
            Ok(Outcome::of(changed, ()))
        })
        .await
    }

    async fn send(&self, cx: &OpContext, call: SendStream, stream: OwnedFd) -> Result<TransferReport> {
        self.run(cx, move |store, cx| send(store, &call.spec, stream, cx)).await
    }

    async fn receive(
        &self,
        cx: &OpContext,
        call: Receive,
        stream: OwnedFd,
    ) -> Result<Outcome<TransferReport>> {
        self.run(cx, move |store, cx| receive(store, &call.spec, stream, cx)).await
    }

    async fn discard_partial(&self, cx: &OpContext, call: DiscardPartial) -> Result<Outcome<()>> {
        self.run(cx, move |store, cx| {
            let Some(instance) = store.lock(call.instance)? else { return Ok(Outcome::Unchanged(())) };
            let there = instance.incoming().exists();
            discard(&instance, cx)?;
            Ok(Outcome::of(there, ()))
        })
        .await
    }
}

fn discard(instance: &Instance, cx: &OpContext) -> Result<()> {
    mirror::remove_path(&instance.incoming(), &|| cx.is_cancelled()).map_err(|e| from_mirror(&e))
}

/// Progress of a copy, as the call's own.
pub(crate) fn tell(cx: &OpContext) -> impl Fn(Step<'_>) + Sync + '_ {
    |step| {
        let mut progress = Progress::of(step.phase, step.done, step.total);
        progress.current = Some(step.current.to_owned()).filter(|current| !current.is_empty());
        cx.progress(progress);
    }
}

fn make_point(store: &Store, call: &MakePoint, cx: &OpContext) -> Result<Outcome<PointInfo>> {
    let mut instance = store.lock_existing(call.instance)?;
    let rose = instance.meta.epoch.see(call.epoch)?;
    instance.meta.require_own("it makes no points")?;
    if rose {
        instance.save()?;
    }
    if let Some(point) = instance.meta.point(call.point) {
        return Ok(Outcome::Unchanged(point.clone()));
    }
    let tree = instance.open_tree()?;
    let known = instance.dir.join("points").join(KNOWN);
    let new = instance.dir.join("points").join("new");
    let (tell, cancelled) = (tell(cx), || cx.is_cancelled());
    let control = Control::new(&cancelled, &tell);
    let described = describe(&tree, &known, instance.meta.root_mode, &new, &control);
    let (summary, report) = match described {
        Ok(described) => described,
        Err(e) => {
            // Best effort: what failed is what matters, and the next point overwrites it.
            let _ = fs::remove_file(&new);
            return Err(from_mirror(&e));
        }
    };
    if let Some(reason) = observe::over_size(&instance.meta, summary.allocated) {
        fs::remove_file(&new).map_err(|e| io_error("remove", &new, &e))?;
        return Err(Error::out_of_space(reason));
    }
    for path in &report.unstable {
        tracing::warn!(instance = %call.instance, %path, "The file changed each time it was read.");
    }
    let file = instance.point_file(call.point, "manifest");
    fs::rename(&new, &file).map_err(|e| io_error("rename", &new, &e))?;
    // Forms that were noted for a point of this name before a kill belong to no manifest any more.
    mirror::remove_path(&instance.point_file(call.point, "variants"), &|| false)
        .map_err(|e| from_mirror(&e))?;
    mirror::remove_path(&known, &|| false).map_err(|e| from_mirror(&e))?;
    fs::hard_link(&file, &known).map_err(|e| io_error("keep", &file, &e))?;
    sync_dir(&instance.dir.join("points"))?;
    let point = PointInfo { id: call.point, fingerprint: summary.fingerprint(), held: true };
    instance.meta.points.push(point.clone());
    instance.save()?;
    instance.prune_points()?;
    tracing::debug!(
        instance = %call.instance, point = %call.point, entries = summary.entries, bytes = summary.bytes,
        hashed = report.hashed, known = report.known, "Made a point."
    );
    Ok(Outcome::Changed(point))
}

fn describe(
    tree: &Tree,
    known: &Path,
    root_mode: Option<u32>,
    new: &Path,
    control: &Control<'_>,
) -> mirror::Result<(mirror::Summary, mirror::ScanReport)> {
    // A damaged one only costs the hashing it would have saved.
    let previous = if known.exists() { ManifestReader::open(known).ok() } else { None };
    let mut out = ManifestWriter::create(new)?;
    let report = match mirror::scan(tree, previous, root_mode, &mut out, control) {
        Err(mirror::Error::Malformed { .. }) => {
            out = ManifestWriter::create(new)?;
            mirror::scan(tree, None::<ManifestReader<fs::File>>, root_mode, &mut out, control)?
        }
        other => other?,
    };
    Ok((out.finish_durable()?, report))
}

fn check_format(format: &str) -> Result<()> {
    if format == STREAM_FORMAT {
        return Ok(());
    }
    Err(Error::invalid(format!(
        "the stream format `{format}` is unknown here; this driver speaks `{STREAM_FORMAT}`"
    )))
}

/// Lets the pipe grow, where the system allows it; a socket has its own buffers. The reader's side does it: what a
/// sender has written into a pipe that nobody reads any more counts as sent.
fn widen(stream: &OwnedFd) {
    let _ = rustix::pipe::fcntl_setpipe_size(stream, PIPE);
}

fn send(store: &Store, spec: &SendSpec, stream: OwnedFd, cx: &OpContext) -> Result<TransferReport> {
    check_format(&spec.format)?;
    let instance = store.existing(spec.instance)?;
    let meta = &instance.meta;
    meta.epoch.admit(spec.epoch)?;
    meta.require_own("it sends nothing")?;
    let held = |id| {
        meta.point(id)
            .ok_or_else(|| Error::not_found(format!("instance {} holds no point {id}", spec.instance)))
    };
    let to = held(spec.to)?;
    let manifest = instance.point_file(to.id, "manifest");
    let summary = mirror::read_summary(&manifest).map_err(|e| from_mirror(&e))?;
    if let Some(reason) = observe::over_size(meta, summary.allocated) {
        return Err(Error::out_of_space(reason));
    }
    let mut base = None;
    let mut variants = mirror::Variants::new();
    if let Some(from) = &spec.from {
        if held(from.id)?.fingerprint != from.fingerprint {
            return Err(Error::conflict(format!(
                "the other side's point {} is another one than ours",
                from.id
            )));
        }
        variants =
            mirror::read_variants(&instance.point_file(from.id, "variants")).map_err(|e| from_mirror(&e))?;
        base = Some(instance.point_file(from.id, "manifest"));
    }
    let tree = instance.open_tree()?;
    let label = to.id.to_string();
    let outgoing = Outgoing {
        tree: &tree,
        manifest: &manifest,
        base: base.as_deref(),
        variants: &variants,
        label: label.as_bytes(),
        resume: resume(spec)?,
        bandwidth: spec.bandwidth,
    };
    let newer = instance.point_file(to.id, "variants");
    let (tell, cancelled) = (tell(cx), || cx.is_cancelled());
    let control = Control::new(&cancelled, &tell);
    let mut out = Stream::new(stream, cx)?;
    let sent = mirror::send(
        &mut out,
        &outgoing,
        &mut |path, form| mirror::append_variant(&newer, path, form),
        &control,
    );
    let report = sent.map_err(|e| stopped(cx, &e))?;
    let mut remarks = Vec::new();
    for path in &report.unstable {
        remarks.push(format!("`{path}` changed each time it was read; the copy may mix moments of it"));
    }
    for path in &report.rotten {
        remarks.push(format!(
            "`{path}` is not what it was when the point was made, although nobody wrote to it, unless through a memory \
             mapping; it was sent as it is now: look at the disk"
        ));
    }
    if report.newer > 0 {
        remarks.push(format!("{} files changed after the point was made and were sent newer", report.newer));
    }
    let (bytes, resumed_bytes) = (report.bytes, report.resumed_bytes);
    Ok(TransferReport { bytes, resumed_bytes, remarks, ..TransferReport::default() })
}

/// The reason to stop, where there is one, else what went wrong.
pub(crate) fn stopped(cx: &OpContext, e: &mirror::Error) -> Error {
    match (e, cx.check()) {
        (mirror::Error::Cancelled, Err(stop)) => stop,
        (mirror::Error::MovedOn, _) => Error::unavailable(e.to_string()).retry(Retry::Safe),
        _ => from_mirror(e),
    }
}

/// What the receiver has, when the token is about this very transfer; else everything is sent.
fn resume(spec: &SendSpec) -> Result<Resume> {
    let Some(token) = &spec.resume else { return Ok(Resume::default()) };
    if (token.kind.as_str(), token.version) != TOKEN {
        return Err(Error::invalid(format!(
            "the resume token is of kind `{}`, which is unknown here",
            token.kind
        )));
    }
    let text = |name: &str| token.data.get(name).and_then(|v| v.as_str());
    if token.to != Some(spec.to) || text("from") != spec.from.as_ref().map(|p| p.fingerprint.as_str()) {
        return Ok(Resume::default());
    }
    Resume::from_text(text("have").unwrap_or_default()).map_err(|e| Error::invalid(e.to_string()))
}

fn receive(
    store: &Store,
    spec: &ReceiveSpec,
    stream: OwnedFd,
    cx: &OpContext,
) -> Result<Outcome<TransferReport>> {
    check_format(&spec.format)?;
    widen(&stream);
    let mut instance = store.lock_existing(spec.instance)?;
    let rose = instance.meta.epoch.see(spec.epoch)?;
    if instance.meta.role != Role::Secondary {
        return Err(Error::conflict(format!(
            "instance {} is no secondary, so that it receives nothing",
            spec.instance
        )));
    }
    if observe::has_strayed(&instance, cx)? {
        tracing::warn!(instance = %spec.instance, "It was written to after it was demoted; it needs a full copy.");
        instance.meta.point = None;
        instance.save()?;
    } else if rose {
        instance.save()?;
    }
    if let Some(point) = instance.meta.point.as_ref().filter(|p| p.id == spec.to.id) {
        if point.fingerprint != spec.to.fingerprint {
            return Err(Error::conflict(format!("point {} is here already, with another content", point.id)));
        }
        let lacks = lacks(&instance);
        let report = TransferReport { lacks, verified: true, ..TransferReport::default() };
        return Ok(Outcome::Unchanged(report));
    }
    let same = |a: &PointInfo, b: &PointInfo| a.id == b.id && a.fingerprint == b.fingerprint;
    if let Some(from) = &spec.from
        && !instance.meta.point.as_ref().is_some_and(|here| same(here, from))
    {
        return Err(Error::conflict(format!("point {}, on which the stream builds, is not here", from.id)));
    }
    let (tell, cancelled) = (tell(cx), || cx.is_cancelled());
    let control = Control::new(&cancelled, &tell);
    let mut input = Stream::new(stream, cx)?;
    let arrived = arrive(&instance, spec, &mut input, &control);
    let report = match arrived {
        Ok(report) => report,
        Err(e) => return Err(failed(&mut instance, e, cx)),
    };
    if report.summary.fingerprint() != spec.to.fingerprint {
        discard(&instance, cx)?;
        return Err(Error::conflict(format!("what arrived is not point {} as it was announced", spec.to.id)));
    }
    // An increment keeps what was lacking, and adds to it; where nobody counted, nobody knows.
    instance.meta.lacks = match (spec.from.is_some(), instance.meta.lacks) {
        (false, _) => Some(report.skipped.into()),
        (true, before) => before.map(|before| {
            let mut lacks = mirror::Skipped::from(before);
            lacks.add(report.skipped);
            lacks.into()
        }),
    };
    if report.unchanged {
        // The tree that is here is this point too. What arrived goes first: a kill in between costs one more look,
        // while nothing would ever come back for it.
        discard(&instance, cx)?;
        instance.meta.point = Some(PointInfo { held: true, ..spec.to.clone() });
        instance.save()?;
    } else {
        install(&mut instance, spec, cx)?;
    }
    let mut remarks = report.skipped.remarks();
    if report.newer > 0 {
        remarks.push(format!(
            "{} files are newer than the point, since they changed before they were sent",
            report.newer
        ));
    }
    tracing::debug!(
        instance = %spec.instance, point = %spec.to.id, bytes = report.bytes, entries = report.summary.entries,
        "Received a point."
    );
    Ok(Outcome::Changed(TransferReport {
        bytes: report.bytes,
        resumed_bytes: report.resumed_bytes,
        remarks,
        lacks: lacks(&instance),
        verified: true,
    }))
}

/// What could not be set in what the instance holds, as far as anybody counted.
fn lacks(instance: &Instance) -> Vec<String> {
    instance.meta.lacks.map(|lacks| mirror::Skipped::from(lacks).remarks()).unwrap_or_default()
}

fn arrive(
    instance: &Instance,
    spec: &ReceiveSpec,
    input: &mut Stream,
    control: &Control<'_>,
) -> mirror::Result<mirror::ReceiveReport> {
    let manifest = instance.version_dir().join("manifest");
    let tree = if spec.from.is_some() { Some(Tree::open(&instance.tree())?) } else { None };
    let base = tree.as_ref().map(|tree| Base { tree, manifest: &manifest });
    // Readers of the version before the current one had since the last sync to finish.
    let before =
        instance.dir.join("versions").join(instance.meta.version.saturating_sub(1).to_string()).join("tree");
    let delta = instance.version_dir().join("delta");
    let old =
        if base.is_some() && delta.exists() && before.exists() { Some(open_spare(&before)?) } else { None };
    let spare = old.as_ref().map(|tree| Spare { tree, delta: &delta });
    mirror::receive(
        input,
        &instance.incoming(),
        base.as_ref(),
        spare.as_ref(),
        spec.to.id.to_string().as_bytes(),
        control,
    )
}

/// The tree before the current one, with the right to take things out of it.
fn open_spare(path: &Path) -> mirror::Result<Tree> {
    let tree = Tree::open(path)?;
    // Root needs no right, and without it everything is linked instead.
    let _ = rustix::fs::fchmod(tree.fd(), rustix::fs::Mode::RWXU);
    Ok(tree)
}

/// Leaves the last good point in place, and what arrived where it can be continued.
fn failed(instance: &mut Instance, e: mirror::Error, cx: &OpContext) -> Error {
    let error = stopped(cx, &e);
    let cleaned = match &e {
        // What arrived holds the room that the next attempt needs.
        _ if e.is_out_of_space() => discard(instance, cx),
        mirror::Error::Mismatch { .. } | mirror::Error::OutOfStep(_) => discard(instance, cx),
        mirror::Error::BaseChanged { .. } => {
            // This tree is not its point any more: without a common point the next transfer is a full one.
            instance.meta.point = None;
            instance.save().and_then(|()| discard(instance, cx))
        }
        _ => Ok(()),
    };
    match cleaned {
        Ok(()) => error,
        Err(also) => error.with("and_while_cleaning_up", also),
    }
}

/// Puts the new version in the place of the old one: in one step for whoever reads.
fn install(instance: &mut Instance, spec: &ReceiveSpec, cx: &OpContext) -> Result<()> {
    let cancelled = || cx.is_cancelled();
    let manifest = instance.incoming().join("manifest");
    let mut reader = ManifestReader::open(&manifest).map_err(|e| from_mirror(&e))?;
    let root = reader.read_next().map_err(|e| from_mirror(&e))?;
    let old = instance.meta.version;
    let next = instance.dir.join("versions").join((old + 1).to_string());
    crate::store::set_mode(&instance.incoming(), 0o711)?;
    // Readers must find the root of the new version as they find that of the old one: without write permissions.
    let mode = root.map_or(0o755, |root| root.meta.mode);
    crate::store::set_mode(&instance.incoming().join("tree"), mode & !0o222)?;
    fs::rename(instance.incoming(), &next).map_err(|e| io_error("rename", &next, &e))?;
    sync_dir(&instance.dir.join("versions"))?;
    sync_dir(&instance.dir)?;
    // Before the switch, for after it nobody comes back to them.
    instance.remove_versions(&[old, old + 1], &cancelled)?;
    instance.meta.version = old + 1;
    instance.meta.point = Some(PointInfo { held: true, ..spec.to.clone() });
    instance.meta.points.clear();
    instance.meta.root_mode = Some(mode);
    instance.save()?;
    instance.serve()?;
    // The log of an increment tells the next one what the version before this one still has in common with it.
    instance.end_transfer(spec.from.is_some())?;
    instance.prune_points()
}
