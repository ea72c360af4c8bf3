//! The writer: takes what waits, writes each batch in a savepoint, flushes once, answers.

use std::sync::LazyLock;

use sqlx::query::Query;
use sqlx::sqlite::SqliteArguments;
use sqlx::{Connection, Sqlite, SqliteConnection};
use tokio::sync::{mpsc, oneshot};

use super::super::keys::{FORMAT, Key, RowKeys, Side, Table, document, eventless};
use super::super::{Batch, Result, StoreError};
use super::{failed, sql};
use crate::clock::Timestamp;
use crate::model::Operation;

/// Jobs that go to the disk together at most.
const GROUP: usize = 64;

/// Something to write.
pub(super) enum Job {
    /// A batch.
    Commit(Prepared, oneshot::Sender<Result<()>>),
    /// A step of pruning: syncs that ended before, at most so many.
    Prune(Timestamp, u32, oneshot::Sender<Result<u64>>),
}

/// A batch, encoded by its caller so that the writer need not.
pub(super) struct Prepared {
    gone: Vec<(Table, String, i64)>,
    put: Vec<RowKeys>,
    events: Vec<EventKeys>,
    operations: Vec<OperationKeys>,
}

struct EventKeys {
    op: String,
    seq: i64,
    at: i64,
    doc: String,
}

struct OperationKeys {
    id: String,
    seq: i64,
    share_id: String,
    project_id: String,
    instance: Option<String>,
    kind: &'static str,
    status: &'static str,
    finished: bool,
    created_at: i64,
    updated_at: i64,
    doc: String,
}

impl Prepared {
    /// Encodes a batch.
    pub(super) fn of(batch: &Batch) -> Result<Self> {
        let seq = |seq: u64| i64::try_from(seq).unwrap_or(i64::MAX);
        let operation = |op: &Operation| {
            Ok(OperationKeys {
                id: op.id.to_string(),
                seq: seq(op.seq),
                share_id: op.share_id.to_string(),
                project_id: op.project_id.clone(),
                instance: op.intent.instance().map(|id| id.to_string()),
                kind: op.intent.kind(),
                status: op.status.as_str(),
                finished: op.status.is_finished(),
                created_at: op.created_at.0,
                updated_at: op.updated_at.0,
                doc: document(op)?,
            })
        };
        for op in &batch.operations {
            if !batch.events.iter().any(|e| e.op == op.id) {
                return Err(eventless(op.id));
            }
        }
        Ok(Self {
            gone: batch.gone.iter().map(super::super::Gone::key).collect(),
            put: batch.put.iter().map(RowKeys::of).collect::<Result<_>>()?,
            events: batch
                .events
                .iter()
                .map(|e| {
                    Ok(EventKeys { op: e.op.to_string(), seq: seq(e.seq), at: e.at.0, doc: document(e)? })
                })
                .collect::<Result<_>>()?,
            operations: batch.operations.iter().map(operation).collect::<Result<_>>()?,
        })
    }
}

/// Writes until the last sender is gone.
pub(super) async fn run(mut connection: SqliteConnection, mut jobs: mpsc::Receiver<Job>) {
    let mut group = Vec::with_capacity(GROUP);
    while jobs.recv_many(&mut group, GROUP).await > 0 {
        write_group(&mut connection, std::mem::take(&mut group)).await;
    }
    if let Err(error) = connection.close().await {
        tracing::warn!(%error, "the database was not closed well; its log is replayed at the next start");
    }
}

/// Why a job was not written.
enum Stop {
    /// It asked for what cannot be; the others of its group can.
    Refused(StoreError),
    /// The database fails.
    Broken(StoreError),
}

impl From<sqlx::Error> for Stop {
    fn from(error: sqlx::Error) -> Self {
        Self::Broken(failed(error))
    }
}

type Done<T> = std::result::Result<T, Stop>;

/// What a job came to, before the flush.
enum Outcome {
    Commit(oneshot::Sender<Result<()>>, Result<()>),
    Prune(oneshot::Sender<Result<u64>>, Result<u64>),
}

impl Outcome {
    /// Answers; with the flush's error where the job itself went well.
    fn answer(self, flush: &Result<()>) {
        // A caller that went away hears nothing; what it asked for stands.
        match self {
            Self::Commit(reply, outcome) => drop(reply.send(outcome.and_then(|()| flush.clone()))),
            Self::Prune(reply, outcome) => drop(reply.send(outcome.and_then(|n| flush.clone().map(|()| n)))),
        }
    }
}

