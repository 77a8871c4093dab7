//! The transaction that a handler writes in together with the record of its response.

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

/// The transaction of the operation that a handler runs for. What is written in it is committed
/// together with the record of the response, or not at all.
///
/// In Axum it is an extractor; elsewhere it is in the request's extensions. It is there whenever
/// the layer runs a handler for a key and its store is a `PostgresStore` or a `SqliteStore`
/// (`DB` is `sqlx::Postgres` or `sqlx::Sqlite`). It is absent if the request has no key, if the store
/// has no atomic mode, and if the handler runs unprotected because the store failed. A handler for
/// those requests too takes an `Option<Transaction<DB>>`, or a `TransactionOrOwn<DB>`, which begins a
/// transaction of the handler's own.
///
/// It begins when the handler first calls [`begin`](Self::begin), not before: call slow services
/// first, and write then. A response that the policy stores (or seals) commits it. Any other
/// response, an error, a panic, [`abort`](Self::abort), or the death of the process rolls it back.
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
/// **The layer commits.** Do not send `COMMIT` or `ROLLBACK`: the handler's answer would then speak of
/// another effect than the one that is there. The layer notices. It answers `500` problem
/// `outcome-unknown` in place of the handler, logs the reason, and seals the key, so that no retry
/// runs. A savepoint is fine (`work.begin()` of `sqlx`). If a savepoint is cut off, as when a time-out
/// drops its `begin`, `sqlx` rolls the whole transaction back. Each later statement of the handler then
/// fails, nothing is kept, and the client gets a `503` and may retry.
///
/// **PostgreSQL.** It is an ordinary transaction at the session's default isolation. At `REPEATABLE
/// READ` and above, a renewal of the claim's lease counts as a concurrent update, and the commit
/// fails if the work took longer than a third of the lease. While it is open,
/// `default_transaction_read_only` is on in its session, so that nothing can be written outside of it.
/// Behind a pooler in transaction mode, a handler that ends the transaction by itself leaves that
/// setting on a connection of others; PgBouncer's `server_reset_query_always` prevents that.
///
/// A handler may set a role or a search path for the transaction (`SET LOCAL ROLE`, `SET LOCAL search_path`).
/// The record is written with the role and in the schema of the store. The handler's role then comes back:
/// triggers that are deferred to the commit run with it. If the pool's user is a superuser or a member of
/// any role, this costs a round trip for each commit. If it became a member after the store had connected, the
/// first such operation of a process gets `503`, and its retry succeeds. What else a handler sets applies to
/// the record too, such as `statement_timeout`.
///
/// **SQLite.** It is `BEGIN IMMEDIATE`. Because there is one writer, every other write waits while it
/// is open. [`begin`](Self::begin) waits for its turn for up to the pool's `acquire_timeout`. The
/// transaction takes the place of a commit hook and a roll-back hook that the application has set on the
/// connection.
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

    /// Begins the transaction, or goes on in it if it has begun.
    ///
    /// # Errors
    ///
    /// The database failed; the response has been given already; the operation was
    /// [aborted](Self::abort); or the [`Work`] of an earlier call is still there. There is one
    /// connection, so hand that `Work` on instead.
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

    /// Rolls the work back when the handler has answered, whatever it answers.
    ///
    /// The answer is judged by the policy as any other. If it is stored, its record is stored on its
    /// own, without an effect: for an operation that was refused after some of it was written, and whose
    /// refusal is a `200`.
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

    /// Runs `work` in the background after the transaction is committed, and not if it is rolled back.
    ///
    /// It also runs if the client has disconnected. [`background`](crate::IdempotencyLayer::background) waits
    /// for it, and it counts as work without a client (`max_detached`). It runs at most once: if the process
    /// dies after the commit, it never runs, because a retry gets the stored response. Use it for what may be
    /// lost, such as the invalidation of a cache. What must happen belongs in the transaction, as a row that
    /// another process works off (an outbox).
    ///
    /// Do not move a clone of a transaction of the handler's [`own`](Self::own) into `work`, unless you call
    /// [`commit`](Self::commit) in any case. The clone would keep the transaction open.
    ///
    /// If the commit's outcome is unknown at first, `work` runs as soon as it turns out to be committed.
    /// If there was nothing to commit because the handler never called [`begin`](Self::begin), it does
    /// not run.
    pub fn on_commit(&self, work: impl Future<Output = ()> + Send + 'static) {
        self.0.do_after_commit(Box::pin(work));
    }
}

/// Work in a [`Transaction`]: a connection to run statements on, as in `execute(&mut *work)`.
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
            State::NotBegun | State::Over => unreachable!("work is made of an open transaction, and locks it"),
        }
    }
}

impl<DB: AtomicDatabase> DerefMut for Work<DB> {
    fn deref_mut(&mut self) -> &mut Self::Target {
        match &mut *self.state {
            State::Open(transaction) => transaction,
            State::NotBegun | State::Over => unreachable!("work is made of an open transaction, and locks it"),
        }
    }
}
