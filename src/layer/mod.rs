//! The layer.

mod background;
mod builder;
mod future;
mod service;

use std::fmt;
use std::sync::Arc;

use tower::Layer;

use crate::request::{ScopeValues, Slot, SlotError};
use crate::run::config::Config;
use crate::run::guard::Guard;
use crate::store::{MemoryStore, ScopeTag, Store};

pub use background::Background;
pub use builder::IdempotencyLayerBuilder;
pub use future::ResponseFuture;
pub use service::IdempotencyService;

/// Makes the requests of an HTTP service safe to retry.
///
/// Clones share the store, the counts and the work that goes on without its client.
///
/// ```
/// use axum::{Router, routing::post};
/// use tower_idempotency::{IdempotencyLayer, MemoryStore};
///
/// let app: Router = Router::new()
///     .route("/payments", post(|| async { "paid" }))
///     .layer(IdempotencyLayer::new(MemoryStore::new()));
/// # let _ = app;
/// ```
///
/// **Order of layers.** Authentication and authorisation belong outside this layer, so that a
/// replay is authorised afresh; compression, CORS and request ids too, so that they are applied to
/// replays anew. A time-out outside it answers the client while the handler runs on; one inside it
/// cancels the handler.
pub struct IdempotencyLayer<St = MemoryStore> {
    pub(crate) guard: Arc<Guard<St>>,
}

impl<St: Store> IdempotencyLayer<St> {
    /// The layer with the default configuration.
    #[must_use]
    pub fn new(store: St) -> Self {
        Self {
            guard: Arc::new(Guard::new(store, Config::default())),
        }
    }

    /// How many requests had which outcome since the layer was built: the name of each
    /// [`Outcome`](crate::Outcome) and its count, then `unguarded`, the requests that passed
    /// through. The `metrics` feature counts the same for its recorder.
    ///
    /// ```
    /// use tower_idempotency::{IdempotencyLayer, MemoryStore};
    ///
    /// let layer = IdempotencyLayer::new(MemoryStore::new());
    /// for (outcome, count) in layer.counts() {
    ///     println!("idempotency_requests_total{{outcome=\"{outcome}\"}} {count}");
    /// }
    /// ```
    pub fn counts(&self) -> impl Iterator<Item = (&'static str, u64)> + '_ {
        self.guard.tally.counts()
    }

    /// The slot of a key, to look it up in the store ([`Inspect`](crate::store::Inspect)).
    ///
    /// `scope` is what the layer's [`ScopeSource`](crate::ScopeSource) finds in the caller's
    /// requests: by default the whole value of `Authorization`, or `None` if the caller sends none.
    /// Where all requests share one scope, it does not count. A combined scope takes an array with
    /// a value for each of its sources ([`ScopeValues`]).
    ///
    /// `key` is the key as the client sends it, or as
    /// [`IdempotencyKey::as_str`](crate::IdempotencyKey::as_str) shows it. The rules are those for
    /// a request's key: quotes around a header's key are removed, and with
    /// [`KeyFormat::Uuid`](crate::KeyFormat::Uuid) the case of the digits does not count.
    ///
    /// # Errors
    ///
    /// [`SlotError`] says that the layer would refuse the key, or that the scope has another number
    /// of values.
    ///
    /// ```
    /// use tower_idempotency::{IdempotencyLayer, MemoryStore};
    ///
    /// let layer = IdempotencyLayer::new(MemoryStore::new());
    /// let slot = layer.slot(Some("Bearer sk_acme"), "order-17")?;
    /// assert_eq!(layer.slot(Some("bearer sk_acme"), "\"order-17\"")?, slot);
    /// assert!(layer.slot(None, "undefined").is_err());
    /// # Ok::<(), tower_idempotency::SlotError>(())
    /// ```
    pub fn slot<'a>(&self, scope: impl Into<ScopeValues<'a>>, key: &str) -> Result<Slot, SlotError> {
        let config = &self.guard.config;
        let key = config.key.of_text(key)?;
        config.scope.slot_of(&scope.into(), key.as_bytes())
    }

    /// The tag of a scope, to forget all finished operations of a caller
    /// ([`Inspect::forget_scope`](crate::store::Inspect::forget_scope)). `scope` is as for
    /// [`slot`](Self::slot).
    ///
    /// # Errors
    ///
    /// [`SlotError::ScopeValues`]: the scope has another number of values.
    ///
    /// ```
    /// use tower_idempotency::{IdempotencyLayer, MemoryStore};
    ///
    /// let layer = IdempotencyLayer::new(MemoryStore::new());
    /// let acme = layer.scope_tag(Some("Bearer sk_acme"))?;
    /// assert_ne!(acme, layer.scope_tag(Some("Bearer sk_globex"))?);
    /// # Ok::<(), tower_idempotency::SlotError>(())
    /// ```
    pub fn scope_tag<'a>(&self, scope: impl Into<ScopeValues<'a>>) -> Result<ScopeTag, SlotError> {
        self.guard.config.scope.tag_of(&scope.into())
    }

    /// The work that goes on without its client, to await it at shutdown.
    #[must_use]
    pub fn background(&self) -> Background {
        Background(self.guard.tasks.clone())
    }
}

impl<St> Clone for IdempotencyLayer<St> {
    fn clone(&self) -> Self {
        Self {
            guard: Arc::clone(&self.guard),
        }
    }
}

impl<St> fmt::Debug for IdempotencyLayer<St> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IdempotencyLayer")
            .field("config", &*self.guard.config)
            .finish_non_exhaustive()
    }
}

impl<S, St> Layer<S> for IdempotencyLayer<St> {
    type Service = IdempotencyService<S, St>;

    fn layer(&self, inner: S) -> Self::Service {
        IdempotencyService::new(inner, Arc::clone(&self.guard))
    }
}
