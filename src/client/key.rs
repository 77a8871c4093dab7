//! The layer that adds a key to each operation.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use http::{Extensions, HeaderMap, HeaderName, HeaderValue, Method, Request, Response};
use pin_project_lite::pin_project;
use tower::{Layer, Service};
use uuid::Uuid;

use super::operation::{Key, Operation};
use crate::request::key::IDEMPOTENCY_KEY;

/// Adds a key to each unsafe request that does not have one.
///
/// Each request that passes through this layer is one logical operation, so put the layer
/// **outside** any layer that retries. The layer uses the first of these keys that is available:
///
/// 1. the key in the request's header;
/// 2. the key of the [`Operation`] that the caller put into the request's extensions;
/// 3. a new UUID.
///
/// The response carries the [`Operation`] in its extensions. If the header and the caller's
/// operation contain different keys, the header takes precedence. In that case, the response
/// carries a new operation with the header's key.
///
/// ```
/// use tower_idempotency::client::IdempotencyKeyLayer;
///
/// let stripe = IdempotencyKeyLayer::new();
/// let draft = IdempotencyKeyLayer::new().quoted();
/// let paypal = IdempotencyKeyLayer::new()
///     .header(http::HeaderName::from_static("paypal-request-id"))
///     .time_ordered();
/// # let _ = (stripe, draft, paypal);
/// ```
#[derive(Clone, Debug)]
pub struct IdempotencyKeyLayer(Arc<KeyRules>);

#[derive(Clone)]
struct KeyRules {
    header: HeaderName,
    quoted: bool,
    time_ordered: bool,
    methods: Option<Vec<Method>>,
}

impl fmt::Debug for KeyRules {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeyRules")
            .field("header", &self.header)
            .field("quoted", &self.quoted)
            .field("time_ordered", &self.time_ordered)
            .field("methods", &self.methods)
            .finish()
    }
}

impl Default for IdempotencyKeyLayer {
    fn default() -> Self {
        Self::new()
    }
}

impl IdempotencyKeyLayer {
    /// Creates a layer with the default settings: random UUIDs (version 4, RFC 9562) without
    /// quotes, in the header `Idempotency-Key`, for every method that is not safe (RFC 9110,
    /// section 9.2.1).
    #[must_use]
    pub fn new() -> Self {
        Self(Arc::new(KeyRules {
            header: IDEMPOTENCY_KEY,
            quoted: false,
            time_ordered: false,
            methods: None,
        }))
    }

    fn change(mut self, change: impl FnOnce(&mut KeyRules)) -> Self {
        change(Arc::make_mut(&mut self.0));
        self
    }

    /// Sends keys in quotes, as the draft's structured-field String. By default, keys are bare, as
    /// most SDKs send them. Servers that follow the draft strictly require quotes. A key that
    /// contains a space, a comma or a quotation mark is always quoted.
    #[must_use]
    pub fn quoted(self) -> Self {
        self.change(|rules| rules.quoted = true)
    }

    /// Generates version 7 UUIDs, which sort by time, for servers that keep keys in an index. A
    /// version 7 UUID reveals the time at which the operation began.
    #[must_use]
    pub fn time_ordered(self) -> Self {
        self.change(|rules| rules.time_ordered = true)
    }

    /// Sets the header that carries the key. Default: `Idempotency-Key`.
    #[must_use]
    pub fn header(self, name: HeaderName) -> Self {
        self.change(|rules| rules.header = name)
    }

    /// Sets the methods whose requests get a key. Default: all methods except the safe ones (`GET`,
    /// `HEAD`, `OPTIONS` and `TRACE`).
    #[must_use]
    pub fn methods(self, methods: impl IntoIterator<Item = Method>) -> Self {
        self.change(|rules| rules.methods = Some(methods.into_iter().collect()))
    }

    /// Returns the request's operation. If the request needs a key, puts the operation's key into
    /// the header.
    pub(super) fn begin(&self, method: &Method, headers: &mut HeaderMap, extensions: &mut Extensions) -> Operation {
        let operation = extensions.get::<Operation>().cloned().unwrap_or_default();
        let operation = match headers.get(&self.0.header) {
            Some(line) => operation.written(line),
            None => {
                if self.0.wants_key(method) || operation.key().is_some() {
                    let key = operation.key_or_else(|| self.0.make_key());
                    if let Some(line) = self.0.line(key) {
                        headers.insert(self.0.header.clone(), line);
                    }
                }
                operation
            }
        };
        extensions.insert(operation.clone());
        extensions.insert(KeyHeader(self.0.header.clone()));
        operation
    }
}

/// The name of the header that contains the request's key, if the request has a key. The layer puts
/// this value into the request's extensions.
#[derive(Clone)]
pub(super) struct KeyHeader(pub(super) HeaderName);

impl KeyRules {
    fn wants_key(&self, method: &Method) -> bool {
        match &self.methods {
            Some(methods) => methods.contains(method),
            None => !method.is_safe(),
        }
    }

    fn make_key(&self) -> Key {
        let uuid = if self.time_ordered {
            Uuid::now_v7()
        } else {
            Uuid::new_v4()
        };
        Key {
            text: uuid.to_string(),
            as_written: None,
        }
    }

    /// Returns the header value for a key. Every key can be sent as a header value, because the
    /// keys in operations contain only printable ASCII.
    fn line(&self, key: &Key) -> Option<HeaderValue> {
        if let Some(line) = &key.as_written {
            return Some(line.clone());
        }
        let key = &*key.text;
        let bare = key
            .bytes()
            .all(|byte| byte.is_ascii_graphic() && !matches!(byte, b',' | b'"'));
        let mut line = if bare && !self.quoted {
            HeaderValue::from_str(key).ok()?
        } else {
            let text = sfv::StringRef::from_str(key).ok()?;
            HeaderValue::from_str(&sfv::ItemSerializer::new().bare_item(text).finish()).ok()?
        };
        // The value is sensitive because anyone who knows the key can request the response.
        line.set_sensitive(true);
        Some(line)
    }
}

impl<S> Layer<S> for IdempotencyKeyLayer {
    type Service = IdempotencyKeyService<S>;

    fn layer(&self, inner: S) -> Self::Service {
        IdempotencyKeyService {
            inner,
            keys: self.clone(),
        }
    }
}

/// The service that [`IdempotencyKeyLayer`] creates.
#[derive(Clone, Debug)]
pub struct IdempotencyKeyService<S> {
    inner: S,
    keys: IdempotencyKeyLayer,
}

impl<S, B, R> Service<Request<B>> for IdempotencyKeyService<S>
where
    S: Service<Request<B>, Response = Response<R>>,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = KeyFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let (mut parts, body) = request.into_parts();
        let operation = self
            .keys
            .begin(&parts.method, &mut parts.headers, &mut parts.extensions);
        KeyFuture {
            inner: self.inner.call(Request::from_parts(parts, body)),
            operation,
        }
    }
}

pin_project! {
    /// The response future of [`IdempotencyKeyService`].
    #[derive(Debug)]
    pub struct KeyFuture<F> {
        #[pin]
        inner: F,
        operation: Operation,
    }
}

impl<F, R, E> Future for KeyFuture<F>
where
    F: Future<Output = Result<Response<R>, E>>,
{
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let this = self.project();
        let mut result = ready!(this.inner.poll(cx));
        if let Ok(response) = &mut result {
            this.operation.answered(response.headers());
            response.extensions_mut().insert(this.operation.clone());
        }
        Poll::Ready(result)
    }
}
