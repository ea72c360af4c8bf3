//! A share moves from one host to the other by a temporary DRBD peer, under a writer on NFS. So does one whose type does not
//! replicate, which bears no trace of it afterwards.

use serde_json::json;
use tandem_guests::{Host, Running, forward, nfs};
use tandem_testbed::api::word;
use tandem_testbed::chance::long;
use tandem_testbed::site::users::{numbers, said};
use tandem_testbed::site::{Exports, POOLS, Site, audit};
use tandem_testbed::wait;

use super::GIB;

/// Where the writer mounts the share, on the server's machine.
const AT: &str = "/mnt/moving";

/// A share on the first pool whose type does not replicate.
fn plain(site: &Site) -> String {
    let specs = json!({"driver_handles_share_servers": "False"});
    let made = site.api.post("v2/types", &json!({"share_type": {"name": "plain", "extra_specs": specs}}));
    made.unwrap();
    let share = site.api.create_share("plain", POOLS[0].1).unwrap();
    site.api.settle();
    share
}

/// Where it is reached: `address:path`.
fn export(site: &Site, share: &str) -> String {
    let found = site.api.get(&format!("v2/shares/{share}/export_locations")).unwrap();
    word(&found["export_locations"][0]["path"])
}

/// The same, as a path of the host that it is on.
fn path(site: &Site, share: &str) -> String {
    export(site, share).split_once(':').expect("an address and a path").1.to_owned()
}

fn sums(site: &Site, share: &str, pool: usize, names: &[&str]) -> String {
    let folder = path(site, share);
    let files: Vec<String> = names.iter().map(|name| format!("{folder}/{name}")).collect();
    let argv: Vec<&str> = ["sha256sum"].into_iter().chain(files.iter().map(String::as_str)).collect();
    let said = site.guest_of(POOLS[pool].0).run(&argv).unwrap();
    said.lines().filter_map(|line| line.split(' ').next()).collect::<Vec<_>>().join(" ")
}

fn random(site: &Site, share: &str, pool: usize, name: &str) {
    let file = format!("of={}/{name}", path(site, share));
    site.guest_of(POOLS[pool].0)
        .run(&["dd", "if=/dev/urandom", &file, "bs=1M", "count=24", "conv=fsync", "status=none"])
        .unwrap();
}

/// What a share that has moved, or stayed, is to have left: nothing.
fn leaves_nothing(site: &Site) {
    site.api.settle();
    audit::lawful(site);
    wait::until_else(|| {
        site.api.settle();
        let found = audit::leftovers(site);
        if found.is_empty() { Ok(()) } else { Err(format!("left behind: {found:#?}")) }
    });
}

/// A client that writes until it may not.
fn writes(site: &Site, client: &nfs::Client, share: &str) -> Running {
    client.must_mount(&*site.guest, &export(site, share), AT, "hard").unwrap();
    let argv = [forward::PROGRAM, "records", &format!("{AT}/records")];
    site.guest.spawn(&client.command(&argv)).unwrap()
}

/// There, under a client.
fn moves(site: &Site, client: &nfs::Client, share: &str, [from, to]: [usize; 2]) {
    random(site, share, from, "before");
    // Where the type does not replicate, who has a file open loses it when that begins.
    let replicates = !site.api.share(share).unwrap()["replication_type"].is_null();
    let early = replicates.then(|| writes(site, client, share));
    site.api.migration(share, &site.api.wish(POOLS[to].0, true));
    site.api.until_task(share, "migration_driver_phase1_done");
    let writer = early.unwrap_or_else(|| writes(site, client, share));
    random(site, share, from, "meanwhile");
    let before = sums(site, share, from, &["before", "meanwhile"]);
    site.api.migration(share, &json!({"migration_complete": null}));
    let promised = said(&writer);
    let promised = numbers(promised.iter().map(String::as_str));
    site.api.until_task(share, "migration_success");
    site.guest.run(&["umount", "-f", "-l", AT]).unwrap();
    leaves_nothing(site);
    let host = word(&site.api.share(share).unwrap()["host"]);
    assert!(host.contains(&format!("@{}#", POOLS[to].0)), "{host}");
    assert_eq!(sums(site, share, to, &["before", "meanwhile"]), before);
    let file = format!("{}/records", path(site, share));
    let kept = site.guest_of(POOLS[to].0).run(&["cat", &file]).unwrap();
    let kept = numbers(kept.lines());
    assert!(
        promised.len() > 20 && promised.is_subset(&kept),
        "{} of {} are lost",
        promised.len(),
        kept.len()
    );
    println!("   {} records were acknowledged, none is lost", promised.len());
    site.guest_of(POOLS[to].0).run(&["rm", &file]).unwrap();
    // The rules came along.
    client.must_mount(&*site.guest, &export(site, share), AT, "hard").unwrap();
    site.guest.run(&["touch", &format!("{AT}/writable")]).unwrap();
    site.guest.run(&["umount", AT]).unwrap();
}

/// Given up once everything is there: it stays where it is, and is written to.
fn stays(site: &Site, share: &str, [from, to]: [usize; 2]) {
    site.api.migration(share, &site.api.wish(POOLS[to].0, true));
    site.api.until_task(share, "migration_driver_phase1_done");
    site.api.migration(share, &json!({"migration_cancel": null}));
    site.api.until_task(share, "migration_cancelled");
    leaves_nothing(site);
    random(site, share, from, "afterwards");
}

#[test]
fn a_share_moves_to_the_other_host_by_a_peer_that_leaves_no_trace() {
    let site = Site::start_on_lvm(Exports::Nfs, 3 * GIB);
    let mut shares = vec![plain(&site)];
    let client = site.user_of(&shares[0]);
    if long() {
        shares.push(site.share("dr"));
        site.allow(&shares[1], client.address(), "rw");
    }
    for share in &shares {
        println!("-- {}", site.api.share(share).unwrap()["share_type_name"]);
        moves(&site, &client, share, [0, 1]);
        stays(&site, share, [1, 0]);
    }
}
