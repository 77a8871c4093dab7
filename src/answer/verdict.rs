//! What becomes of a key when its operation has ended.

use std::time::Duration;

/// What to keep of a response.
///
/// A [`Policy`](crate::Policy) gives one for each response. A handler that knows better puts one into the
/// extensions of its response, and is then asked alone. With Axum it is a part of the response:
///
/// ```
/// # #[cfg(feature = "axum")]
/// # mod example {
/// use axum::response::IntoResponse;
/// use tower_idempotency::Verdict;
///
/// async fn charge() -> impl IntoResponse {
///     // A success that a retry must not get again: the price was estimated only.
///     (Verdict::Release, "estimated")
/// }
/// # }
/// ```
///
/// A `1xx` response is never stored, whatever a verdict says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Verdict {
    /// Store the response: a retry gets it again.
    Store,
    /// As [`Store`](Self::Store), with a TTL for this response alone instead of the layer's `ttl`; also for
    /// the tombstone, if the response cannot be stored. It is brought into the layer's range, from 1 ms to
    /// 10 years.
    StoreFor(Duration),
    /// Store nothing: the key is free, and a retry runs again as attempt 1.
    Release,
    /// Store only that the operation was done: a retry gets `409` problem `response-not-retained`. The
    /// response goes to its client live, unbuffered. With a status of 500 or above it is not known what
    /// was done, and a retry gets `outcome-unknown`.
    Seal,
    /// Store nothing, and let the key run again at once, as the next attempt and for the same request
    /// only. For outcomes that leave the effect in doubt, such as `502` and `504` from an upstream: the
    /// handler sees in [`IdempotencyKey::attempt`](crate::IdempotencyKey::attempt) that it is not the
    /// first, and a reconciler is asked before it. With
    /// [`OnLapse::Refuse`](crate::store::OnLapse::Refuse) the retry is refused instead.
    Reopen,
}

/// What becomes of a key whose operation ended without a response that could be stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Fate {
    /// The key is free, and a retry runs again as attempt 1: at least once.
    Release,
    /// A tombstone is stored, and a retry is refused with `409`: at most once.
    Seal,
    /// The key may run again at once, as the next attempt and for the same request only; see
    /// [`Verdict::Reopen`].
    Reopen,
}
