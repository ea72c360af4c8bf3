//! Share replicas.

use serde_json::{Map, Value, json};
use tandem_contract::{ReplicaState, ResourceId};
use tandem_manager::model::{Instance, InstanceStatus, Part};
use tandem_manager::store::InstanceQuery;
use tandem_manager::{Denied, NewReplica};

use super::replica_views::{detail, summary};
use super::{admin, denied, find, metadata, read};
use crate::call::{Call, Reply, Result};
use crate::fault::Fault;
use crate::microversion::Window;
use crate::page::{After, MAX_LIMIT, Page};
use crate::python;
use crate::routes::{Action, Routes};

/// Replication exists since 2.11 and is no longer experimental since 2.56.
const WINDOW: Window = Window::graduated(11, 56);

pub(super) fn routes(routes: &mut Routes) {
    routes.get("/share-replicas", WINDOW, |call| list(call, false));
    routes.post("/share-replicas", WINDOW, create);
    routes.get("/share-replicas/detail", WINDOW, |call| list(call, true));
    routes.get("/share-replicas/{id}", WINDOW, show);
    routes.delete("/share-replicas/{id}", WINDOW, |call| delete(call, "share_replica:delete", false));
    metadata::replica_routes(routes);
    routes.actions(
        "/share-replicas/{id}/action",
        vec![
            Action::new("promote", WINDOW, promote),
            Action::new("resync", WINDOW, resync),
            Action::new("reset_status", WINDOW, reset_status),
            Action::new("reset_replica_state", WINDOW, reset_replica_state),
            Action::new("force_delete", WINDOW, |call| delete(call, "share_replica:force_delete", true)),
        ],
    );
}

async fn list(call: Call, in_full: bool) -> Result {
    call.authorize("share_replica:get_all")?;
    let name = if in_full { "share-replicas/detail" } else { "share-replicas" };
    call.kept(name, |call| read_list(call, in_full)).await
}

async fn read_list(call: Call, in_full: bool) -> Result {
    let page = Page::of(&call.query)?;
    let mut query = InstanceQuery {
        replicas_only: true,
        project_id: call.visible_project(),
        offset: page.offset,
        limit: Some(page.limit),
        ..InstanceQuery::default()
    };
    let mut nothing = false;
    if let Some(share) = call.query.filled("share_id") {
        match find::uuid(share) {
            Some(id) => query.share_id = Some(ResourceId(id)),
            None => nothing = true,
        }
    }
    let store = call.app.manager.store();
    if let Some(mut search) = After::of(&call.query).filter(|_| !nothing) {
        while let Some(offset) = search.next_offset() {
            let query = InstanceQuery { offset, limit: Some(MAX_LIMIT), ..query.clone() };
            let found = store.instances(&query).await.map_err(find::store)?.items;
            search.saw(found.iter().map(|i| i.id.to_string()));
        }
        query.offset = search.found().unwrap_or(query.offset);
    }
    let found = match nothing {
        true => Vec::new(),
        false => store.instances(&query).await.map_err(find::store)?.items,
    };
    let view = if in_full { detail } else { summary };
    let mut out = Map::new();
    // What a migration fills or has left is no replica.
    let replicas = found.iter().filter(|i| i.part == Part::Whole);
    out.insert("share_replicas".into(), replicas.map(|replica| view(&call, replica)).collect());
    if let Some(last) = found.last() {
        let links = call.next_links(&page, "share-replicas", found.len(), &last.id.to_string());
        out.extend(links.map(|links| ("share_replica_links".to_owned(), links)));
    }
    Reply::ok(Value::Object(out))
}

/// The replica of the path, or the sentence that most calls have when there is none.
async fn need_replica(call: &Call) -> Result<Instance> {
    let id = call.param("id");
    let missing = || Fault::new(404, format!("No replica exists with ID {id}."));
    find::replica(call, id).await?.ok_or_else(missing)
}

fn one(call: &Call, replica: &Instance) -> Value {
    json!({"share_replica": detail(call, replica)})
}

async fn show(call: Call) -> Result {
    call.authorize("share_replica:show")?;
    let id = call.param("id");
    let missing = || Fault::new(404, format!("Replica {id} not found."));
    let found = find::replica(&call, id).await?.ok_or_else(missing)?;
    Reply::ok(one(&call, &found))
}

async fn create(call: Call) -> Result {
    call.authorize("share_replica:create")?;
    let missing = || Fault::new(422, "Body does not contain 'share_replica' information.");
    let wanted = call.entity("share_replica")?.ok_or_else(missing)?;
    let share_id = match wanted.get("share_id") {
        id if !python::truthy(id) => return Err(Fault::bad_request("Must provide Share ID to add replica.")),
        Some(Value::String(id)) => id.as_str(),
        _ => return Err(Fault::malformed()),
    };
    let missing = || Fault::new(404, format!("No share exists with ID {share_id}."));
    let parent = find::need_share(&call, share_id, missing).await?;
    find::may_change(&call, "share:get", &parent.share).map_err(|_| missing())?;
    if let Some(network) = read::filled(wanted, "share_network_id")? {
        return Err(Fault::bad_request(if call.since(72) {
            format!("No share network exists with ID {network}.")
        } else {
            "'share_network_id' option is not supported by this microversion. Use 2.72 or greater microversion to be \
             able to use 'share_network_id'."
                .to_owned()
        }));
    }
    let new = NewReplica {
        availability_zone: read::filled(wanted, "availability_zone")?.map(str::to_owned),
        metadata: if call.since(95) { read::metadata(wanted.get("metadata"))? } else { Default::default() },
        only_host: if call.since(67) { only_host(wanted)? } else { None },
    };
    if let Some(zone) = &new.availability_zone {
        check_zone(&call, zone, &parent)?;
    }
    let made = call.app.manager.create_replica(&call.caller(), parent.share.id, new).await;
    let made = made.map_err(|d| match d {
        Denied::OverQuota { what, limit, .. } => denied::over_quota(what, limit, ""),
        Denied::NoShare(_) => missing(),
        other => denied::fault(other),
    })?;
    // The first answer does not know the state yet, as in Manila.
    let shown = Instance { replica_state: None, ..made };
    Ok(Reply::Json(202, one(&call, &shown)))
}

