//! The driver `lvm` with DRBD in a guest, against raw `drbdsetup` on volumes of the same kind in the same thin pools, with the
//! same options: in one run, in turns, medians of the ratios of each turn.
//!
//! Both sides of each pair are in the one kernel of the guest, which has one processor. The resync is timed by the kernel's own
//! events for both; writes and raw commands in the guest; Tandem's operations by its own log, so that the way into the guest
//! costs neither.
//!
//! Words after `--` name the parts to run: `syncs`, `writes`, `promotions`, `creations`; all where there is none.
// A benchmark prints its figures, and stops where it cannot go on.
#![allow(clippy::print_stdout, clippy::unwrap_used)]

use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde_json::Value;
use tandem_guests::host::Event;
use tandem_guests::{Command, Host, Running};
use tandem_testbed::api::word;
use tandem_testbed::bench::span::{Span, between, moment};
use tandem_testbed::bench::{Figures, begin, guest, turn};
use tandem_testbed::house::{Group, House};
use tandem_testbed::wait;

/// Turns of both.
const ROUNDS: usize = 7;
/// MiB that an initial sync carries.
const FULL: u32 = 512;
/// What is written, each write on both disks before the next: its size, and how many.
const WRITES: [(&str, u32); 3] = [("4k", 4000), ("64k", 4000), ("1M", 768)];
/// Shares with replicas that are made, in so many turns.
const SHARES: usize = 50;
const TURNS: usize = 10;
const GIB: u64 = 1 << 30;
const ZONES: [&str; 2] = ["zone-a", "zone-b"];

fn main() {
    let parts: Vec<String> = std::env::args().skip(1).filter(|word| !word.starts_with('-')).collect();
    let wants = |part: &str| parts.is_empty() || parts.iter().any(|word| word == part);
    // Each question is answered by the one processor that does the work, and lists of all shares grow.
    wait::every(Duration::from_secs(1));
    let group = |name, at: usize| Group::with_drbd(name, ZONES[at], 16 * GIB, u32::try_from(at).unwrap());
    let house = House::build(2048, &[group("alpha", 0), group("beta", 1)]);
    house.launch();
    house.api.lift_quotas("admin").unwrap();
    // Nothing is looked at but what is asked for.
    let kind =
        house.api.create_type("only when asked", "dr", &[("replication:rpo_seconds", "864000")]).unwrap();
    let bench = Bench { house: &house, kind };
    if wants("syncs") {
        bench.initial_syncs();
    }
    if wants("writes") || wants("promotions") {
        bench.pair(wants("writes"), wants("promotions"));
    }
    if wants("creations") {
        bench.creations();
    }
}

struct Bench<'a> {
    house: &'a House,
    kind: String,
}

