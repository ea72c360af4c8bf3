//! Placeholder until src/schedule/ is there.
#![allow(missing_docs)]
pub struct ReplicationRequest {
    pub style: tandem_contract::Style,
    pub existing: Vec<crate::model::PoolAddress>,
    pub active: Option<(crate::model::PoolAddress, tandem_contract::Capabilities)>,
    pub new_instances: u32,
}
pub struct PlacementRequest {
    pub size_gb: u64,
    pub protocol: String,
    pub extra_specs: std::collections::BTreeMap<String, String>,
    pub availability_zone: Option<String>,
    pub replication: Option<ReplicationRequest>,
    pub only_host: Option<String>,
}
pub fn place(_: &PlacementRequest, _: &[crate::PoolView]) -> Result<crate::model::PoolAddress, String> {
    Err("placeholder".into())
}
