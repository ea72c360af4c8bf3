//! Pools for tests.

use serde_json::{Map, Value};
use tandem_contract::{Capabilities, Pool, ReplicationCapability, ResourceKind, Style, Transport};
use tandem_manager::clock::Timestamp;
use tandem_manager::schedule::{NoValidHost, PlacementRequest, ReplicationRequest, place};
use tandem_manager::{BackendState, BackendView, PoolView};

pub(crate) const GIB: u64 = 1 << 30;

pub(crate) fn streams(formats: &[&str]) -> Transport {
    Transport::Streamed { formats: formats.iter().map(|f| (*f).to_owned()).collect(), resumable: true }
}

pub(crate) fn storage(protocols: &[&str]) -> Transport {
    Transport::Storage { protocols: protocols.iter().map(|p| (*p).to_owned()).collect() }
}

pub(crate) fn replication() -> ReplicationCapability {
    ReplicationCapability {
        styles: vec![Style::Readable, Style::Dr],
        transport: streams(&["tree.1"]),
        domain: None,
        max_instances: None,
        quiesce: false,
        lag_bytes: false,
        converts: false,
        fingerprints: Vec::new(),
    }
}

/// A thick pool of 100 GiB, all of it free, in zone `z1`, that streams.
pub(crate) fn pool(backend: &str) -> PoolView {
    let capabilities = Capabilities {
        resources: vec![ResourceKind::Share],
        share_protocols: vec!["NFS".into(), "CIFS".into()],
        replication: Some(replication()),
        ..Capabilities::default()
    };
    PoolView {
        address: format!("tower@{backend}#main").parse().unwrap(),
        availability_zone: "z1".into(),
        backend: BackendView {
            name: backend.into(),
            host: "tower".into(),
            driver: "directory".into(),
            driver_version: "1.2".into(),
            availability_zone: "z1".into(),
            state: BackendState::Up,
            since: Timestamp(0),
            capabilities,
            pools: Vec::new(),
            reserved_percentage: 0,
            max_over_subscription_ratio: 20.0,
            pools_at: None,
        },
        pool: Pool {
            name: "main".into(),
            total_bytes: Some(100 * GIB),
            free_bytes: Some(100 * GIB),
            ..Pool::default()
        },
        provisioned_bytes: 0,
    }
}

pub(crate) fn with(mut pool: PoolView, change: impl FnOnce(&mut PoolView)) -> PoolView {
    change(&mut pool);
    pool
}

/// The pool's replication, to be changed.
pub(crate) fn replicates(pool: &mut PoolView) -> &mut ReplicationCapability {
    pool.backend.capabilities.replication.as_mut().unwrap()
}

pub(crate) fn request(size_gb: u64) -> PlacementRequest {
    PlacementRequest { size_gb, protocol: "NFS".into(), ..PlacementRequest::default() }
}

/// A replica beside the active instance on that pool.
pub(crate) fn replica_of(active: &PoolView) -> PlacementRequest {
    let replication = ReplicationRequest {
        style: Style::Readable,
        existing: vec![active.address.clone()],
        active: Some((active.address.clone(), active.backend.capabilities.clone())),
        new_instances: 1,
    };
    PlacementRequest { replication: Some(replication), ..request(1) }
}

pub(crate) fn specs(request: PlacementRequest, specs: &[(&str, &str)]) -> PlacementRequest {
    let extra_specs = specs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
    PlacementRequest { extra_specs, ..request }
}

pub(crate) fn object(value: Value) -> Map<String, Value> {
    value.as_object().unwrap().clone()
}

/// The back end that was chosen.
pub(crate) fn chosen(request: &PlacementRequest, pools: &[PoolView]) -> String {
    place(request, pools).unwrap().backend
}

/// The sentence, which must be one.
pub(crate) fn refused(request: &PlacementRequest, pools: &[PoolView]) -> String {
    let error: NoValidHost = place(request, pools).unwrap_err();
    let total: usize = error.removed.iter().map(|r| r.pools.len()).sum();
    assert_eq!(total, pools.len(), "each pool is removed once: {error}");
    let sentence = error.to_string();
    assert!(sentence.starts_with("no valid host was found") && !sentence.contains('\n'), "{sentence}");
    sentence
}
