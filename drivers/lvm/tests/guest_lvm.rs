//! What people and accidents do to a volume group under the driver. Runs in a guest with the groups `vg_alpha`, `vg_beta`
//! and `vg_gamma`: `cargo xtask test --only guests`.
#![allow(clippy::unwrap_used, clippy::panic)]

mod common;
mod mended;
mod worker;

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant};

use common::{Backend, MIB, degraded, failed, run, set_table, volumes, workers};
use libtest_mimic::{Arguments, Trial};
use mended::*;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;
use tandem_sdk::contract::*;
use worker::*;

/// Tests by their names; passed by where the groups are not.
fn main() -> std::process::ExitCode {
    let disk = |name: &str| std::path::Path::new("/dev/mapper").join(name).exists();
    let elsewhere = !["alpha", "vg_alpha-pool", "vg_gamma-pool"].into_iter().all(disk);
    macro_rules! trials {
        ($($test:ident),* $(,)?) => {
            vec![$(Trial::test(stringify!($test), || {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
                runtime.block_on($test());
                Ok(())
            })
            .with_ignored_flag(elsewhere)),*]
        };
    }
    let trials = trials![
        after_a_boot_nothing_is_served_before_its_epoch_is_confirmed,
        a_share_grows_while_it_is_used_and_never_shrinks,
        what_is_not_tandems_is_left_alone,
        a_group_on_other_devices_is_not_looked_for,
        a_worker_that_goes_is_replaced,
        calls_cut_at_any_moment_leave_what_the_next_one_makes_whole,
        a_share_in_use_on_this_host_is_neither_cast_nor_deleted,
        a_pool_that_fills_warns_then_refuses,
        a_full_pool_fails_its_shares_and_no_others,
        a_device_that_fails_and_comes_back,
        an_xfs_that_stopped_is_recovered_and_can_be_deleted,
        what_a_cut_command_left_of_a_device_is_mended,
        a_making_goes_on_over_its_own_half_removed_self,
        a_growth_that_failed_keeps_nobody_out,
        shares_are_mounted_through_a_link,
        a_sleeping_pool_is_not_called_empty,
        a_group_whose_metadata_is_full_says_so,
        a_worker_that_waits_for_a_lock_ends_with_its_driver,
        a_worker_outlives_the_signals_of_a_service_manager,
        a_lock_that_somebody_holds_delays_and_does_no_harm,
    ];
    // One after another: they count workers and change the disks.
    let arguments = Arguments { test_threads: Some(1), ..Arguments::from_args() };
    libtest_mimic::run(&arguments, trials).exit_code()
}

async fn after_a_boot_nothing_is_served_before_its_epoch_is_confirmed() {
    let mut alpha = Backend::open("alpha", "boot", json!({})).await;
    for filesystem in ["ext4", "xfs"] {
        let share = alpha.share(400 * MIB, filesystem).await;
        let folder = alpha.folder(share);
        assert_eq!(fs::metadata(&folder).unwrap().permissions().mode() & 0o7777, 0o755);
        fs::write(folder.join("kept"), b"x").unwrap();
        let before = alpha.observe(share).await;
        alpha.unserve(share);
        alpha.again().await;
        // As a boot does for all volumes: this one is passed by.
        run("vgchange", &["-ay", "vg_alpha"]);
        let seen = alpha.observe(share).await;
        assert!(degraded(&seen.health).contains("epoch") && seen.exports.is_empty());
        let access = AccessSpec { rules: Vec::new(), read_only: true };
        let call = UpdateAccess { instance: share, epoch: Epoch(1), access };
        alpha.call(call).await.unwrap();
        assert!(!folder.join("kept").exists() && alpha.observe(share).await.exports.is_empty());
        assert!(!run("dmsetup", &["ls"]).contains(&share.to_string().replace('-', "--")));

        let stale = EnsureInstance { instance: share, epoch: Epoch(0) };
        assert_eq!(alpha.call(stale).await.unwrap_err().kind, ErrorKind::StaleEpoch);
        assert!(alpha.ensure(share).await.unwrap().is_changed());
        assert!(!alpha.ensure(share).await.unwrap().is_changed());
        assert_eq!(fs::read(folder.join("kept")).unwrap(), b"x");
        assert!(fs::write(folder.join("more"), b"x").is_err(), "it was cast read-only meanwhile");
        let access = AccessSpec { rules: Vec::new(), read_only: false };
        alpha.call(UpdateAccess { instance: share, epoch: Epoch(1), access }).await.unwrap();
        fs::write(folder.join("more"), b"x").unwrap();
        let now = alpha.observe(share).await;
        assert_eq!((now.exports, now.health, now.read_only), (before.exports, Health::Ok, false));
        alpha.leaves_nothing(share).await;
    }
}

