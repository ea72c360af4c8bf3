//! What only the intent log of a share holds after a power cut: records that its users were told are kept, and that no
//! transaction group had taken up yet. Whatever the manager asks for before the share is served again has to heed them. Runs in
//! a guest: `cargo xtask test --only guests`.
//!
//! `zpool freeze` is how OpenZFS' own tests come by such a log: from then on nothing else is written. After an export and an
//! import the pool is as a power cut would have left it.
#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::process::Command;

use common::{Backend, Move, Pair, noise, transfer, zfs};
use libtest_mimic::Arguments;
use rustix::mount::{MountFlags, UnmountFlags};
use tandem_sdk::contract::*;

/// Tests by their names; passed by where the pools are not. One after the other: they share a pool.
fn main() -> std::process::ExitCode {
    let trials = trials![2;
        every_way_to_a_point_goes_by_the_log,
        what_the_log_holds_is_no_rest,
        a_mount_alone_is_no_change,
        a_migration_carries_what_the_log_holds,
        a_share_does_not_shrink_below_what_the_log_holds,
        what_was_given_up_does_not_come_back,
        a_log_that_is_encrypted_waits_for_its_key,
    ];
    let arguments = Arguments { test_threads: Some(1), ..Arguments::from_args() };
    libtest_mimic::run(&arguments, trials).exit_code()
}

const POOL: &str = "ice";
const DISK: &str = "/run/tandem-ice.img";

fn zpool(args: &[&str]) {
    let out = Command::new("/usr/sbin/zpool").args(args).output().unwrap();
    assert!(out.status.success(), "zpool {args:?}: {}", String::from_utf8_lossy(&out.stderr));
}

/// A pool that can be frozen.
struct Ice;

impl Ice {
    fn make() -> Self {
        File::create(DISK).unwrap().set_len(512 << 20).unwrap();
        zpool(&["create", "-f", "-o", "cachefile=none", "-O", "mountpoint=none", POOL, DISK]);
        Self
    }

    async fn backend(&self, test: &str, more: &[(&str, &str)]) -> Backend {
        Backend::open(POOL, test, more).await
    }

    async fn pair(&self, test: &str, style: Style) -> Pair {
        let there = Backend::open("beta", test, &[]).await;
        let pair = Pair::between(self.backend(test, &[]).await, there, style).await;
        Self::begin(&pair.alpha.folder(pair.active));
        pair
    }

    async fn moving(&self, test: &str) -> Move {
        let there = Backend::open("beta", test, &[]).await;
        let scene = Move::between(self.backend(test, &[]).await, there).await;
        Self::begin(&scene.here());
        scene
    }

    /// Writes a first record: that there is a log at all has to be on the disks before the pool is frozen.
    fn begin(folder: &Path) {
        File::create(folder.join("before")).and_then(|file| file.sync_all()).unwrap();
        zpool(&["sync", POOL]);
    }

    /// Users write records, each acknowledged before the next; then the power fails. The records.
    fn cut(&self, backend: &Backend, instances: &[InstanceId]) -> String {
        let records: String = (0..20).map(|n| format!("{n}\n")).collect();
        self.cut_after(backend, instances, || {
            for instance in instances {
                let mut file = File::create(backend.folder(*instance).join("records")).unwrap();
                for line in records.split_inclusive('\n') {
                    file.write_all(line.as_bytes()).and_then(|()| file.sync_data()).unwrap();
                }
            }
        });
        records
    }

    /// What users do is in the log alone when the power fails.
    fn cut_after(&self, backend: &Backend, instances: &[InstanceId], act: impl FnOnce()) {
        zpool(&["sync", POOL]);
        zpool(&["freeze", POOL]);
        act();
        for instance in instances {
            rustix::mount::unmount(backend.folder(*instance), UnmountFlags::empty()).unwrap();
        }
        zpool(&["export", POOL]);
        zpool(&["import", "-N", "-o", "cachefile=none", "-d", DISK, POOL]);
        zfs(&["load-key", "-r", POOL]);
        zfs(&["snapshot", "-r", &format!("{POOL}@bare")]);
        for instance in instances {
            let bare = format!("{}@bare", backend.content(*instance, 1));
            assert_eq!(records_in(&bare), "", "they are in the log alone");
        }
        zfs(&["destroy", "-r", &format!("{POOL}@bare")]);
        zfs(&["unload-key", "-r", POOL]);
    }
}

