//! Placement: which pool an instance goes to. Pure, and in Manila's manner: filters take pools away, each with its
//! reason, then the roomiest of what is left is taken.
//!
//! Followed are Manila's availability zone, capacity, capabilities, share replication and "only host" filters, and its
//! capacity weigher; every filter is in `filter`, the language of the share types' extra specs in [`specs`].

mod facts;
mod filter;
mod no_valid_host;
mod room;
pub mod specs;

use std::collections::BTreeMap;

use tandem_contract::{Capabilities, Style};

use crate::PoolView;
use crate::model::PoolAddress;

pub use facts::facts;
pub use no_valid_host::{NoValidHost, Removed};

/// Bytes of a GiB.
const GIB: f64 = (1_u64 << 30) as f64;

/// An instance that looks for a place.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PlacementRequest {
    /// GiB that the instance may grow to.
    pub size_gb: u64,
    /// Manila's share protocol, any case; empty for what has none.
    pub protocol: String,
    /// Extra specs of the share type.
    pub extra_specs: BTreeMap<String, String>,
    /// Only in this zone.
    pub availability_zone: Option<String>,
    /// Set when the share replicates.
    pub replication: Option<ReplicationRequest>,
    /// Only on this pool: `host@backend#pool`; `host@backend` and `host` stand for all pools there.
    pub only_host: Option<String>,
}

/// How the share replicates, and where it is already.
#[derive(Clone, Debug, PartialEq)]
pub struct ReplicationRequest {
    /// The style.
    pub style: Style,
    /// Pools that hold an instance of it.
    pub existing: Vec<PoolAddress>,
    /// Where the active instance is, and what its back end can do; `None` for the first instance.
    pub active: Option<(PoolAddress, Capabilities)>,
    /// Instances to be placed, this one included.
    pub new_instances: u32,
}

/// The pool that an instance goes to: of those that pass every filter the one with the most room, the first by address
/// among equals.
///
/// # Errors
/// When no pool passes: which filter took which pools away, and why.
pub fn place(request: &PlacementRequest, pools: &[PoolView]) -> Result<PoolAddress, NoValidHost> {
    candidates(request, pools).map(|found| found[0].address.clone())
}

/// Every pool that passes, the best first; never empty.
///
/// # Errors
/// When no pool passes.
pub fn candidates<'a>(
    request: &PlacementRequest,
    pools: &'a [PoolView],
) -> Result<Vec<&'a PoolView>, NoValidHost> {
    let mut left: Vec<&PoolView> = pools.iter().collect();
    let mut removed = Vec::new();
    for (name, admits) in filter::ALL {
        left.retain(|pool| match admits(request, pool) {
            Ok(()) => true,
            Err(why) => {
                Removed::add(&mut removed, name, &pool.address, why);
                false
            }
        });
    }
    if left.is_empty() {
        return Err(NoValidHost { pools: pools.len(), removed });
    }
    left.sort_by(|a, b| room::weight(b).total_cmp(&room::weight(a)).then_with(|| a.address.cmp(&b.address)));
    Ok(left)
}
