//! The power of one of two storage hosts is cut at each step of a sync, of a promotion, of the making of a replica and of a
//! migration: of the source's and of the
//! destination's, of the one with `tandemd` and of the one without. Everything comes to rest by itself, and what was
//! acknowledged to a writer on NFS is kept.
//!
//! The moments are exact. The host with the server is cut once the server has killed itself at a logged event
//! (`TANDEM_KILL_AT`), the other once its driver host has stopped itself at the start or the end of a driver's call
//! (`TANDEM_STOP_AT`), or once the cable was cut in the midst of a stream. `TANDEM_LONG=1` takes them all.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a panic is a failed test with its reason"
)]

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::json;
use tandem_guests::host::Event;
use tandem_guests::{Host, Link, nfs};
use tandem_testbed::api::word;
use tandem_testbed::chance::long;
use tandem_testbed::kill::matrix::events;
use tandem_testbed::site::{Exports, POOLS, Site, audit};
use tandem_testbed::wait;

const GIB: u64 = 1 << 30;
const ADDRESS: &str = "192.0.2.101";

/// What is asked for when the power goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd)]
enum Deed {
    Sync,
    Promote,
    /// Of a share without replicas, on the other host.
    Create,
    /// Of a share without replicas, to the other host.
    Migrate,
}

impl Deed {
    fn word(self) -> &'static str {
        match self {
            Self::Sync => "sync",
            Self::Promote => "promote",
            Self::Create => "create_replica",
            Self::Migrate => "migrate",
        }
    }

    /// Asks for it; `on` is the replica, or the share that is to go to that pool. Whether it was taken.
    fn ask(self, site: &Site, on: &str, pool: usize) -> bool {
        match self {
            Self::Sync => site.api.act(on, "resync").is_ok(),
            Self::Promote => site.api.act(on, "promote").is_ok(),
            Self::Create => site.api.create_replica(on, POOLS[pool].1).is_ok(),
            Self::Migrate => {
                let pools = site.api.get("v2/scheduler-stats/pools").unwrap_or_default();
                let there = |p: &&serde_json::Value| p["backend"] == POOLS[pool].0;
                let Some(there) = pools["pools"].as_array().and_then(|all| all.iter().find(there)) else {
                    return false;
                };
                // That form completes by itself.
                let body = json!({"migration_start": {
                    "host": there["name"], "force_host_copy": false, "notify": true,
                }});
                site.api.share_action(on, "2.15", true, &body).is_ok_and(|(status, _)| status == 202)
            }
        }
    }
}

/// Whose power goes, and when.
#[derive(Clone, Debug)]
enum Strike {
    /// That of the server's host, once this event of the operation is durable.
    Near(String),
    /// That of the other host, at this moment of a driver's call.
    Far(String),
    /// That of the other host, in the midst of a stream.
    FarAmid,
}

/// A promotion or a sync from one of the pools, and what strikes it.
#[derive(Clone, Debug)]
struct Case {
    deed: Deed,
    source: usize,
    strike: Strike,
}

/// What strikes the other host, when it is the destination (the source is the first pool), and when it is the source. A
/// short call that has not begun has changed as little as one before it that has ended.
const CALLS: [(Deed, usize, &[&str]); 8] = [
    (Deed::Sync, 0, &["receive:start", "receive:end", "release_point:end"]),
    (
        Deed::Promote,
        0,
        &[
            "receive:end",
            "promote_replica:start",
            "promote_replica:end",
            "update_access:end",
            "release_point:end",
        ],
    ),
    (Deed::Sync, 1, &["make_point:end", "send:start", "send:end", "release_point:end"]),
    (
        Deed::Promote,
        1,
        &[
            "make_point:end",
            "send:end",
            "quiesce:end",
            "demote_replica:start",
            "demote_replica:end",
            "update_access:end",
        ],
    ),
    (
        Deed::Create,
        0,
        &["create_replica:start", "create_replica:end", "update_access:end", "receive:start", "receive:end"],
    ),
    (Deed::Create, 1, &["make_point:end", "send:start", "send:end"]),
    (
        Deed::Migrate,
        0,
        &[
            "create_replica:end",
            "receive:end",
            "promote_replica:start",
            "promote_replica:end",
            "release_point:end",
        ],
    ),
    (
        Deed::Migrate,
        1,
        &[
            "make_point:end",
            "send:end",
            "quiesce:end",
            "demote_replica:end",
            "delete_instance:start",
            "delete_instance:end",
        ],
    ),
];

