//! The style `writable`: one share, mounted and written to on both hosts at once.

use serde_json::json;
use tandem_guests::Host;
use tandem_testbed::api::word;
use tandem_testbed::chance;
use tandem_testbed::site::users::{ADDRESS, Writer};
use tandem_testbed::site::{Exports, POOLS, Site, audit};
use tandem_testbed::wait;

use super::{GIB, row};

/// Waits until every replica of a share is active; their ids.
pub(super) fn all_active(site: &Site, share: &str) -> Vec<String> {
    wait::until_else(|| {
        let rows = site.api.replicas_of(share);
        let is_active = |row: &serde_json::Value| {
            (&row["replica_state"], &row["status"]) == (&json!("active"), &json!("available"))
        };
        if rows.len() == 2 && rows.iter().all(is_active) {
            return Ok(());
        }
        Err(format!("both should be active: {rows:#?}\n{:#?}", site.failures()))
    });
    site.api.settle();
    site.api.replicas_of(share).iter().map(|row| word(&row["id"])).collect()
}

/// A second replica, which comes to serve beside the first.
pub(super) fn joined(site: &Site, share: &str, first: &str) -> String {
    let second = site.api.create_replica(share, POOLS[1].1).unwrap();
    assert_eq!(all_active(site, share).len(), 2);
    let epochs = [first, &second].map(|id| row(site, id)["epoch"].clone());
    assert_eq!(epochs[0], epochs[1], "both are active at one epoch");
    second
}

/// The size of the file system that a host shows, in MiB.
fn size_mib(site: &Site, replica: &str) -> u64 {
    let said = site.guest_with(replica).run(&["df", "-BM", "--output=size", &site.path(replica)]).unwrap();
    said.lines().last().and_then(|line| line.trim().strip_suffix('M')?.parse().ok()).unwrap()
}

/// What one host writes the other one reads, both ways.
fn each_sees_what_the_other_writes(site: &Site, pair: [&str; 2]) {
    for (side, name) in pair.iter().zip(["of near", "of far"]) {
        site.fill(side, name, 2);
    }
    // Others are written to this moment.
    let still = ["./first", "./of near", "./of far"];
    let sides = pair.map(|id| {
        let all = site.contents(id);
        still.map(|name| all.get(name).cloned().unwrap_or_else(|| panic!("{id} has no {name}: {all:?}")))
    });
    assert_eq!(sides[0], sides[1]);
}

/// It grows below both while both write.
fn it_grows_under_both(site: &Site, share: &str, pair: [&str; 2], writers: [&Writer; 2]) {
    let before = pair.map(|id| size_mib(site, id));
    site.api.post(&format!("v2/shares/{share}/action"), &json!({"extend": {"new_size": 2}})).unwrap();
    wait::until_else(|| {
        let share = site.api.share(share).unwrap();
        if share["status"] == "available" && share["size"] == 2 {
            Ok(())
        } else {
            Err(format!("{share:#}\n{:#?}", site.failures()))
        }
    });
    site.api.settle();
    for (id, before) in pair.iter().zip(before) {
        let now = size_mib(site, id);
        assert!(now > before * 3 / 2, "{id} had {before} MiB, and has {now}");
    }
    for writer in writers {
        writer.goes_on(writer.acknowledged().len());
    }
}

/// A replica goes once nobody on its host keeps it in use; the other side writes on.
fn it_goes_once_nobody_uses_it(
    site: &Site,
    share: &str,
    [first, second]: [&str; 2],
    near: &Writer,
    theirs: [Writer; 2],
) {
    site.api.delete_replica(second).unwrap();
    let why = wait::until("the removal to say why it waits", || {
        let removal = site.api.operations("kind=delete_replica&limit=1").unwrap();
        let said = format!("{removal:?}");
        said.contains("in use").then_some(said)
    });
    assert!(why.contains("in use by process"), "who keeps it in use is said: {why}");
    near.goes_on(near.acknowledged().len());
    for writer in theirs {
        writer.lost_nothing(site, first);
    }
    wait::until_else(|| match site.api.replicas_of(share).len() {
        1 => Ok(()),
        _ => Err(format!("{:#?}", site.failures())),
    });
    site.api.settle();
    near.goes_on(near.acknowledged().len());
}

#[test]
fn a_share_is_written_to_on_both_hosts_and_loses_nothing() {
    let site = Site::start_writable(Exports::Nfs, 3 * GIB);
    let share = site.share_with("writable", 1, &[]);
    let first = site.api.only_replica(&share, "active");
    site.allow(&share, ADDRESS, "rw");
    site.fill(&first, "first", 8);
    let near = Writer::on_host(&site, &first, "near");
    let second = joined(&site, &share, &first);
    let far = Writer::on_host(&site, &second, "far");
    let nfs = Writer::start(&site, &second, "nfs");
    each_sees_what_the_other_writes(&site, [&first, &second]);

    let (second, far) = if chance::long() {
        it_goes_once_nobody_uses_it(&site, &share, [&first, &second], &near, [far, nfs]);
        // Another one: the share had one before, so that all of it is carried, which takes long beside a writer.
        near.pause(true);
        let second = joined(&site, &share, &first);
        near.pause(false);
        let far = Writer::on_host(&site, &second, "far again");
        each_sees_what_the_other_writes(&site, [&first, &second]);
        (second, far)
    } else {
        nfs.lost_nothing(&site, &first);
        (second, far)
    };
    it_grows_under_both(&site, &share, [&first, &second], [&near, &far]);
    far.lost_nothing(&site, &first);

    // The server starts anew, and neither side notices.
    site.kill();
    site.launch(&[]);
    all_active(&site, &share);
    near.goes_on(near.acknowledged().len());
    near.lost_nothing(&site, &second);
    site.both_up_to_date(&first, &second);
    audit::lawful(&site);
    assert_eq!(audit::leftovers(&site), [] as [String; 0]);
    audit::removed(&site);
}
