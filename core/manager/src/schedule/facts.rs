//! What is known of a pool, under Manila's names: what extra specs are matched against, and what
//! `scheduler-stats/pools/detail` shows.

use serde_json::{Map, Value, json};
use tandem_contract::Style;

use super::GIB;
use crate::PoolView;

/// Manila's abilities that a pool lacks unless its driver says otherwise.
const LACKING: [&str; 5] = [
    "snapshot_support",
    "create_share_from_snapshot_support",
    "revert_to_snapshot_support",
    "mount_snapshot_support",
    "qos",
];

/// The facts of a pool. The driver's own further facts, then those of the pool, then what the contract says outright,
/// which neither can contradict.
pub fn facts(view: &PoolView) -> Map<String, Value> {
    let backend = &view.backend;
    let able = &backend.capabilities;
    let mut facts: Map<String, Value> = LACKING.iter().map(|name| ((*name).into(), false.into())).collect();
    facts.insert("vendor_name".into(), "Tandem".into());
    facts.extend(able.extra.clone());
    facts.extend(view.pool.extra.clone());

    let gib = |bytes: Option<u64>| bytes.map_or_else(|| "unknown".into(), |b| json!(b as f64 / GIB));
    let replication = able.replication.as_ref();
    let styles: Vec<Value> = replication
        .map(|r| r.styles.as_slice())
        .unwrap_or_default()
        .iter()
        .filter(|style| **style != Style::Unknown)
        .map(|style| style.as_str().into())
        .collect();
    let certain = [
        ("share_backend_name", backend.name.as_str().into()),
        ("pool_name", view.pool.name.as_str().into()),
        ("driver_name", backend.driver.as_str().into()),
        ("driver_version", backend.driver_version.as_str().into()),
        ("driver_handles_share_servers", false.into()),
        ("storage_protocol", able.share_protocols.join("_").into()),
        ("thin_provisioning", able.thin.into()),
        // As with Manila, a pool that offers none says so by a null.
        ("replication_type", if styles.is_empty() { Value::Null } else { styles.into() }),
        ("replication_domain", replication.and_then(|r| r.domain.as_deref()).into()),
        ("total_capacity_gb", gib(view.pool.total_bytes)),
        ("free_capacity_gb", gib(view.pool.free_bytes)),
        ("allocated_capacity_gb", gib(view.pool.allocated_bytes)),
        ("provisioned_capacity_gb", gib(Some(view.provisioned_bytes))),
        ("reserved_percentage", backend.reserved_percentage.into()),
        ("max_over_subscription_ratio", json!(backend.max_over_subscription_ratio)),
    ];
    facts.extend(certain.map(|(name, value)| (name.to_owned(), value)));
    facts
}
