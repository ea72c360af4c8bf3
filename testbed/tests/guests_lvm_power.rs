//! The power of a storage host with LVM is cut at each logged step of making, growing and removing a share, and at random
//! moments amid the driver's work, while another share is written to. Everything comes to rest by itself, nothing is left
//! behind, and what was acknowledged to the writer is kept.
//!
//! The host is a guest of one volume group, its server's state on another disk. `TANDEM_LONG=1` cuts at every step and more
//! often at random; `TANDEM_SEED` repeats the random moments.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a panic is a failed test with its reason"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use serde_json::json;
use tandem_guests::{Command, Host};
use tandem_testbed::api::{Answered, word};
use tandem_testbed::chance::{dice, long};
use tandem_testbed::house::{Group, House};
use tandem_testbed::kill::matrix::events;
use tandem_testbed::kill::storm::Dice;
use tandem_testbed::site::collect;
use tandem_testbed::wait;

const GROUP: &str = "vg_alpha";
const MOUNTS: &str = "/srv/alpha";
const GIB: u64 = 1 << 30;
const ZONE: &str = "zone-a";

/// What is asked for when the power goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Deed {
    Make,
    Grow,
    Remove,
}

const DEEDS: [Deed; 3] = [Deed::Make, Deed::Grow, Deed::Remove];

impl Deed {
    /// The word in the operation log.
    fn word(self) -> &'static str {
        match self {
            Self::Make => "create_share",
            Self::Grow => "resize",
            Self::Remove => "delete_share",
        }
    }
}

/// When the power goes.
#[derive(Clone, Debug)]
enum Moment {
    /// Once the server has killed itself at this event of the operation: before it is durable, or after.
    Event(usize, &'static str),
    /// So long after it was asked for.
    After(Duration),
}

/// The storage host, and the type of its shares.
struct Home {
    house: House,
    share_type: String,
}

impl std::ops::Deref for Home {
    type Target = House;

    fn deref(&self) -> &House {
        &self.house
    }
}

impl Home {
    fn build() -> Self {
        let group = Group { name: "alpha", zone: ZONE, bytes: 6 * GIB, settings: String::new() };
        let house = House::build(1536, &[group]);
        house.launch();
        let specs = json!({"driver_handles_share_servers": "False"});
        let body = json!({"share_type": {"name": "alone", "extra_specs": specs}});
        let share_type = word(&house.api.post("v2/types", &body).unwrap()["share_type"]["id"]);
        Self { house, share_type }
    }

    /// A share at rest, its id.
    fn share(&self) -> String {
        let share = self.make().unwrap();
        self.api.settle();
        assert_eq!(self.api.share(&share).unwrap()["status"], "available");
        share
    }

    fn make(&self) -> Answered<String> {
        self.api.create_share(&self.share_type, ZONE)
    }

    fn ask(&self, deed: Deed, share: &str) -> Answered<()> {
        match deed {
            Deed::Make => self.make().map(drop),
            Deed::Grow => {
                let body = json!({"extend": {"new_size": 2}});
                self.api.post(&format!("v2/shares/{share}/action"), &body).map(drop)
            }
            Deed::Remove => self.api.delete_share(share),
        }
    }

    /// Instances that the server knows, and their shares.
    fn known(&self) -> BTreeMap<String, String> {
        let known = self.api.get("v2/share_instances").unwrap();
        let all = known["share_instances"].as_array().cloned().unwrap_or_default();
        all.iter().map(|instance| (word(&instance["id"]), word(&instance["share_id"]))).collect()
    }

