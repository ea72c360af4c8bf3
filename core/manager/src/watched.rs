//! What a look at a share at rest needs, kept in memory so that an idle share costs no read of the store. Any commit for a
//! share forgets it; what is here was true when the rows were read, and no commit came since.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tandem_contract::{Epoch, InstanceId, PointId, ResourceId};

/// Generations of commits are kept by groups of shares: a few false alarms cost a read each.
const GROUPS: usize = 256;
/// After so many looks the rows are read again, and the followers themselves are asked how they are.
const LOOKS: u32 = 10;

/// A share at rest: every instance available, every follower in sync at the same point.
#[derive(Debug)]
pub(crate) struct AtRest {
    pub active: InstanceId,
    pub backend: String,
    pub epoch: Epoch,
    pub point: PointId,
    pub followers: Vec<InstanceId>,
    pub rpo: Duration,
    looks: AtomicU32,
}

impl AtRest {
    pub fn new(
        active: InstanceId,
        backend: String,
        epoch: Epoch,
        point: PointId,
        followers: Vec<InstanceId>,
        rpo: Duration,
    ) -> Self {
        Self { active, backend, epoch, point, followers, rpo, looks: AtomicU32::new(0) }
    }
}

/// Shares at rest.
#[derive(Debug)]
pub(crate) struct Watched(Mutex<Inner>);

#[derive(Debug)]
struct Inner {
    generations: [u64; GROUPS],
    shares: HashMap<ResourceId, Arc<AtRest>>,
}

impl Default for Watched {
    fn default() -> Self {
        Self(Mutex::new(Inner { generations: [0; GROUPS], shares: HashMap::new() }))
    }
}

fn group(share: ResourceId) -> usize {
    usize::from(share.0.as_bytes()[15]) % GROUPS
}

impl Watched {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// To be asked before rows are read, and handed to [`Watched::keep`] with what they say.
    pub fn generation(&self, share: ResourceId) -> u64 {
        self.lock().generations[group(share)]
    }

    /// Keeps a share, unless something was committed since that generation.
    pub fn keep(&self, share: ResourceId, generation: u64, at_rest: AtRest) {
        let mut inner = self.lock();
        if inner.generations[group(share)] == generation {
            inner.shares.insert(share, Arc::new(at_rest));
        }
    }

    /// Something was committed for a share.
    pub fn forget(&self, share: ResourceId) {
        let mut inner = self.lock();
        inner.generations[group(share)] += 1;
        inner.shares.remove(&share);
    }

    /// Something was committed that concerns many shares.
    pub fn forget_all(&self) {
        let mut inner = self.lock();
        inner.generations.iter_mut().for_each(|g| *g += 1);
        inner.shares.clear();
    }

    /// A share at rest; from time to time none, so that its rows are read again.
    pub fn get(&self, share: ResourceId) -> Option<Arc<AtRest>> {
        let found = Arc::clone(self.lock().shares.get(&share)?);
        if found.looks.fetch_add(1, Ordering::Relaxed) < LOOKS {
            return Some(found);
        }
        self.lock().shares.remove(&share);
        None
    }
}
