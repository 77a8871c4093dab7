//! The store in SQLite.

use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use sqlx::error::DatabaseError;
use sqlx::sqlite::{SqliteArguments, SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions};
use sqlx::{AssertSqlSafe, Row, Sqlite, SqliteConnection, SqlitePool};

use super::error::store_error;
use super::table::Table;
use super::transaction::Unit;
use super::{BUSY, ClaimId, ROUNDS, Seen, SqlStore, Sweeper, attempts, census, entry, held, millis, signed, trial};
use crate::error::ConfigError;
use crate::store::{Begin, Begun, Census, Entry, Held, Inspect, Record, Slot, Store, Token, UnitOfWork};
use crate::store::{StoreError, StoreErrorKind};

/// The SQL that [`SqliteStore::migrate`] runs.
const LAYOUT: &str = include_str!("sqlite.sql");
/// How long a statement waits for the writer before it.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// Keeps claims and records in a table of an SQLite database, in the application's own pool; and
/// with it the **atomic mode**: what a handler writes through [`Transaction`](super::Transaction)
/// is committed together with the record of its response.
///
/// For one host: the file may be shared by several processes, not over a network file system.
/// Replays and refusals only read, and wait for nobody. Claims, renewals and records write: SQLite
/// has one writer at a time, and the others wait for it (the busy timeout, 5 s with
/// [`open`](Self::open)). So begin a [`Transaction`](super::Transaction) late and end it soon.
///
/// Leases and expiry go by the host's wall clock, since that is SQLite's. A clock that is set
/// forward by more than a lease lets a running operation be taken over: in atomic mode the
/// overtaken one is rolled back, else both take effect.
///
/// SQLite of version 3.42 or later is needed where you link your own. Needs a pool of two
/// connections or more: one for the handler's transaction, one for everything else.
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
/// For the person on call, with [`Slot::to_hex`] for the slot:
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

struct Statements {
    read: Arc<str>,
    claim: Arc<str>,
    renew: Arc<str>,
    complete: Arc<str>,
    release: Arc<str>,
    is_done: Arc<str>,
    look_up: Arc<str>,
    forget: Arc<str>,
    count: Arc<str>,
    sweep: Arc<str>,
    put_off: Arc<str>,
}

/// The time, the same throughout a statement.
const NOW: &str = "CAST(round(unixepoch('subsec') * 1000) AS INTEGER)";

impl Statements {
    fn new(table: &Table) -> Self {
        let sql = |template: &str| table.sql(&template.replace("{now}", NOW));
        Self {
            read: sql(
                "SELECT fingerprint, token, attempt, lease_until - {now} AS lease_left, \
                 record IS NOT NULL AS done, CASE WHEN fingerprint = ?2 THEN record END AS record \
                 FROM idempotency_keys WHERE slot = ?1 AND forget_at > {now}",
            ),
            claim: sql(
                "INSERT INTO idempotency_keys AS held (slot, fingerprint, token, attempt, lease_until, forget_at, sweep_at) \
                 VALUES (?1, ?2, ?3, 1, {now} + ?4, {now} + ?4 + ?5, {now} + ?4 + ?5) \
                 ON CONFLICT (slot) DO UPDATE SET \
                 attempt = CASE WHEN held.forget_at <= {now} THEN 1 ELSE min(held.attempt, 2147483646) + 1 END, \
                 fingerprint = excluded.fingerprint, token = excluded.token, record = NULL, \
                 lease_until = excluded.lease_until, forget_at = excluded.forget_at, sweep_at = excluded.sweep_at \
                 WHERE held.forget_at <= {now} OR (held.record IS NULL AND held.fingerprint = excluded.fingerprint \
                 AND held.token <> excluded.token AND held.lease_until <= {now} AND NOT ?6) \
                 RETURNING attempt",
            ),
            renew: sql("UPDATE idempotency_keys SET \
                 lease_until = {now} + ?3, forget_at = {now} + ?3 + (forget_at - lease_until) \
                 WHERE slot = ?1 AND token = ?2 AND record IS NULL AND forget_at > {now}"),
            complete: sql("UPDATE idempotency_keys SET record = ?3, forget_at = {now} + ?4 \
                 WHERE slot = ?1 AND token = ?2 AND record IS NULL AND forget_at > {now}"),
            release: sql("DELETE FROM idempotency_keys \
                 WHERE slot = ?1 AND token = ?2 AND record IS NULL AND forget_at > {now}"),
            is_done: sql("SELECT token = ?2 AND record IS NOT NULL FROM idempotency_keys WHERE slot = ?1"),
            look_up: sql("SELECT fingerprint, attempt, length(record), lease_until - {now}, \
                 forget_at - {now} FROM idempotency_keys WHERE slot = ?1 AND forget_at > {now}"),
            forget: sql("DELETE FROM idempotency_keys WHERE slot = ?1 RETURNING forget_at > {now}"),
            count: sql(
                "SELECT count(*) FILTER (WHERE record IS NULL AND lease_until > {now}), \
                 count(*) FILTER (WHERE record IS NULL AND lease_until <= {now}), \
                 count(record) FROM idempotency_keys WHERE forget_at > {now}",
            ),
            sweep: sql(
                "DELETE FROM idempotency_keys WHERE slot IN (SELECT slot FROM idempotency_keys \
                 WHERE sweep_at <= {now} AND forget_at <= {now} ORDER BY sweep_at LIMIT ?1)",
            ),
            put_off: sql(
                "UPDATE idempotency_keys SET sweep_at = forget_at WHERE slot IN (SELECT slot FROM idempotency_keys \
                 WHERE sweep_at <= {now} AND forget_at > {now} ORDER BY sweep_at LIMIT ?1)",
            ),
        }
    }
}

