//! The atomic mode: the handler's own writes and the record are one transaction.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use http::Extensions;

use super::{Record, StoreError};

/// The boxed future that [`UnitOfWork`] methods return, because they are called through a trait
/// object.
pub type Working<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// The transaction of one claim, which the handler can join.
///
/// A store in atomic mode returns a unit of work for each claim that it starts. The layer puts it
/// into the request ([`offer`](Self::offer)) and runs the handler. If the handler has begun to work
/// in it ([`is_begun`](Self::is_begun)), the layer commits it together with the record instead of
/// calling [`complete`](super::Store::complete). If a unit of work is dropped, it is rolled back.
pub trait UnitOfWork: Send + Sync + 'static {
    /// Puts the handler's access to the transaction into the request's extensions.
    fn offer(&self, extensions: &mut Extensions);

    /// Returns whether the handler has begun to work in the transaction. The transaction begins
    /// only then.
    fn is_begun(&self) -> bool;

    /// Returns whether the handler wants no effect, whatever its answer is. Such work is rolled
    /// back, and the record is stored with [`complete`](super::Store::complete). The default is
    /// `false`.
    fn is_aborted(&self) -> bool {
        false
    }

    /// Writes the record in the transaction if the claim is still held, and commits both. It is
    /// called at most once, and only if the work has begun. Anyone who still has the transaction
    /// loses it.
    ///
    /// It must not commit a transaction that the handler, or its driver, has already ended. The
    /// record would then report an effect that does not exist.
    fn commit<'a>(&'a self, record: &'a Record, ttl: Duration) -> Working<'a, Commit>;

    /// Finds out for certain whether a commit with the outcome [`Commit::Unknown`] succeeded.
    /// `true` means that it is committed. `false` means that it is not, and never will be.
    fn was_committed(&self) -> Working<'_, Result<bool, StoreError>>;

    /// Returns the work that the handler wants to run after the commit. It is called once the
    /// commit is certain. The layer runs the returned futures in the background. By default, there
    /// are none.
    fn after_commit(&self) -> Vec<Working<'static, ()>> {
        Vec::new()
    }

    /// Rolls the work back. The claim is kept.
    fn roll_back(&self) -> Working<'_, RollBack>;
}

/// The outcome of a commit.
#[derive(Debug)]
#[non_exhaustive]
pub enum Commit {
    /// The handler's effect and the record are both committed.
    Done,
    /// The claim was lost, so everything was rolled back.
    Lost,
    /// Everything was rolled back for another reason.
    Failed(StoreError),
    /// The connection was lost during the commit: see [`UnitOfWork::was_committed`].
    Unknown(StoreError),
    /// The handler had ended the transaction itself, so its answer may describe an effect that
    /// differs from the actual one. This call committed nothing. The layer seals the key.
    Broken(StoreError),
}

/// The outcome of a rollback.
#[derive(Debug)]
#[non_exhaustive]
pub enum RollBack {
    /// No part of the work is kept, as far as the store can tell.
    Done,
    /// The handler had committed the work itself, so the work is kept. The layer seals the key,
    /// because a retry would do the work again.
    Broken(StoreError),
}

impl fmt::Debug for dyn UnitOfWork {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("UnitOfWork")
            .field("is_begun", &self.is_begun())
            .finish_non_exhaustive()
    }
}
