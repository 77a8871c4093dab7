//! The store in SQLite.

mod error;
mod guarded;
mod inspect;
mod migrate;
mod statements;
mod store;
mod sweep;
mod unit_of_work;

use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use sqlx::SqlitePool;
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions};

use super::table::Table;
use crate::error::ConfigError;
use crate::store::StoreError;
use error::failed;
use statements::Statements;

/// How long a statement waits for the writer before it.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);
/// How a transaction begins: with the writer's lock. A read that becomes a write fails if another
/// transaction has written in between.
const BEGIN: &str = "BEGIN IMMEDIATE";

/// Keeps claims and records in a table of an SQLite database, on the application's own pool.
///
/// It has the **atomic mode**: what a handler writes through [`Transaction`](super::Transaction) is
/// committed together with the record of its response.
///
/// It is for one host. Several processes may share the file, but not over a network file system.
/// Replays and refusals only read, and wait for nobody. Claims, renewals and records write: SQLite
/// has one writer at a time, and the others wait for it (the busy timeout, 5 s with
/// [`open`](Self::open)). So begin a [`Transaction`](super::Transaction) late and end it soon.
///
/// Leases and expiry go by the host's wall clock, because SQLite does. If the clock is set forward by
/// more than a lease, a running operation can be taken over. In atomic mode the former holder is then
/// rolled back; otherwise both take effect.
///
/// Needs a pool of at least two connections: one for the handler's transaction, one for everything
/// else. If you link your own SQLite, it must be version 3.42 or later.
///
/// ```
/// use tower_idempotency::{IdempotencyLayer, store::sql::SqliteStore};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let directory = std::env::temp_dir().join(format!("idempotency-doc-{}", std::process::id()));
/// # std::fs::create_dir_all(&directory)?;
/// # let path = directory.join("app.db");
/// // Creates the file if it is missing, in WAL mode; `store.pool()` is for the application, too.
/// let store = SqliteStore::open(&path).await?;
/// store.migrate().await?;
/// let layer = IdempotencyLayer::new(store);
/// # drop(layer); std::fs::remove_dir_all(directory)?;
/// # Ok(())
/// # }
/// ```
///
/// For the person on call, with [`Slot::to_hex`](crate::Slot::to_hex) for the slot:
///
/// ```sql
/// SELECT attempt, datetime(lease_until / 1000, 'unixepoch'), datetime(forget_at / 1000, 'unixepoch'),
///        length(record) FROM idempotency_keys WHERE slot = x'…';
/// DELETE FROM idempotency_keys WHERE slot = x'…';            -- forget: the next request runs
/// SELECT record IS NOT NULL AS done, count(*) FROM idempotency_keys
///   WHERE forget_at > unixepoch() * 1000 GROUP BY 1;
/// ```
#[derive(Clone)]
pub struct SqliteStore {
    pool: SqlitePool,
    table: Table,
    sql: Arc<Statements>,
}

impl SqliteStore {
    /// Opens a database, and creates it if it is missing: WAL mode, full durability, a busy timeout
    /// of 5 s, foreign keys, up to 8 connections. Use [`pool`](Self::pool) for the application's own
    /// data.
    ///
    /// # Errors
    ///
    /// The file cannot be opened or created, or is not an SQLite database.
    pub async fn open(path: impl AsRef<Path>) -> Result<Self, StoreError> {
        let options = SqliteConnectOptions::new()
            .filename(path)
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            .busy_timeout(BUSY_TIMEOUT);
        let began = tokio::time::Instant::now();
        loop {
            let pool = SqlitePoolOptions::new()
                .max_connections(8)
                .test_before_acquire(false)
                .connect_with(options.clone());
            match pool.await {
                Ok(pool) => return Ok(Self::new(pool)),
                // If several switch a new file to WAL at once, SQLite does not wait: it fails.
                Err(sqlx::Error::Database(error))
                    if error.message() == "database is locked" && began.elapsed() < BUSY_TIMEOUT =>
                {
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
                Err(error) => return Err(failed("open", error)),
            }
        }
    }

    /// A store in the table `idempotency_keys` of the application's database. Give the pool WAL
    /// mode, a busy timeout, and two connections or more.
    #[must_use]
    pub fn new(pool: SqlitePool) -> Self {
        Self::with(pool, Table::default())
    }

    fn with(pool: SqlitePool, table: Table) -> Self {
        let sql = Arc::new(Statements::new(&table));
        Self { pool, table, sql }
    }

    /// Another table name: 1 to 48 ASCII letters, digits and underscores.
    ///
    /// # Errors
    ///
    /// The name breaks these rules.
    pub fn table(self, name: &str) -> Result<Self, ConfigError> {
        let table = self.table.named(name)?;
        Ok(Self::with(self.pool, table))
    }

    /// The schema of an attached database. The rules are those of [`table`](Self::table).
    ///
    /// # Errors
    ///
    /// The name breaks these rules.
    pub fn schema(self, name: &str) -> Result<Self, ConfigError> {
        let table = self.table.in_schema(name)?;
        Ok(Self::with(self.pool, table))
    }

    /// The pool, which is the application's own.
    #[must_use]
    pub fn pool(&self) -> &SqlitePool {
        &self.pool
    }
}

impl fmt::Debug for SqliteStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SqliteStore")
            .field("table", &self.table)
            .field("connections", &self.pool.size())
            .finish_non_exhaustive()
    }
}
