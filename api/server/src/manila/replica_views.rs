//! What replicas look like.

use serde_json::{Value, json};
use tandem_manager::model::Instance;

use super::view::Audience::Admin;
use super::view::{Field, maybe_time, render, time};
use crate::call::Call;

type F = Field<Instance>;

const SUMMARY: &[F] = &[
    F::new("id", |i, _| json!(i.id)),
    F::new("share_id", |i, _| json!(i.share_id)),
    F::new("status", |i, _| json!(i.status.as_str())),
    F::new("replica_state", |i, _| state(i)),
];

const DETAIL: &[F] = &[
    F::new("id", |i, _| json!(i.id)),
    F::new("share_id", |i, _| json!(i.share_id)),
    F::new("availability_zone", |i, _| json!(i.availability_zone)),
    F::new("created_at", |i, _| time(i.created_at)),
    F::new("status", |i, _| json!(i.status.as_str())),
    F::new("share_network_id", |_, _| Value::Null),
    F::new("replica_state", |i, _| state(i)),
    F::new("updated_at", |i, _| maybe_time(i.updated_at)),
    F::new("share_server_id", |_, _| Value::Null).only(Admin),
    F::new("host", |i, _| host(i)).only(Admin),
    F::new("cast_rules_to_readonly", |i, _| json!(i.cast_rules_to_readonly)).only(Admin).since(30),
    F::new("metadata", |i, _| json!(i.metadata)).since(95),
];

fn state(instance: &Instance) -> Value {
    json!(instance.replica_state.map(|s| s.as_str()))
}

/// Where an instance is; empty until it is placed.
pub(super) fn host(instance: &Instance) -> Value {
    json!(instance.pool.as_ref().map_or_else(String::new, ToString::to_string))
}

/// A replica in a list without detail.
pub(super) fn summary(call: &Call, replica: &Instance) -> Value {
    render(SUMMARY, replica, call)
}

/// A replica in full.
pub(super) fn detail(call: &Call, replica: &Instance) -> Value {
    render(DETAIL, replica, call)
}
