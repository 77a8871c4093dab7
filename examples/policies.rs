//! Several policies on one store: each route has its own layer.
//!
//! ```text
//! cargo test --example policies
//! cargo run --example policies     # serves http://127.0.0.1:3000
//! ```

use std::time::Duration;

use axum::{Router, http::StatusCode, routing::post};
use tower_idempotency::{ConfigError, Fate, IdempotencyKey, IdempotencyLayer, MemoryStore, OnLapse, Policy};
use uuid::Uuid;

/// Costs money. A second payment is worse than a payment that somebody has to check by hand.
async fn pay() -> (StatusCode, String) {
    (StatusCode::CREATED, format!("paid as {}\n", Uuid::new_v4()))
}

/// Sometimes fails. The same message can be sent again at once, but a different message with the
/// same key is refused.
async fn message(key: Option<IdempotencyKey>) -> (StatusCode, String) {
    match key {
        Some(key) if key.attempt() == 1 => (StatusCode::BAD_GATEWAY, "no response from the provider\n".into()),
        Some(key) => (StatusCode::OK, format!("sent on attempt {}\n", key.attempt())),
        None => (StatusCode::OK, "sent without a key\n".into()),
    }
}

/// Costs only time. Its response is soon out of date.
async fn quote() -> String {
    format!("EUR 10, quote {}\n", Uuid::new_v4())
}

fn app(store: MemoryStore) -> Result<Router, ConfigError> {
    let payments = IdempotencyLayer::builder(store.clone())
        .require_key(true)
        .policy(Policy::success().on_panic(Fate::Seal).on_lapse(OnLapse::Refuse))
        .build()?;
    let messages = IdempotencyLayer::builder(store.clone())
        .policy(Policy::cautious())
        .build()?;
    let quotes = IdempotencyLayer::builder(store).ttl(Duration::from_secs(60)).build()?;
    // Each request passes through one of these layers. All keys are in one store, so a key that was
    // used for a payment is refused for a message.
    Ok(Router::new()
        .route("/payments", post(pay).layer(payments))
        .route("/messages", post(message).layer(messages))
        .route("/quotes", post(quote).layer(quotes)))
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:3000").await?;
    Ok(axum::serve(listener, app(MemoryStore::new())?).await?)
}

#[cfg(test)]
mod tests {
    use axum::{body::Body, http::Request};
    use tower::ServiceExt;

    use super::*;

    #[tokio::test]
    async fn each_route_has_its_own_policy() {
        let app = app(MemoryStore::new()).unwrap();
        let send = async |path: &str, key: Option<&str>| {
            let mut request = Request::post(path);
            if let Some(key) = key {
                request = request.header("Idempotency-Key", key);
            }
            let response = app.clone().oneshot(request.body(Body::empty()).unwrap()).await.unwrap();
            let replayed = response.headers().contains_key("Idempotency-Replayed");
            (response.status().as_u16(), replayed)
        };
        assert_eq!(send("/payments", None).await, (400, false), "only payments need a key");
        assert_eq!(send("/payments", Some("a")).await, (201, false));
        assert_eq!(send("/payments", Some("a")).await, (201, true));
        assert_eq!(send("/messages", Some("a")).await, (422, false), "one store, one key");
        assert_eq!(send("/messages", None).await, (200, false));
        assert_eq!(send("/messages", Some("b")).await, (502, false));
        assert_eq!(send("/messages", Some("b")).await, (200, false), "runs as attempt 2");
        assert_eq!(send("/quotes", Some("c")).await, (200, false));
        assert_eq!(send("/quotes", Some("c")).await, (200, true));
    }
}
