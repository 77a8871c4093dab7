//! One layer makes every costly `POST` safe to retry: the operation runs once, and every retry gets
//! the first response.
//!
//! ```
//! use axum::{Router, body::Body, routing::post};
//! use http::Request;
//! use tower::ServiceExt;
//! use tower_idempotency::{IdempotencyLayer, MemoryStore};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() {
//! let app: Router = Router::new()
//!     .route("/payments", post(|| async { "paid" }))
//!     .layer(IdempotencyLayer::new(MemoryStore::new()));
//!
//! let pay = || {
//!     Request::post("/payments")
//!         .header("Idempotency-Key", "8e03978e-40d5-43dd-bc93-6894a57f9324")
//!         .body(Body::from("EUR 10"))
//!         .unwrap()
//! };
//! let first = app.clone().oneshot(pay()).await.unwrap();
//! assert!(!first.headers().contains_key("Idempotency-Replayed"));
//!
//! // The network lost the response, and the client retries. The handler does not run again.
//! let retry = app.oneshot(pay()).await.unwrap();
//! assert_eq!(retry.headers()["Idempotency-Replayed"], "true");
//! # }
//! ```
//!
//! The layer follows *The Idempotency-Key HTTP Header Field*
//! (draft-ietf-httpapi-idempotency-key-header-07). It works around any [Tower](tower) HTTP service
//! whose bodies are [`http_body::Body`]s.
//!
//! # What happens to a request
//!
//! | the request | what happens |
//! |---|---|
//! | its method is not guarded (default: `POST` and `PATCH` are), or it has no key | it passes through untouched |
//! | is the first with its key | the handler runs; a success is stored before the client sees it |
//! | is the same again, after that | the stored status, headers and body, byte for byte, and `Idempotency-Replayed: true` |
//! | is the same again, meanwhile | `409` problem [`in-flight`](ProblemKind#in-flight), or it waits for the outcome ([`wait`](IdempotencyLayerBuilder::wait)) |
//! | is another one under the same key | `422` problem [`key-reused`](ProblemKind#key-reused) |
//! | is the same again, after the first failed | it runs again: by default, failures are not stored ([`Policy`], [`Verdict`]) |
//! | its client disconnects while the handler runs | the handler runs to its end; the retry gets its response |
//!
//! # Whose key it is
//!
//! The same key from two callers names two operations. By default the value of `Authorization`
//! separates callers ([`ScopeSource`]). Put authentication outside this layer, so that each replay is
//! authorized again:
//!
//! ```text
//! tracing, request ids, CORS, compression      apply to first responses and replays alike
//! └─ time-out                                  answers the client; the handler runs on
//!    └─ catch-panic                            a panic frees the key, then becomes a 500
//!       └─ authentication, authorization, rate limits, concurrency limit
//!          └─ IdempotencyLayer
//!             └─ time-out, body limits, routes, handlers
//! ```
//!
//! A time-out inside the layer ends the handler in the middle. [`Policy::cautious`] says what that
//! means for the key. Several idempotency layers around one request each guard, unless they have the
//! same store and the same slot.
//!
//! # What it guarantees, and what no middleware can
//!
//! While its store keeps what it was given, a key's operation never runs twice at once, and never
//! again once its success is stored. If the *process dies* while a handler runs:
//!
//! - With a store in the application's own SQL database, effect and record commit together: the
//!   operation happens exactly once ([atomic mode](store#atomic-mode)).
//! - Otherwise it is not known what the handler had done. After the lease the next retry runs as
//!   attempt 2, which [`IdempotencyKey::attempt`] tells the handler, or it is refused
//!   ([`Policy::on_lapse`]). A key from [`IdempotencyKey::derive`] makes effects in other systems safe
//!   to repeat.
//!
//! A process that is *frozen* for longer than its lease may be overtaken; its outcome is then not
//! stored. With [`MemoryStore`] a restart forgets every key, and a full store evicts or refuses
//! ([`WhenFull`](store::WhenFull)).
//!
//! # Requirements
//!
//! - A Tokio runtime with its timer enabled (`enable_all`, as `#[tokio::main]` does). Leases, time-outs
//!   and work without a client need it. Without it, requests with a key are refused with `500` problem
//!   [`misconfigured`](ProblemKind#misconfigured).
//! - A request body that is a [`GuardedBody`], as Axum's and tonic's are. Wrap others in a
//!   [`RequestBody`].
//! - Task-local values do not follow a handler whose client disconnected. Its `tracing` span does.
//! - Extensions of a response are not stored
//!   ([`on_replay`](IdempotencyLayerBuilder::on_replay) puts some back).
//!
//! # Features
//!
//! | feature | default | adds |
//! |---|---|---|
//! | `axum` | yes | the extractor of [`IdempotencyKey`]; [`Verdict`] as a part of a response; fingerprints over the original URI of nested routers |
//! | `tonic` | no | the layer in tonic's `Server::builder().layer(…)`; see [`grpc`](IdempotencyLayerBuilder::grpc) |
//! | `metrics` | no | counters by outcome, store latency, entries and bytes, through the `metrics` facade |
//! | `client` | no | [`client`]: Tower layers that make keys and retry |
//! | `reqwest` | no | `client::reqwest`: the same as a middleware of `reqwest-middleware` |
//! | `redis` | no | `store::RedisStore` |
//! | `postgres` | no | `store::sql::PostgresStore`, and the atomic mode on it |
//! | `sqlite` | no | `store::sql::SqliteStore`, and the atomic mode on it; builds SQLite, which needs a C compiler |
//! | `sqlite-unbundled` | no | the same with the system's SQLite, 3.42 or later; building needs its headers and libclang |
//! | `sealed` | no | `store::Sealed`, which encrypts the records of another store |
//! | `tiered` | no | `store::Tiered`, a cache of records in front of a remote store |
//! | `conformance` | no | `store::conformance`, the suite that a [`Store`] must pass |

#![cfg_attr(docsrs, feature(doc_cfg))]
#![warn(unreachable_pub)]
#![cfg_attr(not(test), warn(clippy::unwrap_used))]

mod answer;
#[cfg(feature = "axum")]
mod axum;
mod body;
mod bounds;
#[cfg(feature = "client")]
#[cfg_attr(docsrs, doc(cfg(feature = "client")))]
pub mod client;
mod digest;
mod error;
mod layer;
mod request;
mod run;
pub mod store;

#[cfg(feature = "axum")]
#[cfg_attr(docsrs, doc(cfg(feature = "axum")))]
pub use self::axum::MissingIdempotencyLayer;
pub use answer::problem::{self, Problem, ProblemKind};
pub use answer::{Fate, Lapsed, Outcome, Policy, Reconciled, Verdict, WholeResponse};
pub use body::{RequestBody, ResponseBody};
pub use bounds::{GuardedBody, GuardedService};
pub use error::{BoxError, ConfigError};
pub use layer::{Background, IdempotencyLayer, IdempotencyLayerBuilder, IdempotencyService, ResponseFuture};
pub use request::{
    Fingerprint, FingerprintSource, IdempotencyKey, InvalidKey, KeyFormat, KeySource, ScopeSource, ScopeValues, Slot,
    SlotError,
};
pub use store::{MemoryStore, OnLapse, Store};

/// The README's examples compile.
#[cfg(all(doctest, feature = "axum"))]
#[doc = include_str!("../README.md")]
struct Readme;

/// And those of the guide.
#[cfg(all(doctest, feature = "axum"))]
#[doc = include_str!("../docs/guide.md")]
struct Guide;
