//! The power of one of two storage hosts with LVM and DRBD is cut, and the server killed, at each step of the making of a
//! replica, of a resync, of a promotion and of a removal, under a writer on NFS. Everything comes to rest by itself, both
//! sides hold the same, nothing is left behind, and what was acknowledged is kept.
//!
//! The moments are exact: those of `Strike`.

use std::time::Instant;

use tandem_guests::Link;
use tandem_testbed::chance::part;
use tandem_testbed::site::power::{Strike, Struck};
use tandem_testbed::site::users::Writer;
use tandem_testbed::site::{POOLS, Site, audit};
use tandem_testbed::wait;

/// What is asked for when it strikes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Deed {
    /// Of a share without replicas.
    Create,
    /// Of a replica that was cut off meanwhile.
    Sync,
    Promote,
    Delete,
}

const DEEDS: [Deed; 4] = [Deed::Create, Deed::Sync, Deed::Promote, Deed::Delete];

impl Deed {
    fn word(self) -> &'static str {
        match self {
            Self::Create => "create_replica",
            Self::Sync => "sync",
            Self::Promote => "promote",
            Self::Delete => "delete_replica",
        }
    }

    /// Asks for it; `on` is the replica, or the share that is to get one on that pool. Whether it was taken.
    fn ask(self, site: &Site, on: &str, pool: usize) -> bool {
        match self {
            Self::Create => site.api.create_replica(on, POOLS[pool].1).is_ok(),
            Self::Sync => site.api.act(on, "resync").is_ok(),
            Self::Promote => site.api.act(on, "promote").is_ok(),
            Self::Delete => site.api.delete_replica(on).is_ok(),
        }
    }
}

/// A deed while the active replica is on one of the pools, and what strikes it.
#[derive(Clone, Debug)]
struct Case {
    deed: Deed,
    source: usize,
    strike: Strike,
}

/// What strikes the other host, while the active replica is on the first pool (the server's host), and while it is there.
const CALLS: [(Deed, usize, &[&str]); 8] = [
    (
        Deed::Create,
        0,
        &[
            "create_replica:start",
            "create_replica:end",
            "endpoint:end",
            "connect_peers:start",
            "connect_peers:end",
            "update_access:end",
        ],
    ),
    (Deed::Create, 1, &["endpoint:end", "connect_peers:start", "connect_peers:end"]),
    (Deed::Sync, 0, &["connect_peers:start", "connect_peers:end"]),
    (Deed::Sync, 1, &["connect_peers:start", "connect_peers:end"]),
    (
        Deed::Promote,
        0,
        &[
            "promote_replica:start",
            "promote_replica:end",
            "update_access:end",
            "connect_peers:start",
            "connect_peers:end",
        ],
    ),
    (
        Deed::Promote,
        1,
        &[
            "update_access:end",
            "demote_replica:start",
            "demote_replica:end",
            "connect_peers:start",
            "connect_peers:end",
        ],
    ),
    (
        Deed::Delete,
        0,
        &["disconnect_peers:start", "disconnect_peers:end", "delete_replica:start", "delete_replica:end"],
    ),
    (Deed::Delete, 1, &["disconnect_peers:start", "disconnect_peers:end"]),
];

/// Those that fit CI: the other host goes down as it has become the active one, and nobody has heard of it; and amid a resync, of
/// which its thin pool forgets the last second.
pub(super) fn some_are_struck(site: &Site, share: &str) {
    let strikes = [(Deed::Promote, Strike::Far("promote_replica:end".into())), (Deed::Sync, Strike::FarAmid)];
    for (number, (deed, strike)) in strikes.into_iter().enumerate() {
        judge(site, share, &Case { deed, source: 0, strike }, number, &[const { Vec::new() }; 4]);
    }
}

