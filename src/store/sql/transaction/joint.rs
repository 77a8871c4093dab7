//! The state that the handler's side and the layer's side of a transaction share.

use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex as BlockingMutex, PoisonError};

use sqlx::Pool;
use tokio::sync::Mutex;

use super::open::Open;
use crate::store::sql::guarded::AtomicDatabase;
use crate::store::sql::turns::Turns;

/// Work to run after the commit.
pub(in crate::store::sql) type AfterCommit = Pin<Box<dyn Future<Output = ()> + Send>>;

/// The shared state of one transaction, from before the transaction begins until after it is over.
pub(in crate::store::sql) struct Joint<DB: AtomicDatabase> {
    pub(super) pool: Pool<DB>,
    /// The queue in which the transaction waits for its turn. `None` if the database allows more
    /// than one writer, or if the handler commits the transaction.
    pub(super) turns: Option<Turns>,
    /// The side that commits the transaction.
    pub(super) owner: Owner,
    /// The state of the transaction. The handler locks the state while it works in the transaction.
    pub(super) state: Arc<Mutex<State<DB>>>,
    pub(super) begun: AtomicBool,
    /// Set by `abort`. If set, the work is rolled back, whatever the response is.
    pub(super) aborted: AtomicBool,
    /// Set when the layer will not commit the transaction. Work that continues after the handler
    /// has returned is rolled back when it ends.
    pub(super) given_up: Arc<AtomicBool>,
    after_commit: BlockingMutex<Vec<AfterCommit>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Owner {
    /// The layer commits the transaction together with the record of the response.
    Layer,
    Handler,
}

pub(super) enum State<DB: AtomicDatabase> {
    NotBegun,
    Open(Open<DB>),
    /// The transaction has been committed or rolled back, and accepts no more work.
    Over,
}

impl<DB: AtomicDatabase> Joint<DB> {
    pub(in crate::store::sql) fn of_layer(pool: Pool<DB>, turns: Option<Turns>) -> Self {
        Self::new(pool, turns, Owner::Layer)
    }

    pub(super) fn new(pool: Pool<DB>, turns: Option<Turns>, owner: Owner) -> Self {
        Self {
            pool,
            turns,
            owner,
            state: Arc::new(Mutex::new(State::NotBegun)),
            begun: AtomicBool::new(false),
            aborted: AtomicBool::new(false),
            given_up: Arc::default(),
            after_commit: BlockingMutex::default(),
        }
    }

    pub(in crate::store::sql) fn is_begun(&self) -> bool {
        self.begun.load(Ordering::Acquire)
    }

    pub(in crate::store::sql) fn is_aborted(&self) -> bool {
        self.aborted.load(Ordering::Acquire)
    }

    pub(super) fn do_after_commit(&self, work: AfterCommit) {
        let mut after = self.after_commit.lock().unwrap_or_else(PoisonError::into_inner);
        after.push(work);
    }

    /// Ends the transaction without a commit. Work that is still running is rolled back when it
    /// ends, and no further work begins.
    pub(in crate::store::sql) fn give_up(&self) {
        self.given_up.store(true, Ordering::Release);
    }

    /// Takes the work to run after the commit, so a second call does not return the same work
    /// again.
    pub(in crate::store::sql) fn after_commit(&self) -> Vec<AfterCommit> {
        std::mem::take(&mut *self.after_commit.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Takes the transaction away from the handler, after waiting for work that continues after the
    /// handler has returned. If the caller stops waiting, the work can only be rolled back.
    pub(in crate::store::sql) async fn take(&self) -> Option<Open<DB>> {
        let giving_up = Raise(&self.given_up);
        let mut state = self.state.lock().await;
        std::mem::forget(giving_up);
        match std::mem::replace(&mut *state, State::Over) {
            State::Open(transaction) => Some(transaction),
            State::NotBegun | State::Over => None,
        }
    }
}

/// Sets a flag when it is dropped.
struct Raise<'a>(&'a AtomicBool);

impl Drop for Raise<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}
