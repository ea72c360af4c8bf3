//! Pools, as the scheduler sees them.

use regex_lite::Regex;
use serde_json::{Map, Value, json};
use tandem_contract::AccessEnforcement;
use tandem_manager::{PoolView, schedule};

use super::{denied, find};
use crate::call::{Call, Reply, Result};
use crate::fault::Fault;
use crate::microversion::Window;
use crate::routes::Routes;

pub(super) fn routes(routes: &mut Routes) {
    routes.get("/scheduler-stats/pools", Window::ALWAYS, |call| pools(call, false));
    routes.get("/scheduler-stats/pools/detail", Window::ALWAYS, |call| pools(call, true));
}

async fn pools(call: Call, in_full: bool) -> Result {
    call.authorize(if in_full { "scheduler_stats:pools:detail" } else { "scheduler_stats:pools:index" })?;
    let share_type = match call.query.filled("share_type").filter(|_| call.since(23)) {
        None => None,
        Some(name) => {
            let missing = || Fault::bad_request(format!("Share type {name} not found."));
            Some(find::share_type_by(&call, name).await?.ok_or_else(missing)?)
        }
    };
    let filters = filters(&call)?;
    let pools = call.app.manager.pools().await.map_err(denied::fault)?;
    let mut views = Vec::new();
    for pool in &pools {
        let fits = share_type.as_ref().is_none_or(|t| {
            schedule::specs::satisfied(&schedule::facts(pool), &t.extra_specs, |_| false).is_ok()
        });
        if fits && filters.iter().all(|(name, wanted)| part(pool, name).is_some_and(|p| wanted.is_match(&p)))
        {
            views.push(view(pool, in_full));
        }
    }
    Reply::ok(json!({"pools": views}))
}

/// Every parameter is a regular expression that the start of a pool's part of that name must match.
fn filters(call: &Call) -> Result<Vec<(String, Regex)>> {
    let wanted = call.query.iter().filter(|(name, _)| *name != "share_type" || !call.since(23));
    wanted
        .map(|(name, text)| match Regex::new(&format!("^(?:{text})")) {
            Ok(regex) => Ok((name.to_owned(), regex)),
            Err(error) => {
                Err(Fault::bad_request(format!("The filter '{name}' is no regular expression: {error}")))
            }
        })
        .collect()
}

fn part(pool: &PoolView, name: &str) -> Option<String> {
    match name {
        "name" => Some(pool.address.to_string()),
        "host" => Some(pool.address.host.clone()),
        "backend" => Some(pool.address.backend.clone()),
        "pool" => Some(pool.address.pool.clone()),
        _ => None,
    }
}

fn view(pool: &PoolView, in_full: bool) -> Value {
    let mut out = Map::new();
    for name in ["name", "host", "backend", "pool"] {
        out.insert(name.into(), json!(part(pool, name)));
    }
    if in_full {
        out.insert("capabilities".into(), capabilities(pool));
    }
    Value::Object(out)
}

/// Manila's words for what a pool offers: what the scheduler matches share types against, after the abilities
/// that no pool has here.
fn capabilities(view: &PoolView) -> Value {
    let mut out = Map::new();
    out.insert("pool_name".into(), json!(view.pool.name));
    for absent in ABSENT {
        out.insert((*absent).into(), json!(false));
    }
    for name in ["sg_consistent_snapshot_support", "encryption_support"] {
        out.insert(name.into(), Value::Null);
    }
    for name in ["reserved_snapshot_percentage", "reserved_share_extend_percentage"] {
        out.insert(name.into(), json!(view.backend.reserved_percentage));
    }
    out.insert("ipv4_support".into(), json!(true));
    out.insert("ipv6_support".into(), json!(true));
    out.insert("timestamp".into(), json!(view.backend.pools_at.map(|at| at.iso())));
    out.insert("availability_zone".into(), json!(view.availability_zone));
    let enforced = view.backend.capabilities.access_enforcement != AccessEnforcement::None;
    out.insert("access_enforcement".into(), json!(enforced));
    out.extend(schedule::facts(view));
    Value::Object(out)
}

/// Abilities of Manila's pools that none has here unless its driver says so.
const ABSENT: &[&str] = &[
    "snapshot_inherit_share_access_support",
    "dedupe",
    "compression",
    "security_service_update_support",
    "network_allocation_update_support",
    "share_server_multiple_subnet_support",
    "share_replicas_migration_support",
    "qos_type_support",
];
