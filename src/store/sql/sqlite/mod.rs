//! The store in SQLite.

mod blame;
mod error;
mod execute;
mod file;
mod guarded;
mod inspect;
mod job;
mod migrate;
mod read;
mod statements;
mod store;
mod sweep;
mod unit_of_work;
mod write;

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use sqlx::SqlitePool;
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions};

use super::lane::{Lanes, Limits};
use super::table::Table;
use crate::error::ConfigError;
use crate::store::StoreError;
use error::failed;
use file::{BUSY_TIMEOUT, File};
use read::Reading;
use statements::Statements;
use write::Writing;

/// The maximum number of calls in one transaction. Apart from the commit, a transaction of this
/// size takes a few milliseconds.
const TOGETHER: usize = 128;
/// The number of connections that read. With two connections, other reads do not have to wait while
/// one large record is being read.
const READERS: usize = 2;

/// A store that saves claims and records in a table in the application's SQLite database.
///
/// The store supports **atomic mode**: a handler's writes through
/// [`Transaction`](super::Transaction) are committed together with the record of its response.
///
/// This store is for one host. Several processes can share the file, but not over a network file
/// system. The database must be a file: an in-memory database is refused.
///
/// **Connections.** Claims, renewals, records and look-ups use the store's own connections: one
/// connection that writes and up to two that read, for each Tokio runtime that uses the store.
/// These connections are opened with the pool's options when they are needed, and closed when the
/// store is dropped or the pool is closed. Handlers' transactions use the pool's connections. A
/// pool of one connection is enough.
///
/// **Writers.** SQLite allows one writer at a time. In each process, all writers that use a file
/// through this crate wait in one queue, first come, first served: handlers' transactions and the
/// store's own calls, from every store and pool on that file. The store combines its own waiting
/// calls into one transaction. At most 1024 calls can wait, and further calls are refused
/// immediately. Other writers, such as the application's own statements and other processes, poll
/// SQLite's lock as usual. If such a writer has the lock, a call waits for up to the busy timeout,
/// which is 5 s with [`open`](Self::open).
///
/// **Readers.** Replays and refusals only read. In WAL mode, they do not wait for writers, so set
/// WAL mode in the pool's options.
///
/// **A handler's transaction blocks every other write** until its response is committed. Begin the
/// transaction late, and do not return a body that arrives slowly, because the layer reads the body
/// before it commits. The layer waits for up to
/// [`response_body_within`](crate::IdempotencyLayerBuilder::response_body_within), which is 30 s by
/// default. After that time, the layer commits and sends the rest of the body as a stream. For
/// SQLite, a limit of a few seconds is a good choice.
///
/// Leases and expiry use the host's wall clock, because SQLite does. If the clock is set forward by
/// more than a lease, a running operation can be taken over. In atomic mode, the former holder's
/// transaction is then rolled back. Without atomic mode, both runs take effect.
///
/// If you link your own SQLite library (feature `sqlite-unbundled`), the library must be version
/// 3.42 or later.
///
/// ```
/// use tower_idempotency::{IdempotencyLayer, store::sql::SqliteStore};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let directory = std::env::temp_dir().join(format!("idempotency-doc-{}", std::process::id()));
/// # std::fs::create_dir_all(&directory)?;
/// # let path = directory.join("app.db");
/// // Creates the file in WAL mode if it is missing. The application can use `store.pool()` too.
/// let store = SqliteStore::open(&path).await?;
/// store.migrate().await?;
/// let layer = IdempotencyLayer::new(store);
/// # drop(layer); std::fs::remove_dir_all(directory)?;
/// # Ok(())
/// # }
/// ```
///
/// SQL statements for the person on call ([`Slot::to_hex`](crate::Slot::to_hex) returns the slot in
/// hexadecimal):
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
    table: Table,
    /// The statements for the application's connections, which may have attached the file under a
    /// schema name.
    sql: Arc<Statements>,
    own: Arc<Own>,
}

/// The parts of the store that are not shared with the application.
struct Own {
    file: Arc<File>,
    /// The table's name in the file. The file is the main database of the store's connections.
    table: Table,
    sql: Arc<Statements>,
    reading: Lanes<Reading>,
    writing: Lanes<Writing>,
}

impl SqliteStore {
    /// Opens a database, and creates the file if it is missing. The pool uses WAL mode, full
    /// durability, a busy timeout of 5 s, foreign keys and up to 8 connections. Use
    /// [`pool`](Self::pool) for the application's own data.
    ///
    /// # Errors
    ///
    /// Returns an error if the file cannot be opened or created, or is not an SQLite database.
    pub async fn open(path: impl AsRef<Path>) -> Result<Self, StoreError> {
        let options = SqliteConnectOptions::new()
            .filename(path)
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            .busy_timeout(BUSY_TIMEOUT);
        let pool = SqlitePoolOptions::new().max_connections(8).test_before_acquire(false);
        let pool = file::open(pool, options).await;
        pool.map(Self::new).map_err(|error| failed("open", error))
    }

    /// Creates a store that uses the table `idempotency_keys` in the application's database. Set
    /// WAL mode and a busy timeout in the pool's options.
    #[must_use]
    pub fn new(pool: SqlitePool) -> Self {
        Self::with(pool, Table::default())
    }

    fn with(pool: SqlitePool, table: Table) -> Self {
        let of_file = Table {
            schema: None,
            name: Arc::clone(&table.name),
        };
        let file = Arc::new(File::new(pool, table.schema.clone()));
        let sql = Arc::new(Statements::new(&of_file));
        let reading = Reading {
            file: Arc::clone(&file),
            sql: Arc::clone(&sql),
        };
        let writing = Writing {
            file: Arc::clone(&file),
            sql: Arc::clone(&sql),
        };
        Self {
            sql: Arc::new(Statements::new(&table)),
            table,
            own: Arc::new(Own {
                file,
                table: of_file,
                sql,
                reading: Lanes::new(
                    reading,
                    Limits {
                        connections: READERS,
                        ..Limits::default()
                    },
                ),
                writing: Lanes::new(
                    writing,
                    Limits {
                        connections: 1,
                        batch: TOGETHER,
                        ..Limits::default()
                    },
                ),
            }),
        }
    }

    /// Sets the table name, which must consist of 1 to 48 ASCII letters, digits and underscores.
    ///
    /// # Errors
    ///
    /// Returns an error if the name breaks these rules.
    pub fn table(self, name: &str) -> Result<Self, ConfigError> {
        let table = self.table.named(name)?;
        Ok(Self::with(self.pool().clone(), table))
    }

    /// Sets the schema name of an attached database. Each connection in the pool must attach this
    /// database when the connection is opened (`after_connect` in the pool's options). The store's
    /// own connections open the attached file directly. The rules for the name are the same as for
    /// [`table`](Self::table).
    ///
    /// In WAL mode, SQLite commits each file separately. If the host crashes in the middle of a
    /// commit, one file may contain the effect while the other does not contain the record. For
    /// atomic mode, keep the table in the same file as the application's data.
    ///
    /// # Errors
    ///
    /// Returns an error if the name breaks these rules.
    pub fn schema(self, name: &str) -> Result<Self, ConfigError> {
        let table = self.table.in_schema(name)?;
        Ok(Self::with(self.pool().clone(), table))
    }

    /// Returns the pool, which belongs to the application.
    #[must_use]
    pub fn pool(&self) -> &SqlitePool {
        self.own.file.pool()
    }
}

impl fmt::Debug for SqliteStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SqliteStore")
            .field("table", &self.table)
            .field("connections", &self.pool().size())
            .finish_non_exhaustive()
    }
}
