//! Full disks, kills in the middle, and leftovers.
#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use common::{Backend, Pair, assert_same, fill, noise, spec, transfer};
use tandem_sdk::contract::*;
use uuid::Uuid;

/// A small file system that goes away with the test. `None` where the test may not mount one.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn mount(at: &Path, bytes: u64) -> Option<Self> {
        fs::create_dir_all(at).unwrap();
        let size = format!("size={bytes}");
        let run = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &size, "tmpfs"])
            .arg(at)
            .stderr(Stdio::null())
            .status();
        run.is_ok_and(|status| status.success()).then(|| Self(at.to_owned()))
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.0).status();
    }
}

#[tokio::test]
async fn a_full_disk_leaves_the_last_good_point_in_place() {
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path().join("small disk");
    let Some(disk) = SmallDisk::mount(&at, 12 << 20) else {
        eprintln!("no right to mount a file system: not tested here");
        return;
    };
    let pair = Pair::with(Style::Readable, dir, &at).await;
    fs::write(pair.share().join("fits"), noise(1, 1_000_000)).unwrap();
    pair.sync().await;
    let good = pair.beta.observe(pair.replica).await.unwrap().points;
    fs::write(pair.share().join("does not fit"), noise(2, 30_000_000)).unwrap();
    let to = pair.alpha.point(pair.active, 1).await;
    let (_, received) = transfer((&pair.alpha, pair.active), (&pair.beta, pair.replica), 1, &to, None).await;
    let error = received.unwrap_err();
    assert_eq!(error.kind, ErrorKind::OutOfSpace, "{error}");
    let seen = pair.beta.observe(pair.replica).await.unwrap();
    assert_eq!((seen.points, seen.resume, seen.health), (good, None, Health::Ok));
    assert_eq!(fs::read(pair.beta.export(pair.replica).join("fits")).unwrap(), noise(1, 1_000_000));
    // Room again: the same point goes through.
    fs::write(pair.share().join("does not fit"), noise(2, 3_000_000)).unwrap();
    pair.sync().await;
    assert_same(&pair.share(), &pair.beta.export(pair.replica));
    drop(pair);
    drop(disk);
}

const CHILD: &str = "TANDEM_DIRECTORY_TEST_CHILD";

/// Not a test by itself: the process that the next test kills. It syncs the pair again and again.
#[tokio::test]
async fn child() {
    let Ok(text) = std::env::var(CHILD) else { return };
    let mut words = text.split('|');
    let mut next = || words.next().unwrap();
    let (dir, active, replica) = (PathBuf::from(next()), next().parse().unwrap(), next().parse().unwrap());
    let (alpha, beta) = (Backend::open(&dir.join("alpha")).await, Backend::open(&dir.join("beta")).await);
    for round in 0u64.. {
        let share = alpha.export(active);
        fs::write(share.join(format!("round {}", round % 3)), noise(round, 700_000)).unwrap();
        fs::write(share.join("docs/deep/017"), noise(round, 500)).unwrap();
        let to = alpha.point(active, 1).await;
        let (_, received) = transfer((&alpha, active), (&beta, replica), 1, &to, None).await;
        received.unwrap();
        for old in alpha.observe(active).await.unwrap().points.iter().rev().skip(1) {
            alpha.call(ReleasePoint { instance: active, point: old.id }).await.unwrap();
        }
    }
}

/// The current version, at most the one before, and no transfer but one that can be continued.
fn assert_nothing_is_left(dir: &Path, continues: bool) {
    assert_eq!(dir.join("incoming").exists(), continues);
    let versions: Vec<_> = fs::read_dir(dir.join("versions")).unwrap().map(|e| e.unwrap().path()).collect();
    assert!(versions.len() <= 2, "{versions:?}");
    for version in versions {
        for name in ["header", "progress", "durable", "building"] {
            assert!(!version.join(name).exists(), "{} has {name}", version.display());
        }
    }
}

/// Files of these points, and the one that hashes are known from.
fn assert_only_points(dir: &Path, held: &[PointInfo]) {
    for entry in fs::read_dir(dir.join("points")).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        let point = name.split('.').next().unwrap();
        assert!(
            point == "known" || held.iter().any(|p| p.id.to_string() == point),
            "{name} is left of {held:?}"
        );
    }
}

