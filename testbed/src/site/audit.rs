//! What must be true of a site at rest: in the store, on its pools, in its exports, and for users.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;
use tandem_guests::Kind;

use super::{Exports, Site, drbd};
use crate::api::word;
use crate::kill::pools;
use crate::wait;

/// Everything is at rest, lawful, without leftovers; every replica that users reach holds what its active one does.
pub fn at_rest(site: &Site) {
    site.api.settle();
    for share in site.api.shares().unwrap() {
        let id = word(&share["id"]);
        let secondaries = site.api.in_sync(&id);
        site.api.settle();
        assert_eq!(share["status"], "available", "{share:#}");
        let active = site.api.only_replica(&id, "active");
        for replica in secondaries {
            same(site, &active, &replica);
        }
    }
    lawful(site);
    wait::until_else(|| {
        site.api.settle();
        let found = [leftovers(site), exports(site)].concat();
        if found.is_empty() { Ok(()) } else { Err(format!("left behind: {found:#?}")) }
    });
}

/// The replica comes to hold what the active one does; the next sync may have to bring it.
pub fn same(site: &Site, active: &str, replica: &str) {
    // One that is not reached (`dr`) is judged by those who promote it.
    if site.api.export(replica).unwrap().is_none() {
        return;
    }
    wait::until_else(|| {
        let (source, copy) = (site.contents(active), site.contents(replica));
        if source == copy {
            return Ok(());
        }
        site.api.resync(replica);
        Err(format!("{replica} holds {copy:#?}, and its active one {source:#?}"))
    });
}

/// At most one instance of a share is active, unless it is one that is written to everywhere; and the doctor finds nothing.
pub fn lawful(site: &Site) {
    let findings = site.api.doctor().unwrap();
    assert!(findings.is_empty(), "the doctor finds {findings:#?}");
    let joint: BTreeSet<String> =
        site.api.shares().unwrap().iter().filter(is_writable).map(|s| word(&s["id"])).collect();
    let mut active: BTreeMap<String, u32> = BTreeMap::new();
    for replica in site.api.replicas().unwrap() {
        if replica["replica_state"] == "active" && !joint.contains(&word(&replica["share_id"])) {
            *active.entry(word(&replica["share_id"])).or_default() += 1;
        }
    }
    assert!(active.values().all(|count| *count == 1), "more than one is active: {active:?}");
}

/// What lies on the pools and belongs to nothing in the store.
pub fn leftovers(site: &Site) -> Vec<String> {
    if site.kind == Kind::Lvm {
        return drbd::leftovers(site);
    }
    let rows = site.api.replicas().unwrap();
    let of = |pool: &str| pools::leftovers_of(pool, &rows, &|argv: &[&str]| site.try_run(pool, argv));
    super::POOLS.iter().flat_map(|(pool, _)| of(pool)).collect()
}

/// Exports of what the store does not know.
fn exports(site: &Site) -> Vec<String> {
    if site.exports == Exports::None {
        return Vec::new();
    }
    let rows: Vec<Value> = site.api.replicas().unwrap();
    let known: Vec<String> = rows
        .iter()
        .map(|row| word(&row["id"]))
        .filter_map(|id| site.api.export(&id).unwrap().map(|path| path.to_string_lossy().into_owned()))
        .filter_map(|path| path.split_once(':').map(|(_, path)| path.to_owned()))
        .collect();
    // On one machine the second listing is the first again.
    let listings = super::POOLS.map(|(pool, _)| site.try_run(pool, &["exportfs", "-s"]).unwrap());
    let paths = listings.iter().flat_map(|listing| listing.lines());
    paths
        .filter_map(|line| line.split_whitespace().next())
        .filter(|path| !known.iter().any(|known| known == path))
        .map(|path| format!("{path} is exported"))
        .collect()
}

/// Removes every share, and proves that nothing is left of any.
pub fn removed(site: &Site) {
    for share in site.api.shares().unwrap() {
        let id = word(&share["id"]);
        let mut others = site.api.replicas_of(&id);
        let kept = others.iter().position(|replica| replica["replica_state"] == "active");
        others.remove(kept.expect("an active replica"));
        for replica in others {
            site.api.delete_replica(&word(&replica["id"])).unwrap();
        }
        wait::until("the replicas to be gone", || (site.api.replicas_of(&id).len() == 1).then_some(()));
        site.api.delete_share(&id).unwrap();
    }
    wait::until("the shares to be gone", || site.api.shares().unwrap().is_empty().then_some(()));
    site.api.settle();
    lawful(site);
    assert_eq!([leftovers(site), exports(site)].concat(), [] as [String; 0]);
}

fn is_writable(share: &&Value) -> bool {
    share["replication"] == "writable"
}
