//! Quotas and limits of projects.

use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use tandem_manager::model::{Counted, Usage, default_limits};

use super::{denied, find};
use crate::call::{Call, Reply, Result};
use crate::fault::Fault;
use crate::microversion::Window;
use crate::python;
use crate::routes::Routes;

pub(super) fn routes(routes: &mut Routes) {
    const OLD: Window = Window::between(0, 6);
    const NEW: Window = Window::since(7);
    routes.get("/limits", Window::ALWAYS, limits);
    routes.get("/quota-sets/{id}", NEW, |c| show(c, false));
    routes.put("/quota-sets/{id}", NEW, update);
    routes.delete("/quota-sets/{id}", NEW, delete);
    routes.get("/quota-sets/{id}/detail", Window::since(25), |c| show(c, true));
    routes.get("/quota-sets/{id}/defaults", NEW, defaults);
    routes.get("/os-quota-sets/{id}", OLD, |c| show(c, false));
    routes.put("/os-quota-sets/{id}", OLD, update);
    routes.delete("/os-quota-sets/{id}", OLD, delete);
    routes.get("/os-quota-sets/{id}/defaults", OLD, defaults);
}

/// The quotas in the order of Manila's view, and since which version each is shown. The project's id stands
/// after the fourth.
const QUOTAS: &[(&str, u32)] = &[
    ("shares", 0),
    ("gigabytes", 0),
    ("snapshots", 0),
    ("snapshot_gigabytes", 0),
    ("share_networks", 0),
    ("share_groups", 40),
    ("share_group_snapshots", 40),
    ("share_replicas", 53),
    ("replica_gigabytes", 53),
    ("per_share_gigabytes", 62),
    ("backups", 80),
    ("backup_gigabytes", 80),
    ("encryption_keys", 90),
];

/// Quotas that share types do not have.
const NOT_OF_TYPES: &[&str] = &["share_networks", "share_groups", "share_group_snapshots"];

/// The quotas that `GET /limits` shows, under its two sets of names.
const LIMITS: &[(&str, &str, &str, u32)] = &[
    ("shares", "maxTotalShares", "totalSharesUsed", 0),
    ("snapshots", "maxTotalShareSnapshots", "totalShareSnapshotsUsed", 0),
    ("gigabytes", "maxTotalShareGigabytes", "totalShareGigabytesUsed", 0),
    ("snapshot_gigabytes", "maxTotalSnapshotGigabytes", "totalSnapshotGigabytesUsed", 0),
    ("share_networks", "maxTotalShareNetworks", "totalShareNetworksUsed", 0),
    ("share_groups", "maxTotalShareGroups", "totalShareGroupsUsed", 58),
    ("share_group_snapshots", "maxTotalShareGroupSnapshots", "totalShareGroupSnapshotsUsed", 58),
    ("share_replicas", "maxTotalShareReplicas", "totalShareReplicasUsed", 53),
    ("replica_gigabytes", "maxTotalReplicaGigabytes", "totalReplicaGigabytesUsed", 53),
    ("backups", "maxTotalShareBackups", "totalShareBackupsUsed", 80),
    ("backup_gigabytes", "maxTotalBackupGigabytes", "totalBackupGigabytesUsed", 80),
];

async fn limits_of(call: &Call, project: &str) -> Result<BTreeMap<String, i64>> {
    let mut limits = default_limits();
    let own = call.app.manager.store().quota(project).await.map_err(find::store)?;
    limits.extend(own.into_iter().flat_map(|q| q.limits));
    Ok(limits)
}

fn used(usage: &Usage, quota: &str) -> i64 {
    Counted::ALL.into_iter().find(|c| c.as_str() == quota).map_or(0, |c| usage.of(c))
}

async fn limits(call: Call) -> Result {
    let project = &call.who.project_id;
    let limits = limits_of(&call, project).await?;
    let usage = call.app.manager.store().usage(project).await.map_err(find::store)?;
    let shown: Vec<_> = LIMITS.iter().filter(|l| call.since(l.3)).collect();
    let mut absolute = Map::new();
    for (quota, name, _, _) in &shown {
        absolute.insert((*name).to_owned(), json!(limits.get(*quota)));
    }
    for (quota, _, name, _) in &shown {
        absolute.insert((*name).to_owned(), json!(used(&usage, quota)));
    }
    Reply::ok(json!({"limits": {"rate": [], "absolute": absolute}}))
}

/// What a `quota-sets` request is narrowed to. Limits of users and of share types are those of the project
/// here; they can be read, not set.
struct Scope {
    of_type: bool,
    of_user: bool,
}

async fn scope(call: &Call) -> Result<Scope> {
    let (user, share_type) = (call.query.filled("user_id"), call.query.filled("share_type"));
    if share_type.is_some() && !call.since(39) {
        return Err(Fault::bad_request(
            "'share_type' key is not supported by this microversion. Use 2.39 or greater microversion to be able to \
             use 'share_type' quotas.",
        ));
    }
    if user.is_some() && share_type.is_some() {
        return Err(Fault::bad_request("'user_id' and 'share_type' values are mutually exclusive"));
    }
    if let Some(name) = share_type {
        let missing = || Fault::new(404, format!("Share type with name or id '{name}' not found."));
        find::share_type_by(call, name).await?.ok_or_else(missing)?;
    }
    Ok(Scope { of_type: share_type.is_some(), of_user: user.is_some() })
}

