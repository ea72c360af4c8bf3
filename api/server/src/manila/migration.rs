//! Share migration: every form that Manila has had, from one phase by a single call to two phases and progress.
//!
//! | versions | call | what it says |
//! |---|---|---|
//! | 2.5–2.6, 2.7–2.14 | `os-migrate_share`, `migrate_share` | `host`, `force_host_copy`; completes by itself |
//! | 2.15–2.21 | `migration_start` | the same, and `notify`: true (the default) completes by itself |
//! | 2.22–2.28 | `migration_start` | what the driver must promise; `force_host_assisted_migration` |
//! | 2.29– | `migration_start` | the same, all mandatory, and `preserve_snapshots` |
//!
//! A real Manila 23 serves the last form only; the others are as its documents describe them.

use serde_json::{Map, Value, json};
use tandem_contract::{Progress, ResourceKind};
use tandem_manager::Denied;
use tandem_manager::model::{Intent, MigrationRequest, Needs, TaskState};
use uuid::Uuid;

use super::share_create::check_size;
use super::{denied, find, read};
use crate::call::{Call, Reply, Result};
use crate::fault::Fault;
use crate::microversion::Window;
use crate::python;
use crate::routes::{Action, Routes};

/// What Manila's schema takes for a boolean, in its order.
const BOOLEANS: &str = "[True, 'True', 'TRUE', 'true', '1', 'ON', 'On', 'on', 'YES', 'Yes', 'yes', 'y', 't', False, \
                        'False', 'FALSE', 'false', '0', 'OFF', 'Off', 'off', 'NO', 'No', 'no', 'n', 'f']";

/// Every task state that `reset_task_state` takes, as Manila's schema lists them.
const RESETTABLE: [TaskState; 14] = [
    TaskState::Starting,
    TaskState::InProgress,
    TaskState::Completing,
    TaskState::Success,
    TaskState::Error,
    TaskState::Cancelled,
    TaskState::DriverInProgress,
    TaskState::DriverPhase1Done,
    TaskState::CopyingStarting,
    TaskState::CopyingInProgress,
    TaskState::CopyingCompleting,
    TaskState::CopyingCompleted,
    TaskState::CopyingCancelled,
    TaskState::CopyingError,
];

pub(super) fn routes(routes: &mut Routes) {
    routes.get("/shares/{id}/migration-progress", Window::since(98), progress);
}

pub(super) fn actions() -> Vec<Action> {
    let graduated = |from| Window::graduated(from, 96);
    vec![
        Action::new("os-migrate_share", Window::experimental(5, 6), |call| start(call, "os-migrate_share")),
        Action::new("migrate_share", Window::experimental(7, 14), |call| start(call, "migrate_share")),
        Action::new("migration_start", graduated(15), |call| start(call, "migration_start")),
        Action::new("migration_complete", graduated(15), complete),
        Action::new("migration_cancel", graduated(15), cancel),
        Action::new("migration_get_progress", graduated(15).until(97), progress),
        Action::new("reset_task_state", graduated(22), reset_task_state),
    ]
}

/// The share of the path, for a caller who may do this.
async fn need_share(call: &Call, rule: &str) -> Result<find::ShareFamily> {
    let id = call.param("id");
    let found = find::need_share(call, id, || Fault::new(404, format!("Share {id} not found."))).await?;
    find::may_change(call, rule, &found.share)?;
    Ok(found)
}

async fn start(call: Call, action: &'static str) -> Result {
    call.authorize("share:migration_start")?;
    let asked = read::action(&call, action)?;
    let mut request = if call.since(29) {
        in_full(asked)?
    } else if call.since(22) {
        by_promises(asked)?
    } else {
        plain(&call, asked)?
    };
    let found = need_share(&call, "share:migration_start").await?;
    if request.host_assisted && request.needs.any() {
        return Err(denied::invalid_input(
            "Invalid parameter combination. Cannot set parameters \"nondisruptive\", \"writable\", \
             \"preserve_snapshots\" or \"preserve_metadata\" to True when enabling the \
             \"force_host_assisted_migration\" option",
        ));
    }
    if call.since(22) {
        if let Some(network) = given(asked, "new_share_network_id") {
            return Err(Fault::bad_request(format!("Share network {network} not found.")));
        }
        if let Some(text) = given(asked, "new_share_type_id") {
            let missing = || Fault::bad_request(format!("Share type {text} not found."));
            let id = Uuid::parse_str(text).map_err(|_| missing())?;
            let stored = call.app.manager.store().share_type(id).await.map_err(find::store)?;
            check_size(&stored.ok_or_else(missing)?, found.share.size_gb, "create")?;
            request.new_type = Some(id);
        }
    }
    let host = request.host.clone();
    let type_name = found.share_type.as_ref().map(|t| t.name.clone()).unwrap_or_default();
    let admitted = call.app.manager.migrate(&call.caller(), found.share.id, request).await;
    let share = found.share.id;
    let admitted = admitted.map_err(|d| match d {
        Denied::HasReplicas(_) => Fault::new(
            409,
            format!("Share {share} has replicas. Remove the replicas before attempting to migrate the share."),
        ),
        Denied::InstanceStatus { instance, status, .. } => invalid_share(format!(
            "Share instance {instance} status must be available, but current status is: {status}."
        )),
        Denied::RulesFailed(instance) => invalid_share(format!(
            "Share instance {instance} access rules status must not be in error when attempting to start a migration."
        )),
        Denied::NoService(service) => {
            Fault::new(404, format!("ServiceNotFound: Service {service} could not be found."))
        }
        Denied::ServiceDown(service) => Fault::bad_request(format!("Service {service} is down.")),
        Denied::NoZone(zone) => invalid_share(format!(
            "Share {share} cannot be migrated to host {host} because share type {type_name} is not supported within \
             the availability zone ({zone}) that the host is in."
        )),
        other => denied::fault(other),
    })?;
    Ok(Reply::Empty(if admitted.is_some() { 202 } else { 200 }))
}

