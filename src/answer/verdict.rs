//! Decisions about a key after its operation has ended.

use std::time::Duration;

/// Determines what the layer stores for a response, if anything.
///
/// A [`Policy`](crate::Policy) returns a verdict on each response. A handler can override the
/// policy by inserting its own verdict into its response's extensions. In that case, the layer does
/// not consult the policy. With Axum, the handler returns the verdict as a part of the response:
///
/// ```
/// # #[cfg(feature = "axum")]
/// # mod example {
/// use axum::response::IntoResponse;
/// use tower_idempotency::Verdict;
///
/// async fn charge() -> impl IntoResponse {
///     // Retries must not get this success again, because the price is only an estimate.
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
    /// Store only the fact that the operation completed. A retry gets `409` problem
    /// `response-not-retained`. The response is sent to its client live, without buffering. If the
    /// status is 500 or above, the effect is unknown, and a retry gets `outcome-unknown` instead.
    Seal,
    /// Store nothing, and let the same request run again immediately, as the next attempt.
    ///
    /// Use this verdict for responses that do not show whether the effect happened, such as `502`
    /// and `504` from an upstream service. If the policy has a reconciler, the layer calls it
    /// before the next attempt runs. The handler can see from
    /// [`IdempotencyKey::attempt`](crate::IdempotencyKey::attempt) that this is not the first
    /// attempt. With [`OnLapse::Refuse`](crate::store::OnLapse::Refuse), the retry is refused
    /// instead.
    Reopen,
}

/// The fate of a key whose operation ended without a response that could be stored.
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
