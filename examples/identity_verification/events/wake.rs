//! Wakes the deliveries when there may be a new event.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::Method;
use axum::middleware::Next;
use axum::response::Response;
use tokio::sync::Notify;

/// Wakes the deliveries after a decision. This layer is outside the idempotency layer, because the
/// idempotency layer commits the handler's writes. If the client has disconnected by then, the
/// deliveries find the event at their next check.
pub(crate) async fn wake_after(State(wake): State<Arc<Notify>>, request: Request, next: Next) -> Response {
    let decides = request.method() == Method::PATCH;
    let response = next.run(request).await;
    if decides && response.status().is_success() {
        wake.notify_one();
    }
    response
}
