//! What the scenarios stand on: a server with a share, what is asked of it, and the judges.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use tandem_testbed::api::{Api, word};
use tandem_testbed::server::Server;
use tandem_testbed::{tree, wait};

/// Slow enough to be met on its way.
pub(crate) const SLOW: &str = "[manager]\nbandwidth = 15000000\n";

/// A server with one share on alpha, and its type.
pub(crate) struct Lab {
    pub(crate) server: Server,
    pub(crate) api: Api,
    pub(crate) share_type: String,
    pub(crate) share: String,
}

impl Lab {
    pub(crate) fn start() -> Self {
        Self::with("")
    }

    pub(crate) fn with(more: &str) -> Self {
        let mut server = Server::prepare_with("directory", |_, root| format!("{{ root = {root:?} }}"), more);
        server.launch();
        Self::on(server)
    }

    /// The same on a server that runs already.
    pub(crate) fn on(server: Server) -> Self {
        let api = Api::new(&server.endpoint());
        let specs = json!({"driver_handles_share_servers": "False"});
        let body = json!({"share_type": {"name": "plain", "extra_specs": specs}});
        let share_type = word(&api.post("v2/types", &body).unwrap()["share_type"]["id"]);
        let mut lab = Self { server, api, share_type, share: String::new() };
        lab.share = lab.share_on("alpha");
        lab
    }

    pub(crate) fn share_on(&self, backend: &str) -> String {
        let pool = self.pool(backend);
        let body = json!({"share": {
            "share_proto": "NFS", "size": 1, "share_type": self.share_type, "name": "moving",
            "scheduler_hints": {"only_host": pool},
        }});
        let share = word(&self.api.post("v2/shares", &body).unwrap()["share"]["id"]);
        wait::until("the share", || (self.api.share(&share).unwrap()["status"] == "available").then_some(()));
        assert_eq!(self.api.share(&share).unwrap()["host"], pool.as_str());
        share
    }

    /// `host@backend#pool`.
    pub(crate) fn pool(&self, backend: &str) -> String {
        self.api.pool_of(backend)
    }

    pub(crate) fn show(&self) -> Value {
        self.api.share(&self.share).unwrap()
    }

    pub(crate) fn task(&self) -> String {
        self.show()["task_state"].as_str().unwrap_or_default().to_owned()
    }

    pub(crate) fn until(&self, task: &str) {
        self.api.until_task(&self.share, task);
    }

    pub(crate) fn export(&self) -> PathBuf {
        let found = self.api.get(&format!("v2/shares/{}/export_locations", self.share)).unwrap();
        PathBuf::from(word(&found["export_locations"][0]["path"]))
    }

    pub(crate) fn act(&self, body: &Value) -> (u16, String) {
        self.at("2.97", false, body)
    }

    pub(crate) fn at(&self, version: &str, experimental: bool, body: &Value) -> (u16, String) {
        let (status, answer) = self.api.share_action(&self.share, version, experimental, body).unwrap();
        (status, answer.to_string())
    }

    pub(crate) fn begin(&self, backend: &str) {
        assert_eq!(self.act(&by_host(&self.pool(backend), &[])).0, 202);
    }

    /// Cancels the newest migration by the native API; its operation.
    pub(crate) fn cancel_natively(&self) -> String {
        let op = word(&self.api.operations("kind=migrate").unwrap()[0]["id"]);
        let _ = self.api.attempt("POST", &format!("v1/operations/{op}/cancel"), &Value::Null).unwrap();
        op
    }

    /// Why the newest migration failed.
    pub(crate) fn why(&self) -> String {
        self.api.operations("kind=migrate").unwrap()[0]["error"]["message"].to_string()
    }

    /// `host@backend`.
    pub(crate) fn service(&self, backend: &str) -> String {
        let host = word(&self.show()["host"]);
        format!("{}@{backend}", host.split('@').next().unwrap())
    }

    /// The storage of a back end is not to be found.
    pub(crate) fn take_away(&self, backend: &str) {
        let place = self.server.backend(backend);
        fs::rename(&place, place.with_extension("away")).unwrap();
        fs::write(&place, "no folder").unwrap();
    }

    pub(crate) fn bring_back(&self, backend: &str) {
        let place = self.server.backend(backend);
        fs::remove_file(&place).unwrap();
        fs::rename(place.with_extension("away"), &place).unwrap();
        self.pool_is_back(backend);
    }

    pub(crate) fn pool_is_back(&self, backend: &str) {
        wait::until("the back ends to be up", || {
            let status = self.api.get("v1/status").unwrap();
            (status["status"]["backends"]["down"] == 0).then_some(())
        });
        let _ = self.pool(backend);
    }

    pub(crate) fn instances(&self) -> Vec<Value> {
        let found = self.api.get(&format!("v2/shares/{}/instances", self.share)).unwrap();
        found["share_instances"].as_array().unwrap().clone()
    }

    /// One instance is left, the doctor is content, and no storage but that of the share holds anything.
    pub(crate) fn at_rest(&self, backend: &str) {
        wait::until_else(|| {
            let left = self.instances();
            let busy = self.api.operations("unfinished=true").unwrap();
            if left.len() == 1 && busy.is_empty() { Ok(()) } else { Err(format!("{left:?} {busy:?}")) }
        });
        assert_eq!(self.instances()[0]["status"], "available");
        assert_eq!(self.show()["host"], self.pool(backend).as_str());
        assert_eq!(self.api.doctor().unwrap(), [] as [Value; 0]);
        for name in ["alpha", "beta", "gamma"] {
            let held = fs::read_dir(self.server.backend(name).join("instances")).unwrap().count();
            assert_eq!(held, usize::from(name == backend), "instances on {name}");
        }
        let notes = self.server.folder().join("state/copies");
        assert!(
            !notes.exists() || fs::read_dir(notes).unwrap().next().is_none(),
            "notes of the copy are left"
        );
    }
}

pub(crate) fn start(host: &str, more: &[(&str, Value)]) -> Value {
    let mut asked = json!({
        "host": host, "writable": false, "nondisruptive": false, "preserve_metadata": false,
        "preserve_snapshots": false,
    });
    for (key, value) in more {
        asked[*key] = value.clone();
    }
    json!({"migration_start": asked})
}

/// From host to host, although the driver could.
pub(crate) fn by_host(host: &str, more: &[(&str, Value)]) -> Value {
    start(host, &[&[("force_host_assisted_migration", json!(true))], more].concat())
}

pub(crate) fn complete() -> Value {
    json!({"migration_complete": null})
}

pub(crate) fn cancel() -> Value {
    json!({"migration_cancel": null})
}

pub(crate) fn assert_equal(source: &Path, copy: &Path) {
    let differences = tree::differences(source, copy);
    assert!(differences.is_empty(), "{}", differences.join("\n"));
}

/// As it is, by an independent tool.
pub(crate) fn copy(from: &Path, to: &Path) {
    let done = std::process::Command::new("cp").args(["-a"]).arg(from.join(".")).arg(to).status().unwrap();
    assert!(done.success());
    // The root's own time, which the copying itself moves.
    let time = fs::metadata(from).unwrap().modified().unwrap();
    fs::File::open(to).unwrap().set_modified(time).unwrap();
}
