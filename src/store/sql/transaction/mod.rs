//! The transaction that a handler writes in together with the record of its response.

mod error;
pub(super) mod joint;

use std::fmt;
use std::ops::{Deref, DerefMut};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use sqlx::{AssertSqlSafe, Database};
use tokio::sync::OwnedMutexGuard;

use super::open::Open;
pub use error::{TransactionError, TransactionErrorKind};
use joint::{Joint, State};

/// The transaction of the operation that a handler runs for. What is written in it is committed
/// together with the record of the response, or not at all.
///
/// In Axum it is an extractor; elsewhere it is in the request's extensions. It is there whenever
/// the layer runs a handler for a key and its store is a `PostgresStore` or a `SqliteStore`
/// (`DB` is `sqlx::Postgres` or `sqlx::Sqlite`).
///
/// It begins when the handler first calls [`begin`](Self::begin), not before: call slow services
/// first, and write then. A response that the policy stores (or seals) commits it. Any other
/// response, an error, a panic, or the death of the process rolls it back.
///
/// ```
/// # #[cfg(all(feature = "axum", feature = "_sqlite"))]
/// # mod example {
/// use axum::http::StatusCode;
/// use sqlx::Sqlite;
/// use tower_idempotency::store::sql::{Transaction, TransactionError};
///
/// async fn charge(transaction: Transaction<Sqlite>) -> Result<StatusCode, TransactionError> {
///     // Ask the provider here, before the transaction begins.
///     let mut work = transaction.begin().await?;
///     sqlx::query("INSERT INTO charges (cents) VALUES (1000)")
///         .execute(&mut *work)
///         .await?;
///     // No commit: the layer commits, with the record of this response.
///     Ok(StatusCode::CREATED)
/// }
/// # }
/// ```
///
/// PostgreSQL: it is an ordinary transaction at the database's default isolation. At `REPEATABLE
/// READ` and above, a renewal of the claim's lease counts as a concurrent update, and the commit
/// fails if the work took longer than a third of the lease. SQLite: it is `BEGIN IMMEDIATE`. Because
/// there is one writer, every other write waits while it is open.
pub struct Transaction<DB: Database>(Arc<Joint<DB>>);

impl<DB: Database> Clone for Transaction<DB> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<DB: Database> fmt::Debug for Transaction<DB> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Transaction")
            .field("is_begun", &self.0.is_begun())
            .finish_non_exhaustive()
    }
}

impl<DB: Database> Transaction<DB> {
    pub(super) fn of(joint: Arc<Joint<DB>>) -> Self {
        Self(joint)
    }

    /// Begins the transaction, or goes on in it if it has begun.
    ///
    /// # Errors
    ///
    /// The database failed; the response has been given already; or the [`Work`] of an earlier call
    /// is still there. There is one connection, so hand that `Work` on instead.
    pub async fn begin(&self) -> Result<Work<DB>, TransactionError> {
        let joint = &self.0;
        let mut state = Arc::clone(&joint.state)
            .try_lock_owned()
            .map_err(|_| TransactionError::of(TransactionErrorKind::InUse))?;
        if joint.given_up.load(Ordering::Acquire) {
            *state = State::Over;
        }
        match &*state {
            State::Open(_) => {}
            State::Over => return Err(TransactionError::of(TransactionErrorKind::Over)),
            State::NotBegun => {
                let begin = Open::begin(&joint.pool, AssertSqlSafe(joint.begin), joint.turns.as_ref());
                *state = State::Open(begin.await?);
                joint.begun.store(true, Ordering::Release);
            }
        }
        let given_up = Arc::clone(&joint.given_up);
        Ok(Work { state, given_up })
    }
}

/// Work in a [`Transaction`]: a connection to run statements on, as in `execute(&mut *work)`.
///
/// Dropping it does not end the transaction.
pub struct Work<DB: Database> {
    state: OwnedMutexGuard<State<DB>>,
    given_up: Arc<AtomicBool>,
}

impl<DB: Database> Drop for Work<DB> {
    fn drop(&mut self) {
        if self.given_up.load(Ordering::Acquire) {
            *self.state = State::Over;
        }
    }
}

impl<DB: Database> fmt::Debug for Work<DB> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Work(..)")
    }
}

impl<DB: Database> Deref for Work<DB> {
    type Target = DB::Connection;

    fn deref(&self) -> &Self::Target {
        match &*self.state {
            State::Open(transaction) => transaction,
            State::NotBegun | State::Over => unreachable!("work is made of an open transaction, and locks it"),
        }
    }
}

impl<DB: Database> DerefMut for Work<DB> {
    fn deref_mut(&mut self) -> &mut Self::Target {
        match &mut *self.state {
            State::Open(transaction) => transaction,
            State::NotBegun | State::Over => unreachable!("work is made of an open transaction, and locks it"),
        }
    }
}
