//! Migration to another pool of the same host: sent in rounds while users write, switched at once.
//!
//! The source remembers that it moves in `tandem:moving`; what has arrived is found on the destination itself. A round is
//! a snapshot on both sides (module `carry`); what a migration leaves when it ends is removed whenever an instance is locked
//! (module `moves`).

use std::path::PathBuf;
use std::sync::Arc;

use tandem_sdk::contract::{
    Compatibility, Endpoint, GetEndpoint, InstanceInfo, MigrationCancel, MigrationCheckCompatibility,
    MigrationComplete, MigrationContinue, MigrationForceComplete, MigrationGetProgress, MigrationProgress,
    MigrationRelease, MigrationRevert, MigrationSpec, MigrationStart, Outcome, PrepareDestination, Progress,
    Role, Switched,
};
use tandem_sdk::{Error, Exporter, InstanceId, Lock, Migration, OpContext, Reachable, Result};
use tracing::Instrument;

use crate::carry::{self, FIRST};
use crate::image::{Found, Image};
use crate::instance::ACLS;
use crate::meta::Moving;
use crate::store::Locked;
use crate::stream::content;
use crate::{Config, Inner, Zfs, image, lzc, tool};

/// What an endpoint speaks.
const PROTOCOL: &str = "zfs.dataset/1";
/// The capability that says which running system the pools are on.
pub(crate) const SYSTEM: &str = "zfs_system";
/// The capability that says that ACLs count in what is made here, whatever is set above it.
pub(crate) const KEEPS_ACLS: &str = "zfs_keeps_acls";
/// Rounds while users write, at most.
const LIVE_ROUNDS: u32 = 12;
/// A round that carried no more than this is the last of them.
const LITTLE: u64 = 16 << 20;
/// Rounds before writers are held back, since users may have written for days.
const LATE_ROUNDS: u32 = 4;
/// Rounds once writers are held back, at most.
const LAST_ROUNDS: u32 = 5;
/// Properties without which some of a file's metadata is there and does not count.
const MEANING: [&str; 2] = ["xattr", ACLS];

/// The running system, and the mounts that it sees: other pools are reached from nowhere else.
pub(crate) fn system() -> String {
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let mounts = std::fs::read_link("/proc/self/ns/mnt").unwrap_or_default();
    format!("{} {}", boot.trim(), mounts.display())
}

impl Reachable for Zfs {
    async fn endpoint(&self, cx: &OpContext, call: GetEndpoint) -> Result<Endpoint> {
        self.inner.existing(cx, call.instance).await?;
        let data = serde_json::json!({ "system": system(), "config": self.inner.config });
        Ok(Endpoint { instance: call.instance, protocol: PROTOCOL.to_owned(), data })
    }
}

impl Migration for Zfs {
    async fn prepare_destination(
        &self,
        cx: &OpContext,
        call: PrepareDestination,
    ) -> Result<Outcome<InstanceInfo>> {
        self.inner.create(cx, call.spec, Role::Destination).await
    }

    async fn migration_check_compatibility(
        &self,
        cx: &OpContext,
        call: MigrationCheckCompatibility,
    ) -> Result<Compatibility> {
        self.inner.promise(cx, &call.migration).await
    }

    async fn migration_start(&self, cx: &OpContext, call: MigrationStart) -> Result<Outcome<()>> {
        let (inner, cx) = (Arc::clone(&self.inner), cx.clone());
        whole(async move { inner.start(&cx, &call.migration).await }).await
    }

    async fn migration_continue(&self, cx: &OpContext, call: MigrationContinue) -> Result<MigrationProgress> {
        let (inner, cx, spec) = (Arc::clone(&self.inner), cx.clone(), call.migration);
        let moving = inner.moving_now(&cx, &spec).await?;
        if moving.ready {
            return Ok(progress(&moving));
        }
        let there = there(&spec)?;
        whole(async move {
            let _alone = inner.alone(spec.source)?;
            inner.round(&cx, &there, &spec).await?;
            Ok(progress(&inner.moving_now(&cx, &spec).await?))
        })
        .await
    }

    async fn migration_complete(&self, cx: &OpContext, call: MigrationComplete) -> Result<Outcome<Switched>> {
        let (inner, cx) = (Arc::clone(&self.inner), cx.clone());
        whole(async move { inner.complete(&cx, &call.migration).await }).await
    }

