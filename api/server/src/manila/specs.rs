//! Extra specs of share types.

use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use tandem_manager::model::{OnSplitBrain, ShareType};

use super::type_views::REQUIRED;
use super::{denied, find};
use crate::call::{Call, Reply, Result};
use crate::fault::Fault;
use crate::microversion::Window;
use crate::python;
use crate::routes::Routes;

pub(super) fn routes(routes: &mut Routes) {
    routes.get("/types/{id}/extra_specs", Window::ALWAYS, index);
    routes.post("/types/{id}/extra_specs", Window::ALWAYS, create);
    routes.get("/types/{id}/extra_specs/{key}", Window::ALWAYS, show);
    routes.put("/types/{id}/extra_specs/{key}", Window::ALWAYS, update);
    routes.delete("/types/{id}/extra_specs/{key}", Window::ALWAYS, delete);
}

/// A boolean extra spec: a word for yes or no, perhaps after `<is>`.
fn is_boolean(text: &str) -> bool {
    python::strict_bool(text.trim().trim_start_matches("<is>")).is_some()
}

/// Why an extra spec that has a meaning has none with this value; `Ok` for those without.
fn check(key: &str, value: &str) -> std::result::Result<(), &'static str> {
    let fine = match key {
        REQUIRED => python::strict_bool(value).is_some(),
        "snapshot_support"
        | "create_share_from_snapshot_support"
        | "revert_to_snapshot_support"
        | "mount_snapshot_support"
        | "mount_point_name_support"
        | "snapshot_inherit_share_access_support" => is_boolean(value),
        "replication_type" => matches!(value, "writable" | "readable" | "dr"),
        "availability_zones" => value.split(',').all(|zone| !zone.trim().is_empty()),
        "encryption_support" => matches!(value, "share" | "share_server"),
        "provisioning:max_share_size"
        | "provisioning:min_share_size"
        | "provisioning:max_share_extend_size" => value.parse::<u32>().is_ok_and(|n| n > 0),
        "replication:rpo_seconds" => {
            return if value.trim().parse::<u32>().is_ok_and(|n| n > 0) {
                Ok(())
            } else {
                Err("it must be a whole number of seconds, at least 1")
            };
        }
        "replication:split_brain" => {
            return OnSplitBrain::named(value).map(drop).ok_or("it must be `wait` or `discard-secondary`");
        }
        _ => true,
    };
    if fine { Ok(()) } else { Err("") }
}

/// The value as it is kept: text; Python's word of a boolean.
fn kept(key: &str, value: &Value) -> Option<(String, String)> {
    let text = match value {
        Value::String(text) => text.clone(),
        Value::Bool(_) => python::str_of(value),
        _ => return None,
    };
    let length = |t: &str| (1..=255).contains(&t.chars().count()) && !t.contains('\0');
    if !length(key) || !length(&text) {
        return None;
    }
    // Zones are compared by name, so blanks around them are dropped.
    let text = match key {
        "availability_zones" => text.split(',').map(str::trim).collect::<Vec<_>>().join(","),
        _ => text,
    };
    Some((key.to_owned(), text))
}

fn invalid(what: impl AsRef<str>) -> Fault {
    Fault::bad_request(format!("Invalid extra_spec: {}", what.as_ref()))
}

/// The extra specs of a type to be made.
pub(super) fn for_new_type(asked: &Map<String, Value>) -> Result<BTreeMap<String, String>> {
    let Some(required) = asked.get(REQUIRED) else {
        return Err(invalid(format!("Required extra specs '{REQUIRED}' not specified.")));
    };
    if python::strict_bool_value(required).is_none() {
        return Err(invalid(format!("Value of required extra_spec {REQUIRED} is not valid.")));
    }
    // Manila forgets to fill its own sentence in here, and clients compare it.
    accepted(asked, |_| Fault::bad_request("Invalid share type: Invalid extra_spec: %(reason)s."))
}

