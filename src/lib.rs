//! A Tower layer that makes costly `POST` requests safe to retry: the operation runs once, and
//! every retry gets the first response.
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
//! (draft-ietf-httpapi-idempotency-key-header-07). It works with any [Tower](tower) HTTP service
//! whose bodies are [`http_body::Body`]s.
//!
//! # What happens to a request
//!
//! | the request | what happens |
//! |---|---|
//! | has a method that is not guarded (default: `POST` and `PATCH` are guarded), or has no key | the request passes through untouched |
//! | is the first with its key | the handler runs, and a successful response is stored before the client receives it |
//! | repeats the first request, which has succeeded | the client gets the stored status, headers and body, byte for byte, with `Idempotency-Replayed: true` |
//! | repeats the first request, which is still running | the client gets `409` problem [`in-flight`](ProblemKind#in-flight), or the request waits for the outcome ([`wait`](IdempotencyLayerBuilder::wait)) |
//! | is a different request with the same key | the client gets `422` problem [`key-reused`](ProblemKind#key-reused) |
//! | repeats the first request, which has failed | the handler runs again: by default, failures are not stored ([`Policy`], [`Verdict`]) |
//! | comes from a client that disconnects while the handler runs | the handler runs to completion, and a retry gets the response |
//!
//! # Whose key it is
//!
//! The same key from two callers identifies two operations. By default, the value of
//! `Authorization` separates callers ([`ScopeSource`]). Put authentication outside this layer, so
//! that each replay is authorized again:
//!
//! ```text
//! tracing, request ids, CORS, compression      apply to first responses and replays alike
//! └─ timeout                                   answers the client; the handler continues
//!    └─ catch-panic                            a panic frees the key, then becomes a 500
//!       └─ authentication, authorization, rate limits, concurrency limit
//!          └─ IdempotencyLayer
//!             └─ timeout, body limits, routes, handlers
//! ```
//!
//! A timeout inside the layer cancels the handler before it has finished. For what then happens to
//! the key, see [`Policy::cautious`]. If a request passes through several idempotency layers, each
//! of them guards it, unless they share a store and a slot.
//!
//! # What it guarantees, and what no middleware can
//!
//! As long as the store keeps its data, a key's operation never runs twice at the same time, and
//! never runs again once its success is stored. If the *process dies* while a handler runs:
//!
//! - With a store in the application's own SQL database, the effect and the record are committed
//!   together: the operation happens exactly once ([atomic mode](store#atomic-mode)).
//! - In all other cases, it is unknown whether the handler's effect happened. After the lease
//!   expires, the next retry either runs as attempt 2 or is refused ([`Policy::on_lapse`]). The
//!   handler sees the attempt number in [`IdempotencyKey::attempt`]. A key from
//!   [`IdempotencyKey::derive`] makes effects in other systems safe to repeat.
//!
//! If a process is *frozen* for longer than its lease, a second run may take over its operation. In
//! that case, the outcome from the frozen process is not stored. With [`MemoryStore`], all keys are
//! lost when the process restarts, and a full store evicts records or refuses requests
//! ([`WhenFull`](store::WhenFull)).
//!
//! # Options
//!
//! Set options with [`IdempotencyLayer::builder`]. If an option is invalid,
//! [`build`](IdempotencyLayerBuilder::build) returns an error. The order of the calls does not
//! matter.
//!
//! | option | default | meaning |
//! |---|---|---|
//! | [`methods`](IdempotencyLayerBuilder::methods) | `POST`, `PATCH` | the guarded methods; requests with other methods pass through untouched |
//! | [`key`](IdempotencyLayerBuilder::key) | the `Idempotency-Key` header | where the key comes from: headers, the head, JSON pointers, a closure ([`KeySource`]) |
//! | [`key_format`](IdempotencyLayerBuilder::key_format) | any | which key formats are accepted: quoted and bare keys, only the draft's quoted form, or UUIDs ([`KeyFormat`]) |
//! | [`max_key_length`](IdempotencyLayerBuilder::max_key_length) | 255 bytes | the maximum length of a key |
//! | [`require_key`](IdempotencyLayerBuilder::require_key) | off | a request without a key is refused with `400` |
//! | [`scope`](IdempotencyLayerBuilder::scope) | `Authorization` | the values that separate callers ([`ScopeSource`]) |
//! | [`namespace`](IdempotencyLayerBuilder::namespace) | none | the application's name, if several applications share a store |
//! | [`fingerprint`](IdempotencyLayerBuilder::fingerprint) | method, path, query, body | the parts that must be equal for two requests to be the same ([`FingerprintSource`]) |
//! | [`policy`](IdempotencyLayerBuilder::policy) | stores 2xx and 303 | which responses are stored, and what happens after a panic, an error, a lost body or a lapsed lease ([`Policy`]) |
//! | [`ttl`](IdempotencyLayerBuilder::ttl) | 24 h | how long an outcome is kept after completion |
//! | [`lease`](IdempotencyLayerBuilder::lease) | 30 s | how long a key stays blocked after its process dies; `MemoryStore` does not need a lease |
//! | [`wait`](IdempotencyLayerBuilder::wait) | 0 | how long a duplicate waits for the first outcome before it gets `409` |
//! | [`store_timeout`](IdempotencyLayerBuilder::store_timeout) | 5 s | the time limit for each store call |
//! | [`settle_within`](IdempotencyLayerBuilder::settle_within) | 5 min | how long the layer keeps trying to store an outcome |
//! | [`circuit_breaker`](IdempotencyLayerBuilder::circuit_breaker) | 5 failures, 1 s | when the layer stops requesting claims from a failing store |
//! | [`run_unprotected_when_store_fails`](IdempotencyLayerBuilder::run_unprotected_when_store_fails) | off: `503` | fails open: requests run without protection while the store is failing |
//! | [`max_request_body`](IdempotencyLayerBuilder::max_request_body) | 2 MiB | the maximum body size of a request with a key; a larger body gets `413` |
//! | [`max_response_body`](IdempotencyLayerBuilder::max_response_body) | 1 MiB | the maximum size of a stored body; a larger response is delivered and leaves a tombstone |
//! | [`response_body_within`](IdempotencyLayerBuilder::response_body_within) | 30 s | how long the layer reads a response body; a body that takes longer is treated as a stream |
//! | [`max_detached`](IdempotencyLayerBuilder::max_detached) | 1024 | the maximum number of operations that run without a client; when it is reached, new first requests get `503` |
//! | [`cancel_on_disconnect`](IdempotencyLayerBuilder::cancel_on_disconnect) | off | cancels the handler when its client disconnects |
//! | [`drain_streams`](IdempotencyLayerBuilder::drain_streams) | off | reads a stream to its end even if its client disconnects |
//! | [`replay_header`](IdempotencyLayerBuilder::replay_header) | `Idempotency-Replayed` | the header that marks replays |
//! | [`unreplayed_headers`](IdempotencyLayerBuilder::unreplayed_headers) | `Date`, `Set-Cookie` | response headers that are not stored |
//! | [`lifetime_header`](IdempotencyLayerBuilder::lifetime_header) | none | a response header that reports when the stored outcome expires |
//! | [`on_replay`](IdempotencyLayerBuilder::on_replay) | nothing | changes each replay |
//! | [`problem_documentation`](IdempotencyLayerBuilder::problem_documentation) | this crate's documentation | the URL of your own idempotency policy, which each refusal links to |
//! | [`problem_response`](IdempotencyLayerBuilder::problem_response) | RFC 9457 | refusals in your API's own format |
//! | [`enabled`](IdempotencyLayerBuilder::enabled), [`pass_when`](IdempotencyLayerBuilder::pass_when) | on, none | turns the layer off, entirely or for some requests |
//! | [`stripe`](IdempotencyLayerBuilder::stripe) |  | profile: the layer responds as Stripe does |
//! | [`webhooks`](IdempotencyLayerBuilder::webhooks) |  | profile: the event id is the key |
//! | [`grpc`](IdempotencyLayerBuilder::grpc) |  | profile: for gRPC servers, such as tonic's |
//!
//! # Requirements and limits
//!
//! - A Tokio runtime with its timer enabled (`enable_all`, which `#[tokio::main]` uses). Leases,
//!   timeouts and work that continues without a client need the timer. Without a timer, requests
//!   with a key are refused with `500` problem [`misconfigured`](ProblemKind#misconfigured).
//! - A request body that is a [`GuardedBody`], such as Axum's or tonic's body. Wrap other bodies in
//!   a [`RequestBody`].
//! - Task-local values are not available to a handler after its client has disconnected. The
//!   handler's `tracing` span is still active.
//! - Response extensions are not stored. Use [`on_replay`](IdempotencyLayerBuilder::on_replay) to
//!   restore the extensions that you need.
//! - The build needs a C compiler for the assembly and C code of the `blake3` crate. On x86, that
//!   crate falls back to slower Rust code if there is none. Elsewhere, you can enable its feature
//!   `pure` instead.
//!
//! # Features
//!
//! | feature | default | adds |
//! |---|---|---|
//! | `axum` | yes | the [`IdempotencyKey`] extractor; [`Verdict`] as a part of a response; fingerprints over the original URI in nested routers |
//! | `tonic` | no | support for the layer in tonic's `Server::builder().layer(…)`; see [`grpc`](IdempotencyLayerBuilder::grpc) |
//! | `metrics` | no | metrics through the `metrics` facade: requests by outcome, store latency, entries and bytes |
//! | `client` | no | [`client`]: Tower layers that generate keys and retry requests |
//! | `reqwest` | no | `client::reqwest`: middleware for `reqwest-middleware` that generates keys and retries requests |
//! | `redis` | no | `store::RedisStore` |
//! | `postgres` | no | `store::sql::PostgresStore`, and its atomic mode |
//! | `sqlite` | no | `store::sql::SqliteStore`, and its atomic mode; builds SQLite with a C compiler |
//! | `sqlite-unbundled` | no | like `sqlite`, but uses the system's SQLite, 3.42 or later; the build needs its headers and libclang |
//! | `sealed` | no | `store::Sealed`, which encrypts the records in another store |
//! | `tiered` | no | `store::Tiered`, a cache of records in front of a remote store |
//! | `conformance` | no | `store::conformance`, the test suite that a [`Store`] must pass |

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

/// The guide's examples compile as written. This attribute requires the features that they need, so
/// the guide does not mention them.
#[cfg(all(doctest, feature = "axum", feature = "client", feature = "tonic"))]
#[doc = include_str!("../docs/guide.md")]
struct Guide;

/// The examples in the operating guide compile.
#[cfg(doctest)]
#[doc = include_str!("../docs/operating.md")]
struct Operating;
