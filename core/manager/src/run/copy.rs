//! The copy from host to host: attaches both sides and mirrors one onto the other.
//!
//! What a copy has read is noted in a folder named after its operation, so that its later passes, and the run after a
//! crash, read less. Losing it costs time only.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use tandem_contract::{Attach, AttachKind, Attachment, Error, InstanceId, OpId, Progress, Retry};
use tandem_host::CallContext;
use tandem_mirror::{Control, Mirror, RootMode, Tree, show};

use super::execute::Run;
use super::steps::{Done, Scene};
use crate::face::Settings;
use crate::model::Operation;

/// Passes over a source that is written, at most.
const LIVE_PASSES: u32 = 4;
/// A pass that wrote no more than this is the last of them.
const LITTLE: u64 = 16 << 20;
/// Rounds of pass and proof once writers are held back, at most.
const LAST_ROUNDS: u32 = 5;

/// What a copy did.
struct Copied {
    bytes: u64,
    remarks: Vec<String>,
}

/// What is copied, how fast, and where that is noted.
struct Job {
    source: Attachment,
    dest: Attachment,
    state: PathBuf,
    last: bool,
    bandwidth: Option<u64>,
    /// Bytes that the source's driver says are used: a total for the first pass, which knows none.
    used: Option<u64>,
}

impl Run {
    /// Copies as much as users' writing allows; `last`, with writers held back, ends with a proof.
    pub(super) async fn mirror(
        &self,
        scene: &Scene,
        source: InstanceId,
        instance: InstanceId,
        last: bool,
    ) -> Result<Done, Error> {
        let (from, to) = (scene.row(source)?, scene.row(instance)?);
        let (here, there) = (self.core.backends.of(from).await?, self.core.backends.of(to).await?);
        let seen = if last { None } else { self.observe(from).await.ok().flatten() };
        let used = seen.and_then(|seen| seen.used_bytes);
        let verb = Attach { instance: source, epoch: scene.epoch_of(from), read_only: true };
        let source = self.ask(&here, verb).await?.into_inner();
        let dest = self
            .ask(&there, Attach { instance, epoch: scene.epoch_of(to), read_only: false })
            .await?
            .into_inner();
        let state = self.core.settings.work_dir.join(self.op.to_string());
        let job = Arc::new(Job { source, dest, state, last, bandwidth: self.core.settings.bandwidth, used });
        let copied = self
            .moving(async |cx| {
                let job = Arc::clone(&job);
                let work = tokio::task::spawn_blocking(move || job.run(&cx));
                work.await.map_err(|e| Error::bug(format!("the copy ended in a panic: {e}")))?
            })
            .await?;
        let remark = (!copied.remarks.is_empty()).then(|| copied.remarks.join(" "));
        Ok(Done { bytes: Some(copied.bytes), remark, ..Done::nothing() })
    }
}

impl Job {
    fn run(&self, cx: &CallContext) -> Result<Copied, Error> {
        let cancelled = || cx.cancel.is_cancelled();
        let on_step = |step: tandem_mirror::Step<'_>| {
            let total = step.total.or(self.used.map(|used| used.max(step.done)));
            (cx.on_progress)(Progress {
                estimate: step.total.is_none() && total.is_some(),
                current: (!step.current.is_empty()).then(|| step.current.to_owned()),
                ..Progress::of(step.phase, step.done, total)
            });
        };
        let control = Control::new(&cancelled, &on_step).limited(self.bandwidth);
        match (self.source.kind, self.dest.kind) {
            (AttachKind::Tree, AttachKind::Tree) => self.trees(&control),
            (AttachKind::Block, AttachKind::Block) => self.devices(&control),
            _ => Err(Error::unsupported("one side is a folder and the other a block device")),
        }
    }

    fn trees(&self, control: &Control<'_>) -> Result<Copied, Error> {
        std::fs::create_dir_all(&self.state).map_err(|e| {
            Error::unavailable(format!("could not create `{}`: {e}", self.state.display()))
                .retry(Retry::AfterOperator)
        })?;
        let open = |path: &str| Tree::open(Path::new(path)).map_err(|e| from_mirror(&e));
        let (source, dest) = (open(&self.source.path)?, open(&self.dest.path)?);
        let root = if self.last { RootMode::Aside } else { RootMode::Counts };
        let mirror = Mirror { source: &source, dest: &dest, state: &self.state, root };
        if self.last { last(&mirror, control) } else { live(&mirror, control) }
    }

    fn devices(&self, control: &Control<'_>) -> Result<Copied, Error> {
        let (source, dest) = (Path::new(&self.source.path), Path::new(&self.dest.path));
        let bytes =
            tandem_mirror::mirror_device(source, dest, self.last, control).map_err(|e| from_mirror(&e))?;
        Ok(Copied { bytes, remarks: Vec::new() })
    }
}

