//! Atomic mode in a tiered store: committed records are cached.

use std::sync::Arc;
use std::time::Duration;

use http::Extensions;

use super::cache::Cache;
use crate::request::Slot;
use crate::store::Record;
use crate::store::{Commit, RollBack, StoreError, UnitOfWork, Working};

pub(super) struct TieredWork {
    work: Box<dyn UnitOfWork>,
    cache: Arc<Cache>,
    slot: Slot,
}

impl TieredWork {
    pub(super) fn new(work: Box<dyn UnitOfWork>, cache: Arc<Cache>, slot: Slot) -> Self {
        Self { work, cache, slot }
    }
}

impl UnitOfWork for TieredWork {
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
            let asked = self.cache.asking();
            let commit = self.work.commit(record, ttl).await;
            if matches!(commit, Commit::Done) {
                self.cache.put(&self.slot, record, asked, ttl);
            }
            commit
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
