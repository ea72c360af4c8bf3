//! The store: one suite for every implementation, a comparison on random batches, and what only a file can do wrong.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod cases;
mod crash;
mod file;
mod queries;
mod random;
mod rows;

/// Runs each case on both stores.
macro_rules! on_both {
    ($($module:ident :: $case:ident),* $(,)?) => {
        mod memory {$(
            #[tokio::test]
            async fn $case() {
                super::$module::$case(&tandem_manager::store::memory::MemoryStore::new()).await;
            }
        )*}
        mod sqlite {$(
            #[tokio::test]
            async fn $case() {
                let folder = tempfile::tempdir().unwrap();
                let path = folder.path().join("tandem.db");
                let store = tandem_manager::store::sqlite::SqliteStore::open(&path).await.unwrap();
                super::$module::$case(&store).await;
            }
        )*}
    };
}

on_both![
    cases::empty_store_answers_nothing,
    cases::empty_batch_is_written,
    cases::rows_come_back_as_they_were,
    cases::every_write_raises_the_version,
    cases::stale_writes_are_refused_whole,
    cases::removals_come_first,
    cases::type_names_are_unique,
    cases::log_takes_only_the_next_event,
    cases::operation_needs_its_event,
    cases::log_keeps_the_order_of_commits,
    cases::concurrent_writers_lose_nothing,
    cases::prune_keeps_the_newest_of_each_kind,
    cases::family_is_whole,
    cases::following_names_each_share_once,
    cases::promised_counts_shares_by_pool,
    queries::shares_filter,
    queries::shares_sort_and_page,
    queries::shares_by_speaker,
    queries::instances_filter,
    queries::operations_filter,
    queries::odd_texts_are_only_texts,
];
