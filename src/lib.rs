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
//! # Options
//!
//! [`IdempotencyLayer::builder`] has them. What cannot work is an error of
//! [`build`](IdempotencyLayerBuilder::build), and the order of the calls does not matter.
//!
//! | option | default | meaning |
//! |---|---|---|
//! | [`methods`](IdempotencyLayerBuilder::methods) | `POST`, `PATCH` | the guarded methods; others pass through untouched |
//! | [`key`](IdempotencyLayerBuilder::key) | the header `Idempotency-Key` | where a request has its key: headers, the head, JSON pointers, a closure ([`KeySource`]) |
//! | [`key_format`](IdempotencyLayerBuilder::key_format) | any | quoted and bare keys; or the draft's quoted form alone, or UUIDs ([`KeyFormat`]) |
//! | [`max_key_length`](IdempotencyLayerBuilder::max_key_length) | 255 bytes |  |
//! | [`require_key`](IdempotencyLayerBuilder::require_key) | off | a request without a key is `400` |
//! | [`scope`](IdempotencyLayerBuilder::scope) | `Authorization` | what separates callers ([`ScopeSource`]) |
//! | [`namespace`](IdempotencyLayerBuilder::namespace) | none | the application's name, if several share a store |
//! | [`fingerprint`](IdempotencyLayerBuilder::fingerprint) | method, path, query, body | what makes two requests the same ([`FingerprintSource`]) |
//! | [`policy`](IdempotencyLayerBuilder::policy) | stores 2xx and 303 | what is stored, and what follows a panic, an error, a lost body, a lapsed lease ([`Policy`]) |
//! | [`ttl`](IdempotencyLayerBuilder::ttl) | 24 h | how long an outcome is kept, from completion |
//! | [`lease`](IdempotencyLayerBuilder::lease) | 30 s | how long a key is blocked after its process died; `MemoryStore` needs none |
//! | [`wait`](IdempotencyLayerBuilder::wait) | 0 | how long a duplicate waits for the first outcome before it gets `409` |
//! | [`store_timeout`](IdempotencyLayerBuilder::store_timeout) | 5 s | the limit of each store call |
//! | [`settle_within`](IdempotencyLayerBuilder::settle_within) | 5 min | how long storing an outcome is retried |
//! | [`circuit_breaker`](IdempotencyLayerBuilder::circuit_breaker) | 5 failures, 1 s | when the layer stops asking a store that fails |
//! | [`run_unprotected_when_store_fails`](IdempotencyLayerBuilder::run_unprotected_when_store_fails) | off: `503` | fails open |
//! | [`max_request_body`](IdempotencyLayerBuilder::max_request_body) | 2 MiB | of a request with a key; a larger one is `413` |
//! | [`max_response_body`](IdempotencyLayerBuilder::max_response_body) | 1 MiB | a larger response is delivered, and leaves a tombstone |
//! | [`response_body_within`](IdempotencyLayerBuilder::response_body_within) | 30 s | a body that takes longer is a stream |
//! | [`max_detached`](IdempotencyLayerBuilder::max_detached) | 1024 | operations without a client; beyond it, new first requests get `503` |
//! | [`cancel_on_disconnect`](IdempotencyLayerBuilder::cancel_on_disconnect) | off | cancels the handler when its client disconnects |
//! | [`drain_streams`](IdempotencyLayerBuilder::drain_streams) | off | reads a stream to its end although its client disconnected |
//! | [`replay_header`](IdempotencyLayerBuilder::replay_header) | `Idempotency-Replayed` | marks replays |
//! | [`unreplayed_headers`](IdempotencyLayerBuilder::unreplayed_headers) | `Date`, `Set-Cookie` | response headers that are not stored |
//! | [`lifetime_header`](IdempotencyLayerBuilder::lifetime_header) | none | a response header that says until when the outcome is kept |
//! | [`on_replay`](IdempotencyLayerBuilder::on_replay) | nothing | changes each replay |
//! | [`problem_documentation`](IdempotencyLayerBuilder::problem_documentation) | this crate's | the URL of your own rules, in each refusal |
//! | [`problem_response`](IdempotencyLayerBuilder::problem_response) | RFC 9457 | refusals in your API's own format |
//! | [`enabled`](IdempotencyLayerBuilder::enabled), [`pass_when`](IdempotencyLayerBuilder::pass_when) | on, none | switches the layer off, or off for some requests |
//! | [`stripe`](IdempotencyLayerBuilder::stripe) |  | profile: answers as Stripe does |
//! | [`webhooks`](IdempotencyLayerBuilder::webhooks) |  | profile: the id of an event is the key |
//! | [`grpc`](IdempotencyLayerBuilder::grpc) |  | profile: for gRPC servers such as tonic's |
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
#[cfg(all(feature = "axum", any(feature = "postgres", feature = "_sqlite")))]
#[cfg_attr(
    docsrs,
    doc(cfg(all(feature = "axum", any(feature = "postgres", feature = "sqlite"))))
)]
pub use self::axum::MissingTransaction;
pub use answer::problem::{self, Problem, ProblemKind};
pub use answer::{Fate, Lapsed, Outcome, Policy, Reconciled, Verdict, WholeResponse};
pub use body::{RequestBody, ResponseBody, StreamedBody};
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

/// And those of the guide, unchanged: the text asks for no feature.
#[cfg(all(doctest, feature = "axum", feature = "client", feature = "tonic"))]
#[doc = include_str!("../docs/guide.md")]
struct Guide;

/// And those for the person on call.
#[cfg(doctest)]
#[doc = include_str!("../docs/operating.md")]
struct Operating;
