//! The layer's end of a transaction: it commits the record together with what the handler wrote.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use http::Extensions;
use sqlx::{Database, Pool};

use super::claim::ClaimId;
use super::transaction::Transaction;
use super::transaction::joint::Joint;
use super::turns::Turns;
use crate::store::Record;
use crate::store::{Commit, UnitOfWork, Working};
use crate::store::{StoreError, StoreErrorKind};

/// What the atomic mode needs of a store.
pub(super) trait AtomicStore: Clone + Send + Sync + 'static {
    type Db: Database;

    /// The name in messages.
    const NAME: &'static str;
    /// How a transaction begins.
    const BEGIN: &'static str;

    fn pool(&self) -> &Pool<Self::Db>;

    /// Where those who write wait for their turn. `None`: in a database with more writers than one.
    fn turns(&self) -> Option<Turns> {
        None
    }

    /// Writes the record in an open transaction if the token still holds the claim.
    ///
    /// From then on the row is locked. A database whose clients can fall silent must end such a
    /// transaction after the claim's lease at most.
    fn complete_in(
        &self,
        connection: &mut <Self::Db as Database>::Connection,
        claim: &ClaimId,
        record: &[u8],
        ttl: Duration,
    ) -> impl Future<Output = Result<bool, sqlx::Error>> + Send;

    /// Whether the record of that claim is there. Answers only when no transaction is left that may
    /// still write it.
    fn is_done(&self, claim: &ClaimId) -> impl Future<Output = Result<bool, StoreError>> + Send;

    fn error(operation: &'static str, error: sqlx::Error) -> StoreError;

    /// Whether a commit that failed with this error may have taken effect all the same.
    fn leaves_in_doubt(error: &sqlx::Error) -> bool;
}

/// The unit of work of one claim.
pub(super) struct Unit<S: AtomicStore> {
    store: S,
    claim: ClaimId,
    joint: Arc<Joint<S::Db>>,
    /// Whether `COMMIT` may have been sent. Before, nothing can be committed.
    asked: AtomicBool,
}

impl<S: AtomicStore> Unit<S> {
    pub(super) fn new(store: S, claim: ClaimId) -> Self {
        let joint = Arc::new(Joint::new(store.pool().clone(), S::BEGIN, store.turns()));
        Self {
            store,
            claim,
            joint,
            asked: AtomicBool::new(false),
        }
    }

    async fn commit(&self, record: &Record, ttl: Duration) -> Commit {
        let Some(mut transaction) = self.joint.take().await else {
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
                // If that fails, the connection is lost, and the transaction with it.
                let _ = transaction.rollback().await;
                return Commit::Lost;
            }
            // `COMMIT` was not sent, so nothing can be committed.
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

impl<S: AtomicStore> UnitOfWork for Unit<S> {
    fn offer(&self, extensions: &mut Extensions) {
        extensions.insert(Transaction::of(Arc::clone(&self.joint)));
    }

    fn is_begun(&self) -> bool {
        self.joint.is_begun()
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
            if let Some(transaction) = self.joint.take().await {
                // If that fails, the connection is lost, and the transaction with it.
                let _ = transaction.rollback().await;
            }
        })
    }
}
