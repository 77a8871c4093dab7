//! Claims and records: the [`Store`] trait and [`MemoryStore`].
//!
//! A store keeps a small amount of state for each [`Slot`]. A slot is vacant, running with a
//! [`Token`] and a lease, or done with a [`Record`]. [`Machine`] defines the rules and is the
//! reference model. The conformance suite (feature `conformance`) checks a store against this
//! model.
//!
//! # Atomic mode
//!
//! A store in the application's own database can do more: it commits the handler's writes and the
//! response's record in one transaction. The operation then happens exactly once, even if the
//! process is killed between the two writes. The stores in the module `sql` support atomic mode
//! (features `postgres` and `sqlite`). To support it in your own store, implement [`UnitOfWork`].
//!
//! # Looking into a store
//!
//! With [`Inspect`], you can look up a key, forget its entry, settle its operation, or count all
//! entries.

mod claim;
mod erased;
mod error;
mod inspect;
mod memory;
pub(crate) mod record;
#[cfg(feature = "redis")]
mod redis;
pub(crate) mod rules;
#[cfg(feature = "sealed")]
mod sealed;
#[cfg(feature = "tiered")]
mod tiered;
mod unit_of_work;

#[cfg(any(feature = "postgres", feature = "_sqlite"))]
#[cfg_attr(docsrs, doc(cfg(any(feature = "postgres", feature = "sqlite"))))]
pub mod sql;

#[cfg(feature = "conformance")]
#[cfg_attr(docsrs, doc(cfg(feature = "conformance")))]
pub mod conformance;

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

#[cfg(feature = "redis")]
#[cfg_attr(docsrs, doc(cfg(feature = "redis")))]
pub use self::redis::{RedisSentinel, RedisStore};
pub use claim::{ClaimOutcome, ClaimRequest, Held, Millis, OnLapse, Token};
pub use erased::DynStore;
pub use error::{StoreError, StoreErrorKind};
pub use inspect::{Census, Entry, Inspect, Phase};
pub use memory::{MemoryStats, MemoryStore, MemoryStoreBuilder, WhenFull};
pub use record::Record;
pub use rules::Machine;
#[cfg(feature = "sealed")]
#[cfg_attr(docsrs, doc(cfg(feature = "sealed")))]
pub use sealed::{KeyRing, Sealed, SealedBuilder};
#[cfg(feature = "tiered")]
#[cfg_attr(docsrs, doc(cfg(feature = "tiered")))]
pub use tiered::{Tiered, TieredBuilder, TieredStats};
pub use unit_of_work::{Commit, RollBack, UnitOfWork, Working};

pub use crate::request::{ScopeTag, Slot};

