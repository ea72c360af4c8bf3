//! Share migration between two back ends of plain folders: from host to host, in every form of the API, cancelled,
//! failed, retyped, killed.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // helpers of tests are tests

mod check;
mod disk;
mod lab;

use std::fs;

use serde_json::{Value, json};
use tandem_testbed::api::word;
use tandem_testbed::client::Openstack;
use tandem_testbed::server::Server;
use tandem_testbed::{tree, wait};

use disk::Disk;
use lab::{Lab, SLOW, assert_equal, by_host, cancel, complete, copy, start};

#[test]
fn the_stock_client_moves_a_share_with_every_kind_of_file_from_host_to_host() {
    with_the_stock_client(&["--force-host-assisted-migration", "True"], &[], "data_copying_completed");
}

#[test]
fn the_stock_client_moves_a_share_with_every_kind_of_file_by_the_driver() {
    // Only root can give files to others.
    let metadata = rustix::process::geteuid().is_root().then_some("--preserve-metadata");
    let wanted: Vec<&str> = ["--writable", "--preserve-snapshots"].into_iter().chain(metadata).collect();
    with_the_stock_client(&[], &wanted, "migration_driver_phase1_done");
}

/// Moves a share and gives up the way back; `wanted` are the promises that are asked for.
fn with_the_stock_client(more: &[&str], wanted: &[&str], waits: &str) {
    let lab = Lab::start();
    let client = Openstack::new(&lab.server.endpoint());
    let alpha = lab.export();
    tree::write(&alpha);
    let kept = tempfile::tempdir().unwrap();
    let reference = kept.path().join("reference");
    copy(&alpha, &reference);
    let beta = lab.pool("beta");
    let other = json!({"name": "other", "extra_specs": {"driver_handles_share_servers": "False"}});
    lab.api.post("v2/types", &json!({"share_type": other})).unwrap();
    let promises = ["--writable", "--nondisruptive", "--preserve-metadata", "--preserve-snapshots"];
    let asked = |p: &str| if wanted.contains(&p) { "True" } else { "False" };
    let promises = promises.iter().flat_map(|p| [*p, asked(p)]).chain(["--new-share-type", "other"]);
    let promises: Vec<&str> = promises.chain(more.iter().copied()).collect();
    client.run(&[&["share", "migration", "start", "moving", &beta], &promises[..]].concat());
    lab.until(waits);
    let shown = client.json(&["share", "migration", "show", "moving"]);
    assert_eq!((&shown["total_progress"], &shown["task_state"]), (&json!(100), &json!(waits)));

    // Users go on writing until it is completed.
    assert_eq!(lab.show()["status"], "migrating");
    assert_eq!(lab.export(), alpha);
    fs::write(alpha.join("written meanwhile"), "x").unwrap();
    fs::write(reference.join("written meanwhile"), "x").unwrap();
    tree::change(&alpha);
    let kept = tempfile::tempdir().unwrap();
    let reference = kept.path().join("reference");
    copy(&alpha, &reference);

    client.run(&["share", "migration", "complete", "moving"]);
    lab.until("migration_success");
    assert_eq!(lab.show()["share_type_name"], "other");
    let there = lab.export();
    assert_ne!(there, alpha);
    assert_equal(&reference, &there);
    fs::write(there.join("users write here now"), "y").unwrap();
    lab.at_rest("beta");
    assert!(!alpha.exists(), "nothing is left of the source");

    // And back, given up half way.
    let home = lab.pool("alpha");
    client.run(&[&["share", "migration", "start", "moving", &home], &promises[..]].concat());
    lab.until(waits);
    client.run(&["share", "migration", "cancel", "moving"]);
    lab.until("migration_cancelled");
    assert_eq!(fs::read_to_string(there.join("users write here now")).unwrap(), "y");
    lab.at_rest("beta");
    client.run(&["share", "set", "moving", "--task-state", "migration_error"]);
    assert_eq!(lab.task(), "migration_error");
    client.run(&["share", "set", "moving", "--status", "available"]);
    assert_eq!(lab.show()["task_state"], Value::Null);
}