/// Manila's `InvalidShare`.
fn invalid_share(reason: impl AsRef<str>) -> Fault {
    Fault::bad_request(format!("Invalid share: {}", reason.as_ref()))
}

fn request(host: &str, host_assisted: bool, needs: Needs, at_once: bool) -> MigrationRequest {
    MigrationRequest {
        kind: ResourceKind::Share,
        host: host.to_owned(),
        host_assisted,
        needs,
        new_type: None,
        replicates: false,
        at_once,
    }
}

/// A text that is neither absent, null nor empty.
fn given<'a>(asked: &'a Map<String, Value>, key: &str) -> Option<&'a str> {
    asked.get(key).and_then(Value::as_str).filter(|text| !text.is_empty())
}

/// 2.29 and later: what the schema demands, in its order.
fn in_full(asked: &Map<String, Value>) -> Result<MigrationRequest> {
    let missing = |key: &str| {
        Fault::bad_request(format!(
            "Invalid input for field/attribute migration_start. Value: {}. '{key}' is a required property",
            python::repr(&Value::Object(asked.clone()))
        ))
    };
    for key in ["host", "nondisruptive", "preserve_metadata", "preserve_snapshots", "writable"] {
        if !asked.contains_key(key) {
            return Err(missing(key));
        }
    }
    let host = match &asked["host"] {
        Value::String(host) if !host.is_empty() => host.as_str(),
        Value::String(_) => return Err(read::not_in_schema("host", &asked["host"], "is too short")),
        other => return Err(read::not_in_schema("host", other, "is not of type 'string'")),
    };
    for key in ["new_share_network_id", "new_share_type_id"] {
        if let Some(value) = asked.get(key).filter(|v| !v.is_string() && !v.is_null()) {
            return Err(read::not_in_schema(key, value, "is not of type 'string', 'null'"));
        }
    }
    let flag = |key: &str| match asked.get(key) {
        None => Ok(false),
        Some(value) => boolean(value)
            .ok_or_else(|| read::not_in_schema(key, value, &format!("is not one of {BOOLEANS}"))),
    };
    let needs = Needs {
        writable: flag("writable")?,
        nondisruptive: flag("nondisruptive")?,
        preserve_metadata: flag("preserve_metadata")?,
        preserve_snapshots: flag("preserve_snapshots")?,
    };
    Ok(request(host, flag("force_host_assisted_migration")?, needs, false))
}

/// A boolean of the schema: a real one, or one of its words.
fn boolean(value: &Value) -> Option<bool> {
    match value {
        Value::Bool(flag) => Some(*flag),
        Value::String(word) => {
            let listed = BOOLEANS.contains(&format!("'{word}'"));
            listed.then(|| python::strict_bool(word)).flatten()
        }
        _ => None,
    }
}

/// 2.22 to 2.28. What is not said is asked of the driver, unless the driver is ruled out.
fn by_promises(asked: &Map<String, Value>) -> Result<MigrationRequest> {
    let host = host(asked)?;
    let forced = flag(asked, "force_host_assisted_migration", false)?;
    let needs = Needs {
        writable: flag(asked, "writable", !forced)?,
        nondisruptive: flag(asked, "nondisruptive", false)?,
        preserve_metadata: flag(asked, "preserve_metadata", !forced)?,
        preserve_snapshots: false,
    };
    Ok(request(host, forced, needs, false))
}

/// 2.5 to 2.21: where to, and whether without the driver.
fn plain(call: &Call, asked: &Map<String, Value>) -> Result<MigrationRequest> {
    let host = host(asked)?;
    let forced = flag(asked, "force_host_copy", false)?;
    let at_once = !call.since(15) || flag(asked, "notify", true)?;
    Ok(request(host, forced, Needs::default(), at_once))
}

fn host(asked: &Map<String, Value>) -> Result<&str> {
    given(asked, "host").ok_or_else(|| Fault::bad_request("Must specify 'host'."))
}

fn flag(asked: &Map<String, Value>, key: &str, default: bool) -> Result<bool> {
    let Some(value) = asked.get(key) else { return Ok(default) };
    python::strict_bool_value(value)
        .ok_or_else(|| Fault::bad_request(python::not_a_bool(&python::str_of(value))))
}

