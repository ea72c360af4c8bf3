//! One asynchronous lock for each key, made when needed.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::OwnedMutexGuard;

/// One asynchronous lock for each key.
pub(crate) struct Keyed<K>(Mutex<HashMap<K, Arc<tokio::sync::Mutex<()>>>>);

impl<K> Default for Keyed<K> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<K: Eq + Hash + Copy> Keyed<K> {
    /// Waits for the key's lock.
    pub async fn lock(&self, key: K) -> OwnedMutexGuard<()> {
        let one = {
            let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            // Those that nobody holds or waits for are made again when needed.
            all.retain(|_, lock| Arc::strong_count(lock) > 1);
            Arc::clone(all.entry(key).or_default())
        };
        one.lock_owned().await
    }
}
