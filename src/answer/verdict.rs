//! What happens to a key after its operation has ended.

use std::time::Duration;

/// What to store of a response.
///
/// A [`Policy`](crate::Policy) gives a verdict on each response. A handler that knows better
/// inserts its own verdict into the extensions of its response, and the policy is then not
/// consulted. With Axum, the handler returns the verdict as a part of the response:
///
/// ```
/// # #[cfg(feature = "axum")]
/// # mod example {
/// use axum::response::IntoResponse;
/// use tower_idempotency::Verdict;
///
/// async fn charge() -> impl IntoResponse {
///     // A success that a retry must not get again, because the price is only an estimate.
///     (Verdict::Release, "estimated")
/// }
/// # }
/// ```
///
/// A `1xx` response is never stored, whatever the verdict.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Verdict {
    /// Store the response. A retry gets the stored response.
    Store,
    /// Like [`Store`](Self::Store), but with a TTL for this response instead of the layer's `ttl`.
    /// If the response cannot be stored, the TTL applies to its tombstone. A TTL outside the range
    /// from 1 ms to 10 years is clamped to that range.
    StoreFor(Duration),
    /// Store nothing. The key becomes free, and a retry runs the operation again as attempt 1.
    Release,
    /// Store only that the operation was done. A retry gets `409` problem `response-not-retained`.
    /// The response is sent to its client live, without buffering. If the status is 500 or above,
    /// it is not known what was done, and a retry gets `outcome-unknown` instead.
    Seal,
    /// Store nothing, and let the same request run again immediately, as the next attempt.
    ///
    /// Use it for outcomes that leave the effect in doubt, such as `502` and `504` from an
    /// upstream. If there is a reconciler, it is called before the next attempt runs. The handler
    /// sees in [`IdempotencyKey::attempt`](crate::IdempotencyKey::attempt) that the attempt is not
    /// the first. With [`OnLapse::Refuse`](crate::store::OnLapse::Refuse), the retry is refused
    /// instead.
    Reopen,
}

/// What happens to a key whose operation ended without a response that could be stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Fate {
    /// The key becomes free, and a retry runs the operation again as attempt 1 (at least once).
    Release,
    /// A tombstone is stored, and a retry is refused with `409` (at most once).
    Seal,
    /// The same request can run again immediately, as the next attempt. See [`Verdict::Reopen`].
    Reopen,
}
