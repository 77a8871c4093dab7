//! What happens to a key when its operation has ended.

use std::time::Duration;

/// What to store of a response.
///
/// A [`Policy`](crate::Policy) gives a verdict on each response. A handler that knows better puts its own
/// verdict into the extensions of its response; the policy is then not asked. With Axum it is a part of the
/// response:
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
/// A `1xx` response is never stored, whatever a verdict says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Verdict {
    /// Store the response. A retry gets it again.
    Store,
    /// Like [`Store`](Self::Store), with a TTL for this response instead of the layer's `ttl`. If the response
    /// cannot be stored, the TTL holds for its tombstone. A TTL outside the range from 1 ms to 10 years is
    /// moved into it.
    StoreFor(Duration),
    /// Store nothing. The key is free, and a retry runs again as attempt 1.
    Release,
    /// Store only that the operation was done. A retry gets `409` problem `response-not-retained`. The response
    /// goes to its client live, without buffering. With a status of 500 or above, it is not known what was
    /// done, and a retry gets `outcome-unknown`.
    Seal,
    /// Store nothing, and let the same request run again at once, as the next attempt.
    ///
    /// Use it for outcomes that leave the effect in doubt, such as `502` and `504` from an upstream. A
    /// reconciler is asked before the next attempt runs, and the handler sees in
    /// [`IdempotencyKey::attempt`](crate::IdempotencyKey::attempt) that it is not the first. With
    /// [`OnLapse::Refuse`](crate::store::OnLapse::Refuse) the retry is refused instead.
    Reopen,
}

/// What happens to a key whose operation ended without a response that could be stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Fate {
    /// The key is free, and a retry runs again as attempt 1: at least once.
    Release,
    /// A tombstone is stored, and a retry is refused with `409`: at most once.
    Seal,
    /// The same request may run again at once, as the next attempt; see [`Verdict::Reopen`].
    Reopen,
}
