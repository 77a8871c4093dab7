//! What a store is asked for, and what it answers.

use std::time::Duration;

use super::record::Record;
use crate::request::{Fingerprint, ScopeTag, Slot};

/// Milliseconds on a store's own clock, from an origin of the store's choice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Millis(pub u64);

impl Millis {
    /// That much later; the end of time at the latest.
    #[must_use]
    pub fn after(self, duration: Duration) -> Self {
        // Rounded up, so that nothing lapses before its time.
        let millis = duration.as_secs().saturating_mul(1000);
        let millis = millis.saturating_add(u64::from(duration.subsec_nanos().div_ceil(1_000_000)));
        Self(self.0.saturating_add(millis))
    }

    pub(crate) fn until(self, later: Self) -> Duration {
        Duration::from_millis(later.0.saturating_sub(self.0))
    }
}

/// A fencing token: names one claim of one slot. A call with another token is answered `Lost`.
///
/// The layer draws it before it asks the store, so that `begin` can be repeated, or undone by
/// `release`, when its answer was lost on the way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Token(pub u64);

impl Token {
    /// A token that nobody else has drawn.
    #[must_use]
    pub fn random() -> Self {
        // The two halves of a UUID have fixed bits at different places.
        let (high, low) = uuid::Uuid::new_v4().as_u64_pair();
        Self(high ^ low)
    }
}

/// What to do with a claim whose lease has lapsed: its holder died, and whether the operation was
/// done is not known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum OnLapse {
    /// Run again as the next attempt, which the handler can see: at least once.
    #[default]
    RunAgain,
    /// Refuse with `409` problem `outcome-unknown` until the claim's memory ends: at most once.
    Refuse,
}

/// The request to claim a slot.
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
    /// Which operation.
    pub slot: Slot,
    /// Whose it is. All slots of one scope have the same tag. A store may divide its room among the tags.
    pub scope: ScopeTag,
    /// What the request is. A slot that runs or is done under another fingerprint of the same rule is a
    /// mismatch. A fingerprint of another rule counts as the same request, because the two cannot be
    /// compared.
    pub fingerprint: Fingerprint,
    /// The claim's name if it is granted.
    pub token: Token,
    /// How long the claim holds without being renewed.
    pub lease: Duration,
    /// How long a claim that lapsed is remembered after it lapsed.
    pub ttl: Duration,
    /// What to do with a lapsed claim of the same request.
    pub on_lapse: OnLapse,
    /// The operation will not run: a person says how it ended. So the claim also takes over one whose
    /// operation is known to be done.
    #[cfg_attr(
        not(feature = "redis"),
        allow(dead_code, reason = "only Redis knows such claims: its memory may be full")
    )]
    pub(crate) is_to_settle: bool,
}

impl ClaimRequest {
    /// A claim with a random token, a lease of 30 seconds, a TTL of 24 hours,
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

    /// A claim of an operation whose outcome a person knows.
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

    /// Sets the tag of the scope.
    #[must_use]
    pub fn with_scope(mut self, scope: ScopeTag) -> Self {
        self.scope = scope;
        self
    }

    /// Sets the lease. A lease of zero lapses at once.
    #[must_use]
    pub fn with_lease(mut self, lease: Duration) -> Self {
        self.lease = lease;
        self
    }

    /// Sets how long the claim is remembered after it lapsed.
    #[must_use]
    pub fn with_ttl(mut self, ttl: Duration) -> Self {
        self.ttl = ttl;
        self
    }

    /// Sets what to do with a lapsed claim of the same request.
    #[must_use]
    pub fn with_on_lapse(mut self, on_lapse: OnLapse) -> Self {
        self.on_lapse = on_lapse;
        self
    }
}

/// What `begin` found.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum ClaimOutcome {
    /// The slot was free (or its claim lapsed) and is now claimed under the token.
    #[non_exhaustive]
    Started {
        /// 1, and one more for each lapsed claim that was taken over.
        attempt: u32,
    },
    /// Another claim of the same request runs.
    #[non_exhaustive]
    InFlight {
        /// How long its lease still holds; it may be renewed.
        lease_left: Duration,
    },
    /// The slot runs or is done under another fingerprint of the same rule.
    Mismatch,
    /// Done: the outcome.
    Done(Record),
    /// The claim lapsed, and [`OnLapse::Refuse`] was asked for.
    OutcomeUnknown,
}

impl ClaimOutcome {
    /// The answer [`Started`](Self::Started), for a store.
    #[must_use]
    pub const fn started(attempt: u32) -> Self {
        Self::Started { attempt }
    }

    /// The answer [`InFlight`](Self::InFlight), for a store.
    #[must_use]
    pub const fn in_flight(lease_left: Duration) -> Self {
        Self::InFlight { lease_left }
    }
}

/// Whether a claim was still held when its holder spoke.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Held {
    /// It was; what was asked is done.
    Yes,
    /// It was not: another took it over, or it has ended. Nothing was changed.
    Lost,
}