impl Drop for Ice {
    fn drop(&mut self) {
        let _ = Command::new("/usr/sbin/zpool").args(["destroy", "-f", POOL]).status();
        let _ = fs::remove_file(DISK);
    }
}

/// The records that a snapshot holds.
fn records_in(snapshot: &str) -> String {
    let at = Path::new("/run/tandem-ice");
    fs::create_dir_all(at).unwrap();
    rustix::mount::mount(snapshot, at, "zfs", MountFlags::RDONLY, c"").unwrap();
    let records = fs::read_to_string(at.join("records")).unwrap_or_default();
    rustix::mount::unmount(at, UnmountFlags::empty()).unwrap();
    records
}

/// What is asked for after the power cut, before the point.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Before {
    Nothing,
    Quiesce,
    /// Writers were being held back when the power failed.
    Held,
    /// The same, and then it is served again.
    HeldAndServed,
    /// Users were let read only when the power failed; it is served again.
    Cast,
    Fence,
    FenceAndGiveBack,
    Attach,
    AttachHeld,
}

async fn every_way_to_a_point_goes_by_the_log() {
    use Before as B;
    let ice = Ice::make();
    let mut pairs = Vec::new();
    for before in [
        B::Nothing,
        B::Quiesce,
        B::Held,
        B::HeldAndServed,
        B::Cast,
        B::Fence,
        B::FenceAndGiveBack,
        B::Attach,
        B::AttachHeld,
    ] {
        let pair = ice.pair("point", Style::Readable).await;
        pair.must_sync().await;
        pairs.push((before, pair));
    }
    let all: Vec<InstanceId> = pairs.iter().map(|(_, pair)| pair.active).collect();
    let records = ice.cut(&pairs[0].1.alpha, &all);
    for (before, pair) in &pairs {
        let (alpha, instance) = (&pair.alpha, pair.active);
        let note =
            |state: &str| drop(zfs(&["set", state, "readonly=on", &format!("{}/{instance}", alpha.dataset)]));
        let mut epoch = Epoch(1);
        let ensure = EnsureInstance { instance, epoch };
        match before {
            B::Nothing | B::Attach => {}
            B::Quiesce => drop(alpha.call(Quiesce { instance, epoch, wait_seconds: None }).await.unwrap()),
            B::Held | B::AttachHeld => note("tandem:quiesced=yes"),
            B::HeldAndServed => {
                note("tandem:quiesced=yes");
                alpha.call(ensure).await.unwrap();
            }
            B::Cast => {
                note("tandem:readonly=yes");
                alpha.call(ensure).await.unwrap();
            }
            B::Fence => {
                epoch = Epoch(2);
                alpha.demote(instance, epoch.0, Demotion::Fenced).await;
            }
            B::FenceAndGiveBack => {
                epoch = Epoch(3);
                alpha.demote(instance, 2, Demotion::Fenced).await;
                alpha.promote(instance, epoch.0, Promotion::Planned { point: None }).await;
            }
        }
        if matches!(before, B::Attach | B::AttachHeld) {
            let at = alpha.call(Attach { instance, epoch, read_only: true }).await.unwrap().into_inner();
            assert_eq!(
                fs::read_to_string(Path::new(&at.path).join("records")).unwrap(),
                records,
                "{before:?}"
            );
            alpha.call(Detach { instance }).await.unwrap();
        }
        let point = alpha.point(instance, epoch.0).await;
        let snapshot = format!("{}@tandem-{}", alpha.content(instance, 1), point.id);
        assert_eq!(records_in(&snapshot), records, "{before:?}");
        let to = (&pair.beta, pair.replica);
        let (_, received) = transfer((alpha, instance), to, epoch.0, &point).await;
        received.unwrap();
        assert_eq!(fs::read_to_string(pair.beta.folder(pair.replica).join("records")).unwrap(), records);
        pair.leave().await;
    }
}

async fn changed(backend: &Backend, instance: InstanceId, epoch: u64) -> (Option<bool>, Option<PointInfo>) {
    let call = UpdateReplicaState { instance, epoch: Epoch(epoch) };
    let report = backend.call(call).await.unwrap();
    (report.changed_since_point, report.newest_point)
}

