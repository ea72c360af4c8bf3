//! The driver `zfs` in a guest, against `zfs send | zfs receive` and against `syncoid`: in one run, in turns, medians of the
//! ratios of each turn. Then what 200 shares at rest cost, and how long a planned promotion takes.
//!
//! The tools are timed in the guest, Tandem by the times in its own log, so that the way into the guest costs neither. In
//! Tandem's time are: its log, made durable at each step; the proof of what arrived; holds and a bookmark against the
//! loss of points; and their release.
//!
//! Words after `--` name the parts to run: `full`, `increments` (with `promotions`), `rests`; all where there is none.
// A benchmark prints its figures, and stops where it cannot go on.
#![allow(clippy::print_stdout, clippy::unwrap_used)]

use std::time::Duration;

use serde_json::Value;
use tandem_guests::Host;
use tandem_testbed::api::word;
use tandem_testbed::bench::process::{cpu_of, cpu_of_machine};
use tandem_testbed::bench::span::{Span, between, moment};
use tandem_testbed::bench::{Figures, begin, guest, seconds, turn};
use tandem_testbed::site::{Exports, POOLS, Site};
use tandem_testbed::wait;

/// Turns of all three.
const ROUNDS: usize = 7;
/// MiB that a full stream carries.
const FULL: u32 = 1024;
/// MiB of what the increments are made to, and of what changes before each.
const SMALL: (u32, u32) = (64, 1);
/// Shares at rest.
const SHARES: usize = 200;
/// How long they are watched; each is looked at twice a minute.
const WATCHED: Duration = Duration::from_secs(120);
/// Seconds without a look between two rounds.
const PAUSE: f64 = 5.0;
/// About how long a full stream takes.
const MOVES: Duration = Duration::from_secs(5);
const GIB: u64 = 1 << 30;

fn main() {
    let parts: Vec<String> = std::env::args().skip(1).filter(|word| !word.starts_with('-')).collect();
    let wants = |part: &str| parts.is_empty() || parts.iter().any(|word| word == part);
    let site = Site::start(Exports::None, 3 * GIB);
    // Nothing but what is asked for is synced.
    let never = [("replication:rpo_seconds", "864000")];
    let kind = site.api.create_type("only when asked", "readable", &never).unwrap();
    let quiet = Quiet { site: &site, kind };
    if wants("full") {
        // Each question is answered by the one processor that moves the bytes: nobody asks while they move.
        wait::every(MOVES);
        quiet.full();
    }
    if wants("increments") || wants("promotions") {
        wait::every(Duration::from_secs(1));
        quiet.increments();
        quiet.promotions();
    }
    if wants("rests") {
        wait::every(Duration::from_millis(25));
        rests(&site);
    }
}

/// Shares that are synced only when they are told to be.
struct Quiet<'a> {
    site: &'a Site,
    kind: String,
}

