//! Clients that retry correctly.
//!
//! A key protects an operation only if it is made once for the operation and sent with every
//! attempt. [`ClientLayer`] wraps any Tower HTTP client. It makes and sends the key in this way,
//! and retries:
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
//! | [`Operation`] | one logical operation: its key, and how it went |
//! | [`IdempotencyKeyLayer`] | gives each unsafe request a key, once for all its attempts |
//! | [`RetryPolicy`] | decides what is retried, and when; also works with [`tower::retry`] |
//! | [`ClientLayer`] | does both, and bounds each attempt and the whole call |
//! | `client::reqwest` | the same for `reqwest`, as middleware for `reqwest-middleware` (feature `reqwest`) |
//!
//! # What is retried
//!
//! | the attempt ended with | retried? |
//! |---|---|
//! | a lost connection, a timeout, a body that broke off | yes |
//! | `408`, `425`, `429`, `5xx` | yes, after `Retry-After` or a pause |
//! | `409` with `Retry-After` or `x-should-retry: true` (the operation is in flight) | yes |
//! | `501`, `505`, `506`, `507`, `508`, `510`, `511` | no: the server cannot handle the request, or a person has to act first |
//! | `422` (the key was used with another request) | no: a new key would be a new operation |
//! | a failure that is a replay | no: the next response would be the same |
//! | any other response | no |
//!
//! A server can overrule the table with `x-should-retry` or `stripe-should-retry`. Your own
//! [`RetryPolicyBuilder::retry_response_if`] overrules both.
//!
//! Three kinds of requests are never retried:
//!
//! - a request without a key, unless its method is idempotent (RFC 9110, section 9.2.2);
//! - a request whose body cannot be sent again;
//! - a request whose key's [lifetime](Operation#lifetime) is over.
//!
//! # Building the stack yourself
//!
//! The parts fit into any Tower stack. Put the key layer outside the retries, so that every attempt
//! has the same key. Put a timeout for each attempt inside:
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
//! [`ClientLayer`] does more. It reads the complete response within the attempt, so that a body
//! that breaks off or never ends is retried. It ends an attempt when the total time is over. Its
//! error contains the last response.

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
