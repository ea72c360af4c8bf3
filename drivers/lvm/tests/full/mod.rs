//! Thin pools that run full below DRBD, their data and their metadata, on either side and on both, with snapshots and without.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::json;
use tandem_sdk::Value;
use tandem_sdk::contract::*;

use crate::common::{Backend, failed, run, volumes};
use crate::{MIB, Pair, backend, kernel};

/// The small pool of a group.
const SMALL: &str = "small";
const SHARE: u64 = 400 * MIB;

/// What of a pool runs out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lacks {
    Data,
    Metadata,
}

impl Lacks {
    /// The size of a pool that 200 MiB fill in this way.
    const fn mib(self) -> u64 {
        match self {
            Self::Data => 120,
            Self::Metadata => 400,
        }
    }
}

/// A thin pool of so many MiB in the place of the usual one, whose writers wait so many seconds for room before they fail.
fn small_pool(group: &str, mib: u64, wait_seconds: u32) {
    run("lvremove", &["-y", &format!("{group}/pool")]);
    let size = format!("{mib}m");
    let words = ["-y", "--type", "thin-pool", "-L", &size, "--poolmetadatasize", "2m", "-n", SMALL, group];
    run("lvcreate", &words);
    fs::write("/sys/module/dm_thin_pool/parameters/no_space_timeout", wait_seconds.to_string()).unwrap();
}

fn grow(group: &str, lacks: Lacks) {
    let pool = format!("{group}/{SMALL}");
    match lacks {
        Lacks::Data => run("lvextend", &["-y", "-L", "+400m", &pool]),
        Lacks::Metadata => run("lvextend", &["-y", "--poolmetadatasize", "+8m", &pool]),
    };
}

/// Takes all room for metadata: each thin device, known to nobody but the pool, has a block of it.
fn eat_metadata(group: &str) {
    let pool = format!("{group}-{SMALL}-tpool");
    for number in 100_000..102_000 {
        let message = format!("create_thin {number}");
        let output = std::process::Command::new("dmsetup").args(["message", &pool, "0", &message]).output();
        if !output.unwrap().status.success() {
            return;
        }
    }
    panic!("the metadata of {pool} never ends");
}

async fn side(at: usize, test: &str, small: bool, more: Value) -> Backend {
    let mut more = more;
    if small {
        more["thin_pool"] = json!(SMALL);
    }
    backend(["alpha", "beta"][at], test, at, &more).await
}

/// Writes one MiB after another, each on the disks before the next, until so many are, or one fails; those that are.
fn fill(folder: &Path, name: &str, mib: usize) -> usize {
    let Ok(mut file) = File::create(folder.join(name)) else { return 0 };
    (0..mib).take_while(|n| file.write_all(&block(*n)).and_then(|()| file.sync_all()).is_ok()).count()
}

fn block(number: usize) -> Vec<u8> {
    vec![u8::try_from(number % 251).unwrap(); 1 << 20]
}

/// Every MiB that was acknowledged is there.
fn holds_all(folder: &Path, name: &str, mib: usize) {
    let found = fs::read(folder.join(name)).unwrap();
    assert!(found.len() >= mib << 20, "{} bytes of {mib} MiB", found.len());
    for (number, chunk) in found.chunks(1 << 20).take(mib).enumerate() {
        assert!(chunk == block(number), "MiB {number} of {name} is not what was acknowledged");
    }
}

fn states() -> String {
    let pools = run("lvs", &["-a", "-o", "lv_name,lv_attr,data_percent,metadata_percent,lv_health_status"]);
    format!("{}{pools}", kernel())
}

/// The disk of a side, by the kernel.
fn disk(pair: &Pair, side: usize) -> String {
    let name = format!("tandem-{}", pair.ids[side]);
    let text = run("drbdsetup", &["events2", "--now", &name]);
    let fields: BTreeMap<&str, &str> = text
        .lines()
        .filter(|line| line.starts_with("exists device"))
        .flat_map(|line| line.split_whitespace().filter_map(|word| word.split_once(':')))
        .collect();
    fields.get("disk").copied().unwrap_or_default().to_owned()
}

