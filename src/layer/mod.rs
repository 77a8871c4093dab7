//! The layer and its service.

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

/// Makes requests to an HTTP service safe to retry.
///
/// Clones share the store, the counts and the work that continues without a client.
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
/// **Order of layers.** Authentication and authorization belong outside this layer, so that each
/// replay is authorized again. Compression, CORS and request ids also belong outside, so that they
/// are applied to each replay. A timeout outside this layer sends the client a response, and the
/// handler continues to run. A timeout inside this layer cancels the handler.
pub struct IdempotencyLayer<St = MemoryStore> {
    pub(crate) guard: Arc<Guard<St>>,
}

impl<St: Store> IdempotencyLayer<St> {
    /// Creates a layer with the default configuration.
    #[must_use]
    pub fn new(store: St) -> Self {
        Self {
            guard: Arc::new(Guard::new(store, Config::default())),
        }
    }

    /// Returns the number of requests per outcome since the layer was built: the name and count of
    /// each [`Outcome`](crate::Outcome), and then `unguarded`, the number of requests that passed
    /// through. With the `metrics` feature, the layer also reports these counts to the metrics
    /// recorder.
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

    /// Returns a key's slot, for looking up the key in the store
    /// ([`Inspect`](crate::store::Inspect)).
    ///
    /// `scope` is the value that the layer's [`ScopeSource`](crate::ScopeSource) finds in the
    /// caller's requests: by default the whole value of `Authorization`, or `None` if the caller
    /// does not send this header. If all requests share one scope, the value is ignored. For a
    /// combined scope, pass an array with one value for each of its sources ([`ScopeValues`]).
    ///
    /// `key` is the key as the client sends it, or as
    /// [`IdempotencyKey::as_str`](crate::IdempotencyKey::as_str) returns it. The rules for a key in
    /// a request apply: quotes around a key from a header are removed, and with
    /// [`KeyFormat::Uuid`](crate::KeyFormat::Uuid), the case of the digits is ignored.
    ///
    /// # Errors
    ///
    /// Returns a [`SlotError`] if the layer would refuse the key, or if `scope` has the wrong
    /// number of values.
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

    /// Returns the tag of a scope, for forgetting all finished operations of a caller
    /// ([`Inspect::forget_scope`](crate::store::Inspect::forget_scope)). `scope` is the same value
    /// as for [`slot`](Self::slot).
    ///
    /// # Errors
    ///
    /// Returns [`SlotError::ScopeValues`] if `scope` has the wrong number of values.
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

    /// Returns a handle to the work that continues without a client, so that you can wait for this
    /// work at shutdown.
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
