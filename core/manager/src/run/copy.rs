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

/// How far a copy is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// Users write.
    Live,
    /// Writers are held back; ends with a proof.
    Last,
    /// Nobody is served any more, and all was proven before; what came in between is carried.
    Fenced,
}

impl Phase {
    pub const fn of(last: bool, fenced: bool) -> Self {
        match (last, fenced) {
            (_, true) => Self::Fenced,
            (true, false) => Self::Last,
            (false, false) => Self::Live,
        }
    }
}

/// What is copied, how fast, and where that is noted.
struct Job {
    source: Attachment,
    dest: Attachment,
    state: PathBuf,
    phase: Phase,
    bandwidth: Option<u64>,
    /// Bytes that the source's driver says are used: a total for the first pass, which knows none.
    used: Option<u64>,
}

impl Run {
    /// Copies as much as users' writing allows; with writers held back it ends with a proof.
    pub(super) async fn mirror(
        &self,
        scene: &Scene,
        source: InstanceId,
        instance: InstanceId,
        phase: Phase,
    ) -> Result<Done, Error> {
        let (from, to) = (scene.row(source)?, scene.row(instance)?);
        let (here, there) = (self.core.backends.of(from).await?, self.core.backends.of(to).await?);
        let first = phase == Phase::Live;
        let seen = if first { self.observe(from).await.ok().flatten() } else { None };
        let used = seen.and_then(|seen| seen.used_bytes);
        let verb = Attach { instance: source, epoch: scene.epoch_of(from), read_only: true };
        let source = self.ask(&here, verb).await?.into_inner();
        let dest = self
            .ask(&there, Attach { instance, epoch: scene.epoch_of(to), read_only: false })
            .await?
            .into_inner();
        let state = self.core.settings.work_dir.join(self.op.to_string());
        let job = Arc::new(Job { source, dest, state, phase, bandwidth: self.core.settings.bandwidth, used });
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
        let aside = self.source.root_mode.filter(|_| self.phase != Phase::Live);
        let root = if aside.is_some() { RootMode::Aside } else { RootMode::Counts };
        let mirror = Mirror { source: &source, dest: &dest, state: &self.state, root };
        if let Some(mode) = aside {
            dest.set_root_mode(mode | 0o700).map_err(|e| from_mirror(&e))?;
        }
        let copied = match self.phase {
            Phase::Live => live(&mirror, control),
            Phase::Last => last(&mirror, control),
            Phase::Fenced => since(&mirror, control),
        }?;
        if let Some(mode) = aside {
            // As its users set them last, before the keeper of the source took them aside.
            dest.set_root_mode(mode).map_err(|e| from_mirror(&e))?;
        }
        Ok(copied)
    }

    fn devices(&self, control: &Control<'_>) -> Result<Copied, Error> {
        let (source, dest) = (Path::new(&self.source.path), Path::new(&self.dest.path));
        let bytes = tandem_mirror::mirror_device(source, dest, self.phase != Phase::Live, control)
            .map_err(|e| from_mirror(&e))?;
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

/// What came between a proof and the moment from which nobody was served. Where nothing did, that proof stands.
fn since(mirror: &Mirror<'_>, control: &Control<'_>) -> Result<Copied, Error> {
    let pass = mirror.pass(control).map_err(|e| from_mirror(&e))?;
    if pass.is_unchanged() {
        return Ok(Copied { bytes: pass.written, remarks: Vec::new() });
    }
    let copied = last(mirror, control)?;
    Ok(Copied { bytes: pass.written + copied.bytes, ..copied })
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

#[cfg(test)]
mod tests {
    use std::fs::{self, Permissions};
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn what_came_after_the_proof_is_carried_and_the_root_is_as_its_users_left_it() {
        let folder = tempfile::tempdir().unwrap();
        let place = |name: &str| {
            let path = folder.path().join(name);
            fs::create_dir_all(&path).unwrap();
            path
        };
        let (from, to, state) = (place("from"), place("to"), place("state"));
        fs::create_dir(from.join("sub")).unwrap();
        fs::write(from.join("sub/open"), "first").unwrap();
        let side = |path: &Path, root_mode| Attachment {
            kind: AttachKind::Tree,
            path: path.to_string_lossy().into_owned(),
            root_mode,
        };
        let job = |phase, root_mode| {
            let (source, dest, state) = (side(&from, root_mode), side(&to, None), state.clone());
            let job = Job { source, dest, state, phase, bandwidth: None, used: None };
            job.run(&CallContext::new(OpId(uuid::Uuid::nil()))).unwrap().bytes
        };
        fs::set_permissions(&from, Permissions::from_mode(0o755)).unwrap();
        job(Phase::Live, None);
        // Somebody changed it since; its keeper took writing away then, and tells what it was.
        fs::set_permissions(&from, Permissions::from_mode(0o550)).unwrap();
        job(Phase::Last, Some(0o2750));
        let mode = || fs::metadata(&to).unwrap().permissions().mode() & 0o7777;
        assert_eq!(mode(), 0o2750);
        assert_eq!(job(Phase::Fenced, Some(0o2750)), 0, "nothing came");
        fs::write(from.join("sub/open"), "first and second").unwrap();
        fs::write(from.join("sub/new"), "third").unwrap();
        job(Phase::Fenced, Some(0o2750));
        assert_eq!(fs::read_to_string(to.join("sub/open")).unwrap(), "first and second");
        assert_eq!(fs::read_to_string(to.join("sub/new")).unwrap(), "third");
        assert_eq!(mode(), 0o2750);
    }
}
