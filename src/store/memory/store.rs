//! The store's public type, and its builder.

use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use super::budget::{MemoryStats, WhenFull};
use super::slots::Slots;
use crate::error::ConfigError;
use crate::store::{
    Census, ClaimOutcome, ClaimRequest, Entry, Held, Inspect, Record, ScopeTag, Slot, Store, StoreError, Token,
};

/// The smallest useful budget, which is enough for a few hundred claims.
const MIN_BUDGET: usize = 64 * 1024;
const DEFAULT_BUDGET: usize = 256 * 1024 * 1024;

/// Builds a [`MemoryStore`] with custom limits.
#[derive(Debug, Clone)]
#[must_use = "a builder does nothing until `build` is called"]
pub struct MemoryStoreBuilder {
    budget: usize,
    when_full: WhenFull,
}

impl MemoryStoreBuilder {
    /// Sets how many heap bytes claims and records may use, including the store's bookkeeping for
    /// them. Default: 256 MiB. Minimum: 64 KiB.
    ///
    /// An empty store takes less than 100 KiB, which is not counted. With more than about ten
    /// thousand records, its heap use is at most 1.1 times the counted bytes. The store returns the
    /// memory of evicted, expired and forgotten entries to the allocator.
    pub fn budget(mut self, bytes: usize) -> Self {
        self.budget = bytes;
        self
    }

    /// Sets what to do with a new key when the budget is used up. By default, the store evicts
    /// records.
    pub fn when_full(mut self, when_full: WhenFull) -> Self {
        self.when_full = when_full;
        self
    }

    /// Builds the store.
    ///
    /// # Errors
    ///
    /// The budget is below 64 KiB.
    pub fn build(self) -> Result<MemoryStore, ConfigError> {
        if self.budget < MIN_BUDGET {
            return Err(ConfigError::new(
                "budget",
                format!(
                    "{} bytes is too small to be useful; set at least {MIN_BUDGET} bytes",
                    self.budget
                ),
            ));
        }
        Ok(MemoryStore {
            slots: Arc::new(Slots::new(self.budget, self.when_full)),
        })
    }
}

/// Stores claims and records in this process's memory. Clones share the same claims and records.
///
/// The guarantee lasts only as long as the process: a restart loses every key, and each process has
/// its own store. The store uses the monotonic clock, so changes to the system clock have no
/// effect. The store has no background task. It checks expiry when it reads a slot, and sweeps a
/// few expired entries when it adds a claim or a record. You can use the store outside an async
/// runtime.
///
/// ```
/// use tower_idempotency::{MemoryStore, store::WhenFull};
///
/// let store = MemoryStore::builder()
///     .budget(64 * 1024 * 1024)
///     .when_full(WhenFull::RefuseNew)
///     .build()?;
/// assert_eq!(store.stats().entries, 0);
/// # Ok::<(), tower_idempotency::ConfigError>(())
/// ```
pub struct MemoryStore {
    slots: Arc<Slots>,
}

impl Default for MemoryStore {
    fn default() -> Self {
        Self::new()
    }
}

impl Clone for MemoryStore {
    fn clone(&self) -> Self {
        Self {
            slots: Arc::clone(&self.slots),
        }
    }
}

impl fmt::Debug for MemoryStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryStore")
            .field("budget", &self.slots.budget.limit)
            .field("when_full", &self.slots.budget.when_full)
            .field("stats", &self.stats())
            .finish()
    }
}

impl MemoryStore {
    /// Creates a store with a budget of 256 MiB, which evicts records when it is full.
    #[must_use]
    pub fn new() -> Self {
        match Self::builder().build() {
            Ok(store) => store,
            Err(_) => unreachable!("the defaults are valid"),
        }
    }

    /// Returns a builder for a store with custom limits.
    pub fn builder() -> MemoryStoreBuilder {
        MemoryStoreBuilder {
            budget: DEFAULT_BUDGET,
            when_full: WhenFull::default(),
        }
    }

    /// Returns the store's current counts.
    #[must_use]
    pub fn stats(&self) -> MemoryStats {
        self.slots.budget.stats()
    }
}

impl Store for MemoryStore {
    const IN_PROCESS: bool = true;

    async fn begin(&self, begin: &ClaimRequest) -> Result<ClaimOutcome, StoreError> {
        let begun = self.slots.begin(begin);
        self.report();
        begun
    }

    async fn renew(&self, slot: &Slot, token: Token, lease: Duration) -> Result<Held, StoreError> {
        Ok(self.slots.renew(slot, token, lease))
    }

    async fn complete(&self, slot: &Slot, token: Token, record: &Record, ttl: Duration) -> Result<Held, StoreError> {
        let held = self.slots.complete(slot, token, record, ttl);
        self.report();
        Ok(held)
    }

    async fn release(&self, slot: &Slot, token: Token) -> Result<Held, StoreError> {
        let held = self.slots.release(slot, token);
        self.report();
        Ok(held)
    }

    fn changed(&self, slot: &Slot, _: u32) -> impl Future<Output = ()> + Send {
        let ended = self.slots.ended(slot);
        async move {
            if let Some(ended) = ended {
                ended.await;
            }
        }
    }
}

impl Inspect for MemoryStore {
    async fn look_up(&self, slot: &Slot) -> Result<Option<Entry>, StoreError> {
        Ok(self.slots.look_up(slot))
    }

    async fn forget(&self, slot: &Slot) -> Result<bool, StoreError> {
        let held = self.slots.forget(slot);
        self.report();
        Ok(held)
    }

    async fn forget_scope(&self, scope: &ScopeTag) -> Result<u64, StoreError> {
        let forgotten = self.slots.forget_scope(scope);
        self.report();
        Ok(forgotten)
    }

    async fn count(&self) -> Result<Census, StoreError> {
        Ok(self.slots.count())
    }
}

impl MemoryStore {
    #[cfg(feature = "metrics")]
    fn report(&self) {
        let stats = self.stats();
        metrics::gauge!("idempotency_store_entries", "store" => "memory").set(stats.entries as f64);
        metrics::gauge!("idempotency_store_bytes", "store" => "memory").set(stats.bytes as f64);
        metrics::counter!("idempotency_store_evicted_total", "store" => "memory").absolute(stats.evicted);
    }

    #[cfg(not(feature = "metrics"))]
    fn report(&self) {}
}
