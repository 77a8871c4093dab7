//! A transaction that the handler commits by itself, where no layer does.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use sqlx::Pool;

use super::joint::{Joint, Owner};
use super::{Transaction, TransactionError, TransactionErrorKind};
use crate::store::sql::guarded::AtomicDatabase;

impl<DB: AtomicDatabase> Transaction<DB> {
    /// A transaction of the handler's own on this pool, for a request that no layer guards in atomic
    /// mode.
    ///
    /// Nobody else commits it: call [`commit`](Self::commit). If the last clone is dropped before,
    /// it is rolled back.
    #[must_use]
    pub fn own(pool: Pool<DB>) -> Self {
        Self::of(Arc::new(Joint::new(pool, None, Owner::Handler)))
    }

    /// A transaction to call a handler with in a test, without the layer.
    ///
    /// As [`own`](Self::own): the test decides whether to [`commit`](Self::commit), or to drop what the
    /// handler wrote.
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

    /// Commits a transaction of the handler's [own](Self::own). Leaves one of the layer to the layer,
    /// which commits it with the record of the response.
    ///
    /// So a handler that may be given either calls it when everything is written, and does not answer
    /// with success if it fails. It is the last call: the transaction takes no more work. After
    /// [`abort`](Self::abort) it rolls back.
    ///
    /// # Errors
    ///
    /// The database failed, so that nothing is committed, or, if the connection was lost, perhaps all; the
    /// transaction is not open any more, because a statement of the handler ended it or a savepoint was
    /// cut off; the [`Work`](super::Work) of [`begin`](Self::begin) is still there; or it is over.
    pub async fn commit(&self) -> Result<(), TransactionError> {
        if self.0.owner == Owner::Layer {
            return Ok(());
        }
        if self.0.state.try_lock().is_err() {
            return Err(TransactionError::of(TransactionErrorKind::InUse));
        }
        let Some(mut open) = self.0.take().await else {
            return if self.0.begun.load(Ordering::Acquire) {
                Err(TransactionError::of(TransactionErrorKind::Over))
            } else {
                Ok(())
            };
        };
        // Dropped where nothing is committed: it may hold this transaction, which would hold it in turn.
        let following = self.0.after_commit();
        if self.0.is_aborted() {
            open.roll_back().await?;
            return Ok(());
        }
        if !open.is_open().await? {
            // What is left of it is rolled back.
            return Err(TransactionError::of(TransactionErrorKind::Ended));
        }
        open.commit().await?;
        for work in following {
            tokio::spawn(work);
        }
        Ok(())
    }
}

/// The layer's [`Transaction`] if there is one, and otherwise one of the handler's own: an extractor
/// for handlers that also run without a key.
///
/// The router's state provides the pool (`Pool<DB>: FromRef<S>`). End with
/// [`commit`](Transaction::commit): it commits a transaction of the handler's own, and leaves the layer's
/// to the layer. Without it, a request without a key has no effect.
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