    /// Everything is at rest and lawful; volumes, mounts and devices are those of the instances, and each can be used.
    fn at_rest(&self) {
        self.api.settle();
        let findings = self.api.doctor().unwrap();
        assert!(findings.is_empty(), "the doctor finds {findings:#?}");
        for share in self.api.shares().unwrap() {
            assert_eq!(share["status"], "available", "{share:#}");
        }
        let wanted: BTreeSet<String> = self.known().into_keys().collect();
        let named = |text: &str, strip: &str| -> BTreeSet<String> {
            text.split_whitespace().filter_map(|name| name.strip_prefix(strip).map(str::to_owned)).collect()
        };
        let volumes = named(&self.lvm(&["lvs", "--noheadings", "-o", "lv_name", GROUP]), "tandem-");
        assert_eq!(volumes, wanted, "volumes are instances");
        wait::until_else(|| {
            let mounts = self.guest.run(&["findmnt", "-rn", "-o", "TARGET"]).unwrap();
            let mounted = named(&mounts, &format!("{MOUNTS}/"));
            if mounted == wanted { Ok(()) } else { Err(format!("{mounted:?} are mounted, not {wanted:?}")) }
        });
        let devices = named(&self.guest.run(&["dmsetup", "ls"]).unwrap(), "vg_alpha-tandem--");
        let devices: BTreeSet<String> = devices.iter().map(|name| name.replace("--", "-")).collect();
        assert_eq!(devices, wanted, "devices are instances");
        assert!(!self.guest.run(&["dmsetup", "info"]).unwrap().contains("SUSPENDED"));
        for instance in &wanted {
            let file = format!("{MOUNTS}/{instance}/used");
            self.guest
                .run(&["dd", "if=/dev/zero", &format!("of={file}"), "bs=64k", "count=1", "conv=fsync"])
                .unwrap();
            self.guest.run(&["rm", &file]).unwrap();
        }
    }

    /// The events that the newest operation of a kind logged.
    fn script(&self, deed: Deed) -> Vec<String> {
        let done = self.api.operations(&format!("kind={}&status=done&limit=1", deed.word())).unwrap();
        events(&self.api.operation(&word(&done[0]["id"])).unwrap())
    }

    /// What was acknowledged has come to be; what was not may have.
    fn judge(&self, deed: Deed, share: &str, acknowledged: bool) {
        let shares = self.api.shares().unwrap();
        let there = shares.iter().find(|row| row["id"] == share);
        match deed {
            Deed::Make => assert!(!acknowledged || shares.len() == 2, "an acknowledged share is gone"),
            Deed::Remove => assert!(!acknowledged || there.is_none(), "it is still there: {there:?}"),
            Deed::Grow => {
                let size = self.api.share(share).unwrap()["size"].as_u64().unwrap();
                assert!(size == 2 || (size == 1 && !acknowledged), "{size} GiB");
                let known = self.known();
                let (instance, _) = known.iter().find(|(_, of)| *of == share).unwrap();
                let room = self.room(instance);
                assert!((size * GIB * 9 / 10..size * GIB).contains(&room), "{room} bytes in {size} GiB");
            }
        }
    }

    /// Bytes that an instance's file system has room for.
    fn room(&self, instance: &str) -> u64 {
        let said = self.guest.run(&["stat", "-f", "-c", "%b %S", &format!("{MOUNTS}/{instance}")]).unwrap();
        let (blocks, size) = said.trim().split_once(' ').unwrap();
        blocks.parse::<u64>().unwrap() * size.parse::<u64>().unwrap()
    }

    fn remove_all_but(&self, instance: &str) {
        let kept = self.known().remove(instance).unwrap();
        for share in self.api.shares().unwrap().iter().map(|row| word(&row["id"])).filter(|id| *id != kept) {
            self.api.delete_share(&share).unwrap();
        }
        self.at_rest();
        assert_eq!(self.known().len(), 1);
    }
}

/// Someone who writes records to a share on the host, each on its disk before the next.
struct Writer {
    said: Arc<Mutex<String>>,
    listening: JoinHandle<()>,
}

impl Writer {
    fn start(home: &Home, file: &str) -> Self {
        let program = tandem_guests::forward::PROGRAM;
        let running = home.guest.spawn(&Command::new(&[program, "records", file])).unwrap();
        let said = Arc::<Mutex<String>>::default();
        let heard = Arc::clone(&said);
        let writer = Self { said, listening: std::thread::spawn(move || collect(&running, &heard)) };
        wait::until("some records", || (numbers(&writer.said.lock().unwrap()).len() > 20).then_some(()));
        writer
    }

