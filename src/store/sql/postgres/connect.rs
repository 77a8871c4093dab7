//! Opens the store's own connections.

use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::future::{Either, select};
use sqlx::postgres::PgConnectOptions;
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, PgConnection, PgPool, Row};

use super::error::NO_STATEMENTS;

/// How long opening a lane's connection can take. Without this limit, an attempt that was lost in
/// the network would occupy its seat, and no other attempt could use it.
pub(super) const CONNECT_WITHIN: Duration = Duration::from_secs(10);
/// How long to wait before finding out why a connection cannot be opened. The pool does not report
/// the reason, because it keeps retrying until its time limit.
const ASK_WHY_AFTER: Duration = Duration::from_secs(1);

/// How long a pooler can take to find a session.
const WAIT_FOR_SESSION: Duration = Duration::from_secs(1);

/// The session settings that the store's statements need. The settings are sent in the startup
/// message at no extra cost, and last as long as the connection.
const SETTINGS: [(&str, &str); 9] = [
    // Each statement can see everything that has been committed. At a higher isolation level,
    // claims on the same page conflict with each other.
    ("default_transaction_isolation", "read committed"),
    // Most statements skip locked rows. A claim may wait for another claim's commit, and a record
    // or a release may wait for a locked row, but not for long.
    ("lock_timeout", "100ms"),
    // Generic plans suit a table of any size: they find each row by the index, in the order of the
    // parameters. Without these settings, the planner would keep the plan that it chose when the
    // table was empty.
    ("plan_cache_mode", "force_generic_plan"),
    ("enable_seqscan", "off"),
    ("enable_bitmapscan", "off"),
    ("enable_hashjoin", "off"),
    ("enable_mergejoin", "off"),
    ("random_page_cost", "0"),
    ("jit", "off"),
];

/// Opens connections with the options of the application's pool, including its `after_connect`.
pub(super) struct Connector {
    pool: PgPool,
    /// The destination of the connections, or `None` until it is known.
    way: Mutex<Option<Way>>,
    /// Whether the last attempt to open a connection failed.
    failed: AtomicBool,
}

/// The destination of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    /// The database, which accepts settings in the startup message.
    Database,
    /// A pooler that gives each client its own session.
    Session,
    /// A pooler that assigns a session for each transaction, and keeps its clients' prepared
    /// statements. One client's settings would affect the next client, so the store changes no
    /// settings.
    Transaction,
}

impl Connector {
    pub(super) fn new(pool: PgPool) -> Self {
        Self {
            pool,
            way: Mutex::default(),
            failed: AtomicBool::new(false),
        }
    }

    /// Opens a connection. Returns an error if the connection is not ready within the given time.
    pub(super) async fn connect(&self, within: Duration) -> Result<PgConnection, sqlx::Error> {
        // The time limit includes the first statements on a new connection, because they may get no
        // answer either.
        let made = tokio::time::timeout(within, self.connect_by(within)).await;
        let made = made.unwrap_or_else(|_| Err(too_slow(within)));
        self.failed.store(made.is_err(), Ordering::Relaxed);
        made
    }

    async fn connect_by(&self, within: Duration) -> Result<PgConnection, sqlx::Error> {
        let plain = (*self.pool.connect_options()).clone();
        let way = *self.way();
        if way.is_none_or(|way| way == Way::Database) {
            match self.make(plain.clone().options(SETTINGS), within).await {
                // A pooler may ignore the settings, or refuse them.
                Ok(mut connection) => {
                    if took_settings(&mut connection).await? {
                        *self.way() = Some(Way::Database);
                        return Ok(connection);
                    }
                }
                Err(error) if refuses_settings(&error) => {}
                Err(error) => return Err(error),
            }
        }
        let mut connection = self.make(plain.clone(), within).await?;
        let way = match way {
            Some(Way::Session) => Way::Session,
            Some(Way::Transaction) => Way::Transaction,
            Some(Way::Database) | None => {
                let mut other = self.make(plain, within).await?;
                let way = way_of(&mut connection, &mut other).await?;
                let _ = other.close().await;
                *self.way() = Some(way);
                way
            }
        };
        if way == Way::Session {
            let settings = SETTINGS.map(|(name, value)| format!("SET {name} TO '{value}';"));
            let settings = AssertSqlSafe(settings.concat());
            sqlx::raw_sql(settings).execute(&mut connection).await?;
        }
        Ok(connection)
    }

