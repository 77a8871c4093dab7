//! The whole client side in one layer.

use std::fmt;
use std::mem;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body::Body;
use http_body_util::Full;
use tower::util::Oneshot;
use tower::{Layer, Service};

use super::call::{self, Limits};
use super::error::CallError;
use super::key::IdempotencyKeyLayer;
use super::replay::{ReplayableBody, replay};
use super::retry::{EveryError, RetryPolicy, Transient};
use crate::error::{BoxError, ConfigError};

/// Adds keys, retries and limits to a Tower HTTP client, such as `hyper_util`'s.
///
/// Each call is one logical operation. The layer adds a key to the request
/// ([`IdempotencyKeyLayer`]) and sends the request until a response is final, or until the call
/// reaches a limit of the [`RetryPolicy`]. The call reads the complete body before it returns the
/// response, and drops the trailers. The response carries the [`Operation`](super::Operation) in
/// its extensions. A [`CallError`] contains the operation and the last response.
///
/// A response is final if the [policy](super) does not retry it. `404`, `422` and redirects are
/// final. To follow redirects, put the layer that follows them inside this layer.
///
/// If you drop a call's future, no further attempt is sent. The server may still complete an
/// attempt that it has begun to process.
///
/// ```
/// use std::time::Duration;
/// use tower_idempotency::client::{ClientLayer, IdempotencyKeyLayer, RetryPolicy};
///
/// let layer = ClientLayer::builder(RetryPolicy::builder().attempts(5).build()?)
///     .keys(IdempotencyKeyLayer::new().time_ordered())
///     .attempt_time(Duration::from_secs(5))
///     .max_response_body(64 * 1024)
///     .build()?;
/// # let _ = layer;
/// # Ok::<(), tower_idempotency::ConfigError>(())
/// ```
#[derive(Clone)]
pub struct ClientLayer<C = EveryError> {
    pub(super) limits: Arc<Limits<C>>,
    pub(super) keys: IdempotencyKeyLayer,
}

impl ClientLayer {
    /// Creates a layer with the default settings.
    #[must_use]
    pub fn new() -> Self {
        Self {
            limits: Arc::new(Limits::new(RetryPolicy::new())),
            keys: IdempotencyKeyLayer::new(),
        }
    }
}

impl<C> ClientLayer<C> {
    /// Returns a builder for a layer with this policy.
    pub fn builder(policy: RetryPolicy<C>) -> ClientLayerBuilder<C> {
        ClientLayerBuilder {
            limits: Limits::new(policy),
            keys: IdempotencyKeyLayer::new(),
        }
    }
}

impl Default for ClientLayer {
    fn default() -> Self {
        Self::new()
    }
}

/// Configures a [`ClientLayer`]. [`build`](Self::build) returns an error if a setting is invalid.
#[must_use]
pub struct ClientLayerBuilder<C> {
    limits: Limits<C>,
    keys: IdempotencyKeyLayer,
}

impl<C> ClientLayerBuilder<C> {
    /// Sets how keys are generated and sent. Default: [`IdempotencyKeyLayer::new`].
    pub fn keys(mut self, keys: IdempotencyKeyLayer) -> Self {
        self.keys = keys;
        self
    }

    /// Sets how long one attempt can take, up to the last byte of its response. Default: 20 s. Zero
    /// is an error. The policy's remaining total time also limits each attempt.
    pub fn attempt_time(mut self, attempt_time: Duration) -> Self {
        self.limits.attempt_time = attempt_time;
        self
    }

    /// Sets the maximum size of a response body, in bytes. Default: 2 MiB. If the body of a final
    /// response is larger, the call fails without a retry, because the body would be just as large
    /// in the next attempt.
    pub fn max_response_body(mut self, bytes: usize) -> Self {
        self.limits.max_response_body = bytes;
        self
    }

    /// Builds the layer.
    ///
    /// # Errors
    ///
    /// Returns a [`ConfigError`] that names the invalid setting.
    pub fn build(self) -> Result<ClientLayer<C>, ConfigError> {
        Ok(ClientLayer {
            limits: Arc::new(self.limits.validated()?),
            keys: self.keys,
        })
    }
}

impl<C> fmt::Debug for ClientLayer<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientLayer")
            .field("limits", &self.limits)
            .field("keys", &self.keys)
            .finish()
    }
}

impl<C> fmt::Debug for ClientLayerBuilder<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientLayerBuilder")
            .field("limits", &self.limits)
            .field("keys", &self.keys)
            .finish()
    }
}

impl<S, C> Layer<S> for ClientLayer<C> {
    type Service = ClientService<S, C>;

    fn layer(&self, inner: S) -> Self::Service {
        ClientService {
            inner,
            limits: Arc::clone(&self.limits),
            keys: self.keys.clone(),
        }
    }
}

/// The service that [`ClientLayer`] creates.
pub struct ClientService<S, C = EveryError> {
    inner: S,
    limits: Arc<Limits<C>>,
    keys: IdempotencyKeyLayer,
}

impl<S: fmt::Debug, C> fmt::Debug for ClientService<S, C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientService")
            .field("inner", &self.inner)
            .field("limits", &self.limits)
            .field("keys", &self.keys)
            .finish()
    }
}

impl<S: Clone, C> Clone for ClientService<S, C> {
    fn clone(&self) -> Self {
        Self {
            inner: self.inner.clone(),
            limits: Arc::clone(&self.limits),
            keys: self.keys.clone(),
        }
    }
}

impl<S, C, B, R> Service<Request<B>> for ClientService<S, C>
where
    S: Service<Request<B>, Response = Response<R>, Error: Into<BoxError>, Future: Send> + Clone + Send + 'static,
    S::Error: Send,
    C: Transient<S::Error> + Send + Sync + 'static,
    B: ReplayableBody + Send + 'static,
    R: Body<Data: Send, Error: Into<BoxError>> + Send,
{
    type Response = Response<Full<Bytes>>;
    type Error = CallError;
    type Future = ClientFuture;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), CallError>> {
        self.inner.poll_ready(cx).map_err(CallError::not_ready)
    }

    fn call(&mut self, request: Request<B>) -> ClientFuture {
        let (mut parts, body) = request.into_parts();
        let operation = self
            .keys
            .begin(&parts.method, &mut parts.headers, &mut parts.extensions);
        let repeatable = self
            .limits
            .policy
            .repeatable(&parts.method, &parts.headers, &parts.extensions);
        let request = Request::from_parts(parts, body);

        // The first attempt uses the service that is ready.
        let clone = self.inner.clone();
        let mut ready = Some(mem::replace(&mut self.inner, clone.clone()));
        let limits = Arc::clone(&self.limits);
        ClientFuture(Box::pin(async move {
            let send = move |request| Oneshot::new(ready.take().unwrap_or_else(|| clone.clone()), request);
            let is_transient = |error: &_| limits.policy.is_transient(error);
            call::call(&limits, &operation, repeatable, request, replay, is_transient, send).await
        }))
    }
}

/// The response future of [`ClientService`].
#[must_use = "futures do nothing unless polled"]
pub struct ClientFuture(Pin<Box<dyn Future<Output = Called> + Send>>);

type Called = Result<Response<Full<Bytes>>, CallError>;

impl Future for ClientFuture {
    type Output = Called;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        self.0.as_mut().poll(cx)
    }
}

impl fmt::Debug for ClientFuture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientFuture").finish_non_exhaustive()
    }
}