    /// Its host has lost power; what it was promised must be there.
    fn lost_nothing(self, home: &Home, file: &str) {
        self.listening.join().unwrap();
        let promised = numbers(&self.said.lock().unwrap());
        let kept = home.guest.run(&["cat", file]).unwrap();
        let kept: BTreeSet<u64> = kept.lines().filter_map(|line| line.parse().ok()).collect();
        let lost: Vec<&u64> = promised.difference(&kept).collect();
        assert!(lost.is_empty(), "of {} acknowledged records these are lost: {lost:?}", promised.len());
        home.guest.run(&["rm", file]).unwrap();
    }
}

/// The numbers that a writer has said; one that was cut in the middle is not a line.
fn numbers(said: &str) -> BTreeSet<u64> {
    said.split_inclusive('\n').filter_map(|line| line.strip_suffix('\n')?.parse().ok()).collect()
}

/// The moments of a deed whose undisturbed log is `script`.
fn moments(deed: Deed, script: &[String], dice: &mut Dice) -> Vec<Moment> {
    let sides = |number: usize| ["before", "after"].map(|side| Moment::Event(number, side));
    let mut moments: Vec<Moment> = if long() {
        (1..=script.len()).flat_map(sides).collect()
    } else {
        // The driver has made it, and nobody knows.
        let made = script.iter().position(|event| event.starts_with("step_done create"));
        made.filter(|_| deed == Deed::Make)
            .map(|index| Moment::Event(index + 1, "before"))
            .into_iter()
            .collect()
    };
    let random = if long() { 12 } else { 1 };
    moments.extend((0..random).map(|_| Moment::After(Duration::from_millis(50 + dice.below(1500)))));
    moments
}

#[test]
fn a_power_cut_at_any_step_of_a_share_on_lvm_leaves_no_orphan_and_loses_nothing() {
    let home = Home::build();
    let mut dice = dice();
    home.share();
    let (used, _) = home.known().pop_first().unwrap();
    // Undisturbed: what each logs.
    let other = home.share();
    for deed in [Deed::Grow, Deed::Remove] {
        home.ask(deed, &other).unwrap();
        home.api.settle();
    }
    let scripts = DEEDS.map(|deed| (deed, home.script(deed)));
    let file = format!("{MOUNTS}/{used}/records");
    for (deed, script) in &scripts {
        for moment in moments(*deed, script, &mut dice) {
            let shown = match &moment {
                Moment::Event(number, side) => format!("{side} {}", script[number - 1]),
                Moment::After(time) => format!("{} ms after it was asked for", time.as_millis()),
            };
            println!("-- {}: {shown}", deed.word());
            let share = if *deed == Deed::Make { String::new() } else { home.share() };
            let writer = Writer::start(&home, &file);
            let acknowledged = match moment {
                Moment::Event(number, side) => {
                    home.kill();
                    home.spawn(&[("TANDEM_KILL_AT", &format!("{}:{number}:{side}", deed.word()))]);
                    wait::until("the server", || {
                        let up = || {
                            home.api.get("v1/status").ok().filter(|s| s["status"]["backends"]["down"] == 0)
                        };
                        (home.is_dead() || up().is_some()).then_some(())
                    });
                    let asked = home.ask(*deed, &share);
                    wait::until("the server to kill itself", || home.is_dead().then_some(()));
                    asked.is_ok()
                }
                Moment::After(time) => {
                    home.ask(*deed, &share).unwrap();
                    std::thread::sleep(time);
                    true
                }
            };
            home.lose_power();
            home.at_rest();
            writer.lost_nothing(&home, &file);
            home.judge(*deed, &share, acknowledged);
            home.remove_all_but(&used);
        }
    }
}
