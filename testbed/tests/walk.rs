//! The walk of a newcomer, with the stock OpenStack client against a real server and drivers loaded from files.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // helpers of tests are tests

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;
use tandem_testbed::client::Openstack;
use tandem_testbed::server::Server;
use tandem_testbed::{artifacts, tree, wait};

/// A server and its user.
struct Walk {
    server: Server,
    client: Openstack,
}

impl Walk {
    fn start() -> Self {
        let server = Server::start();
        let client = Openstack::new(&server.endpoint());
        Self { server, client }
    }

    /// A share type of this style, and a share of it, at rest.
    fn share(&self, name: &str, style: &str) {
        let style = format!("replication_type={style}");
        self.client.run(&["share", "type", "create", name, "False", "--extra-specs", &style]);
        let zone = ["--availability-zone", "zone-a"];
        self.client.run(
            &[&["share", "create", "NFS", "2", "--name", name, "--share-type", name, "--wait"], &zone[..]]
                .concat(),
        );
    }

    /// Where the share is written to.
    fn export(&self, share: &str) -> PathBuf {
        only(paths(&self.client.json(&["share", "export", "location", "list", share])))
    }

    /// Where a replica can be reached; nowhere, perhaps.
    fn exports_of(&self, replica: &str) -> Vec<PathBuf> {
        paths(&self.client.json(&["share", "replica", "export", "location", "list", replica]))
    }

    /// The ids of a share's replicas with this state.
    fn replicas(&self, share: &str, state: &str) -> Vec<String> {
        let list = self.client.json(&["share", "replica", "list", "--share", share]);
        let with_state = |replica: &&Value| replica["Replica State"] == state;
        list.as_array()
            .unwrap()
            .iter()
            .filter(with_state)
            .map(|r| r["ID"].as_str().unwrap().to_string())
            .collect()
    }

    /// Waits for the one replica that follows to be `in_sync`, and answers its id.
    fn in_sync(&self, share: &str) -> String {
        wait::until("a replica to be in_sync", || self.replicas(share, "in_sync").pop())
    }

    /// Asks for a sync of a replica, waits for its end, and answers the bytes that syncs have carried to it since.
    fn resync(&self, replica: &str) -> u64 {
        let before = self.syncs(replica);
        self.client.run(&["share", "replica", "resync", replica]);
        wait::until("the resync to end", || {
            let list = self.syncs(replica);
            let new = || list.iter().filter(|op| !before.iter().any(|old| old["id"] == op["id"]));
            let ended = new().next().is_some() && new().all(|op| op["status"] == "done");
            if let Some(failed) = new().find(|op| op["status"] == "failed") {
                panic!("a sync failed: {failed}");
            }
            ended.then(|| new().map(|op| op["bytes"].as_u64().unwrap()).sum())
        })
    }

    fn syncs(&self, replica: &str) -> Vec<Value> {
        let list = self.server.tandem(&["operations", "--replica", replica, "--kind", "sync"]);
        list.as_array().unwrap().clone()
    }

    /// What `/v1` says of a replica.
    fn native(&self, replica: &str) -> Value {
        let list = self.server.tandem(&["replicas"]);
        list.as_array().unwrap().iter().find(|r| r["id"] == replica).cloned().unwrap()
    }

    /// Nothing of the manager's laws is broken, and nothing is left of this share.
    fn end(mut self, share: &str) {
        wait::until("the share to be gone", || {
            let list = self.client.json(&["share", "list"]);
            list.as_array().unwrap().iter().all(|s| s["Name"] != share).then_some(())
        });
        let doctor = self.server.tandem(&["doctor"]);
        assert_eq!(doctor["healthy"], true, "{doctor}");
        assert_eq!(self.server.tandem(&["replicas"]), serde_json::json!([]));
        assert!(self.server.stop().success(), "SIGTERM ends the server in order:\n{}", self.server.log());
    }
}

fn paths(list: &Value) -> Vec<PathBuf> {
    list.as_array()
        .unwrap()
        .iter()
        .map(|location| PathBuf::from(location["Path"].as_str().unwrap()))
        .collect()
}

fn only<T: std::fmt::Debug>(mut list: Vec<T>) -> T {
    assert_eq!(list.len(), 1, "{list:?}");
    list.remove(0)
}

fn assert_equal(source: &Path, copy: &Path) {
    let differences = tree::differences(source, copy);
    assert!(
        differences.is_empty(),
        "{} and {} differ:\n{}",
        source.display(),
        copy.display(),
        differences.join("\n")
    );
}

/// Nobody but root, who sees through every mode, can write there.
fn assert_read_only(folder: &Path) {
    let mode = fs::metadata(folder).unwrap().permissions().mode();
    assert_eq!(mode & 0o222, 0, "{} has mode {mode:o}", folder.display());
    if !tree::is_root() {
        assert!(fs::write(folder.join("may not"), "").is_err());
    }
}

