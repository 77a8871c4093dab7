//! The store's counters and its byte limit.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use crossbeam_utils::CachePadded;

/// What to do with a new key when the store's byte budget is used up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum WhenFull {
    /// Evicts the records that are nearest to expiry. **An evicted operation runs again if its
    /// client retries after the eviction.** [`MemoryStats::evicted`] counts evictions; set an alert
    /// on this count. Running claims are never evicted.
    ///
    /// A flood of keys from one tenant does not evict a smaller tenant's records: a scope that uses
    /// less than half of an equal share loses no records. An equal share is the total size of all
    /// records, divided by the number of scopes that have records.
    #[default]
    EvictNearestExpiry,
    /// Refuses new keys with a `503` problem `store-unavailable` until records have expired.
    /// Requests with known keys still get a response. Operations that are running when the store
    /// reaches its budget are still recorded, so their records can take the store over its budget.
    RefuseNew,
}

/// A snapshot of the statistics for a [`MemoryStore`](crate::MemoryStore).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct MemoryStats {
    /// The number of claims and records, including expired entries that have not been swept yet.
    pub entries: usize,
    /// The heap bytes that claims and records use, including the store's bookkeeping for them.
    pub bytes: usize,
    /// The number of records that were evicted before they expired, counted since the store was
    /// created.
    pub evicted: u64,
}

/// A store's counters and its byte limit.
pub(super) struct Budget {
    pub(super) limit: usize,
    pub(super) when_full: WhenFull,
    bytes: CachePadded<AtomicUsize>,
    entries: CachePadded<AtomicUsize>,
    evicted: AtomicU64,
}

impl Budget {
    pub(super) fn new(limit: usize, when_full: WhenFull) -> Self {
        Self {
            limit,
            when_full,
            bytes: CachePadded::default(),
            entries: CachePadded::default(),
            evicted: AtomicU64::new(0),
        }
    }

    pub(super) fn stats(&self) -> MemoryStats {
        MemoryStats {
            entries: self.entries.load(Ordering::Relaxed),
            bytes: self.bytes.load(Ordering::Relaxed),
            evicted: self.evicted.load(Ordering::Relaxed),
        }
    }

    /// Returns whether `more` bytes would exceed the limit.
    pub(super) fn is_over(&self, more: usize) -> bool {
        self.bytes.load(Ordering::Relaxed).saturating_add(more) > self.limit
    }

    /// Adds a new entry to the counts.
    pub(super) fn enter(&self, bytes: usize) {
        self.entries.fetch_add(1, Ordering::Relaxed);
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Subtracts a removed entry from the counts.
    pub(super) fn leave(&self, bytes: usize) {
        self.entries.fetch_sub(1, Ordering::Relaxed);
        self.bytes.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// Counts a change in size from `before` to `after` bytes. The total changes in a single step,
    /// so no other call sees a total that includes neither size.
    pub(super) fn change(&self, before: usize, after: usize) {
        self.bytes.fetch_add(after.wrapping_sub(before), Ordering::Relaxed);
    }

    /// Counts a record that was evicted before it expired.
    pub(super) fn evicted(&self) {
        let evicted = self.evicted.fetch_add(1, Ordering::Relaxed) + 1;
        // Logged only at counts of 1, 2, 4, 8 and so on, so that the first eviction appears
        // immediately but the log is never flooded.
        if evicted.is_power_of_two() {
            tracing::warn!(
                target: "tower_idempotency",
                evicted,
                budget = self.limit,
                "the memory store is full and evicts records before they expire; a retry of an evicted key runs again"
            );
        }
    }
}
