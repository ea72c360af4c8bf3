//! A real `tandemd` with drivers in processes of their own and on another host, through kills of each of the three.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a panic is a failed test with its reason")]

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};
use tandem_testbed::api::{Api, word};
use tandem_testbed::far::{Far, HOST, SERVER};
use tandem_testbed::server::Server;
use tandem_testbed::{tree, wait};

/// A server whose first two back ends run in processes, and the third on the other host.
fn server(far: &Far) -> Server {
    let files = far.pki().files(SERVER);
    let more = format!(
        "[tls]\ncertificate = {:?}\nkey = {:?}\nca = {:?}\n[hosts.{HOST}]\naddress = {:?}\n[manager]\n\
         pool_interval_seconds = 2\nheal_interval_seconds = 2",
        files.certificate,
        files.key,
        files.ca,
        far.address()
    );
    let server = Server::prepare_with(
        "directory",
        |name, root| {
            let place =
                if name == "gamma" { format!("host = {HOST:?}") } else { "runs = \"process\"".into() };
            format!("{{ root = {root:?} }}\n{place}")
        },
        &more,
    );
    let text = std::fs::read_to_string(server.settings()).unwrap();
    std::fs::write(server.settings(), format!("host = {SERVER:?}\n{text}")).unwrap();
    server
}

fn state(server: &Server, backend: &str) -> (String, String) {
    let all = server.tandem(&["backends"]);
    let one = all.as_array().unwrap().iter().find(|b| b["name"] == backend).unwrap();
    (word(&one["state"]), one["reason"].as_str().unwrap_or_default().to_owned())
}

fn is_up(server: &Server, backend: &str) {
    wait::until_else(|| match state(server, backend) {
        (state, _) if state == "up" => Ok(()),
        (_, reason) => Err(format!("{backend}: {reason}")),
    });
}

fn replica<'a>(all: &'a [Value], id: &str) -> Option<&'a Value> {
    all.iter().find(|r| r["id"] == id)
}

fn in_sync(api: &Api, id: &str, with: &[(&PathBuf, &str)]) {
    wait::until_else(|| {
        let all = api.replicas().unwrap();
        let found = replica(&all, id).cloned().unwrap_or_default();
        if found["replica_state"] != "in_sync" {
            return Err(format!("{found}"));
        }
        let copy = api.export(id).unwrap().ok_or("it has no export")?;
        for (folder, name) in with {
            let (here, there) = (std::fs::read(folder.join(name)), std::fs::read(copy.join(name)));
            if here.is_err() || here.unwrap() != there.unwrap_or_default() {
                return Err(format!("{name} is not there yet"));
            }
        }
        Ok(())
    });
}

/// The child of that back end's kind: every process that this server started.
fn children(server: &Server) -> Vec<i32> {
    let parent = server.pid().as_raw_nonzero().get();
    let file = format!("/proc/{parent}/task");
    let tasks = std::fs::read_dir(file).unwrap().flatten();
    tasks
        .filter_map(|task| std::fs::read_to_string(task.path().join("children")).ok())
        .flat_map(|list| list.split_whitespace().map(|pid| pid.parse().unwrap()).collect::<Vec<_>>())
        .collect()
}

