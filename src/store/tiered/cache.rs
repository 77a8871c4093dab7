//! The records that a `Tiered` store keeps in memory for a limited time.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{PoisonError, RwLock};
use std::time::Duration;

use quick_cache::sync::{Cache as Records, DefaultLifecycle};
use quick_cache::{DefaultHashBuilder, OptionsBuilder, Weighter};
use tokio::time::Instant;

use crate::request::Slot;
use crate::store::Record;

/// The bytes that an entry takes in addition to its record: the slot, the time, links, and a share
/// of the map.
const OVERHEAD: u64 = 160;

/// The minimum size of a shard in a cache that has several. Each record must fit in one shard.
const SHARD: usize = 4 * 1024 * 1024;
const MAX_SHARDS: usize = 64;

#[derive(Clone)]
struct Kept {
    record: Record,
    until: Instant,
}

#[derive(Clone)]
struct Bytes;

impl Weighter<Slot, Kept> for Bytes {
    fn weight(&self, _: &Slot, kept: &Kept) -> u64 {
        kept.record.len() as u64 + OVERHEAD
    }
}

pub(super) struct Cache {
    records: Records<Slot, Kept, Bytes>,
    pub(super) capacity: usize,
    pub(super) max_age: Duration,
    hits: AtomicU64,
    /// Counts calls to `forget`. Records are added under this counter's read lock and forgotten
    /// under its write lock, so a record that was read before a `forget` cannot be added after it.
    forgotten: RwLock<u64>,
}

/// The cache's state at the time of a call to the store, which is needed to cache the call's
/// result.
#[derive(Clone, Copy)]
pub(super) struct Asked {
    at: Instant,
    forgotten: u64,
}

impl Cache {
    pub(super) fn new(capacity: usize, max_age: Duration) -> Self {
        // This is a power of two, because the cache rounds any other number of shards to a power of
        // two.
        let shards = 1 << (capacity / SHARD).clamp(1, MAX_SHARDS).ilog2();
        let options = OptionsBuilder::new()
            .shards(shards)
            // Each shard's share is rounded up.
            .weight_capacity((capacity / shards * shards) as u64)
            .estimated_items_capacity((capacity / 1024).max(32 * shards))
            // Ghost entries for removed keys would take bytes that are not counted.
            .ghost_allocation(0.0)
            .build();
        let options = match options {
            Ok(options) => options,
            Err(_) => unreachable!("both capacities are given"),
        };
        Self {
            records: Records::with_options(
                options,
                Bytes,
                DefaultHashBuilder::default(),
                DefaultLifecycle::default(),
            ),
            capacity,
            max_age,
            hits: AtomicU64::new(0),
            forgotten: RwLock::new(0),
        }
    }

    /// Returns the given slot's record, if it may still be replayed.
    pub(super) fn get(&self, slot: &Slot) -> Option<Record> {
        let kept = self.records.get(slot)?;
        let now = Instant::now();
        if kept.until <= now {
            // Another call may have added a newer record.
            self.records.remove_if(slot, |kept| kept.until <= now);
            return None;
        }
        self.hits.fetch_add(1, Ordering::Relaxed);
        Some(kept.record)
    }

    /// Captures the cache's state. Call this method before you call the store.
    pub(super) fn asking(&self) -> Asked {
        Asked {
            at: Instant::now(),
            forgotten: *self.forgotten.read().unwrap_or_else(PoisonError::into_inner),
        }
    }

    /// Caches a record that the store returned or received. The record is cached for `ttl` from the
    /// time of the call to the store, but for at most `max_age`.
    pub(super) fn put(&self, slot: &Slot, record: &Record, asked: Asked, ttl: Duration) {
        let forgotten = self.forgotten.read().unwrap_or_else(PoisonError::into_inner);
        if *forgotten == asked.forgotten {
            let kept = Kept {
                record: record.clone(),
                until: asked.at + ttl.min(self.max_age),
            };
            self.records.insert(*slot, kept);
        }
    }

    /// Removes the given slot's record, and makes the cache reject the results of all earlier calls
    /// to the store.
    pub(super) fn forget(&self, slot: &Slot) {
        let mut forgotten = self.forgotten.write().unwrap_or_else(PoisonError::into_inner);
        *forgotten += 1;
        self.records.remove(slot);
    }

    /// Like [`forget`](Self::forget), but for all slots.
    pub(super) fn forget_all(&self) {
        let mut forgotten = self.forgotten.write().unwrap_or_else(PoisonError::into_inner);
        *forgotten += 1;
        self.records.clear();
    }

    pub(super) fn hits(&self) -> u64 {
        self.hits.load(Ordering::Relaxed)
    }

    pub(super) fn entries(&self) -> usize {
        self.records.len()
    }

    pub(super) fn bytes(&self) -> u64 {
        self.records.weight()
    }
}
