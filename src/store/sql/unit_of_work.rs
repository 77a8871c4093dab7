//! The layer's side of a transaction, which commits the record together with the handler's writes.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use http::Extensions;
use sqlx::Pool;

use super::claim::ClaimId;
use super::guarded::{AtomicDatabase, Guarded, RolledBack};
use super::transaction::Transaction;
use super::transaction::joint::Joint;
use super::transaction::open::Open;
use super::turns::Turns;
use crate::store::Record;
use crate::store::{Commit, RollBack, UnitOfWork, Working};
use crate::store::{StoreError, StoreErrorKind};

/// The interface between atomic mode and a store.
pub(super) trait AtomicStore: Clone + Send + Sync + 'static {
    type Db: AtomicDatabase;

    /// The store's name in messages.
    const NAME: &'static str;

    fn pool(&self) -> &Pool<Self::Db>;

    /// Returns the queue in which writers wait for their turn. `None` in a database with more than
    /// one writer.
    fn turns(&self) -> Option<Turns> {
        None
    }

    /// Writes the record in the transaction, if the transaction is still open and the token still
    /// holds the claim. After that, committing the transaction also makes the connection ready for
    /// other work.
    ///
    /// From this call until commit, the row is locked. If a database's clients can stop responding,
    /// the database must end the transaction of such a client within the length of the claim's
    /// lease.
    fn complete_in(
        &self,
        connection: &mut <Self::Db as sqlx::Database>::Connection,
        guard: &<Self::Db as Guarded>::Guard,
        claim: &ClaimId,
        record: &[u8],
        ttl: Duration,
    ) -> impl Future<Output = Result<Completed, sqlx::Error>> + Send;

    /// Waits until no transaction can write the claim's record any more, and then returns whether
    /// the record exists.
    fn is_done(&self, claim: &ClaimId) -> impl Future<Output = Result<bool, StoreError>> + Send;

    fn error(operation: &'static str, error: sqlx::Error) -> StoreError;
}

/// The result of writing the record in a transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Completed {
    Yes,
    /// Another token holds the claim.
    Lost,
    /// The transaction is no longer open.
    NotOpen,
}

/// The unit of work of one claim.
pub(super) struct Unit<S: AtomicStore> {
    store: S,
    claim: ClaimId,
    joint: Arc<Joint<S::Db>>,
    /// Whether `COMMIT` may have been sent. Before `COMMIT` is sent, nothing can be committed.
    asked: AtomicBool,
}

impl<S: AtomicStore> Unit<S> {
    pub(super) fn new(store: S, claim: ClaimId) -> Self {
        let joint = Arc::new(Joint::of_layer(store.pool().clone(), store.turns()));
        Self {
            store,
            claim,
            joint,
            asked: AtomicBool::new(false),
        }
    }

    async fn commit(&self, record: &Record, ttl: Duration) -> Commit {
        let Some(mut transaction) = self.joint.take().await else {
            let why = "the transaction could not begin, so there is nothing to commit";
            return Commit::Failed(because::<S>(why));
        };
        let record = record.to_bytes();
        let completed = {
            let (connection, guard) = transaction.ask();
            let completed = self.store.complete_in(connection, guard, &self.claim, &record, ttl);
            let completed = completed.await;
            transaction.answered();
            completed
        };
        // At this point, the connection has finished all work that dropped futures had left in its
        // queue.
        match transaction.depth() {
            1 => {}
            depth => return undo_cut::<S>(transaction, depth).await,
        }
        match completed {
            Ok(Completed::Yes) => {}
            Ok(Completed::Lost) => {
                // If the rollback fails, the connection is closed, so the transaction is lost too.
                let _ = transaction.roll_back().await;
                return Commit::Lost;
            }
            Ok(Completed::NotOpen) => return undo_ended::<S>(transaction).await,
            // This crate did not send `COMMIT`, so nothing can have been committed unless the
            // handler sent it.
            Err(error) => {
                return match transaction.is_open().await {
                    Ok(false) => undo_ended::<S>(transaction).await,
                    Ok(true) | Err(_) => match transaction.roll_back().await {
                        Ok(RolledBack {
                            was_committed: true, ..
                        }) => Commit::Broken(because::<S>(COMMITTED)),
                        Ok(_) | Err(_) => Commit::Failed(S::error("commit", error)),
                    },
                };
            }
        }
        self.asked.store(true, Ordering::Release);
        match transaction.commit().await {
            Ok(()) => Commit::Done,
            Err(error) if S::Db::leaves_in_doubt(&error) => Commit::Unknown(S::error("commit", error)),
            Err(error) => Commit::Failed(S::error("commit", error)),
        }
    }
}

