//! Each filter: who passes, who does not, and what is said.

use serde_json::json;
use tandem_contract::{Capabilities, Style};
use tandem_manager::BackendState;
use tandem_manager::schedule::{PlacementRequest, ReplicationRequest, facts, place};

use crate::pools::*;

fn first(style: Style) -> Option<ReplicationRequest> {
    Some(ReplicationRequest { style, existing: Vec::new(), active: None, new_instances: 1 })
}

#[test]
fn the_roomiest_pool_is_taken() {
    let free = |name: &str, gib: u64| with(pool(name), |p| p.pool.free_bytes = Some(gib * GIB));
    assert_eq!(chosen(&request(1), &[free("a", 10), free("b", 30), free("c", 20)]), "b");
    // Ties go by address, whatever the order they come in.
    assert_eq!(chosen(&request(1), &[pool("c"), pool("b"), pool("d")]), "b");
    // What is reserved counts, and a pool that cannot tell comes last.
    let reserved = with(pool("a"), |p| p.backend.reserved_percentage = 50);
    let unknown = with(pool("z"), |p| p.pool.free_bytes = None);
    assert_eq!(chosen(&request(1), &[unknown.clone(), reserved, free("b", 60)]), "b");
    assert_eq!(chosen(&request(1_000_000), &[pool("a"), unknown]), "z");
    // Thin pools are weighed by what may still be promised.
    let thin = |name: &str, promised: u64| {
        with(pool(name), |p| {
            p.backend.capabilities.thin = true;
            p.backend.max_over_subscription_ratio = 2.0;
            p.provisioned_bytes = promised * GIB;
        })
    };
    assert_eq!(chosen(&request(1), &[thin("a", 90), thin("b", 10), pool("c")]), "b");
}

#[test]
fn no_pool_at_all() {
    assert!(place(&request(1), &[]).unwrap_err().to_string().contains("there is no pool"));
}

#[test]
fn back_ends_that_are_down_are_passed_over() {
    let down = with(pool("a"), |p| p.backend.state = BackendState::Down { reason: "it fell over".into() });
    assert_eq!(chosen(&request(1), &[down.clone(), pool("b")]), "b");
    assert!(refused(&request(1), &[down]).contains("tower@a#main: its back end is down: it fell over"));
}

#[test]
fn only_the_host_asked_for() {
    let pools = [pool("a"), pool("b")];
    for (host, expected) in [("tower@b#main", "b"), ("tower@b", "b"), ("tower", "a")] {
        let request = PlacementRequest { only_host: Some(host.into()), ..request(1) };
        assert_eq!(chosen(&request, &pools), expected);
    }
    for host in ["tower@c#main", "b", "tower@b#mai", ""] {
        let request = PlacementRequest { only_host: Some(host.into()), ..request(1) };
        assert!(refused(&request, &pools).contains("was asked for"));
    }
}

#[test]
fn zones() {
    let second = with(pool("b"), |p| p.availability_zone = "z2".into());
    let pools = [pool("a"), second];
    let asked = |zone: Option<&str>, listed: &[(&str, &str)]| {
        specs(PlacementRequest { availability_zone: zone.map(str::to_owned), ..request(1) }, listed)
    };
    assert_eq!(chosen(&asked(Some("z2"), &[]), &pools), "b");
    assert_eq!(chosen(&asked(None, &[("availability_zones", "z2")]), &pools), "b");
    assert_eq!(chosen(&asked(None, &[("availability_zones", " z3 , z2")]), &pools), "b");
    assert_eq!(chosen(&asked(None, &[("availability_zones", "")]), &pools), "a");
    let sentence = refused(&asked(Some("z2"), &[("availability_zones", "z1,z4")]), &pools);
    assert!(sentence.contains("tower@a#main: it is in z1, not in z2"), "{sentence}");
    assert!(sentence.contains("tower@b#main: it is in z2; the share type wants z1 or z4"), "{sentence}");
}

