//! Where keys and data are kept: opening what `--store` names.

use std::error::Error;
use std::path::Path;
use std::time::Duration;

use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{Connection, PgConnection};
use tokio::time::timeout;
use tower_idempotency::store::sql::{PostgresStore, SqliteStore, Sweeper};
use tower_idempotency::store::{DynStore, RedisStore};

use super::data::{Causes, Data, PostgresData, RedisData, SqliteData};

/// How long a database has to answer, when the server starts and later.
const PATIENCE: Duration = Duration::from_secs(5);
/// Connections to PostgreSQL.
const CONNECTIONS: u32 = 8;

/// A store that other servers may share, and the application's data beside it.
pub(crate) struct Shared {
    pub(crate) keys: DynStore,
    pub(crate) data: Data,
    /// Sweeps until it is dropped. Redis expires keys itself.
    pub(crate) sweeper: Option<Sweeper>,
}

/// What went wrong, never with the URL, which may hold a password.
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
        sweeper: Some(store.sweep_every(sweep_every)),
        keys: DynStore::new(store),
    })
}

pub(crate) async fn postgres(url: &str, sweep_every: Duration) -> Result<Shared, Refusal> {
    const UNREACHABLE: &str =
        "PostgreSQL cannot be connected to; is it running, and are host, port, user, password and database right?";
    const UNUSABLE: &str = "the PostgreSQL database cannot be used; may the user create tables in it?";
    // Its error may quote a part of the URL.
    let options: PgConnectOptions = url
        .parse()
        .map_err(|_| "--store: the URL is not valid; expected `postgres://USER:PASSWORD@HOST:PORT/DATABASE`")?;
    // A pool would retry, and finally only report a time-out.
    match timeout(PATIENCE, PgConnection::connect_with(&options)).await {
        Ok(Ok(connection)) => {
            // It has answered, which is enough.
            let _ = connection.close().await;
        }
        Ok(Err(error)) => return Err(refusal(UNREACHABLE, &error)),
        Err(_) => return Err(format!("--store: {UNREACHABLE}: no answer within {PATIENCE:?}")),
    }
    let pool = PgPoolOptions::new()
        .min_connections(CONNECTIONS)
        .max_connections(CONNECTIONS)
        .acquire_timeout(PATIENCE)
        .connect_lazy_with(options);
    // All connections are made now: a handshake with a password takes longer than many statements, and the first
    // requests would wait for it.
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
        sweeper: Some(store.sweep_every(sweep_every)),
        keys: DynStore::new(store),
    })
}

pub(crate) async fn redis(url: &str) -> Result<Shared, Refusal> {
    const UNREACHABLE: &str =
        "Redis cannot be connected to; is it running, and are host, port, user, password and database right?";
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
