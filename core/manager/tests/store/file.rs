//! What only a file can do: outlive the store, be somebody else's, be newer, be broken.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use sqlx::{ConnectOptions, Connection};
use tandem_manager::model::{Instance, Share};
use tandem_manager::store::sqlite::SqliteStore;
use tandem_manager::store::{Store, StoreError};

use crate::rows::*;

async fn sentence(path: &Path) -> String {
    match SqliteStore::open(path).await {
        Err(StoreError::Failed(sentence)) => sentence,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn what_was_committed_is_there_after_reopening() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tandem.db");
    let store = SqliteStore::open(&path).await.unwrap();
    store.commit(put([row(share(1))])).await.unwrap();
    // A second store on the same file sees it even while the first one is there, as after a crash.
    let again = SqliteStore::open(&path).await.unwrap();
    assert!(again.share(share_id(1)).await.unwrap().is_some());
    drop(store);
    again.commit(put([row(share(2))])).await.unwrap();
}

#[tokio::test]
async fn a_commit_is_written_though_its_caller_went_away() {
    let folder = tempfile::tempdir().unwrap();
    let store = SqliteStore::open(&folder.path().join("tandem.db")).await.unwrap();
    {
        let mut commit = store.commit(put([row(share(1))]));
        // Once polled it is in the queue.
        let polled = std::future::poll_fn(|context| std::task::Poll::Ready(commit.as_mut().poll(context)));
        assert!(polled.await.is_pending());
    }
    // The queue keeps its order: when this one is in, the first one is.
    store.commit(put([row(share(2))])).await.unwrap();
    assert!(store.share(share_id(1)).await.unwrap().is_some());
}

#[tokio::test]
async fn the_files_are_their_owners_only() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tandem.db");
    std::fs::write(&path, "").unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
    let store = SqliteStore::open(&path).await.unwrap();
    store.commit(put([row(share(1))])).await.unwrap();
    let files: Vec<_> = std::fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap()).collect();
    assert!(files.len() >= 2, "the file and its write-ahead log");
    for file in files {
        assert_eq!(file.metadata().unwrap().permissions().mode() & 0o777, 0o600, "{:?}", file.path());
    }
}

#[tokio::test]
async fn a_newer_schema_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tandem.db");
    drop(SqliteStore::open(&path).await.unwrap());
    let options = sqlx::sqlite::SqliteConnectOptions::new().filename(&path);
    let mut other = options.connect().await.unwrap();
    let newer = "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time) \
                 VALUES (7000, 'later', 1, x'00', 1)";
    sqlx::query(newer).execute(&mut other).await.unwrap();
    other.close().await.unwrap();
    let sentence = sentence(&path).await;
    assert!(sentence.contains("7000") && sentence.contains("newer Tandem"), "{sentence}");
}

#[tokio::test]
async fn a_newer_row_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tandem.db");
    let store = SqliteStore::open(&path).await.unwrap();
    store.commit(put([row(share(1))])).await.unwrap();
    let options = sqlx::sqlite::SqliteConnectOptions::new().filename(&path);
    let mut other = options.connect().await.unwrap();
    sqlx::query("UPDATE shares SET format = 2").execute(&mut other).await.unwrap();
    let error = store.share(share_id(1)).await.unwrap_err().to_string();
    assert!(error.contains("newer Tandem"), "{error}");
}

#[tokio::test]
async fn what_is_no_database_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tandem.db");
    std::fs::write(&path, "this is a diary, and long enough to be read as a header ".repeat(100)).unwrap();
    let no_database = sentence(&path).await;
    assert!(no_database.contains("tandem.db") && no_database.contains("no database"), "{no_database}");
    assert!(std::fs::read_to_string(&path).unwrap().starts_with("this is a diary"), "it was left alone");

    let nowhere = sentence(&folder.path().join("missing/tandem.db")).await;
    assert!(nowhere.contains("missing/tandem.db") && nowhere.contains("cannot be opened"), "{nowhere}");
}

#[tokio::test]
async fn a_damaged_file_is_a_sentence() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tandem.db");
    {
        let options = sqlx::sqlite::SqliteConnectOptions::new().filename(&path);
        let store = SqliteStore::open(&path).await.unwrap();
        for n in 1..200 {
            store.commit(put([row(share(n))])).await.unwrap();
        }
        let mut other = options.connect().await.unwrap();
        sqlx::query("PRAGMA wal_checkpoint(TRUNCATE)").execute(&mut other).await.unwrap();
    }
    // Everything after the header's page.
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[4096..].fill(0xa5);
    let copy = folder.path().join("copy.db");
    std::fs::write(&copy, bytes).unwrap();
    let sentence = match SqliteStore::open(&copy).await {
        Err(error) => error.to_string(),
        Ok(store) => store.share(share_id(1)).await.unwrap_err().to_string(),
    };
    assert!(sentence.contains("damaged") && sentence.contains("restore a backup"), "{sentence}");
}

/// The first schema with rows in it, as its program left it.
#[tokio::test]
async fn an_older_schema_is_brought_up_to_date() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tandem.db");
    let share = Share { size_gb: 7, ..share(1) };
    let instance = Instance { pool: pool("alpha"), ..instance(2, 1) };
    {
        let store = SqliteStore::open(&path).await.unwrap();
        store.commit(put([row(share), row(instance)])).await.unwrap();
        let mut other = sqlx::sqlite::SqliteConnectOptions::new().filename(&path).connect().await.unwrap();
        let back = "DELETE FROM _sqlx_migrations WHERE version > 1; DROP TABLE promised; \
                    DROP INDEX instances_following; \
                    CREATE INDEX instances_following ON instances (replica_state, share_id); \
                    DROP TRIGGER instance_placed; DROP TRIGGER instance_gone; \
                    DROP TRIGGER instance_moved; DROP TRIGGER share_made; DROP TRIGGER share_gone; \
                    DROP TRIGGER share_resized; DROP INDEX shares_replicating; \
                    DROP INDEX shares_writable;";
        sqlx::raw_sql(back).execute(&mut other).await.unwrap();
    }
    let store = SqliteStore::open(&path).await.unwrap();
    assert_eq!(store.promised().await.unwrap(), [("host@alpha#main".to_owned(), 7 << 30)]);
    assert_eq!(store.family(share_id(1)).await.unwrap().instances.len(), 1);
}
