//! A connection with a handler's open transaction. Dropping this value rolls the transaction back.

use std::ops::{Deref, DerefMut};
use std::time::Duration;

use sqlx::Pool;
use sqlx::pool::PoolConnection;
use tokio::runtime::Handle;

use crate::store::sql::guarded::{AtomicDatabase, RolledBack};
use crate::store::sql::pool::{acquire, close, put_back};
use crate::store::sql::turns::{Turn, Turns};

/// How long a rollback that no caller is waiting for can take before the connection is closed.
const CLEANING: Duration = Duration::from_secs(5);

/// A connection on which a guarded transaction is open. Dropping this value rolls the transaction
/// back.
pub(in crate::store::sql) struct Open<DB: AtomicDatabase> {
    connection: Option<PoolConnection<DB>>,
    /// The transaction's guard, or `None` until the transaction has begun.
    guard: Option<DB::Guard>,
    /// Whether a statement from this crate is waiting for its answer. If this value is dropped in
    /// the meantime, the connection is closed. If the connection were returned to the pool instead,
    /// it would occupy a place in the pool until an answer arrived, which might never happen.
    asking: bool,
    /// The turn to write, in a database with one writer. The turn ends when the connection no
    /// longer has a transaction.
    turn: Option<Turn>,
}

impl<DB: AtomicDatabase> Open<DB> {
    /// Begins a transaction. The connection is acquired before the turn, because a caller that has
    /// a turn must not wait for a connection: the callers that have connections may be waiting for
    /// their turns.
    pub(super) async fn begin(pool: &Pool<DB>, turns: Option<&Turns>) -> Result<Self, sqlx::Error> {
        let mut open = Self {
            connection: Some(acquire(pool).await?),
            guard: None,
            asking: false,
            turn: None,
        };
        if let Some(turns) = turns {
            let within = pool.options().get_acquire_timeout();
            let turn = tokio::time::timeout(within, turns.next()).await;
            open.turn = Some(turn.map_err(|_| no_turn(within))?);
        }
        open.asking = true;
        match DB::begin(&mut open).await {
            Ok(guard) => {
                open.guard = Some(guard);
                open.asking = false;
                Ok(open)
            }
            Err(error) => {
                if DB::CLEAN_IF_NOT_BEGUN {
                    open.give_back();
                }
                Err(error)
            }
        }
    }

    /// Returns the number of nested transactions that `sqlx` counts on the connection.
    pub(in crate::store::sql) fn depth(&self) -> usize {
        DB::depth(self)
    }

    /// Returns the connection and its guard, to send a statement. Call [`answered`](Self::answered)
    /// when the answer has arrived. If this value is dropped before that, the connection is closed.
    pub(in crate::store::sql) fn ask(&mut self) -> (&mut DB::Connection, &DB::Guard) {
        self.asking = true;
        match (&mut self.connection, &self.guard) {
            (Some(connection), Some(guard)) => (connection, guard),
            _ => unreachable!("the connection and the guard are present from `begin` until this is dropped"),
        }
    }

    pub(in crate::store::sql) fn answered(&mut self) {
        self.asking = false;
    }

    /// Returns whether the transaction is still open. A database error means that the transaction
    /// is open, but can only be rolled back.
    pub(in crate::store::sql) async fn is_open(&mut self) -> Result<bool, sqlx::Error> {
        let (connection, guard) = self.ask();
        let open = DB::is_open(connection, guard).await;
        self.answered();
        open
    }

    /// Commits the transaction. Check that it is open immediately before the call. If the commit
    /// fails, the connection is closed.
    pub(in crate::store::sql) async fn commit(mut self) -> Result<(), sqlx::Error> {
        let (connection, guard) = self.ask();
        DB::commit(connection, guard).await?;
        self.give_back();
        Ok(())
    }

    /// Rolls the transaction back, and reports whether it had already been committed. If the
    /// rollback fails, the connection is closed.
    pub(in crate::store::sql) async fn roll_back(mut self) -> Result<RolledBack, sqlx::Error> {
        let (connection, guard) = self.ask();
        let rolled_back = DB::roll_back(connection, guard).await?;
        if rolled_back.is_clean {
            self.give_back();
        }
        Ok(rolled_back)
    }

    /// Gives the connection back to the pool. Call this method only when no statement is running on
    /// the connection.
    fn give_back(mut self) {
        if let Some(connection) = self.connection.take() {
            put_back(connection, ());
        }
    }
}

impl<DB: AtomicDatabase> Deref for Open<DB> {
    type Target = DB::Connection;

    fn deref(&self) -> &DB::Connection {
        match &self.connection {
            Some(connection) => connection,
            None => unreachable!("the connection is present until this is dropped"),
        }
    }
}

impl<DB: AtomicDatabase> DerefMut for Open<DB> {
    fn deref_mut(&mut self) -> &mut DB::Connection {
        match &mut self.connection {
            Some(connection) => connection,
            None => unreachable!("the connection is present until this is dropped"),
        }
    }
}

impl<DB: AtomicDatabase> Drop for Open<DB> {
    fn drop(&mut self) {
        let Some(connection) = self.connection.take() else {
            return;
        };
        match (self.guard.take(), Handle::try_current()) {
            (Some(guard), Ok(runtime)) if !self.asking => {
                drop(runtime.spawn(clean::<DB>(connection, guard, self.turn.take())));
            }
            // The transaction was still waiting for its turn, so no statement has been sent.
            (None, _) if !self.asking => put_back(connection, self.turn.take()),
            _ => close(connection, self.turn.take()),
        }
    }
}

/// Returns the error for a handler that did not get a turn to write. The error is transient, like
/// the error for a pool without a free connection.
fn no_turn(within: Duration) -> sqlx::Error {
    let what = format!(
        "other writers in this process held the database for longer than the pool's `acquire_timeout` ({within:?})"
    );
    std::io::Error::new(std::io::ErrorKind::TimedOut, what).into()
}

/// Rolls back a transaction that no caller is waiting for.
async fn clean<DB: AtomicDatabase>(connection: PoolConnection<DB>, guard: DB::Guard, turn: Option<Turn>) {
    let open = Open {
        connection: Some(connection),
        guard: Some(guard),
        // From now on, dropping `open` closes the connection.
        asking: true,
        turn,
    };
    if let Ok(Ok(RolledBack {
        was_committed: true, ..
    })) = tokio::time::timeout(CLEANING, open.roll_back()).await
    {
        tracing::error!(
            target: "tower_idempotency",
            "a handler committed the operation's transaction on its own; its writes are kept, whatever its response was"
        );
    }
}
