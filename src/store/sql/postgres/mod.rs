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

/// Keeps claims and records in a table of PostgreSQL.
///
/// It has the **atomic mode**: what a handler writes through [`Transaction`](super::Transaction) is
/// committed together with the record of its response.
///
/// Needs PostgreSQL 12 or later. A claim, a renewal, a record and a release are one statement each,
/// and so one round trip at most. A replay or a refusal costs one, a first request two. Taking over a claim
/// that lapsed, or a row that expired and is not swept yet, costs one more. A claim does not wait for another
/// transaction: a slot whose row another transaction is writing is in flight. A record or a release waits for a
/// locked row on its connection once, for up to 100 ms. That is enough for the sweeper, whose locks last
/// milliseconds. Then it is asked again with pauses of 10 to 320 ms and passes the lock by, for as long as the
/// layer tries: `store_timeout`, and `settle_within` in the background. Leases and expiry go by the database's
/// clock.
///
/// **Connections.** Claims, renewals, records, releases and look-ups have up to two connections of the
/// store's own ([`connections`](Self::connections)), which are made like those of the pool, when they are
/// needed. So a handler's transactions do not keep them waiting, and what a handler sets on a connection
/// does not reach them. Calls that wait are sent together, as one statement. Clones share the
/// connections; each Tokio runtime that uses the store has its own. A process then has as many connections
/// as its pool, and two more for each runtime: count them when you set `max_connections` of the server.
///
/// The pool is for the transactions of handlers in atomic mode, from
/// [`Transaction::begin`](super::Transaction::begin) to the commit, for the sweeper, and for
/// [`count`](crate::store::Inspect::count). Do not connect it to a replica, or through a proxy that answers
/// reads from one. When you close the pool, the store ends with it.
///
/// **The table** is found once, by the search path of the first connection. Later changes to a search path
/// do not matter. Name a [`schema`](Self::schema) if search paths differ between processes.
///
/// **Poolers.** PgBouncer in session mode works. In transaction mode it must be version 1.21 or later with
/// `max_prepared_statements` above 0; name a [`schema`](Self::schema), because there a search path may be that
/// of another client. An older one is refused, and the error says why. The store sets nothing on sessions
/// that are shared in this way, so that a call may wait for another transaction's lock until `store_timeout`.
/// `sqlx` itself needs `ignore_startup_parameters = extra_float_digits`.
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
    /// The application's: for its handlers' transactions, and for what may take a while.
    pool: PgPool,
    table: Table,
    limits: Limits,
    pin: Arc<Pin>,
    lanes: Arc<Lanes<PostgresDriver>>,
}

impl PostgresStore {
    /// A store in the table `idempotency_keys` of the connection's search path.
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

    /// How many connections the store has for itself at most: 2 by default. They are made when they are
    /// needed, and each Tokio runtime that uses the store has its own.
    ///
    /// Two are enough for most: calls that wait are sent together. More help where the database is far away
    /// and requests are many.
    ///
    /// # Errors
    ///
    /// It is not 1 to 64.
    pub fn connections(self, connections: usize) -> Result<Self, ConfigError> {
        if !(1..=64).contains(&connections) {
            let what = format!("{connections} is not 1 to 64");
            return Err(ConfigError::new("connections", what));
        }
        let limits = Limits {
            connections,
            ..self.limits
        };
        Ok(Self::with(self.pool, self.table, limits))
    }

    /// Another table name: 1 to 48 ASCII letters, digits and underscores. It is case-sensitive.
    ///
    /// # Errors
    ///
    /// The name breaks these rules.
    pub fn table(self, name: &str) -> Result<Self, ConfigError> {
        let table = self.table.named(name)?;
        Ok(Self::with(self.pool, table, self.limits))
    }

    /// Another schema than the search path's. The rules are those of [`table`](Self::table).
    /// [`migrate`](Self::migrate) makes the schema if it is missing.
    ///
    /// # Errors
    ///
    /// The name breaks these rules.
    pub fn schema(self, name: &str) -> Result<Self, ConfigError> {
        let table = self.table.in_schema(name)?;
        Ok(Self::with(self.pool, table, self.limits))
    }

    /// The pool, which is the application's own.
    #[must_use]
    pub fn pool(&self) -> &PgPool {
        &self.pool
    }

    /// The statements: for the table that was found, or by the search path as long as none was.
    fn statements(&self) -> Arc<Statements> {
        self.pin.statements()
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
