//! A unit of work by script.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use http::Extensions;
use tower_idempotency::store::{Commit, Record, RollBack, StoreError, UnitOfWork, Working};

/// A transaction whose commit ends as it is told, and which notes what it is asked. Clones share everything.
#[derive(Clone)]
pub(super) struct Work {
    commit: Arc<Mutex<Option<Commit>>>,
    asked: Arc<Mutex<Vec<Asked>>>,
}

#[derive(Debug, PartialEq)]
pub(super) enum Asked {
    Offer,
    IsBegun,
    Commit(Record, Duration),
    WasCommitted,
    RollBack,
}

impl Work {
    pub(super) fn ending(commit: Commit) -> Self {
        Self {
            commit: Arc::new(Mutex::new(Some(commit))),
            asked: Arc::default(),
        }
    }

    /// What it was asked since this was called last.
    pub(super) fn asked(&self) -> Vec<Asked> {
        std::mem::take(&mut *self.asked.lock().unwrap())
    }

    fn note(&self, asked: Asked) {
        self.asked.lock().unwrap().push(asked);
    }
}

impl UnitOfWork for Work {
    fn offer(&self, extensions: &mut Extensions) {
        self.note(Asked::Offer);
        extensions.insert(7u8);
    }

    fn is_begun(&self) -> bool {
        self.note(Asked::IsBegun);
        true
    }

    fn commit<'a>(&'a self, record: &'a Record, ttl: Duration) -> Working<'a, Commit> {
        self.note(Asked::Commit(record.clone(), ttl));
        let commit = self.commit.lock().unwrap().take().expect("one commit");
        Box::pin(async { commit })
    }

    fn was_committed(&self) -> Working<'_, Result<bool, StoreError>> {
        self.note(Asked::WasCommitted);
        Box::pin(async { Ok(true) })
    }

    fn roll_back(&self) -> Working<'_, RollBack> {
        self.note(Asked::RollBack);
        Box::pin(async { RollBack::Done })
    }
}
