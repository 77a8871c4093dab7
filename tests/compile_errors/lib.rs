//! What the snippets have in common.

use std::convert::Infallible;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use tower::Service;
use tower_idempotency::{IdempotencyLayer, MemoryStore};

pub fn layer() -> IdempotencyLayer {
    IdempotencyLayer::new(MemoryStore::new())
}

/// Asks of a service what a server asks.
pub fn serve<B>(_: impl Service<Request<B>>) {}

/// A handler for any request body.
pub async fn handle<B>(_: Request<B>) -> Result<Response<Full<Bytes>>, Infallible> {
    Ok(Response::default())
}