#[tokio::test]
async fn a_kill_at_any_moment_leaves_what_the_next_call_carries_on() {
    let pair = Pair::new(Style::Readable).await;
    fill(&pair.share());
    let child = format!("{}|{}|{}", pair.dir.path().display(), pair.active, pair.replica);
    for kill in 0..14 {
        let mut process = Command::new(std::env::current_exe().unwrap())
            .args(["child", "--exact", "--nocapture"])
            .env(CHILD, &child)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        tokio::time::sleep(Duration::from_millis(150 + kill * 37)).await;
        process.kill().unwrap();
        process.wait().unwrap();
        // What is there can be described, and what readers see is whole.
        let seen = pair.beta.observe(pair.replica).await.unwrap();
        if !seen.points.is_empty() {
            let tree = pair.beta.export(pair.replica);
            assert_eq!(fs::read(tree.join("large")).unwrap(), noise(1, 5_000_000));
        }
        // As after every start. Nothing may ever be asked again of a point or a transfer that the kill cut short.
        pair.alpha.call(EnsureInstance { instance: pair.active, epoch: Epoch(1) }).await.unwrap();
        let held = pair.alpha.observe(pair.active).await.unwrap().points;
        assert_only_points(&pair.alpha.root.join("instances").join(pair.active.to_string()), &held);
        pair.beta.call(EnsureInstance { instance: pair.replica, epoch: Epoch(1) }).await.unwrap();
        let continues = pair.beta.observe(pair.replica).await.unwrap().resume.is_some();
        assert_nothing_is_left(&pair.beta.root.join("instances").join(pair.replica.to_string()), continues);
    }
    pair.sync().await;
    assert_same(&pair.share(), &pair.beta.export(pair.replica));
    assert_nothing_is_left(&pair.beta.root.join("instances").join(pair.replica.to_string()), false);
    pair.alpha.call(DeleteInstance { instance: pair.active }).await.unwrap();
    pair.beta.call(DeleteReplica { instance: pair.replica }).await.unwrap();
    for backend in [&pair.alpha, &pair.beta] {
        assert_eq!(fs::read_dir(backend.root.join("instances")).unwrap().count(), 0);
        assert_eq!(fs::read_dir(backend.root.join("exports")).unwrap().count(), 0);
    }
}

#[tokio::test]
async fn leftovers_of_making_and_deleting_are_seen_and_removed() {
    let dir = tempfile::tempdir().unwrap();
    let backend = Backend::open(dir.path()).await;
    let share = spec(ResourceId(Uuid::new_v4()), Style::Readable);
    let unfinished = dir.path().join(format!("instances/.new-{}", share.instance));
    fs::create_dir_all(unfinished.join("versions/1/tree")).unwrap();
    assert_eq!(backend.call(ListInstances {}).await.unwrap(), vec![share.instance]);
    assert!(matches!(backend.observe(share.instance).await.unwrap().health, Health::Failed { .. }));
    assert!(backend.create(&share).await.is_changed());
    assert_eq!(backend.observe(share.instance).await.unwrap().health, Health::Ok);
    assert!(!unfinished.exists());

    // A deletion that was killed after it had begun: said so, refuses all else, and ends when it is called again.
    let meta = dir.path().join(format!("instances/{}/meta.json", share.instance));
    let text = fs::read_to_string(&meta).unwrap().replace("\"deleting\": false", "\"deleting\": true");
    fs::write(&meta, text).unwrap();
    fs::remove_dir_all(meta.with_file_name("points")).unwrap();
    fs::remove_dir_all(meta.with_file_name("versions")).unwrap();
    assert!(matches!(backend.observe(share.instance).await.unwrap().health, Health::Failed { .. }));
    let ensure = EnsureInstance { instance: share.instance, epoch: Epoch(1) };
    assert_eq!(backend.call(ensure).await.unwrap_err().kind, ErrorKind::Conflict);
    assert!(backend.call(DeleteInstance { instance: share.instance }).await.unwrap().is_changed());
    assert!(backend.observe(share.instance).await.is_none());
}

#[tokio::test]
async fn after_a_boot_nothing_is_exported_until_the_epoch_is_confirmed() {
    let dir = tempfile::tempdir().unwrap();
    let backend = Backend::open(dir.path()).await;
    let share = spec(ResourceId(Uuid::new_v4()), Style::Readable);
    backend.create(&share).await;
    let again = Backend::open(dir.path()).await;
    assert!(again.export(share.instance).exists(), "a restart of the server takes nothing away");
    fs::write(dir.path().join("boot"), "another boot").unwrap();
    let after = Backend::open(dir.path()).await;
    assert!(!after.export(share.instance).exists());
    assert!(matches!(after.observe(share.instance).await.unwrap().health, Health::Degraded { .. }));
    let ensure = |epoch| EnsureInstance { instance: share.instance, epoch: Epoch(epoch) };
    assert_eq!(after.call(ensure(0)).await.unwrap_err().kind, ErrorKind::StaleEpoch);
    assert!(after.call(ensure(1)).await.unwrap().is_changed());
    assert!(after.export(share.instance).exists());
    assert!(!after.call(ensure(1)).await.unwrap().is_changed());
}

#[tokio::test]
async fn settings_that_cannot_work_are_refused_with_a_sentence() {
    use tandem_sdk::Driver;
    let open = |settings: serde_json::Value| async move {
        let config: tandem_driver_directory::Config =
            serde_json::from_value(settings).map_err(|e| e.to_string())?;
        tandem_driver_directory::Directory::open(config).await.map(drop).map_err(|e| e.to_string())
    };
    assert!(open(serde_json::json!({ "root": "relative" })).await.unwrap_err().contains("absolute"));
    assert!(open(serde_json::json!({ "root": "/tmp", "rot": 1 })).await.unwrap_err().contains("rot"));
    let mode = serde_json::json!({ "root": "/tmp/x", "share_mode": "9" });
    assert!(open(mode).await.unwrap_err().contains("share_mode"));
}
