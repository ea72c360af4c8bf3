//! Share types.

use serde_json::{Map, Value};
use std::collections::BTreeMap;
use tandem_manager::{NewType, TypeChange};

use super::type_views::{REQUIRED, list, matches, one};
use super::{denied, find, specs};
use crate::call::{Call, Reply, Result};
use crate::fault::Fault;
use crate::microversion::Window;
use crate::python;
use crate::routes::Routes;

const MAX_TEXT: usize = 255;

pub(super) fn routes(routes: &mut Routes) {
    routes.get("/types", Window::ALWAYS, index);
    routes.post("/types", Window::ALWAYS, create);
    routes.get("/types/default", Window::ALWAYS, default);
    routes.get("/types/{id}", Window::ALWAYS, show);
    routes.put("/types/{id}", Window::since(50), update);
    routes.delete("/types/{id}", Window::ALWAYS, delete);
}

async fn index(call: Call) -> Result {
    call.authorize("share_type:index")?;
    let public = match call.query.get("is_public") {
        _ if !call.who.is_admin => Some(true),
        None => Some(true),
        Some(word) if word.eq_ignore_ascii_case("all") => None,
        Some(word) => {
            let public = python::strict_bool(word);
            Some(public.ok_or_else(|| Fault::bad_request(format!("Invalid is_public filter [{word}]")))?)
        }
    };
    let wanted = specs_filter(&call)?;
    let types = find::types(&call).await?;
    let shown = types.into_iter().filter(|t| public.is_none_or(|p| p == t.is_public) && matches(t, &wanted));
    Reply::ok(list(&call, shown))
}

/// The `extra_specs` filter: a Python dictionary.
fn specs_filter(call: &Call) -> Result<BTreeMap<String, String>> {
    let Some(text) = call.query.filled("extra_specs") else { return Ok(BTreeMap::new()) };
    if !call.since(43) {
        return Err(Fault::bad_request(
            "Filter by 'extra_specs' is not supported by this microversion. Use 2.43 or greater microversion to be \
             able to use filter search by 'extra_specs.",
        ));
    }
    let dict = python::literal_dict(text).ok_or_else(Fault::malformed)?;
    Ok(dict.into_iter().map(|(key, value)| (key, python::str_of(&value))).collect())
}

async fn default(call: Call) -> Result {
    call.authorize("share_type:default")?;
    let found = find::default_type(&call).await?;
    let found = found.ok_or_else(|| Fault::new(404, "Default share type not found"))?;
    Reply::ok(one(&call, found, None))
}

async fn show(call: Call) -> Result {
    call.authorize("share_type:show")?;
    let found = find::share_type(&call, call.param("id")).await?;
    let found = found.ok_or_else(|| Fault::new(404, "Share type not found."))?;
    Reply::ok(one(&call, found, None))
}

/// The object of a request that makes or changes a type, under either of its names.
fn entity(call: &Call) -> Result<&Map<String, Value>> {
    match call.entity("share_type")? {
        Some(found) => Ok(found),
        None => call.entity("volume_type")?.ok_or_else(Fault::malformed),
    }
}

fn text<'a>(object: &'a Map<String, Value>, key: &str) -> Result<Option<&'a str>> {
    let found = super::read::text(object, key)?;
    if found.is_some_and(|t| t.contains('\0')) { Err(Fault::malformed()) } else { Ok(found) }
}

async fn create(call: Call) -> Result {
    call.authorize("share_type:create")?;
    let wanted = entity(&call)?;
    let name = text(wanted, "name")?.unwrap_or_default();
    let description = text(wanted, "description")?;
    if description.is_some_and(|d| !d.is_empty()) && !call.since(41) {
        return Err(Fault::bad_request(
            "'description' key is not supported by this microversion. Use 2.41 or greater microversion to be able to \
             use 'description' in share type.",
        ));
    }
    let too_long = |t: &str| t.chars().count() > MAX_TEXT;
    if name.is_empty() || too_long(name) || description.is_some_and(too_long) {
        return Err(Fault::bad_request("Type name or description is not valid."));
    }
    let public =
        wanted.get("os-share-type-access:is_public").or_else(|| wanted.get("share_type_access:is_public"));
    let is_public = match public {
        None => true,
        Some(value) => python::strict_bool_value(value)
            .ok_or_else(|| Fault::bad_request("share_type_access:is_public has a non-boolean value."))?,
    };
    let empty = Map::new();
    let asked = match wanted.get("extra_specs") {
        None | Some(Value::Null) => &empty,
        Some(Value::Object(map)) => map,
        Some(_) => return Err(Fault::malformed()),
    };
    let mut extra_specs = specs::for_new_type(asked)?;
    if !call.since(24) {
        // Before it was required, snapshot support was on unless somebody turned it off.
        extra_specs.entry("snapshot_support".into()).or_insert_with(|| "True".into());
    }
    let new = NewType {
        name: name.to_owned(),
        description: description.map(str::to_owned),
        is_public,
        extra_specs,
    };
    let made = call.app.manager.create_type(new).await.map_err(denied::fault)?;
    Reply::ok(one(&call, made, asked.get(REQUIRED).cloned()))
}

async fn update(call: Call) -> Result {
    call.authorize("share_type:update")?;
    let wanted = entity(&call)?;
    let (name, description) = (text(wanted, "name")?, text(wanted, "description")?);
    let is_public = match wanted.get("share_type_access:is_public") {
        None | Some(Value::Null) => None,
        Some(value) => Some(
            python::strict_bool_value(value)
                .ok_or_else(|| Fault::bad_request("share_type_access:is_public has a non-boolean value."))?,
        ),
    };
    if let Some(name) = name {
        if name.trim().is_empty() {
            return Err(Fault::bad_request("Share type name cannot be empty."));
        }
        if name.chars().count() > MAX_TEXT {
            return Err(Fault::bad_request(
                "Share type name cannot be greater than 255 characters in length.",
            ));
        }
    }
    if description.is_some_and(|d| d.chars().count() > MAX_TEXT) {
        return Err(Fault::bad_request(
            "Share type description cannot be greater than 255 characters in length.",
        ));
    }
    if name.is_none() && description.is_none() && is_public.is_none() {
        return Err(Fault::bad_request(
            "Specify share type name, description, share_type_access:is_public or a combination thereof.",
        ));
    }
    let id = call.param("id");
    let missing = || Fault::new(404, format!("ShareTypeNotFound: Share type {id} could not be found."));
    let found = find::share_type(&call, id).await?.ok_or_else(missing)?;
    let change = TypeChange {
        name: name.map(str::to_owned),
        description: description.map(|d| Some(d.to_owned())),
        is_public,
    };
    let changed = call.app.manager.update_type(found.id, change).await.map_err(denied::fault)?;
    Reply::ok(one(&call, changed, None))
}

async fn delete(call: Call) -> Result {
    call.authorize("share_type:delete")?;
    let found = find::share_type(&call, call.param("id")).await?.ok_or_else(Fault::not_found)?;
    call.app.manager.delete_type(found.id).await.map_err(denied::fault)?;
    Reply::accepted()
}