impl SqliteStore {
    /// Opens a database, which is created if it is missing: WAL mode, full durability, a busy
    /// timeout of 5 s, foreign keys, up to 8 connections. [`pool`](Self::pool) is for the
    /// application's own data.
    ///
    /// # Errors
    ///
    /// The file cannot be opened or made, or is no SQLite database.
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
                // When several switch a new file to WAL at once, SQLite does not wait, but says so.
                Err(sqlx::Error::Database(error))
                    if error.message() == "database is locked" && began.elapsed() < BUSY_TIMEOUT =>
                {
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
                Err(error) => return Err(Self::error("open", error)),
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
    /// A name that is not such.
    pub fn table(self, name: &str) -> Result<Self, ConfigError> {
        let table = self.table.named(name)?;
        Ok(Self::with(self.pool, table))
    }

    /// The schema of an attached database. The rules are those of [`table`](Self::table).
    ///
    /// # Errors
    ///
    /// A name that is not such.
    pub fn schema(self, name: &str) -> Result<Self, ConfigError> {
        let table = self.table.in_schema(name)?;
        Ok(Self::with(self.pool, table))
    }

    /// The pool, which is the application's own.
    #[must_use]
    pub fn pool(&self) -> &SqlitePool {
        &self.pool
    }

    /// Makes the table if it is missing, and checks its layout. Safe to call from many processes at
    /// once. The same SQL is in `src/store/sql/sqlite.sql`.
    ///
    /// # Errors
    ///
    /// The database cannot be opened or written, or a table of that name has another layout.
    pub async fn migrate(&self) -> Result<(), StoreError> {
        let migrate = async {
            // The writer's lock from the start, so that those who migrate at once take turns.
            let mut transaction = self.pool.begin_with("BEGIN IMMEDIATE").await?;
            let layout = self.table.sql(LAYOUT);
            sqlx::raw_sql(AssertSqlSafe(layout)).execute(&mut *transaction).await?;
            transaction.commit().await
        };
        migrate.await.map_err(|error| Self::error("migrate", error))?;
        // Finds a table of that name that is another's.
        self.try_out().await.map_err(|error| Self::error("migrate", error))
    }

    /// Goes through a claim's life, and undoes it.
    async fn try_out(&self) -> Result<(), sqlx::Error> {
        let begin = trial();
        let claim = ClaimId::of(&begin);
        let mut transaction = self.pool.begin_with(Self::BEGIN).await?;
        self.claim(&begin, &mut *transaction).await?;
        self.complete_in(&mut transaction, &claim, &[], begin.ttl).await?;
        for sql in [&self.sql.look_up, &self.sql.forget] {
            sqlx::query(AssertSqlSafe(Arc::clone(sql)))
                .bind(begin.slot.as_bytes().as_slice())
                .execute(&mut *transaction)
                .await?;
        }
        transaction.rollback().await
    }

    /// Removes at most `batch` expired rows and says how many. For those who sweep on their own
    /// schedule; else see [`sweep_every`](Self::sweep_every).
    ///
    /// # Errors
    ///
    /// The database failed.
    pub async fn sweep(&self, batch: u32) -> Result<u64, StoreError> {
        self.sweep_some(batch).await
    }

    /// Starts removing expired rows in the background, in batches of 500, one round each `every`.
    /// Must be called on a Tokio runtime.
    pub fn sweep_every(&self, every: Duration) -> Sweeper {
        Sweeper::start(self.clone(), every)
    }

    async fn read(&self, begin: &Begin) -> Result<Option<Seen>, sqlx::Error> {
        let row = sqlx::query(AssertSqlSafe(Arc::clone(&self.sql.read)))
            .bind(begin.slot.as_bytes().as_slice())
            .bind(begin.fingerprint.as_bytes().as_slice())
            .fetch_optional(&self.pool)
            .await?;
        row.map(|row| {
            Ok(Seen {
                fingerprint: row.try_get("fingerprint")?,
                token: row.try_get("token")?,
                attempt: row.try_get("attempt")?,
                lease_left: row.try_get("lease_left")?,
                done: row.try_get("done")?,
                record: row.try_get("record")?,
            })
        })
        .transpose()
    }

    async fn claim(
        &self,
        begin: &Begin,
        connection: impl sqlx::SqliteExecutor<'_>,
    ) -> Result<Option<i32>, sqlx::Error> {
        // All rows, although there is one at most: `fetch_optional` ends at the first, and would not
        // tell that the commit after it failed.
        let rows: Vec<i32> = sqlx::query_scalar(AssertSqlSafe(Arc::clone(&self.sql.claim)))
            .bind(begin.slot.as_bytes().as_slice())
            .bind(begin.fingerprint.as_bytes().as_slice())
            .bind(signed(begin.token))
            .bind(millis(begin.lease))
            .bind(millis(begin.ttl))
            .bind(begin.on_lapse == crate::store::OnLapse::Refuse)
            .fetch_all(connection)
            .await?;
        Ok(rows.first().copied())
    }

    /// Runs a statement that changes the claim of that token, and says whether it did.
    async fn change<'q>(
        &self,
        operation: &'static str,
        query: sqlx::query::Query<'q, Sqlite, SqliteArguments>,
    ) -> Result<Held, StoreError> {
        let result = query
            .execute(&self.pool)
            .await
            .map_err(|error| Self::error(operation, error))?;
        Ok(held(result.rows_affected()))
    }

