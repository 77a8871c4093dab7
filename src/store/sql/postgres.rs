//! The store in PostgreSQL.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use sqlx::error::DatabaseError;
use sqlx::postgres::{PgArguments, PgRow};
use sqlx::{AssertSqlSafe, FromRow, PgConnection, PgPool, Postgres, Row};

use super::error::store_error;
use super::open::{Asking, Open};
use super::table::Table;
use super::transaction::Unit;
use super::{BUSY, ClaimId, ROUNDS, Seen, SqlStore, Sweeper, attempts, census, entry, held, millis, signed, trial};
use crate::error::ConfigError;
use crate::store::{Begin, Begun, Census, Entry, Held, Inspect, OnLapse, Record, Slot, Store, Token, UnitOfWork};
use crate::store::{StoreError, StoreErrorKind};

type Query<'q> = sqlx::query::Query<'q, Postgres, PgArguments>;

/// The SQL that [`PostgresStore::migrate`] runs.
const LAYOUT: &str = include_str!("postgres.sql");
/// What those who migrate at once take turns by: "idempkey" in ASCII.
const MIGRATION_LOCK: i64 = 0x6964_656d_706b_6579;

/// Keeps claims and records in a table of PostgreSQL, in the application's own pool; and with it
/// the **atomic mode**: what a handler writes through [`Transaction`](super::Transaction) is
/// committed together with the record of its response.
///
/// Needs PostgreSQL 12 or later. One statement, so one round trip, for each of claim, renewal, record
/// and release; a replay or refusal is one, a first request two. Taking over a claim that lapsed, or a
/// row that expired and is not swept yet, is one more. Nothing waits for a lock: a slot
/// whose row another transaction is writing is in flight. Leases and expiry go by the database's
/// clock. Clones share the pool.
///
/// **The pool.** A request holds a connection for the time of one statement, and in atomic mode
/// from [`Transaction::begin`](super::Transaction::begin) to its commit. `sqlx` tests each
/// connection before it hands it out, which is a round trip more; `test_before_acquire(false)`
/// saves it, and a connection that turns out to be dead costs a claim one retry. Do not point it at a
/// replica, or through a proxy that answers reads from one.
///
/// **Share the pool with care.** `sqlx` 0.9.0 leaves a transaction open on a connection that goes back to
/// the pool if the future of `pool.begin()` is dropped at the wrong moment, as a handler's is when its
/// client hangs up ([sqlx#4393](https://github.com/transact-rs/sqlx/issues/4393), mended upstream for the
/// releases after it). A claim that is then made on that connection is not committed, so that a duplicate
/// does not see it. Where handlers without a key (or outside this layer) begin transactions, begin them
/// in a task (`tokio::spawn(async move { pool.begin().await })`), or give the store a pool of its own:
///
/// ```no_run
/// # use tower_idempotency::store::sql::PostgresStore;
/// # async fn start(pool: sqlx::PgPool) -> Result<(), sqlx::Error> {
/// let own = pool.options().clone().max_connections(8);
/// let own = own.connect_with((*pool.connect_options()).clone()).await?;
/// let store = PostgresStore::new(own);
/// # drop(store); Ok(())
/// # }
/// ```
///
/// [`Transaction::begin`](super::Transaction::begin) is safe in this way, on either pool.
///
/// **Durability** is the database's. With `synchronous_commit = off`, or when a replica that lags
/// is promoted, the last claims and records can be lost, and a retry then runs again; in atomic
/// mode its effect is lost along with its record, so that this is right.
///
/// ```no_run
/// use std::time::Duration;
/// use sqlx::postgres::PgPoolOptions;
/// use tower_idempotency::{IdempotencyLayer, store::sql::PostgresStore};
///
/// # async fn start() -> Result<(), Box<dyn std::error::Error>> {
/// let pool = PgPoolOptions::new()
///     .test_before_acquire(false)
///     .connect("postgres://app@localhost/app")
///     .await?;
/// let store = PostgresStore::new(pool);
/// store.migrate().await?;
/// let sweeper = store.sweep_every(Duration::from_secs(60));
/// let layer = IdempotencyLayer::new(store);
/// # drop((layer, sweeper)); Ok(())
/// # }
/// ```
///
/// For the person on call, with [`Slot::to_hex`] for the slot:
///
/// ```sql
/// SELECT attempt, lease_until, forget_at, length(record) FROM idempotency_keys WHERE slot = '\x…';
/// DELETE FROM idempotency_keys WHERE slot = '\x…';           -- forget: the next request runs
/// SELECT record IS NOT NULL AS done, lease_until > now() AS held, count(*)
///   FROM idempotency_keys WHERE forget_at > now() GROUP BY 1, 2;
/// ```
#[derive(Clone)]
pub struct PostgresStore {
    pool: PgPool,
    table: Table,
    sql: Arc<Statements>,
}

