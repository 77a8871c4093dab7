//! The store in PostgreSQL.

mod error;
mod guarded;
mod inspect;
mod migrate;
mod query;
mod statements;
mod store;
mod sweep;
mod unit_of_work;

use std::fmt;
use std::sync::Arc;

use sqlx::PgPool;

use super::table::Table;
use crate::error::ConfigError;
use statements::Statements;

/// How a transaction begins.
const BEGIN: &str = "BEGIN";

/// Keeps claims and records in a table of PostgreSQL, on the application's own pool.
///
/// It has the **atomic mode**: what a handler writes through [`Transaction`](super::Transaction) is
/// committed together with the record of its response.
///
/// Needs PostgreSQL 12 or later. A claim, a renewal, a record and a release are one statement each,
/// and so one round trip. A replay or a refusal costs one, a first request two. Taking over a claim
/// that lapsed, or a row that expired and is not swept yet, costs one more. Nothing waits for a lock:
/// a slot whose row another transaction is writing is in flight. Leases and expiry go by the
/// database's clock. Clones share the pool.
///
/// **The pool.** A request holds a connection for the time of one statement, and in atomic mode
/// from [`Transaction::begin`](super::Transaction::begin) to its commit. `sqlx` tests each
/// connection before it hands it out, which costs a round trip. `test_before_acquire(false)` saves
/// that; a connection that turns out to be dead then costs a claim one retry. Do not connect the pool
/// to a replica, or through a proxy that answers reads from one.
///
/// **Share the pool with care.** `sqlx` 0.9.0 leaves a transaction open on a connection that goes back to
/// the pool if the future of `pool.begin()` is dropped at the wrong moment, as a handler's is when its
/// client hangs up ([sqlx#4393](https://github.com/transact-rs/sqlx/issues/4393), fixed upstream for
/// later releases). A claim that is then made on that connection is not committed, so a duplicate
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
/// mode its effect is lost along with its record, so that running again is right.
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
/// For the person on call, with [`Slot::to_hex`](crate::Slot::to_hex) for the slot:
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
    /// The name breaks these rules.
    pub fn table(self, name: &str) -> Result<Self, ConfigError> {
        let table = self.table.named(name)?;
        Ok(Self::with(self.pool, table))
    }

    /// Another schema than the search path's. The rules are those of [`table`](Self::table).
    /// [`migrate`](Self::migrate) makes the schema if it is missing.
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
    pub fn pool(&self) -> &PgPool {
        &self.pool
    }
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
