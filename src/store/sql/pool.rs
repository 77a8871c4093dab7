//! Takes connections from the pool and gives them back, without the risk of waiting forever.

use std::time::Duration;

use sqlx::pool::PoolConnection;
use sqlx::{Database, Pool};
use tokio::runtime::Handle;

/// How long to wait for a connection to show that it is alive, or to close, before dropping it.
const CHECK: Duration = Duration::from_secs(5);

/// Takes a connection from the pool.
///
/// If the pool must open a new connection, a separate task opens it. In the caller's own task, a
/// caller that gives up would abort the attempt. If connecting then took longer than callers wait,
/// no connection would ever be opened.
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

/// Gives a connection back to the pool, which first checks that the connection is alive. `until` is
/// dropped after this check, when no statement is running on the connection.
///
/// On its own, `sqlx` would wait for this check forever, and would panic outside a Tokio runtime.
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

/// Closes a connection within a few seconds, and then drops `until`.
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
