//! Rows of the manager as `/v1` shows them: the schemas of the document, filled in.

use serde_json::{Value, json};
use tandem_contract::Error;
use tandem_manager::clock::Timestamp;
use tandem_manager::model::{AccessRule, Instance, Operation, Share};
use tandem_manager::oplog::{Event, Logged, OpState};
use tandem_manager::plan::Step;
use tandem_manager::{BackendState, BackendView, Finding, Lag};

use super::DriverFile;

/// RFC 3339 in UTC.
pub(super) fn time(at: Timestamp) -> String {
    at.iso() + "Z"
}

/// An operation in a list; `log` where it runs, `progress` of its running driver call.
pub(super) fn operation(
    operation: &Operation,
    log: Option<&OpState>,
    progress: Option<&tandem_contract::Progress>,
) -> Value {
    let step = log.filter(|state| state.next < state.steps.len()).map(|state| {
        json!({
            "number": state.next + 1,
            "of": state.steps.len(),
            "name": state.steps.get(state.next).map(step_name),
        })
    });
    let progress = progress.map(|p| {
        json!({
            "phase": p.phase,
            "done": p.done,
            "total": p.total,
            "percent": p.percent(),
            "estimate": p.estimate,
            "blocked_on": p.blocked_on,
            "current": p.current,
        })
    });
    json!({
        "id": operation.id,
        "kind": operation.intent.kind(),
        "status": operation.status.as_str(),
        "share_id": operation.share_id,
        "instance_id": operation.intent.instance(),
        "project_id": operation.project_id,
        "request_id": operation.request_id,
        "cancel_requested": operation.cancel,
        "bytes": operation.bytes,
        "resumed_bytes": operation.resumed_bytes,
        "step": step,
        "progress": progress,
        "error": operation.error.as_ref().map(failure),
        "remarks": operation.remarks,
        "created_at": time(operation.created_at),
        "updated_at": time(operation.updated_at),
    })
}

/// The plan of an operation: each step, with how it went.
pub(super) fn steps(state: &OpState, log: &[Logged]) -> Vec<Value> {
    let failed: Vec<usize> = log
        .iter()
        .filter_map(|logged| match &logged.event {
            Event::StepFailed { step, .. } => Some(*step),
            _ => None,
        })
        .collect();
    let step = |(index, step): (usize, &Step)| {
        let how = match index {
            _ if failed.contains(&index) => "failed",
            _ if index < state.next => "done",
            _ if state.status.is_finished() => "skipped",
            _ if index == state.next && state.started => "running",
            _ => "waiting",
        };
        let mut value = json!(step);
        value["state"] = how.into();
        value["undo"] = state.undo_from.is_some_and(|from| index >= from).into();
        value
    };
    state.steps.iter().enumerate().map(step).collect()
}

/// An event of the log. Plans and intents are shown elsewhere.
pub(super) fn event(logged: &Logged) -> Value {
    let mut value = json!(logged);
    if let Some(fields) = value.as_object_mut() {
        for shown_elsewhere in ["op", "steps", "undo", "intent"] {
            fields.remove(shown_elsewhere);
        }
        fields.insert("at".into(), time(logged.at).into());
        if let Event::StepFailed { error, .. } | Event::Finished { error: Some(error), .. } = &logged.event {
            fields.insert("error".into(), failure(error));
        }
    }
    value
}

fn step_name(step: &Step) -> Value {
    json!(step).get("step").cloned().unwrap_or_default()
}

fn failure(error: &Error) -> Value {
    json!({"kind": error.kind, "message": error.message, "context": error.context})
}

/// A back end.
pub(super) fn backend(backend: &BackendView) -> Value {
    let (state, reason) = match &backend.state {
        BackendState::Up => ("up", None),
        BackendState::Down { reason } => ("down", Some(reason)),
    };
    json!({
        "name": backend.name,
        "host": backend.host,
        "driver": backend.driver,
        "driver_version": backend.driver_version,
        "availability_zone": backend.availability_zone,
        "state": state,
        "reason": reason,
        "since": time(backend.since),
        "capabilities": backend.capabilities,
        "pools": backend.pools,
        "pools_at": backend.pools_at.map(time),
        "reserved_percentage": backend.reserved_percentage,
        "max_over_subscription_ratio": backend.max_over_subscription_ratio,
    })
}