/// Those that fit CI.
fn some() -> Vec<Case> {
    let case = |deed, source, strike| Case { deed, source, strike };
    vec![
        case(Deed::Sync, 0, Strike::FarAmid),
        case(Deed::Promote, 0, Strike::Far("promote_replica:end".into())),
        case(Deed::Promote, 1, Strike::Near("step_done demote".into())),
        case(Deed::Promote, 1, Strike::Far("quiesce:end".into())),
        case(Deed::Migrate, 0, Strike::Far("promote_replica:end".into())),
        case(Deed::Migrate, 1, Strike::Near("step_done withdraw".into())),
    ]
}

/// All of them; `scripts` are the events of an undisturbed sync and promotion.
fn all(scripts: &[(Deed, Vec<String>)]) -> Vec<Case> {
    let mut cases = Vec::new();
    for (deed, source, moments) in CALLS {
        let strikes = moments.iter().map(|moment| Strike::Far((*moment).to_owned()));
        cases.extend(strikes.chain([Strike::FarAmid]).map(|strike| Case { deed, source, strike }));
    }
    for (deed, script) in scripts {
        // Of steps of one name the first.
        let steps: BTreeSet<&String> = script.iter().filter(|e| e.starts_with("step_done")).collect();
        let strikes = steps.into_iter().map(|event| Strike::Near(event.clone()));
        let both = strikes.flat_map(|strike| [0, 1].map(|source| (source, strike.clone())));
        cases.extend(both.map(|(source, strike)| Case { deed: *deed, source, strike }));
    }
    cases
}

/// Someone who writes records over NFS, each acknowledged before the next.
struct Writer {
    file: String,
    said: Arc<Mutex<Vec<u8>>>,
    listening: std::thread::JoinHandle<()>,
}

impl Writer {
    fn start(site: &Site, active: &str, file: &str) -> Self {
        let guest = &*site.guest;
        if !guest.succeeds(&["ip", "netns", "pids", "user"]).unwrap() {
            nfs::Client::create(guest, "user", ADDRESS).unwrap();
        }
        let user = nfs::Client::known("user", ADDRESS);
        site.mount(&user, active, "/mnt/user");
        let program = tandem_guests::forward::PROGRAM;
        let argv = user.command(&[program, "records", &format!("/mnt/user/{file}")]);
        let running = guest.spawn(&argv).unwrap();
        let said = Arc::<Mutex<Vec<u8>>>::default();
        let heard = Arc::clone(&said);
        let listening = std::thread::spawn(move || {
            while let Ok(event) = running.next(Duration::from_secs(600)) {
                match event {
                    Some(Event::Output(bytes)) => heard.lock().unwrap().extend(bytes),
                    Some(Event::Error(_)) | None => {}
                    Some(Event::Ended(_) | Event::Refused(_)) => break,
                }
            }
        });
        let writer = Self { file: file.to_owned(), said, listening };
        wait::until("some records", || (writer.acknowledged().len() > 20).then_some(()));
        writer
    }

    /// What was acknowledged so far; a number that was cut in the middle is not a line.
    fn acknowledged(&self) -> BTreeSet<u64> {
        let said = String::from_utf8(self.said.lock().unwrap().clone()).unwrap();
        said.split_inclusive('\n').filter_map(|line| line.strip_suffix('\n')?.parse().ok()).collect()
    }

