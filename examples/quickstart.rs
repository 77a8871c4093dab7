//! A payment that is safe to retry, and its test.
//!
//! ```text
//! cargo test --example quickstart     # tests it without a server
//! cargo run --example quickstart      # serves http://127.0.0.1:3000
//! curl -i http://127.0.0.1:3000/payments -H 'Idempotency-Key: order-17' -d 'EUR 10'
//! ```

use axum::{Router, http::StatusCode, routing::post};
use tower_idempotency::{ConfigError, IdempotencyLayer, MemoryStore};
use uuid::Uuid;

/// Costs money, so it must run only once for each key.
async fn pay(amount: String) -> (StatusCode, String) {
    (StatusCode::CREATED, format!("paid {amount} as {}\n", Uuid::new_v4()))
}

fn app() -> Result<Router, ConfigError> {
    let idempotency = IdempotencyLayer::builder(MemoryStore::new())
        .require_key(true)
        .build()?;
    Ok(Router::new().route("/payments", post(pay)).layer(idempotency))
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
    use tower::ServiceExt;

    use super::*;

    #[tokio::test]
    async fn a_retry_gets_the_first_response_and_pays_nothing() {
        let app = app().unwrap();
        let send = async |amount: &'static str| {
            let request = Request::post("/payments").header("Idempotency-Key", "order-17");
            let request = request.body(Body::from(amount)).unwrap();
            let response = app.clone().oneshot(request).await.unwrap();
            let replayed = response.headers().contains_key("Idempotency-Replayed");
            let status = response.status();
            let body = response.into_body().collect().await.unwrap().to_bytes();
            (status.as_u16(), replayed, body)
        };
        let (status, replayed, paid) = send("EUR 10").await;
        assert_eq!((status, replayed), (201, false));
        // The network lost the response, so the client retries. The handler does not run again.
        assert_eq!(send("EUR 10").await, (201, true, paid));
        // A key names one operation.
        assert_eq!(send("EUR 99").await.0, 422);
    }
}
