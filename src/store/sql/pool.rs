//! Takes connections from the pool and gives them back, and never waits forever.

use std::time::Duration;

use sqlx::pool::PoolConnection;
use sqlx::{Database, Pool};
use tokio::runtime::Handle;

/// How long a connection can take to show that it is alive, before it is closed.
const CHECK: Duration = Duration::from_secs(5);

/// Takes a connection from the pool.
///
/// A separate task opens a new connection: a caller that gives up would otherwise abort the
/// attempt. If connecting takes longer than callers wait, no connection would ever be opened.
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
/// dropped afterwards, when nothing is running on the connection any more.
///
/// On its own, `sqlx` waits for this check forever, and panics if there is no runtime to wait on.
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
