//! Two storage hosts with LVM whose shares DRBD replicates over a cable of its own: promoted under a writer, cut off and
//! healed, written to on both sides, promoted by force while the other side goes on, struck at each step, moved.
//!
//! `TANDEM_LONG=1` (`cargo xtask testbed --long`) does it in every style and protocol, and strikes at every moment (of which
//! `TANDEM_PART=2/8` takes the second eighth); `TANDEM_SEED` repeats a run.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a panic is a failed test with its reason"
)]

mod moving;
mod parted;
mod power;
mod struck;
mod writable;

use std::collections::BTreeSet;

use serde_json::Value;
use tandem_guests::{Host, Link};
use tandem_testbed::api::word;
use tandem_testbed::chance::{dice, long};
use tandem_testbed::kill::storm::Dice;
use tandem_testbed::site::drbd::Side;
use tandem_testbed::site::users::{ADDRESS, Writer};
use tandem_testbed::site::{Exports, POOLS, Site, audit};
use tandem_testbed::wait;

const GIB: u64 = 1 << 30;
/// MiB of the file in which blocks are overwritten here and there.
const FILE: u32 = 32;
/// Of the bitmap: so much is carried for one bit.
const BLOCK: u64 = 4;

/// A style, and the protocol of DRBD.
type Way = (&'static str, &'static str);
const WAYS: [Way; 3] = [("dr", "C"), ("dr", "A"), ("readable", "C")];

/// A share on the server's machine, and a replica in sync on the other.
fn pair(site: &Site, (style, protocol): Way) -> String {
    let share = site.share_with(style, 1, &[("lvm:protocol", protocol)]);
    site.allow(&share, ADDRESS, "rw");
    site.fill(&site.api.only_replica(&share, "active"), "first", 8);
    let replica = site.api.create_replica(&share, POOLS[1].1).unwrap();
    assert_eq!(site.api.in_sync(&share), [replica.as_str()]);
    site.api.settle();
    share
}

/// The row of a replica.
fn row(site: &Site, replica: &str) -> Value {
    let rows = site.api.replicas().unwrap();
    rows.into_iter().find(|row| row["id"] == replica).unwrap_or_else(|| panic!("no replica {replica}"))
}

/// Cuts DRBD's cable, and waits until both kernels know it.
fn cut(site: &Site, pair: [&str; 2]) {
    site.second_cable(Link::CUT);
    wait::until_else(|| {
        let sides = pair.map(|id| site.side(id));
        let knows = |side: &Side| side.word("connection") != "Connected";
        if sides.iter().all(knows) { Ok(()) } else { Err(format!("they are connected: {sides:?}")) }
    });
}

/// Overwrites blocks of 4 KiB here and there in a file, each on the disk before the next; how many.
fn scatter(site: &Site, active: &str, dice: &mut Dice) -> u64 {
    let blocks: BTreeSet<u64> = (0..40).map(|_| dice.below(u64::from(FILE) << 8)).collect();
    let script = "for block; do dd if=/dev/urandom of=scattered bs=4k count=1 seek=$block conv=notrunc,fsync \
                  status=none || exit 1; done";
    let seeks: Vec<String> = blocks.iter().map(u64::to_string).collect();
    let folder = site.path(active);
    let argv = ["sh", "-c", &format!("cd {folder} && {script}"), "sh"];
    let argv: Vec<&str> = argv.into_iter().chain(seeks.iter().map(String::as_str)).collect();
    site.guest_with(active).run(&argv).unwrap();
    blocks.len() as u64
}

/// There, and back where there is time, with a writer each time.
fn promotions_lose_nothing(site: &Site, share: &str) {
    for to in if long() { &[1, 0][..] } else { &[1] } {
        let (active, replica) = site.roles(share);
        let writer = Writer::start(site, &active, &format!("promoted to {}", POOLS[*to].0));
        site.api.act(&replica, "promote").unwrap();
        wait::until("the promotion", || {
            let now = row(site, &replica);
            (now["replica_state"] == "active").then_some(())
        });
        site.api.settle();
        assert_eq!(site.api.only_replica(share, "active"), replica);
        site.api.in_sync(share);
        writer.lost_nothing(site, &replica);
    }
}

