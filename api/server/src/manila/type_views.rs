//! What share types look like.

use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use tandem_manager::model::ShareType;

use super::view::{Field, render};
use crate::call::Call;
use crate::python;

/// The extra spec that every share type must have.
pub(super) const REQUIRED: &str = "driver_handles_share_servers";

/// Extra specs that tenants see.
pub(super) const VISIBLE: &[&str] = &[
    REQUIRED,
    "snapshot_support",
    "create_share_from_snapshot_support",
    "revert_to_snapshot_support",
    "replication_type",
    "mount_snapshot_support",
    "mount_point_name_support",
    "snapshot_inherit_share_access_support",
    "availability_zones",
    "encryption_support",
    "provisioning:max_share_size",
    "provisioning:min_share_size",
    "provisioning:max_share_extend_size",
    "provisioning:mount_point_prefix",
    "default_qos_type",
];

/// Extra specs that tenants see with their default where the type does not set them, and since when.
const INFERRED: &[(&str, u32)] = &[
    ("snapshot_support", 24),
    ("create_share_from_snapshot_support", 24),
    ("revert_to_snapshot_support", 24),
    ("mount_snapshot_support", 24),
    ("snapshot_inherit_share_access_support", 99),
];

/// A share type to be shown. `required` is what a request wrote for the required extra specs, where one did.
pub(super) struct Shown {
    pub(super) share_type: ShareType,
    pub(super) required: Option<Value>,
}

type F = Field<Shown>;

const FIELDS: &[F] = &[
    F::new("id", |t, _| json!(t.share_type.id.to_string())),
    F::new("name", |t, _| json!(t.share_type.name)),
    F::new("extra_specs", |t, call| extra_specs(&t.share_type, call)),
    F::new("required_extra_specs", |t, _| required(t)),
    F::new("os-share-type-access:is_public", |t, _| json!(t.share_type.is_public)).until(6),
    F::new("share_type_access:is_public", |t, _| json!(t.share_type.is_public)).since(7),
    F::new("description", |t, _| json!(t.share_type.description)).since(41),
    F::new("is_default", |t, call| json!(is_default(&t.share_type, call))).since(46),
];

/// One share type, under both of its names.
pub(super) fn one(call: &Call, share_type: ShareType, required: Option<Value>) -> Value {
    let view = render(FIELDS, &Shown { share_type, required }, call);
    json!({"volume_type": view, "share_type": view})
}

/// A list of share types, under both names.
pub(super) fn list(call: &Call, types: impl Iterator<Item = ShareType>) -> Value {
    let views: Vec<Value> =
        types.map(|share_type| render(FIELDS, &Shown { share_type, required: None }, call)).collect();
    json!({"volume_types": views, "share_types": views})
}

fn extra_specs(share_type: &ShareType, call: &Call) -> Value {
    let admin = call.who.is_admin;
    let mut specs: Map<String, Value> = share_type
        .extra_specs
        .iter()
        .filter(|(key, _)| admin || VISIBLE.contains(&key.as_str()))
        .map(|(key, value)| (key.clone(), json!(value)))
        .collect();
    if !admin {
        for (key, since) in INFERRED {
            if call.since(*since) && !specs.contains_key(*key) {
                specs.insert((*key).to_owned(), json!(false));
            }
        }
    }
    Value::Object(specs)
}

fn required(shown: &Shown) -> Value {
    if let Some(value) = &shown.required {
        return json!({ REQUIRED: value });
    }
    match shown.share_type.extra_specs.get(REQUIRED).filter(|v| python::strict_bool(v).is_some()) {
        Some(value) => json!({ REQUIRED: value }),
        None => json!({}),
    }
}

fn is_default(share_type: &ShareType, call: &Call) -> bool {
    call.app.settings.default_share_type.as_deref() == Some(share_type.name.as_str())
}

/// Whether a type's extra specs are these (of zones: offer all of these).
pub(super) fn matches(share_type: &ShareType, wanted: &BTreeMap<String, String>) -> bool {
    wanted.iter().all(|(key, value)| match (key.as_str(), share_type.extra_specs.get(key)) {
        ("availability_zones", None) => true,
        ("availability_zones", Some(offered)) => {
            let offered: Vec<&str> = offered.split(',').collect();
            value.split(',').all(|zone| offered.contains(&zone))
        }
        (_, found) => found == Some(value),
    })
}
