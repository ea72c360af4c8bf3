//! Two storage hosts with kernels of their own: `tandemd` with a pool on one, `tandem-driver-host` with the other pool on the
//! other, mutual TLS over a cable that can be cut, and two power switches.
//!
//! `TANDEM_LONG=1` (`cargo xtask testbed --long`) cuts more often; `TANDEM_SEED` repeats a run.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a panic is a failed test with its reason"
)]

use serde_json::Value;
use tandem_guests::{Command, Guest, Host, Link, zfs};
use tandem_testbed::api::word;
use tandem_testbed::chance::{dice, long};
use tandem_testbed::site::{Exports, POOLS, Site, audit};
use tandem_testbed::wait;

const GIB: u64 = 1 << 30;
const MIB: u64 = 1 << 20;

/// A share with some files on the server's machine, and a replica in sync on the other.
fn pair(site: &Site) -> (String, String, String) {
    let share = site.share("readable");
    let active = site.api.only_replica(&share, "active");
    site.fill(&active, "first", 8);
    let replica = site.api.create_replica(&share, POOLS[1].1).unwrap();
    assert_eq!(site.api.in_sync(&share), [replica.as_str()]);
    site.api.settle();
    (share, active, replica)
}

/// The newest sync that carried anything.
fn carried(site: &Site, replica: &str) -> Value {
    let syncs = site.api.syncs(replica);
    let done = |op: &&Value| op["status"] == "done" && op["bytes"].as_u64() > Some(0);
    syncs.iter().find(done).cloned().unwrap_or_else(|| panic!("no sync carried anything: {syncs:#?}"))
}

/// What may have crossed the cable and be lost with the connection: a block of the relay at each end of it, what the pipes
/// at both ends hold, and the record that was half there.
const BUFFERS: u64 = 2 * (512 << 10) + 2 * MIB + (128 << 10);

#[test]
fn a_cable_that_is_cut_anywhere_costs_no_more_than_what_lay_in_buffers() {
    let mut dice = dice();
    let site = Site::start_with_far(Exports::None, 3 * GIB);
    let (share, active, replica) = pair(&site);
    for cut in 0..if long() { 20 } else { 2 } {
        // Nothing compresses it, so that an increment carries no less.
        let content = 24 * MIB;
        site.fill(&active, "changing", 24);
        let offset = dice.below(content);
        site.cut_after(&site.guest, offset, || site.api.act(&replica, "resync").unwrap());
        site.far_is_away();
        site.cable(Link::GOOD);
        site.api.backends_are_up();
        site.api.in_sync(&share);
        site.api.settle();
        let rest = carried(&site, &replica)["bytes"].as_u64().unwrap();
        // Of a frame's 1514 bytes at most 1448 are the stream's.
        let twice = (offset * 1448 / 1514 + rest).saturating_sub(content);
        println!("cut {cut} after {offset} bytes: {rest} carried after it, {twice} of them again");
        assert!(twice <= BUFFERS, "cut after {offset} bytes, {rest} were carried after it: {twice} twice");
        assert!(rest < content || offset < BUFFERS, "{rest} is all of it again");
        audit::at_rest(&site);
    }

    // What lies on the other host, and is deleted while the pool is away there, or the host itself.
    let other = site.share_in(POOLS[1].1);
    for away in [Away::Pool, Away::Host] {
        println!("-- a share and a replica are deleted while they are away: {away:?}");
        let victim = if away == Away::Pool { Some(other.as_str()) } else { None };
        let replica = site.api.in_sync(&share).pop().unwrap();
        match away {
            Away::Pool => site.far().run(&["zpool", "export", "-f", POOLS[1].0]).map(drop).unwrap(),
            Away::Host => site.cut_far(),
        }
        site.api.delete_replica(&replica).unwrap();
        if let Some(share) = victim {
            site.api.delete_share(share).unwrap();
        }
        let waits = |kind: &str| {
            let ops = site.api.operations(&format!("kind={kind}&limit=1")).unwrap();
            let op = ops.first().cloned().unwrap_or_default();
            let why = op["progress"]["blocked_on"].as_str().map(str::to_owned);
            why.ok_or(format!("{op:#}"))
        };
        println!("   {}", wait::until_else(|| waits("delete_replica")));
        match away {
            Away::Pool => zfs::import_pool(&**site.far(), POOLS[1].0).unwrap(),
            Away::Host => site.boot_far(),
        }
        wait::until("the replica to be gone", || (site.api.replicas_of(&share).len() == 1).then_some(()));
        wait::until("the share to be gone", || (site.api.shares().unwrap().len() == 1).then_some(()));
        site.api.backends_are_up();
        audit::at_rest(&site);
        site.api.create_replica(&share, POOLS[1].1).unwrap();
        site.api.in_sync(&share);
    }
    audit::removed(&site);
}

