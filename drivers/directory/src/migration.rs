//! Migration to another back end of folders on the same host: mirrored in place while users write, switched at once.
//!
//! The source's instance remembers that it moves, and where to, in `moving.json`; notes of what was read lie in the folder
//! `moving` beside it. Everything else is in the two instances' own data.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use tandem_sdk::contract::{
    Compatibility, Endpoint, GetEndpoint, InstanceId, InstanceInfo, MigrationCancel,
    MigrationCheckCompatibility, MigrationComplete, MigrationContinue, MigrationForceComplete,
    MigrationGetProgress, MigrationProgress, MigrationRelease, MigrationRevert, MigrationSpec,
    MigrationStart, Outcome, PrepareDestination, Progress, Role, Switched,
};
use tandem_sdk::mirror::{self, Control, Mirror, Pass, RootMode};
use tandem_sdk::{Error, ErrorKind, Migration, OpContext, Reachable, Result};

use crate::instance::{create, delete};
use crate::store::{Instance, Store, from_mirror, io_error, set_mode};
use crate::stream::tell;
use crate::{Config, Directory};

/// What an endpoint speaks.
const PROTOCOL: &str = "directory.folder/1";
/// The capability that says which running system the folders are on.
pub(crate) const SYSTEM: &str = "directory_system";
/// Rounds while users write, at most.
const LIVE_ROUNDS: u32 = 4;
/// A round that wrote no more than this is the last of them.
const LITTLE: u64 = 16 << 20;
/// Rounds once writers are held back, at most.
const LAST_ROUNDS: u32 = 5;

/// The content of `moving.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Moving {
    /// The other back end's folder.
    root: PathBuf,
    destination: InstanceId,
    /// Whether users could only read before.
    read_only: bool,
    /// Rounds made while users wrote.
    rounds: u32,
    /// Bytes that the newest of them found in the source; 0 before the first.
    bytes: u64,
    /// Whether little is left.
    ready: bool,
}

/// The running system: folders of another one cannot be reached by their paths.
pub(crate) fn system() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned()
}

impl Reachable for Directory {
    async fn endpoint(&self, cx: &OpContext, call: GetEndpoint) -> Result<Endpoint> {
        self.run(cx, move |store, _| {
            store.existing(call.instance)?;
            let data = serde_json::json!({ "root": store.config.root, "system": system() });
            Ok(Endpoint { instance: call.instance, protocol: PROTOCOL.to_owned(), data })
        })
        .await
    }
}

impl Migration for Directory {
    async fn prepare_destination(
        &self,
        cx: &OpContext,
        call: PrepareDestination,
    ) -> Result<Outcome<InstanceInfo>> {
        self.run(cx, move |store, _| create(store, call.spec, Role::Destination)).await
    }

    async fn migration_check_compatibility(
        &self,
        cx: &OpContext,
        call: MigrationCheckCompatibility,
    ) -> Result<Compatibility> {
        self.run(cx, move |store, _| promise(store, &call.migration)).await
    }

    async fn migration_start(&self, cx: &OpContext, call: MigrationStart) -> Result<Outcome<()>> {
        self.run(cx, move |store, _| start(store, &call.migration)).await
    }

    async fn migration_continue(&self, cx: &OpContext, call: MigrationContinue) -> Result<MigrationProgress> {
        self.run(cx, move |store, cx| round(store, &call.migration, cx)).await
    }

    async fn migration_complete(&self, cx: &OpContext, call: MigrationComplete) -> Result<Outcome<Switched>> {
        self.run(cx, move |store, cx| complete(store, &call.migration, cx)).await
    }

    async fn migration_release(&self, cx: &OpContext, call: MigrationRelease) -> Result<Outcome<()>> {
        self.run(cx, move |store, cx| {
            let source = call.migration.source;
            if store.find(source)?.is_some_and(|i| i.meta.role == Role::Active && !i.meta.deleting) {
                return Err(Error::conflict(format!(
                    "instance {source} has not been switched away from; complete the migration first"
                )));
            }
            delete(store, source, cx)
        })
        .await
    }

    async fn migration_revert(&self, _: &OpContext, _: MigrationRevert) -> Result<Outcome<Switched>> {
        Err(Error::unsupported("folders do not go back after the switch; migrate the other way"))
    }

    async fn migration_cancel(&self, cx: &OpContext, call: MigrationCancel) -> Result<Outcome<()>> {
        self.run(cx, move |store, _| cancel(store, &call.migration)).await
    }

