//! The slots in memory: a map of entries, a ledger of end times, and a byte budget.

use std::sync::{Mutex, PoisonError};

use crossbeam_utils::CachePadded;
use tokio::time::Instant;

use super::budget::{Budget, WhenFull};
use super::entry::{Entry, Hold};
use super::ledger::Ledger;
use super::map::Map;
use crate::request::Slot;
use crate::store::Millis;
use crate::store::rules::Occupant;

pub(super) struct Slots {
    /// Lock order: a shard of `map`, then `ledger`. Neither guard is held across an await point. An
    /// entry's line changes only while the entry's shard is locked, so the entry and the line
    /// always agree.
    pub(super) map: Map,
    ledger: CachePadded<Mutex<Ledger>>,
    pub(super) budget: Budget,
    origin: Instant,
}

impl Slots {
    pub(super) fn new(budget: usize, when_full: WhenFull) -> Self {
        Self {
            map: Map::new(),
            ledger: CachePadded::default(),
            budget: Budget::new(budget, when_full),
            origin: Instant::now(),
        }
    }

    pub(super) fn now(&self) -> Millis {
        let elapsed = Instant::now().saturating_duration_since(self.origin);
        Millis(elapsed.as_secs().saturating_mul(1000) + u64::from(elapsed.subsec_millis()))
    }

    /// Changes the ledger, and counts the change in the size of its table of scopes.
    pub(super) fn with_ledger<T>(&self, change: impl FnOnce(&mut Ledger) -> T) -> T {
        // No code that can panic runs under this lock. Even if such code is added, the ledger stays
        // intact.
        let mut ledger = self.ledger.lock().unwrap_or_else(PoisonError::into_inner);
        let before = ledger.scope_bytes();
        let result = change(&mut ledger);
        let after = ledger.scope_bytes();
        if after != before {
            self.budget.change(before, after);
        }
        result
    }

    /// Removes a slot's occupant and its ledger line before they are due, if `is_meant` returns
    /// `true`.
    pub(super) fn vacate(&self, slot: &Slot, mut is_meant: impl FnMut(&mut Entry) -> bool) -> Option<Occupant<Hold>> {
        let hash = self.map.hash(slot);
        let entry = self.map.take_if(hash, |entry| {
            let is_meant = entry.slot == *slot && is_meant(entry);
            if is_meant {
                self.budget.leave(entry.cost());
                self.with_ledger(|ledger| entry.leave(ledger, hash));
            }
            is_meant
        });
        entry.map(|entry| entry.occupant)
    }
}
