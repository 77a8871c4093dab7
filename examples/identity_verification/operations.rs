//! Counting the operations that run, so that the server does not stop under one.

use std::future::ready;
use std::sync::{Arc, Mutex, PoisonError};

use axum::body::{Body, Bytes};
use axum::extract::rejection::BytesRejection;
use axum::extract::{Request, State};
use axum::http::request::Parts;
use axum::middleware::Next;
use axum::response::Response;
use futures_util::{StreamExt, stream};
use tokio_util::task::TaskTracker;

use super::error::ApiError;

/// Counts an operation from when its request is complete: one that a client is still sending (it may
/// never end) is none yet. Stands inside the idempotency layer, so that an operation whose client
/// has left still counts.
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

/// The same for an operation whose body is streamed: it is one from when its body has ended.
pub(crate) async fn track_upload(State(operations): State<TaskTracker>, request: Request, next: Next) -> Response {
    let running = Arc::new(Mutex::new(None));
    let request = request.map(|body| {
        let running = Arc::clone(&running);
        let counted = body.into_data_stream().map(Some).chain(stream::once(async move {
            let token = operations.token();
            *running.lock().unwrap_or_else(PoisonError::into_inner) = Some(token);
            None
        }));
        // A failure is passed on; what comes after it does not matter.
        Body::from_stream(counted.filter_map(ready))
    });
    let response = next.run(request).await;
    drop(running);
    response
}
