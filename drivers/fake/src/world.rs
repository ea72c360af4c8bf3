//! The storage of all back ends, and what users and tests do to it.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::PathBuf;
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError, Weak};

use serde::{Deserialize, Serialize};
use tandem_sdk::{Epoch, Error, InstanceId, OpId, PointId, ResourceId, Result, Role, Style};
use tokio::sync::Notify;

use crate::instance::Instance;
use crate::{Fault, folder};

/// What an instance holds: names and contents.
pub type Data = BTreeMap<String, Vec<u8>>;

/// The storage of any number of back ends. Cheap to clone; lives as long as a clone does.
#[derive(Clone)]
pub struct World(Arc<Inner>);

struct Inner {
    /// `Some` when the world is kept in a folder.
    path: Option<PathBuf>,
    state: Mutex<State>,
    cache: Mutex<folder::Cache>,
    released: Notify,
}

#[derive(Default)]
struct State {
    sites: BTreeMap<String, Site>,
    faults: Vec<Fault>,
    history: Vec<Event>,
}

/// One back end's storage.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Site {
    pub(crate) instances: BTreeMap<InstanceId, Instance>,
    /// The manager cannot reach it; its users can.
    #[serde(skip)]
    pub(crate) isolated: bool,
    /// Nobody can reach it.
    #[serde(skip)]
    pub(crate) down: bool,
    /// Sites that its storage cannot reach.
    #[serde(skip)]
    pub(crate) cut_from: BTreeSet<String>,
}

/// All sites, as they are stored.
pub(crate) type Sites = BTreeMap<String, Site>;

/// Something that happened, in order.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// A call ended.
    Call {
        /// The operation.
        op: OpId,
        /// The site.
        site: String,
        /// The verb.
        verb: String,
        /// The instance.
        instance: Option<InstanceId>,
        /// Its epoch after the call.
        epoch: Option<Epoch>,
        /// Its role after the call.
        role: Option<Role>,
        /// The contract's word for the error's kind; `None` for success.
        error: Option<String>,
    },
    /// A user's write was acknowledged.
    Write(Write),
}

/// An acknowledged write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Write {
    /// The resource.
    pub resource: ResourceId,
    /// The instance that took it.
    pub instance: InstanceId,
    /// The epoch at which it was active.
    pub epoch: Epoch,
    /// The name.
    pub name: String,
    /// The content.
    pub content: Vec<u8>,
}

/// Why a user could not write, or read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WriteRefused {
    /// No such instance, its host is down, or it is not exported.
    Unreachable,
    /// It can be read only.
    ReadOnly,
    /// Writers are held back for now.
    Quiesced,
}

static WORLDS: LazyLock<Mutex<HashMap<String, Weak<Inner>>>> = LazyLock::new(Mutex::default);

impl World {
    /// The world of this name in this process; made when nobody holds one.
    pub fn named(name: &str) -> Self {
        Self::shared(name.to_owned(), None)
    }

    /// The world that is kept in a folder.
    pub(crate) fn in_folder(path: PathBuf) -> Self {
        Self::shared(format!("\0{}", path.display()), Some(path))
    }

