//! A wrapper that encrypts another store's records.

mod keys;
mod unit_of_work;

use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use super::{
    Census, ClaimOutcome, ClaimRequest, Entry, Held, Inspect, Record, ScopeTag, Slot, Store, StoreError,
    StoreErrorKind, Token, UnitOfWork,
};
use crate::error::ConfigError;
pub use keys::KeyRing;
use unit_of_work::SealedWork;

/// Encrypts the wrapped store's records: the status, headers, body and trailers of every response,
/// and the tombstones.
///
/// A record is sealed with XChaCha20-Poly1305 and a random nonce, and is bound to its slot and its
/// fingerprint. A record that was damaged, changed, or moved from a different slot cannot be
/// opened. `begin` then fails with [`StoreErrorKind::Corrupt`] (contract, row 6.5: `503`, never a
/// wrong replay) until the record expires or someone [forgets](Inspect::forget) it. The same
/// happens for a record whose key is not in the [`KeyRing`], and for a record that is not sealed at
/// all, because anyone who can write to the store could have planted such a record.
///
/// ```
/// use tower_idempotency::{IdempotencyLayer, MemoryStore};
/// use tower_idempotency::store::{KeyRing, Sealed};
///
/// # let key = [7; 32];
/// // `key` is 32 random bytes. `KeyRing` explains how to create and load them.
/// let store = Sealed::new(MemoryStore::new(), KeyRing::new(key))?;
/// let layer = IdempotencyLayer::new(store);
/// # let _ = layer;
/// # Ok::<(), tower_idempotency::ConfigError>(())
/// ```
///
/// **Not hidden:** slots and fingerprints (digests that the store uses to find and compare
/// requests); each record's size, times and key name; and whether an operation is running or done.
/// A fingerprint is a plain digest of the request. If a request has few possible values, anyone who
/// can read its fingerprint can test guesses against it.
///
/// **Not prevented:** anyone who can write to the store can remove entries, so that operations run
/// again. They can keep slots claimed. They can also restore an old record in the same slot, if its
/// fingerprint equals the request's or is from a different rule.
///
/// **Migrating a store in use:** hosts that still run without `Sealed` respond with `503` to
/// retries of operations with sealed records. Hosts with `Sealed` respond with `503` to retries of
/// operations with unsealed records, unless they [accept unsealed
/// records](SealedBuilder::accept_unsealed).
///
/// A sealed record is 68 bytes larger than the unsealed record. For a remote store, you can wrap
/// the sealed store in [`Tiered`](super::Tiered) (`Tiered<Sealed<S>>`). `Tiered` then keeps
/// unencrypted responses in this process's memory, and a cached replay needs no decryption.
#[derive(Clone)]
pub struct Sealed<S> {
    store: S,
    keys: Arc<KeyRing>,
    accept_unsealed: bool,
}

/// Builds a [`Sealed`] store.
///
/// ```
/// use tower_idempotency::MemoryStore;
/// use tower_idempotency::store::{KeyRing, Sealed};
///
/// let store = Sealed::builder(MemoryStore::new(), KeyRing::new([7; 32]))
///     .accept_unsealed(true)
///     .build()?;
/// # let _ = store;
/// # Ok::<(), tower_idempotency::ConfigError>(())
/// ```
#[derive(Debug)]
#[must_use = "a builder does nothing until `build` is called"]
pub struct SealedBuilder<S> {
    store: S,
    keys: KeyRing,
    accept_unsealed: bool,
}

impl<S> SealedBuilder<S> {
    /// Sets whether unsealed records are also replayed. Default: `false`, which refuses unsealed
    /// records as corrupt.
    ///
    /// Use this option during a migration: records that were stored before the store was wrapped
    /// remain valid until their TTL elapses. Turn this option off after that time. **While this
    /// option is on, anyone who can write to the store can plant a response.**
    pub fn accept_unsealed(mut self, accept: bool) -> Self {
        self.accept_unsealed = accept;
        self
    }

    /// Builds the store.
    ///
    /// # Errors
    ///
    /// A key is all zeros, or the ring contains the same key twice.
    pub fn build(self) -> Result<Sealed<S>, ConfigError> {
        self.keys.validate()?;
        Ok(Sealed {
            store: self.store,
            keys: Arc::new(self.keys),
            accept_unsealed: self.accept_unsealed,
        })
    }
}

impl<S> Sealed<S> {
    /// Wraps a store. Unsealed records are refused.
    ///
    /// # Errors
    ///
    /// A key is all zeros, or the ring contains the same key twice.
    pub fn new(store: S, keys: KeyRing) -> Result<Self, ConfigError> {
        Self::builder(store, keys).build()
    }

    /// Returns a builder for a sealed store with custom options.
    pub fn builder(store: S, keys: KeyRing) -> SealedBuilder<S> {
        SealedBuilder {
            store,
            keys,
            accept_unsealed: false,
        }
    }