    /// Ends it; what it was promised must be on the active replica.
    fn lost_nothing(self, site: &Site, active: &str) {
        let _ = site.guest.succeeds(&["pkill", "-KILL", "-f", "records /mnt/user"]).unwrap();
        let _ = site.guest.succeeds(&["umount", "-f", "-l", "/mnt/user"]).unwrap();
        let promised = self.acknowledged();
        self.listening.join().unwrap();
        let file = format!("{}/{}", site.path(active), self.file);
        let kept = site.guest_with(active).run(&["cat", &file]).unwrap();
        let kept: BTreeSet<u64> = kept.lines().filter_map(|line| line.parse().ok()).collect();
        let lost: Vec<&u64> = promised.difference(&kept).collect();
        assert!(lost.is_empty(), "of {} acknowledged records these are lost: {lost:?}", promised.len());
        println!("   {} records were acknowledged, none is lost", promised.len());
        site.guest_with(active).run(&["rm", &file]).unwrap();
    }
}

/// The active replica, and the one that follows it.
fn roles(site: &Site, share: &str) -> (String, String) {
    let secondary = site.api.in_sync(share).pop().expect("a replica");
    (site.api.only_replica(share, "active"), secondary)
}

/// Brings the active replica onto a pool.
fn turn(site: &Site, share: &str, pool: usize) -> (String, String) {
    let (active, secondary) = roles(site, share);
    let rows = site.api.replicas_of(share);
    let zone =
        rows.iter().find(|row| row["id"] == active.as_str()).map(|row| word(&row["availability_zone"]));
    if zone.as_deref() == Some(POOLS[pool].1) {
        return (active, secondary);
    }
    site.api.act(&secondary, "promote").unwrap();
    site.api.settle();
    assert_eq!(site.api.only_replica(share, "active"), secondary, "an undisturbed promotion");
    roles(site, share)
}

/// The events of the newest operation of a kind.
fn script(site: &Site, deed: Deed) -> Vec<String> {
    let done = site.api.operations(&format!("kind={}&status=done&limit=1", deed.word())).unwrap();
    let op = site.api.operation(&word(&done[0]["id"])).unwrap();
    events(&op)
}

/// Cuts the power, and switches it on again.
fn strike(site: &Site, case: &Case, scripts: &[(Deed, Vec<String>)], on: &str) {
    let act = || case.deed.ask(site, on, 1 - case.source);
    match &case.strike {
        Strike::Far(moment) => {
            site.stop_far_at(moment);
            assert!(act());
            site.far_stops();
            site.cut_far();
            site.boot_far();
        }
        Strike::FarAmid => {
            let from = if case.source == 0 { &site.guest } else { site.far() };
            site.cut_after(from, 3 << 20, || assert!(act()));
            site.cut_far();
            site.cable(Link::GOOD);
            site.boot_far();
        }
        Strike::Near(event) => {
            let (_, script) = scripts.iter().find(|(deed, _)| *deed == case.deed).unwrap();
            let number = 1 + script.iter().position(|e| e == event).expect("an event of the operation");
            site.kill();
            let at = format!("{}:{number}:after", case.deed.word());
            site.spawn(&[("TANDEM_KILL_AT", &at)]);
            // A sync of the schedule may be the one that is struck.
            let up = || site.api.get("v1/status").ok().filter(|s| s["status"]["backends"]["down"] == 0);
            wait::until("the server", || (site.is_dead() || up().is_some()).then_some(()));
            let _ = act();
            site.dies();
            site.cut_power();
            site.boot();
        }
    }
    site.api.backends_are_up();
}

