//! The back ends: configured drivers, whether they serve, what they can do, and room in their pools.

use std::sync::{Mutex, MutexGuard};

use tandem_contract::Capabilities;

use crate::clock::Timestamp;
use crate::core::Core;
use crate::denied::Denied;
use crate::face::{BackendState, BackendView, PoolView};
use crate::model::PoolAddress;

/// A back end as the settings describe it.
#[derive(Clone)]
pub struct BackendConfig {
    /// Its name.
    pub name: String,
    /// Its driver's name.
    pub driver: String,
    /// Zone.
    pub availability_zone: String,
    /// Percent kept free, in scheduling.
    pub reserved_percentage: u32,
    /// How many times the total a thin pool may be promised.
    pub max_over_subscription_ratio: f64,
}

struct Slot {
    view: Mutex<BackendView>,
}

/// All back ends, in the order of the settings.
pub(crate) struct Backends {
    slots: Vec<Slot>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

impl Backends {
    pub fn new(host: &str, configs: Vec<BackendConfig>, now: Timestamp) -> Self {
        let slots = configs
            .into_iter()
            .map(|config| Slot {
                view: Mutex::new(BackendView {
                    name: config.name.clone(),
                    host: host.to_owned(),
                    driver: config.driver.clone(),
                    driver_version: String::new(),
                    availability_zone: config.availability_zone.clone(),
                    state: BackendState::Down { reason: "its driver has not been opened yet".into() },
                    since: now,
                    capabilities: Capabilities::default(),
                    pools: Vec::new(),
                    reserved_percentage: config.reserved_percentage,
                    max_over_subscription_ratio: config.max_over_subscription_ratio,
                    pools_at: None,
                }),
            })
            .collect();
        Self { slots }
    }

    pub fn views(&self) -> Vec<BackendView> {
        self.slots.iter().map(|slot| lock(&slot.view).clone()).collect()
    }

    pub fn zones(&self) -> Vec<String> {
        let mut zones: Vec<String> = self.views().into_iter().map(|v| v.availability_zone).collect();
        zones.sort();
        zones.dedup();
        zones
    }
}

impl Core {
    pub async fn pool_views(&self) -> Result<Vec<PoolView>, Denied> {
        let promised: std::collections::HashMap<String, u64> =
            self.store.promised().await?.into_iter().collect();
        let mut pools = Vec::new();
        for backend in self.backends.views() {
            for pool in &backend.pools {
                let address = PoolAddress {
                    host: backend.host.clone(),
                    backend: backend.name.clone(),
                    pool: pool.name.clone(),
                };
                pools.push(PoolView {
                    provisioned_bytes: promised.get(&address.to_string()).copied().unwrap_or(0),
                    availability_zone: backend.availability_zone.clone(),
                    pool: pool.clone(),
                    backend: backend.clone(),
                    address,
                });
            }
        }
        Ok(pools)
    }
}
