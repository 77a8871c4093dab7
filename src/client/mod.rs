//! The other end: clients that retry rightly.
//!
//! A key protects only if it is made once for each logical operation and sent with every attempt of
//! it. [`ClientLayer`] does that, and the retrying, around any Tower HTTP client:
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
//! // Tied to the order, not to this run of the program: should it die, it asks again under this key.
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
//! | [`Operation`] | one logical operation: its key, and what became of it |
//! | [`IdempotencyKeyLayer`] | gives each unsafe request a key, once for all its attempts |
//! | [`RetryPolicy`] | decides what is tried again, and when; for [`tower::retry`] too |
//! | [`ClientLayer`] | both, with each attempt and the whole call bounded, and errors that tell |
//! | `client::reqwest` | the same for `reqwest`, as a middleware of `reqwest-middleware` (feature `reqwest`) |
//!
//! # Which attempts are repeated
//!
//! Lost connections, time-outs, `408`, `425`, `429`, `5xx`, and the `409` of an operation that is in
//! flight. Not `501`, `505`, `506`, `507`, `508`, `510` and `511`: the server cannot handle the request, or
//! a person has to act first. Never `422` (the key was used with another request: trying again cannot
//! help, a new key would be a new operation), never a failure that is a replay, never after any other
//! answer. What the server says itself in `x-should-retry` (SDKs made with Stainless obey it) or
//! `stripe-should-retry` goes before its status, and [`RetryPolicyBuilder::retry_response_if`] before
//! that. A request without a key is repeated only if its method is idempotent (RFC 9110, section 9.2.2),
//! and none whose body cannot be sent again. When the key's [lifetime](Operation#lifetime) is over,
//! nothing is sent.
//!
//! # Assembled by hand
//!
//! The parts fit any stack; the key stands outside the retries, so that every attempt carries the
//! same one, and a time-out inside, so that it is for one attempt:
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
//! What [`ClientLayer`] does beyond that: it reads the whole response within the attempt, so that a
//! body that breaks off or never ends is tried again too; it ends an attempt that runs into the total
//! time; and its error keeps the last response.

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

pub use error::CallError;
pub use key::{IdempotencyKeyLayer, IdempotencyKeyService, KeyFuture};
pub use layer::{ClientFuture, ClientLayer, ClientLayerBuilder, ClientService};
pub use operation::{Operation, Stopped};
pub use replay::{Once, ReplayableBody};
pub use retry::{EveryError, RetryPolicy, RetryPolicyBuilder, Transient};