    async fn migration_get_progress(
        &self,
        cx: &OpContext,
        call: MigrationGetProgress,
    ) -> Result<MigrationProgress> {
        self.run(cx, move |store, _| {
            let source = store.existing(call.migration.source)?;
            let moving = source.moving_to(&call.migration)?;
            Ok(progress(&moving, if moving.ready { moving.bytes } else { 0 }))
        })
        .await
    }

    async fn migration_force_complete(
        &self,
        _: &OpContext,
        _: MigrationForceComplete,
    ) -> Result<Outcome<()>> {
        Err(Error::unsupported("a first phase of folders cannot be forced; complete it, which is short"))
    }
}

fn progress(moving: &Moving, done: u64) -> MigrationProgress {
    let total = (moving.bytes > 0).then_some(moving.bytes);
    MigrationProgress {
        progress: Progress::of("carry", done, total),
        first_phase_done: moving.ready,
        ..MigrationProgress::default()
    }
}

/// What can be kept, for another back end of folders of the same running system.
fn promise(store: &Store, spec: &MigrationSpec) -> Result<Compatibility> {
    store.existing(spec.source)?.meta.epoch.admit(spec.epoch)?;
    let there = &spec.destination_driver;
    let driver = there.get("driver").and_then(|d| d.as_str());
    let ours = driver == Some("directory")
        && there.get("capabilities").and_then(|c| c.pointer(&format!("/extra/{SYSTEM}"))?.as_str())
            == Some(&system());
    Ok(Compatibility {
        compatible: ours,
        writable: ours,
        nondisruptive: false,
        preserve_metadata: ours && keeps_metadata(),
        // There are none to lose.
        preserve_snapshots: ours,
    })
}

fn start(store: &Store, spec: &MigrationSpec) -> Result<Outcome<()>> {
    let mut source = store.lock_existing(spec.source)?;
    let rose = source.meta.epoch.see(spec.epoch)?;
    source.meta.require_active("it does not move")?;
    if rose {
        source.save()?;
    }
    let there = endpoint(spec)?;
    destination(store, &there, spec)?;
    match source.moving()? {
        Some(moving) if moving.destination == spec.destination => return Ok(Outcome::Unchanged(())),
        // Its end was never told: what it went to is no more.
        Some(moving) if store.at(&moving.root).find(moving.destination)?.is_none() => {
            source.meta.read_only = moving.read_only;
            source.save()?;
            source.serve()?;
        }
        Some(moving) => {
            return Err(Error::conflict(format!(
                "instance {} moves to instance {} already",
                spec.source, moving.destination
            )));
        }
        None => {}
    }
    let notes = source.notes();
    mirror::remove_path(&notes, &|| false).map_err(|e| from_mirror(&e))?;
    fs::create_dir(&notes).map_err(|e| io_error("create", &notes, &e))?;
    source.save_moving(&Moving {
        root: there,
        destination: spec.destination,
        read_only: source.meta.read_only,
        rounds: 0,
        bytes: 0,
        ready: false,
    })?;
    Ok(Outcome::Changed(()))
}

/// The folder that the destination's endpoint names.
fn endpoint(spec: &MigrationSpec) -> Result<PathBuf> {
    let endpoint: Option<Endpoint> = serde_json::from_value(spec.endpoint.clone()).ok();
    let endpoint = endpoint.ok_or_else(|| Error::invalid("the destination has no address"))?;
    let word = |name: &str| endpoint.data.get(name).and_then(|v| v.as_str()).map(str::to_owned);
    match word("root") {
        Some(root) if endpoint.protocol == PROTOCOL && word("system") == Some(system()) => Ok(root.into()),
        _ => Err(Error::unsupported("the destination is no folder of this host")),
    }
}

/// The destination, which must be there and of the same share.
fn destination(store: &Store, root: &Path, spec: &MigrationSpec) -> Result<Instance> {
    let instance = store.at(root).lock_existing(spec.destination)?;
    let moves = matches!(instance.meta.role, Role::Destination | Role::Active);
    if instance.meta.spec.resource != spec.resource || !moves {
        return Err(Error::conflict(format!(
            "instance {} was not prepared as the destination of this migration",
            spec.destination
        )));
    }
    Ok(instance)
}

