//! Export locations: of shares, of instances, of replicas.

use serde_json::{Value, json};
use tandem_contract::InstanceId;
use tandem_manager::model::{Export, Instance, Part, Share};

use super::find;
use super::view::Audience::Admin;
use super::view::{Field, maybe_time, render, time};
use crate::call::{Call, Reply, Result};
use crate::fault::Fault;
use crate::microversion::Window;
use crate::routes::Routes;

pub(super) fn routes(routes: &mut Routes) {
    const REPLICA: Window = Window::graduated(47, 56);
    routes.get("/shares/{id}/export_locations", Window::since(9), of_share);
    routes.get("/shares/{id}/export_locations/{el}", Window::since(9), one_of_share);
    routes.get("/share_instances/{id}/export_locations", Window::since(9), of_instance);
    routes.get("/share_instances/{id}/export_locations/{el}", Window::since(9), one_of_instance);
    routes.get("/share-replicas/{id}/export-locations", REPLICA, of_replica);
    routes.get("/share-replicas/{id}/export-locations/{el}", REPLICA, one_of_replica);
}

/// An export location to be shown.
struct Shown {
    export: Export,
    instance_id: InstanceId,
    /// State and zone of the replica that it belongs to, where those are shown.
    replica: Option<(Value, Value)>,
    in_full: bool,
}

type F = Field<Shown>;

const FIELDS: &[F] = &[
    F::new("id", |e, _| json!(e.export.id.to_string())),
    F::new("path", |e, _| json!(e.export.path)),
    F::new("preferred", |e, _| json!(e.export.preferred)).since(14),
    F::new("metadata", |_, _| json!({})).since(87),
    F::new("share_instance_id", |e, _| json!(e.instance_id)).only(Admin),
    F::new("is_admin_only", |e, _| json!(e.export.admin_only)).only(Admin),
];

impl Shown {
    fn new(export: &Export, instance: &Instance, in_full: bool, replica: bool) -> Self {
        let state = json!(instance.replica_state.map(|s| s.as_str()));
        let replica = replica.then(|| (state, json!(instance.availability_zone)));
        Self { export: export.clone(), instance_id: instance.id, replica, in_full }
    }

    fn view(&self, call: &Call) -> Value {
        let mut view = render(FIELDS, self, call);
        if self.in_full {
            view["created_at"] = time(self.export.created_at);
            view["updated_at"] = maybe_time(self.export.updated_at);
        }
        if let Some((state, zone)) = &self.replica {
            view["replica_state"] = state.clone();
            view["availability_zone"] = zone.clone();
        }
        view
    }
}

fn all<'a>(call: &Call, instances: impl Iterator<Item = &'a Instance>, replica: bool) -> Result {
    let admin = call.who.is_admin;
    let views: Vec<Value> = instances
        .flat_map(|instance| instance.exports.iter().map(move |export| (instance, export)))
        .filter(|(_, export)| admin || !export.admin_only)
        .map(|(instance, export)| Shown::new(export, instance, false, replica).view(call))
        .collect();
    Reply::ok(json!({"export_locations": views}))
}

fn one<'a>(
    call: &Call,
    instances: impl Iterator<Item = &'a Instance>,
    replica: bool,
    missing: impl FnOnce(&str) -> String,
) -> Result {
    let id = call.param("el");
    let found = instances
        .flat_map(|instance| instance.exports.iter().map(move |export| (instance, export)))
        .find(|(_, export)| export.id.to_string() == id);
    let Some((instance, export)) = found else { return Err(Fault::new(404, missing(id))) };
    if export.admin_only && !call.who.is_admin {
        return Err(Fault::forbidden());
    }
    let view = Shown::new(export, instance, true, replica).view(call);
    Reply::ok(json!({"export_location": view}))
}

async fn share(call: &Call) -> Result<find::ShareFamily> {
    let id = call.param("id");
    find::need_share(call, id, || Fault::new(404, format!("Share '{id}' not found."))).await
}

/// What users reach; nobody is to use what a migration fills or has left. Since 2.47 a share shows the exports of its
/// active replicas only; those of the others are the replicas'.
fn shown(call: &Call, share: &Share, instance: &Instance) -> bool {
    use tandem_contract::ReplicaState::Active;
    let seen = share.replication.is_none() || !call.since(47) || instance.replica_state == Some(Active);
    seen && instance.part == Part::Whole
}

async fn of_share(call: Call) -> Result {
    call.authorize("share_export_location:index")?;
    let found = share(&call).await?;
    all(&call, found.instances.iter().filter(|i| shown(&call, &found.share, i)), false)
}

async fn one_of_share(call: Call) -> Result {
    call.authorize("share_export_location:show")?;
    let found = share(&call).await?;
    let instances = found.instances.iter().filter(|i| shown(&call, &found.share, i));
    one(&call, instances, false, |id| format!("Export location '{id}' not found."))
}

async fn instance(call: &Call) -> Result<Instance> {
    let id = call.param("id");
    let missing = || Fault::new(404, format!("Share instance '{id}' not found."));
    find::instance(call, id).await?.ok_or_else(missing)
}

async fn of_instance(call: Call) -> Result {
    call.authorize("share_instance_export_location:index")?;
    all(&call, std::iter::once(&instance(&call).await?), false)
}

async fn one_of_instance(call: Call) -> Result {
    call.authorize("share_instance_export_location:show")?;
    let found = instance(&call).await?;
    one(&call, std::iter::once(&found), false, |id| format!("Export location {id} could not be found."))
}

async fn replica(call: &Call) -> Result<Instance> {
    let id = call.param("id");
    let missing = || Fault::new(404, format!("Share replica '{id}' not found."));
    find::replica(call, id).await?.ok_or_else(missing)
}

async fn of_replica(call: Call) -> Result {
    call.authorize("share_replica_export_location:index")?;
    all(&call, std::iter::once(&replica(&call).await?), true)
}

async fn one_of_replica(call: Call) -> Result {
    call.authorize("share_replica_export_location:show")?;
    let found = replica(&call).await?;
    one(&call, std::iter::once(&found), true, |id| format!("Export location {id} could not be found."))
}