/// Without DRBD's cable writers go on, it is counted what the replica lacks, and later nothing else is carried.
fn a_cut_costs_what_was_written_meanwhile(site: &Site, share: &str, dice: &mut Dice) {
    let (active, replica) = site.roles(share);
    site.fill(&active, "scattered", FILE);
    site.both_up_to_date(&active, &replica);
    let at_rest = site.side(&active).kib("written");
    let writer = Writer::start(site, &active, "cut off");
    cut(site, [&active, &replica]);
    let lag = || row(site, &replica)["lag_bytes"].as_u64();
    let first = wait::until("a lag", || lag().filter(|lag| *lag > 0));
    writer.goes_on(writer.acknowledged().len());
    let blocks = scatter(site, &active, dice);
    wait::until("the lag to count up", || lag().filter(|lag| *lag > first));
    let state = || row(site, &replica)["replica_state"].clone();
    wait::until("it to be out of sync", || (state() == "out_of_sync").then_some(()));

    // Nobody writes for a moment: it is known exactly.
    writer.pause(true);
    site.guest_with(&active).run(&["sync"]).unwrap();
    let lacks = wait::until_else(|| {
        let (before, told) = (site.side(&active).kib("out-of-sync"), lag());
        let now = site.side(&active).kib("out-of-sync");
        if before == now && told == Some(now << 10) {
            Ok(now)
        } else {
            Err(format!("{told:?}, not {now} KiB"))
        }
    });
    let written = site.side(&active).kib("written") - at_rest;
    println!("   {lacks} KiB differ after {written} KiB were written, {blocks} scattered blocks among them");
    assert!((blocks * BLOCK..=written).contains(&lacks), "{lacks} KiB differ, {written} were written");

    // It heals under load.
    let before = (site.side(&active).kib("sent"), site.side(&active).kib("written"));
    writer.pause(false);
    site.second_cable(Link::GOOD);
    site.api.in_sync(share);
    writer.goes_on(writer.acknowledged().len());
    site.both_up_to_date(&active, &replica);
    let sent = site.side(&active).kib("sent") - before.0;
    let meanwhile = site.side(&active).kib("written") - before.1;
    println!("   {sent} KiB were carried, {meanwhile} KiB of them written meanwhile");
    assert!(sent <= lacks + meanwhile, "{sent} KiB were carried for {lacks} and {meanwhile}");
    writer.lost_nothing(site, &active);
    site.sides_are_equal(&active, &replica);
}

/// Somebody makes the follower writable by hand while it is cut off: both sides have what the other lacks. What is told.
fn part(site: &Site, [active, replica]: [&str; 2], names: [&str; 2]) -> String {
    cut(site, [active, replica]);
    site.fill(active, names[0], 1);
    let guest = site.guest_with(replica);
    let minor = site.side(replica).word("minor").to_owned();
    let (device, file) = (format!("/dev/drbd{minor}"), format!("of=/mnt/by-hand/{}", names[1]));
    guest.run(&["drbdsetup", "primary", &minor, "--force"]).unwrap();
    guest.run(&["mkdir", "-p", "/mnt/by-hand"]).unwrap();
    guest.run(&["mount", &device, "/mnt/by-hand"]).unwrap();
    guest.run(&["dd", "if=/dev/urandom", &file, "bs=1M", "count=1", "conv=fsync"]).unwrap();
    guest.run(&["umount", "/mnt/by-hand"]).unwrap();
    guest.run(&["drbdsetup", "secondary", &minor]).unwrap();
    site.second_cable(Link::GOOD);
    told(site, replica)
}

/// Why a replica is in error.
fn told(site: &Site, replica: &str) -> String {
    wait::until_else(|| {
        let row = row(site, replica);
        if row["replica_state"] == "error" { Ok(word(&row["reason"])) } else { Err(format!("{row:#}")) }
    })
}

fn a_split_brain_is_told_and_resolved_by_whoever_is_asked(site: &Site, share: &str) {
    let (active, replica) = site.roles(share);
    let told = part(site, [&active, &replica], ["of this side", "of that side"]);
    println!("   {told}");
    let positions = [&active, &replica].map(|id| generation(site, id));
    assert!(positions.iter().all(|position| told.contains(position)), "{positions:?} are not in: {told}");

    // Neither looks, nor rounds of healing, nor a start of the server decide.
    site.kill();
    site.launch(&[]);
    site.api.settle();
    let still = || row(site, &replica)["replica_state"] == "error";
    wait::until("it to be in error", || still().then_some(()));
    assert_eq!([&active, &replica].map(|id| generation(site, id)), positions);
    assert_eq!(site.api.only_replica(share, "active"), active);

    let resync = site.api.resync(&replica);
    assert_eq!(resync["status"], "done", "{resync:#}");
    site.api.in_sync(share);
    if long() {
        site.sides_are_equal(&active, &replica);
    }
    let names = site.contents(&active);
    assert!(names.contains_key("./of this side") && !names.contains_key("./of that side"), "{names:?}");
}

