//! Pools, as the scheduler sees them.

use regex_lite::Regex;
use serde_json::{Map, Value, json};
use tandem_contract::{AccessEnforcement, Capabilities};
use tandem_manager::PoolView;
use tandem_manager::model::ShareType;

use super::{denied, find};
use crate::call::{Call, Reply, Result};
use crate::fault::Fault;
use crate::microversion::Window;
use crate::python;
use crate::routes::Routes;

const GIB: f64 = 1024.0 * 1024.0 * 1024.0;

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
        let fits = share_type.as_ref().is_none_or(|t| satisfies(&capabilities(pool), t));
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

/// Manila's words for what a pool offers, then the driver's own facts.
fn capabilities(view: &PoolView) -> Value {
    let (backend, pool, can) = (&view.backend, &view.pool, &view.backend.capabilities);
    let gib = |bytes: Option<u64>| bytes.map_or_else(|| json!("unknown"), |b| json!(rounded(b as f64 / GIB)));
    let mut out = Map::new();
    let mut set = |name: &str, value: Value| out.insert(name.to_owned(), value);
    set("pool_name", json!(pool.name));
    set("total_capacity_gb", gib(pool.total_bytes));
    set("free_capacity_gb", gib(pool.free_bytes));
    set("allocated_capacity_gb", json!(rounded(view.provisioned_bytes as f64 / GIB)));
    set("reserved_percentage", json!(backend.reserved_percentage));
    set("reserved_snapshot_percentage", json!(backend.reserved_percentage));
    set("reserved_share_extend_percentage", json!(backend.reserved_percentage));
    set("replication_type", styles(can));
    set("share_backend_name", json!(backend.name));
    set("storage_protocol", json!(can.share_protocols.join("_")));
    set("vendor_name", json!("Tandem"));
    set("driver_version", json!(backend.driver_version));
    set("timestamp", json!(backend.pools_at.map(|at| at.iso())));
    set("driver_handles_share_servers", json!(false));
    for absent in [
        "snapshot_support",
        "create_share_from_snapshot_support",
        "revert_to_snapshot_support",
        "mount_snapshot_support",
        "snapshot_inherit_share_access_support",
        "dedupe",
        "compression",
    ] {
        set(absent, json!(false));
    }
    set("thin_provisioning", json!(can.thin));
    set("max_over_subscription_ratio", json!(backend.max_over_subscription_ratio));
    set("replication_domain", json!(can.replication.as_ref().and_then(|r| r.domain.as_ref())));
    set("sg_consistent_snapshot_support", Value::Null);
    for absent in [
        "security_service_update_support",
        "network_allocation_update_support",
        "share_server_multiple_subnet_support",
        "share_replicas_migration_support",
    ] {
        set(absent, json!(false));
    }
    set("encryption_support", Value::Null);
    set("qos_type_support", json!(false));
    set("ipv4_support", json!(true));
    set("ipv6_support", json!(true));
    set("access_enforcement", json!(can.access_enforcement != AccessEnforcement::None));
    set("availability_zone", json!(view.availability_zone));
    for (name, value) in can.extra.iter().chain(&pool.extra) {
        set(name, value.clone());
    }
    Value::Object(out)
}

/// One style as a word, several as a list; without replication there is none.
fn styles(can: &Capabilities) -> Value {
    let styles: Vec<&str> = can.replication.iter().flat_map(|r| &r.styles).map(|s| s.as_str()).collect();
    match styles.as_slice() {
        [] => Value::Null,
        [one] => json!(one),
        many => json!(many),
    }
}

/// Two decimals are plenty for people and schedulers.
fn rounded(gib: f64) -> f64 {
    (gib * 100.0).round() / 100.0
}

/// Whether a pool's capabilities are what a share type's extra specs ask for.
fn satisfies(capabilities: &Value, share_type: &ShareType) -> bool {
    share_type.extra_specs.iter().all(|(key, wanted)| {
        let name = match key.split_once(':') {
            None => key.as_str(),
            Some(("capabilities", name)) => name,
            // Specs of other scopes are not about capabilities.
            Some(_) => return true,
        };
        name == "availability_zones" || capabilities.get(name).is_some_and(|has| agrees(has, wanted))
    })
}

/// One capability against one extra spec: `<or> a <or> b`, `<is> True`, a comparison of numbers, or a word.
fn agrees(has: &Value, wanted: &str) -> bool {
    if let Value::Array(any) = has {
        return any.iter().any(|one| agrees(one, wanted));
    }
    let text = python::str_of(has);
    let wanted = wanted.trim();
    let words: Vec<&str> = wanted.split_whitespace().collect();
    match words.as_slice() {
        ["<or>", ..] => wanted.split("<or>").map(str::trim).filter(|w| !w.is_empty()).any(|w| same(&text, w)),
        ["<is>", word] => {
            python::strict_bool(word).is_some() && python::strict_bool(word) == python::strict_bool(&text)
        }
        ["<in>", rest @ ..] => rest.iter().all(|word| text.contains(word)),
        [operator @ ("=" | "==" | "!=" | ">=" | "<=" | ">" | "<"), number] => {
            let (Ok(has), Ok(number)) = (text.parse::<f64>(), number.parse::<f64>()) else { return false };
            match *operator {
                "==" => has == number,
                "!=" => has != number,
                // Manila's "=" is "at least".
                "=" | ">=" => has >= number,
                "<=" => has <= number,
                ">" => has > number,
                _ => has < number,
            }
        }
        _ => same(&text, wanted),
    }
}

/// Equal text, or equal booleans however they are written.
fn same(has: &str, wanted: &str) -> bool {
    let equal_flags =
        || python::strict_bool(has).is_some_and(|flag| python::strict_bool(wanted) == Some(flag));
    has == wanted || (matches!(has, "True" | "False") && equal_flags())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capabilities_agree_as_in_manila() {
        for (has, wanted) in [
            (json!("ALPHA"), "<or> ALPHA <or> BETA"),
            (json!(true), "<is> True"),
            (json!(false), "False"),
            (json!(["readable", "dr"]), "dr"),
            (json!(12.5), ">= 12"),
            (json!("NFS_CIFS"), "<in> NFS"),
        ] {
            assert!(agrees(&has, wanted), "{has} {wanted}");
        }
        for (has, wanted) in [
            (json!("GAMMA"), "<or> ALPHA <or> BETA"),
            (json!(true), "False"),
            (json!(null), "readable"),
            (json!("unknown"), "> 1"),
            (json!("1"), "True"),
        ] {
            assert!(!agrees(&has, wanted), "{has} {wanted}");
        }
    }
}
