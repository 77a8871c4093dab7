//! Operator tools that inspect a store and settle operations whose outcome is unknown.

use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::Response;

use super::{ClaimOutcome, ClaimRequest, Held, Record, ScopeTag, Slot, Store, StoreError};
use crate::request::Fingerprint;

/// A slot's entry. It contains no bodies, headers or keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Entry {
    /// The request's fingerprint.
    pub fingerprint: Fingerprint,
    /// The operation's progress.
    pub phase: Phase,
    /// The time until the store forgets the entry, unless the entry changes before then.
    pub forgotten_in: Duration,
}

/// An operation's progress.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Phase {
    /// The operation is claimed.
    Running {
        /// The attempt number: 1, plus 1 for each lapsed claim that was taken over.
        attempt: u32,
        /// The time until the lease expires. Zero means that the claim has lapsed: its holder died
        /// or could not renew the lease, and it is unknown whether the operation completed.
        lease_left: Duration,
    },
    /// The operation ended, and its outcome is stored.
    Done {
        /// The record's size in bytes.
        bytes: usize,
    },
}

impl Entry {
    /// Creates an entry. Stores that implement [`Inspect`] use this constructor.
    #[must_use]
    pub fn new(fingerprint: Fingerprint, phase: Phase, forgotten_in: Duration) -> Self {
        Self {
            fingerprint,
            phase,
            forgotten_in,
        }
    }
}

/// Writes the operation's progress, such as `running, attempt 1, lease 12s` or `done, 512 bytes`,
/// and the time until the store forgets the entry.
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

/// The number of entries in a store, excluding forgotten entries that have not been swept yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Census {
    /// The number of claims whose lease has not lapsed.
    pub running: u64,
    /// The number of claims whose lease has lapsed. It is unknown whether their operations
    /// completed.
    pub lapsed: u64,
    /// The number of records.
    pub done: u64,
}

impl Census {
    /// Creates a census. Stores that implement [`Inspect`] use this constructor.
    #[must_use]
    pub fn new(running: u64, lapsed: u64, done: u64) -> Self {
        Self { running, lapsed, done }
    }
}

/// Inspects a store, and lets you settle operations whose outcome is unknown. All stores in this
/// crate implement this trait. The layer itself never calls these methods.
///
/// To get a key's slot, call [`IdempotencyLayer::slot`](crate::IdempotencyLayer::slot).
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
/// // A client complains: "my key 8e03978e… has been getting 409 for an hour".
/// let slot = layer.slot(Some("Bearer sk_acme"), "8e03978e-40d5-43dd-bc93-6894a57f9324")?;
/// match store.look_up(&slot).await? {
///     Some(entry) => println!("{entry}"),
///     None => println!("the store has no entry for this key"),
/// }
/// # Ok(())
/// # }
/// ```
pub trait Inspect: Store {
    /// Returns the slot's entry, or `None` if the slot is vacant.
    fn look_up(&self, slot: &Slot) -> impl Future<Output = Result<Option<Entry>, StoreError>> + Send;

    /// Empties the slot, whatever its state, and returns whether the slot contained an entry. **The
    /// next request runs as attempt 1, whatever its fingerprint.** A holder that is still running
    /// is fenced off.
    fn forget(&self, slot: &Slot) -> impl Future<Output = Result<bool, StoreError>> + Send;

    /// Forgets every finished operation in a scope, and returns how many it forgot. Records and
    /// tombstones are removed. Claims remain, including lapsed claims. **A retry of a forgotten
    /// operation runs again.**
    ///
    /// Use this method when you remove a tenant, or when a person asks you to erase their data. You
    /// do not need to know the keys. Operations that finish during the call may remain, so call the
    /// method again after you have stopped all requests in the scope.
    ///
    /// To get a scope's tag, call
    /// [`IdempotencyLayer::scope_tag`](crate::IdempotencyLayer::scope_tag).
    ///
    /// # Errors
    ///
    /// The store failed. It may have forgotten only some of the scope's operations, so call this
    /// method again.
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

    /// Counts the entries. The store may have to read every entry, so do not use this method for a
    /// dashboard that refreshes every second.
    fn count(&self) -> impl Future<Output = Result<Census, StoreError>> + Send;

    /// Settles an operation whose claim has lapsed, for example after a `409` problem
    /// `outcome-unknown`. Retries of the operation then get the given response. If the slot has no
    /// lapsed claim, this method returns `false` and changes nothing. If a full Redis server had no
    /// room for the record of a completed operation, the operation's claim is treated as lapsed.
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
            let ClaimOutcome::Started { attempt } = self.begin(&claim).await? else {
                return Ok(false);
            };
            if attempt == 1 {
                // The lapsed claim ended in the meantime, and the slot was free.
                self.release(slot, claim.token).await?;
                return Ok(false);
            }
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
