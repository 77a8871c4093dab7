//! A connection with a transaction on it, which never comes back to the pool in the middle of a
//! question.

use std::ops::{Deref, DerefMut};
use std::time::Duration;

use sqlx::pool::PoolConnection;
use sqlx::{Database, Pool, SqlSafeStr};
use sqlx_core::transaction::TransactionManager;
use tokio::runtime::Handle;

/// A connection that waits for an answer. Dropped before, it is closed instead of going back to
/// the pool, where it would keep its place until an answer comes that may never come.
pub(super) struct Asking<DB: Database>(Option<PoolConnection<DB>>);

impl<DB: Database> Asking<DB> {
    pub(super) async fn acquire(pool: &Pool<DB>) -> Result<Self, sqlx::Error> {
        Ok(Self(Some(acquire(pool).await?)))
    }

    pub(super) fn answered(mut self) {
        if let Some(connection) = self.0.take() {
            put_back(connection);
        }
    }
}

impl<DB: Database> Deref for Asking<DB> {
    type Target = DB::Connection;

    fn deref(&self) -> &DB::Connection {
        match &self.0 {
            Some(connection) => connection,
            None => unreachable!("it is there until it is answered"),
        }
    }
}

impl<DB: Database> DerefMut for Asking<DB> {
    fn deref_mut(&mut self) -> &mut DB::Connection {
        match &mut self.0 {
            Some(connection) => connection,
            None => unreachable!("it is there until it is answered"),
        }
    }
}

impl<DB: Database> Drop for Asking<DB> {
    fn drop(&mut self) {
        if let Some(connection) = self.0.take() {
            close(connection);
        }
    }
}

/// A connection of the pool. One that has to be made is made by a task of its own: a caller that
/// gives up would otherwise take the connection along, and where making one takes longer than
/// callers wait, none would ever be made.
async fn acquire<DB: Database>(pool: &Pool<DB>) -> Result<PoolConnection<DB>, sqlx::Error> {
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

/// How long a connection may take to show that it is sound, before it is let go.
const CHECK: Duration = Duration::from_secs(5);

/// Gives a connection back to the pool, which asks it for a sign of life first. `sqlx` by itself
/// would wait for that sign for ever, and panics where there is no runtime to wait on.
fn put_back<DB: Database>(mut connection: PoolConnection<DB>) {
    let Ok(runtime) = Handle::try_current() else {
        drop(connection.detach());
        return;
    };
    let checked = connection.return_to_pool();
    runtime.spawn(async move {
        let _ = tokio::time::timeout(CHECK, checked).await;
    });
}

/// Closes a connection, in a few seconds at most.
fn close<DB: Database>(mut connection: PoolConnection<DB>) {
    if Handle::try_current().is_err() {
        drop(connection.detach());
        return;
    }
    connection.close_on_drop();
}

/// A connection with a transaction on it, which is rolled back if it is dropped.
pub(super) struct Open<DB: Database> {
    connection: Option<PoolConnection<DB>>,
    /// It waits for an answer to one of our own statements: see [`Asking`].
    asking: bool,
}

impl<DB: Database> Open<DB> {
    pub(super) async fn begin(pool: &Pool<DB>, statement: impl SqlSafeStr) -> Result<Self, sqlx::Error> {
        let mut open = Self {
            connection: Some(acquire(pool).await?),
            asking: false,
        };
        let begun = DB::TransactionManager::begin(open.ask(), Some(statement.into_sql_str())).await;
        open.answered();
        begun.map(|()| open)
    }

    /// The connection, for a statement during which it may be dropped.
    pub(super) fn ask(&mut self) -> &mut DB::Connection {
        self.asking = true;
        self
    }

    pub(super) fn answered(&mut self) {
        self.asking = false;
    }

    pub(super) async fn commit(mut self) -> Result<(), sqlx::Error> {
        let committed = DB::TransactionManager::commit(self.ask()).await;
        self.answered();
        committed
    }

    pub(super) async fn rollback(mut self) -> Result<(), sqlx::Error> {
        let rolled_back = DB::TransactionManager::rollback(self.ask()).await;
        self.answered();
        rolled_back
    }
}

impl<DB: Database> Deref for Open<DB> {
    type Target = DB::Connection;

    fn deref(&self) -> &DB::Connection {
        match &self.connection {
            Some(connection) => connection,
            None => unreachable!("it is there until this is dropped"),
        }
    }
}

impl<DB: Database> DerefMut for Open<DB> {
    fn deref_mut(&mut self) -> &mut DB::Connection {
        match &mut self.connection {
            Some(connection) => connection,
            None => unreachable!("it is there until this is dropped"),
        }
    }
}

impl<DB: Database> Drop for Open<DB> {
    fn drop(&mut self) {
        let Some(mut connection) = self.connection.take() else {
            return;
        };
        // Sent before the next statement on this connection; none if it is over.
        DB::TransactionManager::start_rollback(&mut connection);
        if self.asking {
            close(connection);
        } else {
            put_back(connection);
        }
    }
}
