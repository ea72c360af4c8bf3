//! What shares look like.

use serde_json::{Value, json};
use tandem_manager::model::{AccessRulesStatus, Instance, Share};

use super::instances::progress;
use super::replica_views::host;
use super::view::Audience::HostAdmin;
use super::view::{Field, links, render, time};
use crate::call::Call;

/// A share to be shown, with its instances. Without any it is shown as it is admitted: being made, nowhere.
pub(super) struct Shown {
    pub(super) share: Share,
    pub(super) instances: Vec<Instance>,
    pub(super) type_name: Option<String>,
}

type F = Field<Shown>;

const FIELDS: &[F] = &[
    F::new("id", |s, _| json!(s.share.id)),
    F::new("size", |s, _| json!(s.share.size_gb)),
    F::new("availability_zone", |s, _| zone(s)),
    F::new("created_at", |s, _| time(s.share.created_at)),
    F::new("status", |s, _| json!(s.speaker().map_or("creating", |i| i.status.as_str()))),
    F::new("name", |s, _| json!(s.share.name)),
    F::new("description", |s, _| json!(s.share.description)),
    F::new("project_id", |s, _| json!(s.share.project_id)),
    F::new("snapshot_id", |_, _| Value::Null),
    F::new("share_network_id", |_, _| Value::Null),
    F::new("share_proto", |s, _| json!(s.share.protocol)),
    F::new("export_location", |s, call| s.paths(call).next().unwrap_or(Value::Null)).until(8),
    F::new("metadata", |s, _| json!(s.share.metadata)),
    F::new("share_type", |s, _| json!(s.type_name)).until(5),
    F::new("share_type", |s, _| json!(s.share.share_type_id.to_string())).since(6),
    F::new("volume_type", |s, _| json!(s.type_name)),
    F::new("links", |s, call| links(call, "shares", &s.share.id.to_string())),
    F::new("is_public", |s, _| json!(s.share.is_public)),
    F::new("export_locations", |s, call| s.paths(call).collect()).until(8),
    F::new("snapshot_support", |s, _| json!(s.share.snapshot_support[0])).since(2),
    F::new("task_state", |s, _| json!(s.share.task_state)).since(5),
    F::new("share_type_name", |s, _| json!(s.type_name)).since(6),
    F::new("access_rules_status", |s, call| s.rules_status(call)).since(10),
    F::new("replication_type", |s, _| json!(s.share.replication.map(|style| style.as_str()))).since(11),
    F::new("has_replicas", |s, _| json!(s.share.has_replicas(&s.instances))).since(11),
    F::new("user_id", |s, _| json!(s.share.user_id)).since(16),
    F::new("create_share_from_snapshot_support", |s, _| json!(s.share.snapshot_support[1])).since(24),
    F::new("revert_to_snapshot_support", |s, _| json!(s.share.snapshot_support[2])).since(27),
    F::new("share_group_id", |_, _| Value::Null).since(31),
    F::new("source_share_group_snapshot_member_id", |_, _| Value::Null).since(31),
    F::new("mount_snapshot_support", |s, _| json!(s.share.snapshot_support[3])).since(32),
    F::new("progress", |s, _| s.speaker().map_or(Value::Null, progress)).since(54),
    F::new("is_soft_deleted", |_, _| json!(false)).since(69),
    F::new("scheduled_to_be_deleted_at", |_, _| Value::Null).since(69),
    F::new("source_backup_id", |_, _| Value::Null).since(80),
    F::new("encryption_key_ref", |_, _| Value::Null).since(90),
    F::new("snapshot_inherit_share_access_support", |_, _| json!(false)).since(99),
    F::new("share_server_id", |_, _| Value::Null).only(HostAdmin),
    F::new("host", |s, _| s.speaker().map_or_else(|| json!(""), host)).only(HostAdmin),
];

impl Shown {
    /// The instance that speaks for the share.
    fn speaker(&self) -> Option<&Instance> {
        self.share.representative(&self.instances)
    }

    fn paths(&self, call: &Call) -> impl Iterator<Item = Value> + use<'_> {
        let admin = call.who.is_admin;
        let exports = self.speaker().map_or(&[][..], |i| i.exports.as_slice());
        exports.iter().filter(move |e| admin || !e.admin_only).map(|e| json!(e.path))
    }

    /// The worst of its instances; before 2.28 what is being applied was called out of sync.
    fn rules_status(&self, call: &Call) -> Value {
        let any = |status| self.instances.iter().any(|i| i.access_rules_status == status);
        json!(if any(AccessRulesStatus::Error) {
            "error"
        } else if !any(AccessRulesStatus::Syncing) {
            "active"
        } else if call.since(28) {
            "syncing"
        } else {
            "out_of_sync"
        })
    }
}

fn zone(shown: &Shown) -> Value {
    json!(match shown.speaker() {
        Some(instance) => &instance.availability_zone,
        None => &shown.share.availability_zone,
    })
}

/// A share in full.
pub(super) fn detail(call: &Call, shown: &Shown) -> Value {
    render(FIELDS, shown, call)
}

/// A share in a list without detail.
pub(super) fn summary(call: &Call, share: &Share) -> Value {
    json!({
        "id": share.id,
        "name": share.name,
        "links": links(call, "shares", &share.id.to_string()),
    })
}