#[test]
fn by_the_driver_it_is_killed_cancelled_and_refused_as_from_host_to_host() {
    let mut lab = Lab::start();
    let alpha = lab.export();
    for n in 0..300 {
        fs::write(alpha.join(format!("file {n}")), vec![n as u8; 300_000]).unwrap();
    }
    let beta = lab.pool("beta");
    let asked = [("writable", json!(true)), ("preserve_snapshots", json!(true))];
    assert_eq!(lab.act(&start(&beta, &asked)).0, 202);
    lab.server.kill();
    lab.server.launch();
    lab.until("migration_driver_phase1_done");
    fs::write(alpha.join("late"), "late").unwrap();
    assert_eq!(lab.act(&complete()).0, 202);
    lab.server.kill();
    lab.server.launch();
    lab.until("migration_success");
    lab.at_rest("beta");
    let there = lab.export();
    assert_eq!(fs::read_dir(&there).unwrap().count(), 301);
    assert_eq!(fs::read_to_string(there.join("late")).unwrap(), "late");

    let home = lab.pool("alpha");
    for wait in ["migration_starting", "migration_driver_in_progress", "migration_driver_phase1_done"] {
        assert_eq!(lab.act(&start(&home, &asked)).0, 202);
        if wait != "migration_starting" {
            wait::until("the driver", || {
                let task = lab.task();
                (task == wait || task == "migration_driver_phase1_done").then_some(())
            });
        }
        lab.cancel_natively();
        lab.until("migration_cancelled");
        fs::write(there.join("still"), wait).unwrap();
        lab.at_rest("beta");
    }
    // What no folder can promise.
    assert_eq!(lab.act(&start(&home, &[("nondisruptive", json!(true))])).0, 202);
    lab.until("migration_error");
    assert!(lab.why().contains("nondisruptive"), "{}", lab.why());
    lab.at_rest("beta");
}

#[test]
fn where_the_driver_fails_it_goes_on_by_points_unless_promises_of_the_driver_alone_are_wanted() {
    let lab = Lab::start();
    let alpha = lab.export();
    fs::write(alpha.join("file"), "content").unwrap();
    let source = word(&lab.instances()[0]["id"]);
    let notes = lab.server.backend("alpha").join(format!("instances/{source}/moving.json"));
    let beta = lab.pool("beta");
    // Notes that nobody can read keep the driver from its start.
    fs::write(&notes, "{").unwrap();
    assert_eq!(lab.act(&start(&beta, &[("preserve_snapshots", json!(true))])).0, 202);
    lab.until("migration_error");
    assert!(lab.why().contains("damaged"), "{}", lab.why());
    fs::write(alpha.join("still"), "writable").unwrap();
    lab.at_rest("alpha");

    fs::write(&notes, "{").unwrap();
    assert_eq!(lab.act(&start(&beta, &[("writable", json!(true))])).0, 202);
    lab.until("migration_driver_phase1_done");
    let op = lab.api.operations("kind=migrate").unwrap()[0].clone();
    assert!(op["remarks"].to_string().contains("went on another way"), "{op}");
    fs::set_permissions(&alpha, std::os::unix::fs::PermissionsExt::from_mode(0o751)).unwrap();
    assert_eq!(lab.act(&complete()).0, 202);
    lab.until("migration_success");
    lab.at_rest("beta");
    let there = lab.export();
    assert_eq!(fs::read_to_string(there.join("still")).unwrap(), "writable");
    let mode = std::os::unix::fs::MetadataExt::mode(&fs::metadata(&there).unwrap());
    assert_eq!(mode & 0o7777, 0o751);
}