    async fn migration_release(&self, cx: &OpContext, call: MigrationRelease) -> Result<Outcome<()>> {
        let (inner, source) = (&self.inner, call.migration.source);
        if let Some(image) = inner.find(cx, source).await?.filter(|image| !image.meta.deleting) {
            let mine =
                image.meta.moving.as_ref().is_some_and(|m| m.destination == call.migration.destination);
            if image.meta.role == Role::Active || !mine || !inner.is_switched(cx, &image).await? {
                return Err(Error::conflict(format!(
                    "instance {source} has not been switched away from; complete the migration first"
                )));
            }
        }
        inner.delete(cx, source).await
    }

    async fn migration_revert(&self, _: &OpContext, _: MigrationRevert) -> Result<Outcome<Switched>> {
        Err(Error::unsupported("datasets do not go back after the switch; migrate the other way"))
    }

    async fn migration_cancel(&self, cx: &OpContext, call: MigrationCancel) -> Result<Outcome<()>> {
        let (inner, cx) = (Arc::clone(&self.inner), cx.clone());
        whole(async move { inner.cancel(&cx, &call.migration).await }).await
    }

    async fn migration_get_progress(
        &self,
        cx: &OpContext,
        call: MigrationGetProgress,
    ) -> Result<MigrationProgress> {
        Ok(progress(&self.inner.moving_now(cx, &call.migration).await?))
    }

    async fn migration_force_complete(
        &self,
        _: &OpContext,
        _: MigrationForceComplete,
    ) -> Result<Outcome<()>> {
        Err(Error::unsupported("a first phase of datasets cannot be forced; complete it, which is short"))
    }
}

/// Runs a call to its end also where its caller goes away: it keeps its locks until the kernel has answered, so that the
/// next call sees what came of it. Its context stops it.
async fn whole<T: Send + 'static>(work: impl Future<Output = Result<T>> + Send + 'static) -> Result<T> {
    match tokio::spawn(work.in_current_span()).await {
        Ok(done) => done,
        Err(failed) if failed.is_panic() => Err(Error::bug("a step of a migration panicked")),
        Err(_) => Err(Error::cancelled("the driver is shutting down")),
    }
}

fn progress(moving: &Moving) -> MigrationProgress {
    let total = moving.ready.then_some(moving.bytes);
    let counters = [("rounds", u64::from(moving.rounds)), ("newest_round_bytes", moving.newest)];
    MigrationProgress {
        progress: Progress::of("carry", moving.bytes, total),
        first_phase_done: moving.ready,
        counters: counters.into_iter().map(|(name, value)| (name.to_owned(), value.into())).collect(),
    }
}

/// The back end on the destination's side, as its endpoint says.
fn there(spec: &MigrationSpec) -> Result<Inner> {
    let endpoint: Option<Endpoint> = serde_json::from_value(spec.endpoint.clone()).ok();
    let endpoint = endpoint.ok_or_else(|| Error::invalid("the destination has no address"))?;
    let same = endpoint.data.get("system").and_then(|v| v.as_str()) == Some(&system());
    if endpoint.protocol != PROTOCOL || !same {
        return Err(Error::unsupported("the destination is no dataset of this host"));
    }
    let config: Config = endpoint
        .data
        .get("config")
        .cloned()
        .and_then(|config| serde_json::from_value(config).ok())
        .ok_or_else(|| {
            Error::unsupported("the destination's settings are those of another driver version")
        })?;
    let share_mode = config.check()?;
    let exporter = Exporter::new(&config.export)?;
    Ok(Inner { config, share_mode, exporter })
}

fn not_started(spec: &MigrationSpec) -> Error {
    Error::conflict(format!(
        "instance {} does not move to instance {}; start the migration first",
        spec.source, spec.destination
    ))
}

/// The move of this migration, which must have been started.
fn moving<'a>(source: &'a mut Image, spec: &MigrationSpec) -> Result<&'a mut Moving> {
    let moving = source.meta.moving.as_mut().filter(|moving| moving.destination == spec.destination);
    moving.ok_or_else(|| not_started(spec))
}

impl Inner {
    async fn moving_now(&self, cx: &OpContext, spec: &MigrationSpec) -> Result<Moving> {
        let mut source = self.existing(cx, spec.source).await?;
        source.meta.epoch.admit(spec.epoch)?;
        moving(&mut source, spec).cloned()
    }

