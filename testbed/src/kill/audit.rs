//! What must be true once a start has carried everything on: in the store, on the storage, and for the user.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use serde_json::Value;

use super::lab::{Beneath, HERE, Lab, THERE};
use super::pools;
use crate::api::{Api, word};
use crate::server::BACKENDS;
use crate::{tree, wait};

/// Statuses at which something may stay for as long as it likes.
const AT_REST: [&str; 1] = ["available"];

/// Everything is at rest, lawful, and without leftovers; every replica holds what its active one does.
pub fn at_rest(lab: &Lab) {
    lab.settle();
    let shares = lab.ask(Api::shares);
    for share in &shares {
        let id = word(&share["id"]);
        lab.in_sync(&id);
        lab.settle();
        let status = word(&share["status"]);
        assert!(AT_REST.contains(&status.as_str()), "share {id} is {status}");
        let active = lab.only_replica(&id, "active");
        let source = lab.export(&active);
        for replica in lab.in_sync(&id) {
            holds(lab, &source, &replica);
        }
    }
    lab.settle();
    lawful(lab);
    // A sync may have been on its way when the folders were looked at; leftovers stay.
    let mut last = Vec::new();
    for _ in 0..40 {
        last = leftovers(lab);
        if last.is_empty() {
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(250));
    }
    panic!("left behind: {last:#?}");
}

fn lawful(lab: &Lab) {
    let findings = lab.ask(Api::doctor);
    assert!(findings.is_empty(), "the doctor finds {findings:?}");
    let mut active: BTreeMap<String, u32> = BTreeMap::new();
    for replica in lab.ask(Api::replicas) {
        if replica["replica_state"] == "active" {
            *active.entry(word(&replica["share_id"])).or_default() += 1;
        }
    }
    assert!(active.values().all(|count| *count == 1), "more than one is active: {active:?}");
}

/// The replica comes to hold what the active one does; the next sync may have to bring it.
fn holds(lab: &Lab, source: &Path, replica: &str) {
    wait::until_else(|| {
        let differences = differences(lab, source, &lab.export(replica));
        if differences.is_empty() {
            return Ok(());
        }
        lab.resync(replica);
        Err(format!("replica {replica} differs from its active one:\n{}", differences.join("\n")))
    });
}

fn differences(lab: &Lab, source: &Path, copy: &Path) -> Vec<String> {
    match lab.beneath {
        Beneath::Directory | Beneath::Zfs => tree::differences(source, copy),
        // The model has no times and no modes, only flat files.
        Beneath::Storage | Beneath::Streamed => {
            let all = names(source).union(&names(copy)).cloned().collect::<Vec<_>>();
            let same = |name: &String| fs::read(source.join(name)).ok() == fs::read(copy.join(name)).ok();
            all.into_iter().filter(|name| !same(name)).collect()
        }
    }
}

/// The share can be used: written, replicated, and removed with all that it left. Without one, a new one is made.
pub fn usable(lab: &Lab) {
    let share = match lab.ask(Api::shares).first() {
        Some(share) => word(&share["id"]),
        None => lab.ask(|api| api.create_share(&lab.share_type, HERE)),
    };
    lab.settle();
    let active = lab.only_replica(&share, "active");
    let source = lab.export(&active);
    let replica = match lab.in_sync(&share).pop() {
        Some(replica) => replica,
        None => {
            let zone = lab.replicas_of(&share)[0]["availability_zone"].clone();
            let zone = if zone == HERE { THERE } else { HERE };
            lab.ask(|api| api.create_replica(&share, zone))
        }
    };
    lab.in_sync(&share);
    lab.settle();
    lab.write(&source, "afterwards");
    lab.resync(&replica);
    holds(lab, &source, &replica);
    lab.in_sync(&share);
    removed(lab);
}

/// Removes every share, and proves that nothing is left of any.
pub fn removed(lab: &Lab) {
    for share in lab.ask(Api::shares) {
        let id = word(&share["id"]);
        for replica in lab.replicas_of(&id).iter().filter(|r| r["replica_state"] != "active") {
            lab.ask(|api| api.delete_replica(&word(&replica["id"])));
        }
        wait::until("the replicas to be gone", || (lab.replicas_of(&id).len() == 1).then_some(()));
        lab.ask(|api| api.delete_share(&id));
    }
    wait::until("the shares to be gone", || lab.ask(Api::shares).is_empty().then_some(()));
    lab.settle();
    lawful(lab);
    assert_eq!(leftovers(lab), [] as [String; 0]);
    let used = lab.ask(Api::used);
    assert!(!used.is_empty() && used.iter().all(|(_, count)| *count == 0), "the project still uses {used:?}");
}

