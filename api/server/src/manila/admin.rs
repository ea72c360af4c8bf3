//! The overrides that administrators have on shares, instances and replicas alike.

use serde_json::Value;
use tandem_contract::ReplicaState;
use tandem_manager::model::InstanceStatus;

use crate::call::{Call, Result};
use crate::fault::Fault;

/// The statuses that may be set, in the order in which Manila names them.
const STATUSES: &[&str] = &[
    "server_migrating",
    "error_deleting",
    "migrating",
    "creating",
    "available",
    "migrating_to",
    "error",
    "deleting",
];

/// The replica states that may be set, likewise.
const REPLICA_STATES: &[&str] = &["in_sync", "active", "out_of_sync", "error"];

/// The value of an action such as `{"reset_status": {"status": "error"}}`, if it is one of those allowed.
/// The action may be written with `os-` before it.
fn reset<'a>(call: &'a Call, action: &str, attribute: &str, allowed: &[&str]) -> Result<&'a str> {
    let body = call.body()?;
    let object = body.get(action).or_else(|| body.get(format!("os-{action}")));
    let Some(value) = object.and_then(Value::as_object).and_then(|o| o.get(attribute)) else {
        return Err(Fault::bad_request(format!("Must specify '{attribute}'")));
    };
    match value.as_str().filter(|word| allowed.contains(word)) {
        Some(word) => Ok(word),
        None if value.is_array() || value.is_object() => Err(Fault::malformed()),
        None => Err(Fault::bad_request(format!("Invalid state. Valid states: {}.", allowed.join(", ")))),
    }
}

/// The status that `reset_status` sets.
pub(super) fn status(call: &Call) -> Result<InstanceStatus> {
    let word = reset(call, "reset_status", "status", STATUSES)?;
    word.parse().map_err(|()| Fault::malformed())
}

/// The state that `reset_replica_state` sets.
pub(super) fn replica_state(call: &Call) -> Result<ReplicaState> {
    let word = reset(call, "reset_replica_state", "replica_state", REPLICA_STATES)?;
    Ok(match word {
        "active" => ReplicaState::Active,
        "in_sync" => ReplicaState::InSync,
        "out_of_sync" => ReplicaState::OutOfSync,
        _ => ReplicaState::Error,
    })
}
