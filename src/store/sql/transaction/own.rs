//! Transactions that the handler commits itself, because no layer commits them.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use sqlx::Pool;

use super::joint::{Joint, Owner};
use super::{Transaction, TransactionError, TransactionErrorKind};
use crate::store::sql::guarded::AtomicDatabase;

impl<DB: AtomicDatabase> Transaction<DB> {
    /// Creates a separate transaction on this pool, for a request that no layer protects in atomic
    /// mode.
    ///
    /// No layer commits this transaction, so the handler must call [`commit`](Self::commit). If the
    /// last clone is dropped before that, the transaction is rolled back.
    #[must_use]
    pub fn own(pool: Pool<DB>) -> Self {
        Self::of(Arc::new(Joint::new(pool, None, Owner::Handler)))
    }

    /// Creates a transaction for calling a handler in a test, without the layer.
    ///
    /// Like a transaction from [`own`](Self::own), this transaction is not committed by a layer.
    /// The test either [commits](Self::commit) the handler's writes or drops the transaction.
    ///
    /// ```
    /// # #[cfg(feature = "_sqlite")]
    /// # mod example {
    /// # use sqlx::Sqlite;
    /// # use tower_idempotency::store::sql::{Transaction, TransactionError};
    /// async fn charge(transaction: Transaction<Sqlite>) -> Result<(), TransactionError> {
    ///     let mut work = transaction.begin().await?;
    ///     sqlx::query("INSERT INTO charges VALUES (1000)").execute(&mut *work).await?;
    ///     Ok(())
    /// }
    ///
    /// # pub async fn test() -> Result<(), Box<dyn std::error::Error>> {
    /// # let options = sqlx::sqlite::SqlitePoolOptions::new().max_connections(1);
    /// # let pool = options.connect("sqlite::memory:").await?;
    /// # sqlx::query("CREATE TABLE charges (cents INTEGER)").execute(&pool).await?;
    /// let transaction = Transaction::for_tests(pool.clone());
    /// charge(transaction.clone()).await?;
    /// transaction.commit().await?;
    /// let charged: i64 = sqlx::query_scalar("SELECT sum(cents) FROM charges").fetch_one(&pool).await?;
    /// assert_eq!(charged, 1000);
    /// # Ok(())
    /// # }
    /// # }
    /// # #[cfg(feature = "_sqlite")]
    /// # tokio::runtime::Runtime::new().unwrap().block_on(example::test()).unwrap();
    /// ```
    #[must_use]
    pub fn for_tests(pool: Pool<DB>) -> Self {
        Self::own(pool)
    }

    /// Commits a transaction from [`own`](Self::own). Has no effect on the layer's transaction,
    /// because the layer commits that transaction with the record of the response.
    ///
    /// So a handler that may receive either kind of transaction should call `commit` after its last
    /// write, and should not return a success if `commit` fails. After `commit`, the transaction
    /// accepts no more work. After [`abort`](Self::abort), `commit` rolls the transaction back.
    ///
    /// # Errors
    ///
    /// - [`Database`](TransactionErrorKind::Database): the database failed before or at the commit,
    ///   and nothing was committed.
    /// - [`OutcomeUnknown`](TransactionErrorKind::OutcomeUnknown): the connection was lost during
    ///   the commit, so either everything or nothing was committed.
    /// - [`Ended`](TransactionErrorKind::Ended): the transaction is no longer open, because one of
    ///   the handler's statements ended it or a savepoint's future was dropped while it was waiting.
    /// - [`InUse`](TransactionErrorKind::InUse): the [`Work`](super::Work) from
    ///   [`begin`](Self::begin) still exists.
    /// - [`Over`](TransactionErrorKind::Over): the transaction is already over.
    pub async fn commit(&self) -> Result<(), TransactionError> {
        if self.0.owner == Owner::Layer {
            return Ok(());
        }
        if self.0.state.try_lock().is_err() {
            return Err(TransactionError::of(TransactionErrorKind::InUse));
        }
        let open = self.0.take().await;
        // The work is taken here, so that it is dropped if the transaction is not committed. The
        // work may own the transaction, which in turn owns the work.
        let following = self.0.after_commit();
        let Some(mut open) = open else {
            return if self.0.begun.load(Ordering::Acquire) {
                Err(TransactionError::of(TransactionErrorKind::Over))
            } else {
                Ok(())
            };
        };
        if self.0.is_aborted() {
            open.roll_back().await?;
            return Ok(());
        }
        if !open.is_open().await? {
            // Dropping `open` rolls back any transaction that is still open.
            return Err(TransactionError::of(TransactionErrorKind::Ended));
        }
        open.commit().await.map_err(TransactionError::of_commit::<DB>)?;
        for work in following {
            tokio::spawn(work);
        }
        Ok(())
    }
}

/// An extractor for handlers that also serve requests without a key. Extracts the layer's
/// [`Transaction`] from the request, or creates a separate transaction if the request does not
/// contain one.
///
/// The router's state provides the pool (`Pool<DB>: FromRef<S>`). Call
/// [`commit`](Transaction::commit) at the end of the handler's work. It commits a separate
/// transaction, and has no effect on the layer's transaction. If you do not call it, the writes for
/// a request without a key are rolled back.
///
/// ```
/// # #[cfg(feature = "_sqlite")]
/// # mod example {
/// use axum::http::StatusCode;
/// use sqlx::Sqlite;
/// use tower_idempotency::store::sql::{TransactionError, TransactionOrOwn};
///
/// async fn charge(TransactionOrOwn(transaction): TransactionOrOwn<Sqlite>) -> Result<StatusCode, TransactionError> {
///     let mut work = transaction.begin().await?;
///     sqlx::query("INSERT INTO charges (cents) VALUES (1000)")
///         .execute(&mut *work)
///         .await?;
///     drop(work);
///     transaction.commit().await?;
///     Ok(StatusCode::CREATED)
/// }
///
/// fn routes(pool: sqlx::SqlitePool) -> axum::Router {
///     axum::Router::new().route("/charges", axum::routing::post(charge)).with_state(pool)
/// }
/// # }
/// ```
#[cfg(feature = "axum")]
#[cfg_attr(docsrs, doc(cfg(feature = "axum")))]
#[derive(Debug)]
pub struct TransactionOrOwn<DB: AtomicDatabase>(pub Transaction<DB>);
