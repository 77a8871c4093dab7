//! Options for requests: which requests are guarded, who sent them, and which requests are treated
//! as the same request.

use std::sync::Arc;

use http::Method;
use http::request::Parts;

use super::IdempotencyLayerBuilder;
use crate::request::scope::TagKey;
use crate::request::{FingerprintSource, KeyFormat, KeySource, ScopeSource};
use crate::run::config::Predicate;
use crate::store::Store;

impl<St: Store> IdempotencyLayerBuilder<St> {
    /// Sets the guarded methods. Default: `POST` and `PATCH`. Requests with other methods pass
    /// through.
    pub fn methods(mut self, methods: impl IntoIterator<Item = Method>) -> Self {
        self.config.methods = methods.into_iter().collect();
        self
    }

    /// Sets where the key comes from. Default: the `Idempotency-Key` header.
    pub fn key(mut self, source: KeySource) -> Self {
        self.chosen.key = Some(source);
        self
    }

    /// Sets which key formats are accepted. Default: [`KeyFormat::Any`].
    pub fn key_format(mut self, format: KeyFormat) -> Self {
        self.config.key.format = format;
        self
    }

    /// Sets the maximum length of a key in bytes, after unquoting. Default: 255.
    pub fn max_key_length(mut self, bytes: usize) -> Self {
        self.config.key.max_length = bytes;
        self
    }

    /// Sets whether a request that has a guarded method but no key is refused with `400` problem
    /// `missing-key`. Default: `false`, so the request passes through. With
    /// [`webhooks`](Self::webhooks), the default is `true`.
    pub fn require_key(mut self, required: bool) -> Self {
        self.chosen.require_key = Some(required);
        self
    }

    /// Sets the source of the scope, which separates the keys of different callers. Default: the
    /// value of `Authorization`.
    pub fn scope(mut self, scope: ScopeSource) -> Self {
        self.chosen.scope = Some(scope);
        self
    }

    /// Sets the application's name, which becomes a part of every slot. Default: none.
    ///
    /// With different names, two services, or a gateway and the service behind it, can share one
    /// store and receive the same key from the same caller without interfering with each other. If
    /// you change the name, the layer no longer finds the operations that are already in the store.
    /// If the name is empty, `build` returns an error.
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

    /// Sets the secret key for computing scope tags. Default: none.
    ///
    /// Stores save a [tag](crate::store::ScopeTag) of the scope with each record, so that all
    /// records of one caller can be [forgotten](crate::store::Inspect::forget_scope). Without a
    /// secret, anyone who can read the store can guess a caller's scope value and test whether the
    /// store has records for that caller. With a secret, such a test is not possible. Processes
    /// that share a store need the same secret. If you change the secret, existing records can no
    /// longer be found by their scope, but they are still replayed and still expire.
    ///
    /// If the secret is shorter than 16 bytes, `build` returns an error. Logs and `Debug` never
    /// show the secret.
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

    /// Sets which parts of two requests with the same key must be equal for the layer to treat them
    /// as the same request. Default: method, path, query and body.
    pub fn fingerprint(mut self, fingerprint: FingerprintSource) -> Self {
        self.chosen.fingerprint = Some(fingerprint);
        self
    }

    /// Sets whether the layer guards requests. Default: `true`. With `false`, every request passes
    /// through. Use this option to turn the layer on or off in your configuration if you cannot use
    /// `tower::util::option_layer` because the types of the response bodies differ.
    pub fn enabled(mut self, enabled: bool) -> Self {
        self.config.enabled = enabled;
        self
    }

    /// Sets a closure that selects the requests that pass through. The closure receives the
    /// request's head. If the closure returns `true`, the request passes through untouched, as if
    /// it had no key. Default: no closure.
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
