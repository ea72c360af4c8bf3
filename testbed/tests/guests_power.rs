//! The power of one of two storage hosts is cut at each step of a sync, of a promotion, of the making of a replica and of a
//! migration: of the source's and of the
//! destination's, of the one with `tandemd` and of the one without. Everything comes to rest by itself, and what was
//! acknowledged to a writer on NFS is kept.
//!
//! The moments are exact: those of `Strike`. `TANDEM_LONG=1` takes them all (of which
//! `TANDEM_PART=2/8` takes the second eighth).
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a panic is a failed test with its reason"
)]

use serde_json::json;
use tandem_guests::{Host, Link};
use tandem_testbed::api::word;
use tandem_testbed::chance::{long, part};
use tandem_testbed::site::power::{Strike, Struck};
use tandem_testbed::site::users::{ADDRESS, Writer};
use tandem_testbed::site::{Exports, POOLS, Site, audit};

const GIB: u64 = 1 << 30;
const MIB: u64 = 1 << 20;

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
        let strikes = Strike::steps(script).into_iter().map(|event| Strike::Near(event.clone()));
        let both = strikes.flat_map(|strike| [0, 1].map(|source| (source, strike.clone())));
        cases.extend(both.map(|(source, strike)| Case { deed: *deed, source, strike }));
    }
    cases
}

/// Strikes it.
fn strike(site: &Site, case: &Case, scripts: &[(Deed, Vec<String>)], on: &str) {
    let script = scripts.iter().find(|(deed, _)| *deed == case.deed).map_or(&[][..], |(_, script)| script);
    let ask = || case.deed.ask(site, on, 1 - case.source);
    let struck = Struck { word: case.deed.word(), script, source: case.source, ask: &ask };
    site.strike(&case.strike, &struck);
}

/// Bytes of a transfer that have arrived at the other machine for good, as its pool says.
fn arrived(site: &Site, replica: &str) -> u64 {
    let dataset = format!("{}/tandem/{replica}", POOLS[1].0);
    let get = ["zfs", "get", "-H", "-r", "-t", "filesystem", "-o", "value", "receive_resume_token", &dataset];
    let tokens = site.far().run(&get).unwrap();
    let Some(token) = tokens.lines().find(|token| *token != "-") else { return 0 };
    // Where the snapshot is, `zfs` reads it.
    let said = site.guest.run(&["zfs", "send", "-nvt", token]).unwrap();
    let bytes = said.lines().find_map(|line| line.trim().strip_prefix("bytes = 0x"));
    u64::from_str_radix(bytes.unwrap_or_else(|| panic!("no bytes in {said}")), 16).unwrap()
}

/// What may have left the source and not be written yet: a block of the relay at each end of the cable, what the pipes at both
/// ends hold, and what the kernel gathers before it writes.
const BUFFERS: u64 = 2 * (512 << 10) + 3 * MIB + (128 << 10);

/// Amid a stream the power of the destination is cut: what a transaction group had taken up there is not carried again.
fn only_what_was_not_committed_goes_again(site: &Site, active: &str, replica: &str) {
    let (content, part) = (24 * MIB, 8 * MIB);
    site.fill(active, "changing", 24);
    // The stream halts for a moment in which what has come is committed, and goes on to be cut.
    site.cut_after(&site.guest, part, || site.api.act(replica, "resync").unwrap());
    site.far().run(&["zpool", "sync", POOLS[1].0]).unwrap();
    let committed = arrived(site, replica);
    assert!(committed + BUFFERS > part * 1448 / 1514, "{committed} bytes of {part} were written");
    site.cut_after(&site.guest, part, || ());
    site.cut_far();
    site.cable(Link::GOOD);
    site.switch_far_on();
    let kept = arrived(site, replica);
    let before = site.carried();
    site.start_far();
    site.api.backends_are_up();
    site.api.in_sync(&word(&site.api.replicas().unwrap()[0]["share_id"]));
    site.api.settle();
    let rest = (site.carried() - before) * 1448 / 1514;
    println!("   {committed} bytes were committed, {kept} were kept, {rest} went after the cut");
    assert!(kept >= committed, "what was committed was lost");
    // Headers, the record in which it was cut, and what else machines tell each other.
    assert!(rest + kept <= content + 2 * MIB, "{rest} bytes went after the cut, although {kept} were there");
    audit::at_rest(site);
}

#[test]
fn a_power_cut_of_either_host_at_any_step_is_recovered_from_and_loses_nothing() {
    let site = Site::start_with_far(Exports::Nfs, 3 * GIB);
    let share = site.share("readable");
    site.allow(&share, ADDRESS, "rw");
    let first = site.api.only_replica(&share, "active");
    site.fill(&first, "first", 8);
    site.api.create_replica(&share, POOLS[1].1).unwrap();
    let replica = site.api.in_sync(&share).remove(0);
    only_what_was_not_committed_goes_again(&site, &first, &replica);
    // There and back, undisturbed.
    site.turn(&share, 1);
    site.turn(&share, 0);
    let mut scripts: Vec<_> = [Deed::Sync, Deed::Promote].map(|deed| (deed, site.script(deed.word()))).into();
    let created = (Deed::Create, site.script(Deed::Create.word()));
    let (followed, alone): (Vec<Case>, Vec<Case>) =
        (if long() { part(all(&scripts)) } else { some() }).into_iter().partition(|c| c.deed < Deed::Create);
    for (number, case) in followed.iter().enumerate() {
        println!("-- {:?} from {}: {:?}", case.deed, POOLS[case.source].0, case.strike);
        let (active, secondary) = site.turn(&share, case.source);
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
    site.alone_again(&share, &site.turn(&share, 0).1);
    for pool in [1, 0] {
        bring(&site, &share, pool);
    }
    scripts.extend([created, (Deed::Migrate, site.script(Deed::Migrate.word()))]);
    let near = if long() { all(&scripts[2..]) } else { Vec::new() };
    let near = near.into_iter().filter(|c| matches!(c.strike, Strike::Near(_)));
    for (number, case) in alone.into_iter().chain(part(near.collect())).enumerate() {
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
    site.alone_again(share, &word(&row["id"]));
    assert_eq!(word(&site.api.replicas_of(share)[0]["availability_zone"]), POOLS[source].1);
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
