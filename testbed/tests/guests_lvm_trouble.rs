//! Trouble below DRBD, as an operator and users meet it: a thin pool that runs full, a disk that fails, and kills amid what is
//! done for those who read a replica. One guest with two groups that replicate with each other, and its server.
//!
//! `TANDEM_LONG=1` runs all of it; `TANDEM_SEED` repeats the moments of the kills.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a panic is a failed test with its reason"
)]

use std::time::Duration;

use serde_json::Value;
use tandem_guests::{Behaviour, Command, Host};
use tandem_testbed::api::word;
use tandem_testbed::chance::{dice, long};
use tandem_testbed::house::{Group, House};
use tandem_testbed::wait;

const GIB: u64 = 1 << 30;
/// What of a share is written in one go, MiB.
const MUCH: u32 = 200;

fn group(name: &'static str, zone: &'static str, number: u32, more: &str) -> Group {
    let mut group = Group::with_drbd(name, zone, 6 * GIB, number);
    group.settings.push_str(more);
    group
}

/// A house with a share in `zone-a` and a replica in `zone-b`, in sync; the ids of share, active one and replica.
fn pair(house: &House, style: &str) -> (String, String, String) {
    house.launch();
    let kind = house.api.create_type(style, style, &[("replication:rpo_seconds", "4")]).unwrap();
    let share = house.api.create_share(&kind, "zone-a").unwrap();
    house.api.settle();
    let active = house.api.only_replica(&share, "active");
    let replica = house.api.create_replica(&share, "zone-b").unwrap();
    house.api.in_sync(&share);
    (share, active, replica)
}

fn row(house: &House, replica: &str) -> Value {
    let rows = house.api.replicas().unwrap();
    rows.into_iter().find(|row| row["id"] == replica).unwrap()
}

/// Waits until a replica is in error, for a reason with this word.
fn in_error(house: &House, replica: &str, reason: &str) -> String {
    wait::until_else(|| {
        let row = row(house, replica);
        let said = row["reason"].as_str().unwrap_or_default();
        if row["replica_state"] == "error" && said.contains(reason) {
            Ok(said.to_owned())
        } else {
            Err(format!("{row:#}"))
        }
    })
}

/// Writes a file, all of it on the disks; its checksum.
fn written(house: &House, active: &str, name: &str, mebibytes: u32) -> String {
    let file = format!("{}/{name}", house.path(active));
    let (into, count) = (format!("of={file}"), format!("count={mebibytes}"));
    let dd = ["dd", "if=/dev/urandom", &into, "bs=1M", &count, "oflag=dsync", "status=none"];
    let output = house.guest.output(&Command::new(&dd).deadline(wait::LONG)).unwrap();
    assert_eq!(output.status, 0, "users of the active one are disturbed: {}", output.stderr_text());
    sum(house, &file)
}

fn sum(house: &House, file: &str) -> String {
    let said = house.guest.run(&["sha256sum", file]).unwrap();
    said.split_whitespace().next().unwrap().to_owned()
}

/// A planned promotion: the other one serves, and holds this.
fn taken_over(house: &House, share: &str, replica: &str, files: &[(&str, &str)]) {
    house.api.in_sync(share);
    house.api.settle();
    house.api.act(replica, "promote").unwrap();
    wait::until("the promotion", || (row(house, replica)["replica_state"] == "active").then_some(()));
    house.api.settle();
    for (name, content) in files {
        assert_eq!(sum(house, &format!("{}/{name}", house.path(replica))), *content, "{name}");
    }
    house.api.in_sync(share);
}

/// Every share is removed, and nothing of any is left in the groups, in the kernel or in mounts.
fn nothing_is_left(house: &House) {
    house.api.settle();
    for share in house.api.shares().unwrap() {
        let share = word(&share["id"]);
        for row in house.api.replicas_of(&share) {
            if row["replica_state"] != "active" {
                house.api.delete_replica(&word(&row["id"])).unwrap();
            }
        }
        wait::until("the replica to be gone", || (house.api.replicas_of(&share).len() == 1).then_some(()));
        house.api.delete_share(&share).unwrap();
    }
    wait::until("the shares to be gone", || house.api.shares().unwrap().is_empty().then_some(()));
    house.api.settle();
    assert!(house.api.doctor().unwrap().is_empty());
    for (what, said) in [
        ("volumes", house.lvm(&["lvs", "--noheadings", "-o", "lv_name"])),
        ("resources", house.guest.run(&["drbdsetup", "events2", "--now"]).unwrap()),
        ("devices", house.guest.run(&["dmsetup", "ls"]).unwrap()),
        ("mounts", house.guest.run(&["cat", "/proc/self/mountinfo"]).unwrap()),
    ] {
        assert!(!said.contains("tandem-"), "{what} are left: {said}");
    }
}

