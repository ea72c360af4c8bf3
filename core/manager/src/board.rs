//! The board: what is true only now, and is observed again after a start. Progress of running operations, and how
//! fresh replicas are.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Mutex, MutexGuard};

use tandem_contract::{InstanceId, OpId, Progress, ResourceId};

use crate::chores::Chores;
use crate::clock::Timestamp;
use crate::watched::Watched;

/// How fresh a replica is known to be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Freshness {
    /// The active was last known to be unchanged since the replica's newest point at this time.
    pub confirmed_at: Option<Timestamp>,
    /// Until then that confirmation stands for "now": the next look is due before.
    pub unchanged_until: Option<Timestamp>,
    /// Bytes behind, as last told.
    pub lag_bytes: Option<u64>,
    /// It holds changes that the active one lacks, as last told: it follows once somebody asks for a resync.
    pub parted: bool,
    /// What is wrong with it although it serves or follows, as last told; of an active one of a `writable` share why its users wait.
    pub degraded: Option<String>,
}

/// Volatile facts.
#[derive(Debug, Default)]
pub(crate) struct Board {
    progress: Mutex<HashMap<OpId, Progress>>,
    fresh: Mutex<HashMap<InstanceId, Freshness>>,
    /// Shares that are to be looked at without delay.
    to_look_at: Mutex<BTreeSet<ResourceId>>,
    /// What is to be tried again.
    pub chores: Chores,
    /// Shares at rest, so that a look at them reads no rows.
    pub watched: Watched,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Plain data: whatever a panicking writer left is still a fact of the past.
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

impl Board {
    /// Notes progress. Bytes never fall within one phase of one operation.
    pub fn progress(&self, op: OpId, mut new: Progress) {
        let mut all = lock(&self.progress);
        if let Some(old) = all.get(&op)
            && old.phase == new.phase
        {
            new.done = new.done.max(old.done);
        }
        all.insert(op, new);
    }

    /// Progress of an operation, when it runs.
    pub fn progress_of(&self, op: OpId) -> Option<Progress> {
        lock(&self.progress).get(&op).cloned()
    }

    /// Forgets an operation's progress.
    pub fn ended(&self, op: OpId) {
        lock(&self.progress).remove(&op);
    }

    /// How fresh a replica is known to be.
    pub fn freshness(&self, instance: InstanceId) -> Freshness {
        lock(&self.fresh).get(&instance).cloned().unwrap_or_default()
    }

    /// Changes that.
    pub fn set_freshness(&self, instance: InstanceId, change: impl FnOnce(&mut Freshness)) {
        change(lock(&self.fresh).entry(instance).or_default());
    }

    /// A share came to have followers, or another active one, or is back: it is to be looked at without delay.
    pub fn look_at(&self, share: ResourceId) {
        lock(&self.to_look_at).insert(share);
    }

    /// So many of those shares, once.
    pub fn take_to_look_at(&self, most: usize) -> Vec<ResourceId> {
        let mut all = lock(&self.to_look_at);
        std::iter::from_fn(|| all.pop_first()).take(most).collect()
    }

    /// Forgets an instance.
    pub fn gone(&self, instance: InstanceId) {
        lock(&self.fresh).remove(&instance);
    }
}

impl Board {
    /// Notes what an operation waits for; its bytes stay.
    pub fn blocked(&self, op: OpId, error: &tandem_contract::Error) {
        lock(&self.progress).entry(op).or_default().blocked_on = Some(error.to_string());
    }
}
