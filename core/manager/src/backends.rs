//! The back ends: configured drivers, whether they serve, what they can do, and room in their pools.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use tandem_contract::{Capabilities, Error, InstanceId, Pool};
use tandem_host::{Backend, BoxFuture};
use tokio::sync::Semaphore;

use crate::clock::Timestamp;
use crate::core::Core;
use crate::denied::Denied;
use crate::face::{BackendState, BackendView, PoolView};
use crate::model::{Instance, PoolAddress};

/// Looks of reconciliation at one back end at once.
const LOOKS: usize = 4;

/// Opens a back end's driver; called again, from time to time, while it fails.
pub type OpenBackend = Arc<dyn Fn() -> BoxFuture<'static, Result<Backend, Error>> + Send + Sync>;

/// A back end as the settings describe it.
#[derive(Clone)]
pub struct BackendConfig {
    /// Its name.
    pub name: String,
    /// Its driver's name.
    pub driver: String,
    /// Version of that driver; empty when it was refused.
    pub driver_version: String,
    /// Zone.
    pub availability_zone: String,
    /// Percent kept free, in scheduling.
    pub reserved_percentage: u32,
    /// How many times the total a thin pool may be promised.
    pub max_over_subscription_ratio: f64,
    /// Opens it.
    pub open: OpenBackend,
}

/// One back end.
pub(crate) struct Slot {
    open: OpenBackend,
    backend: Mutex<Option<Backend>>,
    /// Held while it is opened: a driver elsewhere is opened once, whoever asks.
    opening: tokio::sync::Mutex<()>,
    /// Whether it was opened since its instances were served again.
    fresh: AtomicBool,
    /// Looks of reconciliation at it at once: a slow driver holds up its own looks, and no other's.
    pub looks: Semaphore,
    /// Syncs into it at once.
    pub syncs: Arc<Semaphore>,
    /// Whether it was asked since the start, with whatever answer.
    tried: AtomicBool,
    view: Mutex<BackendView>,
}

/// All back ends, in the order of the settings.
pub(crate) struct Backends {
    slots: Vec<Arc<Slot>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

impl Slot {
    pub fn name(&self) -> String {
        lock(&self.view).name.clone()
    }

    pub fn is_up(&self) -> bool {
        lock(&self.view).state == BackendState::Up
    }

    /// The driver, opened when it is not yet, or not any more.
    pub async fn opened(&self) -> Result<Backend, Error> {
        if let Some(backend) = self.usable() {
            return Ok(backend);
        }
        let _one = self.opening.lock().await;
        if let Some(backend) = self.usable() {
            return Ok(backend);
        }
        let backend = (self.open)().await?;
        // Before anybody can use it: what was served before may not be any more.
        self.fresh.store(true, Ordering::Release);
        *lock(&self.backend) = Some(backend.clone());
        let mut view = lock(&self.view);
        view.capabilities = backend.capabilities().clone();
        view.driver_version.clone_from(&backend.manifest().version);
        drop(view);
        Ok(backend)
    }

    /// The driver, if it is open and not lost.
    fn usable(&self) -> Option<Backend> {
        self.open_now().filter(|backend| !backend.is_lost())
    }

    /// The driver, if it was ever opened: what it can do is known, though it may be lost now.
    pub fn open_now(&self) -> Option<Backend> {
        lock(&self.backend).clone()
    }

    /// Ends when the driver that is open is lost.
    pub async fn lost(&self) {
        match self.usable() {
            Some(backend) => backend.lost().await,
            None => std::future::pending().await,
        }
    }

    /// Waits for instances that its driver says have changed by themselves. None when it was lost meanwhile.
    pub async fn changed(&self) -> BTreeSet<InstanceId> {
        match self.usable() {
            Some(backend) => tokio::select! {
                biased;
                changed = backend.changed() => changed,
                () = backend.lost() => BTreeSet::new(),
            },
            None => BTreeSet::new(),
        }
    }