#[test]
fn every_form_of_the_call_does_what_its_documents_say() {
    let lab = Lab::start();
    fs::write(lab.export().join("file"), "content").unwrap();
    let (alpha, beta) = (lab.pool("alpha"), lab.pool("beta"));
    // Each form exists in its versions only, and is experimental until 2.96.
    let old = json!({"migrate_share": {"host": beta}});
    for (version, experimental) in [("2.6", true), ("2.7", false), ("2.15", true), ("2.96", true)] {
        assert_eq!(lab.at(version, experimental, &old).0, 404, "{version} {experimental}");
    }
    assert_eq!(lab.at("2.95", false, &start(&beta, &[])).0, 404);
    assert_eq!(lab.at("2.14", true, &start(&beta, &[])).0, 404);

    // 2.5: one phase, completes by itself.
    let body = json!({"os-migrate_share": {"host": beta, "force_host_copy": true, "unknown": 1}});
    assert_eq!(lab.at("2.5", true, &body).0, 202);
    lab.until("migration_success");
    lab.at_rest("beta");
    // 2.7: the same by its later name.
    assert_eq!(lab.at("2.14", true, &json!({"migrate_share": {"host": alpha}})).0, 202);
    lab.until("migration_success");
    lab.at_rest("alpha");
    // 2.15: two phases where nobody asks for one.
    let body = json!({"migration_start": {"host": beta, "notify": false}});
    assert_eq!(lab.at("2.15", true, &body).0, 202);
    lab.until("migration_driver_phase1_done");
    assert_eq!(lab.at("2.15", true, &complete()).0, 202);
    lab.until("migration_success");
    lab.at_rest("beta");
    let body = json!({"migration_start": {"host": alpha, "force_host_copy": "true"}});
    assert_eq!(lab.at("2.21", true, &body).0, 202);
    lab.until("migration_success");
    lab.at_rest("alpha");
    // 2.22: what is not said is asked of the driver; nobody can promise that users notice nothing.
    let body = json!({"migration_start": {"host": beta, "nondisruptive": true}});
    assert_eq!(lab.at("2.22", true, &body).0, 202);
    lab.until("migration_error");
    assert!(lab.why().contains("nondisruptive"), "{}", lab.why());
    lab.at_rest("alpha");
    // Only root keeps all metadata.
    let body = json!({"migration_start": {"host": beta, "preserve_metadata": tree::is_root()}});
    assert_eq!(lab.at("2.22", true, &body).0, 202);
    lab.until("migration_driver_phase1_done");
    assert_eq!(lab.at("2.22", true, &cancel()).0, 202);
    lab.until("migration_cancelled");
    lab.at_rest("alpha");
    let body = json!({"migration_start": {"host": beta, "force_host_assisted_migration": true}});
    assert_eq!(lab.at("2.28", true, &body).0, 202);
    lab.until("data_copying_completed");
    let (status, progress) = lab.at("2.22", true, &json!({"migration_get_progress": null}));
    assert_eq!(status, 200);
    assert!(progress.contains("100") && !progress.contains("details"), "{progress}");
    assert_eq!(lab.at("2.28", true, &complete()).0, 202);
    lab.until("migration_success");
    lab.at_rest("beta");
    assert_eq!(fs::read_to_string(lab.export().join("file")).unwrap(), "content");
}