/// A file of the plug-in folder.
pub(super) fn driver(driver: &DriverFile, backends: &[BackendView]) -> Value {
    let manifest = driver.driver.as_ref().ok();
    let state = match (manifest, driver.file.is_empty()) {
        (Some(_), _) => "loaded",
        (None, true) => "away",
        (None, false) => "refused",
    };
    let users = backends.iter().filter(|b| manifest.is_some_and(|m| m.name == b.driver));
    json!({
        "host": driver.host,
        "file": driver.file,
        "state": state,
        "reason": driver.driver.as_ref().err(),
        "name": manifest.map(|m| &m.name),
        "version": manifest.map(|m| &m.version),
        "contract": manifest.map(|m| format!("{}.{}", m.contract.0, m.contract.1)),
        "summary": manifest.map(|m| &m.summary),
        "backends": users.map(|b| &b.name).collect::<Vec<_>>(),
    })
}

/// What a share's family adds to its row.
pub(super) struct Around<'a> {
    pub(super) instances: &'a [Instance],
    pub(super) share_type: Option<&'a str>,
    /// Of the replica that is furthest behind.
    pub(super) lag_seconds: Option<u64>,
    pub(super) operations: &'a [Operation],
}

/// A share at a glance.
pub(super) fn share(share: &Share, around: &Around<'_>) -> Value {
    let speaker = share.representative(around.instances);
    json!({
        "id": share.id,
        "name": share.name,
        "project_id": share.project_id,
        "status": speaker.map_or("creating", |instance| instance.status.as_str()),
        "size_gb": share.size_gb,
        "protocol": share.protocol,
        "share_type": around.share_type,
        "replication": share.replication.map(tandem_contract::Style::as_str),
        "epoch": share.epoch,
        "host": speaker.and_then(|instance| instance.pool.as_ref()).map(ToString::to_string),
        "instances": around.instances.len(),
        "lag_seconds": around.lag_seconds,
        "operation_ids": around.operations.iter().map(|operation| operation.id).collect::<Vec<_>>(),
    })
}

/// A replica with its lag.
pub(super) fn replica(
    replica: &Instance,
    share_name: Option<&str>,
    rpo_seconds: u64,
    lag: &Lag,
    degraded: Option<String>,
    operation: Option<tandem_contract::OpId>,
) -> Value {
    let active = replica.replica_state == Some(tandem_contract::ReplicaState::Active);
    json!({
        "id": replica.id,
        "share_id": replica.share_id,
        "share_name": share_name,
        "project_id": replica.project_id,
        "status": replica.status.as_str(),
        "replica_state": replica.replica_state.map(tandem_contract::ReplicaState::as_str),
        "host": replica.pool.as_ref().map(ToString::to_string),
        "availability_zone": replica.availability_zone,
        "lag_seconds": lag.seconds.filter(|_| !active),
        "lag_bytes": lag.bytes.filter(|_| !active),
        "rpo_seconds": rpo_seconds,
        "last_point": replica.point.as_ref().map(|p| json!({"id": p.info.id, "made_at": time(p.made_at)})),
        "verified_at": replica.checked.as_ref().map(|c| time(c.at)),
        "verified_point": replica.checked.as_ref().map(|c| json!({"id": c.point, "made_at": c.made_at.map(time)})),
        "damage": replica.damage,
        "degraded": degraded,
        "operation_id": operation,
        "epoch": replica.epoch,
        "unfenced": replica.unfenced,
        "fenced": replica.fenced,
        "reset_by_admin": replica.reset_by_admin,
        "reason": replica.reason,
        "exports": replica.exports.iter().map(|export| &export.path).collect::<Vec<_>>(),
    })
}

/// An access rule, and whether it protects anything.
pub(super) fn rule(rule: &AccessRule) -> Value {
    json!({
        "id": rule.id,
        "share_id": rule.share_id,
        "access_type": rule.access_type,
        "access_to": rule.access_to,
        "access_level": rule.access_level,
        "state": rule.state().as_str(),
        "enforced": rule.enforced,
    })
}

/// What the doctor found.
pub(super) fn doctor(findings: &[Finding]) -> Value {
    json!({
        "healthy": findings.iter().all(|finding| finding.severity != "error"),
        "findings": findings,
    })
}