#[test]
fn protocols() {
    let cephfs = with(pool("b"), |p| p.backend.capabilities.share_protocols = vec!["CEPHFS".into()]);
    let asked = |protocol: &str| PlacementRequest { protocol: protocol.into(), ..request(1) };
    assert_eq!(chosen(&asked("cephfs"), &[pool("a"), cephfs.clone()]), "b");
    assert_eq!(chosen(&asked("Cifs"), &[cephfs.clone(), pool("a")]), "a");
    assert_eq!(chosen(&asked(""), std::slice::from_ref(&cephfs)), "b");
    assert!(refused(&asked("NFS"), &[cephfs]).contains("it serves CEPHFS, not NFS"));
}

#[test]
fn share_types_choose_by_facts() {
    let named = with(pool("b"), |p| {
        p.backend.capabilities.extra =
            object(json!({"dedupe": true, "tier": "silver", "snapshot_support": true}));
        p.pool.extra = object(json!({"tier": "gold", "driver_handles_share_servers": true}));
    });
    let pools = [pool("a"), named];
    let cases: &[(&str, &str)] = &[
        ("dedupe", "<is> True"),
        ("capabilities:tier", "<or> gold <or> platinum"),
        ("share_backend_name", "B"),
        ("snapshot_support", "True"),
    ];
    for spec in cases {
        assert_eq!(chosen(&specs(request(1), &[*spec]), &pools), "b", "{spec:?}");
    }
    let anywhere: &[(&str, &str)] = &[
        ("driver_handles_share_servers", "False"),
        ("pool_name", "main"),
        ("driver_name", "directory"),
        ("storage_protocol", "<in> cifs"),
        ("total_capacity_gb", ">= 100"),
        ("directory:anything", "at all"),
        ("replication_type", "<or> dr <or> writable"),
        ("replication:rpo_seconds", "10"),
    ];
    assert_eq!(chosen(&specs(request(1), anywhere), &pools), "a");
    for spec in [("driver_handles_share_servers", "True"), ("tier", "silver"), ("thin_provisioning", "True")]
    {
        let sentence = refused(&specs(request(1), &[spec]), &pools);
        assert!(sentence.contains("2 by the share type: "), "{sentence}");
        assert!(
            sentence.contains(&format!("wants `{}`", spec.1)) || sentence.contains("to be `"),
            "{sentence}"
        );
    }
}

#[test]
fn facts_are_manilas_names() {
    let facts = facts(&pool("a"));
    for (name, value) in [
        ("share_backend_name", json!("a")),
        ("driver_handles_share_servers", json!(false)),
        ("snapshot_support", json!(false)),
        ("replication_type", json!(["readable", "dr"])),
        ("replication_domain", json!(null)),
        ("storage_protocol", json!("NFS_CIFS")),
        ("total_capacity_gb", json!(100.0)),
        ("allocated_capacity_gb", json!("unknown")),
        ("thin_provisioning", json!(false)),
    ] {
        assert_eq!(facts.get(name), Some(&value), "{name}");
    }
}

#[test]
fn styles() {
    let mut readable = with(pool("a"), |p| replicates(p).styles = vec![Style::Readable]);
    readable.backend.driver = "directory".into();
    let none = with(pool("b"), |p| p.backend.capabilities.replication = None);
    let asked = |style| PlacementRequest { replication: first(style), ..request(1) };
    assert_eq!(chosen(&asked(Style::Readable), &[none.clone(), readable.clone()]), "a");
    let sentence = refused(&asked(Style::Writable), &[none, readable.clone(), pool("c")]);
    assert!(sentence.contains("among 3 pools; 3 by the replication type: "), "{sentence}");
    assert!(sentence.contains("tower@b#main: driver directory does not replicate"), "{sentence}");
    assert!(
        sentence.contains("driver directory offers replication_type readable, not writable"),
        "{sentence}"
    );
    assert!(sentence.contains("offers replication_type readable, dr, not writable"), "{sentence}");
    refused(&asked(Style::Unknown), &[with(pool("a"), |p| replicates(p).styles = vec![Style::Unknown])]);
    // Without replication nobody asks for a style.
    assert_eq!(chosen(&request(1), &[readable]), "a");
}

