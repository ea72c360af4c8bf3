//! Metadata of shares and of replicas: the same calls on both.

use serde_json::{Value, json};
use std::collections::BTreeMap;
use tandem_manager::MetadataChange;
use tandem_manager::model::{Instance, Share};

use super::{denied, find, read};
use crate::call::{Call, Reply, Result};
use crate::fault::Fault;
use crate::microversion::Window;
use crate::routes::Routes;

/// Keys that only an administrator may set on a share; they stay when others replace the metadata.
const ADMIN_KEYS: &[&str] = &["__affinity_same_host", "__affinity_different_host", "__managed_at"];

/// Whose metadata.
enum Owner {
    Share(Box<Share>),
    Replica(Box<Instance>),
}

/// Which resource a route is about.
#[derive(Clone, Copy)]
enum Of {
    Share,
    Replica,
}

pub(super) fn share_routes(routes: &mut Routes) {
    routes.get("/shares/{id}/metadata", Window::ALWAYS, |c| index(c, Of::Share));
    routes.post("/shares/{id}/metadata", Window::ALWAYS, |c| merge(c, Of::Share));
    routes.put("/shares/{id}/metadata", Window::ALWAYS, |c| replace(c, Of::Share));
    routes.get("/shares/{id}/metadata/{key}", Window::ALWAYS, |c| show(c, Of::Share));
    routes.post("/shares/{id}/metadata/{key}", Window::ALWAYS, |c| set(c, Of::Share));
    routes.put("/shares/{id}/metadata/{key}", Window::ALWAYS, |c| set(c, Of::Share));
    routes.delete("/shares/{id}/metadata/{key}", Window::ALWAYS, |c| remove(c, Of::Share));
}

pub(super) fn replica_routes(routes: &mut Routes) {
    const SINCE: Window = Window::since(95);
    routes.get("/share-replicas/{id}/metadata", SINCE, |c| index(c, Of::Replica));
    routes.post("/share-replicas/{id}/metadata", SINCE, |c| merge(c, Of::Replica));
    routes.put("/share-replicas/{id}/metadata", SINCE, |c| replace(c, Of::Replica));
    routes.get("/share-replicas/{id}/metadata/{key}", SINCE, |c| show(c, Of::Replica));
    routes.post("/share-replicas/{id}/metadata/{key}", SINCE, |c| set(c, Of::Replica));
    routes.put("/share-replicas/{id}/metadata/{key}", SINCE, |c| set(c, Of::Replica));
    routes.delete("/share-replicas/{id}/metadata/{key}", SINCE, |c| remove(c, Of::Replica));
}

impl Of {
    fn rules(self) -> [&'static str; 3] {
        match self {
            Self::Share => {
                ["share:get_share_metadata", "share:update_share_metadata", "share:delete_share_metadata"]
            }
            Self::Replica => [
                "share_replica:get_metadata",
                "share_replica:update_metadata",
                "share_replica:delete_metadata",
            ],
        }
    }

    async fn find(self, call: &Call) -> Result<Owner> {
        let id = call.param("id");
        match self {
            Self::Share => {
                let missing = || Fault::new(404, "Share not found.");
                Ok(Owner::Share(Box::new(find::need_share(call, id, missing).await?.share)))
            }
            Self::Replica => {
                let missing = || Fault::new(404, "Share_replica not found.");
                Ok(Owner::Replica(Box::new(find::replica(call, id).await?.ok_or_else(missing)?)))
            }
        }
    }

    /// As [`Of::find`], for a change: a public share can be seen by all and changed by its owners.
    async fn find_to_change(self, call: &Call) -> Result<Owner> {
        let found = self.find(call).await?;
        if let Owner::Share(share) = &found {
            find::may_change(call, "share:get", share)?;
        }
        Ok(found)
    }
}

impl Owner {
    fn metadata(&self) -> &BTreeMap<String, String> {
        match self {
            Self::Share(share) => &share.metadata,
            Self::Replica(replica) => &replica.metadata,
        }
    }

