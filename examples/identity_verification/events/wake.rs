//! Telling the deliveries that there may be a new event.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::Method;
use axum::middleware::Next;
use axum::response::Response;
use tokio::sync::Notify;

/// Stands outside the idempotency layer, since that commits what the handler wrote. If the client
/// has left by then, the event is found when the deliveries look the next time.
pub(crate) async fn wake_after(State(wake): State<Arc<Notify>>, request: Request, next: Next) -> Response {
    let decides = request.method() == Method::PATCH;
    let response = next.run(request).await;
    if decides && response.status().is_success() {
        wake.notify_one();
    }
    response
}