#[test]
fn one_replica_a_pool() {
    let active = pool("a");
    assert_eq!(chosen(&replica_of(&active), &[active.clone(), pool("b")]), "b");
    let other_pool = with(active.clone(), |p| p.address.pool = "second".into());
    assert_eq!(place(&replica_of(&active), &[active.clone(), other_pool]).unwrap().pool, "second");
    let sentence = refused(&replica_of(&active), &[active]);
    assert!(sentence.contains("holds an instance of the share already"), "{sentence}");
}

#[test]
fn domains_and_transports() {
    let domain = |name: &str, domain: &str| with(pool(name), |p| replicates(p).domain = Some(domain.into()));
    let by = |name: &str, transport| with(pool(name), |p| replicates(p).transport = transport);
    let passes: [(_, _); 5] = [
        (pool("a"), pool("b")),
        (domain("a", "x"), domain("b", "x")),
        (by("a", streams(&["1", "2"])), by("b", streams(&["3", "2"]))),
        (by("a", storage(&["drbd.9"])), by("b", storage(&["drbd.9"]))),
        (by("a", streams(&["1"])), with(by("b", streams(&["1"])), |p| p.backend.driver = "other".into())),
    ];
    for (active, candidate) in passes {
        assert_eq!(
            chosen(&replica_of(&active), std::slice::from_ref(&candidate)),
            "b",
            "{active:?} {candidate:?}"
        );
    }
    let fails = [
        (domain("a", "x"), domain("b", "y"), "replication domain y"),
        (domain("a", "x"), pool("b"), "in no replication domain"),
        (pool("a"), domain("b", "x"), "replication domain x"),
        (by("a", streams(&["1"])), by("b", streams(&["2"])), "streams (2)"),
        (by("a", storage(&["1"])), by("b", storage(&["2"])), "its storage (2)"),
        (by("a", storage(&["1"])), by("b", streams(&["1"])), "streams (1)"),
        (by("a", streams(&[])), by("b", streams(&[])), "streams ()"),
        // The same domain does not help who has no language in common.
        (
            with(domain("a", "x"), |p| replicates(p).transport = streams(&["1"])),
            with(domain("b", "x"), |p| replicates(p).transport = streams(&["2"])),
            "streams (2)",
        ),
        (with(pool("a"), |p| p.backend.capabilities = Capabilities::default()), pool("b"), "do not both"),
    ];
    for (active, candidate, said) in fails {
        let sentence = refused(&replica_of(&active), &[candidate]);
        assert!(sentence.contains(said) && sentence.contains("the replication domain"), "{sentence}");
    }
}

#[test]
fn not_more_instances_than_the_storage_takes() {
    let at_most = |name: &str, most: u32| with(pool(name), |p| replicates(p).max_instances = Some(most));
    let two = at_most("b", 2);
    assert_eq!(chosen(&replica_of(&pool("a")), std::slice::from_ref(&two)), "b");
    let mut third = replica_of(&pool("a"));
    third.replication.as_mut().unwrap().existing.push(pool("c").address);
    assert!(refused(&third, &[two]).contains("at most 2 instances there, not 3"));
    assert_eq!(chosen(&third, &[at_most("b", 3)]), "b");
    // What the active's storage takes at most holds too.
    let mut limited = third.clone();
    limited.replication.as_mut().unwrap().active.as_mut().unwrap().1 = at_most("a", 2).backend.capabilities;
    refused(&limited, &[pool("b")]);
    let mut several = PlacementRequest { replication: first(Style::Dr), ..request(1) };
    several.replication.as_mut().unwrap().new_instances = 3;
    refused(&several, &[at_most("b", 2)]);
}