#[test]
fn what_cannot_be_is_refused_with_its_code() {
    let lab = Lab::start();
    let beta = lab.pool("beta");
    let (status, said) = lab.act(&complete());
    assert!(status == 400 && said.contains("no migration being performed"), "{status} {said}");
    assert_eq!(lab.act(&start("nowhere@beta#x", &[])).0, 404);
    assert_eq!(lab.act(&start(&lab.pool("alpha"), &[])).0, 200);
    assert_eq!(lab.task(), "migration_success");

    lab.begin("beta");
    lab.until("data_copying_completed");
    assert_eq!(lab.act(&start(&beta, &[])).0, 400);
    let rule = json!({"allow_access": {"access_type": "ip", "access_to": "10.0.0.1", "access_level": "rw"}});
    assert_eq!(lab.act(&rule).0, 400, "rules do not change while it migrates");
    assert_eq!(lab.act(&json!({"extend": {"new_size": 2}})).0, 400);
    let dest = lab.instances().into_iter().find(|i| i["status"] == "migrating_to").unwrap();
    let path = format!("v2/share_instances/{}/action", word(&dest["id"]));
    let forced = lab.api.attempt("POST", &path, &json!({"force_delete": null})).unwrap();
    assert_eq!(forced, 400, "the destination is the migration's");
    assert_eq!(lab.act(&cancel()).0, 202);
    lab.until("migration_cancelled");
    let (status, said) = lab.act(&cancel());
    assert!(status == 400 && said.contains("already cancelled"), "{status} {said}");
    lab.at_rest("alpha");

    // A pool that is not there fails later, as in Manila.
    let nowhere = beta.replace('#', "#no-");
    assert_eq!(lab.act(&start(&nowhere, &[])).0, 202);
    lab.until("migration_error");
    lab.at_rest("alpha");

    // A share with replicas stays.
    let api = &lab.api;
    let mirrored = api.create_type("mirrored", "readable", &[]).unwrap();
    let share = api.create_share(&mirrored, "zone-a").unwrap();
    wait::until("the share", || (api.share(&share).unwrap()["status"] == "available").then_some(()));
    api.create_replica(&share, "zone-b").unwrap();
    let body = start(&beta, &[]);
    assert_eq!(api.share_action(&share, "2.97", false, &body).unwrap().0, 409);
}

#[test]
fn rules_type_and_quota_follow_the_share() {
    let lab = Lab::start();
    let rule = json!({"allow_access": {"access_type": "ip", "access_to": "10.0.0.1", "access_level": "ro"}});
    assert_eq!(lab.act(&rule).0, 200);
    wait::until("the rule", || (lab.show()["access_rules_status"] == "active").then_some(()));
    let mirrored = lab.api.create_type("mirrored", "readable", &[]).unwrap();
    let retype = [("new_share_type_id", json!(mirrored))];
    let used = lab.api.used().unwrap();
    assert_eq!(lab.act(&by_host(&lab.pool("beta"), &retype)).0, 202);
    lab.until("data_copying_completed");
    assert_eq!(lab.act(&cancel()).0, 202);
    lab.until("migration_cancelled");
    lab.at_rest("alpha");
    assert_eq!(lab.api.used().unwrap(), used, "what was not retyped is not counted");

    assert_eq!(lab.act(&by_host(&lab.pool("beta"), &retype)).0, 202);
    lab.until("data_copying_completed");
    assert_eq!(lab.act(&complete()).0, 202);
    lab.until("migration_success");
    lab.at_rest("beta");
    let share = lab.show();
    assert_eq!((&share["share_type"], &share["replication_type"]), (&json!(mirrored), &json!("readable")));
    assert_eq!(share["share_proto"], "NFS");
    let rules = lab.api.get(&format!("v2/share-access-rules?share_id={}", lab.share)).unwrap();
    assert_eq!(rules["access_list"][0]["state"], "active", "{rules}");
    // It replicates from now on, from where it is.
    fs::write(lab.export().join("file"), "content").unwrap();
    let replica = lab.api.create_replica(&lab.share, "zone-b").unwrap();
    wait::until("the replica", || {
        let all = lab.api.replicas().unwrap();
        all.iter().any(|r| r["id"] == replica.as_str() && r["replica_state"] == "in_sync").then_some(())
    });
    let there = lab.api.export(&replica).unwrap().unwrap();
    assert_eq!(fs::read_to_string(there.join("file")).unwrap(), "content");
}

#[test]
fn a_source_that_cannot_be_read_is_given_back() {
    let mut lab = Lab::start();
    let secret = lab.export().join("secret");
    fs::write(&secret, "x").unwrap();
    fs::set_permissions(&secret, std::os::unix::fs::PermissionsExt::from_mode(0o0)).unwrap();
    if tree::is_root() {
        lab.server.kill();
        lab.server.launch_without_sight();
    }
    lab.begin("beta");
    lab.until("migration_error");
    let why = lab.why();
    assert!(why.contains("secret"), "{why}");
    let (_, progress) = lab.act(&json!({"migration_get_progress": null}));
    assert!(progress.contains("\"total_progress\":0"), "{progress}");
    lab.at_rest("alpha");
    fs::write(lab.export().join("still"), "writable").unwrap();
}

