//! Reads values out of bodies, with Manila's complaints.

use serde_json::{Map, Value};
use std::collections::BTreeMap;

use super::denied::invalid_input;
use crate::call::{Call, Result};
use crate::fault::Fault;
use crate::python;

/// The longest name or description, in characters.
const MAX_DISPLAY: usize = 255;

/// A text that may be absent or null; anything else is malformed.
pub(super) fn text<'a>(object: &'a Map<String, Value>, key: &str) -> Result<Option<&'a str>> {
    match object.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text)),
        Some(_) => Err(Fault::malformed()),
    }
}

/// As [`text`], but an empty one counts as absent.
pub(super) fn filled<'a>(object: &'a Map<String, Value>, key: &str) -> Result<Option<&'a str>> {
    Ok(text(object, key)?.filter(|t| !t.is_empty()))
}

/// A name or description of a person's choice. `shown` is what the complaint calls it.
pub(super) fn display(object: &Map<String, Value>, key: &str, shown: &str) -> Result<Option<String>> {
    let found = text(object, key)?;
    if found.is_some_and(|t| t.chars().count() > MAX_DISPLAY) {
        return Err(invalid_input(format!("{shown} can only be {MAX_DISPLAY} characters long")));
    }
    if found.is_some_and(|t| t.contains('\0')) {
        return Err(Fault::malformed());
    }
    Ok(found.map(str::to_owned))
}

/// Metadata: an object of texts, none of them blank or too long. Null is the same as none.
pub(super) fn metadata(value: Option<&Value>) -> Result<BTreeMap<String, String>> {
    let map = match value {
        None | Some(Value::Null) => return Ok(BTreeMap::new()),
        Some(Value::Object(map)) => map,
        Some(_) => return Err(Fault::malformed_body()),
    };
    let mut out = BTreeMap::new();
    for (key, value) in map {
        let complain = |what: &str| Err(Fault::bad_request(format!("Metadata property {what}.")));
        let Value::String(value) = value else {
            return if python::truthy(Some(value)) {
                Err(Fault::malformed_body())
            } else {
                complain("value is blank")
            };
        };
        match (key.chars().count(), value.chars().count()) {
            (0, _) => return complain("key is blank"),
            (256.., _) => return complain("key is greater than 255 characters"),
            (_, 0) => return complain("value is blank"),
            (_, 1024..) => return complain("value is greater than 1023 characters"),
            _ => out.insert(key.clone(), value.clone()),
        };
    }
    Ok(out)
}

/// `is_public` of a share: who may set it is a matter of policy, of which `rule` is the name.
pub(super) fn is_public(call: &Call, object: &Map<String, Value>, rule: &str) -> Result<Option<bool>> {
    let Some(value) = object.get("is_public") else { return Ok(None) };
    let public = python::strict_bool_value(value)
        .ok_or_else(|| Fault::bad_request(python::not_a_bool(&python::str_of(value))))?;
    if public && !call.may(rule) {
        return Err(Fault::new(403, "User is not authorized to set 'is_public' to True in the request."));
    }
    Ok(Some(public))
}

/// What a JSON schema says of a value that is not in its list, in the words of Manila's validator.
pub(super) fn not_in_schema(field: &str, value: &Value, why: &str) -> Fault {
    Fault::bad_request(format!(
        "Invalid input for field/attribute {field}. Value: {}. {} {why}",
        python::str_of(value),
        python::repr(value)
    ))
}

/// The object of an action's only key. `nothing` is what the action says when it is no object.
pub(super) fn action<'a>(call: &'a Call, name: &str) -> Result<&'a Map<String, Value>> {
    let value = call.body()?.get(name).unwrap_or(&Value::Null);
    value.as_object().ok_or_else(|| not_in_schema(name, value, "is not of type 'object'"))
}