/// What is away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Away {
    Pool,
    Host,
}

/// The kernel's names of a point of a replica, which is a snapshot there.
fn snapshot(site: &Site, pool: &str, replica: &str, point: &str) -> Option<String> {
    let list =
        ["zfs", "list", "-H", "-t", "snapshot", "-o", "name", "-r", &format!("{pool}/tandem/{replica}")];
    let listing = site.try_run(pool, &list)?;
    listing.lines().find(|name| name.ends_with(&format!("@tandem-{point}"))).map(str::to_owned)
}

/// Destroys every snapshot and bookmark of the instances on a pool, as an admin can.
fn destroy_points(site: &Site, pool: &str) {
    let guest = &**site.guest_of(pool);
    let list =
        ["zfs", "list", "-H", "-t", "snapshot,bookmark", "-o", "name", "-r", &format!("{pool}/tandem")];
    for point in guest.run(&list).unwrap().lines() {
        if point.contains('@') {
            let holds = guest.run(&["zfs", "holds", "-H", point]).unwrap();
            for tag in holds.lines().filter_map(|line| line.split('\t').nth(1)) {
                guest.run(&["zfs", "release", tag, point]).unwrap();
            }
        }
        guest.run(&["zfs", "destroy", point]).unwrap();
    }
}

/// Promotes a replica while the host of the active one is away, and waits until it is the active one.
fn promote_by_force(site: &Site, share: &str, replica: &str) {
    site.api.act(replica, "promote").unwrap();
    wait::until("the forced promotion", || {
        let rows = site.api.replicas_of(share);
        rows.iter().any(|r| r["id"] == replica && r["replica_state"] == "active").then_some(())
    });
    site.api.settle();
}

/// The row of a replica.
fn row(site: &Site, replica: &str) -> Value {
    let rows = site.api.replicas().unwrap();
    rows.into_iter().find(|row| row["id"] == replica).unwrap_or_else(|| panic!("no replica {replica}"))
}

/// What the other machine exports now.
fn exported(site: &Site) -> String {
    site.try_run(POOLS[1].0, &["exportfs", "-s"]).unwrap()
}

/// What is mounted of the other machine's pool.
fn mounted(site: &Site) -> String {
    let mounts = site.far().run(&["cat", "/proc/self/mounts"]).unwrap();
    let pool = format!("{}/tandem/", POOLS[1].0);
    mounts.lines().filter(|line| line.starts_with(&pool)).collect::<Vec<_>>().join("\n")
}

#[test]
fn a_stale_host_is_fenced_before_it_serves_anything_and_follows_from_the_point_in_common() {
    let site = Site::start_with_far(Exports::Nfs, 3 * GIB);
    let (share, near, far) = pair(&site);
    site.allow(&share, "192.0.2.101", "rw");
    site.fill(&near, "large", 48);
    // Once with the point in common, once without it.
    for common in [true, false] {
        println!("-- with a point in common: {common}");
        site.api.in_sync(&share);
        site.api.act(&far, "promote").unwrap();
        site.api.settle();
        assert_eq!(site.api.only_replica(&share, "active"), far);
        site.api.in_sync(&share);
        assert!(exported(&site).contains("192.0.2.101"), "it is served while it is active");

        // Cut off, it goes on serving those on its side; what they write there is what a forced promotion gives up.
        site.cable(Link::CUT);
        site.far_is_away();
        let op = site.api.operations("kind=promote&limit=1").unwrap();
        site.fill(&far, "only there", 1);
        promote_by_force(&site, &share, &near);
        let forced = site.api.operations("kind=promote&limit=1").unwrap().remove(0);
        assert_ne!(forced["id"], op[0]["id"]);
        assert!(forced["remarks"].to_string().contains("forced"), "{forced:#}");
        assert_eq!(row(&site, &far)["unfenced"], true);
        site.fill(&near, "only here", 1);
        if !common {
            destroy_points(&site, POOLS[0].0);
        }

        // Its power fails as well; it comes back, and stops as it hears the first word that changes anything.
        // Its clock is wrong by then.
        site.cut_far();
        site.far().set_clock_offset(if common { 3600 } else { -3600 });
        site.cable(Link::GOOD);
        site.boot_far_and_stop_at("demote_replica:start");
        site.far_stops();
        assert_eq!(
            (exported(&site), mounted(&site)),
            Default::default(),
            "nothing is served before it is fenced"
        );
        site.far_goes_on();
        wait::until("the fence", || (row(&site, &far)["fenced"] == true).then_some(()));
        site.api.settle();
        assert_eq!(
            (exported(&site), mounted(&site)),
            Default::default(),
            "nothing is served once it is fenced"
        );
        assert_eq!(site.api.only_replica(&share, "active"), near);

        let before = site.api.syncs(&far).len();
        site.api.act(&far, "resync").unwrap();
        site.api.in_sync(&share);
        site.api.settle();
        let syncs = site.api.syncs(&far);
        // The first that was asked for; those of the schedule come after it.
        let op = &syncs[syncs.len() - before - 1];
        let (bytes, said) = (op["bytes"].as_u64().unwrap(), op["remarks"].to_string());
        println!("   it followed by {bytes} bytes: {said}");
        assert_eq!(op["status"], "done", "{op:#}");
        assert_eq!(bytes < 16 * MIB, common, "{op:#}");
        assert_eq!(said.contains("no point in common"), !common, "{op:#}");
        assert!(!site.contents(&near).contains_key("./only there"), "that was given up");
        site.guest.run(&["rm", &format!("{}/only here", site.path(&near))]).unwrap();
        audit::at_rest(&site);
    }
    audit::removed(&site);
}

