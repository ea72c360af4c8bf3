//! The memory store's crashes: what a simulation relies on.

use tandem_manager::store::memory::{Crash, MemoryStore};
use tandem_manager::store::{Gone, Store, StoreError};

use crate::rows::*;

#[tokio::test]
async fn crash_before_the_write_loses_it() {
    let store = MemoryStore::new();
    store.commit(put([row(share(1))])).await.unwrap();
    store.crash_after(2, Crash::Before);
    // A refused commit is none.
    assert!(matches!(store.commit(put([row(share(1))])).await, Err(StoreError::Conflict(_))));
    store.commit(put([row(share(2))])).await.unwrap();
    assert!(!store.has_crashed());

    let mut batch = admit(&operation(1, 1, sync(7)));
    batch.put = vec![row(share(3)), row(instance(4, 3)), row(share_type(5, "t"))];
    batch.gone = vec![Gone::Share(share_id(1), 1)];
    assert!(matches!(store.commit(batch.clone()).await, Err(StoreError::Failed(_))));
    assert!(store.has_crashed());
    assert!(matches!(store.share(share_id(1)).await, Err(StoreError::Failed(_))));
    assert!(matches!(store.prune(at(1)).await, Err(StoreError::Failed(_))));
    assert!(matches!(store.commit(batch.clone()).await, Err(StoreError::Failed(_))));

    store.revive();
    assert!(store.share(share_id(1)).await.unwrap().is_some());
    assert_eq!(store.share(share_id(3)).await.unwrap(), None);
    assert_eq!(store.log_from(0, 9).await.unwrap(), []);
    store.commit(batch).await.unwrap();
    assert_eq!(store.log_from(0, 9).await.unwrap()[0].0, 1);
}

#[tokio::test]
async fn crash_after_the_write_keeps_it() {
    let store = MemoryStore::new();
    store.crash_after(1, Crash::After);
    assert!(matches!(store.commit(put([row(share(1))])).await, Err(StoreError::Failed(_))));
    assert!(matches!(store.share(share_id(1)).await, Err(StoreError::Failed(_))));
    store.revive();
    assert!(store.share(share_id(1)).await.unwrap().is_some());
    assert_eq!(store.commits(), 1);
    store.commit(put([row(share(2))])).await.unwrap();
}