/// All of them; `scripts` are the events of what was not disturbed.
fn all(scripts: &[Vec<String>; 4]) -> Vec<Case> {
    let mut cases = Vec::new();
    for (deed, source, moments) in CALLS {
        let strikes = moments.iter().map(|moment| Strike::Far((*moment).to_owned()));
        let amid = [Deed::Create, Deed::Sync].contains(&deed).then_some(Strike::FarAmid);
        cases.extend(strikes.chain(amid).map(|strike| Case { deed, source, strike }));
    }
    for (deed, script) in DEEDS.into_iter().zip(scripts) {
        for event in Strike::steps(script) {
            for source in [0, 1] {
                cases.push(Case { deed, source, strike: Strike::Near(event.clone()) });
            }
            cases.push(Case { deed, source: 0, strike: Strike::Server(event.clone()) });
        }
    }
    cases
}

/// The replica of a share, which is made where there is none.
fn replica_of(site: &Site, share: &str, active: &str) -> String {
    if site.api.replicas_of(share).len() == 1 {
        let other = POOLS.iter().find(|(pool, _)| *pool != site.pool_with(active)).unwrap();
        site.api.create_replica(share, other.1).unwrap();
        site.api.settle();
    }
    site.api.in_sync(share).remove(0)
}

/// Strikes it, lets everything come to rest, and judges it.
fn judge(site: &Site, share: &str, case: &Case, number: usize, scripts: &[Vec<String>; 4]) {
    let (active, secondary) = site.turn(share, case.source);
    site.api.settle();
    let mut on = secondary.clone();
    match case.deed {
        Deed::Create => {
            site.alone_again(share, &secondary);
            share.clone_into(&mut on);
        }
        Deed::Sync => site.second_cable(Link::CUT),
        Deed::Promote | Deed::Delete => {}
    }
    site.fill(&active, "changing", 8);
    let before = site.contents(&active);
    let writer = Writer::start(site, &active, &format!("records-{number}"));
    let ask = || {
        let taken = case.deed.ask(site, &on, 1 - case.source);
        if !matches!(case.strike, Strike::FarAmid) {
            site.second_cable(Link::GOOD);
        }
        taken
    };
    let script = &scripts[DEEDS.iter().position(|deed| *deed == case.deed).unwrap()];
    site.strike(&case.strike, &Struck { word: case.deed.word(), script, source: case.source, ask: &ask });
    site.second_cable(Link::GOOD);
    site.api.settle();
    if case.deed == Deed::Delete {
        wait::until("the replica to be gone", || (site.api.replicas_of(share).len() == 1).then_some(()));
    } else {
        site.api.in_sync(share);
        assert_eq!(site.api.replicas_of(share).len(), 2);
    }
    let now = site.api.only_replica(share, "active");
    assert!(case.deed == Deed::Promote || now == active, "it was not to be promoted");
    site.is_served(&now);
    writer.lost_nothing(site, &now);
    assert_eq!(site.contents(&now), before, "what was there before is there");
    let replica = replica_of(site, share, &now);
    site.sides_are_equal(&now, &replica);
    audit::at_rest(site);
}

/// Every one, or the part of them that is asked for, on a share without a replica.
pub(super) fn all_are_struck(site: &Site, share: &str) {
    let first = site.api.only_replica(share, "active");
    replica_of(site, share, &first);
    // There and back, undisturbed: what each logs.
    let (_, replica) = site.turn(share, 1);
    site.api.resync(&replica);
    let (active, replica) = site.turn(share, 0);
    site.alone_again(share, &replica);
    replica_of(site, share, &active);
    let scripts = DEEDS.map(|deed| site.script(deed.word()));
    let cases = part(all(&scripts));
    for (number, case) in cases.iter().enumerate() {
        let (pool, start) = (POOLS[case.source].0, Instant::now());
        println!("-- {number} of {}: {:?} from {pool}: {:?}", cases.len(), case.deed, case.strike);
        judge(site, share, case, number, &scripts);
        println!("   {} s", start.elapsed().as_secs());
    }
}
