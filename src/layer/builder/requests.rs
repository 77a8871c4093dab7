//! Options about requests: which are guarded, whose they are, and which are the same.

use std::sync::Arc;

use http::Method;
use http::request::Parts;

use super::IdempotencyLayerBuilder;
use crate::request::scope::TagKey;
use crate::request::{FingerprintSource, KeyFormat, KeySource, ScopeSource};
use crate::run::config::Predicate;
use crate::store::Store;

impl<St: Store> IdempotencyLayerBuilder<St> {
    /// The guarded methods. Default: `POST` and `PATCH`. Requests of other methods pass through.
    pub fn methods(mut self, methods: impl IntoIterator<Item = Method>) -> Self {
        self.config.methods = methods.into_iter().collect();
        self
    }

    /// Where the key comes from. Default: the header `Idempotency-Key`.
    pub fn key(mut self, source: KeySource) -> Self {
        self.chosen.key = Some(source);
        self
    }

    /// Which spellings of a key are accepted. Default: [`KeyFormat::Any`].
    pub fn key_format(mut self, format: KeyFormat) -> Self {
        self.config.key.format = format;
        self
    }

    /// Bytes of a key at most, after unquoting. Default: 255.
    pub fn max_key_length(mut self, bytes: usize) -> Self {
        self.config.key.max_length = bytes;
        self
    }

    /// Whether a request of a guarded method without a key is refused with `400` problem
    /// `missing-key`. Default: no, it passes through. For [`webhooks`](Self::webhooks): yes.
    pub fn require_key(mut self, required: bool) -> Self {
        self.chosen.require_key = Some(required);
        self
    }

    /// Whose key it is. Default: the value of `Authorization`.
    pub fn scope(mut self, scope: ScopeSource) -> Self {
        self.chosen.scope = Some(scope);
        self
    }

    /// The application's name, as a part of every slot. Default: none.
    ///
    /// Two services, or a gateway and the service behind it, can then share one store and receive
    /// the same key from the same caller without interfering. Changing the name makes the store's
    /// operations unknown to the layer. An empty name is an error when the layer is built.
    ///
    /// ```
    /// use tower_idempotency::{IdempotencyLayer, MemoryStore};
    ///
    /// let store = MemoryStore::new();
    /// let billing = IdempotencyLayer::builder(store.clone()).namespace("billing").build()?;
    /// let shipping = IdempotencyLayer::builder(store).namespace("shipping").build()?;
    /// # let _ = (billing, shipping);
    /// # Ok::<(), tower_idempotency::ConfigError>(())
    /// ```
    pub fn namespace(mut self, application: &str) -> Self {
        self.config.scope.namespace = Some(application.into());
        self
    }

    /// The secret that keys the tags of scopes. Default: none.
    ///
    /// Stores keep a [tag](crate::store::ScopeTag) of its scope with each record, so that all records of
    /// one caller can be [forgotten](crate::store::Inspect::forget_scope). Without a secret, whoever can
    /// read the store can test guesses: whether it holds records of the caller they guess. With a secret
    /// they cannot. Processes that share a store need the same secret. After a change of the secret, records that were
    /// made before are not found by their scope; they are still replayed, and expire.
    ///
    /// A secret of less than 16 bytes is an error when the layer is built. Logs and `Debug` never show it.
    ///
    /// ```
    /// use tower_idempotency::{IdempotencyLayer, MemoryStore};
    ///
    /// # let secret = [7; 32];
    /// // 32 random bytes from your configuration.
    /// let layer = IdempotencyLayer::builder(MemoryStore::new()).scope_tag_secret(secret).build()?;
    /// # let _ = layer;
    /// # Ok::<(), tower_idempotency::ConfigError>(())
    /// ```
    pub fn scope_tag_secret(mut self, secret: impl AsRef<[u8]>) -> Self {
        self.chosen.tag_key = Some(TagKey::of_secret(secret.as_ref()));
        self
    }

    /// What makes two requests with one key the same. Default: method, path, query and body.
    pub fn fingerprint(mut self, fingerprint: FingerprintSource) -> Self {
        self.chosen.fingerprint = Some(fingerprint);
        self
    }

    /// Whether the layer guards anything. Default: yes. With `false` every request passes through: for a
    /// switch in your configuration, where `tower::util::option_layer` does not fit because the type of
    /// the response's body differs.
    pub fn enabled(mut self, enabled: bool) -> Self {
        self.config.enabled = enabled;
        self
    }

    /// Requests for which the closure returns `true` pass through untouched, as if they had no key. It
    /// sees the head of the request. Default: none pass.
    ///
    /// ```
    /// use tower_idempotency::{IdempotencyLayer, MemoryStore};
    ///
    /// let layer = IdempotencyLayer::builder(MemoryStore::new())
    ///     .grpc()
    ///     .pass_when(|head| head.uri.path() == "/orders.Orders/Watch")
    ///     .build()?;
    /// # let _ = layer;
    /// # Ok::<(), tower_idempotency::ConfigError>(())
    /// ```
    pub fn pass_when<F>(mut self, passes: F) -> Self
    where
        F: Fn(&Parts) -> bool + Send + Sync + 'static,
    {
        self.config.pass_when = Some(Predicate(Arc::new(passes)));
        self
    }
}
