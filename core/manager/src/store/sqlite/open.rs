//! Opening the file: who may read it, how safely it is written, and which schema it has.

use std::fs::{OpenOptions, Permissions};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::time::Duration;

use sqlx::migrate::{MigrateError, Migrator};
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous};
use sqlx::{ConnectOptions, SqliteConnection, SqlitePool};

use super::{Result, StoreError, explain};

static MIGRATIONS: Migrator = sqlx::migrate!();

/// Readers beside the one writer. Each is a thread and a cache of its own.
const READERS: u32 = 4;

/// How long a connection waits for another program's lock (a backup that is being taken).
const BUSY: Duration = Duration::from_secs(10);

/// The writer's connection and the readers'.
pub(super) async fn open(path: &Path) -> Result<(SqliteConnection, SqlitePool)> {
    let sentence = |what: String| StoreError::Failed(format!("{}: {what}", path.display()));
    make_private(path).map_err(|error| sentence(format!("its file cannot be opened: {error}")))?;

    let options = SqliteConnectOptions::new()
        .filename(path)
        .busy_timeout(BUSY)
        .foreign_keys(true)
        .synchronous(SqliteSynchronous::Full)
        .statement_cache_capacity(200)
        // Negative: KiB. Enough for the inner pages of every index at a hundred thousand instances.
        .pragma("cache_size", "-8000")
        .row_buffer_size(1024);
    let mut writer = options
        .clone()
        .journal_mode(SqliteJournalMode::Wal)
        .connect()
        .await
        .map_err(|error| sentence(explain(&error)))?;
    MIGRATIONS.run(&mut writer).await.map_err(|error| sentence(explain_migration(&error)))?;

    let readers = SqlitePoolOptions::new()
        .max_connections(READERS)
        .min_connections(1)
        // A connection to a file does not go stale, and to test it costs as much as a query.
        .test_before_acquire(false)
        .idle_timeout(None)
        .max_lifetime(None)
        .connect_with(options.read_only(true))
        .await
        .map_err(|error| sentence(explain(&error)))?;
    Ok((writer, readers))
}

/// Makes the file if need be, readable by its owner only; SQLite gives its companions (`-wal`, `-shm`) the same mode.
fn make_private(path: &Path) -> std::io::Result<()> {
    let file =
        OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path)?;
    file.set_permissions(Permissions::from_mode(0o600))
}

fn explain_migration(error: &MigrateError) -> String {
    match error {
        MigrateError::VersionMissing(version) | MigrateError::VersionTooNew(version, _) => format!(
            "its schema has number {version}, made by a newer Tandem; start that one, or restore a backup made before"
        ),
        MigrateError::VersionMismatch(version) => format!(
            "its schema number {version} is not the one that this Tandem knows; start the one that made it, or restore a \
             backup"
        ),
        MigrateError::Dirty(version) => {
            format!("bringing its schema to number {version} was cut short; restore a backup")
        }
        MigrateError::Execute(error) | MigrateError::ExecuteMigration(error, _) => explain(error),
        other => other.to_string(),
    }
}