/// Stores claims and records. Implementations can use `async fn`.
///
/// Each method makes its decision and writes the new state in one atomic step, as defined by
/// [`Machine`]. The layer limits each call to `store_timeout` and may drop the call's future at any
/// await point. A dropped call may or may not have taken effect.
///
/// ```
/// use std::time::Duration;
/// use tower_idempotency::store::{ClaimRequest, ClaimOutcome, Held, MemoryStore, Record, Slot, Store, StoreError, Token};
///
/// /// Counts the claims that it passes on to another store.
/// struct Counting<S> {
///     inner: S,
///     claims: std::sync::atomic::AtomicUsize,
/// }
///
/// impl<S: Store> Store for Counting<S> {
///     async fn begin(&self, begin: &ClaimRequest) -> Result<ClaimOutcome, StoreError> {
///         self.claims.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
///         self.inner.begin(begin).await
///     }
///     async fn renew(&self, slot: &Slot, token: Token, lease: Duration) -> Result<Held, StoreError> {
///         self.inner.renew(slot, token, lease).await
///     }
///     async fn complete(
///         &self,
///         slot: &Slot,
///         token: Token,
///         record: &Record,
///         ttl: Duration,
///     ) -> Result<Held, StoreError> {
///         self.inner.complete(slot, token, record, ttl).await
///     }
///     async fn release(&self, slot: &Slot, token: Token) -> Result<Held, StoreError> {
///         self.inner.release(slot, token).await
///     }
/// }
/// # let _ = Counting { inner: MemoryStore::new(), claims: Default::default() };
/// ```
pub trait Store: Send + Sync + 'static {
    /// Whether the store exists only in this process's memory. A value of `true` has two
    /// consequences.
    ///
    /// First, a claim's holder cannot die while the store survives. The layer therefore claims
    /// slots without a lease, never renews claims, and lets a claim lapse when its holder is
    /// dropped. Second, every future from [`begin`](Self::begin) and [`renew`](Self::renew) must be
    /// ready when it is first polled, because the layer calls these methods without allocating. If
    /// the future from `begin` is not ready, the layer calls `begin` again in the ordinary way. The
    /// token makes the second call safe.
    const IN_PROCESS: bool = false;

    /// Claims the slot, or returns the reason why it cannot be claimed.
    ///
    /// A second call with the same token returns `Started` again. Compare fingerprints with
    /// [`Fingerprint::conflicts_with`](crate::Fingerprint::conflicts_with), not with `==`: a
    /// request whose fingerprint was computed with a different rule is treated as the same request.
    /// A takeover stores the new fingerprint.
    fn begin(&self, begin: &ClaimRequest) -> impl Future<Output = Result<ClaimOutcome, StoreError>> + Send;

    /// Sets the claim's lease to expire `lease` from now. With a lease of zero, the claim lapses
    /// immediately, but the store remembers the claim's fingerprint and attempt number.
    fn renew(
        &self,
        slot: &Slot,
        token: Token,
        lease: Duration,
    ) -> impl Future<Output = Result<Held, StoreError>> + Send;

    /// Ends the claim and stores its outcome for `ttl` from now.
    fn complete(
        &self,
        slot: &Slot,
        token: Token,
        record: &Record,
        ttl: Duration,
    ) -> impl Future<Output = Result<Held, StoreError>> + Send;

    /// Ends the claim and frees the slot.
    fn release(&self, slot: &Slot, token: Token) -> impl Future<Output = Result<Held, StoreError>> + Send;

    /// Waits until the slot's claim may have ended. Returning too early is better than returning
    /// too late, because an early return costs only one more call to `begin`. `round` is the number
    /// of earlier calls by the same waiter.
    ///
    /// The default implementation sleeps for 10 ms in the first round, then twice as long in each
    /// further round, up to half a second.
    fn changed(&self, slot: &Slot, round: u32) -> impl Future<Output = ()> + Send {
        let _ = slot;
        tokio::time::sleep(Duration::from_millis(10 << round.min(6)).min(Duration::from_millis(500)))
    }

    /// Returns a started claim's transaction for atomic mode. The transaction commits the handler's
    /// writes and the record as one unit. The default implementation returns `None`.
    fn unit_of_work(&self, begin: &ClaimRequest) -> Option<Box<dyn UnitOfWork>> {
        let _ = begin;
        None
    }
}

impl<S: Store> Store for Arc<S> {
    const IN_PROCESS: bool = S::IN_PROCESS;

    fn begin(&self, begin: &ClaimRequest) -> impl Future<Output = Result<ClaimOutcome, StoreError>> + Send {
        (**self).begin(begin)
    }

    fn renew(
        &self,
        slot: &Slot,
        token: Token,
        lease: Duration,
    ) -> impl Future<Output = Result<Held, StoreError>> + Send {
        (**self).renew(slot, token, lease)
    }

    fn complete(
        &self,
        slot: &Slot,
        token: Token,
        record: &Record,
        ttl: Duration,
    ) -> impl Future<Output = Result<Held, StoreError>> + Send {
        (**self).complete(slot, token, record, ttl)
    }

    fn release(&self, slot: &Slot, token: Token) -> impl Future<Output = Result<Held, StoreError>> + Send {
        (**self).release(slot, token)
    }

    fn changed(&self, slot: &Slot, round: u32) -> impl Future<Output = ()> + Send {
        (**self).changed(slot, round)
    }

    fn unit_of_work(&self, begin: &ClaimRequest) -> Option<Box<dyn UnitOfWork>> {
        (**self).unit_of_work(begin)
    }
}
