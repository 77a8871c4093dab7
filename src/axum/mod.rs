//! The Axum extractors of [`IdempotencyKey`] and of the operation's transaction.

#[cfg(any(feature = "postgres", feature = "_sqlite"))]
mod transaction;

use axum::extract::{FromRequestParts, OptionalFromRequestParts};
use axum::response::{IntoResponse, IntoResponseParts, Response, ResponseParts};
use http::StatusCode;
use http::request::Parts;
use std::convert::Infallible;
use std::fmt;

use crate::answer::Verdict;
use crate::request::IdempotencyKey;
#[cfg(any(feature = "postgres", feature = "_sqlite"))]
pub use transaction::MissingTransaction;

/// The rejection of [`IdempotencyKey`]: no layer has put a key into the request.
///
/// The response is `500`, because this is an error of the server that the client cannot fix. Its text
/// tells the client nothing else. The reason is in the log, and in `Display`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct MissingIdempotencyLayer;

impl fmt::Display for MissingIdempotencyLayer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(
            "the request has no idempotency key that a layer has checked. If the client sent no key, set \
             `require_key(true)` or take an `Option` of this extractor; otherwise put `IdempotencyLayer` around this \
             route and let it guard the method",
        )
    }
}

impl std::error::Error for MissingIdempotencyLayer {}

impl IntoResponse for MissingIdempotencyLayer {
    fn into_response(self) -> Response {
        not_set_up(&self)
    }
}

/// The reason is for the log: the client cannot fix it.
fn not_set_up(reason: &dyn fmt::Display) -> Response {
    tracing::error!(target: "tower_idempotency", "{reason}");
    let text = "The server is not set up for this request. Its log has the reason.";
    (StatusCode::INTERNAL_SERVER_ERROR, text).into_response()
}

impl<S: Send + Sync> FromRequestParts<S> for IdempotencyKey {
    type Rejection = MissingIdempotencyLayer;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Self::Rejection> {
        parts.extensions.get::<Self>().cloned().ok_or(MissingIdempotencyLayer)
    }
}

impl<S: Send + Sync> OptionalFromRequestParts<S> for IdempotencyKey {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Option<Self>, Self::Rejection> {
        Ok(parts.extensions.get::<Self>().cloned())
    }
}

/// `(Verdict::Release, response)`: the handler decides what happens to its response.
impl IntoResponseParts for Verdict {
    type Error = Infallible;

    fn into_response_parts(self, mut parts: ResponseParts) -> Result<ResponseParts, Infallible> {
        parts.extensions_mut().insert(self);
        Ok(parts)
    }
}