#[test]
fn a_readable_share_is_mirrored_promoted_resynced_and_deleted() {
    let walk = Walk::start();
    walk.share("mirrored", "readable");

    walk.client.run(&["share", "access", "create", "mirrored", "ip", "10.0.0.0/8", "--wait"]);
    let rules = walk.server.tandem(&["shares"]);
    assert_eq!(rules[0]["status"], "available");

    let alpha = walk.export("mirrored");
    tree::write(&alpha);

    walk.client.run(&["share", "replica", "create", "mirrored", "--availability-zone", "zone-b", "--wait"]);
    let second = walk.in_sync("mirrored");
    let shown = walk.client.json(&["share", "replica", "show", &second]);
    assert_eq!(shown["availability_zone"], "zone-b");
    assert_eq!(shown["replica_state"], "in_sync");
    let gamma = only(walk.exports_of(&second));
    assert_equal(&alpha, &gamma);
    assert_read_only(&gamma);
    let carried: u64 = walk.syncs(&second).iter().map(|op| op["bytes"].as_u64().unwrap()).sum();
    assert!(carried >= tree::LARGE, "the first sync carries everything: {carried}");
    assert!(carried < tree::LARGE + tree::SPARSE, "the holes of the sparse file are not carried: {carried}");

    let new = tree::change(&alpha);
    let carried = walk.resync(&second);
    assert!(carried >= new, "{carried} of {new}");
    assert!(carried < new * 3 / 2, "only the change is carried: {new} bytes are new, {carried} were carried");
    assert_equal(&alpha, &gamma);
    let native = walk.native(&second);
    assert!(native["lag_seconds"].as_u64().is_some_and(|lag| lag <= 60), "{native}");
    assert!(native["last_point"]["id"].is_string(), "{native}");

    let first = only(walk.replicas("mirrored", "active"));
    walk.client.run(&["share", "replica", "promote", &second, "--wait"]);
    assert_eq!(only(walk.replicas("mirrored", "active")), second);
    fs::write(gamma.join("written after the promotion"), "here\n").unwrap();
    assert_read_only(&alpha);
    walk.resync(&first);
    assert_equal(&gamma, &alpha);
    assert_eq!(walk.in_sync("mirrored"), first, "the old active follows");

    let refused = walk.client.refused(&["share", "replica", "delete", &second]);
    assert!(refused.contains("last"), "{refused}");
    walk.client.run(&["share", "replica", "delete", &first, "--wait"]);
    assert!(!alpha.exists() || fs::read_dir(&alpha).unwrap().next().is_none(), "nothing is left of it");
    walk.client.run(&["share", "delete", "mirrored", "--wait"]);
    assert!(!gamma.exists(), "nothing is left of it");
    walk.end("mirrored");
}

#[test]
fn a_dr_replica_cannot_be_reached_until_it_is_promoted() {
    let walk = Walk::start();
    walk.share("guarded", "dr");
    let alpha = walk.export("guarded");
    fs::write(alpha.join("file"), "content\n").unwrap();

    walk.client.run(&["share", "replica", "create", "guarded", "--availability-zone", "zone-b", "--wait"]);
    let second = walk.in_sync("guarded");
    let first = only(walk.replicas("guarded", "active"));
    assert_eq!(walk.exports_of(&second), [] as [PathBuf; 0]);
    assert_eq!(walk.native(&second)["exports"], serde_json::json!([]));
    walk.resync(&second);

    walk.client.run(&["share", "replica", "promote", &second, "--wait"]);
    let gamma = only(walk.exports_of(&second));
    assert_ne!(gamma, alpha);
    assert_eq!(fs::read_to_string(gamma.join("file")).unwrap(), "content\n");
    fs::write(gamma.join("file"), "changed\n").unwrap();
    assert_eq!(walk.exports_of(&first), [] as [PathBuf; 0]);
    assert!(!alpha.join("file").exists(), "the old path leads nowhere now");

    walk.resync(&first);
    walk.client.run(&["share", "replica", "promote", &first, "--wait"]);
    let back = only(walk.exports_of(&first));
    assert_eq!(
        fs::read_to_string(back.join("file")).unwrap(),
        "changed\n",
        "failback is the same verb again"
    );

    walk.client.run(&["share", "replica", "delete", &second, "--wait"]);
    walk.client.run(&["share", "delete", "guarded", "--wait"]);
    walk.end("guarded");
}

