//! Atomic mode in a sealed store: the record is sealed before it is committed.

use std::sync::Arc;
use std::time::Duration;

use http::Extensions;

use super::keys::KeyRing;
use crate::request::Slot;
use crate::store::Record;
use crate::store::{Commit, RollBack, StoreError, UnitOfWork, Working};

pub(super) struct SealedWork {
    work: Box<dyn UnitOfWork>,
    keys: Arc<KeyRing>,
    slot: Slot,
}

impl SealedWork {
    pub(super) fn new(work: Box<dyn UnitOfWork>, keys: Arc<KeyRing>, slot: Slot) -> Self {
        Self { work, keys, slot }
    }
}

impl UnitOfWork for SealedWork {
    fn offer(&self, extensions: &mut Extensions) {
        self.work.offer(extensions);
    }

    fn is_begun(&self) -> bool {
        self.work.is_begun()
    }

    fn is_aborted(&self) -> bool {
        self.work.is_aborted()
    }

    fn commit<'a>(&'a self, record: &'a Record, ttl: Duration) -> Working<'a, Commit> {
        Box::pin(async move {
            match self.keys.seal(&self.slot, record) {
                Ok(sealed) => self.work.commit(&sealed, ttl).await,
                Err(error) => {
                    // `Failed` means that everything was rolled back.
                    match self.work.roll_back().await {
                        RollBack::Done => Commit::Failed(error),
                        RollBack::Broken(error) => Commit::Broken(error),
                    }
                }
            }
        })
    }

    fn was_committed(&self) -> Working<'_, Result<bool, StoreError>> {
        self.work.was_committed()
    }

    fn after_commit(&self) -> Vec<Working<'static, ()>> {
        self.work.after_commit()
    }

    fn roll_back(&self) -> Working<'_, RollBack> {
        self.work.roll_back()
    }
}
