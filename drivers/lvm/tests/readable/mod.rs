//! The style `readable`: what users read of a replica, while it is renewed below them, promoted, cut off, killed.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::json;
use tandem_sdk::Value;
use tandem_sdk::contract::*;

use crate::common::{run, volumes};
use crate::{MIB, Pair, boot, cut, mend};

/// So old that nothing is renewed by itself.
const NEVER: u64 = 100_000;

fn settings(export: bool) -> Value {
    let export =
        if export { json!({"kind": "nfs", "address": "127.0.0.1"}) } else { json!({"kind": "none"}) };
    json!({ "export": export, "readable_seconds": NEVER })
}

/// The snapshots of a side.
fn views(pair: &Pair, side: usize) -> Vec<String> {
    let id = format!("tandem-{}.read", pair.ids[side]);
    volumes(&pair.sides[side].group).into_iter().filter(|name| name.starts_with(&id)).collect()
}

/// The device that is mounted where users read.
fn there(pair: &Pair, side: usize) -> Option<String> {
    let folder = pair.sides[side].folder(pair.ids[side]);
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let mut lines = mounts.lines().rev().map(|line| line.split(' ').collect::<Vec<_>>());
    lines.find(|fields| fields[4] == folder.to_str().unwrap()).map(|fields| fields[2].to_owned())
}

/// Lets what users read be so many intervals old.
fn age(pair: &Pair, side: usize, intervals: f64) {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    for view in views(pair, side) {
        let volume = format!("{}/{view}", pair.sides[side].group);
        let tags = run("lvs", &["--noheadings", "-o", "lv_tags", &volume]);
        let old = tags.trim().split(',').find(|tag| tag.starts_with("tandem:at=")).unwrap().to_owned();
        let new = format!("tandem:at={}", now - (intervals * NEVER as f64) as u64);
        if old != new {
            run("lvchange", &["--deltag", &old, "--addtag", &new, &volume]);
        }
    }
}