#[test]
fn server_process_and_host_are_killed_and_nothing_is_lost() {
    let mut far = Far::start(&["directory"]);
    let mut server = server(&far);
    server.launch();
    for backend in ["alpha", "beta", "gamma"] {
        is_up(&server, backend);
    }
    let drivers = server.tandem(&["drivers"]);
    assert!(
        drivers.as_array().unwrap().iter().any(|d| d["host"] == HOST && d["state"] == "loaded"),
        "{drivers}"
    );

    let api = Api::new(&server.endpoint());
    api.create_type("mirrored", "readable", &[("replication:rpo_seconds", "2")]).unwrap();
    let share = api.create_share("mirrored", "zone-a").unwrap();
    let active = wait::until("the share", || {
        let all = api.replicas().unwrap();
        all.iter().find(|r| r["share_id"] == *share && r["status"] == "available").map(|r| word(&r["id"]))
    });
    let folder = api.export(&active).unwrap().unwrap();
    std::fs::write(folder.join("first"), "one").unwrap();
    let copy = api.create_replica(&share, "zone-b").unwrap();
    in_sync(&api, &copy, &[(&folder, "first")]);

    // The server, while a far call runs.
    std::fs::write(folder.join("large"), vec![7; 96 << 20]).unwrap();
    wait::until("a sync to the other host", || {
        let syncs = api.operations("kind=sync&unfinished=true").unwrap();
        syncs.first().map(drop)
    });
    let orphans = children(&server);
    assert!(!orphans.is_empty());
    server.kill();
    server.launch();
    wait::until("the children to end with their server", || {
        let lives = |pid: &i32| PathBuf::from(format!("/proc/{pid}/exe")).exists();
        (!orphans.iter().any(lives)).then_some(())
    });
    in_sync(&api, &copy, &[(&folder, "first"), (&folder, "large")]);

    // The other host.
    far.kill();
    wait::until("the host to be seen as away", || {
        let (state, reason) = state(&server, "gamma");
        (state == "down" && reason.contains("host `storage2`")).then_some(())
    });
    wait::until("the host to be shown as away", || {
        let drivers = server.tandem(&["drivers"]);
        drivers.as_array().unwrap().iter().any(|d| d["host"] == HOST && d["state"] == "away").then_some(())
    });
    let doctor = server.try_tandem(&["doctor"]);
    assert!(String::from_utf8_lossy(&doctor.stdout).contains("storage2"), "{doctor:?}");
    std::fs::write(folder.join("meanwhile"), "two").unwrap();
    far.launch();
    is_up(&server, "gamma");
    in_sync(&api, &copy, &[(&folder, "meanwhile")]);

    // The drivers' processes.
    for pid in children(&server) {
        let pid = rustix::process::Pid::from_raw(pid).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    }
    std::fs::write(folder.join("after"), "three").unwrap();
    in_sync(&api, &copy, &[(&folder, "after")]);
    is_up(&server, "alpha");

    // And across the hosts it is turned round.
    api.act(&copy, "promote").unwrap();
    wait::until_else(|| {
        let all = api.replicas().unwrap();
        let found = replica(&all, &copy).cloned().unwrap_or_default();
        if found["replica_state"] == "active" { Ok(()) } else { Err(format!("{found}")) }
    });
    let new = api.export(&copy).unwrap().unwrap();
    std::fs::write(new.join("turned"), "four").unwrap();
    in_sync(&api, &active, &[(&new, "turned"), (&new, "large")]);
    wait::until_else(|| {
        let found = api.doctor().unwrap();
        if found.is_empty() { Ok(()) } else { Err(format!("{found:?}")) }
    });
    let last = children(&server);
    server.stop();
    wait::until("the children to end with their server", || {
        let lives = |pid: &i32| PathBuf::from(format!("/proc/{pid}/exe")).exists();
        (!last.iter().any(lives)).then_some(())
    });
}

/// One share without replicas.
struct Moving {
    server: Server,
    api: Api,
    share: String,
}

impl Moving {
    fn new(far: &Far) -> Self {
        let mut server = server(far);
        server.launch();
        for backend in ["alpha", "beta", "gamma"] {
            is_up(&server, backend);
        }
        let api = Api::new(&server.endpoint());
        let specs = json!({"driver_handles_share_servers": "False"});
        let body = json!({"share_type": {"name": "plain", "extra_specs": specs}});
        api.post("v2/types", &body).unwrap();
        let share = api.create_share("plain", "zone-a").unwrap();
        wait::until("the share", || (api.share(&share).unwrap()["status"] == "available").then_some(()));
        Self { server, api, share }
    }

    /// Names of what is there, by back end.
    fn held(&self) -> Vec<&'static str> {
        let names = ["alpha", "beta", "gamma"].into_iter();
        names
            .filter(|name| {
                std::fs::read_dir(self.server.backend(name).join("instances")).unwrap().next().is_some()
            })
            .collect()
    }

    fn export(&self) -> PathBuf {
        let found = self.api.get(&format!("v2/shares/{}/export_locations", self.share)).unwrap();
        PathBuf::from(word(&found["export_locations"][0]["path"]))
    }

    fn act(&self, body: &Value) {
        self.api.migration(&self.share, body);
    }

    /// By points: what is asked for rules a copy from host to host out.
    fn start(&self, backend: &str) {
        self.act(&self.api.wish(backend, tree::is_root()));
    }

    fn until(&self, task: &str) {
        self.api.until_task(&self.share, task);
    }

    fn at_rest(&self, backend: &str) {
        wait::until_else(|| {
            let busy = self.api.operations("unfinished=true").unwrap();
            let doctor = self.api.doctor().unwrap();
            if busy.is_empty() && doctor.is_empty() && self.held() == [backend] {
                return Ok(());
            }
            Err(format!("{:?} {busy:?} {doctor:?}", self.held()))
        });
        assert_eq!(self.api.share(&self.share).unwrap()["status"], "available");
    }
}