async fn write_group(connection: &mut SqliteConnection, group: Vec<Job>) {
    let mut outcomes = Vec::with_capacity(group.len());
    let mut flush = plain(connection, "BEGIN IMMEDIATE").await;
    for job in group {
        outcomes.push(match job {
            Job::Commit(batch, reply) => {
                let outcome = guarded(connection, &mut flush, &Work::Batch(batch)).await.map(drop);
                Outcome::Commit(reply, outcome)
            }
            Job::Prune(before, limit, reply) => {
                Outcome::Prune(reply, guarded(connection, &mut flush, &Work::Prune(before, limit)).await)
            }
        });
    }
    if flush.is_ok() {
        flush = plain(connection, "COMMIT").await;
    }
    if flush.is_err() {
        // SQLite may have rolled back by itself; then this is refused, and nothing is lost by that.
        let _ = plain(connection, "ROLLBACK").await;
    }
    for outcome in outcomes {
        outcome.answer(&flush);
    }
}

enum Work {
    Batch(Prepared),
    Prune(Timestamp, u32),
}

/// Runs one job in a savepoint. A refusal undoes the job; a failure of the database spoils the whole group: nothing of
/// it is written, and each caller is told.
async fn guarded(connection: &mut SqliteConnection, flush: &mut Result<()>, work: &Work) -> Result<u64> {
    flush.clone()?;
    let mut broken = |error: StoreError| {
        *flush = Err(error.clone());
        error
    };
    plain(connection, "SAVEPOINT job").await.map_err(&mut broken)?;
    let done = match work {
        Work::Batch(batch) => write_batch(connection, batch).await.map(|()| 0),
        Work::Prune(before, limit) => prune(connection, *before, *limit).await,
    };
    let refused = match done {
        Ok(count) => {
            plain(connection, "RELEASE job").await.map_err(broken)?;
            return Ok(count);
        }
        Err(Stop::Broken(error)) => return Err(broken(error)),
        Err(Stop::Refused(error)) => error,
    };
    plain(connection, "ROLLBACK TO job").await.map_err(&mut broken)?;
    plain(connection, "RELEASE job").await.map_err(&mut broken)?;
    Err(refused)
}

async fn plain(connection: &mut SqliteConnection, text: &'static str) -> Result<()> {
    sqlx::query(text).execute(connection).await.map(drop).map_err(failed)
}

async fn execute(connection: &mut SqliteConnection, query: Query<'_, Sqlite, SqliteArguments>) -> Done<u64> {
    Ok(query.execute(connection).await?.rows_affected())
}

/// The order is that of the memory store: removals, rows, events, operations; the first refusal is the answer.
async fn write_batch(connection: &mut SqliteConnection, batch: &Prepared) -> Done<()> {
    for (table, id, version) in &batch.gone {
        let query = sqlx::query(statements(*table).delete.as_str()).bind(id).bind(version);
        if execute(connection, query).await? == 0 {
            return Err(Stop::Refused(StoreError::Conflict(table.describe(id))));
        }
    }
    for row in &batch.put {
        put(connection, row).await?;
    }
    for event in &batch.events {
        append(connection, event).await?;
    }
    for op in &batch.operations {
        if newest_event(connection, &op.id).await? != op.seq {
            return Err(Stop::Refused(eventless(&op.id)));
        }
        write_operation(connection, op).await?;
    }
    Ok(())
}

async fn put(connection: &mut SqliteConnection, row: &RowKeys) -> Done<()> {
    let texts = statements(row.table);
    let text = if row.version == 0 { &texts.insert } else { &texts.update };
    let mut query = sqlx::query(text.as_str()).bind(FORMAT).bind(&row.doc);
    for key in &row.columns {
        query = match key {
            Key::Text(text) => query.bind(text.as_deref()),
            Key::Int(number) => query.bind(number),
        };
    }
    query = query.bind(&row.id).bind(row.version);
    if execute(connection, query).await? == 0 {
        return Err(Stop::Refused(refusal(connection, row).await?));
    }
    put_side(connection, row).await
}

