//! Counts the running operations, so that the server does not stop while an operation is running.

use axum::body::{Body, Bytes};
use axum::extract::rejection::BytesRejection;
use axum::extract::{Request, State};
use axum::http::request::Parts;
use axum::middleware::Next;
use axum::response::Response;
use tokio_util::task::TaskTracker;

use super::error::ApiError;

/// Counts an operation from the moment when its request is complete. A request that the client is
/// still sending is not an operation yet, and it may never be completed. This layer is inside the
/// idempotency layer, so that an operation whose client has disconnected is still counted.
pub(crate) async fn track(
    State(operations): State<TaskTracker>,
    parts: Parts,
    body: Result<Bytes, BytesRejection>,
    next: Next,
) -> Result<Response, ApiError> {
    let body = body.map_err(|rejection| ApiError::new(rejection.status(), rejection.body_text()))?;
    let _running = operations.token();
    Ok(next.run(Request::from_parts(parts, Body::from(body))).await)
}