/// What lies on the storage and belongs to nothing in the store.
pub fn leftovers(lab: &Lab) -> Vec<String> {
    let rows = lab.ask(Api::replicas);
    match lab.beneath {
        Beneath::Directory => {
            BACKENDS.iter().flat_map(|(name, _)| folders(&lab.server.backend(name), name, &rows)).collect()
        }
        Beneath::Zfs => pools::leftovers(&rows),
        Beneath::Storage | Beneath::Streamed => world(&lab.server.backend("world"), &rows),
    }
}

fn names(folder: &Path) -> BTreeSet<String> {
    let Ok(entries) = fs::read_dir(folder) else { return BTreeSet::new() };
    entries.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned()).collect()
}

/// Ids of the rows that are placed on a back end.
pub(super) fn placed(rows: &[Value], backend: &str) -> BTreeSet<String> {
    let here = |row: &&Value| row["host"].as_str().is_some_and(|host| host.contains(&format!("@{backend}#")));
    rows.iter().filter(here).map(|row| word(&row["id"])).collect()
}

/// The folders of one back end of the driver `directory`, as its `store.rs` draws them.
fn folders(root: &Path, backend: &str, rows: &[Value]) -> Vec<String> {
    let wanted = placed(rows, backend);
    let mut found = Vec::new();
    let strange = |found: &mut Vec<String>, what: &str, is: &BTreeSet<String>, should: &BTreeSet<String>| {
        if is != should {
            found.push(format!("{backend}: {what} are {is:?}, and should be {should:?}"));
        }
    };
    strange(&mut found, "instances", &names(&root.join("instances")), &wanted);
    strange(&mut found, "exports", &names(&root.join("exports")), &wanted);
    for row in rows.iter().filter(|row| wanted.contains(&word(&row["id"]))) {
        let id = word(&row["id"]);
        let folder = root.join("instances").join(&id);
        let usual: BTreeSet<String> = ["meta.json", "points", "versions"].map(String::from).into();
        strange(&mut found, &format!("the parts of {id}"), &names(&folder), &usual);
        let versions = names(&folder.join("versions"));
        if versions.is_empty() || versions.len() > 2 {
            strange(
                &mut found,
                &format!("the versions of {id}"),
                &versions,
                &BTreeSet::from(["one or two".into()]),
            );
        }
        if row["replica_state"] == "active" {
            let strange = strange_points(root, row, rows);
            found.extend(strange.iter().map(|what| format!("{backend}: {what}")));
        }
    }
    found
}

/// Points of an active instance that no replica has, and replicas that have none of its own.
fn strange_points(root: &Path, row: &Value, rows: &[Value]) -> Vec<String> {
    let id = word(&row["id"]);
    let replicas = rows.iter().filter(|r| r["share_id"] == row["share_id"] && r["id"] != row["id"]);
    let received: BTreeMap<String, Option<String>> = replicas
        .map(|r| (word(&r["id"]), received(&root.with_file_name(backend(r)), &word(&r["id"]))))
        .collect();
    if received.is_empty() {
        return Vec::new();
    }
    let held = names(&root.join("instances").join(&id).join("points"));
    let held: BTreeSet<&str> =
        held.iter().filter_map(|n| n.strip_suffix(".manifest").or(n.strip_suffix(".variants"))).collect();
    let mut found = Vec::new();
    for point in held.iter().filter(|held| !received.values().flatten().any(|point| point == *held)) {
        found.push(format!("point {point} of {id} is needed by nothing"));
    }
    for (replica, point) in &received {
        if !point.as_deref().is_some_and(|point| held.contains(point)) {
            found.push(format!("{id} does not have the point {point:?} of its replica {replica}"));
        }
    }
    found
}

/// The point that a replica has, as it writes down itself.
fn received(root: &Path, id: &str) -> Option<String> {
    let bytes = fs::read(root.join("instances").join(id).join("meta.json")).ok()?;
    let meta: Value = serde_json::from_slice(&bytes).ok()?;
    meta["point"]["id"].as_str().map(String::from)
}

/// The name of the back end that a row is placed on: `host@backend#pool`.
fn backend(row: &Value) -> String {
    let host = word(&row["host"]);
    host.split(['@', '#']).nth(1).unwrap_or_default().to_owned()
}

/// The world of the model driver.
fn world(folder: &Path, rows: &[Value]) -> Vec<String> {
    let Ok(bytes) = fs::read(folder.join("world.json")) else { return Vec::new() };
    let world: Value = serde_json::from_slice(&bytes).unwrap();
    let mut found = Vec::new();
    for (backend, _) in BACKENDS {
        let is: BTreeSet<String> = world[backend]["instances"]
            .as_object()
            .map(|instances| instances.keys().cloned().collect())
            .unwrap_or_default();
        let should = placed(rows, backend);
        if is != should {
            found.push(format!("{backend}: instances are {is:?}, and should be {should:?}"));
        }
    }
    found
}