/// What Manila says of a task that cannot be had of a share in this state.
fn no_task(share: &tandem_manager::model::Share, else_say: &str) -> Fault {
    let id = share.id;
    invalid_share(match share.task_state.as_deref().map(TaskState::parse) {
        Some(Some(TaskState::Success)) => format!("Migration of share {id} has already completed."),
        Some(Some(TaskState::Cancelled)) => format!("Migration of share {id} was already cancelled."),
        None | Some(Some(TaskState::Error)) => {
            format!("There is no migration being performed for share {id} at this moment.")
        }
        _ => else_say.replace("{}", &id.to_string()),
    })
}

async fn complete(call: Call) -> Result {
    call.authorize("share:migration_complete")?;
    let found = need_share(&call, "share:migration_complete").await?;
    let share = &found.share;
    let state = share.task_state.as_deref().and_then(TaskState::parse);
    let early = "First migration phase of share {} not completed yet.";
    if !state.is_some_and(TaskState::is_first_phase_done) {
        return Err(no_task(share, early));
    }
    call.app.manager.complete_migration(share.id).await.map_err(|d| gone(share.id, d))?;
    Reply::accepted()
}

/// An administrator may have set a task state that nothing stands behind.
fn gone(share: tandem_contract::ResourceId, denied: Denied) -> Fault {
    match denied {
        Denied::NoMigration(_) => {
            invalid_share(format!("There is no migration being performed for share {share} at this moment."))
        }
        other => denied::fault(other),
    }
}

async fn cancel(call: Call) -> Result {
    call.authorize("share:migration_cancel")?;
    let found = need_share(&call, "share:migration_cancel").await?;
    let share = &found.share;
    let cancellable = matches!(
        share.task_state.as_deref().and_then(TaskState::parse),
        Some(
            TaskState::CopyingCompleted
                | TaskState::CopyingInProgress
                | TaskState::DriverPhase1Done
                | TaskState::DriverInProgress
        )
    );
    if !cancellable {
        return Err(no_task(share, "Migration of share {} cannot be cancelled at this moment."));
    }
    call.app.manager.cancel_migration(share.id).await.map_err(|d| gone(share.id, d))?;
    Reply::accepted()
}

async fn progress(call: Call) -> Result {
    call.authorize("share:migration_get_progress")?;
    let found = need_share(&call, "share:migration_get_progress").await?;
    let share = &found.share;
    let late = "Migration of share {} does not have its progress to be obtained at this moment.";
    let Some(state) = share.task_state.as_deref().and_then(TaskState::parse) else {
        return Err(no_task(share, late));
    };
    let (total, details) = match state {
        TaskState::DriverInProgress | TaskState::CopyingInProgress => {
            let unfinished = call.app.manager.store().family(share.id).await.map_err(find::store)?.operations;
            let op = unfinished.iter().find(|op| matches!(op.intent, Intent::Migrate { .. }));
            let progress = op.and_then(|op| call.app.manager.progress(op.id)).unwrap_or_default();
            (progress.percent().unwrap_or(0), details(&progress))
        }
        TaskState::Starting
        | TaskState::InProgress
        | TaskState::DriverStarting
        | TaskState::CopyingStarting => (0, json!({})),
        // An error is never 100 %.
        TaskState::Error | TaskState::CopyingError => (0, json!({})),
        _ => (100, json!({})),
    };
    let mut body = json!({"total_progress": total, "task_state": state.as_str()});
    if call.since(59) {
        body["details"] = details;
    }
    Reply::ok(body)
}

/// Manila's names for what a copy is at.
fn details(progress: &Progress) -> Value {
    match &progress.current {
        Some(path) => {
            json!({"current_file_path": path, "bytes_done": progress.done, "bytes_total": progress.total})
        }
        None => json!({}),
    }
}

async fn reset_task_state(call: Call) -> Result {
    call.authorize("share:reset_task_state")?;
    let asked = read::action(&call, "reset_task_state")?;
    let Some(value) = asked.get("task_state") else {
        return Err(Fault::bad_request("Must specify 'task_state'"));
    };
    let state = match value {
        Value::Null => None,
        Value::String(word) => {
            let known = TaskState::parse(word).filter(|state| RESETTABLE.contains(state));
            Some(known.ok_or_else(|| unknown_state(value))?)
        }
        _ => return Err(unknown_state(value)),
    };
    let id = call.param("id");
    let missing = || Fault::new(404, format!("ShareNotFound: Share {id} could not be found."));
    let found = find::need_share(&call, id, missing).await?;
    find::may_change(&call, "share:reset_task_state", &found.share)?;
    let reset = call.app.manager.reset_task_state(&call.caller(), found.share.id, state).await;
    reset.map_err(denied::fault)?;
    Reply::accepted()
}

fn unknown_state(value: &Value) -> Fault {
    let words: Vec<Value> =
        RESETTABLE.iter().map(|state| json!(state.as_str())).chain([Value::Null]).collect();
    let why = format!("is not one of {}", python::repr(&Value::Array(words)));
    read::not_in_schema("task_state", value, &why)
}