    /// What can be kept, for another pool of this host.
    async fn promise(&self, cx: &OpContext, spec: &MigrationSpec) -> Result<Compatibility> {
        let source = self.existing(cx, spec.source).await?;
        source.meta.epoch.admit(spec.epoch)?;
        let there = &spec.destination_driver;
        let zfs = there.get("driver").and_then(|d| d.as_str()) == Some("zfs");
        if zfs {
            // Also where the manager would carry it to another host.
            nothing_stays(&source)?;
        }
        let extra = |name: &str| there.get("capabilities").and_then(|c| c.pointer(&format!("/extra/{name}")));
        let ours = zfs && extra(SYSTEM).and_then(|v| v.as_str()) == Some(&system());
        let keeps_acls = extra(KEEPS_ACLS).and_then(serde_json::Value::as_bool) == Some(true);
        if zfs && !ours && !keeps_acls {
            self.means_the_same_elsewhere(cx, &source).await?;
        }
        Ok(Compatibility {
            compatible: ours,
            writable: ours,
            // Its path is another one.
            nondisruptive: false,
            preserve_metadata: ours,
            preserve_snapshots: ours,
        })
    }

    /// Keeps a second call of the same migration away. Not the instance's own lock: rounds are long, and the source goes on
    /// being served and changed meanwhile.
    fn alone(&self, source: InstanceId) -> Result<Lock> {
        Lock::at(&self.moves(), source)
    }

    /// The folder of those locks.
    pub(crate) fn moves(&self) -> PathBuf {
        self.config.run.join("moves")
    }

    async fn start(&self, cx: &OpContext, spec: &MigrationSpec) -> Result<Outcome<()>> {
        let _alone = self.alone(spec.source)?;
        let mut locked = self.lock_existing(cx, spec.source).await?;
        let source = &mut locked.image;
        let rose = source.meta.epoch.see(spec.epoch)?;
        source.meta.require_active("it does not move")?;
        if rose {
            self.save(cx, source).await?;
        }
        nothing_stays(source)?;
        let there = there(spec)?;
        let mut dest = destination(cx, &there, spec).await?;
        match &source.meta.moving {
            Some(moving) if moving.destination == spec.destination => return Ok(Outcome::Unchanged(())),
            // Its end was never told: what it went to is no more.
            Some(moving) if !self.is_there(cx, &moving.dataset).await? => {
                source.meta.quiesced = false;
                self.save(cx, source).await?;
                self.serve(cx, source).await?;
            }
            Some(moving) => {
                return Err(Error::conflict(format!(
                    "instance {} moves to instance {} already",
                    spec.source, moving.destination
                )));
            }
            None => {}
        }
        self.find_key(cx, &there, source).await?;
        self.keep_meaning(cx, &there, source, &mut dest.image).await?;
        source.meta.moving = Some(Moving {
            destination: spec.destination,
            dataset: there.name(spec.destination),
            rounds: 0,
            newest: 0,
            bytes: 0,
            ready: false,
            carried: None,
            switched: false,
        });
        self.save(cx, source).await?;
        self.forget_moves(cx, source).await?;
        Ok(Outcome::Changed(()))
    }

    /// What of a share's files is no content of its dataset but a property of it has to be the same where it goes: without it the
    /// kernel does not heed their ACLs any more.
    async fn keep_meaning(
        &self,
        cx: &OpContext,
        there: &Self,
        source: &Image,
        dest: &mut Image,
    ) -> Result<()> {
        for property in MEANING {
            let ours = tool::property(cx, property, &content(source)?.name).await?;
            let theirs = tool::property(cx, property, &dest.name).await?;
            if ours == theirs || ours == "off" {
                continue;
            }
            if dest.meta.spec.options.contains_key(property) {
                if theirs != "off" {
                    continue;
                }
                return Err(Error::unsupported(format!(
                    "the share has `{property}` {ours}, and the share type wants it off, so that what files say would not count \
                     any more; leave `zfs:{property}` out of the share type"
                )));
            }
            tool::zfs(cx, &dest.name, &["set", &format!("{property}={ours}"), &dest.name]).await?;
        }
        there.refresh(cx, dest).await
    }

    /// Streams carry no properties: to a host whose driver does not see to ACLs by itself, as an earlier one does not, a share
    /// with them goes where its share type says that they count there.
    async fn means_the_same_elsewhere(&self, cx: &OpContext, source: &Image) -> Result<()> {
        let acls = tool::property(cx, ACLS, &content(source)?.name).await?;
        if acls == "off" || source.meta.spec.options.contains_key(ACLS) {
            return Ok(());
        }
        Err(Error::unsupported(format!(
            "the share has `acltype` {acls}, which does not come along to another host, so that its ACLs might not count there; \
             give it a share type with `zfs:acltype` = `{acls}` first"
        )))
    }

