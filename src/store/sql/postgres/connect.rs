//! Making the connections that the store has for itself.

use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::future::{Either, select};
use sqlx::postgres::PgConnectOptions;
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, PgConnection, PgPool, Row};

/// How long making a connection of a lane may take. One that takes longer would keep its seat from the next
/// attempt, after a network that swallowed the first.
pub(super) const CONNECT_WITHIN: Duration = Duration::from_secs(10);
/// After so long it is found out what keeps a connection from being made. The pool would not say: it tries
/// again until its time is over.
const ASK_WHY_AFTER: Duration = Duration::from_secs(1);

/// How long a pooler may take to find a session.
const WAIT_FOR_SESSION: Duration = Duration::from_secs(1);

/// What the statements of the store need of their session. They are sent along with the greeting, which
/// costs nothing and lasts as long as the connection.
const SETTINGS: [(&str, &str); 9] = [
    // Each statement sees what is committed. At a higher level claims of one page disturb each other.
    ("default_transaction_isolation", "read committed"),
    // Statements skip locked rows. What they may wait for by their nature is another claim's commit.
    ("lock_timeout", "100ms"),
    // The plans are right for any size of the table: each row is found by the index, in the order of the
    // question. The planner's own choice is that of the moment when the table was empty.
    ("plan_cache_mode", "force_generic_plan"),
    ("enable_seqscan", "off"),
    ("enable_bitmapscan", "off"),
    ("enable_hashjoin", "off"),
    ("enable_mergejoin", "off"),
    ("random_page_cost", "0"),
    ("jit", "off"),
];

/// Makes connections by the options of the application's pool, its `after_connect` included.
pub(super) struct Connector {
    pool: PgPool,
    /// What the connections lead to, once that is known.
    way: Mutex<Option<Way>>,
    /// The last connection could not be made.
    failed: AtomicBool,
}

/// What a connection leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    /// The database: it takes settings with the greeting.
    Database,
    /// A pooler that gives each client a session of its own.
    Session,
    /// A pooler that gives out a session for each transaction, and keeps the prepared statements of its
    /// clients. What one client sets, the next one meets. So nothing is set.
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

    /// A connection that is ready within that time, or an error.
    pub(super) async fn connect(&self, within: Duration) -> Result<PgConnection, sqlx::Error> {
        // What is asked first on a new connection may meet with silence too.
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
                // A pooler may pass settings over, or refuse them.
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
        // A pool for one connection: only a pool runs `after_connect`.
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

/// The error of another attempt to connect. Does not return if the attempt succeeds.
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
    let what = format!("no connection was made within {within:?}");
    std::io::Error::new(std::io::ErrorKind::TimedOut, what).into()
}

/// Whether the greeting was refused because of what it asked for.
fn refuses_settings(error: &sqlx::Error) -> bool {
    matches!(error, sqlx::Error::Database(error)
        if error.code().is_some_and(|code| code == "08P01") && error.message().contains("startup parameter"))
}

/// Whether the settings of the greeting hold.
async fn took_settings(connection: &mut PgConnection) -> Result<bool, sqlx::Error> {
    let row = sqlx::raw_sql("SHOW lock_timeout").fetch_one(connection).await?;
    Ok(row.try_get::<&str, _>(0)? == "100ms")
}

/// What kind of pooler these two connections lead to. Nothing is prepared before that is known: where
/// sessions change, a prepared statement may be that of another client.
async fn way_of(one: &mut PgConnection, other: &mut PgConnection) -> Result<Way, sqlx::Error> {
    if keeps_session(one, other).await? {
        return Ok(Way::Session);
    }
    // In a transaction the session does not change.
    sqlx::raw_sql("BEGIN").execute(&mut *one).await?;
    let own = "SELECT name FROM pg_catalog.pg_prepared_statements WHERE statement LIKE '%its own name%'";
    let names: Result<Vec<String>, _> = sqlx::query_scalar(own).fetch_all(&mut *one).await;
    sqlx::raw_sql("ROLLBACK").execute(&mut *one).await?;
    // A pooler that keeps them gives them names of its own, because those of its clients are all alike.
    let renamed = names.is_ok_and(|names| names.iter().any(|name| !name.starts_with("sqlx")));
    if renamed {
        return Ok(Way::Transaction);
    }
    Err(sqlx::Error::Configuration(
        "the pooler changes sessions between transactions and does not keep prepared statements".into(),
    ))
}

/// Whether a connection has the same session after each transaction, although another connection asks for one
/// in between.
async fn keeps_session(one: &mut PgConnection, other: &mut PgConnection) -> Result<bool, sqlx::Error> {
    for _ in 0..3 {
        let before = session(one).await?;
        sqlx::raw_sql("BEGIN").execute(&mut *other).await?;
        let of_other = session(other).await?;
        // If there is one session for all, this waits for the other to end its transaction.
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
