//! Two hosts that write to one share lose each other: exactly one goes on, the other takes no write, goes down with its host,
//! and follows. No writer is told that something is kept which is not.
//!
//! The server, which decides, runs on the first host. Who wins is chosen by who can ask: a host that finds its secret readable
//! by others asks nobody.

use std::collections::BTreeSet;

use serde_json::json;
use tandem_guests::{Command, Host, Link};
use tandem_testbed::chance::long;
use tandem_testbed::site::drbd::Side;
use tandem_testbed::site::users::Writer;
use tandem_testbed::site::{Exports, POOLS, Site, audit};
use tandem_testbed::wait;

use super::writable::{all_active, joined};
use super::{GIB, row};

/// The hosts and their replicas: the server's own, and the other one.
type Sides<'a> = [&'a str; 2];

/// From now on a host that fences itself ends its kernel, so that it can be seen; it would start anew else.
fn ends_when_fenced(site: &Site) {
    for (pool, _) in POOLS {
        let method = "echo panic > /sys/kernel/config/cluster/tandem/fence_method";
        site.guest_of(pool).run(&["sh", "-c", method]).unwrap();
    }
}

/// Lets the host of a pool ask the server, or not.
fn may_ask(site: &Site, pool: usize, may: bool) {
    let name = POOLS[pool].0;
    let mode = if may { "600" } else { "644" };
    site.guest_of(name).run(&["chmod", mode, &format!("/var/lib/tandem/{name}.secret")]).unwrap();
}

/// What the kernel of a host says of its side; the server may be away.
fn kernel(site: &Site, sides: Sides<'_>, pool: usize) -> Side {
    site.side_on(POOLS[pool].0, sides[pool])
}

/// Waits until both kernels hold writes back.
fn both_are_held(site: &Site, sides: Sides<'_>) {
    wait::until_else(|| {
        let now = [0, 1].map(|pool| kernel(site, sides, pool));
        if now.iter().all(is_held) { Ok(()) } else { Err(format!("they are not held: {now:?}")) }
    });
}

fn is_held(side: &Side) -> bool {
    side.word("suspended") == "fencing"
}

/// Whether it was told that it goes on.
fn was_told(side: &Side) -> bool {
    side.word("peer-disk") == "Outdated" && side.word("suspended") == "no"
}

/// Waits until the side on a host was told that it goes on.
fn told(site: &Site, sides: Sides<'_>, pool: usize) {
    wait::until_else(|| {
        let now = kernel(site, sides, pool);
        if was_told(&now) { Ok(()) } else { Err(format!("it was not told: {now:?}")) }
    });
}

/// Waits until a host has ended its kernel.
fn goes_down(site: &Site, pool: usize) {
    let guest = site.guest_of(POOLS[pool].0);
    wait::until_else(|| match guest.output(&Command::new(&["true"])) {
        Err(_) => Ok(()),
        Ok(_) => Err(format!("it goes on:\n{}", guest.console())),
    });
}

/// Switches a host that is down on again.
fn comes_back(site: &Site, pool: usize) {
    if pool == 0 {
        site.cut_power();
        site.boot();
    } else {
        site.cut_far();
        site.boot_far();
        site.api.backends_are_up();
    }
}

/// Both are active again; what was acknowledged on either is on both.
fn nothing_is_lost(site: &Site, share: &str, sides: Sides<'_>, writers: [Writer; 2]) {
    all_active(site, share);
    let [near, far] = writers;
    // Each is read where the other one wrote it.
    near.lost_nothing(site, sides[1]);
    far.lost_nothing(site, sides[0]);
    assert_eq!(site.contents(sides[0]), site.contents(sides[1]));
    site.both_up_to_date(sides[0], sides[1]);
    audit::lawful(site);
}

fn writers(site: &Site, sides: Sides<'_>, what: &str) -> [Writer; 2] {
    ends_when_fenced(site);
    sides.map(|id| Writer::on_host(site, id, &format!("{what} {id}")))
}

/// The cable is cut below two writers, and one of the hosts asks first.
fn one_goes_on(site: &Site, share: &str, sides: Sides<'_>, winner: usize) {
    let loser = 1 - winner;
    let writers = writers(site, sides, "cut");
    let epoch = row(site, sides[winner])["epoch"].as_u64().unwrap();
    may_ask(site, loser, false);
    site.second_cable(Link::CUT);
    told(site, sides, winner);
    // It has not been told anything yet, and takes no write.
    wait::until("the loser to be held", || is_held(&kernel(site, sides, loser)).then_some(()));
    let promised: BTreeSet<u64> = writers[loser].acknowledged();
    may_ask(site, loser, true);
    if winner == 0 {
        // The server lives on.
        let lost = row(site, sides[loser]);
        assert_eq!(lost["replica_state"], "out_of_sync", "{lost:#}");
        assert!(lost["reason"].as_str().unwrap().contains("goes on at epoch"), "{lost:#}");
        assert_eq!(row(site, sides[winner])["replica_state"], "active");
    }
    goes_down(site, loser);
    assert_eq!(writers[loser].acknowledged(), promised, "who lost has promised nothing since");
    writers[winner].goes_on(writers[winner].acknowledged().len());
    if winner == 0 {
        let lag = || row(site, sides[loser])["lag_bytes"].as_u64();
        let first = wait::until("a lag", || lag().filter(|lag| *lag > 0));
        wait::until("the lag to count up", || lag().filter(|lag| *lag > first));
    }
    // The one whose host goes on counts.
    let (said, before) = (site.log().len(), kernel(site, sides, winner));
    site.second_cable(Link::GOOD);
    comes_back(site, loser);
    let already = writers[winner].acknowledged().len();
    writers[winner].goes_on(already);
    nothing_is_lost(site, share, sides, writers);
    let after = kernel(site, sides, winner);
    let more = |of: &str| after.kib(of) - before.kib(of);
    let log = site.log();
    let marked = log.get(said..).filter(|log| log.contains("Marked additional")).map_or(0, super::marked_kib);
    let lacked = before.kib("out-of-sync");
    println!(
        "   {} KiB were carried: {lacked} KiB differed, {} KiB were written since, {marked} KiB by the activity log",
        more("sent"),
        more("written")
    );
    assert!(lacked > 0 && more("sent") <= lacked + more("written") + marked);
    site.sides_are_verified(sides[winner], sides[loser]);
    assert!(row(site, sides[winner])["epoch"].as_u64().unwrap() > epoch);
}