/// The side that split off is kept, because an admin promotes it.
fn the_other_side_of_a_split_brain_is_kept_where_it_is_promoted(site: &Site, share: &str) {
    let (active, replica) = site.roles(share);
    part(site, [&active, &replica], ["given up", "kept"]);
    site.api.act(&replica, "promote").unwrap();
    wait::until("the promotion", || (row(site, &replica)["replica_state"] == "active").then_some(()));
    println!("   {}", told(site, &active));
    let resync = site.api.resync(&active);
    assert_eq!(resync["status"], "done", "{resync:#}");
    site.api.in_sync(share);
    site.is_served(&replica);
    site.sides_are_equal(&replica, &active);
    let names = site.contents(&replica);
    assert!(names.contains_key("./kept") && !names.contains_key("./given up"), "{names:?}");
}

/// The generation of a side's data, as its kernel says it.
fn generation(site: &Site, replica: &str) -> String {
    let minor = site.side(replica).word("minor").to_owned();
    let said = site.guest_with(replica).run(&["drbdsetup", "get-gi", &minor]).unwrap();
    let current = said.split(':').next().unwrap();
    // The lowest bit says that it is primary.
    format!("{:016X}", u64::from_str_radix(current, 16).unwrap() & !1)
}

/// The other host is gone past by force while it goes on serving.
fn a_host_that_was_gone_past_serves_nobody(site: &Site, share: &str) {
    let (far, near) = site.turn(share, 1);
    assert!(exported(site).contains(ADDRESS), "it is served while it is active");
    // The server does not reach it, and the two sides reach each other: nothing is gone past.
    site.cable(Link::CUT);
    site.far_is_away();
    site.api.act(&near, "promote").unwrap();
    site.api.settle();
    let refused = site.api.operations("kind=promote&limit=1").unwrap().remove(0);
    assert!(
        refused["status"] == "failed" && refused["error"].to_string().contains("serves its users"),
        "{refused:#}"
    );
    assert_eq!(site.api.only_replica(share, "active"), far);

    // Nor do the two sides: each goes on.
    cut(site, [&near, &far]);
    site.fill(&far, "only there", 1);
    site.api.act(&near, "promote").unwrap();
    wait::until("the forced promotion", || (row(site, &near)["replica_state"] == "active").then_some(()));
    site.api.settle();
    assert_eq!(row(site, &far)["unfenced"], true);
    site.fill(&near, "only here", 1);

    // Its power fails as well; it comes back, and stops as it hears the first word that changes anything.
    site.cut_far();
    site.cable(Link::GOOD);
    site.second_cable(Link::GOOD);
    site.boot_far_and_stop_at("demote_replica:start");
    site.far_stops();
    assert_eq!(serves(site), Default::default(), "nothing is served before it is fenced");
    site.far_goes_on();
    wait::until("the fence", || (row(site, &far)["fenced"] == true).then_some(()));
    site.api.settle();
    assert_eq!(serves(site), Default::default(), "nothing is served once it is fenced");
    println!("   {}", row(site, &far)["reason"]);
    assert_eq!(site.api.only_replica(share, "active"), near);

    site.api.act(&far, "resync").unwrap();
    site.api.in_sync(share);
    site.api.settle();
    site.sides_are_equal(&near, &far);
    let names = site.contents(&near);
    assert!(names.contains_key("./only here") && !names.contains_key("./only there"), "{names:?}");
}

/// What the other machine exports now.
fn exported(site: &Site) -> String {
    site.try_run(POOLS[1].0, &["exportfs", "-s"]).unwrap()
}

