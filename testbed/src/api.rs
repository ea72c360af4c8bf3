//! The HTTP APIs, as scenarios speak them: small, blocking, and honest about a server that went away.

use std::path::PathBuf;
use std::time::Duration;

use serde_json::{Value, json};

/// The connection broke or none came about: the server is not there.
#[derive(Debug)]
pub struct Gone;

/// What a call gave, or that nobody was there.
pub type Answered<T = Value> = Result<T, Gone>;

/// One server's APIs, as an administrator of the project `admin`.
#[derive(Debug)]
pub struct Api {
    agent: ureq::Agent,
    endpoint: String,
}

/// Manila's version that is spoken.
const VERSION: &str = "2.80";

impl Api {
    /// The server at `endpoint` (`http://address`).
    pub fn new(endpoint: &str) -> Self {
        let agent = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .timeout_global(Some(Duration::from_secs(60)))
            // A connection to a server that was killed since must not be taken for one to the next.
            .max_idle_connections(0)
            .build()
            .into();
        Self { agent, endpoint: endpoint.to_owned() }
    }

    /// Asks for something. Any answer but a 2xx is the end of the scenario.
    pub fn get(&self, path: &str) -> Answered {
        let request = self.agent.get(format!("{}/{path}", self.endpoint));
        let request = request.header("X-Auth-Token", "admin:admin");
        self.answer(path, request.header("X-OpenStack-Manila-API-Version", VERSION).call())
    }

    /// Asks for something to be done.
    pub fn post(&self, path: &str, body: &Value) -> Answered {
        let request = self.agent.post(format!("{}/{path}", self.endpoint));
        let request = request.header("X-Auth-Token", "admin:admin").content_type("application/json");
        let request = request.header("X-OpenStack-Manila-API-Version", VERSION);
        self.answer(path, request.send(body.to_string()))
    }

    /// Lets a project have as much as it likes.
    pub fn lift_quotas(&self, project: &str) -> Answered<()> {
        let path = format!("v2/quota-sets/{project}");
        let request = self.agent.put(format!("{}/{path}", self.endpoint));
        let request = request.header("X-Auth-Token", "admin:admin").content_type("application/json");
        let request = request.header("X-OpenStack-Manila-API-Version", VERSION);
        let most = json!({"shares": -1, "gigabytes": -1, "share_replicas": -1, "replica_gigabytes": -1});
        self.answer(&path, request.send(json!({ "quota_set": most }).to_string())).map(drop)
    }

    /// Asks for something to be removed.
    pub fn delete(&self, path: &str) -> Answered<()> {
        let request = self.agent.delete(format!("{}/{path}", self.endpoint));
        let request = request.header("X-Auth-Token", "admin:admin");
        self.answer(path, request.header("X-OpenStack-Manila-API-Version", VERSION).call()).map(drop)
    }

    fn answer(&self, path: &str, outcome: Result<ureq::http::Response<ureq::Body>, ureq::Error>) -> Answered {
        let mut response = outcome.map_err(|_| Gone)?;
        let status = response.status();
        let text = response.body_mut().with_config().limit(256 << 20).read_to_string().map_err(|_| Gone)?;
        assert!(status.is_success(), "{path}: {status}: {text}");
        if text.is_empty() {
            return Ok(Value::Null);
        }
        Ok(serde_json::from_str(&text).unwrap_or_else(|error| panic!("{path}: {error}: {text}")))
    }

    /// Asks for something that may well be refused: the status of the answer.
    pub fn attempt(&self, method: &str, path: &str, body: &Value) -> Answered<u16> {
        let request = ureq::http::Request::builder()
            .method(method)
            .uri(format!("{}/{path}", self.endpoint))
            .header("X-Auth-Token", "admin:admin")
            .header("X-OpenStack-Manila-API-Version", VERSION)
            .header("Content-Type", "application/json")
            .body(body.to_string())
            .unwrap();
        let answer = self.agent.run(request).map_err(|_| Gone)?;
        let status = answer.status().as_u16();
        assert!(status < 500, "{method} {path}: {status}");
        Ok(status)
    }

    /// Asks a share for something in a version of Manila's API: the status and what was answered.
    pub fn share_action(
        &self,
        share: &str,
        version: &str,
        experimental: bool,
        body: &Value,
    ) -> Answered<(u16, Value)> {
        let request = ureq::http::Request::builder()
            .method("POST")
            .uri(format!("{}/v2/shares/{share}/action", self.endpoint))
            .header("X-Auth-Token", "admin:admin")
            .header("X-OpenStack-Manila-API-Version", version)
            .header("X-OpenStack-Manila-API-Experimental", if experimental { "True" } else { "False" })
            .header("Content-Type", "application/json")
            .body(body.to_string())
            .unwrap();
        let mut answer = self.agent.run(request).map_err(|_| Gone)?;
        let text = answer.body_mut().read_to_string().map_err(|_| Gone)?;
        Ok((answer.status().as_u16(), serde_json::from_str(&text).unwrap_or(Value::Null)))
    }

