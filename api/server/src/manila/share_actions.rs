//! Actions of shares other than access.

use serde_json::Value;
use tandem_manager::Denied;
use tandem_manager::model::Counted;

use super::share_create::{check_limit, check_size, need_for_action};
use super::{LATER_ACTIONS, access, admin, denied, find, migration, read};
use crate::call::{Call, Reply, Result};
use crate::fault::Fault;
use crate::microversion::Window;
use crate::python;
use crate::routes::{Action, Routes};

/// Every status that a share can have in Manila, in Manila's order: what its schema of `reset_status` lists.
const SCHEMA_STATUSES: &[&str] = &[
    "creating",
    "creating_from_snapshot",
    "deleting",
    "deferred_deleting",
    "deleted",
    "error",
    "error_deleting",
    "error_deferred_deleting",
    "available",
    "manage_starting",
    "manage_error",
    "unmanage_starting",
    "manage_error_unmanage_starting",
    "unmanage_error",
    "unmanaged",
    "extending",
    "extending_error",
    "shrinking",
    "shrinking_error",
    "migrating",
    "migrating_to",
    "shrinking_possible_data_loss_error",
    "replication_change",
    "restoring",
    "reverting",
    "reverting_error",
    "awaiting_transfer",
    "backup_creating",
    "backup_restoring",
    "backup_restoring_error",
    "ensuring",
    "server_migrating",
    "server_migrating_to",
    "reverting_to_snapshot",
];

pub(super) fn routes(routes: &mut Routes) {
    const OLD: Window = Window::between(0, 6);
    const NEW: Window = Window::since(7);
    let mut actions = vec![
        Action::new("os-allow_access", OLD, access::allow),
        Action::new("allow_access", NEW, access::allow),
        Action::new("os-deny_access", OLD, access::deny),
        Action::new("deny_access", NEW, access::deny),
        Action::new("os-access_list", OLD, access::list_by_action),
        Action::new("access_list", Window::between(7, 44), access::list_by_action),
        Action::new("os-reset_status", OLD, reset_status),
        Action::new("reset_status", NEW, reset_status),
        Action::new("os-force_delete", OLD, force_delete),
        Action::new("force_delete", NEW, force_delete),
        Action::new("os-extend", OLD, extend),
        Action::new("extend", NEW, extend),
        Action::new("os-shrink", OLD, shrink),
        Action::new("shrink", NEW, shrink),
    ];
    actions.extend(migration::actions());
    actions.extend(LATER_ACTIONS.iter().map(|name| Action::new(name, Window::ALWAYS, later)));
    routes.actions("/shares/{id}/action", actions);
}

/// A call of Manila's that is not served yet.
async fn later(_: Call) -> Result {
    Err(Fault::not_found())
}

/// The key that the body's action has: with or without `os-`.
fn key(call: &Call, new: &'static str, old: &'static str) -> &'static str {
    if call.since(7) { new } else { old }
}

async fn reset_status(call: Call) -> Result {
    call.authorize("share:reset_status")?;
    let object = read::action(&call, key(&call, "reset_status", "os-reset_status"))?;
    let unknown = |value: &&Value| !value.as_str().is_some_and(|word| SCHEMA_STATUSES.contains(&word));
    if let Some(value) = object.get("status").or_else(|| object.get("os-status")).filter(unknown) {
        let allowed = python::repr(&Value::from(SCHEMA_STATUSES.to_vec()));
        return Err(read::not_in_schema("status", value, &format!("is not one of {allowed}")));
    }
    let id = call.param("id");
    let missing = || Fault::new(404, format!("Share {id} not found"));
    let found = find::need_share(&call, id, missing).await?;
    let status = admin::status(&call)?;
    find::may_change(&call, "share:reset_status", &found.share)?;
    call.app
        .manager
        .reset_share_status(&call.caller(), found.share.id, status)
        .await
        .map_err(denied::fault)?;
    Reply::accepted()
}

async fn force_delete(call: Call) -> Result {
    call.authorize("share:force_delete")?;
    let found = find::need_share(&call, call.param("id"), Fault::not_found).await?;
    find::may_change(&call, "share:force_delete", &found.share)?;
    call.app.manager.delete_share(&call.caller(), found.share.id, true).await.map_err(denied::fault)?;
    Reply::accepted()
}

/// The size that an action asks for. Text is taken too, as the stock client sends it.
fn new_size(call: &Call, action: &'static str) -> Result<u64> {
    let object = read::action(call, action)?;
    let Some(value) = object.get("new_size") else {
        return Err(Fault::bad_request(format!(
            "Invalid input for field/attribute {action}. Value: {}. 'new_size' is a required property",
            python::repr(&Value::Object(object.clone()))
        )));
    };
    let size = if value.is_boolean() { None } else { python::int_like(value) };
    size.and_then(|n| u64::try_from(n).ok())
        .filter(|n| i32::try_from(*n).is_ok())
        .ok_or_else(|| Fault::bad_request("New share size must be specified as an integer."))
}

async fn extend(call: Call) -> Result {
    let found = need_for_action(&call, "share:extend").await?;
    let action = key(&call, "extend", "os-extend");
    let size = new_size(&call, action)?;
    let force = match read::action(&call, action)?.get("force").filter(|_| call.since(64)) {
        None => false,
        Some(value) => python::strict_bool_value(value).ok_or_else(|| {
            Fault::bad_request(format!("Invalid boolean force : {}", python::str_of(value)))
        })?,
    };
    if force {
        find::may_change(&call, "share:force_extend", &found.share)?;
    }
    let share = &found.share;
    if size > share.size_gb {
        check_limit(&call, size).await?;
        if let Some(share_type) = &found.share_type {
            let beyond = "share:extend_beyond_max_share_size_spec";
            let beyond = call.may_on(beyond, &share.project_id, &share.user_id);
            check_size(share_type, size, if beyond { "admin-extend" } else { "extend" })?;
        }
    }
    let instances = found.instances.len();
    let admitted = call.app.manager.extend_share(&call.caller(), share.id, size).await;
    admitted.map_err(|d| match d {
        Denied::ShareStatus { share, status, .. } => Fault::bad_request(format!(
            "Invalid share: Share {share} status must be 'available' to extend, but current status is: {status}."
        )),
        Denied::OverQuota { what: Counted::ReplicaGigabytes, .. } => Fault::new(
            413,
            format!(
                "ShareReplicaSizeExceedsAvailableQuota: Failed while extending a share with replication support. \
                 There is no available quota to extend the share and its {instances} replicas. Maximum number of \
                 allowed replica_gigabytes is exceeded."
            ),
        ),
        Denied::OverQuota { what: Counted::Gigabytes, .. } => Fault::new(
            403,
            "Requested share exceeds allowed project/user or share type gigabytes quota.",
        ),
        other => denied::fault(other),
    })?;
    Reply::accepted()
}

async fn shrink(call: Call) -> Result {
    let found = need_for_action(&call, "share:shrink").await?;
    let size = new_size(&call, key(&call, "shrink", "os-shrink"))?;
    if let Some(share_type) = found.share_type.as_ref().filter(|_| size > 0 && size < found.share.size_gb) {
        check_size(share_type, size, "shrink")?;
    }
    let admitted = call.app.manager.shrink_share(&call.caller(), found.share.id, size).await;
    admitted.map_err(|d| match d {
        Denied::ShareStatus { share, status, .. } => Fault::bad_request(format!(
            "Invalid share: Share {share} status must in (available, shrinking_possible_data_loss_error) to shrink, \
             but current status is: {status}."
        )),
        other => denied::fault(other),
    })?;
    Reply::accepted()
}
