//! Responds to refused requests in the API's own error format instead of RFC 9457.
//!
//! ```text
//! cargo test --example error_format
//! cargo run --example error_format     # serves http://127.0.0.1:3000
//! curl -i http://127.0.0.1:3000/payments -d 'EUR 10'
//! ```

use axum::http::header::{CONTENT_TYPE, RETRY_AFTER};
use axum::http::{HeaderValue, Response};
use axum::{Router, routing::post};
use bytes::Bytes;
use serde_json::json;
use tower_idempotency::{ConfigError, IdempotencyLayer, MemoryStore, Problem};

/// Returns `{"error": {"code", "message", "retryable"}}`, like all errors of this API.
fn error(problem: &Problem) -> Response<Bytes> {
    let kind = problem.kind();
    let body = json!({ "error": {
        "code": kind.slug(),
        "message": problem.detail(),
        "retryable": kind.is_retryable(),
    }});
    let mut response = Response::new(Bytes::from(body.to_string()));
    *response.status_mut() = kind.status();
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    // Set the headers too. Clients wait as long as `Retry-After` says.
    if let Some(seconds) = kind.retry_after() {
        headers.insert(RETRY_AFTER, HeaderValue::from(seconds));
    }
    response
}

fn app() -> Result<Router, ConfigError> {
    let idempotency = IdempotencyLayer::builder(MemoryStore::new())
        .require_key(true)
        .problem_response(|problem, _request| error(problem))
        .build()?;
    Ok(Router::new()
        .route("/payments", post(|| async { "paid" }))
        .layer(idempotency))
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:3000").await?;
    Ok(axum::serve(listener, app()?).await?)
}

#[cfg(test)]
mod tests {
    use axum::{body::Body, http::Request};
    use http_body_util::BodyExt;
    use serde_json::Value;
    use tower::ServiceExt;

    use super::*;

    #[tokio::test]
    async fn a_refusal_has_the_format_of_this_api() {
        let request = Request::post("/payments").body(Body::from("EUR 10")).unwrap();
        let response = app().unwrap().oneshot(request).await.unwrap();
        assert_eq!(response.status(), 400);
        assert_eq!(response.headers()[CONTENT_TYPE], "application/json");
        let body = response.into_body().collect().await.unwrap().to_bytes();
        let body: Value = serde_json::from_slice(&body).unwrap();
        assert_eq!(body["error"]["code"], "missing-key");
        assert_eq!(body["error"]["retryable"], false);
    }
}