#[test]
fn a_destination_that_fills_up_gives_the_source_back() {
    if !tree::is_root() {
        return;
    }
    let mut server = Server::prepare_with("directory", |_, root| format!("{{ root = {root:?} }}"), SLOW);
    // A share of 1 GiB fits when its place is chosen.
    let disk = Disk::mount(&server.backend("beta"), 1300 << 20);
    server.launch();
    let lab = Lab::on(server);
    let alpha = lab.export();
    let noise = vec![7_u8; 60 << 20];
    fs::write(alpha.join("first"), &noise[..20 << 20]).unwrap();

    // In the first phase.
    lab.begin("beta");
    lab.until("data_copying_in_progress");
    disk.fill();
    lab.until("migration_error");
    assert!(lab.why().contains("space"), "{}", lab.why());
    fs::write(alpha.join("still"), "writable").unwrap();
    disk.make_room();
    lab.at_rest("alpha");

    // In the second.
    lab.begin("beta");
    lab.until("data_copying_completed");
    fs::write(alpha.join("second"), &noise).unwrap();
    disk.fill();
    assert_eq!(lab.act(&complete()).0, 202);
    lab.until("migration_error");
    assert!(lab.why().contains("space"), "{}", lab.why());
    fs::write(alpha.join("still"), "writable as before").unwrap();
    assert_eq!(fs::metadata(alpha.join("second")).unwrap().len(), 60 << 20);
    disk.make_room();
    lab.at_rest("alpha");
}

#[test]
fn a_destination_that_goes_away_gives_the_source_back() {
    let mut lab = Lab::with(&format!("{SLOW}pool_interval_seconds = 1\n"));
    let alpha = lab.export();
    for n in 0..100 {
        fs::write(alpha.join(format!("file {n}")), vec![n as u8; 300_000]).unwrap();
    }
    // Before it starts: refused at once.
    lab.take_away("beta");
    wait::until("beta to be down", || {
        let (status, said) = lab.act(&start(&lab.service("beta"), &[]));
        assert!(status == 202 || said.contains("is down"), "{status} {said}");
        match status {
            400 => Some(()),
            _ => {
                lab.until("migration_error");
                None
            }
        }
    });
    fs::write(alpha.join("still"), "writable").unwrap();
    lab.bring_back("beta");
    lab.at_rest("alpha");

    // In the first phase, while the server is down as well: what was copied is removed once it can be.
    lab.begin("beta");
    lab.until("data_copying_in_progress");
    lab.server.kill();
    lab.take_away("beta");
    lab.server.launch();
    lab.until("migration_error");
    fs::write(alpha.join("still"), "writable, 1").unwrap();
    assert_eq!(lab.show()["status"], "available");
    lab.bring_back("beta");
    lab.at_rest("alpha");

    // In the second phase.
    lab.begin("beta");
    lab.until("data_copying_completed");
    lab.take_away("beta");
    assert_eq!(lab.act(&complete()).0, 202);
    lab.until("migration_error");
    fs::write(alpha.join("still"), "writable, 2").unwrap();
    assert_eq!(lab.show()["status"], "available");
    lab.bring_back("beta");
    lab.at_rest("alpha");
}

