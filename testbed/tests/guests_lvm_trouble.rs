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

use serde_json::{Value, json};
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

/// Puts a blank disk into the place of one that failed: its group and pool are made anew, and nothing of a share is there.
fn replace_by_a_blank_one(house: &House, name: &'static str) {
    let (guest, prefix) = (&*house.guest, format!("vg_{name}-"));
    // As the kernel has them while LVM cannot read the disk; those above others first.
    wait::until_else(|| {
        let listed = guest.run(&["dmsetup", "ls"]).unwrap();
        let left: Vec<&str> = listed.split_whitespace().filter(|word| word.starts_with(&prefix)).collect();
        for device in &left {
            let _ = guest.succeeds(&["dmsetup", "remove", device]).unwrap();
        }
        if left.is_empty() { Ok(()) } else { Err(format!("{left:?} are in use")) }
    });
    // No udev does that here.
    guest.run(&["rm", "-rf", &format!("/dev/vg_{name}")]).unwrap();
    let disk = guest.disk(name).unwrap();
    disk.behave(guest, Behaviour::Good).unwrap();
    let path = disk.path();
    let blank =
        ["dd", "if=/dev/zero", &format!("of={path}"), "bs=1M", "count=64", "conv=fsync", "status=none"];
    guest.run(&blank).unwrap();
    tandem_guests::lvm::create_group(guest, name, &path).unwrap();
    house.api.backends_are_up();
}

/// Makes a replica anew where one was lost, and follows how it is filled: what is told of it only grows.
fn anew(house: &House, share: &str, lost: &str, zone: &str) -> String {
    house.api.delete_replica(lost).unwrap();
    wait::until_else(|| {
        let rows = house.api.replicas_of(share);
        if rows.len() == 1 { Ok(()) } else { Err(format!("{rows:#?}")) }
    });
    let replica = house.api.create_replica(share, zone).unwrap();
    let mut told = Vec::new();
    wait::until("it to be filled", || {
        let sync = house.api.operations("kind=sync&limit=1").unwrap().pop()?;
        let progress = &sync["progress"];
        if sync["instance_id"] == replica.as_str() && progress["phase"] == "resync" {
            told.extend(Some((progress["done"].as_u64()?, progress["total"].as_u64()?)));
        }
        (row(house, &replica)["replica_state"] == "in_sync").then_some(())
    });
    let between: Vec<_> = told.iter().filter(|(done, total)| *done > 0 && done < total).collect();
    assert!(between.len() > 1 && told.is_sorted_by_key(|(done, _)| *done), "{told:?}");
    assert!(told.iter().all(|(_, total)| *total == GIB), "{told:?}");
    replica
}

#[test]
fn a_blank_disk_instead_of_one_that_failed_gets_its_replica_anew() {
    let slowly = |name, zone, number| {
        let mut group = group(name, zone, number, "");
        group.settings = group.settings.replace(" }", ", resync_mib = 64 }");
        group
    };
    let house = House::build(1536, &[slowly("alpha", "zone-a", 0), slowly("beta", "zone-b", 1)]);
    let (share, active, replica) = pair(&house, "dr");
    let first = written(&house, &active, "first", 4);
    let broken =
        |name: &str| house.guest.disk(name).unwrap().behave(&*house.guest, Behaviour::Broken).unwrap();

    // The replica's.
    broken("beta");
    let second = written(&house, &active, "second", 8);
    replace_by_a_blank_one(&house, "beta");
    println!("   {}", in_error(&house, &replica, ""));
    let replica = anew(&house, &share, &replica, "zone-b");

    // The active one's: its users go on with what the replica has, until that is promoted.
    broken("alpha");
    let third = written(&house, &active, "third", 8);
    wait::until_else(|| {
        let told = row(&house, &active)["degraded"].to_string();
        // LVM says nothing any more of a group whose one disk fails.
        let backends = house.api.get("v1/backends").unwrap().to_string();
        if told.contains("served from its peer")
            || backends.contains("Volume group \\\"vg_alpha\\\" not found")
        {
            println!("   {told}");
            return Ok(());
        }
        Err(backends)
    });
    replace_by_a_blank_one(&house, "alpha");
    assert_eq!(sum(&house, &format!("{}/third", house.path(&active))), third);
    // Nobody takes the last copy away by mistake.
    house.api.delete_replica(&replica).unwrap();
    let refused = wait::until("the removal to be refused", || {
        let row = row(&house, &replica);
        (row["status"] == "error_deleting").then(|| word(&row["reason"]))
    });
    assert!(refused.contains("promote it"), "{refused}");
    assert_eq!(sum(&house, &format!("{}/third", house.path(&active))), third);
    let action = format!("v2/share-replicas/{replica}/action");
    house.api.post(&action, &json!({"reset_status": {"status": "available"}})).unwrap();
    house.api.act(&replica, "promote").unwrap();
    wait::until_else(|| {
        let row = row(&house, &replica);
        if row["replica_state"] == "active" {
            Ok(())
        } else {
            Err(format!("{row:#}\n{:#?}", house.api.operations("kind=promote&limit=1")))
        }
    });
    house.api.settle();
    for (name, content) in [("first", &first), ("second", &second), ("third", &third)] {
        assert_eq!(sum(&house, &format!("{}/{name}", house.path(&replica))), *content, "{name}");
    }
    let again = anew(&house, &share, &active, "zone-a");
    taken_over(&house, &share, &again, &[("first", &first), ("second", &second), ("third", &third)]);
    grows(&house, &share, [("alpha", &again), ("beta", &replica)]);
    nothing_is_left(&house);
}

/// Both sides grow, and the file system with them.
fn grows(house: &House, share: &str, sides: [(&str, &str); 2]) {
    house.api.post(&format!("v2/shares/{share}/action"), &json!({"extend": {"new_size": 2}})).unwrap();
    wait::until("it to have grown", || {
        let share = house.api.share(share).unwrap();
        (share["status"] == "available" && share["size"] == 2).then_some(())
    });
    house.api.settle();
    for (name, id) in sides {
        let size = [
            "lvs",
            "--noheadings",
            "--nosuffix",
            "--units",
            "b",
            "-o",
            "lv_size",
            &format!("vg_{name}/tandem-{id}"),
        ];
        assert_eq!(house.lvm(&size).trim(), (2 * GIB).to_string());
    }
    let shown = house.guest.run(&["df", "-BM", "--output=size", &house.path(sides[0].1)]).unwrap();
    let shown = shown.lines().last().and_then(|line| line.trim().strip_suffix('M')?.parse::<u64>().ok());
    assert!(shown.is_some_and(|mib| mib > 1536), "{shown:?}");
    house.api.in_sync(share);
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