#[test]
fn a_share_that_is_written_over_nfs_is_mirrored_as_it_was_at_one_point() {
    let site = Site::start_with_far(Exports::Nfs, 3 * GIB);
    let guest = &*site.guest;
    let share = site.share_of("readable", 2);
    let user = site.user_of(&share);
    let active = site.api.only_replica(&share, "active");
    site.mount(&user, &active, "/mnt/user");
    // Large files and many small ones.
    let (large, small) = if long() { (15, 2048) } else { (2, 256) };
    for n in 0..large {
        site.fill(&active, &format!("large-{n}"), 64);
    }
    let script = "mkdir small && cd small && head -c $1 /dev/urandom | split -a 4 -b 32k";
    let room = (small * 32 * 1024).to_string();
    let making = user.command(&["sh", "-c", &format!("cd /mnt/user && {script}"), "sh", &room]);
    assert_eq!(guest.output(&making).unwrap().status, 0);

    let script = "i=0; while :; do i=$((i+1)); dd if=/dev/urandom of=churn-$((i%8)) bs=64k count=$((i%20+1)) status=none; \
                  cp churn-$((i%8)) small/copy; mv small/copy small/copy-$((i%5)); done";
    let churn = user.command(&["sh", "-c", &format!("cd /mnt/user && {script}")]);
    let _churn = guest.spawn(&churn.deadline(std::time::Duration::MAX)).unwrap();
    let replica = site.api.create_replica(&share, POOLS[1].1).unwrap();
    site.api.in_sync(&share);
    // The point of the first transfer, and one of an increment.
    let mut seen = String::new();
    for _ in 0..2 {
        let (point, here, there) = wait::until("a point on both sides", || {
            let point = word(&row(&site, &replica)["last_point"]["id"]);
            let here = snapshot(&site, POOLS[0].0, &active, &point).filter(|_| point != seen)?;
            let there = snapshot(&site, POOLS[1].0, &replica, &point)?;
            // Held, they stay although newer points come meanwhile.
            let hold = |guest: &Guest, name: &str| guest.succeeds(&["zfs", "hold", "test", name]).unwrap();
            let first = hold(guest, &here);
            if first && hold(site.far(), &there) {
                return Some((point, here, there));
            }
            if first {
                guest.run(&["zfs", "release", "test", &here]).unwrap();
            }
            None
        });
        let sums = [(guest, &here), (&**site.far(), &there)].map(|(guest, name)| {
            guest.run(&["mkdir", "-p", "/mnt/point"]).unwrap();
            guest.run(&["mount", "-t", "zfs", "-o", "ro", name, "/mnt/point"]).unwrap();
            let find = Command::new(&["find", ".", "-type", "f", "-exec", "sha256sum", "{}", "+"]);
            let output = guest.output(&find.dir("/mnt/point")).unwrap();
            assert_eq!(output.status, 0, "{}", output.stderr_text());
            guest.run(&["umount", "/mnt/point"]).unwrap();
            guest.run(&["zfs", "release", "test", name]).unwrap();
            let mut lines: Vec<String> = output.stdout_text().lines().map(str::to_owned).collect();
            lines.sort();
            lines
        });
        assert!(sums[0].len() > small + large, "{} files", sums[0].len());
        assert!(sums[0] == sums[1], "point {point} differs");
        println!("{} files of point {point} are the same on both hosts", sums[0].len());
        seen = point;
        site.api.act(&replica, "resync").unwrap();
    }
    let _ = guest.succeeds(&["pkill", "-KILL", "-f", "of=churn"]).unwrap();
    guest.run(&["umount", "-f", "-l", "/mnt/user"]).unwrap();
    audit::at_rest(&site);
    audit::removed(&site);
}
