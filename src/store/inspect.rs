//! Looking into a store: for the person on call, and for settling what nobody knows.

use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::Response;

use super::{ClaimOutcome, ClaimRequest, Held, Record, ScopeTag, Slot, Store, StoreError};
use crate::request::Fingerprint;

/// What a slot holds. No body, no header, no key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Entry {
    /// What the request was.
    pub fingerprint: Fingerprint,
    /// How far the operation is.
    pub phase: Phase,
    /// When the store forgets the entry, from now, unless something happens before.
    pub forgotten_in: Duration,
}

/// How far an operation is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Phase {
    /// Claimed.
    Running {
        /// 1, and one more for each lapsed claim that was taken over.
        attempt: u32,
        /// How long the lease still holds. Zero: it lapsed, its holder died, and whether the
        /// operation was done is not known.
        lease_left: Duration,
    },
    /// Ended with an outcome that is kept.
    Done {
        /// Bytes of the record.
        bytes: usize,
    },
}

impl Entry {
    /// An entry, as a store that implements [`Inspect`] makes it.
    #[must_use]
    pub fn new(fingerprint: Fingerprint, phase: Phase, forgotten_in: Duration) -> Self {
        Self {
            fingerprint,
            phase,
            forgotten_in,
        }
    }
}

/// `running, attempt 1, lease 12s` or `done, 512 bytes`, and when it is forgotten.
impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.phase {
            Phase::Running { attempt, lease_left } if lease_left.is_zero() => {
                write!(f, "lapsed in attempt {attempt}, outcome unknown")?;
            }
            Phase::Running { attempt, lease_left } => {
                write!(f, "running, attempt {attempt}, lease {lease_left:?}")?;
            }
            Phase::Done { bytes } => write!(f, "done, {bytes} bytes")?,
        }
        write!(f, "; forgotten in {:?}", self.forgotten_in)
    }
}

/// How many entries a store has, those left out that are forgotten and not swept yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Census {
    /// Claims whose lease holds.
    pub running: u64,
    /// Claims whose lease lapsed: operations whose outcome is not known.
    pub lapsed: u64,
    /// Records.
    pub done: u64,
}

impl Census {
    /// A count, as a store that implements [`Inspect`] makes it.
    #[must_use]
    pub fn new(running: u64, lapsed: u64, done: u64) -> Self {
        Self { running, lapsed, done }
    }
}

/// Looking into a store, and settling by hand what nobody knows. All stores of this crate have it;
/// the layer itself never asks.
///
/// The slot of a key is [`IdempotencyLayer::slot`](crate::IdempotencyLayer::slot).
///
/// ```
/// use tower_idempotency::store::{Inspect, Phase};
/// use tower_idempotency::{IdempotencyLayer, MemoryStore};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let store = MemoryStore::new();
/// let layer = IdempotencyLayer::new(store.clone());
///
/// // A client complains: "my key 8e03978e… is answered 409 for an hour".
/// let slot = layer.slot(Some("Bearer sk_acme"), "8e03978e-40d5-43dd-bc93-6894a57f9324")?;
/// match store.look_up(&slot).await? {
///     Some(entry) => println!("{entry}"),
///     None => println!("the store knows nothing of this key"),
/// }
/// # Ok(())
/// # }
/// ```
pub trait Inspect: Store {
    /// What the slot holds; `None` if it is vacant.
    fn look_up(&self, slot: &Slot) -> impl Future<Output = Result<Option<Entry>, StoreError>> + Send;

    /// Empties the slot, whatever it holds, and says whether it held something: **the next request
    /// runs, with any fingerprint, as attempt 1.** A holder that still runs is fenced off.
    fn forget(&self, slot: &Slot) -> impl Future<Output = Result<bool, StoreError>> + Send;

