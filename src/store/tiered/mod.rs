//! A wrapper that serves replays from this process's memory.

mod cache;
mod unit_of_work;

use std::fmt;
use std::future::Future;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;

use super::{
    Census, ClaimOutcome, ClaimRequest, Entry, Held, Inspect, Record, ScopeTag, Slot, Store, StoreError, Token,
    UnitOfWork,
};
use crate::error::ConfigError;
use cache::Cache;
use unit_of_work::TieredWork;

/// The smallest useful capacity, which is enough for a few dozen records.
const MIN_CAPACITY: usize = 64 * 1024;
const DEFAULT_CAPACITY: usize = 64 * 1024 * 1024;
const MAX_AGES: RangeInclusive<Duration> = Duration::from_millis(1)..=Duration::from_secs(24 * 3600);
const DEFAULT_MAX_AGE: Duration = Duration::from_secs(60);

/// Caches a remote store's completed records in this process's memory, so that a replay does not
/// call the store. Clones share the cache.
///
/// A completed record does not change, so it can be cached. Claims are never cached. A record that
/// was completed through this handle is cached until its TTL elapses, but for at most
/// [`max_age`](TieredBuilder::max_age). If a record was found in the store, its remaining TTL is
/// unknown, so it is cached for at most `max_age`. The cache compares fingerprints in the same way
/// as the store.
///
/// **The cost:** this process can replay a record for up to `max_age` after the record's TTL has
/// elapsed in the store, or after a different process [forgot](Inspect::forget) the record, alone
/// or with its scope. A record that was forgotten through this handle or its clones is not
/// replayed.
///
/// ```
/// use std::time::Duration;
/// use tower_idempotency::IdempotencyLayer;
/// use tower_idempotency::store::{MemoryStore, Tiered};
///
/// # let remote = MemoryStore::new();
/// let store = Tiered::builder(remote)
///     .capacity(16 * 1024 * 1024)
///     .max_age(Duration::from_secs(10))
///     .build()?;
/// let layer = IdempotencyLayer::new(store.clone());
/// assert_eq!(store.stats().hits, 0);
/// # let _ = layer;
/// # Ok::<(), tower_idempotency::ConfigError>(())
/// ```
///
/// Wrapping a [`MemoryStore`](super::MemoryStore) has no benefit. If you also use
/// [`Sealed`](super::Sealed), put `Tiered` on the outside (`Tiered<Sealed<S>>`). The cache then
/// contains records that were already opened and checked.
pub struct Tiered<S> {
    store: S,
    cache: Arc<Cache>,
}

/// Builds a [`Tiered`] store with custom limits.
///
/// ```
/// use std::time::Duration;
/// use tower_idempotency::store::{MemoryStore, Tiered};
///
/// let error = Tiered::builder(MemoryStore::new())
///     .max_age(Duration::ZERO)
///     .build()
///     .unwrap_err();
/// assert_eq!(error.option(), "max_age");
/// ```
#[derive(Debug, Clone)]
#[must_use = "a builder does nothing until `build` is called"]
pub struct TieredBuilder<S> {
    store: S,
    capacity: usize,
    max_age: Duration,
}

impl<S> TieredBuilder<S> {
    /// Sets how many bytes cached records may take, including 160 bytes of overhead per record.
    /// Default: 64 MiB. Minimum: 64 KiB. Records of 3.8 MiB or more may not fit, and are then not
    /// cached. In a small cache, the same applies to records that are nearly as large as the
    /// capacity.
    pub fn capacity(mut self, bytes: usize) -> Self {
        self.capacity = bytes;
        self
    }

    /// Sets how long a record may be replayed without calling the store. A record can still be
    /// replayed for this long after it was forgotten elsewhere or its TTL elapsed. Default: 60 s.
    /// Range: 1 ms to 24 h.
    pub fn max_age(mut self, max_age: Duration) -> Self {
        self.max_age = max_age;
        self
    }

    /// Builds the store.
    ///
    /// # Errors
    ///
    /// The capacity is below 64 KiB, or `max_age` is not between 1 ms and 24 h.
    pub fn build(self) -> Result<Tiered<S>, ConfigError> {
        if self.capacity < MIN_CAPACITY {
            return Err(ConfigError::new(
                "capacity",
                format!(
                    "{} bytes is too small to be useful; set at least {MIN_CAPACITY} bytes",
                    self.capacity
                ),
            ));
        }
        if !MAX_AGES.contains(&self.max_age) {
            return Err(ConfigError::new(
                "max_age",
                format!("{:?} is not between 1 ms and 24 h", self.max_age),
            ));
        }
        Ok(Tiered {
            store: self.store,
            cache: Arc::new(Cache::new(self.capacity, self.max_age)),
        })
    }
}

