//! The transaction in which a handler's writes are committed together with the response's record.

mod error;
pub(super) mod joint;
pub(super) mod open;
mod own;

use std::fmt;
use std::future::Future;
use std::ops::{Deref, DerefMut};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::OwnedMutexGuard;

use super::guarded::AtomicDatabase;
pub use error::{TransactionError, TransactionErrorKind};
use joint::{Joint, State};
use open::Open;
#[cfg(feature = "axum")]
pub use own::TransactionOrOwn;

/// The operation's transaction for the handler's writes. The writes are committed together with the
/// record of the response, or not at all.
///
/// In Axum, `Transaction` is an extractor. Elsewhere, the transaction is in the request's
/// extensions. The transaction is available whenever the layer runs a handler for a request with a
/// key and the layer's store is a `PostgresStore` or a `SqliteStore` (`DB` is `sqlx::Postgres` or
/// `sqlx::Sqlite`). The transaction is absent if the request has no key, if the store does not
/// support atomic mode, or if the handler runs unprotected because the store failed. A handler that
/// also serves such requests takes an `Option<Transaction<DB>>` or a `TransactionOrOwn<DB>`. For
/// these requests, `TransactionOrOwn` provides a separate transaction, which the handler commits
/// itself.
///
/// The transaction does not begin until the handler first calls [`begin`](Self::begin), so call
/// slow services first and write afterwards. A response that the policy stores (or seals) commits
/// the transaction. Any other response, an error, a panic, [`abort`](Self::abort), or the death of
/// the process rolls the transaction back.
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
/// **The layer commits.** Do not send `COMMIT` or `ROLLBACK`, because the handler's response would
/// no longer match the actual effect. The layer detects such a statement. It then sends a `500`
/// problem `outcome-unknown` instead of the handler's response, logs the reason, and seals the key,
/// so that no retry runs the operation. Savepoints (`work.begin()` in `sqlx`) are safe. However, if
/// a savepoint's future is dropped while it is waiting, for example by a timeout around its
/// `begin`, `sqlx` rolls back the whole transaction. Every later statement in the handler then
/// fails, no write is kept, and the client gets a `503` and can retry.
///
/// **PostgreSQL.** The transaction is an ordinary PostgreSQL transaction at the session's default
/// isolation level. At `REPEATABLE READ` and above, a renewal of the claim's lease is treated as a
/// concurrent update. The lease is renewed each time a third of it has elapsed, so the commit fails
/// if the work takes longer than a third of the lease. While the transaction is open,
/// `default_transaction_read_only` is on in its session, so statements outside the transaction
/// cannot write. Behind a pooler in transaction mode, a handler that ends the transaction itself
/// leaves this setting on a connection that other clients use. PgBouncer's
/// `server_reset_query_always` prevents this.
///
/// A handler can set a role (`SET LOCAL ROLE`) or a search path (`SET LOCAL search_path`) for the
/// transaction. The layer writes the record with the store's role, to the table in the store's
/// schema. The handler's role is then restored, so triggers that are deferred until commit run with
/// that role. If the pool's user is a superuser or a member of any role, switching roles costs one
/// round trip per commit. If the user becomes a member of a role after the store has connected, the
/// first operation in each process whose handler sets a role fails with `503`, and its retry
/// succeeds. Other settings that a handler changes, such as `statement_timeout`, also apply when
/// the record is written.
///
/// **SQLite.** The transaction starts with `BEGIN IMMEDIATE`. Because SQLite allows one writer at a
/// time, every other write waits while the transaction is open. [`begin`](Self::begin) waits for
/// its turn for up to the pool's `acquire_timeout`. The transaction replaces any commit hook and
/// any rollback hook that the application has set on the connection.
pub struct Transaction<DB: AtomicDatabase>(Arc<Joint<DB>>);

impl<DB: AtomicDatabase> Clone for Transaction<DB> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<DB: AtomicDatabase> fmt::Debug for Transaction<DB> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Transaction")
            .field("is_begun", &self.0.is_begun())
            .finish_non_exhaustive()
    }
}

impl<DB: AtomicDatabase> Transaction<DB> {
    pub(super) fn of(joint: Arc<Joint<DB>>) -> Self {
        Self(joint)
    }

