//! What `/v1` answers, as far as the tables show it. The whole of it is in the server's `/v1/openapi.json`.

use serde::Deserialize;
use std::collections::BTreeMap;

#[derive(Debug, Deserialize)]
pub(crate) struct Status {
    pub(crate) version: String,
    pub(crate) host: String,
    pub(crate) started_at: String,
    pub(crate) backends: UpDown,
    pub(crate) shares: u64,
    pub(crate) replicas: BTreeMap<String, u64>,
    pub(crate) operations: Unfinished,
    #[serde(default)]
    pub(crate) troubles: Vec<String>,
}

#[derive(Debug, Deserialize)]
pub(crate) struct UpDown {
    pub(crate) up: u64,
    pub(crate) down: u64,
}

#[derive(Debug, Deserialize)]
pub(crate) struct Unfinished {
    pub(crate) unfinished: u64,
    pub(crate) syncs: u64,
}

#[derive(Debug, Deserialize)]
pub(crate) struct Share {
    pub(crate) id: String,
    pub(crate) name: Option<String>,
    pub(crate) project_id: String,
    pub(crate) status: String,
    pub(crate) size_gb: u64,
    pub(crate) share_type: Option<String>,
    pub(crate) replication: Option<String>,
    pub(crate) host: Option<String>,
    pub(crate) instances: u64,
    pub(crate) lag_seconds: Option<u64>,
}

#[derive(Debug, Deserialize)]
pub(crate) struct Replica {
    pub(crate) id: String,
    pub(crate) share_id: String,
    pub(crate) share_name: Option<String>,
    pub(crate) status: String,
    pub(crate) replica_state: Option<String>,
    pub(crate) host: Option<String>,
    pub(crate) availability_zone: Option<String>,
    pub(crate) lag_seconds: Option<u64>,
    pub(crate) lag_bytes: Option<u64>,
    pub(crate) rpo_seconds: u64,
    pub(crate) last_point: Option<Point>,
    /// A server that is older knows nothing of it.
    #[serde(default)]
    pub(crate) verified_at: Option<String>,
    #[serde(default)]
    pub(crate) verified_point: Option<VerifiedPoint>,
    #[serde(default)]
    pub(crate) damage: Option<String>,
    #[serde(default)]
    pub(crate) degraded: Option<String>,
    #[serde(default)]
    pub(crate) exports: Vec<String>,
    pub(crate) unfenced: bool,
    pub(crate) fenced: bool,
    pub(crate) reset_by_admin: bool,
    pub(crate) reason: Option<String>,
}

#[derive(Debug, Deserialize)]
pub(crate) struct Point {
    pub(crate) made_at: String,
}

#[derive(Debug, Deserialize)]
pub(crate) struct VerifiedPoint {
    pub(crate) id: String,
    pub(crate) made_at: Option<String>,
}

#[derive(Debug, Deserialize)]
pub(crate) struct Operation {
    pub(crate) id: String,
    pub(crate) kind: String,
    pub(crate) status: String,
    pub(crate) share_id: String,
    pub(crate) instance_id: Option<String>,
    pub(crate) request_id: Option<String>,
    pub(crate) cancel_requested: bool,
    pub(crate) bytes: u64,
    #[serde(default)]
    pub(crate) resumed_bytes: u64,
    pub(crate) step: Option<StepPosition>,
    pub(crate) progress: Option<Progress>,
    pub(crate) error: Option<Failed>,
    pub(crate) remarks: Vec<String>,
    pub(crate) created_at: String,
    pub(crate) updated_at: String,
    #[serde(default)]
    pub(crate) steps: Vec<Step>,
    #[serde(default)]
    pub(crate) events: Vec<Event>,
}

impl Operation {
    pub(crate) fn finished(&self) -> bool {
        matches!(self.status.as_str(), "done" | "failed" | "cancelled")
    }
}

#[derive(Debug, Deserialize)]
pub(crate) struct StepPosition {
    pub(crate) number: u64,
    pub(crate) of: u64,
    pub(crate) name: String,
}

#[derive(Debug, Deserialize)]
pub(crate) struct Progress {
    pub(crate) phase: String,
    pub(crate) done: u64,
    pub(crate) total: Option<u64>,
    pub(crate) percent: Option<u64>,
    pub(crate) estimate: bool,
    pub(crate) blocked_on: Option<String>,
}

#[derive(Debug, Deserialize)]
pub(crate) struct Failed {
    pub(crate) kind: String,
    pub(crate) message: String,
}

#[derive(Debug, Deserialize)]
pub(crate) struct Step {
    pub(crate) step: String,
    pub(crate) state: String,
}

#[derive(Debug, Deserialize)]
pub(crate) struct Event {
    pub(crate) seq: u64,
    pub(crate) at: String,
    pub(crate) event: String,
    pub(crate) step: Option<u64>,
    pub(crate) remark: Option<String>,
    pub(crate) error: Option<Failed>,
}

#[derive(Debug, Deserialize)]
pub(crate) struct Backend {
    pub(crate) name: String,
    pub(crate) driver: String,
    pub(crate) driver_version: String,
    pub(crate) availability_zone: String,
    pub(crate) state: String,
    pub(crate) reason: Option<String>,
    pub(crate) pools: Vec<Pool>,
}

#[derive(Debug, Deserialize)]
pub(crate) struct Pool {
    pub(crate) total_bytes: Option<u64>,
    pub(crate) free_bytes: Option<u64>,
    pub(crate) warning: Option<String>,
}

#[derive(Debug, Deserialize)]
pub(crate) struct Driver {
    #[serde(default)]
    pub(crate) host: Option<String>,
    pub(crate) file: String,
    pub(crate) state: String,
    pub(crate) reason: Option<String>,
    pub(crate) name: Option<String>,
    pub(crate) version: Option<String>,
    pub(crate) contract: Option<String>,
    pub(crate) summary: Option<String>,
    pub(crate) backends: Vec<String>,
}

#[derive(Debug, Deserialize)]
pub(crate) struct Doctor {
    pub(crate) healthy: bool,
    pub(crate) findings: Vec<Finding>,
}

#[derive(Debug, Deserialize)]
pub(crate) struct Finding {
    pub(crate) law: u64,
    pub(crate) severity: String,
    pub(crate) subject: String,
    pub(crate) message: String,
}

#[derive(Debug, Deserialize)]
pub(crate) struct MigrationCheck {
    pub(crate) possible: bool,
    pub(crate) refused: Vec<String>,
    pub(crate) host: String,
    pub(crate) approach: String,
    pub(crate) interruption: String,
    pub(crate) lost: Vec<String>,
    pub(crate) bytes: Option<u64>,
    pub(crate) seconds: Option<u64>,
    pub(crate) interruption_seconds: Option<u64>,
}
