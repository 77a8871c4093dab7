//! One service in many processes that keep their keys and responses in Redis.
//!
//! ```text
//! cargo run --example redis                            # uses the Redis server at 127.0.0.1:6379
//! REDIS_URL=redis://cache/ cargo run --example redis   # uses another server
//! curl -i http://127.0.0.1:3000/payments -H 'Idempotency-Key: order-17' -d 'EUR 10'
//! ```
//!
//! Run Redis with `appendonly yes` and `maxmemory-policy noeviction`. If Redis loses the record of
//! an operation, the operation can run again.

use axum::{Router, http::StatusCode, routing::post};
use tower_idempotency::store::RedisStore;
use tower_idempotency::{IdempotencyKey, IdempotencyLayer};

/// If this process dies here, a retry runs as attempt 2 once the lease has lapsed. The provider
/// does not charge twice, because each attempt sends the same key to the provider.
async fn pay(key: IdempotencyKey, amount: String) -> (StatusCode, String) {
    let provider_key = key.derive("charge");
    (StatusCode::CREATED, format!("paid {amount} as {provider_key}\n"))
}

/// Creates the service. All processes that use the same Redis are one service.
pub async fn app(redis: &str) -> Result<Router, Box<dyn std::error::Error>> {
    // The prefix separates this service's keys from other keys in the same Redis.
    let store = RedisStore::connect(redis).await?.prefix("payments:")?;
    let idempotency = IdempotencyLayer::builder(store).require_key(true).build()?;
    Ok(Router::new().route("/payments", post(pay)).layer(idempotency))
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let redis = std::env::var("REDIS_URL").unwrap_or_else(|_| "redis://127.0.0.1/".into());
    let app = app(&redis).await?;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:3000").await?;
    Ok(axum::serve(listener, app).await?)
}