const COMMITTED: &str = "the handler committed the operation's transaction on its own, so its writes are kept without \
                         a record; do not send `COMMIT` in a handler, because the layer commits";
const ROLLED_BACK: &str = "the handler ended the operation's transaction on its own, so its writes are lost and its \
                           response does not match the effect; do not send `ROLLBACK` in a handler, but call \
                           `Transaction::abort`";
const CUT: &str = "a savepoint was cut off (its future was dropped while it waited), so `sqlx` rolled back the whole \
                   transaction; put timeouts around the operation, not around a savepoint";
const LEFT: &str = "a savepoint was left open; commit or drop it before the handler returns";

fn because<S: AtomicStore>(why: &'static str) -> StoreError {
    StoreError::new(StoreErrorKind::Unavailable, format!("{}: commit: {why}", S::NAME))
}

/// Rolls back a transaction that `sqlx` has ended, or that still has savepoints.
async fn undo_cut<S: AtomicStore>(transaction: Open<S::Db>, depth: usize) -> Commit {
    match transaction.roll_back().await {
        Ok(RolledBack {
            was_committed: true, ..
        }) => Commit::Broken(because::<S>(COMMITTED)),
        Ok(_) if depth == 0 => Commit::Failed(because::<S>(CUT)),
        Ok(_) => Commit::Failed(because::<S>(LEFT)),
        Err(error) => Commit::Failed(S::error("commit", error)),
    }
}

/// Rolls back any transaction that the handler began after it had ended the operation's
/// transaction.
async fn undo_ended<S: AtomicStore>(transaction: Open<S::Db>) -> Commit {
    Commit::Broken(match transaction.roll_back().await {
        Ok(RolledBack {
            was_committed: true, ..
        }) => because::<S>(COMMITTED),
        Ok(_) => because::<S>(ROLLED_BACK),
        Err(error) => because::<S>(ROLLED_BACK).with_source(error),
    })
}

impl<S: AtomicStore> Drop for Unit<S> {
    /// Ends the transaction, because nobody will commit it any more. Also drops the work that is
    /// waiting for the commit. The work may own the transaction itself, which would otherwise never
    /// be dropped.
    fn drop(&mut self) {
        self.joint.give_up();
        drop(self.joint.after_commit());
    }
}

impl<S: AtomicStore> UnitOfWork for Unit<S> {
    fn offer(&self, extensions: &mut Extensions) {
        extensions.insert(Transaction::of(Arc::clone(&self.joint)));
    }

    fn is_begun(&self) -> bool {
        self.joint.is_begun()
    }

    fn is_aborted(&self) -> bool {
        self.joint.is_aborted()
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

    fn after_commit(&self) -> Vec<Working<'static, ()>> {
        self.joint.after_commit()
    }

    fn roll_back(&self) -> Working<'_, RollBack> {
        Box::pin(async {
            let Some(transaction) = self.joint.take().await else {
                return RollBack::Done;
            };
            match transaction.roll_back().await {
                Ok(RolledBack {
                    was_committed: true, ..
                }) => RollBack::Broken(because::<S>(COMMITTED)),
                // If the rollback fails, the connection is closed, so the transaction is lost too.
                Ok(_) | Err(_) => RollBack::Done,
            }
        })
    }
}
