//! The store in memory, for simulations and tests: ordered maps behind one lock, the same answers as SQLite's, and a
//! crash at a commit of one's choice.

mod select;
mod state;

use std::sync::{Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use tandem_contract::{InstanceId, OpId, ResourceId};
use uuid::Uuid;

use self::state::State;
use super::{Batch, Family, InstanceQuery, OperationQuery, Page, Result, ShareQuery, Store, StoreError};
use crate::clock::Timestamp;
use crate::model::{AccessRule, Instance, Operation, Quota, Share, ShareType, Usage};
use crate::oplog::Logged;

/// When, at a commit, a crash comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Crash {
    /// Before anything was written.
    Before,
    /// After it was written, before the caller hears of it.
    After,
}

/// The store in memory. Every answer depends on what was committed only, so that a simulation repeats.
#[derive(Debug, Default)]
pub struct MemoryStore {
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    state: State,
    commits: u64,
    crash: Option<(u64, Crash)>,
    crashed: bool,
}

impl MemoryStore {
    /// An empty store.
    pub fn new() -> Self {
        Self::default()
    }

    /// Crashes at the `n`-th commit from now that is not refused (1: the next). That call and every later one, reads
    /// included, answers [`StoreError::Failed`] until [`revive`](Self::revive).
    pub fn crash_after(&self, n: u64, crash: Crash) {
        let mut inner = self.lock();
        inner.crash = Some((inner.commits + n.max(1), crash));
    }

    /// Ends a crash, or takes back one that has not come yet. What was written is there.
    pub fn revive(&self) {
        let mut inner = self.lock();
        inner.crash = None;
        inner.crashed = false;
    }

    /// Whether it has crashed.
    pub fn has_crashed(&self) -> bool {
        self.lock().crashed
    }

    /// Commits that were not refused so far, a crashed one included.
    pub fn commits(&self) -> u64 {
        self.lock().commits
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Nothing panics between two writes of a commit, so what a panicking thread left is whole.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn read<T>(&self, read: impl FnOnce(&State) -> T) -> Result<T> {
        let inner = self.lock();
        if inner.crashed { Err(crashed()) } else { Ok(read(&inner.state)) }
    }
}

fn crashed() -> StoreError {
    StoreError::Failed("the store crashed, as a test asked it to".into())
}

#[async_trait]
impl Store for MemoryStore {
    async fn commit(&self, batch: Batch) -> Result<()> {
        let mut inner = self.lock();
        if inner.crashed {
            return Err(crashed());
        }
        if batch.is_empty() {
            return Ok(());
        }
        let undo = inner.state.apply(batch)?;
        inner.commits += 1;
        match inner.crash {
            Some((at, crash)) if inner.commits >= at => {
                inner.crashed = true;
                if crash == Crash::Before {
                    inner.state.take_back(undo);
                }
                Err(crashed())
            }
            _ => Ok(()),
        }
    }

    async fn family(&self, share: ResourceId) -> Result<Family> {
        self.read(|state| state.family(share))
    }

    async fn share(&self, id: ResourceId) -> Result<Option<Share>> {
        self.read(|state| state.shares.get(&id).cloned())
    }

    async fn shares(&self, query: &ShareQuery) -> Result<Page<Share>> {
        self.read(|state| state.select_shares(query))
    }

    async fn instance(&self, id: InstanceId) -> Result<Option<Instance>> {
        self.read(|state| state.instances.get(&id).cloned())
    }

    async fn instances(&self, query: &InstanceQuery) -> Result<Page<Instance>> {
        self.read(|state| state.select_instances(query))
    }

    async fn rule(&self, id: Uuid) -> Result<Option<AccessRule>> {
        self.read(|state| state.rules.get(&id).cloned())
    }

    async fn rules(&self, share: ResourceId) -> Result<Vec<AccessRule>> {
        self.read(|state| state.rules_of(share))
    }

    async fn share_types(&self) -> Result<Vec<ShareType>> {
        self.read(|state| {
            let mut all: Vec<_> = state.types.values().cloned().collect();
            all.sort_by_key(|t| (t.created_at, t.id));
            all
        })
    }

    async fn share_type(&self, id: Uuid) -> Result<Option<ShareType>> {
        self.read(|state| state.types.get(&id).cloned())
    }

    async fn quota(&self, project: &str) -> Result<Option<Quota>> {
        self.read(|state| state.quotas.get(project).cloned())
    }

    async fn usage(&self, project: &str) -> Result<Usage> {
        self.read(|state| {
            let none = || Usage { project_id: project.to_owned(), ..Usage::default() };
            state.usages.get(project).cloned().unwrap_or_else(none)
        })
    }

    async fn operation(&self, id: OpId) -> Result<Option<Operation>> {
        self.read(|state| state.operations.get(&id).cloned())
    }

    async fn operations(&self, query: &OperationQuery) -> Result<Vec<Operation>> {
        self.read(|state| state.select_operations(query))
    }

    async fn following(&self) -> Result<Vec<ResourceId>> {
        self.read(|state| {
            let follows =
                |i: &&Instance| i.replica_state.is_some_and(|s| s != tandem_contract::ReplicaState::Active);
            let mut all: Vec<ResourceId> =
                state.instances.values().filter(follows).map(|i| i.share_id).collect();
            let writable = |s: &&crate::model::Share| s.replication == Some(tandem_contract::Style::Writable);
            all.extend(state.shares.values().filter(writable).map(|s| s.id));
            all.sort();
            all.dedup();
            all
        })
    }

    async fn unfinished(&self) -> Result<Vec<Operation>> {
        self.read(|state| state.unfinished(|_| true))
    }

    async fn log(&self, op: OpId) -> Result<Vec<Logged>> {
        self.read(|state| {
            let positions = state.log.get(&op).into_iter().flatten();
            positions.filter_map(|at| state.events.get(at).cloned()).collect()
        })
    }

    async fn log_from(&self, position: i64, limit: u32) -> Result<Vec<(i64, Logged)>> {
        self.read(|state| {
            let after = state.events.range(position.saturating_add(1)..);
            after.take(limit as usize).map(|(at, logged)| (*at, logged.clone())).collect()
        })
    }

    async fn prune(&self, before: Timestamp) -> Result<u64> {
        let mut inner = self.lock();
        if inner.crashed {
            return Err(crashed());
        }
        Ok(inner.state.prune(before))
    }

    async fn promised(&self) -> Result<Vec<(String, u64)>> {
        self.read(State::promised)
    }
}