/// Looks, as the manager does, until something else is mounted there than was.
async fn renewed(pair: &Pair, side: usize) {
    let (before, until) = (there(pair, side), Instant::now() + Duration::from_secs(60));
    loop {
        age(pair, side, 2.5);
        let report = pair.up_to_date(side).await;
        if there(pair, side).is_some_and(|now| Some(&now) != before.as_ref()) {
            return;
        }
        assert!(Instant::now() < until, "it is not renewed: {report:?}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// Waits until a condition holds that a look may bring about.
async fn until(pair: &Pair, side: usize, what: &str, is_so: impl Fn() -> bool) {
    let until = Instant::now() + Duration::from_secs(90);
    while !is_so() {
        assert!(Instant::now() < until, "{what}");
        let _ = pair.report(side).await;
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

async fn allow(pair: &Pair, side: usize, read_only: bool) {
    let rule = AccessRule {
        id: pair.ids[side].0,
        access_type: "ip".to_owned(),
        access_to: "127.0.0.1".to_owned(),
        access_level: AccessLevel::Rw,
    };
    let access = AccessSpec { rules: vec![rule], read_only };
    let call = UpdateAccess { instance: pair.ids[side], epoch: pair.epoch, access };
    pair.sides[side].call(call).await.unwrap();
}

/// Mounts a side as a client does.
async fn mount_nfs(pair: &Pair, side: usize) -> PathBuf {
    let folder = PathBuf::from(format!("/mnt/{}", pair.ids[side]));
    fs::create_dir_all(&folder).unwrap();
    let from = pair.sides[side].observe(pair.ids[side]).await.exports[0].path.clone();
    let options = "vers=4.2,soft,timeo=50,retrans=2,actimeo=1";
    run("mount", &["-t", "nfs4", "-o", options, &from, folder.to_str().unwrap()]);
    folder
}

fn write(folder: &Path, name: &str, content: &[u8]) {
    let mut file = File::create(folder.join(name)).unwrap();
    file.write_all(content).unwrap();
    file.sync_all().unwrap();
    File::open(folder).unwrap().sync_all().unwrap();
}

/// Numbers, a line each, every one synced before the next; those that were acknowledged, once something failed.
fn record(file: &Path, stop: &AtomicBool) -> BTreeSet<u64> {
    let mut acknowledged = BTreeSet::new();
    let Ok(mut log) = File::options().create(true).append(true).open(file) else { return acknowledged };
    for number in 0.. {
        if stop.load(Ordering::Relaxed)
            || log.write_all(format!("{number}\n").as_bytes()).is_err()
            || log.sync_all().is_err()
        {
            break;
        }
        acknowledged.insert(number);
    }
    acknowledged
}

pub async fn readers_over_nfs_finish_and_see_the_next_moment_and_a_promotion_loses_nothing() {
    run("modprobe", &["nfsv4"]);
    let mut pair = Pair::with("readable", 256 * MIB, Style::Readable, "ext4", &settings(true)).await;
    let seen = pair.sides[1].observe(pair.ids[1]).await;
    assert!(seen.role == Role::Secondary && seen.read_only && seen.exports.len() == 1, "{seen:?}");
    assert!(pair.holds(1, "first") && views(&pair, 1).len() == 1 && views(&pair, 0).is_empty());
    allow(&pair, 0, false).await;
    allow(&pair, 1, true).await;
    let (active, replica) = (mount_nfs(&pair, 0).await, mount_nfs(&pair, 1).await);
    assert!(File::create(replica.join("new")).is_err(), "a replica takes no writes");

    // A reader in the middle of a file that is replaced, and of one that is removed.
    let (old, new) = (vec![b'o'; 3 << 20], vec![b'n'; 4 << 20]);
    write(&active, "replaced", &old);
    write(&active, "removed", &old);
    renewed(&pair, 1).await;
    let mut read = [Vec::new(), Vec::new()];
    let mut open = Vec::new();
    until(&pair, 1, "what was renewed is not seen over NFS", || replica.join("removed").exists()).await;
    for (name, read) in ["replaced", "removed"].into_iter().zip(&mut read) {
        let mut file = File::open(replica.join(name)).unwrap();
        (&mut file).take(1 << 20).read_to_end(read).unwrap();
        open.push(file);
    }
    write(&active, "replaced", &new);
    fs::remove_file(active.join("removed")).unwrap();
    write(&active, "added", b"x");
    let before = there(&pair, 1);
    age(&pair, 1, 1.5);
    pair.up_to_date(1).await;
    assert_eq!(there(&pair, 1), before, "it was renewed below a reader");
    for (file, read) in open.iter_mut().zip(&mut read) {
        file.read_to_end(read).unwrap();
        assert!(*read == old, "a reader did not finish what it began: {} bytes", read.len());
    }
    drop(open);

    // The next moment, for those who look again, without mounting anew; and nothing is left of the last one.
    renewed(&pair, 1).await;
    until(&pair, 1, "the next moment is not seen over NFS", || {
        replica.join("added").exists()
            && !replica.join("removed").exists()
            && fs::read(replica.join("replaced")).is_ok_and(|now| now == new)
    })
    .await;
    until(&pair, 1, "the last moment is left", || views(&pair, 1).len() == 1).await;

    // A planned promotion under a writer.
    let stop = Arc::new(AtomicBool::new(false));
    let writer = {
        let (file, stop) = (active.join("records"), Arc::clone(&stop));
        std::thread::spawn(move || record(&file, &stop))
    };
    let log = pair.sides[0].folder(pair.ids[0]).join("records");
    until(&pair, 1, "nothing is recorded", || fs::read(&log).is_ok_and(|text| text.len() > 100)).await;
    pair.epoch = pair.epoch.next();
    pair.demote(0, Demotion::Secondary).await.unwrap();
    let info = pair.promote(1, Promotion::Planned { point: None }).await.unwrap().into_inner();
    assert_eq!(info.exports.len(), 1);
    stop.store(true, Ordering::Relaxed);
    let acknowledged = writer.join().unwrap();
    let kept = fs::read_to_string(pair.sides[1].folder(pair.ids[1]).join("records")).unwrap();
    let kept: BTreeSet<u64> = kept.lines().filter_map(|line| line.parse().ok()).collect();
    let lost: Vec<&u64> = acknowledged.difference(&kept).collect();
    assert!(acknowledged.len() > 20 && lost.is_empty(), "acknowledged and lost: {lost:?}");

    // Its readers are its writers now, where they are mounted; and the old one is read.
    allow(&pair, 1, false).await;
    until(&pair, 1, "a client of the replica does not come back", || {
        File::create(replica.join("written by a reader")).is_ok_and(|file| file.sync_all().is_ok())
    })
    .await;
    pair.disconnect().await;
    pair.connect(1).await.unwrap();
    pair.up_to_date(0).await;
    allow(&pair, 0, true).await;
    renewed(&pair, 0).await;
    assert!(pair.holds(0, "written by a reader") && pair.holds(0, "records"));
    until(&pair, 0, "the old one is not read where it was written", || active.join("records").exists()).await;
    until(&pair, 1, "snapshots of what is active are left", || views(&pair, 1).is_empty()).await;
    for folder in [active, replica] {
        run("umount", &["-f", "-l", folder.to_str().unwrap()]);
    }
    pair.epoch = pair.epoch.next();
    pair.leaves_nothing().await;
}

pub async fn who_reads_on_is_gone_past_and_holds_up_the_removal_alone() {
    run("modprobe", &["nfsv4"]);
    let mut pair = Pair::with("reads-on", 400 * MIB, Style::Readable, "xfs", &settings(true)).await;
    allow(&pair, 1, true).await;
    let replica = mount_nfs(&pair, 1).await;
    let new = vec![b'n'; 4 << 20];
    write(&pair.sides[0].folder(pair.ids[0]), "replaced", &new);
    renewed(&pair, 1).await;
    until(&pair, 1, "it is not seen over NFS", || {
        fs::read(replica.join("replaced")).is_ok_and(|now| now == new)
    })
    .await;

    // Over NFS: in the new moment.
    let mut endless = File::open(replica.join("replaced")).unwrap();
    renewed(&pair, 1).await;
    let mut all = Vec::new();
    endless.seek(SeekFrom::Start(0)).unwrap();
    endless.read_to_end(&mut all).unwrap();
    assert!(all == new);
    drop(endless);

    // A program on this host keeps what it reads, and holds up nothing but the removal.
    let mut local = File::open(pair.sides[1].folder(pair.ids[1]).join("replaced")).unwrap();
    renewed(&pair, 1).await;
    age(&pair, 1, 2.5);
    let held = pair.report(1).await;
    assert!(matches!(&held.health, Health::Degraded { reason } if reason.contains("fuser")), "{held:?}");
    assert_eq!(held.state, ReplicaState::InSync);

    pair.epoch = pair.epoch.next();
    pair.demote(0, Demotion::Secondary).await.unwrap();
    pair.promote(1, Promotion::Planned { point: None }).await.unwrap();
    let mut all = Vec::new();
    local.read_to_end(&mut all).unwrap();
    assert!(all == new, "what was read on this host was taken away");
    drop(local);
    until(&pair, 1, "snapshots of what is active are left", || views(&pair, 1).is_empty()).await;
    run("umount", &["-f", "-l", replica.to_str().unwrap()]);
    pair.leaves_nothing().await;
}

pub async fn looks_that_are_cut_leave_nothing_of_what_users_read() {
    for filesystem in ["ext4", "xfs"] {
        let pair = Pair::with("looks", 400 * MIB, Style::Readable, filesystem, &settings(false)).await;
        let mut seen = 0;
        for round in 0..40 {
            pair.write(0, &format!("round {round}"), 1);
            pair.up_to_date(1).await;
            age(&pair, 1, 2.5);
            let (instance, epoch) = (pair.ids[1], pair.epoch);
            let moment = 20 + round * 37 % 900;
            let _ = pair.sides[1].within(UpdateReplicaState { instance, epoch }, moment).await;
            // Whatever was cut, users read something whole.
            let report = pair.up_to_date(1).await;
            assert_eq!(report.health, Health::Ok, "round {round}");
            seen += u32::from(pair.holds(1, &format!("round {round}")));
            assert!(pair.holds(1, "first"), "round {round}: nothing is read");
            until(&pair, 1, "snapshots are left", || views(&pair, 1).len() == 1).await;
        }
        assert!(seen > 10, "{seen}");
        // What a kill leaves: a snapshot that nobody was shown, and an empty place.
        let origin = pair.sides[1].volume(pair.ids[1]);
        let free = (0..2).map(|slot| format!("tandem-{}.read{slot}", pair.ids[1]));
        let free = free.into_iter().find(|name| !views(&pair, 1).contains(name)).unwrap();
        run("lvcreate", &["-y", "-s", "-K", "-k", "y", "-n", &free, "--addtag", "tandem:1", &origin]);
        run("umount", &["-l", pair.sides[1].folder(pair.ids[1]).to_str().unwrap()]);
        until(&pair, 1, "nothing is shown again", || pair.holds(1, "first")).await;
        until(&pair, 1, "snapshots are left", || views(&pair, 1).len() == 1).await;
        pair.leaves_nothing().await;
    }
}

pub async fn a_replica_is_read_whole_while_it_catches_up_and_after_a_boot() {
    let mut pair = Pair::with("whole", 256 * MIB, Style::Readable, "ext4", &settings(false)).await;
    let before = there(&pair, 1);
    cut();
    pair.write(0, "meanwhile", 8);
    pair.until(1, "it does not see that it is cut off", |r| r.up_to_date == Some(false)).await;
    age(&pair, 1, 2.5);
    pair.report(1).await;
    assert_eq!(there(&pair, 1), before, "only what is up to date is shown anew");
    assert!(pair.holds(1, "first") && !pair.holds(1, "meanwhile"));
    mend();
    renewed(&pair, 1).await;
    assert!(pair.holds(1, "meanwhile"));

    boot(&mut pair, 1).await;
    let seen = pair.sides[1].observe(pair.ids[1]).await;
    assert!(seen.exports.is_empty() && there(&pair, 1).is_none());
    pair.report(1).await;
    assert!(there(&pair, 1).is_none(), "it is shown before its epoch was confirmed");
    assert!(pair.sides[1].ensure(pair.ids[1]).await.unwrap().is_changed());
    until(&pair, 1, "nothing is shown after a boot", || pair.holds(1, "meanwhile")).await;
    pair.up_to_date(1).await;
    until(&pair, 1, "snapshots are left", || views(&pair, 1).len() == 1).await;
    pair.switch(1).await;
    assert!(views(&pair, 1).is_empty());
    until(&pair, 0, "the old one is not read", || pair.holds(0, "meanwhile")).await;
    pair.leaves_nothing().await;
}