    /// A share, as Manila's newest version shows it.
    pub fn share(&self, share: &str) -> Answered {
        Ok(self.get(&format!("v2/shares/{share}"))?["share"].take())
    }

    /// Makes a share type that replicates in this style (`readable`, `dr`), with more extra specs; its id.
    pub fn create_type(&self, name: &str, style: &str, more: &[(&str, &str)]) -> Answered<String> {
        let mut specs = json!({"driver_handles_share_servers": "False", "replication_type": style});
        for (key, value) in more {
            specs[key] = (*value).into();
        }
        let body = json!({"share_type": {"name": name, "extra_specs": specs}});
        Ok(word(&self.post("v2/types", &body)?["share_type"]["id"]))
    }

    /// Asks for a share of 1 GiB; its id.
    pub fn create_share(&self, share_type: &str, zone: &str) -> Answered<String> {
        self.create_share_of(share_type, zone, 1)
    }

    /// Asks for a share of so many GiB; its id.
    pub fn create_share_of(&self, share_type: &str, zone: &str, gib: u64) -> Answered<String> {
        let body = json!({"share": {
            "share_proto": "NFS", "size": gib, "share_type": share_type, "availability_zone": zone,
        }});
        Ok(word(&self.post("v2/shares", &body)?["share"]["id"]))
    }

    /// Asks for a replica in a zone; its id.
    pub fn create_replica(&self, share: &str, zone: &str) -> Answered<String> {
        let body = json!({"share_replica": {"share_id": share, "availability_zone": zone}});
        Ok(word(&self.post("v2/share-replicas", &body)?["share_replica"]["id"]))
    }

    /// Asks for an action of a replica (`promote`, `resync`).
    pub fn act(&self, replica: &str, action: &str) -> Answered<()> {
        self.post(&format!("v2/share-replicas/{replica}/action"), &json!({ action: null })).map(drop)
    }

    /// Asks for the end of a replica.
    pub fn delete_replica(&self, replica: &str) -> Answered<()> {
        self.delete(&format!("v2/share-replicas/{replica}"))
    }

    /// Asks for the end of a share.
    pub fn delete_share(&self, share: &str) -> Answered<()> {
        self.delete(&format!("v2/shares/{share}"))
    }

    /// Every share, as `/v1` shows it.
    pub fn shares(&self) -> Answered<Vec<Value>> {
        Ok(list(self.get("v1/shares?limit=1000")?, "shares"))
    }

    /// Every replica, as `/v1` shows it.
    pub fn replicas(&self) -> Answered<Vec<Value>> {
        Ok(list(self.get("v1/replicas?limit=1000")?, "replicas"))
    }

    /// Operations, newest first, by a query (`kind=sync&unfinished=true`).
    pub fn operations(&self, query: &str) -> Answered<Vec<Value>> {
        Ok(list(self.get(&format!("v1/operations?{query}"))?, "operations"))
    }

    /// One operation with its plan and its log.
    pub fn operation(&self, id: &str) -> Answered {
        let mut found = self.get(&format!("v1/operations/{id}"))?;
        Ok(found["operation"].take())
    }

    /// What the doctor finds that breaks a law.
    pub fn doctor(&self) -> Answered<Vec<Value>> {
        let mut doctor = self.get("v1/doctor")?;
        Ok(list(doctor["doctor"].take(), "findings")
            .into_iter()
            .filter(|f| f["severity"] == "error")
            .collect())
    }

    /// Where a replica, or a share's active instance, is reached; `None` when nowhere.
    pub fn export(&self, replica: &str) -> Answered<Option<PathBuf>> {
        let found = self.get(&format!("v2/share-replicas/{replica}/export-locations"))?;
        Ok(list(found, "export_locations").first().map(|location| PathBuf::from(word(&location["path"]))))
    }

    /// What the project uses, by Manila's names (`totalSharesUsed`, …).
    pub fn used(&self) -> Answered<Vec<(String, i64)>> {
        let limits = self.get("v2/limits")?;
        let all = limits["limits"]["absolute"].as_object().cloned().unwrap_or_default();
        let used = all.into_iter().filter(|(name, _)| name.ends_with("Used"));
        Ok(used.filter_map(|(name, value)| Some((name, value.as_i64()?))).collect())
    }
}

/// Whether an operation is over, however it ended.
pub fn ended(operation: &Value) -> bool {
    ["done", "failed", "cancelled"].iter().any(|end| operation["status"] == *end)
}

/// A string, which must be one.
pub fn word(value: &Value) -> String {
    value.as_str().unwrap_or_else(|| panic!("{value} should be a string")).to_owned()
}

fn list(mut value: Value, name: &str) -> Vec<Value> {
    match value[name].take() {
        Value::Array(list) => list,
        other => panic!("`{name}` should be a list, not {other}"),
    }
}
