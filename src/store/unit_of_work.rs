//! The atomic mode: a store in which the handler's own writes and the record are one transaction.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use http::Extensions;

use super::{Record, StoreError};

/// What [`UnitOfWork`] returns: its methods are called through a trait object.
pub type Working<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// The transaction of one claim, which the handler may take part in.
///
/// A store in atomic mode hands one out for each claim that started. The layer puts it into the
/// request ([`offer`](Self::offer)), runs the handler, and if the handler began to work in it
/// ([`is_begun`](Self::is_begun)), commits it together with the record instead of calling
/// [`complete`](super::Store::complete). One that is dropped is rolled back.
pub trait UnitOfWork: Send + Sync + 'static {
    /// Puts what the handler works with into the request's extensions.
    fn offer(&self, extensions: &mut Extensions);

    /// Whether the handler has begun to work in it. The transaction begins only then.
    fn is_begun(&self) -> bool;

    /// Whether the handler wants no effect, whatever its answer is. Such work is rolled back, and the record
    /// is stored by [`complete`](super::Store::complete). `false` by default.
    fn is_aborted(&self) -> bool {
        false
    }

    /// Writes the record in the transaction, if the claim is still held, and commits both. Called
    /// at most once, and only if the work has begun. Whoever still holds the transaction loses it.
    ///
    /// It must not commit a transaction that the handler, or its driver, has ended in the meantime: then
    /// the record would say that there is an effect, and there is none.
    fn commit<'a>(&'a self, record: &'a Record, ttl: Duration) -> Working<'a, Commit>;

    /// Finds out what became of a commit whose outcome was [`Commit::Unknown`], for certain:
    /// `true`, it is committed; `false`, it is not and never will be.
    fn was_committed(&self) -> Working<'_, Result<bool, StoreError>>;

    /// What the handler wants to be done after the commit. Called once it is certain that the work is
    /// committed; the layer runs what it gets in the background. Nothing by default.
    fn after_commit(&self) -> Vec<Working<'static, ()>> {
        Vec::new()
    }

    /// Rolls the work back. The claim stays.
    fn roll_back(&self) -> Working<'_, RollBack>;
}

/// What came of a commit.
#[derive(Debug)]
#[non_exhaustive]
pub enum Commit {
    /// Effect and record are there.
    Done,
    /// The claim was lost, so everything is rolled back.
    Lost,
    /// Everything is rolled back for another reason.
    Failed(StoreError),
    /// The connection was lost during the commit: see [`UnitOfWork::was_committed`].
    Unknown(StoreError),
    /// The handler had ended the transaction by itself, so that its answer may speak of another effect than the
    /// one that is there. Nothing is committed now. The layer seals the key.
    Broken(StoreError),
}

/// What came of a roll-back.
#[derive(Debug)]
#[non_exhaustive]
pub enum RollBack {
    /// Nothing of the work is kept, as far as the store can tell.
    Done,
    /// The handler had committed the work by itself, so it is kept. The layer seals the key: a retry would
    /// do the work again.
    Broken(StoreError),
}

impl fmt::Debug for dyn UnitOfWork {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("UnitOfWork")
            .field("is_begun", &self.is_begun())
            .finish_non_exhaustive()
    }
}