#[test]
fn cancelled_at_each_step_the_source_is_as_before() {
    let lab = Lab::with(SLOW);
    let alpha = lab.export();
    for n in 0..40 {
        fs::write(alpha.join(format!("file {n}")), vec![n as u8; 300_000]).unwrap();
    }
    for (n, at) in
        ["migration_starting", "data_copying_in_progress", "data_copying_completed", "migration_completing"]
            .iter()
            .enumerate()
    {
        lab.begin("beta");
        if n > 0 {
            lab.until(if n == 3 { "data_copying_completed" } else { at });
        }
        if n == 3 {
            // So much that the second phase takes its time.
            fs::write(alpha.join("more"), vec![1_u8; 40 << 20]).unwrap();
            assert_eq!(lab.act(&complete()).0, 202);
            lab.until(at);
        }
        // Manila takes it in some states, the native API in all.
        lab.cancel_natively();
        lab.until("migration_cancelled");
        fs::write(alpha.join("still"), *at).unwrap();
        lab.at_rest("alpha");
    }
    // And whenever it comes to that in the second phase: it is cancelled or done.
    lab.begin("beta");
    lab.until("data_copying_completed");
    assert_eq!(lab.act(&complete()).0, 202);
    let op = lab.cancel_natively();
    wait::until("its end", || {
        let status = lab.api.operation(&op).unwrap()["status"].clone();
        (status == "done" || status == "cancelled").then_some(())
    });
    let backend = if lab.task() == "migration_success" { "beta" } else { "alpha" };
    fs::write(lab.export().join("still"), "there").unwrap();
    lab.at_rest(backend);
}

#[test]
fn twenty_thousand_files_arrive() {
    let lab = Lab::start();
    let alpha = lab.export();
    for folder in 0..100 {
        let folder = alpha.join(format!("{folder:02}"));
        fs::create_dir(&folder).unwrap();
        for n in 0..200 {
            fs::write(folder.join(format!("{n}")), format!("{n}\n").repeat(n)).unwrap();
        }
    }
    let kept = tempfile::tempdir().unwrap();
    let reference = kept.path().join("reference");
    copy(&alpha, &reference);
    lab.begin("beta");
    lab.until("data_copying_completed");
    assert_eq!(lab.act(&complete()).0, 202);
    lab.until("migration_success");
    assert_equal(&reference, &lab.export());
    lab.at_rest("beta");
}

#[test]
fn killed_at_any_moment_it_goes_on_and_a_cancel_ends_it() {
    // Slow enough to be met on its way.
    let mut lab = Lab::with("[manager]\nbandwidth = 30000000\n");
    let alpha = lab.export();
    for n in 0..300 {
        fs::write(alpha.join(format!("file {n}")), vec![n as u8; 300_000]).unwrap();
    }
    lab.begin("beta");
    wait::until("the copy", || (lab.task() == "data_copying_in_progress").then_some(()));
    let progress = wait::until("progress", || {
        let op = lab.api.operations("kind=migrate").unwrap()[0].clone();
        (op["progress"]["done"].as_u64() > Some(0)).then_some(op)
    });
    assert!(progress["progress"]["current"].is_string(), "{progress}");
    assert!(
        progress["progress"]["total"].as_u64() >= Some(300 * 300_000),
        "a total from the beginning: {progress}"
    );
    for _ in 0..3 {
        lab.server.kill();
        lab.server.launch();
    }
    lab.until("data_copying_completed");
    assert_eq!(lab.act(&complete()).0, 202);
    lab.server.kill();
    lab.server.launch();
    lab.until("migration_success");
    lab.at_rest("beta");
    let there = lab.export();
    assert_eq!(fs::read_dir(&there).unwrap().count(), 300);
    assert_eq!(fs::read(there.join("file 299")).unwrap(), vec![43_u8; 300_000]);

    // Cancelled while it copies, by the native API, which takes it at any time.
    lab.begin("alpha");
    wait::until("the copy", || (lab.task() == "data_copying_in_progress").then_some(()));
    let op = lab.cancel_natively();
    lab.until("migration_cancelled");
    let ended = lab.api.operation(&op).unwrap();
    assert_eq!((&ended["status"], &ended["progress"]), (&json!("cancelled"), &Value::Null));
    fs::write(there.join("still"), "writable").unwrap();
    lab.at_rest("beta");
}
