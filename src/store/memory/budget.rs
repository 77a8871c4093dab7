//! What the store counts, against its limit.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use crossbeam_utils::CachePadded;

/// What the store does with a new key when its byte budget is spent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum WhenFull {
    /// Makes room: the completed records nearest to expiry go first. **An evicted key runs again
    /// if its client retries after that.** [`MemoryStats::evicted`] counts them; alert on it.
    /// Running claims are never evicted.
    ///
    /// No tenant evicts another by a flood of keys: a scope that takes less than half of an equal
    /// share (of all records' room, by the number of scopes that have any) loses none.
    #[default]
    EvictNearestExpiry,
    /// Refuses new keys with `503` problem `store-unavailable` until records have expired. Known
    /// keys are still answered. Operations that are running when the budget is reached are still
    /// recorded, so that the budget can be exceeded by their answers.
    RefuseNew,
}

/// What a [`MemoryStore`](crate::MemoryStore) holds at a moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct MemoryStats {
    /// Claims and records, including those that have expired and are not swept yet.
    pub entries: usize,
    /// Bytes of the heap that they take, including what the store keeps about them.
    pub bytes: usize,
    /// Records evicted before they expired, since the store was made.
    pub evicted: u64,
}

/// The counts of one store, and their limit.
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

    /// Whether `more` bytes would exceed the limit.
    pub(super) fn is_over(&self, more: usize) -> bool {
        self.bytes.load(Ordering::Relaxed).saturating_add(more) > self.limit
    }

    /// Counts a new entry.
    pub(super) fn enter(&self, bytes: usize) {
        self.entries.fetch_add(1, Ordering::Relaxed);
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// An entry is gone.
    pub(super) fn leave(&self, bytes: usize) {
        self.entries.fetch_sub(1, Ordering::Relaxed);
        self.bytes.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// What took `before` bytes takes `after`. In one step, so that nobody sees the count without either.
    pub(super) fn change(&self, before: usize, after: usize) {
        self.bytes.fetch_add(after.wrapping_sub(before), Ordering::Relaxed);
    }

    /// A record was evicted before it expired.
    pub(super) fn evicted(&self) {
        let evicted = self.evicted.fetch_add(1, Ordering::Relaxed) + 1;
        // At 1, 2, 4, 8 and so on: seen at once, and never a flood.
        if evicted.is_power_of_two() {
            tracing::warn!(
                target: "tower_idempotency",
                evicted,
                budget = self.limit,
                "the memory store is full and evicts records before they expire; their keys would run again"
            );
        }
    }
}
