//! The server itself: what it is, whether it serves, how it is.

use axum::http::StatusCode;
use serde_json::json;
use tandem_contract::ReplicaState;
use tandem_manager::BackendState;
use tandem_manager::model::Intent;
use tandem_manager::store::{InstanceQuery, ShareQuery};

use super::{Answer, Call, answer, document, view};

/// `GET /v1`
pub(super) async fn root(_: Call) -> Answer {
    let root = json!({"name": "tandem", "version": env!("CARGO_PKG_VERSION"), "openapi": "/v1/openapi.json"});
    Ok((StatusCode::OK, root))
}

/// `GET /v1/openapi.json`
pub(super) async fn openapi(_: Call) -> Answer {
    Ok((StatusCode::OK, document::DOCUMENT.clone()))
}

/// `GET /v1/health`: the process runs.
pub(super) async fn health(_: Call) -> Answer {
    Ok((StatusCode::OK, json!({"status": "up", "reason": null})))
}

/// `GET /v1/ready`: the database answers, so requests can be admitted.
pub(super) async fn ready(call: Call) -> Answer {
    match call.manager().store().share_types().await {
        Ok(_) => Ok((StatusCode::OK, json!({"status": "ready", "reason": null}))),
        Err(error) => {
            let reason = error.to_string();
            Ok((StatusCode::SERVICE_UNAVAILABLE, json!({"status": "unready", "reason": reason})))
        }
    }
}

/// `GET /v1/status`
pub(super) async fn status(call: Call) -> Answer {
    let manager = call.manager();
    let store = manager.store();
    let up = |backend: &&tandem_manager::BackendView| backend.state == BackendState::Up;
    let backends = manager.backends();
    let serving = backends.iter().filter(up).count();
    let mut replicas = serde_json::Map::new();
    for state in [ReplicaState::Active, ReplicaState::InSync, ReplicaState::OutOfSync, ReplicaState::Error] {
        let query = InstanceQuery {
            replicas_only: true,
            replica_state: Some(state),
            limit: Some(1),
            count: true,
            ..InstanceQuery::default()
        };
        let total = store.instances(&query).await?.total.unwrap_or(0);
        replicas.insert(state.as_str().to_owned(), total.into());
    }
    let shares = store.shares(&ShareQuery { limit: Some(1), count: true, ..ShareQuery::default() }).await?;
    let unfinished = store.unfinished().await?;
    let syncs = unfinished.iter().filter(|operation| matches!(operation.intent, Intent::Sync { .. })).count();
    let app = &call.native.app;
    let troubles: Vec<String> = app.policy.trouble().into_iter().chain(app.auth.trouble()).collect();
    let status = json!({
        "version": env!("CARGO_PKG_VERSION"),
        "host": manager.host(),
        "started_at": view::time(call.native.started_at),
        "now": view::time(manager.now()),
        "backends": {"up": serving, "down": backends.len() - serving},
        "shares": shares.total.unwrap_or(0),
        "replicas": replicas,
        "operations": {"unfinished": unfinished.len(), "syncs": syncs},
        "troubles": troubles,
    });
    answer("status", status)
}

/// `GET /v1/doctor`
pub(super) async fn doctor(call: Call) -> Answer {
    answer("doctor", view::doctor(&call.manager().doctor().await?))
}