struct Statements {
    begin: Arc<str>,
    take_over: Arc<str>,
    renew: Arc<str>,
    complete: Arc<str>,
    complete_in: Arc<str>,
    release: Arc<str>,
    is_done: Arc<str>,
    look_up: Arc<str>,
    forget: Arc<str>,
    count: Arc<str>,
    sweep: Arc<str>,
    put_off: Arc<str>,
}

impl Statements {
    fn new(table: &Table) -> Self {
        let sql = |template| table.sql(template);
        Self {
            begin: sql(BEGIN),
            take_over: sql(TAKE_OVER),
            renew: sql("UPDATE idempotency_keys SET \
                 lease_until = statement_timestamp() + $3 * interval '1 millisecond', \
                 forget_at = statement_timestamp() + $3 * interval '1 millisecond' + (forget_at - lease_until) \
                 WHERE slot = $1 AND token = $2 AND record IS NULL AND forget_at > statement_timestamp()"),
            complete: sql("UPDATE idempotency_keys SET \
                 record = $3, forget_at = statement_timestamp() + $4 * interval '1 millisecond' \
                 WHERE slot = $1 AND token = $2 AND record IS NULL AND forget_at > statement_timestamp()"),
            // From here to the commit the row is locked: a client that falls silent is cut off, or
            // its key would be stuck for as long as its connection lives.
            complete_in: sql("UPDATE idempotency_keys SET \
                 record = $3, forget_at = statement_timestamp() + $4 * interval '1 millisecond' \
                 WHERE slot = $1 AND token = $2 AND record IS NULL AND forget_at > statement_timestamp() \
                 AND (SELECT set_config('idle_in_transaction_session_timeout', $5, true)) IS NOT NULL"),
            release: sql("DELETE FROM idempotency_keys \
                 WHERE slot = $1 AND token = $2 AND record IS NULL AND forget_at > statement_timestamp()"),
            // The lock waits for a transaction that may still commit.
            is_done: sql("SELECT token = $2 AND record IS NOT NULL FROM idempotency_keys WHERE slot = $1 FOR UPDATE"),
            look_up: sql("SELECT fingerprint, attempt, length(record)::bigint, \
                 (extract(epoch FROM lease_until - statement_timestamp()) * 1000)::bigint, \
                 (extract(epoch FROM forget_at - statement_timestamp()) * 1000)::bigint \
                 FROM idempotency_keys WHERE slot = $1 AND forget_at > statement_timestamp()"),
            forget: sql("DELETE FROM idempotency_keys WHERE slot = $1 RETURNING forget_at > statement_timestamp()"),
            count: sql(
                "SELECT count(*) FILTER (WHERE record IS NULL AND lease_until > statement_timestamp()), \
                 count(*) FILTER (WHERE record IS NULL AND lease_until <= statement_timestamp()), \
                 count(record) FROM idempotency_keys WHERE forget_at > statement_timestamp()",
            ),
            sweep: sql(
                "DELETE FROM idempotency_keys WHERE slot IN (SELECT slot FROM idempotency_keys \
                 WHERE sweep_at <= statement_timestamp() AND forget_at <= statement_timestamp() \
                 ORDER BY sweep_at LIMIT $1 FOR UPDATE SKIP LOCKED)",
            ),
            put_off: sql(
                "UPDATE idempotency_keys SET sweep_at = forget_at WHERE slot IN (SELECT slot FROM idempotency_keys \
                 WHERE sweep_at <= statement_timestamp() AND forget_at > statement_timestamp() \
                 ORDER BY sweep_at LIMIT $1 FOR UPDATE SKIP LOCKED)",
            ),
        }
    }
}