/// Total, free, promised by us, promised by the storage's account, all GiB; thin; ratio; reserved %; size; fits.
#[test]
fn capacity() {
    type Case = (Option<u64>, Option<u64>, u64, Option<u64>, bool, f64, u32, u64, bool);
    let table: &[Case] = &[
        // Thick: what is free, less what is reserved.
        (Some(100), Some(10), 0, None, false, 1.0, 0, 10, true),
        (Some(100), Some(10), 0, None, false, 1.0, 0, 11, false),
        (Some(100), Some(30), 0, None, false, 1.0, 20, 10, true),
        (Some(100), Some(30), 0, None, false, 1.0, 20, 11, false),
        (Some(100), Some(10), 0, None, false, 1.0, 20, 0, false),
        // Promises and the ratio are nothing to a thick pool.
        (Some(100), Some(50), 5000, None, false, 0.5, 0, 50, true),
        // Storage that cannot tell.
        (None, None, 0, None, false, 1.0, 0, 1000, true),
        (Some(1), None, 0, None, false, 1.0, 0, 1000, true),
        (None, Some(10), 0, None, false, 1.0, 0, 10, true),
        (None, Some(10), 0, None, false, 1.0, 0, 11, false),
        (None, Some(10), 0, None, false, 1.0, 1, 1, false),
        (Some(0), Some(0), 0, None, false, 1.0, 0, 0, false),
        // Thin: promises up to the ratio, as long as what is free, times the ratio, holds it.
        (Some(100), Some(50), 0, None, true, 2.0, 0, 100, true),
        (Some(100), Some(50), 0, None, true, 2.0, 0, 101, false),
        (Some(100), Some(100), 150, None, true, 2.0, 0, 50, true),
        (Some(100), Some(100), 150, None, true, 2.0, 0, 51, false),
        (Some(100), Some(100), 150, Some(170), true, 2.0, 0, 31, false),
        (Some(100), Some(100), 150, Some(1), true, 2.0, 0, 50, true),
        (Some(100), Some(20), 0, None, true, 2.0, 10, 20, true),
        (Some(100), Some(20), 0, None, true, 2.0, 10, 21, false),
        (Some(100), Some(100), 0, None, true, 0.9, 0, 1, false),
        (Some(100), Some(100), 0, None, true, f64::NAN, 0, 1, false),
        (Some(100), Some(100), 0, None, true, 1.0, 0, 100, true),
    ];
    let gib = |n: Option<u64>| n.map(|n| n * GIB);
    for &(total, free, promised, allocated, thin, ratio, reserved, size, fits) in table {
        let candidate = with(pool("a"), |p| {
            (p.pool.total_bytes, p.pool.free_bytes, p.pool.allocated_bytes) =
                (gib(total), gib(free), gib(allocated));
            p.provisioned_bytes = promised * GIB;
            p.backend.capabilities.thin = thin;
            p.backend.max_over_subscription_ratio = ratio;
            p.backend.reserved_percentage = reserved;
        });
        let pools = [candidate];
        let answer = place(&request(size), &pools);
        let case = (total, free, promised, allocated, thin, ratio, reserved, size);
        assert_eq!(answer.is_ok(), fits, "{case:?}: {answer:?}");
    }
    let small = with(pool("a"), |p| p.pool.free_bytes = Some(GIB * 3 / 2));
    assert!(refused(&request(2), &[small]).contains("it has room for 1.5 GiB, not for 2 GiB"));
}

/// The sentence tells the reasons of each filter apart, and does not grow with the number of pools.
#[test]
fn the_sentence_stays_short() {
    let mut pools: Vec<_> =
        (0..50).map(|n| with(pool(&format!("b{n:02}")), |p| p.pool.free_bytes = Some(0))).collect();
    pools.push(with(pool("down"), |p| p.backend.state = BackendState::Down { reason: "gone".into() }));
    let sentence = refused(&request(1), &pools);
    assert!(
        sentence.contains("among 51 pools; 1 by the state of the back end: tower@down#main"),
        "{sentence}"
    );
    assert!(
        sentence.contains("50 by capacity: tower@b00#main, ") && sentence.contains("and 46 more"),
        "{sentence}"
    );
    assert!(sentence.len() < 400, "{sentence}");
}