impl Bench<'_> {
    fn run(&self, line: &str, arguments: &[&str]) -> Duration {
        guest::timed(&*self.house.guest, line, arguments)
    }

    fn raw(&self, name: &str, line: &str, number: u32) -> Duration {
        let (number, script) = (number.to_string(), format!("{RAW}{line}"));
        self.run(&script, &[name, &number])
    }

    /// A share and its active instance.
    fn share(&self) -> (String, String) {
        let share = self.house.api.create_share(&self.kind, ZONES[0]).unwrap();
        self.house.api.settle();
        let active = self.house.api.only_replica(&share, "active");
        (share, active)
    }

    /// The replica of a share, up to date.
    fn replica(&self, share: &str) -> String {
        let replica = self.house.api.create_replica(share, ZONES[1]).unwrap();
        self.house.api.in_sync(share);
        self.house.api.settle();
        replica
    }

    fn removed(&self, share: &str) {
        for row in self.house.api.replicas_of(share) {
            if row["replica_state"] != "active" {
                self.house.api.delete_replica(&word(&row["id"])).unwrap();
            }
        }
        wait::until("the replica to be gone", || {
            (self.house.api.replicas_of(share).len() == 1).then_some(())
        });
        self.house.api.delete_share(share).unwrap();
        wait::until("the share to be gone", || {
            let shares = self.house.api.shares().unwrap();
            shares.iter().all(|row| row["id"] != share).then_some(())
        });
        self.house.api.settle();
    }

    fn filled(&self, folder: &str) {
        let (into, count) = (format!("of={folder}/large"), format!("count={FULL}"));
        let dd = ["dd", "if=/dev/urandom", &into, "bs=1M", &count, "conv=fsync", "status=none"];
        self.house.guest.run(&dd).unwrap();
        self.house.guest.run(&["sync"]).unwrap();
    }

    fn initial_syncs(&self) {
        begin(&format!("the initial sync of a share of 1 GiB that holds {FULL} MiB"));
        let events = Events::follow(self.house);
        let (mut raw, mut tandem, mut whole) = <(Figures, Figures, Figures)>::default();
        for round in 0..ROUNDS {
            let mut by_hand = || {
                self.raw("raw", MADE, 1);
                self.raw("raw", LEFT, 1);
                self.filled("/mnt/raw");
                self.raw("raw", JOINED, 1);
                raw.add(events.resync("raw-b"));
                self.raw("raw", GONE, 1);
            };
            let mut by_tandem = || {
                let (share, active) = self.share();
                self.filled(&self.house.path(&active));
                let replica = self.replica(&share);
                tandem.add(events.resync(&format!("tandem-{replica}")));
                let api = &self.house.api;
                let creation = Span::of(&guest::last(api, "create_replica", &replica));
                whole.add(creation.all() + Span::of(&guest::last(api, "sync", &replica)).all());
                self.removed(&share);
            };
            in_turn(round, &mut by_hand, &mut by_tandem);
        }
        compared(&raw, &tandem);
        println!("Tandem, from the request until all is over {whole}");
        println!("goal: at least 0.98 of the rate of raw; it is {:.3}", raw.over(&tandem));
    }

    /// A share with a replica, and a pair by hand.
    fn pair(&self, writes: bool, promotions: bool) {
        let (share, active) = self.share();
        self.replica(&share);
        self.raw("raw", MADE, 1);
        if writes {
            self.writes(&active);
        }
        if promotions {
            self.promotions(&share);
        }
        self.raw("raw", GONE, 1);
        self.removed(&share);
    }

    fn writes(&self, active: &str) {
        for (size, count) in WRITES {
            begin(&format!("{count} writes of {size}, each on both disks (protocol C) before the next"));
            let (mut raw, mut tandem) = <(Figures, Figures)>::default();
            let folders = ["/mnt/raw".to_owned(), self.house.path(active)];
            let count = count.to_string();
            for folder in &folders {
                self.run(WRITTEN, &[folder, size, &count]);
            }
            for round in 0..ROUNDS {
                let write = |folder: usize| self.run(WRITTEN, &[&folders[folder], size, &count]);
                let (by_hand, by_tandem) = turn(round, &mut || write(0), &mut || write(1));
                raw.add(by_hand);
                tandem.add(by_tandem);
            }
            compared(&raw, &tandem);
            println!("goal: at least 0.98 of the rate of raw; it is {:.3}", raw.over(&tandem));
        }
    }

    fn promotions(&self, share: &str) {
        begin("a planned promotion, against unmount, secondary, primary, check and mount by hand");
        let api = &self.house.api;
        let (mut raw, mut all, mut held) = <(Figures, Figures, Figures)>::default();
        let mut newest = None;
        for round in 0..ROUNDS {
            let by_hand = if round % 2 == 0 { THERE } else { BACK };
            raw.add(self.raw("raw", by_hand, 1));
            let replica = api.in_sync(share).remove(0);
            api.act(&replica, "promote").unwrap();
            wait::until("the promotion", || {
                let rows = api.replicas_of(share);
                let active = |row: &Value| row["id"] == replica.as_str() && row["replica_state"] == "active";
                rows.iter().any(active).then_some(())
            });
            api.settle();
            let span = Span::of(&guest::last(api, "promote", &replica));
            all.add(span.all());
            held.add(span.from_to("demote", "promote"));
            newest = Some(span);
        }
        if ROUNDS % 2 == 1 {
            self.raw("raw", BACK, 1);
        }
        println!("raw, during which nobody can write     {raw}");
        println!("Tandem, during which nobody can write  {held}; {:.2} times raw", held.over(&raw));
        println!("    from the request until all is over {all}; {:.2} times raw", all.over(&raw));
        println!("the newest: {}", newest.unwrap());
        api.in_sync(share);
    }

    fn creations(&self) {
        let each = SHARES / TURNS;
        begin(&format!("{SHARES} shares of 1 GiB with a replica each, {each} at once"));
        let (mut raw, mut tandem) = <(Figures, Figures)>::default();
        for turn in 0..TURNS {
            let first = 1 + u32::try_from(turn * each).unwrap();
            let mut by_hand = || {
                let numbers = first..first + u32::try_from(each).unwrap();
                raw.add(numbers.map(|number| self.raw(&format!("raw{number}"), MADE, number)).sum());
            };
            let mut by_tandem = || tandem.add(self.made(each));
            in_turn(turn, &mut by_hand, &mut by_tandem);
            println!("{:2} of {TURNS}: raw {raw}, Tandem {tandem}", turn + 1);
        }
        let rate = |figures: &Figures| each as f64 / figures.median();
        compared(&raw, &tandem);
        println!("raw {:.2} shares a second, Tandem {:.2}", rate(&raw), rate(&tandem));
    }

    /// Makes so many shares with replicas, asked for at once; from the first request until all are in sync.
    fn made(&self, count: usize) -> Duration {
        let api = &self.house.api;
        let before = api.replicas().unwrap().len();
        let begun = Instant::now();
        let mut waiting: Vec<String> =
            (0..count).map(|_| api.create_share(&self.kind, ZONES[0]).unwrap()).collect();
        wait::until("the shares to be made", || {
            let shares = api.shares().unwrap();
            let made = |id: &String| {
                shares.iter().any(|row| row["id"] == id.as_str() && row["status"] == "available")
            };
            let (made, rest): (Vec<String>, Vec<String>) = waiting.drain(..).partition(made);
            waiting = rest;
            for share in made {
                api.create_replica(&share, ZONES[1]).unwrap();
            }
            waiting.is_empty().then_some(())
        });
        wait::until("the replicas to be in sync", || {
            let rows = api.replicas().unwrap();
            let rests = |row: &Value| row["replica_state"] == "in_sync" || row["replica_state"] == "active";
            (rows.len() == before + 2 * count && rows.iter().all(rests)).then_some(())
        });
        let took = begun.elapsed();
        api.settle();
        took
    }
}