async fn what_the_log_holds_is_no_rest() {
    let ice = Ice::make();
    let mut pairs = Vec::new();
    for fenced in [false, true] {
        let pair = ice.pair("rest", Style::Dr).await;
        let (point, _) = pair.must_sync().await;
        assert_eq!(changed(&pair.alpha, pair.active, 1).await, (Some(false), Some(point.clone())));
        pairs.push((fenced, pair, point));
    }
    let all: Vec<InstanceId> = pairs.iter().map(|(_, pair, _)| pair.active).collect();
    let records = ice.cut(&pairs[0].1.alpha, &all);
    for (fenced, pair, point) in pairs {
        let (alpha, instance) = (&pair.alpha, pair.active);
        let epoch = if fenced { 2 } else { 1 };
        if fenced {
            alpha.demote(instance, epoch, Demotion::Fenced).await;
        }
        assert_eq!(changed(alpha, instance, epoch).await.0, Some(true), "fenced: {fenced}");
        // And looking at it loses nothing.
        let next = alpha.point(instance, epoch).await;
        assert_ne!(next.id, point.id);
        assert_eq!(records_in(&format!("{}@tandem-{}", alpha.content(instance, 1), next.id)), records);
        assert_eq!(changed(alpha, instance, epoch).await, (Some(false), Some(next)), "fenced: {fenced}");
        pair.leave().await;
    }
}

/// Nothing was written: a mount begins the log anew, and that is nothing.
async fn a_mount_alone_is_no_change() {
    let ice = Ice::make();
    let pair = ice.pair("mount", Style::Dr).await;
    let (alpha, instance) = (&pair.alpha, pair.active);
    let quiesce = |epoch| Quiesce { instance, epoch: Epoch(epoch), wait_seconds: None };
    let back = Promotion::Planned { point: None };
    for (epoch, cut) in [(1, false), (3, true)] {
        alpha.call(quiesce(epoch)).await.unwrap();
        let point = alpha.point(instance, epoch).await;
        if cut {
            ice.cut_after(alpha, &[instance], || ());
        }
        alpha.demote(instance, epoch + 1, Demotion::Fenced).await;
        assert_eq!(changed(alpha, instance, epoch + 1).await, (Some(false), Some(point)), "cut: {cut}");
        alpha.promote(instance, epoch + 2, back).await;
    }
    // A promotion elsewhere, whose last point is made, goes on after a cut.
    alpha.call(quiesce(5)).await.unwrap();
    alpha.point(instance, 5).await;
    ice.cut_after(alpha, &[instance], || ());
    alpha.demote(instance, 6, Demotion::Secondary).await;
    pair.leave().await;
}

/// When the power fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cut {
    BeforeTheFirstRound,
    BeforeTheSwitch,
    Held,
}

async fn a_migration_carries_what_the_log_holds() {
    let ice = Ice::make();
    let first_phase = async |scene: &Move| while !scene.round().await.unwrap().first_phase_done {};
    let mut scenes = Vec::new();
    for cut in [Cut::BeforeTheFirstRound, Cut::BeforeTheSwitch, Cut::Held] {
        let scene = ice.moving("move").await;
        fs::write(scene.here().join("large"), noise(1, 1_000_000)).unwrap();
        scene.start().await;
        if cut != Cut::BeforeTheFirstRound {
            first_phase(&scene).await;
        }
        scenes.push((cut, scene));
    }
    let all: Vec<InstanceId> = scenes.iter().map(|(_, scene)| scene.spec.source).collect();
    let records = ice.cut(&scenes[0].1.alpha, &all);
    for (cut, scene) in scenes {
        if cut == Cut::Held {
            let dataset = format!("{}/{}", scene.alpha.dataset, scene.spec.source);
            zfs(&["set", "tandem:quiesced=yes", "readonly=on", &dataset]);
        }
        first_phase(&scene).await;
        scene.complete().await.unwrap();
        assert_eq!(fs::read_to_string(scene.there().join("records")).unwrap(), records, "{cut:?}");
        scene.alpha.call(MigrationRelease { migration: scene.spec.clone() }).await.unwrap();
        scene.beta.call(DeleteInstance { instance: scene.spec.destination }).await.unwrap();
    }
}

