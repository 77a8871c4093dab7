//! Taking connections from the pool and giving them back, so that neither waits forever.

use std::time::Duration;

use sqlx::pool::PoolConnection;
use sqlx::{Database, Pool};
use tokio::runtime::Handle;

/// How long a connection may take to show that it is alive, before it is closed.
const CHECK: Duration = Duration::from_secs(5);

/// Takes a connection from the pool.
///
/// A new connection is made by a task of its own: a caller that gives up would otherwise take the
/// connection along. Where connecting takes longer than callers wait, none would ever be made.
pub(super) async fn acquire<DB: Database>(pool: &Pool<DB>) -> Result<PoolConnection<DB>, sqlx::Error> {
    let to_be_made = pool.num_idle() == 0 && pool.size() < pool.options().get_max_connections();
    match Handle::try_current() {
        Ok(runtime) if to_be_made => {
            let pool = pool.clone();
            let making = runtime.spawn(async move { pool.acquire().await });
            making.await.unwrap_or(Err(sqlx::Error::WorkerCrashed))
        }
        _ => pool.acquire().await,
    }
}

/// Gives a connection back to the pool, which first asks it for a sign of life. `until` is dropped
/// afterwards, when nothing is under way on the connection any more.
///
/// `sqlx` by itself waits for that sign forever, and panics if there is no runtime to wait on.
pub(super) fn put_back<DB: Database>(mut connection: PoolConnection<DB>, until: impl Send + 'static) {
    let Ok(runtime) = Handle::try_current() else {
        drop(connection.detach());
        return;
    };
    let checked = connection.return_to_pool();
    runtime.spawn(async move {
        let _ = tokio::time::timeout(CHECK, checked).await;
        drop(until);
    });
}

/// Closes a connection, within a few seconds. `until` is dropped afterwards.
pub(super) fn close<DB: Database>(connection: PoolConnection<DB>, until: impl Send + 'static) {
    let Ok(runtime) = Handle::try_current() else {
        drop(connection.detach());
        return;
    };
    runtime.spawn(async move {
        let _ = tokio::time::timeout(CHECK, connection.close()).await;
        drop(until);
    });
}