#[test]
fn writable_finds_no_valid_host_and_says_why() {
    let walk = Walk::start();
    let style = "replication_type=writable";
    walk.client.run(&["share", "type", "create", "both", "False", "--extra-specs", style]);
    walk.client.run(&["share", "create", "NFS", "1", "--name", "both", "--share-type", "both"]);
    wait::until("the share to be in error", || {
        (walk.client.field(&["share", "show", "both"], "status") == "error").then_some(())
    });
    let share = walk.client.field(&["share", "show", "both"], "id");
    let operations = walk.server.tandem(&["operations", "--share", &share, "--kind", "create_share"]);
    let why = operations[0]["error"]["message"].as_str().unwrap().to_lowercase();
    assert!(why.contains("no valid host") && why.contains("writable"), "{why}");
    walk.client.run(&["share", "delete", "both", "--wait"]);
    walk.end("both");
}

#[test]
fn rules_that_nothing_enforces_are_kept_and_never_claimed() {
    let walk = Walk::start();
    let backend = walk.server.tandem(&["backends"])[0].clone();
    assert_eq!(backend["capabilities"]["access_enforcement"], "none", "{backend}");
    walk.share("open", "readable");
    walk.client.run(&["share", "access", "create", "open", "ip", "192.0.2.7", "--wait"]);
    let listed = walk.client.json(&["share", "access", "list", "open"]);
    assert_eq!(listed[0]["Access To"], "192.0.2.7", "{listed}");
    let share = walk.client.field(&["share", "show", "open"], "id");
    let rules = walk.server.native(&format!("access-rules?share_id={share}"));
    assert_eq!(rules["access_rules"][0]["enforced"], false, "{rules}");
    walk.client.run(&["share", "delete", "open", "--wait"]);
    walk.end("open");
}

#[test]
fn a_restart_finds_everything_as_it_was() {
    let mut walk = Walk::start();
    walk.share("kept", "readable");
    let export = walk.export("kept");
    fs::write(export.join("file"), "content\n").unwrap();
    walk.client.run(&["share", "replica", "create", "kept", "--availability-zone", "zone-b", "--wait"]);
    walk.in_sync("kept");
    let before = walk.server.tandem(&["replicas"]);

    assert!(walk.server.stop().success(), "{}", walk.server.log());
    walk.server.launch();
    let after = walk.server.tandem(&["replicas"]);
    for field in ["id", "status", "replica_state", "host", "epoch", "exports"] {
        let of = |list: &Value| list.as_array().unwrap().iter().map(|r| r[field].clone()).collect::<Vec<_>>();
        assert_eq!(of(&before), of(&after), "{field}");
    }
    assert_eq!(walk.export("kept"), export);
    assert_eq!(fs::read_to_string(export.join("file")).unwrap(), "content\n");
    walk.in_sync("kept");
    walk.client.run(&["share", "replica", "delete", &walk.replicas("kept", "in_sync")[0], "--wait"]);
    walk.client.run(&["share", "delete", "kept", "--wait"]);
    walk.end("kept");
}

/// Every fenced `sh` block under the README's tour is executed as printed, line after line in one shell; only the
/// address and the folders are those of this test.
#[test]
fn the_tour_of_the_readme_works_as_printed() {
    let mut server = Server::start();
    let readme = artifacts::readme();
    let tour = readme.split("## A five-minute tour").nth(1).expect("the README has a tour");
    let tour = tour.split("\n## ").next().unwrap();
    let blocks: Vec<&str> =
        tour.split("```").skip(1).step_by(2).filter_map(|block| block.strip_prefix("sh\n")).collect();
    assert!(blocks.len() > 3, "{blocks:?}");
    let script = blocks
        .iter()
        .flat_map(|block| block.lines())
        // Installed already, in a virtual environment that is kept between runs.
        .filter(|line| {
            !line.contains("python3 -m venv") && !line.contains("pip install") && !line.contains("PATH=")
        })
        .map(|line| line.replace("http://127.0.0.1:8786", &server.endpoint()))
        .collect::<Vec<_>>()
        .join("\n");
    let path = [artifacts::client().join("bin"), artifacts::folder()];
    let inherited = std::env::var_os("PATH").unwrap_or_default();
    let path = std::env::join_paths(path.into_iter().chain(std::env::split_paths(&inherited))).unwrap();
    let output = Command::new("bash")
        .args(["-e", "-u", "-x", "-o", "pipefail", "-c", &script])
        .current_dir(server.folder())
        .env("PATH", path)
        .env("TANDEM_ENDPOINT", server.endpoint())
        .output()
        .unwrap();
    let said =
        format!("{}\n{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    println!("{said}");
    assert!(output.status.success(), "the tour ended with {}", output.status);
    assert_eq!(server.tandem(&["shares"]), serde_json::json!([]), "the tour cleans up after itself");
    assert!(server.stop().success());
}