    /// Notes that it serves, with its pools. Answers whether it did not before, or was opened anew: then its instances
    /// are to be served again.
    pub fn set_up(&self, pools: Vec<Pool>, now: Timestamp) -> bool {
        let fresh = self.fresh.swap(false, Ordering::AcqRel);
        self.tried.store(true, Ordering::Release);
        let mut view = lock(&self.view);
        view.pools = pools;
        view.pools_at = Some(now);
        if view.state != BackendState::Up {
            view.state = BackendState::Up;
            view.since = now;
            tracing::info!(backend = view.name, "Back end is up.");
            return true;
        }
        fresh
    }

    /// Notes that it does not serve.
    pub fn set_down(&self, error: &Error, now: Timestamp) {
        self.tried.store(true, Ordering::Release);
        let mut view = lock(&self.view);
        let state = BackendState::Down { reason: error.to_string() };
        if view.state != state {
            if view.state == BackendState::Up {
                view.since = now;
            }
            tracing::warn!(backend = view.name, %error, "Back end is down.");
            view.state = state;
        }
    }
}

impl Backends {
    pub fn new(host: &str, configs: Vec<BackendConfig>, syncs: usize, now: Timestamp) -> Self {
        let slot = |config: BackendConfig| {
            Arc::new(Slot {
                open: config.open,
                backend: Mutex::new(None),
                opening: tokio::sync::Mutex::default(),
                fresh: AtomicBool::new(false),
                looks: Semaphore::new(LOOKS),
                syncs: Arc::new(Semaphore::new(syncs.max(1))),
                tried: AtomicBool::new(false),
                view: Mutex::new(BackendView {
                    name: config.name,
                    host: host.to_owned(),
                    driver: config.driver,
                    driver_version: config.driver_version,
                    availability_zone: config.availability_zone,
                    state: BackendState::Down { reason: "its driver has not been opened yet".into() },
                    since: now,
                    capabilities: Capabilities::default(),
                    pools: Vec::new(),
                    reserved_percentage: config.reserved_percentage,
                    max_over_subscription_ratio: config.max_over_subscription_ratio,
                    pools_at: None,
                }),
            })
        };
        Self { slots: configs.into_iter().map(slot).collect() }
    }

    pub fn slots(&self) -> &[Arc<Slot>] {
        &self.slots
    }

    pub fn slot(&self, name: &str) -> Option<&Arc<Slot>> {
        self.slots.iter().find(|slot| slot.name() == name)
    }

    /// Whether every one was asked since the start: before, a scheduler would find no pools.
    pub fn settled(&self) -> bool {
        self.slots.iter().all(|slot| slot.tried.load(Ordering::Acquire))
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

    /// Zone of a back end.
    pub fn zone_of(&self, name: &str) -> Option<String> {
        self.slot(name).map(|slot| lock(&slot.view).availability_zone.clone())
    }

    /// The driver that an instance is on.
    pub async fn of(&self, instance: &Instance) -> Result<Backend, Error> {
        let Some(name) = instance.backend() else {
            return Err(Error::not_found(format!("instance {} was never placed", instance.id)));
        };
        let slot = self.slot(name).ok_or_else(|| {
            Error::unavailable(format!(
                "back end `{name}` is not in the settings any more; put it back, or delete by force"
            ))
        })?;
        slot.opened().await
    }

    /// Name of the driver that an instance is on; empty when it is nowhere.
    pub fn driver_of(&self, instance: &Instance) -> String {
        let slot = instance.backend().and_then(|name| self.slot(name));
        slot.map(|slot| lock(&slot.view).driver.clone()).unwrap_or_default()
    }

    /// What the driver that an instance is on can do; nothing known when it never answered.
    pub fn capabilities_of(&self, instance: &Instance) -> Option<Capabilities> {
        Some(self.slot(instance.backend()?)?.open_now()?.capabilities().clone())
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