/// One round while users write. Only the destination is locked: the source goes on serving and being asked.
fn round(store: &Store, spec: &MigrationSpec, cx: &OpContext) -> Result<MigrationProgress> {
    let source = store.existing(spec.source)?;
    source.meta.epoch.admit(spec.epoch)?;
    let mut moving = source.moving_to(spec)?;
    let dest = destination(store, &moving.root, spec)?;
    if dest.meta.role == Role::Active {
        return Err(Error::conflict("it has been switched already; release it"));
    }
    let (tell, cancelled) = (tell(cx), || cx.is_cancelled());
    let control = Control::new(&cancelled, &tell);
    if !moving.ready {
        let pass = mirrored(&source, &dest, RootMode::Counts, &control)?;
        kept(&pass)?;
        moving.rounds += 1;
        moving.bytes = pass.bytes;
        moving.ready = moving.rounds >= LIVE_ROUNDS || pass.written <= LITTLE.max(pass.bytes / 100);
        if moving.ready {
            // Warms up what the last proof compares with.
            with(&source, &dest, RootMode::Counts, |mirror| mirror.prove(&control))?;
        }
        source.save_moving(&moving)?;
    }
    Ok(progress(&moving, moving.bytes))
}

fn with<T>(
    source: &Instance,
    dest: &Instance,
    root: RootMode,
    ask: impl FnOnce(&Mirror<'_>) -> std::result::Result<T, mirror::Error>,
) -> Result<T> {
    // Its root, which nobody reaches yet, may have been closed to writers since the last round.
    let tree = dest.tree();
    let now = fs::metadata(&tree).map_err(|e| io_error("stat", &tree, &e))?.permissions().mode() & 0o7777;
    if now & 0o700 != 0o700 {
        set_mode(&tree, now | 0o700)?;
    }
    let (from, to, state) = (source.open_tree()?, dest.open_tree()?, source.notes());
    ask(&Mirror { source: &from, dest: &to, state: &state, root }).map_err(|e| from_mirror(&e))
}

fn mirrored(source: &Instance, dest: &Instance, root: RootMode, control: &Control<'_>) -> Result<Pass> {
    with(source, dest, root, |mirror| mirror.pass(control))
}

/// Holds writers back, carries the rest, proves it, and serves users by the destination.
fn complete(store: &Store, spec: &MigrationSpec, cx: &OpContext) -> Result<Outcome<Switched>> {
    let mut source = store.lock_existing(spec.source)?;
    source.meta.epoch.admit(spec.epoch)?;
    let moving = source.moving_to(spec)?;
    let mut dest = destination(store, &moving.root, spec)?;
    if dest.meta.role == Role::Active {
        source.fence()?;
        dest.serve()?;
        return Ok(Outcome::Unchanged(Switched { exports: dest.exports() }));
    }
    if !source.meta.read_only {
        source.meta.read_only = true;
        source.save()?;
    }
    source.serve()?;
    let (tell, cancelled) = (tell(cx), || cx.is_cancelled());
    let control = Control::new(&cancelled, &tell);
    prove(&source, &dest, &control)?;
    // Whoever had a file open could go on writing it until here; what came of that is carried too.
    source.fence()?;
    prove(&source, &dest, &control)?;
    if let Some(mode) = source.meta.root_mode {
        set_mode(&dest.tree(), mode)?;
    }
    dest.meta.root_mode = None;
    dest.meta.role = Role::Active;
    dest.meta.read_only = moving.read_only;
    dest.save()?;
    dest.serve()?;
    tracing::info!(source = %spec.source, destination = %spec.destination, "Switched to the destination.");
    Ok(Outcome::Changed(Switched { exports: dest.exports() }))
}

/// Whether everything came along, as was promised.
fn kept(pass: &Pass) -> Result<()> {
    if !keeps_metadata() || pass.skipped == mirror::Skipped::default() {
        return Ok(());
    }
    Err(Error::conflict(format!(
        "the metadata of files cannot all be kept at the destination: {} Choose another destination, or migrate from host \
         to host",
        pass.skipped.remarks().join(" ")
    )))
}

/// Owners can be given to others by root only.
fn keeps_metadata() -> bool {
    rustix::process::geteuid().is_root()
}

/// Rounds until the destination is proven and nothing changed meanwhile.
fn prove(source: &Instance, dest: &Instance, control: &Control<'_>) -> Result<()> {
    for _ in 0..LAST_ROUNDS {
        mirrored(source, dest, RootMode::Aside, control)?;
        let proof = with(source, dest, RootMode::Aside, |mirror| mirror.prove(control))?;
        let after = mirrored(source, dest, RootMode::Aside, control)?;
        if proof.wrong == 0 && after.is_unchanged() {
            return kept(&after);
        }
    }
    Err(Error::conflict(format!(
        "instance {} still changes although writers are held back; stop what writes into its folder and migrate again",
        source.meta.spec.instance
    )))
}

/// The source is as it was before the start.
fn cancel(store: &Store, spec: &MigrationSpec) -> Result<Outcome<()>> {
    let mut source = store.lock_existing(spec.source)?;
    source.meta.epoch.admit(spec.epoch)?;
    let moving = match source.moving() {
        // Nobody can read where it went; it is active here, so that nothing was switched.
        Err(e) if e.kind == ErrorKind::Unavailable && source.meta.role == Role::Active => {
            tracing::warn!(source = %spec.source, error = %e, "A migration without readable notes is ended.");
            source.meta.read_only = false;
            source.save()?;
            source.serve()?;
            source.forget_moving()?;
            return Ok(Outcome::Changed(()));
        }
        other => other?,
    };
    let Some(moving) = moving.filter(|moving| moving.destination == spec.destination) else {
        return Ok(Outcome::Unchanged(()));
    };
    let there = store.at(&moving.root);
    // The source is fenced before the destination is active; until then it need not be there.
    let begun = source.meta.role != Role::Active;
    if begun && there.find(spec.destination)?.is_some_and(|dest| dest.meta.role == Role::Active) {
        return Err(Error::conflict("it has been switched already; release it"));
    }
    source.meta.role = Role::Active;
    source.meta.read_only = moving.read_only;
    source.save()?;
    source.serve()?;
    source.forget_moving()?;
    Ok(Outcome::of(true, ()))
}

impl Store {
    /// Another back end's folders on this host.
    fn at(&self, root: &Path) -> Self {
        Self { config: Config { root: root.to_owned(), ..self.config.clone() }, share_mode: self.share_mode }
    }
}

/// Gives a destination the empty tree that is filled; one that has it stays.
pub(crate) fn lay(instance: &mut Instance) -> Result<()> {
    if instance.meta.version > 0 {
        return Ok(());
    }
    instance.meta.version = 1;
    let tree = instance.tree();
    fs::create_dir_all(&tree).map_err(|e| io_error("create", &tree, &e))?;
    set_mode(&instance.version_dir(), 0o711)?;
    instance.save()
}

impl Instance {
    fn moving_file(&self) -> PathBuf {
        self.dir.join("moving.json")
    }

    /// Notes of what was read.
    fn notes(&self) -> PathBuf {
        self.dir.join("moving")
    }

    /// Where it moves to, if it does.
    fn moving(&self) -> Result<Option<Moving>> {
        let file = self.moving_file();
        match fs::read(&file) {
            Ok(bytes) => serde_json::from_slice(&bytes).map(Some).map_err(|e| {
                Error::unavailable(format!("`{}` is damaged: {e}; cancel the migration", file.display()))
                    .retry(tandem_sdk::Retry::AfterOperator)
            }),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(io_error("read", &file, &e)),
        }
    }

    /// The move of this migration, which must have been started.
    fn moving_to(&self, spec: &MigrationSpec) -> Result<Moving> {
        self.moving()?.filter(|moving| moving.destination == spec.destination).ok_or_else(|| {
            Error::conflict(format!(
                "instance {} does not move to instance {}; start the migration first",
                spec.source, spec.destination
            ))
        })
    }

    fn save_moving(&self, moving: &Moving) -> Result<()> {
        let bytes = serde_json::to_vec_pretty(moving)
            .map_err(|e| Error::bug(format!("the migration's data does not encode: {e}")))?;
        mirror::write_whole(&self.dir, "moving.json", &bytes).map_err(|e| from_mirror(&e))
    }

    fn forget_moving(&self) -> Result<()> {
        mirror::remove_path(&self.notes(), &|| false).map_err(|e| from_mirror(&e))?;
        mirror::remove_path(&self.moving_file(), &|| false).map_err(|e| from_mirror(&e))
    }

    /// Serves nobody any more.
    fn fence(&mut self) -> Result<()> {
        if self.meta.role != Role::Fenced {
            self.meta.role = Role::Fenced;
            self.save()?;
        }
        self.serve()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metadata_that_was_promised_and_is_not_kept_is_a_conflict() {
        assert!(kept(&Pass::default()).is_ok());
        let skipped = mirror::Skipped { xattrs: 3, ..mirror::Skipped::default() };
        let told = kept(&Pass { skipped, ..Pass::default() });
        if keeps_metadata() {
            let error = told.unwrap_err();
            assert_eq!(error.kind, ErrorKind::Conflict);
            assert!(error.message.contains("3 extended attributes"), "{error}");
        } else {
            assert!(told.is_ok(), "nothing was promised");
        }
    }
}
