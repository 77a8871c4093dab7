//! One layer makes every costly `POST` safe to retry: the operation runs once, and every retry gets
//! the first answer.
#![cfg_attr(docsrs, feature(doc_cfg))]
#![cfg_attr(not(test), warn(clippy::unwrap_used))]

mod body;
mod collect;
mod config;
mod digest;
mod engine;
mod error;
#[cfg(feature = "axum")]
mod extract;
mod fingerprint;
mod future;
mod json;
mod key;
mod layer;
mod lease;
mod operation;
mod outcome;
mod policy;
pub mod problem;
mod record;
mod scope;
mod service;
mod state;
pub mod store;

pub use body::{RequestBody, ResponseBody};
pub use error::{BoxError, ConfigError};
#[cfg(feature = "axum")]
#[cfg_attr(docsrs, doc(cfg(feature = "axum")))]
pub use extract::MissingIdempotencyLayer;
pub use fingerprint::{Fingerprint, FingerprintSource};
pub use future::ResponseFuture;
pub use key::{InvalidKey, KeyFormat, KeySource};
pub use layer::{Background, IdempotencyLayer, IdempotencyLayerBuilder};
pub use operation::IdempotencyKey;
pub use outcome::Outcome;
pub use policy::{Fate, Policy, Verdict};
pub use problem::{Problem, ProblemKind};
pub use scope::{ScopeSource, Slot};
pub use service::IdempotencyService;
pub use store::{MemoryStore, Store};