/// Why nothing was written: another version stands there, or the name is taken.
async fn refusal(connection: &mut SqliteConnection, row: &RowKeys) -> Done<StoreError> {
    let stands: Option<i64> = sqlx::query_scalar(statements(row.table).version.as_str())
        .bind(&row.id)
        .fetch_optional(connection)
        .await?;
    Ok(match &row.unique {
        Some(name) if stands.unwrap_or(0) == row.version => StoreError::Exists(name.clone()),
        _ => StoreError::Conflict(row.table.describe(&row.id)),
    })
}

async fn put_side(connection: &mut SqliteConnection, row: &RowKeys) -> Done<()> {
    match &row.side {
        Side::None => {}
        Side::Metadata(pairs) => {
            if row.version > 0 {
                execute(connection, sqlx::query(sql::DROP_METADATA).bind(&row.id)).await?;
            }
            for (key, value) in pairs {
                execute(connection, sqlx::query(sql::ADD_METADATA).bind(&row.id).bind(key).bind(value))
                    .await?;
            }
        }
        Side::Exports(share, exports) => {
            if row.version > 0 {
                execute(connection, sqlx::query(sql::DROP_EXPORTS).bind(&row.id)).await?;
            }
            for (id, path) in exports {
                let query = sqlx::query(sql::ADD_EXPORT).bind(&row.id).bind(share).bind(id).bind(path);
                execute(connection, query).await?;
            }
        }
    }
    Ok(())
}

async fn newest_event(connection: &mut SqliteConnection, op: &str) -> Done<i64> {
    sqlx::query_scalar(sql::NEWEST_EVENT).bind(op).fetch_one(connection).await.map_err(Stop::from)
}

async fn append(connection: &mut SqliteConnection, event: &EventKeys) -> Done<()> {
    let query =
        sqlx::query(sql::APPEND).bind(&event.op).bind(event.seq).bind(event.at).bind(FORMAT).bind(&event.doc);
    if execute(connection, query).await? == 0 {
        return Err(Stop::Refused(StoreError::Conflict(format!("operation {}", event.op))));
    }
    Ok(())
}

async fn write_operation(connection: &mut SqliteConnection, op: &OperationKeys) -> Done<()> {
    let query = sqlx::query(sql::WRITE_OPERATION)
        .bind(&op.id)
        .bind(op.seq)
        .bind(FORMAT)
        .bind(&op.share_id)
        .bind(&op.project_id)
        .bind(op.instance.as_deref())
        .bind(op.kind)
        .bind(op.status)
        .bind(op.finished)
        .bind(op.created_at)
        .bind(op.updated_at)
        .bind(&op.doc);
    execute(connection, query).await.map(drop)
}

async fn prune(connection: &mut SqliteConnection, before: Timestamp, limit: u32) -> Done<u64> {
    let ops: Vec<String> = sqlx::query_scalar(sql::PRUNABLE)
        .bind(before.0)
        .bind(i64::from(limit))
        .fetch_all(&mut *connection)
        .await?;
    for op in &ops {
        execute(connection, sqlx::query(sql::DROP_LOG).bind(op)).await?;
        execute(connection, sqlx::query(sql::DROP_OPERATION).bind(op)).await?;
    }
    Ok(ops.len() as u64)
}

/// The statements of one table. Made once, from constants only.
struct Statements {
    insert: String,
    update: String,
    delete: String,
    version: String,
}

/// Every statement binds format, doc, the columns, id, version in this order, so that a put is one piece of code.
fn statements(table: Table) -> &'static Statements {
    static ALL: LazyLock<[Statements; 6]> = LazyLock::new(|| {
        [Table::Shares, Table::Instances, Table::Rules, Table::Types, Table::Quotas, Table::Usages].map(|t| {
            let (name, columns) = (t.name(), t.columns());
            let list: String = columns.iter().map(|c| format!("{c}, ")).collect();
            let marks = "?, ".repeat(columns.len());
            let set: String = columns.iter().map(|c| format!(", {c} = ?")).collect();
            Statements {
                insert: format!(
                    "INSERT INTO {name} (format, doc, {list}id, version) VALUES (?, ?, {marks}?, ? + 1) \
                     ON CONFLICT DO NOTHING"
                ),
                update: format!(
                    "UPDATE OR IGNORE {name} SET version = version + 1, format = ?, doc = ?{set} \
                     WHERE id = ? AND version = ?"
                ),
                delete: format!("DELETE FROM {name} WHERE id = ? AND version = ?"),
                version: format!("SELECT version FROM {name} WHERE id = ?"),
            }
        })
    });
    &ALL[table as usize]
}