/// Extra specs to be added to a type.
fn for_old_type(asked: &Map<String, Value>) -> Result<BTreeMap<String, String>> {
    accepted(asked, std::convert::identity)
}

/// Each spec as it is kept. `unnamed` words the refusal of one for which there is no reason to tell.
fn accepted(
    asked: &Map<String, Value>,
    unnamed: impl Fn(Fault) -> Fault,
) -> Result<BTreeMap<String, String>> {
    let mut out = BTreeMap::new();
    for (key, value) in asked {
        let shown = || invalid(format!("{key}: {}", python::str_of(value)));
        let (key, value) = kept(key, value).ok_or_else(shown)?;
        match check(&key, &value) {
            Ok(()) => {}
            Err("") => return Err(unnamed(shown())),
            Err(why) => return Err(invalid(format!("{key}: {value}: {why}"))),
        }
        out.insert(key, value);
    }
    Ok(out)
}

async fn need_type(call: &Call) -> Result<ShareType> {
    let id = call.param("id");
    let missing = || Fault::new(404, format!("Share type {id} could not be found."));
    find::share_type(call, id).await?.ok_or_else(missing)
}

async fn index(call: Call) -> Result {
    call.authorize("share_types_extra_spec:index")?;
    let found = need_type(&call).await?;
    Reply::ok(json!({"extra_specs": found.extra_specs}))
}

async fn create(call: Call) -> Result {
    call.authorize("share_types_extra_spec:create")?;
    let asked = call.entity("extra_specs")?.ok_or_else(Fault::malformed)?;
    let found = need_type(&call).await?;
    let specs = for_old_type(asked)?;
    let plain =
        |key: &str| !key.is_empty() && key.chars().all(|c| c.is_ascii_alphanumeric() || "_.:-".contains(c));
    if !specs.keys().all(|key| plain(key)) {
        return Err(Fault::bad_request(
            "Key names can only contain alphanumeric characters, underscores, periods, colons and hyphens.",
        ));
    }
    call.app.manager.set_extra_specs(found.id, specs).await.map_err(denied::fault)?;
    Reply::ok(call.body()?.clone())
}

async fn update(call: Call) -> Result {
    call.authorize("share_types_extra_spec:update")?;
    let body = call.body().ok().filter(|b| python::truthy(Some(b)));
    let body = body.ok_or_else(|| Fault::bad_request("Request body empty"))?;
    let found = need_type(&call).await?;
    let asked = body.as_object().ok_or_else(Fault::malformed)?;
    if !asked.contains_key(call.param("key")) {
        return Err(Fault::bad_request("Request body and URI mismatch"));
    }
    if asked.len() > 1 {
        return Err(Fault::bad_request("Request body contains too many items"));
    }
    let specs = for_old_type(asked)?;
    let shown = json!(specs);
    call.app.manager.set_extra_specs(found.id, specs).await.map_err(denied::fault)?;
    Reply::ok(shown)
}

async fn show(call: Call) -> Result {
    call.authorize("share_types_extra_spec:show")?;
    let found = need_type(&call).await?;
    let key = call.param("key");
    let value = found.extra_specs.get(key).ok_or_else(Fault::not_found)?;
    Reply::ok(json!({ key: value }))
}

async fn delete(call: Call) -> Result {
    call.authorize("share_types_extra_spec:delete")?;
    let found = need_type(&call).await?;
    let key = call.param("key");
    if key == REQUIRED || (key == "snapshot_support" && !call.since(24)) {
        return Err(Fault::new(403, format!("Extra spec '{key}' can't be deleted.")));
    }
    if !found.extra_specs.contains_key(key) {
        let message = format!("Share Type {} has no extra specs with key {key}.", found.id);
        return Err(Fault::new(404, message));
    }
    call.app.manager.unset_extra_spec(found.id, key).await.map_err(denied::fault)?;
    Reply::accepted()
}
