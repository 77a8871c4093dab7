//! Counts the operations that run, so that the server does not stop while one runs.

use axum::body::{Body, Bytes};
use axum::extract::rejection::BytesRejection;
use axum::extract::{Request, State};
use axum::http::request::Parts;
use axum::middleware::Next;
use axum::response::Response;
use tokio_util::task::TaskTracker;

use super::error::ApiError;

/// Counts an operation from the moment when its request is complete. A request that a client is still sending,
/// and may never end, is not an operation yet. The layer is inside the idempotency layer, so that an operation
/// whose client has disconnected still counts.
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