async fn until(what: &str, mut is_so: impl AsyncFnMut() -> bool) {
    let until = Instant::now() + Duration::from_secs(120);
    while !is_so().await {
        assert!(Instant::now() < until, "{what}: {}", states());
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

/// Removes the pair and its small pools.
async fn gone(pair: Pair, groups: &[&str]) {
    pair.leaves_nothing().await;
    for group in groups {
        run("lvremove", &["-y", &format!("{group}/{SMALL}")]);
        run("lvcreate", &["-y", "--type", "thin-pool", "-l", "90%FREE", "-n", "pool", group]);
    }
}

pub async fn a_pool_that_fills_below_a_follower_leaves_its_disk_until_there_is_room() {
    for lacks in [Lacks::Data, Lacks::Metadata] {
        small_pool("vg_beta", lacks.mib(), 1);
        let sides = [side(0, "follower", false, json!({})).await, side(1, "follower", true, json!({})).await];
        let mut pair = Pair::of(sides, SHARE, Style::Dr, "ext4").await;
        if lacks == Lacks::Metadata {
            eat_metadata("vg_beta");
        }
        // Users of the active one wait for a moment, and go on.
        let folder = pair.sides[0].folder(pair.ids[0]);
        assert_eq!(fill(&folder, "much", 200), 200, "{lacks:?}: {}", states());
        until("its disk is not left", async || disk(&pair, 1) == "Diskless").await;
        assert_eq!(pair.sides[0].observe(pair.ids[0]).await.health, Health::Ok);
        let report = pair.report(1).await;
        let Health::Failed { reason } = report.health else { panic!("{report:?}: {}", states()) };
        assert!(reason.contains("`vg_beta/small`") && reason.contains("lvextend"), "{lacks:?}: {reason}");
        assert_eq!(failed(&pair.sides[1].observe(pair.ids[1]).await.health), reason);
        let warning = pair.sides[1].pool().await.warning.unwrap();
        assert!(warning.contains("lvextend"), "{warning}");
        // It is not attached only to fail again.
        let refused = pair.resync(0).await.unwrap_err();
        assert!(refused.kind == ErrorKind::OutOfSpace && refused.message.contains("lvextend"), "{refused}");
        assert_eq!(disk(&pair, 1), "Diskless");

        grow("vg_beta", lacks);
        pair.up_to_date(1).await;
        assert_eq!(pair.report(1).await.health, Health::Ok, "{lacks:?}");
        pair.switch(1).await;
        holds_all(&pair.sides[1].folder(pair.ids[1]), "much", 200);
        gone(pair, &["vg_beta"]).await;
    }
}

pub async fn a_pool_that_fills_below_the_active_side_is_not_noticed_by_its_users() {
    for lacks in [Lacks::Data, Lacks::Metadata] {
        small_pool("vg_alpha", lacks.mib(), 1);
        let sides = [side(0, "active", true, json!({})).await, side(1, "active", false, json!({})).await];
        let mut pair = Pair::of(sides, SHARE, Style::Dr, "ext4").await;
        if lacks == Lacks::Metadata {
            eat_metadata("vg_alpha");
        }
        let folder = pair.sides[0].folder(pair.ids[0]);
        assert_eq!(fill(&folder, "much", 200), 200, "{lacks:?}: {}", states());
        until("its disk is not left", async || disk(&pair, 0) == "Diskless").await;
        let report = pair.report(0).await;
        let Health::Degraded { reason } = &report.health else { panic!("{report:?}") };
        assert!(
            reason.contains("served from its peer") && reason.contains("lvextend"),
            "{lacks:?}: {reason}"
        );
        pair.up_to_date(1).await;
        // What needs no disk of its own goes on: rules, a start of the server, a promotion away from here.
        for read_only in [true, false] {
            let access = AccessSpec { rules: Vec::new(), read_only };
            let call = UpdateAccess { instance: pair.ids[0], epoch: pair.epoch, access };
            pair.sides[0].call(call).await.unwrap();
        }
        pair.sides[0].ensure(pair.ids[0]).await.unwrap();
        assert_eq!(fill(&folder, "more", 1), 1);
        if lacks == Lacks::Data {
            pair.epoch = pair.epoch.next();
            pair.demote(0, Demotion::Secondary).await.unwrap();
            pair.promote(1, Promotion::Planned { point: None }).await.unwrap();
            holds_all(&pair.sides[1].folder(pair.ids[1]), "much", 200);
            pair.epoch = pair.epoch.next();
            pair.demote(1, Demotion::Secondary).await.unwrap();
            let refused = pair.promote(0, Promotion::Planned { point: None }).await.unwrap_err();
            assert_eq!(refused.kind, ErrorKind::Conflict, "{refused}");
            pair.promote(1, Promotion::Planned { point: None }).await.unwrap();
            pair.disconnect().await;
            grow("vg_alpha", lacks);
            pair.connect(1).await.unwrap();
            pair.up_to_date(0).await;
            pair.switch(0).await;
        } else {
            grow("vg_alpha", lacks);
        }
        pair.until(0, "its disk does not come back", |report| report.health == Health::Ok).await;
        pair.until(0, "it is not whole again", |report| report.up_to_date == Some(true)).await;
        holds_all(&folder, "much", 200);
        // What it holds is its own again.
        pair.up_to_date(1).await;
        pair.switch(1).await;
        pair.switch(0).await;
        holds_all(&pair.sides[0].folder(pair.ids[0]), "much", 200);
        gone(pair, &["vg_alpha"]).await;
    }
}

pub async fn pools_that_fill_below_both_sides_lose_nothing_that_was_acknowledged() {
    // Both at once; then the one and the other first.
    let long = std::env::var_os("TANDEM_LONG").is_some();
    let cases: &[(u64, u64, [usize; 2])] = if long {
        &[(120, 120, [0, 1]), (120, 160, [0, 1]), (160, 120, [0, 1]), (160, 120, [1, 0])]
    } else {
        &[(120, 160, [0, 1])]
    };
    for (alpha, beta, order) in cases {
        small_pool("vg_alpha", *alpha, 1);
        small_pool("vg_beta", *beta, 1);
        let sides = [side(0, "both", true, json!({})).await, side(1, "both", true, json!({})).await];
        let mut pair = Pair::of(sides, SHARE, Style::Dr, "ext4").await;
        let folder = pair.sides[0].folder(pair.ids[0]);
        let written = fill(&folder, "much", 300);
        assert!((60..300).contains(&written), "{written} MiB");
        until("a disk is not left", async || [0, 1].iter().all(|side| disk(&pair, *side) == "Diskless"))
            .await;
        for side in 0..2 {
            let Health::Failed { reason } = pair.report(side).await.health else { panic!("{}", states()) };
            assert!(reason.contains("lvextend"), "{reason}");
        }
        // Users get errors, and the file system stops.
        let lost = || File::create(folder.join("lost")).and_then(|file| file.sync_all());
        until("the file system goes on without its disks", async || lost().is_err()).await;
        for side in order {
            grow(["vg_alpha", "vg_beta"][*side], Lacks::Data);
            // The older disk waits for the newer one.
            for side in [0, 1, 0] {
                pair.report(side).await;
            }
        }
        until("the disks do not come back", async || {
            for side in [0, 1] {
                pair.report(side).await;
            }
            [0, 1].iter().all(|side| disk(&pair, *side) == "UpToDate")
        })
        .await;
        // Its file system has met an error: the manager ensures it, once it is called mended.
        let seen = pair.sides[0].observe(pair.ids[0]).await;
        assert!(
            matches!(&seen.health, Health::Degraded { reason } if reason.contains("anew")),
            "{:?} {}",
            seen.health,
            states()
        );
        pair.sides[0].ensure(pair.ids[0]).await.unwrap();
        assert_eq!(pair.sides[0].observe(pair.ids[0]).await.health, Health::Ok);
        holds_all(&folder, "much", written);
        assert_eq!(fill(&folder, "more", 8), 8);
        pair.up_to_date(1).await;
        pair.switch(1).await;
        let folder = pair.sides[1].folder(pair.ids[1]);
        holds_all(&folder, "much", written);
        holds_all(&folder, "more", 8);
        gone(pair, &["vg_alpha", "vg_beta"]).await;
    }
}

fn views(pair: &Pair) -> usize {
    let id = format!("tandem-{}.read", pair.ids[1]);
    volumes(&pair.sides[1].group).iter().filter(|name| name.starts_with(&id)).count()
}

async fn readable(test: &str, mib: u64, wait_seconds: u32) -> Pair {
    small_pool("vg_beta", mib, wait_seconds);
    let more = json!({"readable_seconds": 1, "warn_percent": 60, "refuse_percent": 80});
    let sides = [side(0, test, false, more.clone()).await, side(1, test, true, more).await];
    let mut pair = Pair::of(sides, SHARE, Style::Readable, "ext4").await;
    assert_eq!(fill(&pair.sides[0].folder(pair.ids[0]), "data", 80), 80);
    until("nothing is shown", async || {
        pair.report(1).await;
        pair.holds(1, "data")
    })
    .await;
    // From now on its age does not renew it.
    pair.sides[1].settings["drbd"]["readable_seconds"] = json!(100_000);
    pair.sides[1].again().await;
    pair
}

pub async fn what_users_read_is_given_up_before_the_pool_is_full() {
    let mut pair = readable("room", 200, 1).await;
    let folder = pair.sides[0].folder(pair.ids[0]);
    // It is written anew where it lies: with a snapshot 160 MiB are needed, which is too much, and 80 without.
    let mut given_up = false;
    for round in 1..4 {
        let mut file = File::options().write(true).open(folder.join("data")).unwrap();
        for number in 0..80 {
            file.write_all(&block(number + round)).and_then(|()| file.sync_all()).unwrap();
            if number % 8 == 7 {
                let report = pair.report(1).await;
                given_up |= matches!(&report.health, Health::Degraded { reason } if reason.contains("`vg_beta/small`"));
                assert_eq!(disk(&pair, 1), "UpToDate", "round {round}: {}", states());
            }
        }
    }
    assert!(given_up, "{}", states());
    assert!(views(&pair) <= 1, "{}", states());
    pair.up_to_date(1).await;
    grow("vg_beta", Lacks::Data);
    until("nothing is shown again", async || {
        pair.report(1).await;
        pair.holds(1, "data")
    })
    .await;
    pair.switch(1).await;
    gone(pair, &["vg_beta"]).await;
}

pub async fn a_snapshot_that_filled_the_pool_goes_before_a_write_fails() {
    let mut pair = readable("snapshot", 140, 60).await;
    let folder = pair.sides[0].folder(pair.ids[0]);
    // Nobody looks while all is written anew; writers wait for room, and a look makes it.
    let writer = std::thread::spawn(move || {
        let mut file = File::options().write(true).open(folder.join("data")).unwrap();
        (0..80).take_while(|n| file.write_all(&block(*n + 1)).and_then(|()| file.sync_all()).is_ok()).count()
    });
    until("the pool is not full", async || {
        run("lvs", &["--noheadings", "-o", "lv_health_status", "vg_beta/small"]).contains("out_of_data")
    })
    .await;
    assert!(!writer.is_finished());
    until("the writer does not go on", async || {
        pair.report(1).await;
        writer.is_finished()
    })
    .await;
    assert_eq!(writer.join().unwrap(), 80);
    assert_eq!(disk(&pair, 1), "UpToDate", "{}", states());
    pair.up_to_date(1).await;
    pair.switch(1).await;
    gone(pair, &["vg_beta"]).await;
}