/// The cable is cut below two writers while nobody can be asked, and both are held; what was acknowledged to each by then.
fn held_with_nobody_to_ask(site: &Site, sides: Sides<'_>, what: &str) -> ([Writer; 2], [BTreeSet<u64>; 2]) {
    let writers = writers(site, sides, what);
    site.kill();
    site.second_cable(Link::CUT);
    both_are_held(site, sides);
    let promised = [0, 1].map(|side| writers[side].acknowledged());
    (writers, promised)
}

/// Nobody can be asked while the cable is cut: both wait, and one goes on once somebody answers.
fn without_an_arbiter_both_wait(site: &Site, share: &str, sides: Sides<'_>) {
    let (writers, promised) = held_with_nobody_to_ask(site, sides, "nobody answers");
    site.spawn(&[]);
    // Which one it is they do not know themselves.
    let winner = wait::until("one to be told", || {
        [0, 1].into_iter().find(|pool| was_told(&kernel(site, sides, *pool)))
    });
    let loser = 1 - winner;
    assert_eq!(writers[loser].acknowledged(), promised[loser], "none is kept while nobody has decided");
    writers[winner].goes_on(promised[winner].len());
    println!("   {} goes on", POOLS[winner].0);
    goes_down(site, loser);
    assert_eq!(writers[loser].acknowledged(), promised[loser]);
    site.second_cable(Link::GOOD);
    comes_back(site, loser);
    nothing_is_lost(site, share, sides, writers);
}

/// Nobody answers for longer than `dead_seconds`: both hosts go down, having kept nothing that the other one lacks. They come
/// back, still without the cable, and one is served.
fn without_an_arbiter_for_long_both_go_down(site: &Site, share: &str, sides: Sides<'_>) {
    let (writers, promised) = held_with_nobody_to_ask(site, sides, "for long");
    for pool in 0..POOLS.len() {
        goes_down(site, pool);
        assert_eq!(writers[pool].acknowledged(), promised[pool], "none is kept while nobody has decided");
    }
    site.cut_power();
    site.switch_on();
    site.cut_far();
    site.boot_far();
    site.launch(&[]);
    let state = |pool: usize| row(site, sides[pool])["replica_state"].clone();
    let winner = wait::until_else(|| {
        let won = |pool: &usize| state(*pool) == "active" && state(1 - pool) == "out_of_sync";
        let found = (0..POOLS.len()).find(won);
        found.ok_or_else(|| format!("nobody has won: {:#?}", site.api.replicas_of(share)))
    });
    println!("   {} goes on", POOLS[winner].0);
    site.fill(sides[winner], "written alone", 1);
    site.second_cable(Link::GOOD);
    nothing_is_lost(site, share, sides, writers);
}

/// The link comes back before anybody has decided: both go on, and nobody has lost.
fn a_short_cut_is_nobodys_loss(site: &Site, share: &str, sides: Sides<'_>) {
    let writers = writers(site, sides, "short");
    for pool in 0..POOLS.len() {
        may_ask(site, pool, false);
    }
    site.second_cable(Link::CUT);
    both_are_held(site, sides);
    site.second_cable(Link::GOOD);
    for writer in &writers {
        writer.goes_on(writer.acknowledged().len());
    }
    for pool in 0..POOLS.len() {
        may_ask(site, pool, true);
    }
    nothing_is_lost(site, share, sides, writers);
}

/// The power of the other host fails.
fn a_power_cut_stops_the_other_one_for_a_moment(site: &Site, share: &str, sides: Sides<'_>) {
    let writers = writers(site, sides, "power");
    site.cut_far();
    let before = writers[0].acknowledged().len();
    told(site, sides, 0);
    writers[0].goes_on(before);
    site.boot_far();
    site.api.backends_are_up();
    nothing_is_lost(site, share, sides, writers);
}

#[test]
fn of_two_hosts_that_lose_each_other_one_goes_on() {
    let site = Site::start_writable(Exports::None, 3 * GIB);
    let share = site.share_with("writable", 1, &[]);
    let first = site.api.only_replica(&share, "active");
    site.fill(&first, "first", 8);
    let second = joined(&site, &share, &first);
    let sides = [first.as_str(), second.as_str()];
    println!("-- cut, the server's host goes on");
    one_goes_on(&site, &share, sides, 0);
    if long() {
        println!("-- cut, nobody answers");
        without_an_arbiter_both_wait(&site, &share, sides);
        println!("-- cut, nobody answers for long");
        without_an_arbiter_for_long_both_go_down(&site, &share, sides);
        println!("-- a short cut");
        a_short_cut_is_nobodys_loss(&site, &share, sides);
        println!("-- cut, the other host goes on");
        one_goes_on(&site, &share, sides, 1);
        println!("-- power");
        a_power_cut_stops_the_other_one_for_a_moment(&site, &share, sides);
    }
    let arbitrated = site.api.operations("kind=arbitrate&limit=100").unwrap();
    assert!(arbitrated.iter().all(|op| op["status"] == json!("done")), "{arbitrated:#?}");
    audit::removed(&site);
}