    fn way(&self) -> MutexGuard<'_, Option<Way>> {
        self.way.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn make(&self, options: PgConnectOptions, within: Duration) -> Result<PgConnection, sqlx::Error> {
        if self.pool.is_closed() {
            return Err(sqlx::Error::PoolClosed);
        }
        // The connection is opened through a pool of one connection, because only a pool runs
        // `after_connect`.
        let one = self.pool.options().clone().min_connections(0).max_connections(1);
        let one = one
            .acquire_timeout(within)
            .test_before_acquire(false)
            .idle_timeout(None)
            .max_lifetime(None)
            .connect_lazy_with(options.clone());
        let patience = match self.failed.load(Ordering::Relaxed) {
            true => Duration::ZERO,
            false => ASK_WHY_AFTER,
        };
        let made = pin!(one.acquire());
        let why = pin!(why_not(options, patience));
        match select(made, why).await {
            Either::Left((Ok(connection), _)) => Ok(connection.detach()),
            Either::Left((Err(sqlx::Error::PoolTimedOut), _)) => Err(too_slow(within)),
            Either::Left((Err(error), _)) | Either::Right((error, _)) => Err(error),
        }
    }
}

/// Tries to connect again, and returns the error. If the attempt succeeds, this function never
/// returns.
async fn why_not(options: PgConnectOptions, patience: Duration) -> sqlx::Error {
    tokio::time::sleep(patience).await;
    match options.connect().await {
        Ok(connection) => {
            let _ = connection.close().await;
            std::future::pending().await
        }
        Err(error) => error,
    }
}

pub(super) fn too_slow(within: Duration) -> sqlx::Error {
    let what = format!("no connection was established within {within:?}");
    std::io::Error::new(std::io::ErrorKind::TimedOut, what).into()
}

/// Returns whether the startup message was refused because of its settings.
fn refuses_settings(error: &sqlx::Error) -> bool {
    matches!(error, sqlx::Error::Database(error)
        if error.code().is_some_and(|code| code == "08P01") && error.message().contains("startup parameter"))
}

/// Returns whether the settings in the startup message took effect.
async fn took_settings(connection: &mut PgConnection) -> Result<bool, sqlx::Error> {
    let row = sqlx::raw_sql("SHOW lock_timeout").fetch_one(connection).await?;
    Ok(row.try_get::<&str, _>(0)? == "100ms")
}

/// Determines the kind of pooler that these two connections lead to. Until the kind is known, no
/// statement is prepared outside a transaction, because a prepared statement may belong to a
/// different client if sessions change.
async fn way_of(one: &mut PgConnection, other: &mut PgConnection) -> Result<Way, sqlx::Error> {
    if keeps_session(one, other).await? {
        return Ok(Way::Session);
    }
    // In a transaction, the session does not change.
    sqlx::raw_sql("BEGIN").execute(&mut *one).await?;
    let own = "SELECT name FROM pg_catalog.pg_prepared_statements WHERE statement LIKE '%its own name%'";
    let names: Result<Vec<String>, _> = sqlx::query_scalar(own).fetch_all(&mut *one).await;
    sqlx::raw_sql("ROLLBACK").execute(&mut *one).await?;
    // A pooler that keeps prepared statements gives them its own names, because all of its clients
    // use the same names.
    let renamed = names.is_ok_and(|names| names.iter().any(|name| !name.starts_with("sqlx")));
    if renamed {
        return Ok(Way::Transaction);
    }
    Err(sqlx::Error::Configuration(NO_STATEMENTS.into()))
}

/// Returns whether a connection keeps its session after each transaction, even if the other
/// connection uses a session in the meantime.
async fn keeps_session(one: &mut PgConnection, other: &mut PgConnection) -> Result<bool, sqlx::Error> {
    for _ in 0..3 {
        let before = session(one).await?;
        sqlx::raw_sql("BEGIN").execute(&mut *other).await?;
        let of_other = session(other).await?;
        // If all connections share one session, this query waits until the other transaction ends.
        let after = tokio::time::timeout(WAIT_FOR_SESSION, session(one)).await.ok();
        sqlx::raw_sql("COMMIT").execute(&mut *other).await?;
        if after.transpose()?.is_none_or(|after| after != before) || before == of_other {
            return Ok(false);
        }
    }
    Ok(true)
}

async fn session(connection: &mut PgConnection) -> Result<String, sqlx::Error> {
    let row = sqlx::raw_sql("SELECT pg_catalog.pg_backend_pid()::text")
        .fetch_one(connection)
        .await?;
    row.try_get(0)
}
