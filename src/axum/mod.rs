//! The Axum extractors for [`IdempotencyKey`] and for the operation's transaction.

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

/// The rejection of the [`IdempotencyKey`] extractor: no layer has added a key to the request.
///
/// The response is `500`, because this is a server error that the client cannot fix. The response
/// text gives the client no further details. The reason is in the log and in the `Display` output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct MissingIdempotencyLayer;

impl fmt::Display for MissingIdempotencyLayer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(
            "the request has no idempotency key that a layer has checked. If the client sent no key, set \
             `require_key(true)` or extract an `Option<IdempotencyKey>`; otherwise, put an `IdempotencyLayer` around \
             this route and make sure that it guards the method",
        )
    }
}

impl std::error::Error for MissingIdempotencyLayer {}

impl IntoResponse for MissingIdempotencyLayer {
    fn into_response(self) -> Response {
        not_set_up(&self)
    }
}

/// Logs the reason instead of sending it to the client, because the client cannot fix the error.
fn not_set_up(reason: &dyn fmt::Display) -> Response {
    tracing::error!(target: "tower_idempotency", "{reason}");
    let text = "The server is not set up for this request. See the server's log for the reason.";
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

/// Allows a handler to return `(Verdict::Release, response)` and thereby decide what the layer
/// stores.
impl IntoResponseParts for Verdict {
    type Error = Infallible;

    fn into_response_parts(self, mut parts: ResponseParts) -> Result<ResponseParts, Infallible> {
        parts.extensions_mut().insert(self);
        Ok(parts)
    }
}