    fn shared(key: String, path: Option<PathBuf>) -> Self {
        let mut worlds = WORLDS.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(world) = worlds.get(&key).and_then(Weak::upgrade) {
            return Self(world);
        }
        let world = Arc::new(Inner {
            path,
            state: Mutex::default(),
            cache: Mutex::default(),
            released: Notify::new(),
        });
        worlds.retain(|_, world| world.strong_count() > 0);
        worlds.insert(key, Arc::downgrade(&world));
        Self(world)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does something with all sites. What it changes is stored before this returns.
    pub(crate) fn with<T>(&self, work: impl FnOnce(&mut Sites) -> Result<T>) -> Result<T> {
        match &self.0.path {
            None => work(&mut self.state().sites),
            Some(path) => {
                folder::with(path, &mut self.0.cache.lock().unwrap_or_else(PoisonError::into_inner), work)
            }
        }
    }

    pub(crate) fn is_in_folder(&self) -> bool {
        self.0.path.is_some()
    }

    /// The faults that are still to come; tests add to them.
    pub fn script(&self, fault: Fault) {
        self.state().faults.push(fault);
    }

    /// Forgets every fault that is still to come.
    pub fn clear_faults(&self) {
        self.state().faults.clear();
    }

    pub(crate) fn strike(&self, site: &str, verb: &str) -> Option<crate::What> {
        crate::fault::strike(&mut self.state().faults, site, verb)
    }

    /// Lets every call go on that hangs now.
    pub fn release(&self) {
        self.0.released.notify_waiters();
    }

    pub(crate) async fn hang(&self) {
        self.0.released.notified().await;
    }

    pub(crate) fn record(&self, event: Event) {
        self.state().history.push(event);
    }

    /// What happened so far.
    pub fn history(&self) -> Vec<Event> {
        self.state().history.clone()
    }

    /// Cuts the manager off from a site, or lets it through again. Users still reach it.
    pub fn isolate(&self, site: &str, isolated: bool) {
        self.state().sites.entry(site.to_owned()).or_default().isolated = isolated;
    }

    /// Switches a site off, or on again. It comes back serving nothing: exports come with `ensure_instance`; and what served
    /// beside a peer comes back as a secondary, which `promote_replica` makes active again.
    pub fn down(&self, site: &str, down: bool) {
        let mut state = self.state();
        let site = state.sites.entry(site.to_owned()).or_default();
        site.down = down;
        for instance in site.instances.values_mut() {
            instance.served = false;
            instance.quiesced = false;
            crate::peers::stops(instance);
        }
    }

    /// Writes as a user does.
    ///
    /// # Errors
    /// Why it was not acknowledged.
    pub fn write(
        &self,
        site: &str,
        instance: InstanceId,
        name: &str,
        content: &[u8],
    ) -> std::result::Result<(), WriteRefused> {
        let mut state = self.state();
        let found = reachable(&state.sites, site, instance)?;
        if found.role != Role::Active || found.access.read_only {
            return Err(WriteRefused::ReadOnly);
        }
        if found.quiesced || crate::peers::is_suspended(&state.sites, instance) {
            return Err(WriteRefused::Quiesced);
        }
        let (resource, epoch) = (found.spec.resource, found.epoch);
        if let Some(found) = state.sites.get_mut(site).and_then(|s| s.instances.get_mut(&instance)) {
            found.data.insert(name.to_owned(), content.to_vec());
        }
        crate::peers::propagate(&mut state.sites, site, instance);
        let write = Write { resource, instance, epoch, name: name.to_owned(), content: content.to_vec() };
        state.history.push(Event::Write(write));
        Ok(())
    }

    /// Reads as a user does.
    ///
    /// # Errors
    /// `Unreachable` when it is not exported.
    pub fn read(&self, site: &str, instance: InstanceId) -> std::result::Result<Data, WriteRefused> {
        reachable(&self.state().sites, site, instance).map(|found| found.data.clone())
    }

    /// Everything that an instance holds, whoever may reach it; `None` when it is not there. For assertions.
    pub fn contents(&self, site: &str, instance: InstanceId) -> Option<Data> {
        self.state().sites.get(site)?.instances.get(&instance).map(|found| found.data.clone())
    }

    /// Every instance with its site, role and epoch. For assertions.
    pub fn instances(&self) -> Vec<(String, InstanceId, Role, Epoch)> {
        let state = self.state();
        let of = |(name, site): (&String, &Site)| {
            site.instances
                .values()
                .map(|i| (name.clone(), i.spec.instance, i.role, i.epoch))
                .collect::<Vec<_>>()
        };
        state.sites.iter().flat_map(of).collect()
    }

    /// Points that an instance still holds. For assertions that nothing leaks.
    pub fn points(&self, site: &str, instance: InstanceId) -> Vec<PointId> {
        let state = self.state();
        let found = state.sites.get(site).and_then(|s| s.instances.get(&instance));
        found.map(|i| i.points.iter().map(|p| p.id).collect()).unwrap_or_default()
    }

    /// What is wrong with the history and the state, as sentences: two instances of one resource took writes at the
    /// same epoch, or a write was taken at an epoch below one that had taken writes before. Styles that are written on
    /// all sides are left out.
    pub fn violations(&self) -> Vec<String> {
        let state = self.state();
        let writable: BTreeSet<ResourceId> = state
            .sites
            .values()
            .flat_map(|site| site.instances.values())
            .filter(|i| i.spec.replication.as_ref().is_some_and(|r| r.style == Style::Writable))
            .map(|i| i.spec.resource)
            .collect();
        let mut newest: HashMap<ResourceId, (Epoch, InstanceId)> = HashMap::new();
        let mut wrong = Vec::new();
        for event in &state.history {
            let Event::Write(write) = event else { continue };
            if writable.contains(&write.resource) {
                continue;
            }
            match newest.get(&write.resource) {
                Some((epoch, _)) if write.epoch < *epoch => wrong.push(format!(
                    "instance {} took a write at epoch {} after one had been taken at epoch {epoch}",
                    write.instance, write.epoch
                )),
                Some((epoch, other)) if write.epoch == *epoch && *other != write.instance => wrong.push(
                    format!("instances {} and {other} both took writes at epoch {epoch}", write.instance),
                ),
                _ => {
                    newest.insert(write.resource, (write.epoch, write.instance));
                }
            }
        }
        wrong
    }
}

fn reachable<'a>(
    sites: &'a Sites,
    site: &str,
    instance: InstanceId,
) -> std::result::Result<&'a Instance, WriteRefused> {
    let site = sites.get(site).filter(|site| !site.down).ok_or(WriteRefused::Unreachable)?;
    site.instances.get(&instance).filter(|found| found.is_exported()).ok_or(WriteRefused::Unreachable)
}

/// Whether the manager reaches a site.
pub(crate) fn check_reachable(sites: &Sites, site: &str) -> Result<()> {
    match sites.get(site) {
        Some(found) if found.down || found.isolated => {
            Err(Error::unavailable(format!("site `{site}` cannot be reached")))
        }
        _ => Ok(()),
    }
}