    fn completion<'q>(
        &self,
        slot: &'q Slot,
        token: Token,
        record: &'q [u8],
        ttl: Duration,
    ) -> sqlx::query::Query<'q, Sqlite, SqliteArguments> {
        sqlx::query(AssertSqlSafe(Arc::clone(&self.sql.complete)))
            .bind(slot.as_bytes().as_slice())
            .bind(signed(token))
            .bind(record)
            .bind(millis(ttl))
    }
}

impl Store for SqliteStore {
    /// Reads first: replays and refusals need no lock. What is free is decided by the statement
    /// that claims it.
    async fn begin(&self, begin: &Begin) -> Result<Begun, StoreError> {
        let failed = |error| Self::error("begin", error);
        for _ in 0..ROUNDS {
            if let Some(seen) = self.read(begin).await.map_err(failed)?
                && let Some(begun) = seen.decide(begin)?
            {
                return Ok(begun);
            }
            if let Some(attempt) = self.claim(begin, &self.pool).await.map_err(failed)? {
                return Ok(Begun::Started {
                    attempt: attempts(attempt),
                });
            }
        }
        Ok(BUSY)
    }

    async fn renew(&self, slot: &Slot, token: Token, lease: Duration) -> Result<Held, StoreError> {
        let query = sqlx::query(AssertSqlSafe(Arc::clone(&self.sql.renew)))
            .bind(slot.as_bytes().as_slice())
            .bind(signed(token))
            .bind(millis(lease));
        self.change("renew", query).await
    }

    async fn complete(&self, slot: &Slot, token: Token, record: &Record, ttl: Duration) -> Result<Held, StoreError> {
        let record = record.to_bytes();
        self.change("complete", self.completion(slot, token, &record, ttl))
            .await
    }

    async fn release(&self, slot: &Slot, token: Token) -> Result<Held, StoreError> {
        let query = sqlx::query(AssertSqlSafe(Arc::clone(&self.sql.release)))
            .bind(slot.as_bytes().as_slice())
            .bind(signed(token));
        self.change("release", query).await
    }

    fn unit_of_work(&self, begin: &Begin) -> Option<Box<dyn UnitOfWork>> {
        Some(Box::new(Unit::new(self.clone(), ClaimId::of(begin))))
    }
}

impl Inspect for SqliteStore {
    async fn look_up(&self, slot: &Slot) -> Result<Option<Entry>, StoreError> {
        let row = sqlx::query_as(AssertSqlSafe(Arc::clone(&self.sql.look_up)))
            .bind(slot.as_bytes().as_slice())
            .fetch_optional(&self.pool)
            .await
            .map_err(|error| Self::error("look up", error))?;
        row.map(entry).transpose()
    }