/// Statistics for a [`Tiered`] store's cache: its contents at one moment, and its hits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct TieredStats {
    /// The number of results, including mismatches, that the cache has returned without calling the
    /// store since the cache was created.
    pub hits: u64,
    /// The number of records in the cache, including expired records that have not been requested
    /// since they expired.
    pub entries: usize,
    /// The bytes that the records take, including overhead.
    pub bytes: u64,
}

impl<S> Tiered<S> {
    /// Wraps a store with a cache of 64 MiB, which can replay a record for up to 60 s.
    #[must_use]
    pub fn new(store: S) -> Self {
        Self {
            store,
            cache: Arc::new(Cache::new(DEFAULT_CAPACITY, DEFAULT_MAX_AGE)),
        }
    }

    /// Returns a builder that wraps a store with custom limits.
    pub fn builder(store: S) -> TieredBuilder<S> {
        TieredBuilder {
            store,
            capacity: DEFAULT_CAPACITY,
            max_age: DEFAULT_MAX_AGE,
        }
    }

    /// Returns the cache's current counts.
    #[must_use]
    pub fn stats(&self) -> TieredStats {
        TieredStats {
            hits: self.cache.hits(),
            entries: self.cache.entries(),
            bytes: self.cache.bytes(),
        }
    }
}

impl<S: Clone> Clone for Tiered<S> {
    fn clone(&self) -> Self {
        Self {
            store: self.store.clone(),
            cache: Arc::clone(&self.cache),
        }
    }
}

impl<S> fmt::Debug for Tiered<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tiered")
            .field("capacity", &self.cache.capacity)
            .field("max_age", &self.cache.max_age)
            .field("stats", &self.stats())
            .finish_non_exhaustive()
    }
}

impl<S: Store> Store for Tiered<S> {
    // The wrapped store, which is expected to be remote, decides which requests may run.
    const IN_PROCESS: bool = false;

    async fn begin(&self, begin: &ClaimRequest) -> Result<ClaimOutcome, StoreError> {
        // To settle an operation, the store's own answer counts.
        if !begin.is_to_settle
            && let Some(record) = self.cache.get(&begin.slot)
        {
            return Ok(if record.fingerprint().conflicts_with(&begin.fingerprint) {
                ClaimOutcome::Mismatch
            } else {
                ClaimOutcome::Done(record)
            });
        }
        let asked = self.cache.asking();
        let begun = self.store.begin(begin).await?;
        if let ClaimOutcome::Done(record) = &begun {
            self.cache.put(&begin.slot, record, asked, Duration::MAX);
        }
        Ok(begun)
    }

    fn renew(
        &self,
        slot: &Slot,
        token: Token,
        lease: Duration,
    ) -> impl Future<Output = Result<Held, StoreError>> + Send {
        self.store.renew(slot, token, lease)
    }

    async fn complete(&self, slot: &Slot, token: Token, record: &Record, ttl: Duration) -> Result<Held, StoreError> {
        let asked = self.cache.asking();
        let held = self.store.complete(slot, token, record, ttl).await?;
        if held == Held::Yes {
            self.cache.put(slot, record, asked, ttl);
        }
        Ok(held)
    }

    fn release(&self, slot: &Slot, token: Token) -> impl Future<Output = Result<Held, StoreError>> + Send {
        self.store.release(slot, token)
    }

    fn changed(&self, slot: &Slot, round: u32) -> impl Future<Output = ()> + Send {
        self.store.changed(slot, round)
    }

    fn unit_of_work(&self, begin: &ClaimRequest) -> Option<Box<dyn UnitOfWork>> {
        let work = self.store.unit_of_work(begin)?;
        Some(Box::new(TieredWork::new(work, Arc::clone(&self.cache), begin.slot)))
    }
}

/// Inspects the wrapped store rather than the cache.
impl<S: Inspect> Inspect for Tiered<S> {
    fn look_up(&self, slot: &Slot) -> impl Future<Output = Result<Option<Entry>, StoreError>> + Send {
        self.store.look_up(slot)
    }

    async fn forget(&self, slot: &Slot) -> Result<bool, StoreError> {
        /// Runs even if the call fails or is dropped, because the call may have taken effect.
        struct Again<'a>(&'a Cache, &'a Slot);
        impl Drop for Again<'_> {
            fn drop(&mut self) {
                self.0.forget(self.1);
            }
        }
        self.cache.forget(slot);
        let _again = Again(&self.cache, slot);
        self.store.forget(slot).await
    }

    /// Also empties this process's cache, because the cache does not know the scopes of its
    /// records.
    async fn forget_scope(&self, scope: &ScopeTag) -> Result<u64, StoreError> {
        /// Runs even if the call fails or is dropped, because the call may have taken effect.
        struct Again<'a>(&'a Cache);
        impl Drop for Again<'_> {
            fn drop(&mut self) {
                self.0.forget_all();
            }
        }
        self.cache.forget_all();
        let _again = Again(&self.cache);
        self.store.forget_scope(scope).await
    }

    fn count(&self) -> impl Future<Output = Result<Census, StoreError>> + Send {
        self.store.count()
    }
}
