//! The style `writable` under power cuts of either host and kills of the server, at each step of the making of the second side, of its
//! coming to serve, and of its removal, while every side that serves is written to on its host. All of it comes to rest by itself, with
//! what was acknowledged on both sides.
//!
//! In the long run only; `TANDEM_PART=2/8` takes the second eighth of the moments.

use std::time::Instant;

use tandem_testbed::chance::{long, part};
use tandem_testbed::site::power::{Strike, Struck};
use tandem_testbed::site::users::Writer;
use tandem_testbed::site::{Exports, POOLS, Site, audit};
use tandem_testbed::wait;

use super::GIB;
use super::writable::{all_active, joined};

/// What goes on when it strikes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Deed {
    Create,
    /// The sync that follows by itself.
    Join,
    Delete,
}

/// Each, and what strikes the other host.
const DEEDS: [(Deed, &[&str]); 3] = [
    (Deed::Create, &["create_replica:end", "connect_peers:start", "connect_peers:end"]),
    (Deed::Join, &["promote_replica:start", "promote_replica:end"]),
    (Deed::Delete, &["demote_replica:end", "disconnect_peers:end", "delete_replica:end"]),
];

impl Deed {
    fn word(self) -> &'static str {
        match self {
            Self::Create => "create_replica",
            Self::Join => "sync",
            Self::Delete => "delete_replica",
        }
    }
}

/// The first side, which stays, and the other one where there is one.
fn sides(site: &Site, share: &str) -> (String, Option<String>) {
    let all = all_that_serve(site, share);
    let of = |pool: &str| all.iter().find(|id| site.pool_with(id) == pool).cloned();
    (of(POOLS[0].0).expect("the side on the server's host"), of(POOLS[1].0))
}

fn all_that_serve(site: &Site, share: &str) -> Vec<String> {
    if site.api.replicas_of(share).len() == 2 {
        return all_active(site, share);
    }
    site.api.settle();
    vec![site.api.only_replica(share, "active")]
}

fn remove(site: &Site, share: &str, second: &str) {
    site.api.delete_replica(second).unwrap();
    wait::until_else(|| match site.api.replicas_of(share).len() {
        1 => Ok(()),
        _ => Err(format!("{:#?}", site.failures())),
    });
    site.api.settle();
}

/// Strikes it, lets everything come to rest, and judges it.
fn judge(site: &Site, share: &str, deed: Deed, strike: &Strike, number: usize, script: &[String]) {
    let (first, second) = match (deed, sides(site, share)) {
        (Deed::Delete, (first, None)) => {
            let second = joined(site, share, &first);
            (first, Some(second))
        }
        (Deed::Create | Deed::Join, (first, Some(second))) => {
            remove(site, share, &second);
            (first, None)
        }
        (_, sides) => sides,
    };
    let near = Writer::on_host(site, &first, &format!("near {number}"));
    // Who writes on the side that goes would hold its removal up.
    let ask = || match &second {
        Some(second) => site.api.delete_replica(second).is_ok(),
        None => site.api.create_replica(share, POOLS[1].1).is_ok(),
    };
    site.strike(strike, &Struck { word: deed.word(), script, source: 0, ask: &ask });
    let after = if deed == Deed::Delete {
        wait::until("the other side to be gone", || (site.api.replicas_of(share).len() == 1).then_some(()));
        site.api.settle();
        vec![first.clone()]
    } else {
        wait::until("the other side", || (site.api.replicas_of(share).len() == 2).then_some(()));
        all_active(site, share)
    };
    let last = after.iter().rfind(|id| **id != first).unwrap_or(&first);
    site.is_served(last);
    // Read where nobody has written it.
    near.lost_nothing(site, last);
    if let [one, other] = &after[..] {
        site.both_up_to_date(one, other);
        assert_eq!(site.contents(one), site.contents(other));
    }
    audit::lawful(site);
    assert_eq!(audit::leftovers(site), [] as [String; 0]);
}

#[test]
fn power_cuts_and_kills_at_any_step_of_a_second_side_are_recovered_from() {
    if !long() {
        return;
    }
    let site = Site::start_writable(Exports::None, 3 * GIB);
    let share = site.share_with("writable", 1, &[]);
    let first = site.api.only_replica(&share, "active");
    site.fill(&first, "first", 8);
    // Undisturbed: what each logs.
    let second = joined(&site, &share, &first);
    remove(&site, &share, &second);
    let mut cases = Vec::new();
    for (deed, moments) in DEEDS {
        let script = site.script(deed.word());
        let far = moments.iter().map(|moment| Strike::Far((*moment).to_owned()));
        let steps = Strike::steps(&script).into_iter().cloned().collect::<Vec<_>>();
        let near = steps.iter().cloned().map(Strike::Near);
        let server = steps.iter().cloned().map(Strike::Server);
        let strikes = far.chain(near).chain(server).collect::<Vec<_>>();
        cases.extend(strikes.into_iter().map(|strike| (deed, strike, script.clone())));
    }
    let cases = part(cases);
    for (number, (deed, strike, script)) in cases.iter().enumerate() {
        println!("-- {number} of {}: {deed:?}: {strike:?}", cases.len());
        let start = Instant::now();
        judge(&site, &share, *deed, strike, number, script);
        println!("   {} s", start.elapsed().as_secs());
    }
    audit::removed(&site);
}