    fn open(&self, begin: &ClaimRequest, record: Record) -> Result<Record, StoreError> {
        // The store has compared only the fingerprint that it saves alongside the record. The seal
        // is bound to the fingerprint inside the record, which may be from a different rule.
        let fingerprint = record.fingerprint();
        if fingerprint.conflicts_with(&begin.fingerprint) {
            return Err(StoreError::new(
                StoreErrorKind::Corrupt,
                "sealed store: the record belongs to another request; it was changed or moved in the store. \
                 Find out who writes to the store, and forget the slot",
            ));
        }
        match record.envelope()? {
            Some(envelope) => self.keys.open(&begin.slot, fingerprint, &envelope),
            None if self.accept_unsealed => Ok(record),
            None => Err(StoreError::new(
                StoreErrorKind::Corrupt,
                "sealed store: the record is not sealed; if it was written before the store was wrapped, \
                 build with `accept_unsealed(true)` until it expires; otherwise, somebody planted it",
            )),
        }
    }
}

impl<S> fmt::Debug for Sealed<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sealed")
            .field("keys", &self.keys)
            .field("accept_unsealed", &self.accept_unsealed)
            .finish_non_exhaustive()
    }
}

impl<S: Store> Store for Sealed<S> {
    const IN_PROCESS: bool = S::IN_PROCESS;

    async fn begin(&self, begin: &ClaimRequest) -> Result<ClaimOutcome, StoreError> {
        match self.store.begin(begin).await? {
            ClaimOutcome::Done(record) => self.open(begin, record).map(ClaimOutcome::Done),
            begun => Ok(begun),
        }
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
        let sealed = self.keys.seal(slot, record)?;
        self.store.complete(slot, token, &sealed, ttl).await
    }

    fn release(&self, slot: &Slot, token: Token) -> impl Future<Output = Result<Held, StoreError>> + Send {
        self.store.release(slot, token)
    }

    fn changed(&self, slot: &Slot, round: u32) -> impl Future<Output = ()> + Send {
        self.store.changed(slot, round)
    }

    fn unit_of_work(&self, begin: &ClaimRequest) -> Option<Box<dyn UnitOfWork>> {
        let work = self.store.unit_of_work(begin)?;
        Some(Box::new(SealedWork::new(work, Arc::clone(&self.keys), begin.slot)))
    }
}

/// Inspects the wrapped store. The reported sizes are those of the sealed records.
impl<S: Inspect> Inspect for Sealed<S> {
    fn look_up(&self, slot: &Slot) -> impl Future<Output = Result<Option<Entry>, StoreError>> + Send {
        self.store.look_up(slot)
    }

    fn forget(&self, slot: &Slot) -> impl Future<Output = Result<bool, StoreError>> + Send {
        self.store.forget(slot)
    }

    fn forget_scope(&self, scope: &ScopeTag) -> impl Future<Output = Result<u64, StoreError>> + Send {
        self.store.forget_scope(scope)
    }

    fn count(&self) -> impl Future<Output = Result<Census, StoreError>> + Send {
        self.store.count()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use http::Extensions;

    use super::*;
    use crate::request::Fingerprint;
    use crate::store::{Commit, MemoryStore, RollBack, Working};

    const TTL: Duration = Duration::from_secs(60);

    fn begin() -> ClaimRequest {
        ClaimRequest::new(Slot::from_bytes([5; 32]), Fingerprint::from_bytes([1; 16]))
            .with_lease(TTL)
            .with_ttl(TTL)
    }

    fn starved() -> KeyRing {
        let mut keys = KeyRing::new([7; 32]);
        keys.starve();
        keys
    }

    #[tokio::test]
    async fn without_random_bytes_nothing_is_stored_and_the_claim_stays() {
        let (memory, begin) = (MemoryStore::new(), begin());
        let store = Sealed::new(memory.clone(), starved()).unwrap();
        store.begin(&begin).await.unwrap();
        let record = Record::outcome_unknown(begin.fingerprint);
        let error = store
            .complete(&begin.slot, begin.token, &record, TTL)
            .await
            .unwrap_err();
        assert_eq!(error.kind(), StoreErrorKind::Unavailable);
        assert!(std::error::Error::source(&error).is_some());
        assert_eq!(memory.count().await.unwrap(), Census::new(1, 0, 0));
    }

    /// A unit of work whose `commit` must not be called.
    struct Work(Arc<AtomicBool>);

    impl UnitOfWork for Work {
        fn offer(&self, _: &mut Extensions) {}
        fn is_begun(&self) -> bool {
            true
        }
        fn commit<'a>(&'a self, _: &'a Record, _: Duration) -> Working<'a, Commit> {
            panic!("nothing is sealed")
        }
        fn was_committed(&self) -> Working<'_, Result<bool, StoreError>> {
            panic!("nothing is committed")
        }
        fn roll_back(&self) -> Working<'_, RollBack> {
            self.0.store(true, Ordering::Relaxed);
            Box::pin(async { RollBack::Done })
        }
    }

    #[tokio::test]
    async fn without_random_bytes_a_unit_of_work_is_rolled_back() {
        let rolled_back = Arc::new(AtomicBool::new(false));
        let inner = Box::new(Work(Arc::clone(&rolled_back)));
        let work = SealedWork::new(inner, Arc::new(starved()), begin().slot);
        let commit = work.commit(&Record::outcome_unknown(begin().fingerprint), TTL).await;
        assert!(matches!(commit, Commit::Failed(_)), "{commit:?}");
        assert!(rolled_back.load(Ordering::Relaxed));
    }
}