async fn a_share_does_not_shrink_below_what_the_log_holds() {
    let ice = Ice::make();
    let pair = ice.pair("shrink", Style::Dr).await;
    let (alpha, instance) = (&pair.alpha, pair.active);
    let file = alpha.folder(instance).join("records");
    let large = "0123456789abcdef".repeat(300_000);
    // Nothing makes it smaller.
    zfs(&["set", "compression=off", &alpha.content(instance, 1)]);
    ice.cut_after(alpha, &[instance], || {
        fs::write(&file, &large).unwrap();
        File::open(&file).and_then(|file| file.sync_all()).unwrap();
    });
    let call = ResizeInstance { instance, epoch: Epoch(1), size_bytes: 2 << 20 };
    assert_eq!(alpha.call(call).await.unwrap_err().kind, ErrorKind::OutOfSpace);
    alpha.call(EnsureInstance { instance, epoch: Epoch(1) }).await.unwrap();
    assert!(fs::read_to_string(&file).unwrap() == large);
    pair.leave().await;
}

/// A replica was promoted by force, and the old active one follows it: what its log holds is given up for good.
async fn what_was_given_up_does_not_come_back() {
    let ice = Ice::make();
    let mut pairs = Vec::new();
    for style in [Style::Readable, Style::Dr] {
        let pair = ice.pair("ghost", style).await;
        let (common, _) = pair.must_sync().await;
        pairs.push((pair, common));
    }
    let all: Vec<InstanceId> = pairs.iter().map(|(pair, _)| pair.active).collect();
    ice.cut(&pairs[0].0.alpha, &all);
    for (pair, common) in pairs {
        let Pair { alpha, beta, active: old, replica: new, .. } = &pair;
        beta.promote(*new, 2, Promotion::Forced { point: Some(common.id) }).await;
        fs::write(beta.folder(*new).join("newer"), b"x").unwrap();
        alpha.demote(*old, 2, Demotion::Fenced).await;
        alpha.demote(*old, 2, Demotion::Secondary).await;
        let next = beta.point(*new, 2).await;
        let (_, received) = transfer((beta, *new), (alpha, *old), 2, &next).await;
        received.unwrap();
        beta.demote(*new, 3, Demotion::Secondary).await;
        alpha.promote(*old, 3, Promotion::Planned { point: Some(next.id) }).await;
        let folder = alpha.folder(*old);
        assert!(folder.join("newer").exists() && !folder.join("records").exists());
        pair.leave().await;
    }
}

async fn a_log_that_is_encrypted_waits_for_its_key() {
    let ice = Ice::make();
    let key = "/run/tandem-ice.key";
    fs::write(key, [7; 32]).unwrap();
    let location = format!("file://{key}");
    let (sealed, at) = (format!("{POOL}/sealed"), format!("keylocation={location}"));
    let encryption = ["create", "-o", "encryption=on", "-o", "keyformat=raw", "-o"];
    zfs(&[&encryption[..], &[&at, "-o", "mountpoint=none", &sealed]].concat());
    let pair = ice.pair("sealed", Style::Dr).await;
    pair.must_sync().await;
    let (alpha, instance, epoch) = (&pair.alpha, pair.active, Epoch(1));
    let records = ice.cut(alpha, &[instance]);
    let report = alpha.call(UpdateReplicaState { instance, epoch }).await.unwrap();
    assert_eq!(report.changed_since_point, None, "nobody knows");
    let call = MakePoint { instance, epoch, point: PointId(uuid::Uuid::new_v4()) };
    let error = alpha.call(call).await.unwrap_err();
    assert!(error.kind == ErrorKind::Conflict && error.message.contains("key"), "{error}");

    let knows = ice.backend("sealed", &[("key_location", &location)]).await;
    zfs(&["set", "keylocation=prompt", &sealed]);
    let point = knows.point(instance, 1).await;
    let (_, received) = transfer((&knows, instance), (&pair.beta, pair.replica), 1, &point).await;
    received.unwrap();
    let snapshot = format!("{}@tandem-{}", knows.content(instance, 1), point.id);
    assert_eq!(records_in(&snapshot), records);
    pair.leave().await;
}
