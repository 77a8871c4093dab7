//! The layer, and the builder of its configuration.

use std::fmt;
use std::sync::Arc;

use tower::Layer;

use crate::builder::IdempotencyLayerBuilder;
use crate::config::Config;
use crate::scope::Slot;
use crate::service::IdempotencyService;
use crate::shared::Shared;
use crate::store::{MemoryStore, Store};

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
    pub(crate) shared: Arc<Shared<St>>,
}

impl<St: Store> IdempotencyLayer<St> {
    /// The layer with the default configuration.
    #[must_use]
    pub fn new(store: St) -> Self {
        Self {
            shared: Arc::new(Shared::new(store, Config::default())),
        }
    }

    /// Another configuration.
    pub fn builder(store: St) -> IdempotencyLayerBuilder<St> {
        IdempotencyLayerBuilder {
            store,
            config: Config::default(),
            error: None,
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
        self.shared.tally.counts()
    }

    /// The slot of a key, to look it up in the store ([`Inspect`](crate::store::Inspect)). `scope` is
    /// what the layer's [`ScopeSource`](crate::ScopeSource) makes of the caller's requests (by
    /// default the whole value of `Authorization`), `None` if that is nothing; `key` is the key
    /// without quotes. Where all share one scope, `scope` does not count.
    #[must_use]
    pub fn slot(&self, scope: Option<&str>, key: &str) -> Slot {
        self.shared.config.scope.slot_of(scope, key)
    }

    /// The work that goes on without its client, to await it at shutdown.
    #[must_use]
    pub fn background(&self) -> Background {
        Background(self.shared.tasks.clone())
    }
}

impl<St> Clone for IdempotencyLayer<St> {
    fn clone(&self) -> Self {
        Self {
            shared: Arc::clone(&self.shared),
        }
    }
}

impl<St> fmt::Debug for IdempotencyLayer<St> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IdempotencyLayer")
            .field("config", &*self.shared.config)
            .finish_non_exhaustive()
    }
}

impl<S, St> Layer<S> for IdempotencyLayer<St> {
    type Service = IdempotencyService<S, St>;

    fn layer(&self, inner: S) -> Self::Service {
        IdempotencyService::new(inner, Arc::clone(&self.shared))
    }
}

/// Work that goes on without its client: handlers whose client has left, and outcomes that are
/// being stored again after the store failed.
///
/// ```
/// use std::time::Duration;
/// use tower_idempotency::{IdempotencyLayer, MemoryStore};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// let layer = IdempotencyLayer::new(MemoryStore::new());
/// let background = layer.background();
///
/// // … serve until the signal to stop, and let open connections finish; then:
/// if tokio::time::timeout(Duration::from_secs(10), background.wait()).await.is_err() {
///     eprintln!("{} operations are abandoned", background.len());
/// }
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct Background(tokio_util::task::TaskTracker);

impl Background {
    /// How many pieces of work there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns when there is none. Stop taking requests first.
    pub async fn wait(&self) {
        self.0.close();
        self.0.wait().await;
    }
}
