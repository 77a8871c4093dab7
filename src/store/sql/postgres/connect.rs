//! Making the connections that the store has for itself.

use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::future::{Either, select};
use sqlx::postgres::PgConnectOptions;
use sqlx::{ConnectOptions, Connection, PgConnection, PgPool};

/// How long making a connection may take.
pub(super) const CONNECT_WITHIN: Duration = Duration::from_secs(5);
/// After so long it is found out what keeps a connection from being made. The pool would not say: it tries
/// again until its time is over.
const ASK_WHY_AFTER: Duration = Duration::from_millis(250);

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
    /// What the database is reached through does not take settings. It is a pooler: what one client sets,
    /// another one meets, so nothing is set.
    takes_no_settings: AtomicBool,
    /// The last connection could not be made.
    failed: AtomicBool,
}

impl Connector {
    pub(super) fn new(pool: PgPool) -> Self {
        Self {
            pool,
            takes_no_settings: AtomicBool::new(false),
            failed: AtomicBool::new(false),
        }
    }

    pub(super) async fn connect(&self) -> Result<PgConnection, sqlx::Error> {
        let plain = (*self.pool.connect_options()).clone();
        let made = if self.takes_no_settings.load(Ordering::Relaxed) {
            self.make(plain).await
        } else {
            match self.make(plain.clone().options(SETTINGS)).await {
                Err(error) if refuses_settings(&error) => {
                    let made = self.make(plain).await;
                    self.takes_no_settings.store(made.is_ok(), Ordering::Relaxed);
                    made
                }
                made => made,
            }
        };
        self.failed.store(made.is_err(), Ordering::Relaxed);
        made
    }

    async fn make(&self, options: PgConnectOptions) -> Result<PgConnection, sqlx::Error> {
        if self.pool.is_closed() {
            return Err(sqlx::Error::PoolClosed);
        }
        // A pool for one connection: only a pool runs `after_connect`.
        let one = self.pool.options().clone().min_connections(0).max_connections(1);
        let one = one
            .acquire_timeout(CONNECT_WITHIN)
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
            Either::Left((Err(sqlx::Error::PoolTimedOut), _)) => Err(too_slow()),
            Either::Left((Err(error), _)) | Either::Right((error, _)) => Err(error),
        }
    }
}

/// The error of another attempt to connect. If it succeeds, there is none, and this does not return.
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

pub(super) fn too_slow() -> sqlx::Error {
    let what = format!("no connection was made within {CONNECT_WITHIN:?}");
    std::io::Error::new(std::io::ErrorKind::TimedOut, what).into()
}

/// Whether the greeting was refused because of what it asked for.
fn refuses_settings(error: &sqlx::Error) -> bool {
    matches!(error, sqlx::Error::Database(error)
        if error.code().is_some_and(|code| code == "08P01") && error.message().contains("startup parameter"))
}
