//! Atomic mode, which commits the handler's own writes and the record in one transaction.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use http::Extensions;

use super::{Record, StoreError};

/// The boxed future that [`UnitOfWork`] methods return. It is boxed because the methods are called
/// through a trait object.
pub type Working<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// A claim's transaction, which the handler can join.
///
/// A store in atomic mode returns a unit of work for each claim that it starts. The layer adds this
/// unit of work to the request ([`offer`](Self::offer)) and runs the handler. If the handler has
/// begun to use the transaction ([`is_begun`](Self::is_begun)), the layer commits the handler's
/// writes and the record in this transaction instead of calling
/// [`complete`](super::Store::complete). Dropping a unit of work rolls back its transaction.
pub trait UnitOfWork: Send + Sync + 'static {
    /// Gives the handler access to the transaction through the request's extensions.
    fn offer(&self, extensions: &mut Extensions);

    /// Returns whether the handler has begun to use the transaction. The transaction begins when
    /// the handler first uses it.
    fn is_begun(&self) -> bool;

    /// Returns whether the handler has requested that its work be discarded, regardless of its
    /// response. If so, the layer rolls back the work and stores the record with
    /// [`complete`](super::Store::complete). The default implementation returns `false`.
    fn is_aborted(&self) -> bool {
        false
    }

    /// If the claim is still held, writes the record in the transaction and commits the
    /// transaction. The layer calls this method at most once, and only if the transaction has
    /// begun. After the call, code that still has a handle to the transaction can no longer use it.
    ///
    /// This method must not commit if the handler or its driver has already ended the transaction.
    /// Otherwise, the record would report an effect that does not exist.
    fn commit<'a>(&'a self, record: &'a Record, ttl: Duration) -> Working<'a, Commit>;

    /// Determines whether a commit with the outcome [`Commit::Unknown`] succeeded. `true` means
    /// that the work is committed. `false` means that the work is not committed and never will be.
    fn was_committed(&self) -> Working<'_, Result<bool, StoreError>>;

    /// Returns the futures that the handler registered to run after the commit. The layer calls
    /// this method once the commit is certain, and runs the returned futures in the background. The
    /// default implementation returns no futures.
    fn after_commit(&self) -> Vec<Working<'static, ()>> {
        Vec::new()
    }

    /// Rolls back the work, but keeps the claim.
    fn roll_back(&self) -> Working<'_, RollBack>;
}

/// The outcome of a commit.
#[derive(Debug)]
#[non_exhaustive]
pub enum Commit {
    /// The handler's writes and the record were both committed.
    Done,
    /// The claim was lost, so everything was rolled back.
    Lost,
    /// Everything was rolled back for a different reason.
    Failed(StoreError),
    /// The connection was lost during the commit. See [`UnitOfWork::was_committed`].
    Unknown(StoreError),
    /// The handler ended the transaction itself, so its response may not match the actual
    /// effect. This call committed nothing. The layer seals the key.
    Broken(StoreError),
}

/// The outcome of a rollback.
#[derive(Debug)]
#[non_exhaustive]
pub enum RollBack {
    /// As far as the store can tell, no part of the work was kept.
    Done,
    /// The handler committed the work itself, so the work was kept. The layer seals the key,
    /// because a retry would repeat the work.
    Broken(StoreError),
}

impl fmt::Debug for dyn UnitOfWork {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("UnitOfWork")
            .field("is_begun", &self.is_begun())
            .finish_non_exhaustive()
    }
}
