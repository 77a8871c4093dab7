//! Shows how to test your own guarded handler with `MemoryStore`, paused time, and dropped futures.
//!
//! ```text
//! cargo test --example testing
//! cargo run --example testing     # serves http://127.0.0.1:3000
//! ```
//!
//! With `#[tokio::test(start_paused = true)]`, Tokio's clock jumps to the next timer when all tasks
//! are idle. `MemoryStore` and the layer use this clock, so tests do not have to wait for leases,
//! TTLs or pauses. This needs the `test-util` feature of `tokio`.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use axum::extract::State;
use axum::{Router, routing::post};
use tower_idempotency::IdempotencyLayer;
use tower_idempotency::store::MemoryStore;

/// Simulates a slow payment provider.
async fn pay(State(payments): State<Arc<AtomicU32>>) -> String {
    tokio::time::sleep(Duration::from_secs(2)).await;
    format!("payment {}", payments.fetch_add(1, Ordering::Relaxed) + 1)
}

fn app(store: MemoryStore, payments: Arc<AtomicU32>) -> Router {
    Router::new()
        .route("/payments", post(pay))
        .layer(IdempotencyLayer::new(store))
        .with_state(payments)
}

#[tokio::main]
async fn main() -> std::io::Result<()> {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:3000").await?;
    axum::serve(listener, app(MemoryStore::new(), Arc::default())).await
}

#[cfg(test)]
mod tests {
    use axum::body::Body;
    use axum::http::{Request, Response};
    use tokio::time::{sleep, timeout};
    use tower::ServiceExt;

    use super::*;

    struct Test {
        app: Router,
        payments: Arc<AtomicU32>,
    }

    impl Test {
        fn new() -> Self {
            let payments = Arc::new(AtomicU32::new(0));
            let app = app(MemoryStore::new(), payments.clone());
            Self { app, payments }
        }

        async fn send(&self, key: &str) -> Response<Body> {
            let request = Request::post("/payments").header("Idempotency-Key", key);
            let request = request.body(Body::from("EUR 10")).unwrap();
            self.app.clone().oneshot(request).await.unwrap()
        }

        fn payments(&self) -> u32 {
            self.payments.load(Ordering::Relaxed)
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_double_click_pays_once() {
        let test = Test::new();
        let (first, second) = tokio::join!(test.send("order-17"), test.send("order-17"));
        assert_eq!(first.status(), 200);
        assert_eq!(second.status(), 409, "the first request is in flight");
        assert_eq!(second.headers()["Retry-After"], "1");
        assert_eq!(test.payments(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_disconnects_gets_the_response_of_the_first_attempt() {
        let test = Test::new();
        // A server drops the future when the connection breaks.
        let first = timeout(Duration::from_secs(1), test.send("order-17")).await;
        assert!(first.is_err());
        // The handler runs to completion in two virtual seconds.
        sleep(Duration::from_secs(2)).await;
        let retry = test.send("order-17").await;
        assert_eq!(retry.headers()["Idempotency-Replayed"], "true");
        assert_eq!(test.payments(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_key_is_new_again_after_its_ttl() {
        let test = Test::new();
        test.send("order-17").await;
        // The default TTL is one day.
        sleep(Duration::from_secs(86_400)).await;
        test.send("order-17").await;
        assert_eq!(test.payments(), 2);
    }
}