async fn a_share_grows_while_it_is_used_and_never_shrinks() {
    let mut alpha = Backend::open("alpha", "grow", json!({})).await;
    let room = |path: &std::path::Path| rustix::fs::statvfs(path).map(|s| s.f_blocks * s.f_frsize).unwrap();
    for filesystem in ["ext4", "xfs"] {
        let share = alpha.share(400 * MIB, filesystem).await;
        let folder = alpha.folder(share);
        let mut open = File::create(folder.join("open")).unwrap();
        let grow = |size_bytes| ResizeInstance { instance: share, epoch: Epoch(1), size_bytes };
        assert!(alpha.call(grow(800 * MIB)).await.unwrap().is_changed());
        assert!(room(&folder) > 700 * MIB, "{filesystem}: {}", room(&folder));
        open.write_all(b"goes on").unwrap();
        drop(open);
        let smaller = alpha.call(grow(400 * MIB)).await.unwrap_err();
        assert_eq!(smaller.kind, ErrorKind::Unsupported);
        assert!(smaller.message.contains("cannot shrink"), "{smaller}");

        // While it is not mounted only the volume grows; the file system follows when it is served again.
        alpha.unserve(share);
        alpha.again().await;
        assert!(alpha.call(grow(1200 * MIB)).await.unwrap().is_changed());
        assert_eq!(alpha.observe(share).await.size_bytes, 1200 * MIB);
        alpha.ensure(share).await.unwrap();
        assert!(room(&folder) > 1100 * MIB, "{filesystem}: {}", room(&folder));
        assert!(!alpha.call(grow(1200 * MIB)).await.unwrap().is_changed());
        assert_eq!(alpha.observe(share).await.health, Health::Ok);
        assert_eq!(fs::read(folder.join("open")).unwrap(), b"goes on");
        alpha.leaves_nothing(share).await;
    }
}

async fn what_is_not_tandems_is_left_alone() {
    let alpha = Backend::open("alpha", "foreign", json!({})).await;
    let spec = alpha.spec(64 * MIB, "ext4");
    let (instance, name) = (spec.instance, format!("tandem-{}", spec.instance));
    run(
        "lvcreate",
        &[
            "-y",
            "--type",
            "thin",
            "-V",
            "64m",
            "-n",
            &name,
            "--addtag",
            "precious",
            "--thinpool",
            "pool",
            "vg_alpha",
        ],
    );
    let made = alpha.call(CreateInstance { spec }).await.unwrap_err();
    assert_eq!(made.kind, ErrorKind::Conflict);
    assert!(made.message.contains(&name), "{made}");
    assert_eq!(alpha.call(ObserveInstance { instance }).await.unwrap(), None);
    assert!(!alpha.call(ListInstances {}).await.unwrap().contains(&instance));
    assert!(!alpha.call(DeleteInstance { instance }).await.unwrap().is_changed());
    assert!(volumes("vg_alpha").contains(&name));
    run("lvremove", &["-y", &format!("vg_alpha/{name}")]);

    // Tags that other people give a share of Tandem's stay.
    let share = alpha.share(64 * MIB, "ext4").await;
    run("lvchange", &["--addtag", "nightly", &alpha.volume(share)]);
    let access = AccessSpec { rules: Vec::new(), read_only: true };
    alpha.call(UpdateAccess { instance: share, epoch: Epoch(2), access }).await.unwrap();
    let tags = run("lvs", &["--noheadings", "-o", "lv_tags", &alpha.volume(share)]);
    assert!(
        tags.contains("nightly") && tags.contains("tandem:epoch=2") && tags.contains("tandem:readonly=yes")
    );
    assert!(!tags.contains("tandem:epoch=1"), "{tags}");

    // Damaged ones are a sentence, and nothing is guessed.
    run("lvchange", &["--deltag", "tandem:epoch=2", &alpha.volume(share)]);
    let error = alpha.call(ObserveInstance { instance: share }).await.unwrap_err();
    assert!(error.message.contains("tandem:epoch") && error.retry == Retry::AfterOperator, "{error}");
    run("lvchange", &["--addtag", "tandem:epoch=2", &alpha.volume(share)]);
    alpha.leaves_nothing(share).await;
}

