//! `/v1/shares`, `/v1/replicas` and `/v1/access-rules`: what Manila shows, with lag and enforcement.

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use axum::http::StatusCode;
use serde_json::{Value, json};
use tandem_contract::{InstanceId, OpId, ReplicaState, ResourceId};
use tandem_manager::model::{DEFAULT_RPO_SECONDS, Instance};
use tandem_manager::store::{Family, InstanceQuery, ShareQuery};
use tandem_manager::{Caller, Manager};

use super::{Answer, Call, Refused, answer, view};

/// `GET /v1/shares`
pub(super) async fn list(call: Call) -> Answer {
    let query = ShareQuery {
        offset: call.params.parsed("offset").unwrap_or(0),
        limit: call.params.parsed("limit"),
        ..ShareQuery::default()
    };
    let mut shares = Vec::new();
    for share in call.manager().store().shares(&query).await?.items {
        let family = call.manager().store().family(share.id).await?;
        shares.extend(summary(call.manager(), &family));
    }
    answer("shares", shares)
}

/// `GET /v1/shares/{id}`
pub(super) async fn show(call: Call) -> Answer {
    let id: ResourceId = call.id()?;
    let family = call.manager().store().family(id).await?;
    answer("share", summary(call.manager(), &family).ok_or_else(|| no_share(id))?)
}

/// `None` when the share went meanwhile.
fn summary(manager: &Manager, family: &Family) -> Option<Value> {
    let share = family.share.as_ref()?;
    let behind =
        |instance: &&Instance| instance.replica_state.is_some_and(|state| state != ReplicaState::Active);
    let around = view::Around {
        instances: &family.instances,
        share_type: family.share_type.as_ref().map(|share_type| share_type.name.as_str()),
        lag_seconds: family.instances.iter().filter(behind).filter_map(|i| manager.lag(i).seconds).max(),
        operations: &family.operations,
    };
    Some(view::share(share, &around))
}

/// `GET /v1/replicas`
pub(super) async fn replicas(call: Call) -> Answer {
    let query = InstanceQuery {
        share_id: call.params.parsed("share_id"),
        replicas_only: true,
        offset: call.params.parsed("offset").unwrap_or(0),
        limit: call.params.parsed("limit"),
        ..InstanceQuery::default()
    };
    let replicas = call.manager().store().instances(&query).await?.items;
    answer("replicas", shown(call.manager(), &replicas).await?)
}

/// `GET /v1/replicas/{id}`
pub(super) async fn replica(call: Call) -> Answer {
    let id: InstanceId = call.id()?;
    let replica = call.manager().store().instance(id).await?.filter(|i| i.replica_state.is_some());
    let replica = replica.ok_or_else(|| Refused::not_found(format!("There is no replica {id}.")))?;
    let shown = shown(call.manager(), std::slice::from_ref(&replica)).await?;
    answer("replica", shown.into_iter().next().unwrap_or_default())
}

/// `POST /v1/replicas/{id}/verify`
pub(super) async fn verify(call: Call) -> Answer {
    // Whoever may steer by `/v1` is an administrator there; nobody else reads who it was.
    let caller = Caller { admin: true, ..Caller::default() };
    let operation = call.manager().verify_replica(&caller, call.id()?).await?;
    Ok((StatusCode::ACCEPTED, json!({"operation": super::operations::in_list(&call, &operation).await?})))
}

async fn shown(manager: &Manager, replicas: &[Instance]) -> Result<Vec<Value>, Refused> {
    let store = manager.store();
    let rpo: HashMap<_, _> =
        store.share_types().await?.into_iter().map(|t| (t.id, t.rpo_seconds())).collect();
    let operations: HashMap<InstanceId, OpId> = store
        .unfinished()
        .await?
        .into_iter()
        .filter_map(|operation| Some((operation.intent.instance()?, operation.id)))
        .collect();
    let mut names: HashMap<ResourceId, Option<String>> = HashMap::new();
    let mut shown = Vec::new();
    for replica in replicas {
        let share = replica.share_id;
        let name = match names.entry(share) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(unknown) => unknown.insert(store.share(share).await?.and_then(|share| share.name)),
        };
        shown.push(view::replica(
            replica,
            name.as_deref(),
            rpo.get(&replica.share_type_id).copied().unwrap_or(DEFAULT_RPO_SECONDS),
            &manager.lag(replica),
            manager.degraded(replica.id),
            operations.get(&replica.id).copied(),
        ));
    }
    Ok(shown)
}

/// `GET /v1/access-rules`
pub(super) async fn rules(call: Call) -> Answer {
    let store = call.manager().store();
    let id: ResourceId =
        call.params.parsed("share_id").ok_or_else(|| Refused::bad_request("share_id is no id."))?;
    store.share(id).await?.ok_or_else(|| no_share(id))?;
    answer("access_rules", store.rules(id).await?.iter().map(view::rule).collect::<Vec<Value>>())
}

fn no_share(id: ResourceId) -> Refused {
    Refused::not_found(format!("There is no share {id}."))
}
