//! The store in one SQLite file: write-ahead log, every commit on the disk before it returns.
//!
//! One connection writes (`write`), a few read (`read`). The writer is a task with a queue: whatever waits there
//! when it comes round goes to the disk together, each batch in a savepoint of its own, so that many small commits
//! cost one flush. A caller that goes away takes nothing back: what is in the queue is written.

mod open;
mod read;
mod sql;
mod write;

#[cfg(test)]
mod plan_tests;

use std::path::Path;

use async_trait::async_trait;
use sqlx::SqlitePool;
use tandem_contract::{InstanceId, OpId, ResourceId};
use tokio::sync::{mpsc, oneshot};
use uuid::Uuid;

use self::write::{Job, Prepared};
use super::{Batch, Family, InstanceQuery, OperationQuery, Page, Result, ShareQuery, Store, StoreError};
use crate::clock::Timestamp;
use crate::model::{AccessRule, Instance, Operation, Quota, Share, ShareType, Usage};
use crate::oplog::Logged;

/// Jobs that may wait for the writer; more callers than that wait themselves.
const QUEUE: usize = 1024;

/// Operations that one step of [`Store::prune`] removes, so that it holds up nobody else's commit for long.
const PRUNE_STEP: u32 = 500;

/// The store in one SQLite file.
#[derive(Debug)]
pub struct SqliteStore {
    readers: SqlitePool,
    jobs: mpsc::Sender<Job>,
}

impl SqliteStore {
    /// Opens the file, or makes it; brings an older schema up to date. The file is its owner's only (mode 0600).
    ///
    /// # Errors
    /// A sentence: the file cannot be opened, is no database, is damaged, or was written by a newer Tandem.
    pub async fn open(path: &Path) -> Result<Self> {
        let (writer, readers) = open::open(path).await?;
        let (jobs, queue) = mpsc::channel(QUEUE);
        tokio::spawn(write::run(writer, queue));
        Ok(Self { readers, jobs })
    }

    async fn ask<T>(&self, job: impl FnOnce(oneshot::Sender<Result<T>>) -> Job) -> Result<T> {
        let stopped = || StoreError::Failed("its writer has stopped; start the server again".into());
        let (reply, answer) = oneshot::channel();
        self.jobs.send(job(reply)).await.map_err(|_| stopped())?;
        answer.await.map_err(|_| stopped())?
    }
}

/// A failing database, as a sentence.
fn failed(error: sqlx::Error) -> StoreError {
    StoreError::Failed(explain(&error))
}

/// What happened and what to do; the primary result codes are SQLite's.
fn explain(error: &sqlx::Error) -> String {
    let code = error
        .as_database_error()
        .and_then(|e| e.code())
        .and_then(|code| code.parse::<u32>().ok())
        .map_or(0, |code| code & 0xff);
    match code {
        5 | 6 => "its file is locked by another program; stop that program".into(),
        8 => "its file cannot be written; look at its permissions".into(),
        10 => format!("its file cannot be read or written: {error}; look at the disk"),
        11 => format!("its file is damaged: {error}; restore a backup"),
        13 => "its disk is full; make room".into(),
        14 => format!("its file cannot be opened: {error}; look at the folder's permissions"),
        26 => "its file is no database of Tandem's, or is damaged; restore a backup or move the file away"
            .into(),
        _ => error.to_string(),
    }
}

#[async_trait]
impl Store for SqliteStore {
    async fn commit(&self, batch: Batch) -> Result<()> {
        if batch.is_empty() {
            return Ok(());
        }
        let prepared = Prepared::of(&batch)?;
        self.ask(|reply| Job::Commit(prepared, reply)).await
    }

    async fn family(&self, share: ResourceId) -> Result<Family> {
        read::family(&self.readers, share).await
    }

    async fn share(&self, id: ResourceId) -> Result<Option<Share>> {
        read::one(&self.readers, sql::SHARE, id.to_string()).await
    }

    async fn shares(&self, query: &ShareQuery) -> Result<Page<Share>> {
        let count = query.count.then(|| sql::count_shares(query));
        read::page(&self.readers, sql::shares(query), count).await
    }

    async fn instance(&self, id: InstanceId) -> Result<Option<Instance>> {
        read::one(&self.readers, sql::INSTANCE, id.to_string()).await
    }

    async fn instances(&self, query: &InstanceQuery) -> Result<Page<Instance>> {
        let count = query.count.then(|| sql::count_instances(query));
        read::page(&self.readers, sql::instances(query), count).await
    }

    async fn rule(&self, id: Uuid) -> Result<Option<AccessRule>> {
        read::one(&self.readers, sql::RULE, id.to_string()).await
    }

    async fn rules(&self, share: ResourceId) -> Result<Vec<AccessRule>> {
        read::many(&self.readers, sqlx::query(sql::RULES).bind(share.to_string())).await
    }

    async fn share_types(&self) -> Result<Vec<ShareType>> {
        read::many(&self.readers, sqlx::query(sql::TYPES)).await
    }

    async fn share_type(&self, id: Uuid) -> Result<Option<ShareType>> {
        read::one(&self.readers, sql::TYPE, id.to_string()).await
    }

    async fn quota(&self, project: &str) -> Result<Option<Quota>> {
        read::one(&self.readers, sql::QUOTA, project.to_owned()).await
    }

    async fn usage(&self, project: &str) -> Result<Usage> {
        let found = read::one(&self.readers, sql::USAGE, project.to_owned()).await?;
        Ok(found.unwrap_or_else(|| Usage { project_id: project.to_owned(), ..Usage::default() }))
    }

    async fn operation(&self, id: OpId) -> Result<Option<Operation>> {
        read::one(&self.readers, sql::OPERATION, id.to_string()).await
    }

    async fn operations(&self, query: &OperationQuery) -> Result<Vec<Operation>> {
        read::many(&self.readers, sql::operations(query).build()).await
    }

    async fn following(&self) -> Result<Vec<ResourceId>> {
        let ids: Vec<String> =
            sqlx::query_scalar(sql::FOLLOWING).fetch_all(&self.readers).await.map_err(failed)?;
        Ok(ids.iter().filter_map(|id| id.parse().ok()).collect())
    }

    async fn unfinished(&self) -> Result<Vec<Operation>> {
        read::many(&self.readers, sqlx::query(sql::UNFINISHED)).await
    }

    async fn log(&self, op: OpId) -> Result<Vec<Logged>> {
        read::many(&self.readers, sqlx::query(sql::LOG).bind(op.to_string())).await
    }

    async fn log_from(&self, position: i64, limit: u32) -> Result<Vec<(i64, Logged)>> {
        let query = sqlx::query(sql::LOG_FROM).bind(position).bind(i64::from(limit));
        read::positioned(&self.readers, query).await
    }

    async fn prune(&self, before: Timestamp) -> Result<u64> {
        let mut pruned = 0;
        loop {
            let step = self.ask(|reply| Job::Prune(before, PRUNE_STEP, reply)).await?;
            pruned += step;
            if step < u64::from(PRUNE_STEP) {
                return Ok(pruned);
            }
        }
    }

    async fn promised(&self) -> Result<Vec<(String, u64)>> {
        read::promised(&self.readers).await
    }
}