/// `$1` slot, `$2` fingerprint, `$3` token, `$4` lease, `$5` ttl.
///
/// Answers what is in the slot, and claims it if nothing is. If it did neither, the row is not swept
/// yet, or another statement came in between.
const BEGIN: &str = "\
WITH seen AS MATERIALIZED (
    SELECT fingerprint, token, attempt, record,
           (extract(epoch FROM lease_until - statement_timestamp()) * 1000)::bigint AS lease_left
    FROM idempotency_keys WHERE slot = $1 AND forget_at > statement_timestamp()
), inserted AS (
    INSERT INTO idempotency_keys (slot, fingerprint, token, attempt, lease_until, forget_at, sweep_at)
    SELECT $1, $2, $3, 1,
           statement_timestamp() + $4 * interval '1 millisecond',
           statement_timestamp() + ($4 + $5) * interval '1 millisecond',
           statement_timestamp() + ($4 + $5) * interval '1 millisecond'
    WHERE NOT EXISTS (SELECT FROM seen)
    ON CONFLICT (slot) DO NOTHING
    RETURNING attempt
)
SELECT (SELECT attempt FROM inserted) AS started,
       seen.fingerprint, seen.token, seen.attempt, seen.lease_left,
       seen.record IS NOT NULL AS done,
       CASE WHEN seen.fingerprint = $2 THEN seen.record END AS record
FROM (SELECT 1) AS one LEFT JOIN seen ON true";

/// As `BEGIN`, for a row that is forgotten or whose lease has lapsed. It is apart because it is rare,
/// and makes the other one dearer. A row that is being written is skipped, not waited for.
const TAKE_OVER: &str = "\
UPDATE idempotency_keys AS claimed SET
    attempt = CASE WHEN claimed.forget_at <= statement_timestamp() THEN 1
                   ELSE LEAST(claimed.attempt, 2147483646) + 1 END,
    fingerprint = $2, token = $3, record = NULL,
    lease_until = statement_timestamp() + $4 * interval '1 millisecond',
    forget_at = statement_timestamp() + ($4 + $5) * interval '1 millisecond',
    sweep_at = statement_timestamp() + ($4 + $5) * interval '1 millisecond'
WHERE claimed.slot IN (
    SELECT slot FROM idempotency_keys
    WHERE slot = $1
      AND (forget_at <= statement_timestamp()
        OR (record IS NULL AND fingerprint = $2 AND token <> $3
            AND lease_until <= statement_timestamp() AND NOT $6))
    FOR UPDATE SKIP LOCKED)
RETURNING attempt AS started";

impl PostgresStore {
    /// A store in the table `idempotency_keys` of the connection's search path.
    #[must_use]
    pub fn new(pool: PgPool) -> Self {
        Self::with(pool, Table::default())
    }

    fn with(pool: PgPool, table: Table) -> Self {
        let sql = Arc::new(Statements::new(&table));
        Self { pool, table, sql }
    }

    /// Another table name: 1 to 48 ASCII letters, digits and underscores. It is case-sensitive.
    ///
    /// # Errors
    ///
    /// A name that is not such.
    pub fn table(self, name: &str) -> Result<Self, ConfigError> {
        let table = self.table.named(name)?;
        Ok(Self::with(self.pool, table))
    }

    /// Another schema than the search path's. The rules are those of [`table`](Self::table);
    /// `migrate` makes the schema if it is missing.
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
    pub fn pool(&self) -> &PgPool {
        &self.pool
    }

    /// Makes the table if it is missing, and checks its layout. Safe to call from many processes at
    /// once: they take turns. The same SQL is in `src/store/sql/postgres.sql`.
    ///
    /// # Errors
    ///
    /// The database cannot be reached, the role may not create tables, or a table of that name has
    /// another layout.
    pub async fn migrate(&self) -> Result<(), StoreError> {
        self.migrate_in_turn()
            .await
            .map_err(|error| Self::error("migrate", error))?;
        // Finds a table of that name that is another's, and rights that are missing.
        self.try_out().await.map_err(|error| Self::error("migrate", error))
    }