/// What a tree held at a moment.
fn kept(tree: &Path) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let copy = folder.path().join("kept");
    assert!(
        Command::new("/bin/cp").arg("-a").args([tree.join("."), copy.clone()]).status().unwrap().success()
    );
    (folder, copy)
}

#[test]
fn a_share_moves_to_another_host_and_back_through_kills() {
    let mut far = Far::start(&["directory"]);
    let mut moving = Moving::new(&far);
    let home = moving.held()[0];
    let source = moving.export();
    tree::write(&source);
    std::fs::write(source.join("large"), vec![7; 96 << 20]).unwrap();

    // Both ends of the stream are killed while it runs.
    moving.start("gamma");
    wait::until("the first phase", || {
        let task = moving.api.share(&moving.share).unwrap()["task_state"].to_string();
        (task.contains("in_progress") || task.contains("phase1_done")).then_some(())
    });
    moving.server.kill();
    moving.server.launch();
    far.kill();
    far.launch();
    moving.until("migration_driver_phase1_done");
    assert_eq!(moving.export(), source);
    tree::change(&source);
    let (_folder, reference) = kept(&source);
    moving.act(&json!({"migration_complete": null}));
    moving.until("migration_success");
    moving.at_rest("gamma");
    let there = moving.export();
    assert_eq!(tree::differences(&reference, &there), [] as [String; 0]);
    assert!(!source.exists(), "nothing is left of the source");
    let points = moving.server.backend("gamma").join("instances");
    let instance = std::fs::read_dir(points).unwrap().next().unwrap().unwrap().path();
    let manifests = std::fs::read_dir(instance.join("points")).unwrap().flatten();
    let manifests: Vec<_> = manifests.filter(|f| f.path().extension().is_some()).collect();
    assert!(manifests.is_empty(), "points are left: {manifests:?}");

    // Given up on the way back: it goes on where it is.
    moving.start(home);
    moving.until("migration_driver_phase1_done");
    moving.act(&json!({"migration_cancel": null}));
    moving.until("migration_cancelled");
    std::fs::write(there.join("users write here"), "y").unwrap();
    moving.at_rest("gamma");
    // And back, with the server killed in the second phase.
    moving.start(home);
    moving.until("migration_driver_phase1_done");
    let (_folder, reference) = kept(&there);
    moving.act(&json!({"migration_complete": null}));
    moving.server.kill();
    moving.server.launch();
    moving.until("migration_success");
    moving.at_rest(home);
    assert_eq!(tree::differences(&reference, &moving.export()), [] as [String; 0]);
}

#[test]
fn a_destination_that_is_away_as_its_server_starts_is_waited_for() {
    let mut far = Far::start(&["directory"]);
    let mut moving = Moving::new(&far);
    let home = moving.held()[0];
    tree::write(&moving.export());
    let wish = moving.api.wish("gamma", tree::is_root());
    moving.server.stop();
    moving.server.spawn(&[("TANDEM_KILL_AT", "migrate:1:after")]);
    assert_eq!(moving.server.ready_or_ended(), None);
    is_up(&moving.server, "gamma");
    // It dies in the middle of its answer.
    let _ = moving.api.share_action(&moving.share, "2.97", false, &wish);
    moving.server.ended();
    far.kill();
    moving.server.launch();
    wait::until("the host to be seen as away", || {
        let (state, reason) = state(&moving.server, "gamma");
        (state == "down" && reason.contains(HOST)).then_some(())
    });
    far.launch();
    moving.until("migration_driver_phase1_done");
    moving.act(&json!({"migration_cancel": null}));
    moving.until("migration_cancelled");
    moving.at_rest(home);
}