    async fn is_there(&self, cx: &OpContext, dataset: &str) -> Result<bool> {
        let tree = tool::kernel(cx, "look at", dataset, lzc::look).await?;
        Ok(!matches!(image::parse(dataset, &tree)?, Found::Nothing))
    }

    /// One round while users write, noted. Only the destination is locked: the source goes on serving and being asked.
    async fn round(&self, cx: &OpContext, there: &Self, spec: &MigrationSpec) -> Result<u64> {
        let mut source = self.existing(cx, spec.source).await?;
        let before = moving(&mut source, spec)?.bytes;
        let mut locked = destination(cx, there, spec).await?;
        let dest = &mut locked.image;
        if dest.meta.role == Role::Active {
            return Err(Error::conflict("it has been switched already; release it"));
        }
        let bytes = self.advance(cx, there, &mut source, dest, before).await?;
        self.unlock(cx, there, &source, dest).await?;
        let moving = moving(&mut source, spec)?;
        let shrinks = moving.rounds == 0 || bytes < moving.newest / 4 * 3;
        moving.rounds += 1;
        moving.newest = bytes;
        moving.bytes = moving.bytes.saturating_add(bytes);
        moving.ready |= bytes <= LITTLE || !shrinks || moving.rounds >= LIVE_ROUNDS;
        tracing::debug!(source = %spec.source, bytes, rounds = moving.rounds, "Carried a round of a migration.");
        self.save(cx, &mut source).await?;
        Ok(bytes)
    }

    /// Holds writers back, carries the rest, and serves users by the destination.
    async fn complete(&self, cx: &OpContext, spec: &MigrationSpec) -> Result<Outcome<Switched>> {
        self.moving_now(cx, spec).await?;
        let _alone = self.alone(spec.source)?;
        let there = there(spec)?;
        self.late_rounds(cx, &there, spec).await?;
        let mut locked = self.lock_existing(cx, spec.source).await?;
        let source = &mut locked.image;
        moving(source, spec)?;
        let mut locked = destination(cx, &there, spec).await?;
        let dest = &mut locked.image;
        let switched = dest.meta.role == Role::Active;
        if !switched {
            self.last_rounds(cx, &there, source, dest, spec).await?;
            // What cannot be mounted is not switched to; after a power cut its key is not there any more.
            self.unlock(cx, &there, source, dest).await?;
            dest.meta.role = Role::Active;
            dest.meta.version = FIRST;
            dest.meta.read_only = source.meta.read_only;
            there.save(cx, dest).await?;
        }
        moving(source, spec)?.switched = true;
        self.fence(cx, source).await?;
        there.forget_moves(cx, dest).await?;
        there.serve(cx, dest).await?;
        let exports = there.exports(dest);
        if !switched {
            tracing::info!(source = %spec.source, destination = %spec.destination, "Switched to the destination.");
        }
        Ok(Outcome::of(!switched, Switched { exports }))
    }

    /// Users may have written for days since the first phase ended: they go on while most of that is carried.
    async fn late_rounds(&self, cx: &OpContext, there: &Self, spec: &MigrationSpec) -> Result<()> {
        for _ in 0..LATE_ROUNDS {
            let source = self.existing(cx, spec.source).await?;
            let dest = there.existing(cx, spec.destination).await?;
            if source.meta.role != Role::Active || dest.meta.role != Role::Destination {
                return Ok(());
            }
            if self.round(cx, there, spec).await? <= LITTLE {
                return Ok(());
            }
        }
        Ok(())
    }

