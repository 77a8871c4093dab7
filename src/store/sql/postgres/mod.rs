//! The store in PostgreSQL.

mod connect;
mod driver;
mod error;
mod guarded;
mod inspect;
mod job;
mod migrate;
mod pin;
mod query;
mod run;
mod statements;
mod store;
mod sweep;
mod unit_of_work;
mod wire;

use std::fmt;
use std::sync::Arc;

use sqlx::PgPool;

use super::lane::{Lanes, Limits};
use super::table::Table;
use crate::error::ConfigError;
use driver::PostgresDriver;
use pin::Pin;
use statements::Statements;

/// A store that saves claims and records in a PostgreSQL table.
///
/// The store supports **atomic mode**: a handler's writes through
/// [`Transaction`](super::Transaction) are committed together with the record of its response.
///
/// The store needs PostgreSQL 12 or later. Each claim, renewal, record and release is a single
/// statement, so each of these calls normally takes one round trip. A replay or a refusal takes one
/// round trip, and a first request takes two. Taking over a claim that lapsed, or a row that
/// expired and has not been swept yet, takes one more round trip. A claim does not wait for another
/// transaction: if another transaction is writing the slot's row, the slot is reported as in
/// flight. If the row is locked, a record or a release waits for the lock once, on its connection,
/// for up to 100 ms. The sweeper's locks last only milliseconds, so this wait is long enough for
/// them. The store then retries without waiting for the lock, with pauses of 10 to 320 ms, until
/// `store_timeout` (or `settle_within`, in the background) has elapsed. Leases and expiry use the
/// database's clock.
///
/// **Connections.** Claims, renewals, records, releases and look-ups use up to two connections
/// ([`connections`](Self::connections)) that belong to the store. The store opens them when they
/// are needed, in the same way as the pool opens its own. So these calls do not wait for a
/// handler's transactions, and a handler's settings on a connection do not affect them. Waiting
/// calls are sent together, as one statement. Clones share the connections. Each Tokio runtime that
/// uses the store has its own connections. So a process can have as many connections as its pool
/// allows, plus two for each runtime. Allow for all of them when you set the server's
/// `max_connections`.
///
/// Handlers' transactions in atomic mode use the pool's connections, from
/// [`Transaction::begin`](super::Transaction::begin) to the commit. So do the sweeper,
/// [`count`](crate::store::Inspect::count) and
/// [`forget_scope`](crate::store::Inspect::forget_scope). Do not connect the pool to a replica, or
/// through a proxy that sends reads to a replica. Closing the pool also closes the store.
///
/// **The table** is looked up once, with the search path of the first connection. Later changes to
/// the search path have no effect. Set a [`schema`](Self::schema) if search paths differ between
/// processes.
///
/// **Poolers.** PgBouncer in session mode works. In transaction mode, it must be version 1.21 or
/// later with `max_prepared_statements` above 0. In this mode, also set a [`schema`](Self::schema),
/// because the session may have a different client's search path. The store refuses an older
/// version with an error that explains the reason. The store changes no settings on sessions that
/// are shared in this way, so a call may wait for another transaction's lock until `store_timeout`.
/// `sqlx` itself needs `ignore_startup_parameters = extra_float_digits`.
///
/// **Durability** depends on the database. With `synchronous_commit = off`, or when a lagging
/// replica is promoted, the latest claims and records can be lost, and a retry then runs the
/// operation again. In atomic mode, the effect is lost along with its record, so it is correct to
/// run the operation again.
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
/// let sweeper = store.sweep_every(Duration::from_secs(60))?;
/// let layer = IdempotencyLayer::new(store);
/// # drop((layer, sweeper)); Ok(())
/// # }
/// ```
///
/// SQL statements for the person on call ([`Slot::to_hex`](crate::Slot::to_hex) returns the slot in
/// hexadecimal):
///
/// ```sql
/// SELECT attempt, lease_until, forget_at, length(record) FROM idempotency_keys WHERE slot = '\x…';
/// DELETE FROM idempotency_keys WHERE slot = '\x…';           -- forget: the next request runs
/// SELECT record IS NOT NULL AS done, lease_until > now() AS held, count(*)
///   FROM idempotency_keys WHERE forget_at > now() GROUP BY 1, 2;
/// ```
#[derive(Clone)]
pub struct PostgresStore {
    /// The application's pool, for handlers' transactions and for statements that may take a while.
    pool: PgPool,
    table: Table,
    limits: Limits,
    pin: Arc<Pin>,
    lanes: Arc<Lanes<PostgresDriver>>,
}

impl PostgresStore {
    /// Creates a store that uses the table `idempotency_keys` in the connection's search path.
    #[must_use]
    pub fn new(pool: PgPool) -> Self {
        Self::with(pool, Table::default(), Limits::default())
    }

    fn with(pool: PgPool, table: Table, limits: Limits) -> Self {
        let pin = Arc::new(Pin::new(table.clone()));
        let driver = PostgresDriver::new(pool.clone(), Arc::clone(&pin));
        Self {
            pool,
            table,
            limits,
            pin,
            lanes: Arc::new(Lanes::new(driver, limits)),
        }
    }

    /// Sets the maximum number of the store's own connections, which is 2 by default. They are
    /// opened when they are needed. Each Tokio runtime that uses the store has its own connections.
    ///
    /// Two connections are enough for most services, because waiting calls are sent together. More
    /// connections help if the database is far away and the request rate is high.
    ///
    /// # Errors
    ///
    /// Returns an error if `connections` is not between 1 and 64.
    pub fn connections(self, connections: usize) -> Result<Self, ConfigError> {
        if !(1..=64).contains(&connections) {
            let what = format!("{connections} is not between 1 and 64");
            return Err(ConfigError::new("connections", what));
        }
        let limits = Limits {
            connections,
            ..self.limits
        };
        Ok(Self::with(self.pool, self.table, limits))
    }

    /// Sets the table name, which must consist of 1 to 48 ASCII letters, digits and underscores.
    /// The name is case-sensitive.
    ///
    /// # Errors
    ///
    /// Returns an error if the name breaks these rules.
    pub fn table(self, name: &str) -> Result<Self, ConfigError> {
        let table = self.table.named(name)?;
        Ok(Self::with(self.pool, table, self.limits))
    }

    /// Sets the schema name. By default, the schema comes from the search path. The rules for the
    /// name are the same as for [`table`](Self::table). [`migrate`](Self::migrate) creates the
    /// schema if it is missing.
    ///
    /// # Errors
    ///
    /// Returns an error if the name breaks these rules.
    pub fn schema(self, name: &str) -> Result<Self, ConfigError> {
        let table = self.table.in_schema(name)?;
        Ok(Self::with(self.pool, table, self.limits))
    }

    /// Returns the pool, which belongs to the application.
    #[must_use]
    pub fn pool(&self) -> &PgPool {
        &self.pool
    }

    /// Returns the statements for the table that was found or, before that, for the table in the
    /// search path.
    fn statements(&self) -> Arc<Statements> {
        self.pin.statements()
    }
}

impl fmt::Debug for PostgresStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The pool is left out, because its options contain the password.
        f.debug_struct("PostgresStore")
            .field("table", &self.table)
            .field("connections", &self.pool.size())
            .finish_non_exhaustive()
    }
}