impl Quiet<'_> {
    /// A share of 2 GiB and its active instance.
    fn share(&self, mebibytes: u32) -> (String, String) {
        let share = self.site.api.create_share_of(&self.kind, POOLS[0].1, 2).unwrap();
        self.site.api.settle();
        let active = self.site.api.only_replica(&share, "active");
        self.site.fill(&active, "large", mebibytes);
        (share, active)
    }

    fn full(&self) {
        begin(&format!("a full copy of {FULL} MiB that nothing compresses, from one pool to another"));
        let site = self.site;
        let (share, active) = self.share(FULL);
        source(site, "alpha/syncoid", FULL);
        // The very blocks that Tandem sends: what the cache holds of them helps or hinders both.
        let dataset = site.guest.run(&["zfs", "list", "-H", "-o", "name", &site.path(&active)]).unwrap();
        let snapshot = format!("{}@raw", dataset.trim());
        site.guest.run(&["zfs", "snapshot", &snapshot]).unwrap();
        let (mut raws, mut streams) = (Figures::default(), Figures::default());
        let (mut syncoid, mut whole) = (Figures::default(), Figures::default());
        let mut tandem = || {
            rested(site);
            let replica = site.api.create_replica(&share, POOLS[1].1).unwrap();
            std::thread::sleep(MOVES);
            site.api.in_sync(&share);
            site.api.settle();
            let sync = Span::of(&last(site, "sync", &replica));
            let creation = Span::of(&last(site, "create_replica", &replica));
            let took = sync.step("transfer");
            whole.add(creation.all() + sync.all());
            site.api.delete_replica(&replica).unwrap();
            wait::until("the replica to be gone", || (site.api.replicas_of(&share).len() == 1).then_some(()));
            site.api.settle();
            took
        };
        let mut raw = || {
            rested(site);
            let took = timed(site, SEND, &[&snapshot, "beta/raw"]);
            destroyed(site, "beta/raw");
            took
        };
        for round in 0..ROUNDS {
            // Nobody finds a source that was not read.
            timed(site, READ, &[&snapshot]);
            let (by_hand, by_tandem) = turn(round, &mut raw, &mut tandem);
            raws.add(by_hand);
            streams.add(by_tandem);

            rested(site);
            syncoid.add(timed(site, SYNCOID, &["alpha/syncoid", "beta/syncoid"]));
            destroyed(site, "beta/syncoid");
        }
        let all = Three { raw: raws, tandem: streams, syncoid };
        all.print();
        println!("Tandem, from the request until all is over {whole}");
        println!("goal: at least 0.97 of the rate of raw; it is {:.2}", all.raw.over(&all.tandem));
        destroyed(site, &snapshot);
        site.api.delete_share(&share).unwrap();
        wait::until("the share to be gone", || site.api.shares().unwrap().is_empty().then_some(()));
        destroyed(site, "alpha/syncoid");
    }

    fn increments(&self) {
        begin(&format!("{} MiB of {} changed: an increment", SMALL.1, SMALL.0));
        let site = self.site;
        let (share, active) = self.share(SMALL.0);
        let replica = site.api.create_replica(&share, POOLS[1].1).unwrap();
        site.api.in_sync(&share);
        for name in ["raw", "syncoid"] {
            source(site, &format!("alpha/{name}"), SMALL.0);
        }
        site.guest.run(&["zfs", "snapshot", "alpha/raw@0"]).unwrap();
        timed(site, SEND, &["alpha/raw@0", "beta/raw"]);
        timed(site, SYNCOID, &["alpha/syncoid", "beta/syncoid"]);
        let mut all = Three::default();
        let mut arrival = Figures::default();
        let path = site.path(&active);
        for round in 0..ROUNDS {
            change(site, "/alpha/raw");
            let numbers = [format!("alpha/raw@{round}"), format!("alpha/raw@{}", round + 1)];
            all.raw.add(timed(site, SNAPSHOT_AND_SEND, &[&numbers[0], &numbers[1], "beta/raw"]));

            change(site, &path);
            site.api.resync(&replica);
            site.api.settle();
            let sync = Span::of(&last(site, "sync", &replica));
            all.tandem.add(sync.all());
            arrival.add(sync.until_done("transfer"));

            change(site, "/alpha/syncoid");
            all.syncoid.add(timed(site, SYNCOID, &["alpha/syncoid", "beta/syncoid"]));
        }
        all.print();
        println!("Tandem, until the replica holds it         {arrival}");
        println!("goal: at most 50 ms more than raw; it is {:.0} ms", all.tandem.beyond(&all.raw) * 1e3);
        let newest = Span::of(&last(site, "sync", &replica));
        println!("the newest: {newest}");
        for name in ["alpha/raw", "beta/raw", "alpha/syncoid", "beta/syncoid"] {
            destroyed(site, name);
        }
    }

    fn promotions(&self) {
        begin(&format!("a planned promotion of a share in which {} MiB changed", SMALL.1));
        let site = self.site;
        let share = word(&site.api.shares().unwrap()[0]["id"]);
        let (mut all, mut held) = (Figures::default(), Figures::default());
        let mut newest = None;
        for _ in 0..ROUNDS {
            change(site, &site.path(&site.api.only_replica(&share, "active")));
            let replica = site.api.in_sync(&share).remove(0);
            site.api.act(&replica, "promote").unwrap();
            wait::until("the promotion", || {
                let rows = site.api.replicas_of(&share);
                let active = |row: &Value| row["id"] == replica.as_str() && row["replica_state"] == "active";
                rows.iter().any(active).then_some(())
            });
            site.api.settle();
            let span = Span::of(&last(site, "promote", &replica));
            all.add(span.all());
            held.add(span.from_to("quiesce", "promote"));
            newest = Some(span);
        }
        println!("from the request until all is over   {all}");
        println!("of that without a writable active    {held}");
        println!("the newest: {}", newest.unwrap());
        site.api.in_sync(&share);
    }
}

