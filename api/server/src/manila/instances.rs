//! Share instances.

use serde_json::{Value, json};
use tandem_manager::model::{Instance, InstanceStatus};
use tandem_manager::store::InstanceQuery;

use super::replica_views::host;
use super::view::{Field, maybe_time, render, time};
use super::{admin, denied, find};
use crate::call::{Call, Reply, Result};
use crate::fault::Fault;
use crate::microversion::Window;
use crate::page::MAX_LIMIT;
use crate::routes::{Action, Routes};

pub(super) fn routes(routes: &mut Routes) {
    routes.get("/share_instances", Window::since(3), index);
    routes.get("/share_instances/{id}", Window::since(3), show);
    routes.get("/shares/{id}/instances", Window::since(3), of_share);
    routes.actions(
        "/share_instances/{id}/action",
        vec![
            Action::new("os-reset_status", Window::between(3, 6), reset_status),
            Action::new("reset_status", Window::since(7), reset_status),
            Action::new("os-force_delete", Window::between(3, 6), force_delete),
            Action::new("force_delete", Window::since(7), force_delete),
        ],
    );
}

type F = Field<Instance>;

const FIELDS: &[F] = &[
    F::new("id", |i, _| json!(i.id)),
    F::new("share_id", |i, _| json!(i.share_id)),
    F::new("availability_zone", |i, _| json!(i.availability_zone)),
    F::new("created_at", |i, _| time(i.created_at)),
    F::new("host", |i, _| host(i)),
    F::new("status", |i, _| json!(i.status.as_str())),
    F::new("share_network_id", |_, _| Value::Null),
    F::new("share_server_id", |_, _| Value::Null),
    F::new("export_location", |i, _| json!(i.exports.first().map(|e| &e.path))).until(8),
    F::new("export_locations", |i, _| i.exports.iter().map(|e| json!(e.path)).collect()).until(8),
    F::new("access_rules_status", |i, _| json!(i.access_rules_status.as_str())).since(10),
    F::new("replica_state", |i, _| json!(i.replica_state.map(|s| s.as_str()))).since(11),
    F::new("share_type_id", |i, _| json!(i.share_type_id.to_string())).since(22),
    F::new("cast_rules_to_readonly", |i, _| json!(i.cast_rules_to_readonly)).since(30),
    F::new("progress", |i, _| progress(i)).since(54),
    F::new("updated_at", |i, _| maybe_time(i.updated_at)).since(71),
];

/// Manila's progress of the making of an instance.
pub(super) fn progress(instance: &Instance) -> Value {
    let making = matches!(instance.status, InstanceStatus::Creating | InstanceStatus::MigratingTo);
    let made = instance.launched_at.is_some() || !making;
    if made { json!("100%") } else { Value::Null }
}

fn list<'a>(call: &Call, instances: impl Iterator<Item = &'a Instance>) -> Result {
    let views: Vec<Value> = instances.map(|i| render(FIELDS, i, call)).collect();
    Reply::ok(json!({"share_instances": views}))
}

async fn index(call: Call) -> Result {
    call.authorize("share_instance:index")?;
    let mut query = InstanceQuery { limit: Some(MAX_LIMIT), ..InstanceQuery::default() };
    let mut nothing = call.since(69) && call.query.get("is_soft_deleted").is_some_and(is_true);
    if call.since(35) {
        if let Some(id) = call.query.get("export_location_id") {
            query.export_id = find::uuid(id);
            nothing |= query.export_id.is_none();
        }
        query.export_path = call.query.get("export_location_path").map(str::to_owned);
    }
    let found = match nothing {
        true => Vec::new(),
        false => call.app.manager.store().instances(&query).await.map_err(find::store)?.items,
    };
    list(&call, found.iter())
}

fn is_true(word: &str) -> bool {
    crate::python::strict_bool(word) == Some(true)
}

async fn show(call: Call) -> Result {
    call.authorize("share_instance:show")?;
    let found = find::instance(&call, call.param("id")).await?.ok_or_else(Fault::not_found)?;
    Reply::ok(json!({"share_instance": render(FIELDS, &found, &call)}))
}

async fn of_share(call: Call) -> Result {
    call.authorize("share_instance:index")?;
    let found = find::need_share(&call, call.param("id"), Fault::not_found).await?;
    list(&call, found.instances.iter())
}

async fn reset_status(call: Call) -> Result {
    call.authorize("share_instance:reset_status")?;
    let status = admin::status(&call)?;
    let found = find::instance(&call, call.param("id")).await?.ok_or_else(Fault::not_found)?;
    call.app.manager.reset_instance_status(&call.caller(), found.id, status).await.map_err(denied::fault)?;
    Reply::accepted()
}

/// An instance is removed as what it is: a replica, or the share that it is all of.
async fn force_delete(call: Call) -> Result {
    call.authorize("share_instance:force_delete")?;
    let found = find::instance(&call, call.param("id")).await?.ok_or_else(Fault::not_found)?;
    let family = call.app.manager.store().family(found.share_id).await.map_err(find::store)?;
    let (caller, manager) = (call.caller(), &call.app.manager);
    if family.instances.len() > 1 {
        manager.delete_replica(&caller, found.id, true).await.map_err(denied::fault)?;
    } else {
        manager.delete_share(&caller, found.share_id, true).await.map_err(denied::fault)?;
    }
    Reply::accepted()
}
