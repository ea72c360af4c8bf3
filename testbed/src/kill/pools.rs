//! ZFS pools beneath a kill's scene: put back to where they were, and compared with what the store says.
//!
//! They are those of the guest in which the test itself runs (`cargo xtask testbed run zfs`): `alpha`, `beta`, `gamma`.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

use serde_json::Value;

use super::audit::placed;
use crate::api::word;
use crate::server::BACKENDS;

/// The dataset of a back end.
pub fn dataset(backend: &str) -> String {
    format!("{backend}/tandem")
}

/// Settings of the back end of that name, whose shares are mounted below that folder.
pub fn settings(backend: &str, root: &Path) -> String {
    let (dataset, mounts, run) = (dataset(backend), root.join("mounts"), root.join("run"));
    format!("{{ dataset = {dataset:?}, mounts = {mounts:?}, run = {run:?} }}")
}

/// Empties the pools.
pub fn empty() {
    for (pool, _) in BACKENDS {
        let found = output("zfs", &["list", "-H", "-o", "name", &dataset(pool)]);
        let _ = output("zpool", &["checkpoint", "-d", "-w", pool]);
        if found.is_some() {
            unmount(pool);
            run("zfs", &["destroy", "-R", "-f", &dataset(pool)]);
        }
    }
}

/// From here on [`rewind`] comes back to this moment.
pub fn keep() {
    for (pool, _) in BACKENDS {
        run("zpool", &["checkpoint", pool]);
    }
}

/// Puts everything back to where it was, with nothing mounted, as after a boot.
pub fn rewind() {
    for (pool, _) in BACKENDS {
        unmount(pool);
        run("zpool", &["export", "-f", pool]);
        run(
            "zpool",
            &["import", "-N", "-o", "cachefile=none", "--rewind-to-checkpoint", "-d", "/dev/mapper", pool],
        );
        run("zpool", &["checkpoint", pool]);
    }
}

/// Where the pools differ from what the store says: what belongs to nothing, and what is not there.
pub fn leftovers(rows: &[Value]) -> Vec<String> {
    let run = |argv: &[&str]| output(argv[0], &argv[1..]);
    BACKENDS.iter().flat_map(|(backend, _)| leftovers_of(backend, rows, &run)).collect()
}

/// The same of one pool: instances, snapshots, bookmarks, holds, half transfers, points. `run` gives what a program prints, or
/// nothing when it fails.
pub fn leftovers_of(backend: &str, rows: &[Value], run: &dyn Fn(&[&str]) -> Option<String>) -> Vec<String> {
    let mut found = Vec::new();
    let parent = dataset(backend);
    let wanted = placed(rows, backend);
    let columns = "name,type,receive_resume_token,userrefs";
    let list = ["zfs", "list", "-H", "-p", "-r", "-t", "all", "-o", columns, &parent];
    let Some(listing) = run(&list) else { return found };
    let (mut instances, mut marks) = (BTreeSet::new(), BTreeSet::new());
    for line in listing.lines() {
        let columns: Vec<&str> = line.split('\t').collect();
        let [name, kind, token, holds] = columns[..] else { panic!("zfs list said {line:?}") };
        let Some(inside) = name.strip_prefix(&format!("{parent}/")) else { continue };
        let instance = inside.split(['/', '@', '#']).next().unwrap_or(inside);
        instances.insert(instance.to_owned());
        if token != "-" {
            found.push(format!("{name}: a transfer that is not going on has left its half"));
        }
        let Some((_, short)) = inside.split_once(['@', '#']) else { continue };
        marks.insert((instance, short));
        if !points(rows, instance).contains(short) {
            found.push(format!("{name}: a {kind} that is no point of its share, with {holds} holds"));
        }
    }
    for id in &wanted {
        for point in relied_on(rows, id) {
            if !marks.contains(&(id.as_str(), point.as_str())) {
                found.push(format!(
                    "{backend}: {id} has neither snapshot nor bookmark {point}, which the store lists"
                ));
            }
        }
    }
    if instances != wanted {
        found.push(format!("{backend}: instances are {instances:?}, and should be {wanted:?}"));
    }
    found
}

/// The names of snapshots that the share of an instance needs.
fn points(rows: &[Value], instance: &str) -> BTreeSet<String> {
    let Some(own) = rows.iter().find(|row| row["id"] == instance) else { return BTreeSet::new() };
    let same = rows.iter().filter(|row| row["share_id"] == own["share_id"]);
    same.filter(|row| row["last_point"]["id"].is_string())
        .map(|row| format!("tandem-{}", word(&row["last_point"]["id"])))
        .collect()
}

/// The names of points that an instance must have: of one in sync its own, of an active one those of all in sync.
fn relied_on(rows: &[Value], instance: &str) -> BTreeSet<String> {
    let Some(own) = rows.iter().find(|row| row["id"] == instance) else { return BTreeSet::new() };
    let active = own["replica_state"] == "active";
    let counts = |row: &&Value| {
        let its = row["id"] == instance || (active && row["share_id"] == own["share_id"]);
        its && row["replica_state"] == "in_sync" && row["last_point"]["id"].is_string()
    };
    rows.iter().filter(counts).map(|row| format!("tandem-{}", word(&row["last_point"]["id"]))).collect()
}

/// Unmounts everything of a pool, the deepest first.
fn unmount(pool: &str) {
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
    let of_pool = |line: &&str| {
        let device = line.split(' ').next().unwrap_or_default();
        device == pool || device.starts_with(&format!("{pool}/")) || device.starts_with(&format!("{pool}@"))
    };
    for line in mounts.lines().rev().filter(of_pool) {
        if let Some(at) = line.split(' ').nth(1) {
            let _ = output("umount", &["-f", "-l", at]);
        }
    }
}

fn run(program: &str, arguments: &[&str]) {
    let output = Command::new(program).args(arguments).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?}: {}: {said}", output.status);
}

/// What it printed; nothing when it failed.
fn output(program: &str, arguments: &[&str]) -> Option<String> {
    let output = Command::new(program).args(arguments).output().unwrap();
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// What is wrong with `alpha`, which has this besides the instances `a`, active, and `b`, in sync with it.
    fn wrong(marks: &[&str]) -> Vec<String> {
        let row = |id: &str, state: &str, point: Value| {
            json!({
                "id": id, "share_id": "s", "host": "site@alpha#alpha", "replica_state": state, "last_point": point
            })
        };
        let rows = [row("a", "active", Value::Null), row("b", "in_sync", json!({"id": "1"}))];
        let mut listing = String::new();
        for name in ["", "/a", "/a/v1", "/b", "/b/v1"].iter().chain(marks) {
            listing.push_str(&format!("alpha/tandem{name}\tany\t-\t0\n"));
        }
        leftovers_of("alpha", &rows, &|_| Some(listing.clone()))
    }

    #[test]
    fn the_pools_have_what_the_store_says_and_no_more() {
        assert_eq!(wrong(&["/a/v1@tandem-1", "/a/v1#tandem-1", "/b/v1@tandem-1"]), [] as [String; 0]);
        assert_eq!(wrong(&["/a/v1#tandem-1", "/b/v1@tandem-1"]), [] as [String; 0], "a bookmark will do");
        for (marks, says) in [
            (&["/a/v1@tandem-1"][..], "b has neither"),
            (&["/b/v1@tandem-1"], "a has neither"),
            (&["/a/v1@tandem-1", "/b/v1@tandem-1", "/b/v1@tandem-2"], "no point of its share"),
        ] {
            let found = wrong(marks);
            assert!(found.len() == 1 && found[0].contains(says), "{found:?}");
        }
    }
}
