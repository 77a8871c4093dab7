//! A wrapper that answers replays from this process's memory.

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

/// The smallest cache that makes sense: some dozens of records.
const MIN_CAPACITY: usize = 64 * 1024;
const DEFAULT_CAPACITY: usize = 64 * 1024 * 1024;
const MAX_AGES: RangeInclusive<Duration> = Duration::from_millis(1)..=Duration::from_secs(24 * 3600);
const DEFAULT_MAX_AGE: Duration = Duration::from_secs(60);

/// Caches the completed records of a remote store in this process's memory, so that a replay asks it
/// nothing. Clones share the cache.
///
/// A completed record does not change, so it can be cached; claims never are. What was completed
/// through this handle is cached until its TTL ends, and for at most [`max_age`](TieredBuilder::max_age);
/// what was found in the store, whose remaining TTL is not known, for at most `max_age`. The cache compares
/// fingerprints as the store does.
///
/// **What it costs:** a record that was [forgotten](Inspect::forget), alone or with its scope, through another process, or whose
/// TTL has ended in the store, may be replayed here for `max_age` more. One forgotten through this
/// handle or its clones is not.
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
/// Before a [`MemoryStore`](super::MemoryStore) it is of no use. With [`Sealed`](super::Sealed), go
/// around it (`Tiered<Sealed<S>>`): the cache then holds what was opened and checked.
pub struct Tiered<S> {
    store: S,
    cache: Arc<Cache>,
}

/// Builds a [`Tiered`] store with other limits.
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
    /// Bytes that cached records may take, including 160 for the place of each. Default 64 MiB. At
    /// least 64 KiB. Records of 3.8 MiB and more (of a small cache: of nearly its capacity) may not fit, and are
    /// not cached.
    pub fn capacity(mut self, bytes: usize) -> Self {
        self.capacity = bytes;
        self
    }

    /// How long a record may be replayed without asking the store, and so how long a replay may go on
    /// after the record was forgotten elsewhere or its TTL has ended. Default 60 s. From 1 ms to 24 h.
    pub fn max_age(mut self, max_age: Duration) -> Self {
        self.max_age = max_age;
        self
    }

    /// Builds the store.
    ///
    /// # Errors
    ///
    /// A capacity below 64 KiB; a `max_age` outside 1 ms to 24 h.
    pub fn build(self) -> Result<Tiered<S>, ConfigError> {
        if self.capacity < MIN_CAPACITY {
            return Err(ConfigError::new(
                "capacity",
                format!(
                    "{} bytes are too few to be useful; at least {MIN_CAPACITY} are needed",
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

/// What the cache of a [`Tiered`] store holds at a moment, and what it did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct TieredStats {
    /// Answers given without asking the store, mismatches included, since the cache was made.
    pub hits: u64,
    /// Records in the cache, those included whose time is over and that were not asked for since.
    pub entries: usize,
    /// Bytes they take, their places included.
    pub bytes: u64,
}

impl<S> Tiered<S> {
    /// Wraps a store, with a cache of 64 MiB whose records are replayed for 60 s.
    #[must_use]
    pub fn new(store: S) -> Self {
        Self {
            store,
            cache: Arc::new(Cache::new(DEFAULT_CAPACITY, DEFAULT_MAX_AGE)),
        }
    }

    /// Wraps a store, with other limits.
    pub fn builder(store: S) -> TieredBuilder<S> {
        TieredBuilder {
            store,
            capacity: DEFAULT_CAPACITY,
            max_age: DEFAULT_MAX_AGE,
        }
    }

    /// What the cache holds now.
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
    // What is behind it decides, and that is remote.
    const IN_PROCESS: bool = false;

    async fn begin(&self, begin: &ClaimRequest) -> Result<ClaimOutcome, StoreError> {
        if let Some(record) = self.cache.get(&begin.slot) {
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

/// What the store holds, not the cache.
impl<S: Inspect> Inspect for Tiered<S> {
    fn look_up(&self, slot: &Slot) -> impl Future<Output = Result<Option<Entry>, StoreError>> + Send {
        self.store.look_up(slot)
    }

    async fn forget(&self, slot: &Slot) -> Result<bool, StoreError> {
        /// Also when the call fails or is dropped: it may have taken effect.
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

    /// Empties the cache of this process: it does not know which scopes its records are of.
    async fn forget_scope(&self, scope: &ScopeTag) -> Result<u64, StoreError> {
        /// Also when the call fails or is dropped: it may have taken effect.
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