/// Another project's quotas are an administrator's to see.
fn own_project(call: &Call) -> Result<()> {
    if call.who.is_admin || call.param("id") == call.who.project_id {
        Ok(())
    } else {
        Err(Fault::forbidden())
    }
}

fn view(call: &Call, id: Option<&str>, scope: &Scope, value: impl Fn(&str) -> Value) -> Value {
    let mut out = Map::new();
    for (n, (quota, since)) in QUOTAS.iter().enumerate() {
        if n == 4 {
            out.extend(id.map(|id| ("id".to_owned(), json!(id))));
        }
        if call.since(*since) && !(scope.of_type && NOT_OF_TYPES.contains(quota)) {
            out.insert((*quota).to_owned(), value(quota));
        }
    }
    json!({"quota_set": out})
}

async fn show(call: Call, in_full: bool) -> Result {
    call.authorize("quota_set:show")?;
    own_project(&call)?;
    let scope = scope(&call).await?;
    let id = call.param("id");
    let limits = limits_of(&call, id).await?;
    let limit = |quota: &str| json!(limits.get(quota));
    if !in_full {
        return Reply::ok(view(&call, Some(id), &scope, limit));
    }
    let usage = call.app.manager.store().usage(id).await.map_err(find::store)?;
    let whole = |quota: &str| json!({"limit": limit(quota), "in_use": used(&usage, quota), "reserved": 0});
    Reply::ok(view(&call, Some(id), &scope, whole))
}

async fn defaults(call: Call) -> Result {
    call.authorize("quota_set:show")?;
    let limits = default_limits();
    let scope = Scope { of_type: false, of_user: false };
    Reply::ok(view(&call, Some(call.param("id")), &scope, |quota| json!(limits.get(quota))))
}

/// Keys of a request that are no quotas.
const NO_QUOTAS: &[&str] = &["tenant_id", "id", "force", "share_type"];

async fn update(call: Call) -> Result {
    let scope = scope(&call).await?;
    let empty = Map::new();
    let wanted = match call.body()?.get("quota_set") {
        None => &empty,
        Some(Value::Object(map)) => map,
        Some(_) => return Err(Fault::malformed()),
    };
    refuse_newer(&call, wanted)?;
    call.authorize("quota_set:update")?;
    let known = |key: &str| QUOTAS.iter().any(|(quota, _)| *quota == key);
    if !wanted.iter().any(|(key, value)| known(key) && !value.is_null()) {
        return Err(Fault::bad_request("Must supply at least one quota field to update."));
    }
    if scope.of_type || scope.of_user {
        return Err(Fault::bad_request(
            "Quotas are kept per project: 'user_id' and 'share_type' cannot be used to set them.",
        ));
    }
    let id = call.param("id");
    if id.contains('\0') || id.chars().count() > 255 {
        return Err(Fault::malformed());
    }
    let bad: Vec<&str> =
        wanted.keys().map(String::as_str).filter(|key| !known(key) && !NO_QUOTAS.contains(key)).collect();
    let mut set = BTreeMap::new();
    for (key, value) in wanted.iter().filter(|(key, _)| known(key)) {
        if !python::truthy(Some(value)) && value.as_i64() != Some(0) {
            continue;
        }
        let limit = python::int(value).filter(|n| i32::try_from(*n).is_ok()).ok_or_else(|| {
            let shown = python::str_of(value);
            Fault::bad_request(format!("Quota '{shown}' for {key} should be integer."))
        })?;
        set.insert(key.clone(), limit);
    }
    if !bad.is_empty() {
        return Err(Fault::bad_request(format!("Bad key(s) {} in quota_set.", bad.join(","))));
    }
    let force = wanted.get("force").and_then(python::strict_bool_value) == Some(true);
    let limits = limits_of(&call, id).await?;
    let usage = call.app.manager.store().usage(id).await.map_err(find::store)?;
    for (key, limit) in &set {
        let (limit, in_use) = (*limit, used(&usage, key));
        let bounded = limits.get(key).is_some_and(|old| *old >= 0);
        if !force && limit >= 0 && bounded && in_use > limit {
            return Err(Fault::bad_request(format!(
                "Quota value {limit} for {key} is smaller than already used and reserved {in_use}."
            )));
        }
        if limit < -1 {
            return Err(Fault::bad_request("Quota limit must be -1 or greater."));
        }
    }
    call.app.manager.set_quota(id, set).await.map_err(denied::fault)?;
    let limits = limits_of(&call, id).await?;
    Reply::ok(view(&call, None, &scope, |quota| json!(limits.get(quota))))
}

/// Refuses quotas that came with a later version than the one asked for.
fn refuse_newer(call: &Call, wanted: &Map<String, Value>) -> Result<()> {
    for (key, since) in QUOTAS.iter().filter(|(_, since)| !call.since(*since)) {
        if python::truthy(wanted.get(*key)) {
            return Err(Fault::bad_request(format!(
                "'{key}' key is not supported by this microversion. Use 2.{since} or greater microversion to be able \
                 to use '{key}' quotas."
            )));
        }
    }
    Ok(())
}

async fn delete(call: Call) -> Result {
    let scope = scope(&call).await?;
    call.authorize("quota_set:delete")?;
    own_project(&call)?;
    if !scope.of_type && !scope.of_user {
        call.app.manager.delete_quota(call.param("id")).await.map_err(denied::fault)?;
    }
    Reply::accepted()
}