/// 200 shares with a replica each, to which nobody writes: each is looked at twice a minute.
fn rests(site: &Site) {
    begin(&format!("{SHARES} shares with one replica each, nothing changed"));
    let before = usage(site);
    std::thread::sleep(WATCHED);
    let idle = usage(site).since(&before);
    site.api.lift_quotas("admin").unwrap();
    let kind = site.api.create_type("every half minute", "readable", &[]).unwrap();
    for _ in 0..SHARES {
        let share = site.api.create_share(&kind, POOLS[0].1).unwrap();
        site.api.settle();
        site.api.create_replica(&share, POOLS[1].1).unwrap();
    }
    wait::until("the replicas to be in sync", || {
        let rows = site.api.replicas().unwrap();
        let in_sync = rows.iter().filter(|row| row["replica_state"] == "in_sync").count();
        (in_sync > SHARES).then_some(())
    });
    site.api.settle();
    // After a start all are due at once, and the first look at each is a longer one.
    site.kill();
    site.launch(&[("TANDEM_LOG", "warn,tandem_host=debug")]);
    std::thread::sleep(WATCHED / 8);
    let skipped = site.log().len();
    let before = usage(site);
    std::thread::sleep(WATCHED);
    let used = usage(site).since(&before);
    let looks = answers(&site.log()[skipped..], "update_replica_state");
    let mut walls = Figures::default();
    for round in looks.chunk_by(|a, b| between(*a, *b) < PAUSE) {
        walls.add(Duration::from_secs_f64(between(round[0], round[round.len() - 1])));
    }
    println!("{} looks in {} rounds", looks.len(), walls.count());
    println!("a round, from its first answer to its last   {walls}");
    let rounds = walls.count() as f64;
    let each = |used: Duration, idle: Duration| seconds(used.saturating_sub(idle).as_secs_f64() / rounds);
    println!("processor time of a round, in the server     {}", each(used.server, Duration::ZERO));
    println!("    in the whole guest, less the idle one's  {}", each(used.machine, idle.machine));
}

/// When the server's drivers answered a verb, by the server's own log.
fn answers(log: &str, verb: &str) -> Vec<f64> {
    let verb = format!("verb={verb} ");
    let lines = log.lines().filter(|line| line.contains(&verb) && line.contains("answered"));
    lines.filter_map(|line| moment(line.split_whitespace().next()?)).collect()
}

/// Processor time used so far.
#[derive(Clone, Copy, Debug)]
struct Usage {
    server: Duration,
    machine: Duration,
}

impl Usage {
    fn since(&self, before: &Self) -> Self {
        Self { server: self.server - before.server, machine: self.machine - before.machine }
    }
}

fn usage(site: &Site) -> Usage {
    let pid = site.guest.run(&["pgrep", "-x", "tandemd"]).unwrap();
    let server = cpu_of(&site.guest.run(&["cat", &format!("/proc/{}/stat", pid.trim())]).unwrap());
    Usage { server, machine: cpu_of_machine(&site.guest.run(&["cat", "/proc/stat"]).unwrap()) }
}

/// One turn of each.
#[derive(Default)]
struct Three {
    raw: Figures,
    tandem: Figures,
    syncoid: Figures,
}

impl Three {
    fn print(&self) {
        println!("raw      {}", self.raw);
        println!("Tandem   {}; {:.2} of the rate of raw", self.tandem, self.raw.over(&self.tandem));
        println!("syncoid  {}; Tandem is {:.2} times as fast", self.syncoid, self.syncoid.over(&self.tandem));
    }
}

// The arguments are $1, $2, …; the time that it took is printed.
const READ: &str = "zfs send -Lec \"$1\" > /dev/null";
const SEND: &str = "zfs send -Lec \"$1\" | zfs receive -u \"$2\"";
const SNAPSHOT_AND_SEND: &str =
    "zfs snapshot \"$2\" && zfs send -Lec -i \"$1\" \"$2\" | zfs receive -u \"$3\"";
const SYNCOID: &str = "syncoid --quiet --no-privilege-elevation \"$1\" \"$2\"";

fn timed(site: &Site, line: &str, arguments: &[&str]) -> Duration {
    guest::timed(&*site.guest, line, arguments)
}

/// A dataset with one file of so many MiB.
fn source(site: &Site, dataset: &str, mebibytes: u32) {
    site.guest.run(&["zfs", "create", dataset]).unwrap();
    let (into, count) = (format!("of=/{dataset}/large"), format!("count={mebibytes}"));
    site.guest.run(&["dd", "if=/dev/urandom", &into, "bs=1M", &count, "status=none"]).unwrap();
    site.guest.run(&["zpool", "sync"]).unwrap();
}

/// Writes the first MiB of a tree's large file anew.
fn change(site: &Site, root: &str) {
    let (into, count) = (format!("of={root}/large"), format!("count={}", SMALL.1));
    let dd = ["dd", "if=/dev/urandom", &into, "bs=1M", &count, "conv=notrunc", "status=none"];
    site.guest.run(&dd).unwrap();
    rested(site);
}

fn destroyed(site: &Site, dataset: &str) {
    site.guest.run(&["zfs", "destroy", "-r", dataset]).unwrap();
}

/// What came before must not slow the next.
fn rested(site: &Site) {
    for (pool, _) in POOLS {
        site.guest.run(&["zpool", "wait", "-t", "free", pool]).unwrap();
    }
    site.guest.run(&["zpool", "sync"]).unwrap();
    site.guest.run(&["sync"]).unwrap();
}

fn last(site: &Site, kind: &str, replica: &str) -> Value {
    guest::last(&site.api, kind, replica)
}
