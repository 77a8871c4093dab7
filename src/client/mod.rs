//! Clients that retry correctly.
//!
//! A key protects an operation only if the client generates the key once for the operation and
//! sends it with every attempt. [`ClientLayer`] wraps any Tower HTTP client. The layer generates
//! and sends keys in this way, and retries failed attempts:
//!
//! ```
//! use bytes::Bytes;
//! use http::Request;
//! use http_body_util::Full;
//! use hyper_util::client::legacy::Client;
//! use hyper_util::rt::TokioExecutor;
//! use tower::{Layer, Service, ServiceExt};
//! use tower_idempotency::client::{ClientLayer, Operation};
//!
//! # async fn example() -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
//! let hyper = Client::builder(TokioExecutor::new()).build_http::<Full<Bytes>>();
//! let mut client = ClientLayer::new().layer(hyper);
//!
//! // The key depends on the order, so that the program uses the same key after a restart.
//! let operation = Operation::derived(["order-17", "charge"]);
//! let request = Request::post("http://127.0.0.1:3000/payments")
//!     .extension(operation.clone())
//!     .body(Full::from("EUR 10"))?;
//!
//! let response = client.ready().await?.call(request).await?;
//! println!(
//!     "{} after {} attempts{}",
//!     response.status(),
//!     operation.attempts(),
//!     if operation.replayed() { ", replayed" } else { "" },
//! );
//! # Ok(())
//! # }
//! ```
//!
//! | part | what it does |
//! |---|---|
//! | [`Operation`] | one logical operation: its key, its attempts, and how it ended |
//! | [`IdempotencyKeyLayer`] | adds one key to each unsafe request, for all of its attempts |
//! | [`RetryPolicy`] | decides which results are retried, and when; also works with [`tower::retry`] |
//! | [`ClientLayer`] | adds keys and retries, and limits each attempt and the whole call |
//! | `client::reqwest` | the equivalent of `ClientLayer` for `reqwest`: middleware for `reqwest-middleware` (feature `reqwest`) |
//!
//! # What is retried
//!
//! | the attempt ended with | retried? |
//! |---|---|
//! | a lost connection, a timeout, a body that ended early | yes |
//! | `408`, `425`, `429`, `5xx` | yes, after `Retry-After` or a pause |
//! | `409` with `Retry-After` or `x-should-retry: true` (the operation is in flight) | yes |
//! | `501`, `505`, `506`, `507`, `508`, `510`, `511` | no: the server cannot handle the request, or a person must act first |
//! | `422` (the key was used with a different request) | no: a new key would start a new operation |
//! | a replayed failure | no: the next response would be the same |
//! | any other response | no |
//!
//! A server can override the table with `x-should-retry` or `stripe-should-retry`. Your own
//! [`RetryPolicyBuilder::retry_response_if`] overrides both. Successes, redirects, `422` and
//! replays cannot be overridden.
//!
//! Three kinds of requests are never retried:
//!
//! - a request without a key, unless its method is idempotent (RFC 9110, section 9.2.2);
//! - a request whose body cannot be sent again;
//! - a request whose key's [lifetime](Operation#lifetime) has elapsed.
//!
//! # Building the stack yourself
//!
//! The parts fit into any Tower stack. Put the key layer outside the retries, so that every attempt
//! carries the same key. Put a timeout for each attempt inside the retries:
//!
//! ```
//! use std::time::Duration;
//! use tower::ServiceBuilder;
//! use tower::retry::RetryLayer;
//! use tower::timeout::TimeoutLayer;
//! use tower_idempotency::client::{IdempotencyKeyLayer, RetryPolicy};
//!
//! # type Client = hyper_util::client::legacy::Client<
//! #     hyper_util::client::legacy::connect::HttpConnector, http_body_util::Full<bytes::Bytes>>;
//! # fn example(hyper: Client) {
//! let client = ServiceBuilder::new()
//!     .layer(IdempotencyKeyLayer::new())
//!     .layer(RetryLayer::new(RetryPolicy::new()))
//!     .layer(TimeoutLayer::new(Duration::from_secs(20)))
//!     .service(hyper);
//! # let _ = client;
//! # }
//! ```
//!
//! [`ClientLayer`] does more than this stack. It reads the complete response within the attempt, so
//! it also retries an attempt whose response body ends early or never ends. When the total time has
//! elapsed, it cancels the running attempt. Its error contains the last response.

mod attempt;
mod call;
mod error;
mod key;
mod last;
mod layer;
mod lifetime;
mod operation;
mod replay;
#[cfg(feature = "reqwest")]
#[cfg_attr(docsrs, doc(cfg(feature = "reqwest")))]
pub mod reqwest;
mod retry;
mod stopped;

pub use error::CallError;
pub use key::{IdempotencyKeyLayer, IdempotencyKeyService, KeyFuture};
pub use layer::{ClientFuture, ClientLayer, ClientLayerBuilder, ClientService};
pub use operation::Operation;
pub use replay::{Once, ReplayableBody};
pub use retry::{EveryError, RetryPolicy, RetryPolicyBuilder, Transient};
pub use stopped::Stopped;