    /// Goes through a claim's life, and undoes it.
    async fn try_out(&self) -> Result<(), sqlx::Error> {
        let begin = trial();
        let claim = ClaimId::of(&begin);
        let mut transaction = Open::begin(&self.pool, Self::BEGIN).await?;
        self.claim(&begin).fetch_one(&mut *transaction).await?;
        self.complete_in(&mut transaction, &claim, b"trial", begin.ttl).await?;
        let retry = Begin {
            token: Token::random(),
            ..begin
        };
        let row = self.claim(&retry).fetch_one(&mut *transaction).await?;
        let kept: Option<Vec<u8>> = row.try_get("record")?;
        if kept.as_deref() != Some(b"trial") {
            return Err(sqlx::Error::Decode("the record did not come back".into()));
        }
        self.take_over(&retry).execute(&mut *transaction).await?;
        for sql in [&self.sql.look_up, &self.sql.forget] {
            sqlx::query(AssertSqlSafe(Arc::clone(sql)))
                .bind(begin.slot.as_bytes().as_slice())
                .execute(&mut *transaction)
                .await?;
        }
        transaction.rollback().await
    }

    fn claim<'q>(&self, begin: &'q Begin) -> Query<'q> {
        Self::claiming(&self.sql.begin, begin)
    }

    fn take_over<'q>(&self, begin: &'q Begin) -> Query<'q> {
        Self::claiming(&self.sql.take_over, begin).bind(begin.on_lapse == OnLapse::Refuse)
    }

    fn claiming<'q>(sql: &Arc<str>, begin: &'q Begin) -> Query<'q> {
        sqlx::query(AssertSqlSafe(Arc::clone(sql)))
            .bind(begin.slot.as_bytes().as_slice())
            .bind(begin.fingerprint.as_bytes().as_slice())
            .bind(signed(begin.token))
            .bind(as_float(begin.lease))
            .bind(as_float(begin.ttl))
    }

    async fn migrate_in_turn(&self) -> Result<(), sqlx::Error> {
        let mut transaction = Open::begin(&self.pool, Self::BEGIN).await?;
        sqlx::query("SELECT pg_advisory_xact_lock($1)")
            .bind(MIGRATION_LOCK)
            .execute(&mut *transaction)
            .await?;
        if let Some(schema) = &self.table.schema {
            // Not `IF NOT EXISTS`, which asks for the right to create one even if it is there.
            let there: bool = sqlx::query_scalar("SELECT to_regnamespace($1) IS NOT NULL")
                .bind(format!("\"{schema}\""))
                .fetch_one(&mut *transaction)
                .await?;
            if !there {
                let create = format!("CREATE SCHEMA \"{schema}\"");
                sqlx::raw_sql(AssertSqlSafe(create)).execute(&mut *transaction).await?;
            }
        }
        // A role that may not create anything can migrate what is there.
        let there: bool = sqlx::query_scalar("SELECT to_regclass($1) IS NOT NULL")
            .bind(self.table.sql(super::table::DEFAULT).as_ref())
            .fetch_one(&mut *transaction)
            .await?;
        if !there {
            let layout = self.table.sql(LAYOUT);
            sqlx::raw_sql(AssertSqlSafe(layout)).execute(&mut *transaction).await?;
        }
        transaction.commit().await
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

    /// Runs a statement that answers with one row at most.
    async fn ask<T>(&self, query: Query<'_>) -> Result<Option<T>, sqlx::Error>
    where
        T: for<'r> FromRow<'r, PgRow>,
    {
        let mut connection = Asking::acquire(&self.pool).await?;
        let row = query.fetch_optional(&mut *connection).await;
        connection.answered();
        row?.map(|row| T::from_row(&row)).transpose()
    }

    /// Runs a statement that answers with no row, and says how many it changed.
    async fn execute(&self, query: Query<'_>) -> Result<u64, sqlx::Error> {
        let mut connection = Asking::acquire(&self.pool).await?;
        let result = query.execute(&mut *connection).await;
        connection.answered();
        Ok(result?.rows_affected())
    }

    /// Runs a statement that changes the claim of that token, and says whether it did.
    async fn change(&self, operation: &'static str, query: Query<'_>) -> Result<Held, StoreError> {
        let changed = self.execute(query).await;
        changed.map(held).map_err(|error| Self::error(operation, error))
    }
}

/// What the statement `BEGIN` answers.
struct Found {
    /// The attempt, if it claimed the slot.
    started: Option<i32>,
    seen: Option<Seen>,
}

impl FromRow<'_, PgRow> for Found {
    fn from_row(row: &PgRow) -> Result<Self, sqlx::Error> {
        let seen = match row.try_get("fingerprint")? {
            Some(fingerprint) => Some(Seen {
                fingerprint,
                token: row.try_get("token")?,
                attempt: row.try_get("attempt")?,
                lease_left: row.try_get("lease_left")?,
                done: row.try_get("done")?,
                record: row.try_get("record")?,
            }),
            None => None,
        };
        let started = row.try_get("started")?;
        Ok(Self { started, seen })
    }
}

