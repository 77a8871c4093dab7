//! Receives webhooks and handles each event once, however often it is delivered.
//!
//! ```text
//! cargo test --example webhooks
//! cargo run --example webhooks     # serves http://127.0.0.1:3000/webhooks
//! ```
//!
//! The sender signs events as described at <https://www.standardwebhooks.com>. The signature is
//! checked outside the layer. Otherwise, anyone could block an event by sending its id first.

use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::body::{Body, to_bytes};
use axum::extract::{Request, State};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::{Router, http::StatusCode, routing::post};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use tower_idempotency::{ConfigError, IdempotencyLayer, KeySource, MemoryStore};

type Events = Arc<Mutex<Vec<String>>>;

/// Responds as soon as the event is stored. Do long work afterwards, because the sender does not
/// wait for it.
async fn receive(State(events): State<Events>, event: String) -> StatusCode {
    events.lock().expect("no holder panics").push(event);
    StatusCode::NO_CONTENT
}

/// Verifies the signature over the raw bytes, exactly as they arrived.
async fn verify(State(secret): State<Arc<[u8]>>, request: Request, next: Next) -> Response {
    let (head, body) = request.into_parts();
    let Ok(body) = to_bytes(body, 256 * 1024).await else {
        return StatusCode::PAYLOAD_TOO_LARGE.into_response();
    };
    let header = |name| {
        head.headers
            .get(name)
            .and_then(|value| value.to_str().ok())
            .unwrap_or_default()
    };
    let (id, sent_at) = (header("webhook-id"), header("webhook-timestamp"));
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs());
    let is_fresh = sent_at.parse().is_ok_and(|sent_at: u64| now.abs_diff(sent_at) < 300);
    let signatures = header("webhook-signature").split(' ');
    let is_signed = signatures
        .filter_map(|one| STANDARD.decode(one.strip_prefix("v1,")?).ok())
        .any(|signature| {
            // This comparison takes the same time for every wrong signature.
            mac(&secret, id, sent_at, &body).verify_slice(&signature).is_ok()
        });
    if !(is_fresh && is_signed) {
        return StatusCode::UNAUTHORIZED.into_response();
    }
    next.run(Request::from_parts(head, Body::from(body))).await
}

fn mac(secret: &[u8], id: &str, sent_at: &str, body: &[u8]) -> Hmac<Sha256> {
    let mac = Hmac::<Sha256>::new_from_slice(secret).expect("a key of any length");
    mac.chain_update(format!("{id}.{sent_at}.")).chain_update(body)
}

fn app(secret: &[u8], events: Events) -> Result<Router, ConfigError> {
    // In production, use a store that outlives the process, and a TTL that is longer than the time
    // for which the sender retries.
    let idempotency = IdempotencyLayer::builder(MemoryStore::new())
        .webhooks("acme", KeySource::webhook_id())
        .ttl(Duration::from_secs(7 * 86_400))
        .build()?;
    Ok(Router::new()
        .route("/webhooks", post(receive))
        .layer(idempotency)
        .layer(from_fn_with_state(Arc::<[u8]>::from(secret), verify)) // added last, so outermost
        .with_state(events))
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let secret = std::env::var("WEBHOOK_SECRET").map_err(|_| "set WEBHOOK_SECRET, such as whsec_…")?;
    let secret = STANDARD.decode(secret.strip_prefix("whsec_").unwrap_or(&secret))?;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:3000").await?;
    Ok(axum::serve(listener, app(&secret, Events::default())?).await?)
}

#[cfg(test)]
mod tests {
    use tower::ServiceExt;

    use super::*;

    #[tokio::test]
    async fn an_event_that_is_delivered_twice_is_handled_once() {
        let events = Events::default();
        let app = app(b"secret", events.clone()).unwrap();
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
        let deliver = async |secret: &[u8], id: &str, sent_at: u64| {
            let (sent_at, event) = (sent_at.to_string(), "paid");
            let signature = STANDARD.encode(mac(secret, id, &sent_at, event.as_bytes()).finalize().into_bytes());
            let request = Request::post("/webhooks")
                .header("webhook-id", id)
                .header("webhook-timestamp", sent_at)
                .header("webhook-signature", format!("v1,{signature}"));
            let response = app
                .clone()
                .oneshot(request.body(Body::from(event)).unwrap())
                .await
                .unwrap();
            response.status().as_u16()
        };
        assert_eq!(deliver(b"guessed", "evt_1", now).await, 401, "a forgery blocks nothing");
        assert_eq!(deliver(b"secret", "evt_1", now).await, 204);
        // A new attempt has a new timestamp, and so a new signature.
        assert_eq!(deliver(b"secret", "evt_1", now + 5).await, 204);
        assert_eq!(
            deliver(b"secret", "evt_1", now - 3600).await,
            401,
            "somebody recorded and replayed it"
        );
        assert_eq!(deliver(b"secret", "evt_2", now).await, 204);
        assert_eq!(events.lock().unwrap().len(), 2);
    }
}
