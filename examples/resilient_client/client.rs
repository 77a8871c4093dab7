//! The client: keys, retries and time limits around hyper's client.

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Request};
use http_body_util::Full;
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use tower::ServiceBuilder;
use tower::util::{BoxCloneSyncService, MapRequestLayer, option_layer};
use tower_idempotency::ConfigError;
use tower_idempotency::client::{CallError, ClientLayer, RetryPolicy};
use uuid::Uuid;

use super::documents::with_new_boundary;

pub(crate) type Body = Full<Bytes>;
pub(crate) type ResilientClient = BoxCloneSyncService<Request<Body>, http::Response<Body>, CallError>;

pub(crate) fn new(new_key_each_attempt: bool) -> Result<ResilientClient, ConfigError> {
    let policy = RetryPolicy::builder()
        // This is a batch that must get through. About half of its attempts fail, so a retry budget
        // (a fifth of the calls) would make most operations fail. A service that serves users
        // should keep its budget.
        .attempts(100)
        .total_time(Duration::from_secs(180))
        .backoff(Duration::from_millis(10), Duration::from_millis(500))
        .without_budget()
        .build()?;
    let layer = ClientLayer::builder(policy)
        // The provider takes a fraction of a second. A response that has not arrived after two
        // seconds is lost.
        .attempt_time(Duration::from_secs(2))
        .build()?;
    let client = ServiceBuilder::new()
        .layer(layer)
        .layer(option_layer(
            new_key_each_attempt.then(|| MapRequestLayer::new(with_new_key)),
        ))
        .layer(MapRequestLayer::new(with_new_boundary))
        .service(Client::builder(TokioExecutor::new()).build_http::<Body>());
    Ok(BoxCloneSyncService::new(client))
}

/// Makes the mistake of using a new key. This function runs inside the retries, so each attempt is
/// a new operation.
fn with_new_key(mut request: Request<Body>) -> Request<Body> {
    let key = HeaderValue::from_str(&Uuid::new_v4().to_string());
    if let Ok(key) = key {
        request.headers_mut().insert("idempotency-key", key);
    }
    request
}
