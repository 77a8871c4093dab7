//! The transaction that a handler writes in together with the record of its response.

use std::error::Error as StdError;
use std::fmt;
use std::ops::{Deref, DerefMut};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use http::Extensions;
use sqlx::{AssertSqlSafe, Database, Pool};
use tokio::sync::{Mutex, OwnedMutexGuard};

use super::open::Open;
use super::{ClaimId, SqlStore};
use crate::store::Record;
use crate::store::{Commit, UnitOfWork, Working};
use crate::store::{StoreError, StoreErrorKind};

/// The transaction of the operation that a handler runs for: what is written in it is committed
/// together with the record of the response, or not at all.
///
/// In Axum it is an extractor; elsewhere it is in the request's extensions. It is there whenever
/// the layer runs a handler for a key and its store is a `PostgresStore` or a `SqliteStore`
/// (`DB` is `sqlx::Postgres` or `sqlx::Sqlite`).
///
/// It begins when the handler first calls [`begin`](Self::begin), not before: call slow services
/// first, and write then. A response that the policy stores (or seals) commits it; any other
/// response, an error, a panic, or the death of the process rolls it back.
///
/// ```
/// # #[cfg(all(feature = "axum", feature = "sqlite"))]
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
/// READ` and above a renewal of the claim's lease counts as a concurrent update, and the commit
/// fails if the work took longer than a third of the lease. SQLite: it is `BEGIN IMMEDIATE`; since
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
            .field("is_begun", &self.0.begun.load(Ordering::Relaxed))
            .finish_non_exhaustive()
    }
}

/// What the handler and the layer share.
struct Joint<DB: Database> {
    pool: Pool<DB>,
    begin: &'static str,
    state: Arc<Mutex<State<DB>>>,
    begun: AtomicBool,
    /// The layer has waited for work that was left behind for as long as it may: what is not over
    /// yet is rolled back when that work ends.
    given_up: Arc<AtomicBool>,
}

enum State<DB: Database> {
    NotBegun,
    Open(Open<DB>),
    /// Committed or rolled back: the layer has the answer, and nothing may be added.
    Over,
}

impl<DB: Database> Transaction<DB> {
    /// Begins the transaction, or goes on in it if it has begun.
    ///
    /// # Errors
    ///
    /// The database could not be asked; the response has been given already; or the [`Work`] of an
    /// earlier call is still there: there is one connection, so hand that on instead.
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
                *state = State::Open(Open::begin(&joint.pool, AssertSqlSafe(joint.begin)).await?);
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

/// Why a [`Transaction`] could not begin, or a statement in it failed.
///
/// In Axum it is a response, `503`, which rolls the transaction back and frees the key.
#[derive(Debug)]
pub struct TransactionError {
    kind: TransactionErrorKind,
    source: Option<sqlx::Error>,
}

/// What sort of failure a [`TransactionError`] is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum TransactionErrorKind {
    /// The database failed, or refused the statement.
    Database,
    /// The [`Work`] of an earlier [`Transaction::begin`] is still there.
    InUse,
    /// The response has been given already.
    Over,
}

impl TransactionError {
    fn of(kind: TransactionErrorKind) -> Self {
        Self { kind, source: None }
    }

    /// What sort of failure it is.
    #[must_use]
    pub fn kind(&self) -> TransactionErrorKind {
        self.kind
    }
}

/// So that `?` serves for statements in a handler, too.
impl From<sqlx::Error> for TransactionError {
    fn from(error: sqlx::Error) -> Self {
        Self {
            kind: TransactionErrorKind::Database,
            source: Some(error),
        }
    }
}

impl fmt::Display for TransactionError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.kind {
            TransactionErrorKind::Database => "the database failed in the operation's transaction",
            TransactionErrorKind::InUse => {
                "the operation's transaction is in use: drop the `Work` of the earlier `begin`, or hand it on"
            }
            TransactionErrorKind::Over => {
                "the operation's transaction is over: the response was given before this work began"
            }
        })
    }
}

impl StdError for TransactionError {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.source.as_ref().map(|source| source as _)
    }
}

/// The layer's end of a [`Transaction`].
pub(super) struct Unit<S: SqlStore> {
    store: S,
    claim: ClaimId,
    joint: Arc<Joint<S::Db>>,
    /// `COMMIT` may have been sent. Before, nothing can be committed.
    asked: AtomicBool,
}

/// Raises a flag if it is dropped.
struct Raise<'a>(&'a AtomicBool);

impl Drop for Raise<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}

impl<S: SqlStore> Unit<S> {
    pub(super) fn new(store: S, claim: ClaimId) -> Self {
        let joint = Arc::new(Joint {
            pool: store.pool().clone(),
            begin: S::BEGIN,
            state: Arc::new(Mutex::new(State::NotBegun)),
            begun: AtomicBool::new(false),
            given_up: Arc::default(),
        });
        Self {
            store,
            claim,
            joint,
            asked: AtomicBool::new(false),
        }
    }

    /// Takes the transaction away from the handler. Waits for work that the handler left behind;
    /// if the wait is given up, that work can only be rolled back.
    async fn take(&self) -> Option<Open<S::Db>> {
        let giving_up = Raise(&self.joint.given_up);
        let mut state = self.joint.state.lock().await;
        std::mem::forget(giving_up);
        match std::mem::replace(&mut *state, State::Over) {
            State::Open(transaction) => Some(transaction),
            State::NotBegun | State::Over => None,
        }
    }

    async fn commit(&self, record: &Record, ttl: Duration) -> Commit {
        let Some(mut transaction) = self.take().await else {
            let message = format!(
                "{}: commit: the transaction could not begin, so there is nothing to commit",
                S::NAME
            );
            return Commit::Failed(StoreError::new(StoreErrorKind::Unavailable, message));
        };
        let record = record.to_bytes();
        let completed = {
            let asking = transaction.ask();
            let completed = self.store.complete_in(asking, &self.claim, &record, ttl).await;
            transaction.answered();
            completed
        };
        match completed {
            Ok(true) => {}
            Ok(false) => {
                // Should it fail, the connection is lost, and the transaction with it.
                let _ = transaction.rollback().await;
                return Commit::Lost;
            }
            // The commit was not asked for, so it cannot be done.
            Err(error) => {
                let _ = transaction.rollback().await;
                return Commit::Failed(S::error("commit", error));
            }
        }
        self.asked.store(true, Ordering::Release);
        match transaction.commit().await {
            Ok(()) => Commit::Done,
            Err(error) if S::leaves_in_doubt(&error) => Commit::Unknown(S::error("commit", error)),
            Err(error) => Commit::Failed(S::error("commit", error)),
        }
    }
}

impl<S: SqlStore> UnitOfWork for Unit<S> {
    fn offer(&self, extensions: &mut Extensions) {
        extensions.insert(Transaction(Arc::clone(&self.joint)));
    }

    fn is_begun(&self) -> bool {
        self.joint.begun.load(Ordering::Acquire)
    }

    fn commit<'a>(&'a self, record: &'a Record, ttl: Duration) -> Working<'a, Commit> {
        Box::pin(self.commit(record, ttl))
    }

    fn was_committed(&self) -> Working<'_, Result<bool, StoreError>> {
        Box::pin(async {
            if !self.asked.load(Ordering::Acquire) {
                return Ok(false);
            }
            self.store.is_done(&self.claim).await
        })
    }

    fn roll_back(&self) -> Working<'_, ()> {
        Box::pin(async {
            if let Some(transaction) = self.take().await {
                // Should it fail, the connection is lost, and the transaction with it.
                let _ = transaction.rollback().await;
            }
        })
    }
}
