//! Requests to a store, and their results.

use std::time::Duration;

use super::record::Record;
use crate::request::{Fingerprint, ScopeTag, Slot};

/// Milliseconds on a store's own clock, counted from an origin that the store chooses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Millis(pub u64);

impl Millis {
    /// Returns this time plus `duration`, or the latest possible time if the sum overflows.
    #[must_use]
    pub fn after(self, duration: Duration) -> Self {
        // Rounded up, so that no lease lapses too early.
        let millis = duration.as_secs().saturating_mul(1000);
        let millis = millis.saturating_add(u64::from(duration.subsec_nanos().div_ceil(1_000_000)));
        Self(self.0.saturating_add(millis))
    }

    pub(crate) fn until(self, later: Self) -> Duration {
        Duration::from_millis(later.0.saturating_sub(self.0))
    }
}

/// A fencing token, which identifies one claim on a slot. With any other token, a call to `renew`,
/// `complete` or `release` returns `Lost`.
///
/// The layer generates the token before it calls the store. If the result of `begin` is lost, the
/// layer can repeat the call, or undo the claim with `release`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Token(pub u64);

impl Token {
    /// Generates a unique random token.
    #[must_use]
    pub fn random() -> Self {
        // A UUID's fixed bits are at different positions in its two halves, so XOR combines each
        // fixed bit with a random bit.
        let (high, low) = uuid::Uuid::new_v4().as_u64_pair();
        Self(high ^ low)
    }
}

/// The action to take for a claim whose lease has lapsed. The claim's holder died or could not
/// renew the lease, and it is unknown whether the operation completed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum OnLapse {
    /// Run the operation again as the next attempt. The handler can see the attempt number. The
    /// operation runs at least once.
    #[default]
    RunAgain,
    /// Refuse the request with a `409` problem `outcome-unknown` until the store forgets the claim.
    /// The operation runs at most once.
    Refuse,
}

/// A request to claim a slot.
///
/// ```
/// use std::time::Duration;
/// use tower_idempotency::store::{ClaimRequest, OnLapse};
/// use tower_idempotency::{Fingerprint, Slot};
///
/// let begin = ClaimRequest::new(Slot::from_bytes([1; 32]), Fingerprint::from_bytes([2; 16]))
///     .with_lease(Duration::from_secs(60))
///     .with_on_lapse(OnLapse::Refuse);
/// assert_eq!(begin.ttl, Duration::from_secs(24 * 3600));
/// ```
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub struct ClaimRequest {
    /// The operation's slot.
    pub slot: Slot,
    /// The tag of the operation's scope. All slots in a scope have the same tag. A store may divide
    /// its space among tags.
    pub scope: ScopeTag,
    /// The request's fingerprint. If the slot's claim or record has a different fingerprint that
    /// was computed with the same rule, the result is a mismatch. A request whose fingerprint was
    /// computed with a different rule is treated as the same request, because the two fingerprints
    /// cannot be compared.
    pub fingerprint: Fingerprint,
    /// The token that identifies the claim if it is granted.
    pub token: Token,
    /// How long the claim is held if it is not renewed.
    pub lease: Duration,
    /// How long the store remembers a lapsed claim after its lease expires.
    pub ttl: Duration,
    /// The action to take if the same request already has a lapsed claim.
    pub on_lapse: OnLapse,
    /// Whether a person uses this claim to record the operation's outcome. The operation will not
    /// run, so this claim can also take over a claim whose operation is known to have completed.
    #[cfg_attr(
        not(any(feature = "redis", feature = "tiered")),
        allow(
            dead_code,
            reason = "only the Redis store, whose server may run out of memory, and caches distinguish these claims"
        )
    )]
    pub(crate) is_to_settle: bool,
}

impl ClaimRequest {
    /// Creates a request with a random token, a lease of 30 seconds, a TTL of 24 hours,
    /// [`OnLapse::RunAgain`] and the default scope tag.
    #[must_use]
    pub fn new(slot: Slot, fingerprint: Fingerprint) -> Self {
        Self {
            slot,
            scope: ScopeTag::default(),
            fingerprint,
            token: Token::random(),
            lease: Duration::from_secs(30),
            ttl: Duration::from_secs(24 * 3600),
            on_lapse: OnLapse::RunAgain,
            is_to_settle: false,
        }
    }

    /// Creates a request for a person who has found out an operation's outcome and settles it.
    pub(crate) fn to_settle(slot: Slot, fingerprint: Fingerprint) -> Self {
        Self {
            is_to_settle: true,
            ..Self::new(slot, fingerprint)
        }
    }

    /// Sets the token.
    #[must_use]
    pub fn with_token(mut self, token: Token) -> Self {
        self.token = token;
        self
    }

    /// Sets the scope tag.
    #[must_use]
    pub fn with_scope(mut self, scope: ScopeTag) -> Self {
        self.scope = scope;
        self
    }

    /// Sets the lease. A lease of zero lapses immediately.
    #[must_use]
    pub fn with_lease(mut self, lease: Duration) -> Self {
        self.lease = lease;
        self
    }

    /// Sets how long the store remembers the claim after it lapses.
    #[must_use]
    pub fn with_ttl(mut self, ttl: Duration) -> Self {
        self.ttl = ttl;
        self
    }

    /// Sets the action to take if the same request already has a lapsed claim.
    #[must_use]
    pub fn with_on_lapse(mut self, on_lapse: OnLapse) -> Self {
        self.on_lapse = on_lapse;
        self
    }
}

/// The outcome of `begin`.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum ClaimOutcome {
    /// The slot was vacant, or its claim had lapsed. The slot is now claimed with the given token.
    #[non_exhaustive]
    Started {
        /// The attempt number: 1, plus 1 for each lapsed claim that was taken over.
        attempt: u32,
    },
    /// Another claim for the same request is running.
    #[non_exhaustive]
    InFlight {
        /// The time until the running claim's lease expires, unless the holder renews the claim.
        lease_left: Duration,
    },
    /// The fingerprint of the slot's claim or record differs from the request's fingerprint,
    /// although both were computed with the same rule.
    Mismatch,
    /// The operation has completed, and this is its outcome.
    Done(Record),
    /// The claim lapsed, and the request specifies [`OnLapse::Refuse`].
    OutcomeUnknown,
}

impl ClaimOutcome {
    /// Creates a [`Started`](Self::Started) outcome. Store implementations use this constructor.
    #[must_use]
    pub const fn started(attempt: u32) -> Self {
        Self::Started { attempt }
    }

    /// Creates an [`InFlight`](Self::InFlight) outcome. Store implementations use this constructor.
    #[must_use]
    pub const fn in_flight(lease_left: Duration) -> Self {
        Self::InFlight { lease_left }
    }
}

/// Whether a claim was still held when its holder called the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Held {
    /// The claim was held, and the call took effect.
    Yes,
    /// The claim was not held, because it had ended or a newer claim had taken over the slot. The
    /// call changed nothing.
    Lost,
}