    /// Rounds with writers held back, until nothing is left; then nobody is served any more.
    async fn last_rounds(
        &self,
        cx: &OpContext,
        there: &Self,
        source: &mut Image,
        dest: &mut Image,
        spec: &MigrationSpec,
    ) -> Result<()> {
        if !source.meta.quiesced {
            source.meta.quiesced = true;
            self.save(cx, source).await?;
        }
        self.serve(cx, source).await?;
        self.flush(cx).await?;
        self.refresh(cx, source).await?;
        for _ in 0..LAST_ROUNDS {
            let before = moving(source, spec)?.bytes;
            let bytes = self.advance(cx, there, source, dest, before).await?;
            let moving = moving(source, spec)?;
            moving.bytes = moving.bytes.saturating_add(bytes);
            self.fence(cx, source).await?;
            self.flush(cx).await?;
            self.refresh(cx, source).await?;
            let newest = content(source)?.moves.last().map(|mark| mark.txg);
            if let Some(txg) = newest
                && is_all(source, txg)
            {
                // Made since the start, it would stay behind.
                nothing_stays(source)?;
                self.forget_gone(cx, there, source, dest).await?;
                // Any other answer than "switched" is found by looking at the destination.
                if let Some(moving) = source.meta.moving.as_mut() {
                    moving.carried = Some(txg);
                }
                return self.save(cx, source).await;
            }
        }
        Err(Error::conflict(format!(
            "instance {} still changes although writers are held back; see who writes to `{}`, and migrate again",
            spec.source, source.name
        )))
    }

    /// Snapshots that somebody destroyed after they were carried are no more at the destination either.
    async fn forget_gone(
        &self,
        cx: &OpContext,
        there: &Self,
        source: &Image,
        dest: &mut Image,
    ) -> Result<()> {
        let Some(version) = carry::arrived(dest) else { return Ok(()) };
        let current = content(source)?;
        let until = carry::carried_until(current, version);
        for mark in version.others.iter().filter(|mark| mark.txg < until) {
            if !current.others.iter().any(|kept| kept.guid == mark.guid) {
                let snapshot = format!("{}@{}", version.name, mark.short);
                there.destroy_snapshot(cx, &snapshot, false).await?;
            }
        }
        there.refresh(cx, dest).await
    }

    /// Serves nobody any more.
    async fn fence(&self, cx: &OpContext, source: &mut Image) -> Result<()> {
        source.meta.role = Role::Fenced;
        self.save(cx, source).await?;
        self.serve(cx, source).await.map(drop)
    }

    /// The source is as it was before the start.
    async fn cancel(&self, cx: &OpContext, spec: &MigrationSpec) -> Result<Outcome<()>> {
        let _alone = self.alone(spec.source)?;
        let mut locked = self.lock_existing(cx, spec.source).await?;
        let source = &mut locked.image;
        source.meta.epoch.admit(spec.epoch)?;
        if moving(source, spec).is_err() {
            // A first call may have ended before users were served again.
            if source.meta.role == Role::Active {
                self.serve(cx, source).await?;
                self.forget_moves(cx, source).await?;
            }
            Lock::remove(&self.moves(), spec.source);
            return Ok(Outcome::Unchanged(()));
        }
        // The source is fenced before the destination is active; until then it need not be there.
        if source.meta.role != Role::Active {
            if self.is_switched(cx, source).await? {
                return Err(Error::conflict("it has been switched already; release it"));
            }
            source.meta.role = Role::Active;
        }
        source.meta.quiesced = false;
        source.meta.moving = None;
        self.save(cx, source).await?;
        self.serve(cx, source).await?;
        self.forget_moves(cx, source).await?;
        Lock::remove(&self.moves(), spec.source);
        Ok(Outcome::Changed(()))
    }
}

/// The destination, which must be there and of the same share.
async fn destination(cx: &OpContext, there: &Inner, spec: &MigrationSpec) -> Result<Locked> {
    let locked = there.lock_existing(cx, spec.destination).await?;
    let meta = &locked.image.meta;
    let moves = matches!(meta.role, Role::Destination | Role::Active);
    if meta.spec.resource != spec.resource || !moves {
        return Err(Error::conflict(format!(
            "instance {} was not prepared as the destination of this migration",
            spec.destination
        )));
    }
    Ok(locked)
}

/// Whether nothing was written since that round, and no snapshot made.
fn is_all(source: &Image, txg: u64) -> bool {
    source.current().is_some_and(|version| version.written == 0 && !version.snapshot_since(txg))
}

/// Datasets that somebody made below a share would not come along.
fn nothing_stays(source: &Image) -> Result<()> {
    let within = |name: &&String| !name.contains('@') || !is_snapshot_of_ours(source, name);
    match source.foreign.iter().find(within) {
        None => Ok(()),
        Some(foreign) => Err(Error::unsupported(format!(
            "`{foreign}` was made by somebody else below the share and would stay behind; move or destroy it"
        ))),
    }
}

fn is_snapshot_of_ours(source: &Image, name: &str) -> bool {
    let dataset = name.split('@').next().unwrap_or(name);
    dataset == source.name || source.current().is_some_and(|version| version.name == dataset)
}
