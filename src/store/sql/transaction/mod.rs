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

/// The operation's transaction, for the handler's writes. They are committed together with the
/// record of the response, or not at all.
///
/// In Axum, it is an extractor. Elsewhere, it is in the request's extensions. It is available
/// whenever the layer runs a handler for a key and the layer's store is a `PostgresStore` or a
/// `SqliteStore` (`DB` is `sqlx::Postgres` or `sqlx::Sqlite`). It is absent if the request has no
/// key, if the store has no atomic mode, or if the handler runs unprotected because the store
/// failed. A handler that also serves such requests takes an `Option<Transaction<DB>>`, or a
/// `TransactionOrOwn<DB>`, which begins a transaction of the handler's own.
///
/// The transaction does not begin until the handler first calls [`begin`](Self::begin), so call
/// slow services first and write afterwards. A response that the policy stores (or seals) commits
/// the transaction. Any other response, an error, a panic, [`abort`](Self::abort), or the death of
/// the process rolls it back.
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
/// **The layer commits.** Do not send `COMMIT` or `ROLLBACK`: the handler's response would then not
/// match the actual effect. The layer detects this. It sends a `500` problem `outcome-unknown`
/// instead of the handler's response, logs the reason, and seals the key, so that no retry runs.
/// Savepoints are fine (`work.begin()` in `sqlx`). If a savepoint is cut off, for example because a
/// timeout drops its `begin`, `sqlx` rolls back the whole transaction. Each later statement in the
/// handler then fails, nothing is kept, and the client gets a `503` and can retry.
///
/// **PostgreSQL.** It is an ordinary transaction at the session's default isolation level. At
/// `REPEATABLE READ` and above, a renewal of the claim's lease is a concurrent update, so the
/// commit fails if the work takes longer than a third of the lease. While the transaction is open,
/// `default_transaction_read_only` is on in its session, so that nothing can be written outside the
/// transaction. Behind a pooler in transaction mode, a handler that ends the transaction itself
/// leaves that setting on a connection that other clients use. PgBouncer's
/// `server_reset_query_always` prevents that.
///
/// A handler can set a role or a search path for the transaction (`SET LOCAL ROLE`,
/// `SET LOCAL search_path`). The record is written with the store's role and in the store's schema.
/// The handler's role is then restored, so triggers that are deferred to the commit run with it. If
/// the pool's user is a superuser or a member of any role, this costs a round trip for each commit.
/// If the user became a member after the store had connected, the first such operation in a process
/// gets `503`, and its retry succeeds. Other settings that a handler makes, such as
/// `statement_timeout`, also apply when the record is written.
///
/// **SQLite.** It is a `BEGIN IMMEDIATE` transaction. Because SQLite has one writer, every other
/// write waits while the transaction is open. [`begin`](Self::begin) waits for its turn for up to
/// the pool's `acquire_timeout`. The transaction replaces a commit hook and a rollback hook that
/// the application has set on the connection.
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
    /// The database failed, the response has already been returned, the operation was
    /// [aborted](Self::abort), or the [`Work`] from an earlier call still exists. There is one
    /// connection, so pass that `Work` on instead.
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
                *state = State::Open(Open::begin(&joint.pool, joint.turns.as_ref()).await?);
                joint.begun.store(true, Ordering::Release);
            }
        }
        let given_up = Arc::clone(&joint.given_up);
        Ok(Work { state, given_up })
    }

    /// Rolls back the work after the handler has responded, whatever the response is.
    ///
    /// The policy judges the response like any other. If the response is stored, its record is
    /// stored on its own, without the effect. This is for an operation that was refused after part
    /// of it was written, and whose refusal is a `200`.
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

    /// Runs `work` in the background after the transaction is committed, but not if it is rolled
    /// back.
    ///
    /// `work` also runs if the client has disconnected.
    /// [`background`](crate::IdempotencyLayer::background) waits for it, and it is included in the
    /// limit on work without a client (`max_detached`). `work` runs at most once: if the process
    /// dies after the commit, it never runs, because a retry gets the stored response. Use it for
    /// work that may be lost, such as invalidating a cache. Work that must happen belongs in the
    /// transaction, as a row that another process handles (an outbox).
    ///
    /// Do not move a clone of a handler's [`own`](Self::own) transaction into `work` unless you
    /// always call [`commit`](Self::commit). Otherwise, the clone keeps the transaction open.
    ///
    /// If the commit's outcome is unknown at first, `work` runs as soon as the transaction turns
    /// out to be committed. If there was nothing to commit because the handler never called
    /// [`begin`](Self::begin), `work` does not run.
    pub fn on_commit(&self, work: impl Future<Output = ()> + Send + 'static) {
        self.0.do_after_commit(Box::pin(work));
    }
}

/// A connection for running statements in a [`Transaction`], as in `execute(&mut *work)`.
///
/// Dropping it does not end the transaction.
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
