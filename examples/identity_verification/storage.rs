//! Opens the store for keys and data that `--store` selects.

use std::error::Error;
use std::path::Path;
use std::time::Duration;

use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{Connection, PgConnection};
use tokio::time::timeout;
use tower_idempotency::store::sql::{PostgresStore, SqliteStore, Sweeper};
use tower_idempotency::store::{DynStore, RedisStore};

use super::data::{Causes, Data, PostgresData, RedisData, SqliteData};

/// How long a database may take to respond, both at startup and later.
const PATIENCE: Duration = Duration::from_secs(5);
/// The number of connections to PostgreSQL.
const CONNECTIONS: u32 = 8;

/// A store that other servers can share, and the application's data next to it.
pub(crate) struct Shared {
    pub(crate) keys: DynStore,
    pub(crate) data: Data,
    /// Sweeps until it is dropped. Redis expires keys itself.
    pub(crate) sweeper: Option<Sweeper>,
}

/// The reason for the failure. It never includes the URL, because the URL may contain a password.
type Refusal = String;

fn refusal(what: &str, error: &(dyn Error + 'static)) -> Refusal {
    format!("--store: {what}: {}", Causes(error))
}

pub(crate) async fn sqlite(path: &Path, sweep_every: Duration) -> Result<Shared, Refusal> {
    const UNUSABLE: &str = "the SQLite database cannot be used; its directory must exist and be writable";
    let store = SqliteStore::open(path)
        .await
        .map_err(|error| refusal(UNUSABLE, &error))?;
    store.migrate().await.map_err(|error| refusal(UNUSABLE, &error))?;
    let data = SqliteData::open(store.pool().clone())
        .await
        .map_err(|error| refusal(UNUSABLE, &error))?;
    Ok(Shared {
        data: Data::Sqlite(data),
        sweeper: Some(
            store
                .sweep_every(sweep_every)
                .map_err(|error| format!("--store: {error}"))?,
        ),
        keys: DynStore::new(store),
    })
}

pub(crate) async fn postgres(url: &str, sweep_every: Duration) -> Result<Shared, Refusal> {
    const UNREACHABLE: &str =
        "cannot connect to PostgreSQL; check that it is running, and check the host, port, user, password and database";
    const UNUSABLE: &str =
        "the PostgreSQL database cannot be used; check that the user is allowed to create tables in it";
    // The parser's error is not shown, because it may quote part of the URL.
    let options: PgConnectOptions = url
        .parse()
        .map_err(|_| "--store: the URL is not valid; expected `postgres://USER:PASSWORD@HOST:PORT/DATABASE`")?;
    // A pool would retry, and in the end report only a timeout.
    match timeout(PATIENCE, PgConnection::connect_with(&options)).await {
        Ok(Ok(connection)) => {
            // The server responded, and that is enough.
            let _ = connection.close().await;
        }
        Ok(Err(error)) => return Err(refusal(UNREACHABLE, &error)),
        Err(_) => return Err(format!("--store: {UNREACHABLE}: no response within {PATIENCE:?}")),
    }
    let pool = PgPoolOptions::new()
        .min_connections(CONNECTIONS)
        .max_connections(CONNECTIONS)
        .acquire_timeout(PATIENCE)
        .connect_lazy_with(options);
    // Open all connections now. A handshake with a password takes longer than many statements, and
    // the first requests would have to wait for it.
    let mut made = Vec::new();
    for _ in 0..CONNECTIONS {
        made.push(pool.acquire().await.map_err(|error| refusal(UNREACHABLE, &error))?);
    }
    drop(made);
    let store = PostgresStore::new(pool);
    store.migrate().await.map_err(|error| refusal(UNUSABLE, &error))?;
    let data = PostgresData::open(store.pool().clone())
        .await
        .map_err(|error| refusal(UNUSABLE, &error))?;
    Ok(Shared {
        data: Data::Postgres(data),
        sweeper: Some(
            store
                .sweep_every(sweep_every)
                .map_err(|error| format!("--store: {error}"))?,
        ),
        keys: DynStore::new(store),
    })
}

pub(crate) async fn redis(url: &str) -> Result<Shared, Refusal> {
    const UNREACHABLE: &str =
        "cannot connect to Redis; check that it is running, and check the host, port, user, password and database";
    let store = RedisStore::connect(url)
        .await
        .map_err(|error| refusal(UNREACHABLE, &error))?;
    let data = RedisData::open(url)
        .await
        .map_err(|error| refusal(UNREACHABLE, &error))?;
    Ok(Shared {
        data: Data::Redis(data),
        sweeper: None,
        keys: DynStore::new(store),
    })
}
