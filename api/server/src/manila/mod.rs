//! Manila's API under `/v2`. One file per resource; each adds its lines to the table of routes.

mod access;
mod address;
mod admin;
mod denied;
mod exports;
mod find;
mod instances;
mod metadata;
mod migration;
mod quotas;
mod read;
mod replica_views;
mod replicas;
mod scheduler;
mod services;
mod share_actions;
mod share_create;
mod share_list;
mod share_views;
mod shares;
mod specs;
mod type_views;
mod types;
mod view;

use crate::call::{Call, Reply, Result};
use crate::microversion::Window;
use crate::routes::Routes;

/// The paths of Manila that later issues will serve. They answer as a call that does not exist in this
/// version; `docs/openstack.md` lists them, and a test holds the two lists together.
pub(crate) const LATER: &[&str] = &[
    "/snapshots",
    "/snapshot-instances",
    "/messages",
    "/share-networks",
    "/share-servers",
    "/security-services",
    "/share-groups",
    "/share-group-types",
    "/share-group-snapshots",
    "/share-backups",
    "/share-transfers",
    "/resource-locks",
    "/qos-types",
    "/quota-class-sets",
    "/os-quota-class-sets",
    "/os-share-manage",
    "/os-share-unmanage",
    "/types/{id}/action",
    "/types/{id}/share_type_access",
    "/types/{id}/os-share-type-access",
    "/services/ensure-shares",
    "/shares/manage",
    "/shares/{id}/export_locations/{el}/metadata",
    "/shares/{id}/export_locations/{el}/metadata/{key}",
];

/// Actions of shares that later issues will serve; they answer 404 too.
pub(crate) const LATER_ACTIONS: &[&str] = &["soft_delete", "restore", "unmanage", "revert"];

/// Every route under `/v2`.
pub(crate) fn routes() -> Routes {
    let mut routes = Routes::default();
    for path in LATER.iter().filter(|p| p.contains('{') || p.matches('/').count() > 1) {
        routes.absent(path);
    }
    types::routes(&mut routes);
    specs::routes(&mut routes);
    scheduler::routes(&mut routes);
    services::routes(&mut routes);
    shares::routes(&mut routes);
    access::routes(&mut routes);
    exports::routes(&mut routes);
    instances::routes(&mut routes);
    quotas::routes(&mut routes);
    replicas::routes(&mut routes);
    migration::routes(&mut routes);
    routes.get("/extensions", Window::ALWAYS, extensions);
    for (list, member) in [
        ("/types", "/types/{id}"),
        ("/types/{id}/extra_specs", "/types/{id}/extra_specs/{key}"),
        ("/services", "/services/{id}"),
        ("/os-services", "/os-services/{id}"),
        ("/availability-zones", "/availability-zones/{id}"),
        ("/os-availability-zone", "/os-availability-zone/{id}"),
        ("/shares", "/shares/{id}"),
        ("/share_instances", "/share_instances/{id}"),
        ("/share-access-rules", "/share-access-rules/{id}"),
        ("/limits", "/limits/{id}"),
        ("/quota-sets", "/quota-sets/{id}"),
        ("/os-quota-sets", "/os-quota-sets/{id}"),
        ("/share-replicas", "/share-replicas/{id}"),
        ("/extensions", "/extensions/{id}"),
    ] {
        routes.collection(list, member);
    }
    for path in LATER.iter().filter(|p| !p.contains('{') && p.matches('/').count() == 1) {
        routes.absent_below(path);
    }
    routes
}

async fn extensions(_: Call) -> Result {
    Reply::ok(serde_json::json!({"extensions": []}))
}