    /// Keys that the caller may not touch.
    fn kept_keys(&self, call: &Call) -> &'static [&'static str] {
        match self {
            Self::Share(_) if !call.may("share:update_admin_only_metadata") => ADMIN_KEYS,
            _ => &[],
        }
    }

    async fn change(&self, call: &Call, change: MetadataChange) -> Result<BTreeMap<String, String>> {
        let manager = &call.app.manager;
        match self {
            Self::Share(share) => manager.set_share_metadata(share.id, change).await.map(|s| s.metadata),
            Self::Replica(replica) => {
                manager.set_replica_metadata(replica.id, change).await.map(|i| i.metadata)
            }
        }
        .map_err(denied::fault)
    }
}

async fn index(call: Call, of: Of) -> Result {
    call.authorize(of.rules()[0])?;
    let found = of.find(&call).await?;
    Reply::ok(json!({"metadata": found.metadata()}))
}

async fn show(call: Call, of: Of) -> Result {
    call.authorize(of.rules()[0])?;
    let found = of.find(&call).await?;
    let key = call.param("key");
    let value = found.metadata().get(key).ok_or_else(no_item)?;
    Reply::ok(json!({"meta": { key: value }}))
}

fn no_item() -> Fault {
    Fault::new(404, "MetadataItemNotFound: Metadata item is not found.")
}

/// The metadata of a body. A replica's may be null, which stands for none.
fn wanted(call: &Call, of: Of) -> Result<BTreeMap<String, String>> {
    let value = call.body()?.get("metadata").ok_or_else(Fault::malformed_body)?;
    if matches!(of, Of::Share) && !value.is_object() {
        return Err(Fault::malformed_body());
    }
    read::metadata(Some(value))
}

fn refuse_kept(kept: &[&str], metadata: &BTreeMap<String, String>) -> Result<()> {
    if metadata.keys().any(|key| kept.contains(&key.as_str())) {
        return Err(Fault::new(403, "Cannot set or update admin only metadata."));
    }
    Ok(())
}

async fn merge(call: Call, of: Of) -> Result {
    call.authorize(of.rules()[1])?;
    let metadata = wanted(&call, of)?;
    let found = of.find_to_change(&call).await?;
    refuse_kept(found.kept_keys(&call), &metadata)?;
    let all = found.change(&call, MetadataChange::Merge(metadata)).await?;
    Reply::ok(json!({"metadata": shown(&call, all)}))
}

async fn replace(call: Call, of: Of) -> Result {
    call.authorize(of.rules()[1])?;
    let mut metadata = wanted(&call, of)?;
    let found = of.find_to_change(&call).await?;
    let kept = found.kept_keys(&call);
    refuse_kept(kept, &metadata)?;
    let old = found.metadata().iter().filter(|(key, _)| kept.contains(&key.as_str()));
    metadata.extend(old.map(|(key, value)| (key.clone(), value.clone())));
    let all = found.change(&call, MetadataChange::Replace(metadata)).await?;
    Reply::ok(json!({"metadata": shown(&call, all)}))
}

/// What was written as null is answered as null.
fn shown(call: &Call, all: BTreeMap<String, String>) -> Value {
    let null = call.body().is_ok_and(|b| b.get("metadata") == Some(&Value::Null));
    if null && all.is_empty() { Value::Null } else { json!(all) }
}

/// One item, written as `metadata` or, as the published reference has it, as `meta`.
async fn set(call: Call, of: Of) -> Result {
    call.authorize(of.rules()[1])?;
    let body = call.body()?;
    let value = body.get("metadata").or_else(|| body.get("meta")).filter(|v| v.is_object());
    let metadata = read::metadata(Some(value.ok_or_else(Fault::malformed_body)?))?;
    if !metadata.contains_key(call.param("key")) {
        return Err(Fault::bad_request("Request body and URI mismatch"));
    }
    if metadata.len() > 1 {
        return Err(Fault::bad_request("Request body contains too many items"));
    }
    let found = of.find_to_change(&call).await?;
    refuse_kept(found.kept_keys(&call), &metadata)?;
    let all = found.change(&call, MetadataChange::Merge(metadata)).await?;
    Reply::ok(json!({"metadata": all}))
}

async fn remove(call: Call, of: Of) -> Result {
    call.authorize(of.rules()[2])?;
    let found = of.find_to_change(&call).await?;
    let key = call.param("key");
    if found.kept_keys(&call).contains(&key) {
        return Err(Fault::forbidden());
    }
    if !found.metadata().contains_key(key) {
        return Err(no_item());
    }
    found.change(&call, MetadataChange::Remove(key.to_owned())).await?;
    Ok(Reply::EmptyJson(200))
}