#[test]
fn a_pool_that_fills_below_a_replica_is_told_and_heals_by_itself() {
    let house = House::build(
        1536,
        &[group("alpha", "zone-a", 0, ""), group("beta", "zone-b", 1, ", thin_pool = \"small\"")],
    );
    house.lvm(&["lvremove", "-y", "vg_beta/pool"]);
    house.lvm(&["lvcreate", "-y", "--type", "thin-pool", "-L", "160m", "-n", "small", "vg_beta"]);
    // So long the kernel waits for room, and writers with it; a minute by default.
    let patience = "echo 3 > /sys/module/dm_thin_pool/parameters/no_space_timeout";
    house.guest.run(&["sh", "-c", patience]).unwrap();
    let (share, active, replica) = pair(&house, "dr");
    let first = written(&house, &active, "first", 4);
    let much = written(&house, &active, "much", MUCH);
    let reason = in_error(&house, &replica, "lvextend");
    assert!(reason.contains("vg_beta/small"), "{reason}");
    assert_eq!(house.api.share(&share).unwrap()["status"], "available");
    wait::until("the pool to warn", || {
        let pools = house.api.get("v1/backends").unwrap().to_string();
        pools.contains("thin pool `vg_beta/small` is full").then_some(())
    });

    house.lvm(&["lvextend", "-y", "-L", "+1g", "vg_beta/small"]);
    house.api.in_sync(&share);
    taken_over(&house, &share, &replica, &[("first", &first), ("much", &much)]);
    nothing_is_left(&house);
}

#[test]
fn a_disk_that_fails_is_told_and_heals_when_asked() {
    if !long() {
        return;
    }
    for broken in [1, 0] {
        let house = House::build(1536, &[group("alpha", "zone-a", 0, ""), group("beta", "zone-b", 1, "")]);
        let (share, active, replica) = pair(&house, "dr");
        let first = written(&house, &active, "first", 4);
        let name = ["alpha", "beta"][broken];
        house.guest.disk(name).unwrap().behave(&*house.guest, Behaviour::Broken).unwrap();
        let second = written(&house, &active, "second", 16);
        if broken == 1 {
            let reason = in_error(&house, &replica, "its disk failed");
            assert!(reason.contains("resync"), "{reason}");
        }
        assert_eq!(house.api.share(&share).unwrap()["status"], "available");
        assert_eq!(sum(&house, &format!("{}/first", house.path(&active))), first);

        // Another one in its place, with what the old one held. What a pool of thin volumes had to write meanwhile was lost: its
        // group is switched off and on again.
        house.guest.disk(name).unwrap().behave(&*house.guest, Behaviour::Good).unwrap();
        house.lvm(&["vgchange", "-an", &format!("vg_{name}")]);
        house.api.resync(&replica);
        house.api.in_sync(&share);
        let (first, second) = (first.as_str(), second.as_str());
        taken_over(&house, &share, &replica, &[("first", first), ("second", second)]);
        nothing_is_left(&house);
    }
}

#[test]
fn kills_amid_what_is_done_for_readers_leave_one_snapshot_shown() {
    if !long() {
        return;
    }
    let more = ", readable_seconds = 1 } ";
    let readable = |name, zone, number| {
        let mut group = group(name, zone, number, "");
        group.settings = group.settings.replace(" }", more);
        group
    };
    let house = House::build(1536, &[readable("alpha", "zone-a", 0), readable("beta", "zone-b", 1)]);
    let (share, active, replica) = pair(&house, "readable");
    let mut dice = dice();
    for round in 0..30 {
        println!("-- round {round}");
        let content = written(&house, &active, "newest", 1);
        std::thread::sleep(Duration::from_millis(dice.below(4_000)));
        if round % 3 == 2 {
            // LVM's worker alone; the server starts another.
            let _ = house.guest.succeeds(&["pkill", "-KILL", "-f", "tandem-lvm-worker"]).unwrap();
        } else {
            house.kill();
            house.launch();
        }
        house.api.in_sync(&share);
        let folder = format!("/srv/beta/{replica}");
        wait::until("the newest moment to be read", || {
            let file = format!("{folder}/newest");
            let said = house.guest.output(&Command::new(&["sha256sum", &file])).unwrap();
            said.stdout_text().starts_with(&content).then_some(())
        });
        wait::until_else(|| {
            let volumes = house.lvm(&["lvs", "--noheadings", "-o", "lv_name", "vg_beta"]);
            let views = volumes.matches(".read").count();
            let mounts = house.guest.run(&["cat", "/proc/self/mountinfo"]).unwrap();
            let mounts = mounts.lines().filter(|line| line.contains(&folder)).count();
            let suspended = house.guest.run(&["dmsetup", "info"]).unwrap().contains("SUSPENDED");
            // One more for the moment of the next renewal.
            if views <= 2 && mounts == 1 && !suspended {
                Ok(())
            } else {
                Err(format!("{views} snapshots, {mounts} mounts"))
            }
        });
    }
    wait::until("one snapshot", || {
        let volumes = house.lvm(&["lvs", "--noheadings", "-o", "lv_name", "vg_beta"]);
        (volumes.matches(".read").count() == 1).then_some(())
    });
    nothing_is_left(&house);
}
