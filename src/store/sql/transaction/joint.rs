//! What the handler's end and the layer's end of a transaction share.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use sqlx::{Database, Pool};
use tokio::sync::Mutex;

use crate::store::sql::open::Open;
use crate::store::sql::turns::Turns;

/// One transaction, from before it begins until after it is over.
pub(in crate::store::sql) struct Joint<DB: Database> {
    pub(super) pool: Pool<DB>,
    /// The statement that begins the transaction.
    pub(super) begin: &'static str,
    /// Where a transaction waits for its turn. `None`: in a database with more writers than one.
    pub(super) turns: Option<Turns>,
    /// Locked by the handler while it works in the transaction.
    pub(super) state: Arc<Mutex<State<DB>>>,
    pub(super) begun: AtomicBool,
    /// Set when the layer no longer waits for work that the handler left behind. That work is then
    /// rolled back when it ends.
    pub(super) given_up: Arc<AtomicBool>,
}

pub(super) enum State<DB: Database> {
    NotBegun,
    Open(Open<DB>),
    /// The layer has the response: the transaction is committed or rolled back, and takes no more work.
    Over,
}

impl<DB: Database> Joint<DB> {
    pub(in crate::store::sql) fn new(pool: Pool<DB>, begin: &'static str, turns: Option<Turns>) -> Self {
        Self {
            pool,
            begin,
            turns,
            state: Arc::new(Mutex::new(State::NotBegun)),
            begun: AtomicBool::new(false),
            given_up: Arc::default(),
        }
    }

    pub(in crate::store::sql) fn is_begun(&self) -> bool {
        self.begun.load(Ordering::Acquire)
    }

    /// Takes the transaction away from the handler, and waits for work that the handler left behind.
    /// If the wait is given up, that work can only be rolled back.
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

/// Sets a flag if it is dropped.
struct Raise<'a>(&'a AtomicBool);

impl Drop for Raise<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}
