//! A connection with an open transaction, which is rolled back if it is dropped.

use std::ops::{Deref, DerefMut};

use sqlx::pool::PoolConnection;
use sqlx::{Database, Pool, SqlSafeStr};
use sqlx_core::transaction::TransactionManager;

use super::pool::{acquire, close, put_back};
use super::turns::{Turn, Turns};

/// A connection with a transaction on it. Dropping it rolls the transaction back.
pub(super) struct Open<DB: Database> {
    connection: Option<PoolConnection<DB>>,
    /// Whether one of our own statements waits for its answer. If it is dropped then, the connection
    /// is closed: in the pool it would keep its place until an answer comes that may never come.
    asking: bool,
    /// In a database with one writer. It is over when the connection has no transaction any more.
    turn: Option<Turn>,
}

impl<DB: Database> Open<DB> {
    /// The connection comes before the turn: whoever has a turn must not wait for a connection, because
    /// those who have one may wait for their turn.
    pub(super) async fn begin(
        pool: &Pool<DB>,
        statement: impl SqlSafeStr,
        turns: Option<&Turns>,
    ) -> Result<Self, sqlx::Error> {
        let mut open = Self {
            connection: Some(acquire(pool).await?),
            asking: false,
            turn: None,
        };
        if let Some(turns) = turns {
            open.turn = Some(turns.next().await);
        }
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
        self.over(committed)
    }

    pub(super) async fn rollback(mut self) -> Result<(), sqlx::Error> {
        let rolled_back = DB::TransactionManager::rollback(self.ask()).await;
        self.over(rolled_back)
    }

    fn over(&mut self, ended: Result<(), sqlx::Error>) -> Result<(), sqlx::Error> {
        self.answered();
        if ended.is_ok() {
            self.turn = None;
        }
        ended
    }
}

impl<DB: Database> Deref for Open<DB> {
    type Target = DB::Connection;

    fn deref(&self) -> &DB::Connection {
        match &self.connection {
            Some(connection) => connection,
            None => unreachable!("the connection is there until this is dropped"),
        }
    }
}

impl<DB: Database> DerefMut for Open<DB> {
    fn deref_mut(&mut self) -> &mut DB::Connection {
        match &mut self.connection {
            Some(connection) => connection,
            None => unreachable!("the connection is there until this is dropped"),
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
            close(connection, self.turn.take());
        } else {
            put_back(connection, self.turn.take());
        }
    }
}
