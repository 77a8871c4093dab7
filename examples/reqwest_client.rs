//! A `reqwest` client that retries an operation, always with the same key, until it gets a
//! response.
//!
//! ```text
//! cargo run --example quickstart                                  # a server, in another terminal
//! cargo run --example reqwest_client --features reqwest
//! ```

use std::time::Duration;

use reqwest_middleware::ClientWithMiddleware;
use tower_idempotency::ConfigError;
use tower_idempotency::client::reqwest::IdempotencyMiddleware;
use tower_idempotency::client::{CallError, ClientLayer, Operation, RetryPolicy};

fn client() -> Result<ClientWithMiddleware, ConfigError> {
    let retries = RetryPolicy::builder()
        .total_time(Duration::from_secs(45)) // longer than the server's lease
        .build()?;
    let settings = ClientLayer::builder(retries)
        .attempt_time(Duration::from_secs(10))
        .build()?;
    // Enable retries only here. By default, `reqwest` itself retries only if the server certainly
    // did not process the request.
    Ok(reqwest_middleware::ClientBuilder::new(reqwest::Client::new())
        .with(IdempotencyMiddleware::new(settings))
        .build())
}

/// Returns the status of the response, and how often the request was sent.
async fn pay(client: &ClientWithMiddleware, url: &str, order: &str) -> Result<(u16, u32), String> {
    // The same order always gets the same key, no matter which process sends it or how often.
    let operation = Operation::derived([order, "payment"]);
    let request = client.post(url).with_extension(operation.clone()).body("EUR 10");
    match request.send().await {
        Ok(response) => Ok((response.status().as_u16(), operation.attempts())),
        // The payment may have happened anyway. Send the order again later with the same key.
        Err(reqwest_middleware::Error::Middleware(error)) => Err(match error.downcast_ref::<CallError>() {
            Some(call) => format!("{call}; last status: {:?}", call.last_status()),
            None => error.to_string(),
        }),
        Err(error) => Err(error.to_string()),
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let (status, attempts) = pay(&client()?, "http://127.0.0.1:3000/payments", "order-17").await?;
    println!("{status} after {attempts} attempts");
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};

    use axum::{Router, http::StatusCode, routing::post};
    use tower_idempotency::{IdempotencyKey, IdempotencyLayer, MemoryStore};

    use super::*;

    #[tokio::test]
    async fn a_failure_is_retried_under_the_same_key() {
        let keys: Arc<std::sync::Mutex<Vec<String>>> = Arc::default();
        let runs = Arc::new(AtomicU32::new(0));
        let handler = {
            let (keys, runs) = (keys.clone(), runs.clone());
            async move |key: IdempotencyKey| {
                keys.lock().unwrap().push(key.derive("payment").to_string());
                // Fails for the first request.
                match runs.fetch_add(1, Ordering::Relaxed) {
                    0 => StatusCode::SERVICE_UNAVAILABLE,
                    _ => StatusCode::CREATED,
                }
            }
        };
        let app: Router = Router::new()
            .route("/payments", post(handler))
            .layer(IdempotencyLayer::new(MemoryStore::new()));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/payments", listener.local_addr().unwrap());
        tokio::spawn(async move { axum::serve(listener, app).await });

        let client = client().unwrap();
        assert_eq!(pay(&client, &url, "order-17").await, Ok((201, 2)));
        assert_eq!(pay(&client, &url, "order-17").await, Ok((201, 1)), "replayed");
        let keys = keys.lock().unwrap();
        assert_eq!(keys.len(), 2, "the replay did not run");
        assert_eq!(keys[0], keys[1]);
    }
}