/// Milliseconds, as an interval is multiplied by.
#[allow(clippy::cast_precision_loss, reason = "exact up to three hundred thousand years")]
fn as_float(duration: Duration) -> f64 {
    millis(duration) as f64
}

/// The row of a statement that always answers with one.
fn one<T>(row: Option<T>) -> Result<T, sqlx::Error> {
    row.ok_or(sqlx::Error::RowNotFound)
}

fn is_broken(error: &sqlx::Error) -> bool {
    match error {
        sqlx::Error::Io(_) | sqlx::Error::Protocol(_) => true,
        // Administrator or crash shutdown, cannot connect now.
        sqlx::Error::Database(database) => database.code().is_some_and(|code| code.starts_with("57P0")),
        _ => false,
    }
}

impl Store for PostgresStore {
    async fn begin(&self, begin: &Begin) -> Result<Begun, StoreError> {
        let failed = |error| Self::error("begin", error);
        // The pool's connections may be older than the server, all of them. The token makes it safe
        // to ask again.
        let mut dead = None;
        for _ in 0..ROUNDS {
            let found: Found = loop {
                let left = dead.get_or_insert_with(|| self.pool.size() + 1);
                match self.ask(self.claim(begin)).await {
                    Err(error) if is_broken(&error) && *left > 0 => *left -= 1,
                    found => break found.and_then(one).map_err(failed)?,
                }
            };
            if let Some(attempt) = found.started {
                return Ok(Begun::Started {
                    attempt: attempts(attempt),
                });
            }
            if let Some(seen) = found.seen
                && let Some(begun) = seen.decide(begin)?
            {
                return Ok(begun);
            }
            let taken_over = self.ask(self.take_over(begin)).await.map_err(failed)?;
            if let Some((attempt,)) = taken_over {
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
            .bind(as_float(lease));
        self.change("renew", query).await
    }

    async fn complete(&self, slot: &Slot, token: Token, record: &Record, ttl: Duration) -> Result<Held, StoreError> {
        let query = sqlx::query(AssertSqlSafe(Arc::clone(&self.sql.complete)))
            .bind(slot.as_bytes().as_slice())
            .bind(signed(token))
            .bind(record.to_bytes())
            .bind(as_float(ttl));
        self.change("complete", query).await
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

impl Inspect for PostgresStore {
    async fn look_up(&self, slot: &Slot) -> Result<Option<Entry>, StoreError> {
        let query = sqlx::query(AssertSqlSafe(Arc::clone(&self.sql.look_up))).bind(slot.as_bytes().as_slice());
        let row = self.ask(query).await.map_err(|error| Self::error("look up", error))?;
        row.map(entry).transpose()
    }

    async fn forget(&self, slot: &Slot) -> Result<bool, StoreError> {
        let query = sqlx::query(AssertSqlSafe(Arc::clone(&self.sql.forget))).bind(slot.as_bytes().as_slice());
        let known = self.ask(query).await.map_err(|error| Self::error("forget", error))?;
        Ok(known == Some((true,)))
    }

    async fn count(&self) -> Result<Census, StoreError> {
        let query = sqlx::query(AssertSqlSafe(Arc::clone(&self.sql.count)));
        let counted = self.ask(query).await.and_then(one);
        counted.map(census).map_err(|error| Self::error("count", error))
    }
}

impl SqlStore for PostgresStore {
    type Db = Postgres;

    const NAME: &'static str = "postgres";
    const BEGIN: &'static str = "BEGIN";

    fn pool(&self) -> &PgPool {
        &self.pool
    }

    async fn complete_in(
        &self,
        connection: &mut PgConnection,
        claim: &ClaimId,
        record: &[u8],
        ttl: Duration,
    ) -> Result<bool, sqlx::Error> {
        let patience = millis(claim.lease).clamp(1, i64::from(i32::MAX));
        let result = sqlx::query(AssertSqlSafe(Arc::clone(&self.sql.complete_in)))
            .bind(claim.slot.as_bytes().as_slice())
            .bind(signed(claim.token))
            .bind(record)
            .bind(as_float(ttl))
            .bind(patience.to_string())
            .execute(connection)
            .await?;
        Ok(result.rows_affected() == 1)
    }

    async fn is_done(&self, claim: &ClaimId) -> Result<bool, StoreError> {
        // What broke one connection has probably broken the others in the pool.
        let mut dead = self.pool.size();
        loop {
            let query = sqlx::query(AssertSqlSafe(Arc::clone(&self.sql.is_done)))
                .bind(claim.slot.as_bytes().as_slice())
                .bind(signed(claim.token));
            match self.ask(query).await {
                Err(error) if is_broken(&error) && dead > 0 => dead -= 1,
                Err(error) => return Err(Self::error("read back", error)),
                Ok(done) => return Ok(done == Some((true,))),
            }
        }
    }

    async fn sweep_some(&self, batch: u32) -> Result<u64, StoreError> {
        let run = async |sql: &Arc<str>| {
            let query = sqlx::query(AssertSqlSafe(Arc::clone(sql))).bind(i64::from(batch));
            self.execute(query).await.map_err(|error| Self::error("sweep", error))
        };
        run(&self.sql.put_off).await?;
        run(&self.sql.sweep).await
    }

    fn error(operation: &'static str, error: sqlx::Error) -> StoreError {
        store_error(Self::NAME, operation, error, advice)
    }

    fn leaves_in_doubt(error: &sqlx::Error) -> bool {
        match error {
            // Shutdowns and broken connections may come after the commit was made; so may
            // "statement completion unknown".
            sqlx::Error::Database(database) => database
                .code()
                .is_none_or(|code| code.starts_with("57P") || code.starts_with("08") || code == "40003"),
            _ => true,
        }
    }
}

fn advice(error: &dyn DatabaseError) -> Option<(StoreErrorKind, &'static str)> {
    use StoreErrorKind::{Full, Unavailable};
    Some(match error.code()?.as_ref() {
        "42P01" | "3F000" => (
            Unavailable,
            "the table is missing; run `PostgresStore::migrate` or the SQL file, and check schema and table name",
        ),
        "42703" | "42804" | "42883" | "42P10" | "42809" | "23502" => (
            Unavailable,
            "the table has another layout than this release knows; compare it with the SQL file of the store",
        ),
        "42501" => (
            Unavailable,
            "the role lacks a permission: it needs SELECT, INSERT, UPDATE and DELETE on the table, and CREATE on the schema to migrate",
        ),
        "53100" => (Full, "the database's disk is full"),
        "53200" => (Full, "the database is out of memory"),
        "53300" => (
            Unavailable,
            "the database has no connection left; lower `max_connections` of the pools",
        ),
        "25006" => (
            Unavailable,
            "the database is read-only: a replica, or one that is being failed over; the store needs the primary",
        ),
        "28P01" | "28000" => (Unavailable, "the database refused the role or its password"),
        "3D000" => (Unavailable, "there is no such database"),
        "40001" | "40P01" => (Unavailable, "a concurrent transaction was in the way"),
        "25P02" => (
            Unavailable,
            "a statement of the handler had failed in the transaction, so that it can only be rolled back",
        ),
        "25P03" => (
            Unavailable,
            "the transaction was idle for too long, and the database ended it",
        ),
        "57014" => (
            Unavailable,
            "the statement was cancelled, or took longer than `statement_timeout`",
        ),
        code if code.starts_with("57P") => (Unavailable, "the database is starting or shutting down"),
        code if code.starts_with("23") => (Unavailable, "a constraint was violated as the transaction committed"),
        _ => return None,
    })
}

impl fmt::Debug for PostgresStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Not the pool: its options hold the password.
        f.debug_struct("PostgresStore")
            .field("table", &self.table)
            .field("connections", &self.pool.size())
            .finish_non_exhaustive()
    }
}