/// Passes while users write, until little is left; the proof warms up what the last one compares with.
fn live(mirror: &Mirror<'_>, control: &Control<'_>) -> Result<Copied, Error> {
    let mut bytes = 0;
    for _ in 0..LIVE_PASSES {
        let pass = mirror.pass(control).map_err(|e| from_mirror(&e))?;
        bytes += pass.written;
        if pass.written <= LITTLE.max(pass.bytes / 100) {
            break;
        }
    }
    mirror.prove(control).map_err(|e| from_mirror(&e))?;
    Ok(Copied { bytes, remarks: Vec::new() })
}

/// Passes with writers held back, until the destination is proven and nothing changed meanwhile.
fn last(mirror: &Mirror<'_>, control: &Control<'_>) -> Result<Copied, Error> {
    let mut bytes = 0;
    let mut why = String::new();
    for _ in 0..LAST_ROUNDS {
        bytes += mirror.pass(control).map_err(|e| from_mirror(&e))?.written;
        let proof = mirror.prove(control).map_err(|e| from_mirror(&e))?;
        let after = mirror.pass(control).map_err(|e| from_mirror(&e))?;
        bytes += after.written;
        if proof.wrong == 0 && after.is_unchanged() {
            return Ok(Copied { bytes, remarks: after.skipped.remarks() });
        }
        why = match (proof.differences.first(), after.unstable.first()) {
            (Some(difference), _) => difference.clone(),
            (None, Some(path)) => format!("`{path}` changes all the time"),
            (None, None) => {
                format!("{} files changed since the proof", after.copied + after.made + after.removed)
            }
        };
    }
    Err(Error::conflict(format!(
        "the source still changes although writers are held back ({why}); stop what writes into it and migrate again"
    )))
}

/// An error of the copying library, as the contract has it.
fn from_mirror(error: &tandem_mirror::Error) -> Error {
    let message = error.to_string();
    match error {
        tandem_mirror::Error::Cancelled => Error::cancelled(message),
        _ if error.is_out_of_space() => Error::out_of_space(format!("{message}; the source is as it was")),
        tandem_mirror::Error::Io { source, .. } => match source.kind() {
            std::io::ErrorKind::PermissionDenied | std::io::ErrorKind::ReadOnlyFilesystem => {
                Error::unavailable(message).retry(Retry::AfterOperator)
            }
            _ => Error::unavailable(message).retry(Retry::Safe),
        },
        _ => Error::conflict(message),
    }
}

/// Removes the notes of an operation that has ended.
pub(super) fn forget(settings: &Settings, op: OpId) {
    remove(&settings.work_dir.join(op.to_string()));
}

/// Removes the notes of operations that ended while nobody could.
pub(super) fn forget_others(settings: &Settings, unfinished: &[Operation]) {
    let Ok(entries) = std::fs::read_dir(&settings.work_dir) else { return };
    for entry in entries.flatten() {
        let op = entry.file_name().to_str().and_then(|name| name.parse::<OpId>().ok());
        if op.is_some_and(|op| unfinished.iter().all(|o| o.id != op)) {
            remove(&entry.path());
        }
    }
}

fn remove(path: &Path) {
    match std::fs::remove_dir_all(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            let path = path.to_string_lossy();
            tracing::debug!(path = %show(path.as_bytes()), %error, "The notes of a copy could not be removed.");
        }
        _ => {}
    }
}