/// Which goes first changes from turn to turn.
fn in_turn(round: usize, by_hand: &mut dyn FnMut(), by_tandem: &mut dyn FnMut()) {
    if round.is_multiple_of(2) {
        by_hand();
        by_tandem();
    } else {
        by_tandem();
        by_hand();
    }
}

fn compared(raw: &Figures, tandem: &Figures) {
    println!("raw      {raw}");
    println!("Tandem   {tandem}; {:.3} of the rate of raw", raw.over(tandem));
}

/// The kernel's events of all resources, each with its time.
struct Events {
    said: Arc<Mutex<String>>,
    _listening: JoinHandle<()>,
}

impl Events {
    fn follow(house: &House) -> Self {
        let command =
            Command::new(&["drbdsetup", "events2", "--timestamps", "all"]).deadline(wait::LONG * 20);
        let running = house.guest.spawn(&command).unwrap();
        let said = Arc::<Mutex<String>>::default();
        let heard = Arc::clone(&said);
        Self { said, _listening: std::thread::spawn(move || hear(&running, &heard)) }
    }

    /// How long the newest resync of a resource took.
    fn resync(&self, resource: &str) -> Duration {
        let took = wait::until("the end of the resync to be told", || {
            let took = resync(&self.said.lock().unwrap(), resource)?;
            // The name is used again.
            self.said.lock().unwrap().clear();
            Some(took)
        });
        assert!(took > 0.0, "it took no time");
        Duration::from_secs_f64(took)
    }
}