    /// Begins the transaction, or continues it if it has already begun.
    ///
    /// # Errors
    ///
    /// Returns an error if the database failed, the response has already been returned, the
    /// operation was [aborted](Self::abort), or the [`Work`] from an earlier call still exists. A
    /// transaction has only one connection, so pass the existing `Work` on instead of calling
    /// `begin` again.
    pub async fn begin(&self) -> Result<Work<DB>, TransactionError> {
        let joint = &self.0;
        if joint.is_aborted() {
            return Err(TransactionError::of(TransactionErrorKind::Aborted));
        }
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
                let open = Open::begin(&joint.pool, joint.turns.as_ref()).await?;
                if joint.given_up.load(Ordering::Acquire) {
                    // The layer settled the operation while the transaction waited to begin.
                    *state = State::Over;
                    return Err(TransactionError::of(TransactionErrorKind::Over));
                }
                *state = State::Open(open);
                joint.begun.store(true, Ordering::Release);
            }
        }
        let given_up = Arc::clone(&joint.given_up);
        Ok(Work { state, given_up })
    }

    /// Ensures that the work is rolled back after the handler has responded, whatever the response
    /// is.
    ///
    /// The policy treats the response like any other. If the policy stores the response, its record
    /// is stored without the effect. Use this method if the handler writes part of an operation and
    /// then refuses the operation with a `200`.
    ///
    /// ```
    /// # #[cfg(feature = "_sqlite")]
    /// # mod example {
    /// # use sqlx::Sqlite;
    /// # use tower_idempotency::store::sql::{Transaction, TransactionError};
    /// # async fn debit(_: &mut sqlx::SqliteConnection) -> Result<bool, sqlx::Error> { Ok(false) }
    /// async fn transfer(transaction: Transaction<Sqlite>) -> Result<&'static str, TransactionError> {
    ///     let mut work = transaction.begin().await?;
    ///     if debit(&mut work).await? {
    ///         return Ok("transferred");
    ///     }
    ///     transaction.abort();
    ///     Ok("refused")
    /// }
    /// # }
    /// ```
    pub fn abort(&self) {
        self.0.aborted.store(true, Ordering::Release);
    }

    /// Runs `work` in the background after the transaction is committed, but not if the transaction
    /// is rolled back.
    ///
    /// `work` runs even if the client has disconnected.
    /// [`background`](crate::IdempotencyLayer::background) waits for `work`, and `work` counts
    /// toward the limit on work without a client (`max_detached`). `work` runs at most once: if the
    /// process dies after the commit, `work` never runs, because a retry gets the stored response.
    /// Use this method for work that may be lost, such as invalidating a cache. Work that must
    /// happen belongs in the transaction, as a row that another process handles (an outbox).
    ///
    /// Do not move a clone of a handler's [`own`](Self::own) transaction into `work` unless you
    /// always call [`commit`](Self::commit). Until then, the clone keeps the transaction open.
    ///
    /// If the commit's outcome is unknown at first, `work` runs as soon as the layer has confirmed
    /// that the transaction was committed. If the handler never called [`begin`](Self::begin), the
    /// layer has nothing to commit, and `work` does not run.
    pub fn on_commit(&self, work: impl Future<Output = ()> + Send + 'static) {
        self.0.do_after_commit(Box::pin(work));
    }
}

/// A connection for running statements in a [`Transaction`], as in `execute(&mut *work)`.
///
/// Dropping a `Work` does not end the transaction.
pub struct Work<DB: AtomicDatabase> {
    state: OwnedMutexGuard<State<DB>>,
    given_up: Arc<AtomicBool>,
}

impl<DB: AtomicDatabase> Drop for Work<DB> {
    fn drop(&mut self) {
        if self.given_up.load(Ordering::Acquire) {
            *self.state = State::Over;
        }
    }
}

impl<DB: AtomicDatabase> fmt::Debug for Work<DB> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Work(..)")
    }
}

impl<DB: AtomicDatabase> Deref for Work<DB> {
    type Target = DB::Connection;

    fn deref(&self) -> &Self::Target {
        match &*self.state {
            State::Open(transaction) => transaction,
            State::NotBegun | State::Over => unreachable!("`Work` locks a transaction that is open"),
        }
    }
}

impl<DB: AtomicDatabase> DerefMut for Work<DB> {
    fn deref_mut(&mut self) -> &mut Self::Target {
        match &mut *self.state {
            State::Open(transaction) => transaction,
            State::NotBegun | State::Over => unreachable!("`Work` locks a transaction that is open"),
        }
    }
}