    async fn forget(&self, slot: &Slot) -> Result<bool, StoreError> {
        // All rows, as in `claim`.
        let known: Vec<bool> = sqlx::query_scalar(AssertSqlSafe(Arc::clone(&self.sql.forget)))
            .bind(slot.as_bytes().as_slice())
            .fetch_all(&self.pool)
            .await
            .map_err(|error| Self::error("forget", error))?;
        Ok(known == [true])
    }

    async fn count(&self) -> Result<Census, StoreError> {
        let counted = sqlx::query_as(AssertSqlSafe(Arc::clone(&self.sql.count)))
            .fetch_one(&self.pool)
            .await;
        counted.map(census).map_err(|error| Self::error("count", error))
    }
}

impl SqlStore for SqliteStore {
    type Db = Sqlite;

    const NAME: &'static str = "sqlite";
    // The writer's lock at once: a read that becomes a write fails if another has written.
    const BEGIN: &'static str = "BEGIN IMMEDIATE";

    fn pool(&self) -> &SqlitePool {
        &self.pool
    }

    async fn complete_in(
        &self,
        connection: &mut SqliteConnection,
        claim: &ClaimId,
        record: &[u8],
        ttl: Duration,
    ) -> Result<bool, sqlx::Error> {
        let query = self.completion(&claim.slot, claim.token, record, ttl);
        Ok(query.execute(connection).await?.rows_affected() == 1)
    }

    async fn is_done(&self, claim: &ClaimId) -> Result<bool, StoreError> {
        let ask = async {
            // The writer's lock waits for a transaction that may still commit.
            let mut transaction = self.pool.begin_with(AssertSqlSafe(Self::BEGIN)).await?;
            let done: Option<bool> = sqlx::query_scalar(AssertSqlSafe(Arc::clone(&self.sql.is_done)))
                .bind(claim.slot.as_bytes().as_slice())
                .bind(signed(claim.token))
                .fetch_optional(&mut *transaction)
                .await?;
            transaction.rollback().await?;
            Ok(done == Some(true))
        };
        ask.await.map_err(|error| Self::error("read back", error))
    }

    async fn sweep_some(&self, batch: u32) -> Result<u64, StoreError> {
        let run = async |sql: &Arc<str>| {
            let query = sqlx::query(AssertSqlSafe(Arc::clone(sql))).bind(i64::from(batch));
            let result = query.execute(&self.pool).await;
            result.map_err(|error| Self::error("sweep", error))
        };
        run(&self.sql.put_off).await?;
        Ok(run(&self.sql.sweep).await?.rows_affected())
    }

    fn error(operation: &'static str, error: sqlx::Error) -> StoreError {
        store_error(Self::NAME, operation, error, advice)
    }

    fn leaves_in_doubt(error: &sqlx::Error) -> bool {
        // An error of SQLite itself says that it is not committed; of the thread between, nothing.
        !matches!(error, sqlx::Error::Database(_))
    }
}

fn advice(error: &dyn DatabaseError) -> Option<(StoreErrorKind, &'static str)> {
    use StoreErrorKind::{Corrupt, Full, Unavailable};
    // The primary code is the low byte of the extended one.
    let code: i32 = error.code()?.parse().ok()?;
    Some(match code & 0xff {
        1 if error.message().contains("no such table") => (
            Unavailable,
            "the table is missing; run `SqliteStore::migrate` or the SQL file, and check the table's name",
        ),
        1 if ["column", "ON CONFLICT"]
            .iter()
            .any(|word| error.message().contains(word)) =>
        {
            (
                Unavailable,
                "the table has another layout than this release knows; compare it with the SQL file of the store",
            )
        }
        // A column that must be given and is not known.
        19 if code == 1299 => (
            Unavailable,
            "the table has another layout than this release knows; compare it with the SQL file of the store",
        ),
        3 | 23 => (Unavailable, "access to the database file is denied"),
        5 | 6 => (
            Unavailable,
            "another writer held the database for longer than the busy timeout; begin transactions later and end them sooner",
        ),
        8 => (
            Unavailable,
            "the database is read-only; check the permissions of the file and of its directory",
        ),
        10 => (
            Unavailable,
            "the disk failed, or the file system does not do what SQLite needs",
        ),
        11 | 26 => (Corrupt, "the file is damaged, or no SQLite database"),
        13 => (Full, "the disk, or the database's size limit, is full"),
        14 => (
            Unavailable,
            "the database file cannot be opened; check its path and permissions",
        ),
        19 => (Unavailable, "a constraint was violated as the transaction committed"),
        _ => return None,
    })
}

impl fmt::Debug for SqliteStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SqliteStore")
            .field("table", &self.table)
            .field("connections", &self.pool.size())
            .finish_non_exhaustive()
    }
}