fn hear(running: &Running, said: &Mutex<String>) {
    while let Ok(event) = running.next(wait::LONG * 20) {
        match event {
            Some(Event::Output(bytes)) => said.lock().unwrap().push_str(&String::from_utf8_lossy(&bytes)),
            Some(Event::Ended(_) | Event::Refused(_)) => break,
            _ => {}
        }
    }
}

/// Seconds between the beginning and the end of a resync: `2026-11-05T12:34:56.123456+00:00 change peer-device name:…`.
fn resync(events: &str, resource: &str) -> Option<f64> {
    let name = format!("name:{resource}");
    let of = |line: &str, word: &str| {
        line.split(' ').any(|w| w == name) && line.contains(&format!("replication:{word}"))
    };
    let at = |word: &str, after: usize| {
        events.lines().enumerate().skip(after).find(|(_, line)| of(line, word)).and_then(|(at, line)| {
            let clock = line.split(['+', ' ']).next()?;
            Some((at, moment(&format!("{clock}Z"))?))
        })
    };
    let (line, from) = at("SyncTarget", 0)?;
    let (_, to) = at("Established", line)?;
    Some(between(from, to))
}

/// `$1` is a name for volumes, resources and mount point, `$2` a number.
const RAW: &str = r#"
n=$1; a=$((400 + 2 * $2)); b=$((a + 1)); pa=$((7000 + a)); pb=$((7000 + b))
here=ipv4:127.0.1.1:$pa; there=ipv4:127.0.1.2:$pb
attached() {
  drbdmeta --force $3 v08 /dev/mapper/$1-${n}md flex-external create-md > /dev/null
  drbdsetup new-resource $2
  drbdsetup new-minor $2 $3 0
  drbdsetup attach $3 /dev/mapper/$1-$n /dev/mapper/$1-${n}md flexible --on-io-error=detach \
    --rs-discard-granularity=65536 --c-plan-ahead=0 --c-min-rate=10M --resync-rate=1024M
}
joined() {
  drbdsetup connect $n-a $here $there --protocol=C
  drbdsetup connect $n-b $there $here --protocol=C
  until [ "$(drbdsetup cstate $a)" = Connected ]; do sleep 0.02; done
}
"#;
const MADE: &str = r#"
for group in vg_alpha vg_beta; do
  lvcreate -qq -y --type thin -V 1g -n $n --thinpool pool $group > /dev/null
  lvcreate -qq -y --type thin -V 2052m -n ${n}md --thinpool pool $group > /dev/null
done
attached vg_alpha $n-a $a
attached vg_beta $n-b $b
joined
drbdsetup new-current-uuid --clear-bitmap $a
drbdsetup primary $a
mkfs.ext4 -q -F -m 0 -e remount-ro -E nodiscard,assume_storage_prezeroed=1 /dev/drbd$a
mkdir -p /mnt/$n
mount /dev/drbd$a /mnt/$n
"#;
const JOINED: &str = "joined";
const LEFT: &str = "drbdsetup disconnect $here $there; drbdsetup disconnect $there $here";
const GONE: &str = r#"
umount /mnt/$n
drbdsetup secondary $a
drbdsetup down $n-a
drbdsetup down $n-b
for group in vg_alpha vg_beta; do lvremove -qq -y $group/$n $group/${n}md > /dev/null; done
"#;
const THERE: &str = r#"
umount /mnt/$n
drbdsetup secondary $a
drbdsetup primary $b
e2fsck -p /dev/drbd$b > /dev/null
mount /dev/drbd$b /mnt/$n
"#;
const BACK: &str = r#"
umount /mnt/$n
drbdsetup secondary $b
drbdsetup primary $a
e2fsck -p /dev/drbd$a > /dev/null
mount /dev/drbd$a /mnt/$n
"#;
const WRITTEN: &str = "dd if=/dev/zero of=\"$1/written\" bs=$2 count=$3 oflag=dsync conv=notrunc status=none";