/// `scheduler_hints`: only `only_host`, and nothing beside it.
fn only_host(wanted: &Map<String, Value>) -> Result<Option<String>> {
    let hints = match wanted.get("scheduler_hints") {
        hints if !python::truthy(hints) => return Ok(None),
        Some(Value::Object(hints)) => hints,
        _ => return Err(Fault::malformed()),
    };
    match (hints.len(), hints.get("only_host")) {
        (1, Some(Value::String(host))) => Ok(Some(host.clone())),
        (1, Some(_)) => Err(Fault::malformed()),
        _ => Err(denied::invalid_input("Arg 'scheduler_hints' supports only 'only_host' key")),
    }
}

fn check_zone(call: &Call, zone: &str, parent: &find::ShareFamily) -> Result<()> {
    if !call.app.manager.zones().iter().any(|z| z == zone) {
        return Err(Fault::bad_request(format!("Availability zone {zone} could not be found.")));
    }
    let Some(share_type) = &parent.share_type else { return Ok(()) };
    match share_type.extra_specs.get("availability_zones") {
        Some(zones) if !zones.split(',').any(|z| z == zone) => Err(Fault::bad_request(format!(
            "Share replica cannot be created since the share type {}(ID: {}) is not supported within the \
             availability zone chosen {zone}.",
            share_type.name, share_type.id
        ))),
        _ => Ok(()),
    }
}

async fn delete(call: Call, rule: &'static str, force: bool) -> Result {
    call.authorize(rule)?;
    // Manila words the missing replica of a forced removal without the id.
    let found = match force {
        true => find::replica(&call, call.param("id")).await?.ok_or_else(Fault::not_found)?,
        false => need_replica(&call).await?,
    };
    call.app.manager.delete_replica(&call.caller(), found.id, force).await.map_err(denied::fault)?;
    Reply::accepted()
}

async fn promote(call: Call) -> Result {
    call.authorize("share_replica:promote")?;
    let found = need_replica(&call).await?;
    if found.replica_state == Some(ReplicaState::Active) {
        return Ok(Reply::Empty(200));
    }
    let wait = if call.since(75) { quiesce_wait_time(&call)? } else { None };
    let operation =
        call.app.manager.promote_replica(&call.caller(), found.id, wait).await.map_err(denied::fault)?;
    // What was admitted, whatever the runner has made of it meanwhile.
    let shown = Instance {
        status: InstanceStatus::ReplicationChange,
        updated_at: Some(operation.created_at),
        ..found
    };
    Ok(Reply::Json(202, one(&call, &shown)))
}

/// Seconds to let users settle: a whole number of at least 1.
fn quiesce_wait_time(call: &Call) -> Result<Option<u64>> {
    let wait = match call.body()?.get("promote") {
        None | Some(Value::Null) => return Ok(None),
        Some(Value::Object(promote)) => promote.get("quiesce_wait_time"),
        Some(_) => return Err(Fault::malformed()),
    };
    let Some(wait) = wait.filter(|w| python::truthy(Some(w))) else { return Ok(None) };
    match python::int_like(wait).and_then(|n| u64::try_from(n).ok()).filter(|n| *n > 0) {
        Some(seconds) => Ok(Some(seconds)),
        None => Err(Fault::bad_request("quiesce_wait_time must be an integer and greater than 0.")),
    }
}

async fn resync(call: Call) -> Result {
    call.authorize("share_replica:resync")?;
    let found = need_replica(&call).await?;
    if found.replica_state == Some(ReplicaState::Active) {
        return Ok(Reply::Empty(200));
    }
    call.app.manager.resync_replica(&call.caller(), found.id).await.map_err(denied::fault)?;
    Ok(Reply::EmptyJson(202))
}

async fn reset_status(call: Call) -> Result {
    call.authorize("share_replica:reset_status")?;
    let status = admin::status(&call)?;
    let found = find::replica(&call, call.param("id")).await?.ok_or_else(Fault::not_found)?;
    call.app.manager.reset_instance_status(&call.caller(), found.id, status).await.map_err(denied::fault)?;
    Reply::accepted()
}

async fn reset_replica_state(call: Call) -> Result {
    call.authorize("share_replica:reset_replica_state")?;
    let state = admin::replica_state(&call)?;
    let found = find::replica(&call, call.param("id")).await?.ok_or_else(Fault::not_found)?;
    call.app.manager.reset_replica_state(&call.caller(), found.id, state).await.map_err(denied::fault)?;
    Reply::accepted()
}