/// What the other machine serves: its exports, its mounts of shares, its resources.
fn serves(site: &Site) -> (String, String, String) {
    let far = site.far();
    let lines =
        |text: String, with: &str| text.lines().filter(|line| line.contains(with)).collect::<String>();
    let mounts = lines(far.run(&["cat", "/proc/self/mounts"]).unwrap(), "drbd");
    let primaries = lines(far.run(&["drbdsetup", "events2", "--now"]).unwrap(), "role:Primary suspended");
    (exported(site), mounts, primaries)
}

/// After a power cut of the active one, what lay in DRBD's activity log is carried again, and nothing else.
fn a_power_cut_costs_the_activity_log(site: &Site, share: &str) {
    let (far, near) = site.turn(share, 1);
    let writer = Writer::start(site, &far, "power");
    site.both_up_to_date(&near, &far);
    let said = site.log().len();
    site.cut_far();
    site.boot_far();
    site.api.backends_are_up();
    site.api.in_sync(share);
    site.both_up_to_date(&far, &near);
    site.is_served(&far);
    let sent = site.side(&far).kib("sent");
    let meanwhile = site.side(&far).kib("written");
    // What a driver says on another host stands in the server's log.
    let marked = marked_kib(&site.log()[said..]);
    println!(
        "   {sent} KiB were carried: {meanwhile} KiB were written since, {marked} KiB by the activity log"
    );
    assert!(
        sent <= marked + meanwhile,
        "{sent} KiB were carried, {marked} KiB marked, {meanwhile} KiB written"
    );
    assert!(marked < 1 << 20, "that is all of it");
    writer.lost_nothing(site, &far);
    site.sides_are_equal(&far, &near);
}

/// What the activity log marked as changed, in KiB, as `drbdmeta` says it.
fn marked_kib(log: &str) -> u64 {
    let said = log.split("Marked additional ").nth(1).unwrap_or_else(|| panic!("nothing was marked: {log}"));
    let mut words = said.split_whitespace();
    let (number, unit) = (words.next().unwrap().parse::<u64>().unwrap(), words.next().unwrap());
    match unit {
        "KB" => number,
        "MB" => number << 10,
        other => panic!("{number} {other} were marked"),
    }
}

/// Nobody looks for days: what the kernels say is told at once.
#[test]
fn a_link_that_is_cut_is_told_without_a_look() {
    let site = Site::start_on_lvm(Exports::None, GIB);
    let share = site.share_with("dr", 1, &[("replication:rpo_seconds", "864000")]);
    let active = site.api.only_replica(&share, "active");
    let replica = site.api.create_replica(&share, POOLS[1].1).unwrap();
    site.api.in_sync(&share);
    site.api.settle();
    cut(&site, [&active, &replica]);
    let state = || row(&site, &replica)["replica_state"].clone();
    wait::until("the cut to be told", || (state() == "out_of_sync").then_some(()));
    site.second_cable(Link::GOOD);
    site.api.in_sync(&share);
    audit::at_rest(&site);
    audit::removed(&site);
}

#[test]
fn two_hosts_with_drbd_between_them_lose_nothing_and_decide_nothing() {
    let mut dice = dice();
    let site = Site::start_on_lvm(Exports::Nfs, 3 * GIB);
    for way in if long() { &WAYS[..] } else { &WAYS[..1] } {
        println!("-- {way:?}");
        let share = pair(&site, *way);
        promotions_lose_nothing(&site, &share);
        a_cut_costs_what_was_written_meanwhile(&site, &share, &mut dice);
        a_split_brain_is_told_and_resolved_by_whoever_is_asked(&site, &share);
        the_other_side_of_a_split_brain_is_kept_where_it_is_promoted(&site, &share);
        if long() {
            a_host_that_was_gone_past_serves_nobody(&site, &share);
            a_power_cut_costs_the_activity_log(&site, &share);
        } else {
            power::some_are_struck(&site, &share);
        }
        audit::at_rest(&site);
        audit::removed(&site);
    }
}

#[test]
fn a_power_cut_or_a_kill_at_any_step_of_a_pair_is_recovered_from_and_loses_nothing() {
    // What fits CI is among what the other test does.
    if !long() {
        return;
    }
    let site = Site::start_on_lvm(Exports::Nfs, 3 * GIB);
    let share = site.share_with("readable", 1, &[]);
    site.allow(&share, ADDRESS, "rw");
    site.fill(&site.api.only_replica(&share, "active"), "first", 8);
    power::all_are_struck(&site, &share);
    audit::removed(&site);
}