    /// Forgets every finished operation of a scope, and says how many there were: records and tombstones go,
    /// claims stay, those whose lease lapsed too. **A retry of a forgotten operation runs again.**
    ///
    /// Use it when a tenant leaves, or when a person asks you to erase their data: you need neither the keys
    /// nor a list of them. What finishes while the call runs may stay. Call it again after you have stopped
    /// the caller's requests.
    ///
    /// The tag is [`IdempotencyLayer::scope_tag`](crate::IdempotencyLayer::scope_tag).
    ///
    /// # Errors
    ///
    /// The store failed. Some of the scope's operations may be forgotten and others not: call it again.
    ///
    /// ```
    /// use tower_idempotency::store::Inspect;
    /// use tower_idempotency::{IdempotencyLayer, MemoryStore};
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let store = MemoryStore::new();
    /// let layer = IdempotencyLayer::new(store.clone());
    ///
    /// let tag = layer.scope_tag(Some("Bearer sk_acme"))?;
    /// let forgotten = store.forget_scope(&tag).await?;
    /// assert_eq!(forgotten, 0);
    /// # Ok(())
    /// # }
    /// ```
    fn forget_scope(&self, scope: &ScopeTag) -> impl Future<Output = Result<u64, StoreError>> + Send;

    /// Counts. A store may have to look at every entry: not for a dashboard that refreshes each
    /// second.
    fn count(&self) -> impl Future<Output = Result<Census, StoreError>> + Send;

    /// Settles an operation whose lease lapsed, as after `409` problem `outcome-unknown`, with the
    /// answer that its retries shall get. `false`: there is no lapsed claim in the slot, and
    /// nothing was changed. An operation that is done, and for whose record a full Redis had no room,
    /// counts as lapsed.
    ///
    /// ```
    /// use std::time::Duration;
    /// use bytes::Bytes;
    /// use http::Response;
    /// use tower_idempotency::{Slot, store::{Inspect, StoreError}};
    ///
    /// /// The provider's dashboard says that the charge was made.
    /// async fn was_charged<S: Inspect>(store: &S, slot: &Slot) -> Result<bool, StoreError> {
    ///     let answer = Response::builder()
    ///         .status(201)
    ///         .header("content-type", "application/json")
    ///         .body(Bytes::from_static(b"{\"charged\":true}"))
    ///         .expect("a valid response");
    ///     store.settle(slot, &answer, Duration::from_secs(24 * 3600)).await
    /// }
    /// # let _ = was_charged::<tower_idempotency::MemoryStore>;
    /// ```
    fn settle(
        &self,
        slot: &Slot,
        answer: &Response<Bytes>,
        ttl: Duration,
    ) -> impl Future<Output = Result<bool, StoreError>> + Send {
        async move {
            let lapsed = match self.look_up(slot).await? {
                Some(entry) if matches!(entry.phase, Phase::Running { lease_left, .. } if lease_left.is_zero()) => {
                    entry
                }
                _ => return Ok(false),
            };
            let claim = ClaimRequest::to_settle(*slot, lapsed.fingerprint)
                .with_lease(Duration::from_secs(60))
                .with_ttl(ttl);
            let ClaimOutcome::Started { .. } = self.begin(&claim).await? else {
                return Ok(false);
            };
            let record = Record::of_response(lapsed.fingerprint, answer);
            Ok(self.complete(slot, claim.token, &record, ttl).await? == Held::Yes)
        }
    }
}

impl<S: Inspect> Inspect for Arc<S> {
    fn look_up(&self, slot: &Slot) -> impl Future<Output = Result<Option<Entry>, StoreError>> + Send {
        (**self).look_up(slot)
    }

    fn forget(&self, slot: &Slot) -> impl Future<Output = Result<bool, StoreError>> + Send {
        (**self).forget(slot)
    }

    fn forget_scope(&self, scope: &ScopeTag) -> impl Future<Output = Result<u64, StoreError>> + Send {
        (**self).forget_scope(scope)
    }

    fn count(&self) -> impl Future<Output = Result<Census, StoreError>> + Send {
        (**self).count()
    }
}