#[test]
fn a_power_cut_of_either_host_at_any_step_is_recovered_from_and_loses_nothing() {
    let site = Site::start_with_far(Exports::Nfs, 3 * GIB);
    let share = site.share("readable");
    site.allow(&share, ADDRESS, "rw");
    let first = site.api.only_replica(&share, "active");
    site.fill(&first, "first", 8);
    site.api.create_replica(&share, POOLS[1].1).unwrap();
    site.api.in_sync(&share);
    // There and back, undisturbed.
    turn(&site, &share, 1);
    turn(&site, &share, 0);
    let mut scripts: Vec<_> = [Deed::Sync, Deed::Promote].map(|deed| (deed, script(&site, deed))).into();
    let created = (Deed::Create, script(&site, Deed::Create));
    let (followed, alone): (Vec<Case>, Vec<Case>) =
        (if long() { all(&scripts) } else { some() }).into_iter().partition(|c| c.deed < Deed::Create);
    for (number, case) in followed.iter().enumerate() {
        println!("-- {:?} from {}: {:?}", case.deed, POOLS[case.source].0, case.strike);
        let (active, secondary) = turn(&site, &share, case.source);
        site.api.settle();
        site.fill(&active, "changing", 8);
        let before = site.contents(&active);
        let writes =
            (case.deed == Deed::Promote).then(|| Writer::start(&site, &active, &format!("records-{number}")));
        strike(&site, case, &scripts, &secondary);
        site.api.settle();
        site.api.in_sync(&share);
        let now = site.api.only_replica(&share, "active");
        if let Some(writer) = writes {
            writer.lost_nothing(&site, &now);
        }
        assert_eq!(site.contents(&now), before, "what was there before is there");
        audit::at_rest(&site);
    }

    // What has no replica gets one on the other host, or moves there.
    alone_again(&site, &share, &turn(&site, &share, 0).1);
    for pool in [1, 0] {
        bring(&site, &share, pool);
    }
    scripts.extend([created, (Deed::Migrate, script(&site, Deed::Migrate))]);
    let near = if long() { all(&scripts[2..]) } else { Vec::new() };
    let near = near.into_iter().filter(|c| matches!(c.strike, Strike::Near(_)));
    for (number, case) in alone.into_iter().chain(near).enumerate() {
        println!("-- {:?} from {}: {:?}", case.deed, POOLS[case.source].0, case.strike);
        let active = bring(&site, &share, case.source);
        site.fill(&active, "changing", 8);
        let before = site.contents(&active);
        let writer =
            (case.deed == Deed::Migrate).then(|| Writer::start(&site, &active, &format!("moved-{number}")));
        strike(&site, &case, &scripts, &share);
        site.api.settle();
        let now = site.api.only_replica(&share, "active");
        if let Some(writer) = writer {
            println!("   it is {}", if now == active { "where it was" } else { "where it was to go" });
            writer.lost_nothing(&site, &now);
        } else {
            created_or_not(&site, &share, case.source);
        }
        assert_eq!(site.contents(&now), before, "what was there before is there");
        assert_eq!(site.api.share(&share).unwrap()["status"], "available");
        audit::at_rest(&site);
    }
    audit::removed(&site);
}

/// A replica that was being made follows, or is in error; either way it goes again.
fn created_or_not(site: &Site, share: &str, source: usize) {
    let following = |row: &serde_json::Value| row["replica_state"] != "active";
    let row = site.api.replicas_of(share).into_iter().find(following).expect("its row stays");
    if row["status"] == "available" {
        assert_eq!(site.api.in_sync(share), [word(&row["id"])]);
        audit::at_rest(site);
    }
    println!("   the replica is {}", row["status"]);
    alone_again(site, share, &word(&row["id"]));
    assert_eq!(word(&site.api.replicas_of(share)[0]["availability_zone"]), POOLS[source].1);
}

/// Removes the replica of a share.
fn alone_again(site: &Site, share: &str, replica: &str) {
    site.api.delete_replica(replica).unwrap();
    wait::until("the replica to be gone", || (site.api.replicas_of(share).len() == 1).then_some(()));
    site.api.settle();
}

/// Brings a share without replicas onto a pool.
fn bring(site: &Site, share: &str, pool: usize) -> String {
    let active = site.api.only_replica(share, "active");
    let there = |row: &serde_json::Value| word(&row["availability_zone"]) == POOLS[pool].1;
    if !site.api.replicas_of(share).iter().any(there) {
        assert!(Deed::Migrate.ask(site, share, pool));
        site.api.settle();
        let now = site.api.only_replica(share, "active");
        assert_ne!(
            now,
            active,
            "an undisturbed migration: {:?}",
            site.api.operations("kind=migrate&limit=1")
        );
        return now;
    }
    active
}