async fn a_group_on_other_devices_is_not_looked_for() {
    let error = Backend::fails("alpha", json!({"group": "vg_beta"})).await;
    assert_eq!(error.kind, ErrorKind::Unavailable);
    assert!(error.message.contains("vg_beta"), "{error}");
    let error = Backend::fails("alpha", json!({"thin_pool": "nothing"})).await;
    assert!(error.message.contains("vg_alpha/nothing"), "{error}");
    let error = Backend::fails("alpha", json!({"worker": "/usr/bin/no-such-worker"})).await;
    assert!(error.message.contains("no-such-worker"), "{error}");
}

async fn a_worker_that_goes_is_replaced() {
    let alpha = Backend::open("alpha", "worker", json!({})).await;
    let share = alpha.share(64 * MIB, "ext4").await;
    for _ in 0..3 {
        let there = workers();
        assert_eq!(there.len(), 1, "one worker for the one back end: {there:?}");
        kill_process(Pid::from_raw(there[0]).unwrap(), Signal::KILL).unwrap();
        // Each call begins with a look, and that is repeated with another worker.
        let seen = alpha.call(ObserveInstance { instance: share }).await;
        assert_eq!(seen.unwrap().unwrap().health, Health::Ok);
    }
    alpha.leaves_nothing(share).await;
    drop(alpha);
    let until = Instant::now() + Duration::from_secs(60);
    while !workers().is_empty() {
        assert!(Instant::now() < until, "the worker outlives its driver");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// By their deadline, and by a worker that is killed amid a command of LVM.
async fn calls_cut_at_any_moment_leave_what_the_next_one_makes_whole() {
    let alpha = Backend::open("alpha", "cut", json!({})).await;
    let rounds = if std::env::var_os("TANDEM_LONG").is_some() { 200 } else { 8 };
    let (mut cut_makings, mut cut_removals) = (0, 0);
    for round in 0..rounds {
        let moment = 5 + round * 37 % 700;
        let kill = round % 2 == 1;
        let killer = async |after: u64| {
            tokio::time::sleep(Duration::from_millis(after)).await;
            for pid in workers() {
                let _ = kill_process(Pid::from_raw(pid).unwrap(), Signal::KILL);
            }
        };
        let spec = alpha.spec(64 * MIB, "ext4");
        let instance = spec.instance;
        let make = CreateInstance { spec };
        let cut = if kill {
            tokio::join!(alpha.call(make.clone()), killer(moment)).0.map(drop)
        } else {
            alpha.within(make.clone(), moment).await.map(drop)
        };
        cut_makings += u32::from(cut.is_err());
        let kinds = [ErrorKind::Cancelled, ErrorKind::Unavailable];
        assert!(cut.as_ref().err().is_none_or(|e| kinds.contains(&e.kind)), "{cut:?}");
        // Whatever is there can be described, and made whole.
        let seen = alpha.call(ObserveInstance { instance }).await.unwrap();
        alpha.call(make.clone()).await.unwrap_or_else(|e| panic!("after {moment} ms: {e}; it was {seen:?}"));
        assert!(!alpha.call(make).await.unwrap().is_changed());
        assert_eq!(alpha.observe(instance).await.health, Health::Ok);
        fs::write(alpha.folder(instance).join("a"), b"x").unwrap();

        let remove = DeleteInstance { instance };
        let cut = if kill {
            tokio::join!(alpha.call(remove.clone()), killer(moment / 2)).0.map(drop)
        } else {
            alpha.within(remove.clone(), moment / 2).await.map(drop)
        };
        cut_removals += u32::from(cut.is_err());
        alpha.call(ObserveInstance { instance }).await.unwrap();
        alpha.call(remove).await.unwrap();
        let id = instance.to_string();
        assert!(!volumes("vg_alpha").iter().any(|name| name.contains(&id)));
        assert!(
            !run("dmsetup", &["ls"]).contains(&id.replace('-', "--")) && !alpha.folder(instance).exists()
        );
    }
    assert!(cut_makings > 0 && cut_removals > 0, "{cut_makings} and {cut_removals} of {rounds} were cut");
    assert!(!run("dmsetup", &["info"]).contains("SUSPENDED"));
}

async fn a_share_in_use_on_this_host_is_neither_cast_nor_deleted() {
    let alpha = Backend::open("alpha", "busy", json!({})).await;
    let share = alpha.share(64 * MIB, "ext4").await;
    let mut open = File::create(alpha.folder(share).join("open")).unwrap();
    let access = AccessSpec { rules: Vec::new(), read_only: true };
    let cast = UpdateAccess { instance: share, epoch: Epoch(1), access };
    let busy = alpha.call(cast.clone()).await.unwrap_err();
    assert_eq!((busy.kind, busy.retry), (ErrorKind::Busy, Retry::Safe), "{busy}");
    assert!(busy.message.contains(&format!("process {} (guest_lvm", std::process::id())), "{busy}");
    open.write_all(b"x").unwrap();
    let busy = alpha.call(DeleteInstance { instance: share }).await.unwrap_err();
    assert_eq!(busy.kind, ErrorKind::Busy, "{busy}");
    assert!(failed(&alpha.observe(share).await.health).contains("deletion"));
    drop(open);
    alpha.leaves_nothing(share).await;
}

/// A thin pool of a few MiB, so that it is soon full.
fn small_pool(name: &str, mib: u64) {
    run("lvcreate", &["-y", "--type", "thin-pool", "-L", &format!("{mib}m"), "-n", name, "vg_alpha"]);
    // By default writes to a full pool wait a minute for more room.
    fs::write("/sys/module/dm_thin_pool/parameters/no_space_timeout", "1").unwrap();
}

async fn a_pool_that_fills_warns_then_refuses() {
    small_pool("warns", 100);
    let settings = json!({"thin_pool": "warns", "warn_percent": 40, "refuse_percent": 70});
    let alpha = Backend::open("alpha", "warns", settings).await;
    assert_eq!(alpha.pool().await.warning, None);
    let share = alpha.share(1024 * MIB, "ext4").await;
    let fill = |name: &str, mib: usize| {
        let mut file = File::create(alpha.folder(share).join(name)).unwrap();
        for _ in 0..mib {
            file.write_all(&[7; 1 << 20]).unwrap();
        }
        file.sync_all().unwrap();
    };
    fill("a", 42);
    let pool = alpha.pool().await;
    assert!(pool.warning.unwrap().contains("data of the thin pool `vg_alpha/warns`"));
    assert!(pool.extra["thin_data_percent"].as_f64().unwrap() > 40.0);
    assert!(pool.extra["thin_metadata_percent"].as_f64().unwrap() > 0.0);
    assert_eq!((pool.allocated_bytes, pool.total_bytes), (Some(1024 * MIB), Some(100 * MIB)));
    assert!(pool.free_bytes.unwrap() < 60 * MIB);
    fill("b", 30);
    let spec = alpha.spec(64 * MIB, "ext4");
    let full = alpha.call(CreateInstance { spec: spec.clone() }).await.unwrap_err();
    assert_eq!(full.kind, ErrorKind::OutOfSpace);
    assert!(full.message.contains("vg_alpha/warns") && full.message.contains("70 %"), "{full}");
    assert_eq!(alpha.call(ObserveInstance { instance: spec.instance }).await.unwrap(), None);
    let grow = ResizeInstance { instance: share, epoch: Epoch(1), size_bytes: 2048 * MIB };
    assert_eq!(alpha.call(grow).await.unwrap_err().kind, ErrorKind::OutOfSpace);
    assert_eq!(alpha.observe(share).await.size_bytes, 1024 * MIB);
    // What is there goes on.
    fill("c", 1);
    alpha.leaves_nothing(share).await;
    assert_eq!(alpha.pool().await.warning, None);
    run("lvremove", &["-y", "vg_alpha/warns"]);
}

async fn a_full_pool_fails_its_shares_and_no_others() {
    small_pool("small", 64);
    let settings = json!({"thin_pool": "small", "refuse_percent": 100, "warn_percent": 90});
    let small = Backend::open("alpha", "small", settings).await;
    let large = Backend::open("alpha", "large", json!({})).await;
    let (victim, other) = (small.share(400 * MIB, "ext4").await, large.share(64 * MIB, "ext4").await);
    let mut file = File::create(small.folder(victim).join("much")).unwrap();
    let wrote = (0..400).try_for_each(|_| {
        file.write_all(&[7; 1 << 20])?;
        file.sync_data()
    });
    assert!(wrote.is_err(), "400 MiB went into a pool of 64 MiB");
    drop(file);
    let seen = small.observe(victim).await;
    assert!(!matches!(seen.health, Health::Ok), "{:?}", seen.health);
    assert!(small.pool().await.warning.unwrap().contains("vg_alpha/small"));
    let refused = small.call(CreateInstance { spec: small.spec(64 * MIB, "ext4") }).await.unwrap_err();
    assert_eq!(refused.kind, ErrorKind::OutOfSpace, "{refused}");
    assert_eq!(large.observe(other).await.health, Health::Ok);
    fs::write(large.folder(other).join("fine"), b"x").unwrap();

    // Extended, and ensured: it serves again.
    run("lvextend", &["-y", "-L", "+64m", "vg_alpha/small"]);
    small.ensure(victim).await.unwrap();
    assert_eq!(small.observe(victim).await.health, Health::Ok);
    fs::remove_file(small.folder(victim).join("much")).unwrap();
    fs::write(small.folder(victim).join("fine"), b"x").unwrap();
    small.leaves_nothing(victim).await;
    large.leaves_nothing(other).await;
    run("lvremove", &["-y", "vg_alpha/small"]);
}

async fn a_device_that_fails_and_comes_back() {
    for filesystem in ["ext4", "xfs"] {
        fails_and_comes_back(filesystem).await;
    }
}

async fn fails_and_comes_back(filesystem: &str) {
    let gamma = Backend::open("gamma", "fails", json!({})).await;
    let share = gamma.share(400 * MIB, filesystem).await;
    let folder = gamma.folder(share);
    fs::write(folder.join("kept"), b"x").unwrap();
    run("sync", &[]);
    let table = run("dmsetup", &["table", "gamma"]);
    let sectors = table.split_whitespace().nth(1).unwrap();
    set_table("gamma", &format!("0 {sectors} error"));
    // The file system notices when it writes its journal; then ext4 is read only, and XFS answers nothing.
    let until = Instant::now() + Duration::from_secs(60);
    let read_only = |e: std::io::Error| e.kind() == std::io::ErrorKind::ReadOnlyFilesystem;
    while !fs::write(folder.join("lost"), b"x").is_err_and(read_only) && fs::metadata(&folder).is_ok() {
        assert!(Instant::now() < until, "the file system goes on without its device");
        let _ = File::open(&folder).and_then(|root| root.sync_all());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    // LVM cannot read its own data either: a sentence, within the deadline, and no guess.
    let error = gamma.call(ObserveInstance { instance: share }).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Unavailable, "{error}");
    assert!(gamma.call(CreateInstance { spec: gamma.spec(64 * MIB, "ext4") }).await.is_err());

    set_table("gamma", table.trim());
    let seen = gamma.observe(share).await;
    assert!(failed(&seen.health).contains("stopped after an error"), "{:?}", seen.health);
    gamma.ensure(share).await.unwrap();
    let seen = gamma.observe(share).await;
    assert_eq!((seen.health, seen.exports.len()), (Health::Ok, 1));
    assert_eq!(fs::read(folder.join("kept")).unwrap(), b"x");
    fs::write(folder.join("new"), b"x").unwrap();
    gamma.leaves_nothing(share).await;
}
