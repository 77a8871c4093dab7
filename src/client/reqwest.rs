//! The client side for `reqwest`, as a middleware of
//! [`reqwest-middleware`](https://docs.rs/reqwest-middleware).
//!
//! ```
//! use tower_idempotency::client::Operation;
//! use tower_idempotency::client::reqwest::IdempotencyMiddleware;
//!
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let client = reqwest_middleware::ClientBuilder::new(reqwest::Client::new())
//!     .with(IdempotencyMiddleware::new())
//!     .build();
//!
//! let operation = Operation::derived(["order-17", "charge"]);
//! let response = client
//!     .post("http://127.0.0.1:3000/payments")
//!     .with_extension(operation.clone())
//!     .body("EUR 10")
//!     .send()
//!     .await?;
//! println!("{} after {} attempts", response.status(), operation.attempts());
//! # Ok(())
//! # }
//! ```

use std::fmt;
use std::time::Duration;

use async_trait::async_trait;
use http::Extensions;
use reqwest::{Body, Request, Response, ResponseBuilderExt};
use reqwest_middleware::{Error, Middleware, Next};
use tokio::sync::Mutex;

use super::call::{self, Limits};
use super::key::IdempotencyKeyLayer;
use super::operation::Operation;
use super::retry::{EveryError, RetryPolicy, Transient};
use crate::error::ConfigError;

/// What [`ClientLayer`](super::ClientLayer) does, for `reqwest`: the same keys, retries and bounds.
///
/// Middlewares that stand after it see each attempt; put one that signs or authenticates there. The
/// operation goes in by `RequestBuilder::with_extension` and is in the response's extensions. A
/// request whose body is a stream cannot be sent again, so that it is not retried.
///
/// A call without a final answer is a [`CallError`](super::CallError), inside
/// [`Error::Middleware`]: `error.downcast_ref::<CallError>()`.
///
/// `reqwest` follows redirects itself, within each attempt, and with the key: `307` and `308` repeat
/// the request; `301`, `302` and `303` turn a `POST` into a `GET`. Too many of them are an error
/// that is not retried.
#[derive(Clone)]
pub struct IdempotencyMiddleware<C = EveryError> {
    limits: Limits<NotOfTheRequest<C>>,
    keys: IdempotencyKeyLayer,
}

impl IdempotencyMiddleware {
    /// All defaults.
    #[must_use]
    pub fn new() -> Self {
        Self {
            limits: Limits::new(RetryPolicy::new().map_transient(NotOfTheRequest)),
            keys: IdempotencyKeyLayer::new(),
        }
    }
}

impl Default for IdempotencyMiddleware {
    fn default() -> Self {
        Self::new()
    }
}

impl<C> IdempotencyMiddleware<C> {
    /// Settings of your own.
    pub fn builder(policy: RetryPolicy<C>) -> IdempotencyMiddlewareBuilder<C> {
        IdempotencyMiddlewareBuilder {
            limits: Limits::new(policy.map_transient(NotOfTheRequest)),
            keys: IdempotencyKeyLayer::new(),
        }
    }
}

/// Settings of an [`IdempotencyMiddleware`]; what cannot work is an error of [`build`](Self::build).
#[must_use]
pub struct IdempotencyMiddlewareBuilder<C> {
    limits: Limits<NotOfTheRequest<C>>,
    keys: IdempotencyKeyLayer,
}

impl<C> IdempotencyMiddlewareBuilder<C> {
    /// As [`ClientLayerBuilder::keys`](super::ClientLayerBuilder::keys).
    pub fn keys(mut self, keys: IdempotencyKeyLayer) -> Self {
        self.keys = keys;
        self
    }

    /// As [`ClientLayerBuilder::attempt_time`](super::ClientLayerBuilder::attempt_time).
    pub fn attempt_time(mut self, attempt_time: Duration) -> Self {
        self.limits.attempt_time = attempt_time;
        self
    }

    /// As [`ClientLayerBuilder::max_response_body`](super::ClientLayerBuilder::max_response_body).
    pub fn max_response_body(mut self, bytes: usize) -> Self {
        self.limits.max_response_body = bytes;
        self
    }

    /// The middleware.
    ///
    /// # Errors
    /// [`ConfigError`] names the setting that cannot work.
    pub fn build(self) -> Result<IdempotencyMiddleware<C>, ConfigError> {
        Ok(IdempotencyMiddleware {
            limits: self.limits.validated()?,
            keys: self.keys,
        })
    }
}

impl<C> fmt::Debug for IdempotencyMiddleware<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IdempotencyMiddleware")
            .field("limits", &self.limits)
            .field("keys", &self.keys)
            .finish()
    }
}

impl<C> fmt::Debug for IdempotencyMiddlewareBuilder<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IdempotencyMiddlewareBuilder")
            .field("limits", &self.limits)
            .field("keys", &self.keys)
            .finish()
    }
}

/// Errors that lie in the request itself are the same the next time.
#[derive(Debug, Clone)]
struct NotOfTheRequest<C>(C);

impl<C: Transient<Error>> Transient<Error> for NotOfTheRequest<C> {
    fn is_transient(&self, error: &Error) -> bool {
        !error.is_builder() && !error.is_redirect() && self.0.is_transient(error)
    }
}

#[async_trait]
impl<C> Middleware for IdempotencyMiddleware<C>
where
    C: Transient<Error> + Send + Sync + 'static,
{
    async fn handle(
        &self,
        mut request: Request,
        extensions: &mut Extensions,
        next: Next<'_>,
    ) -> reqwest_middleware::Result<Response> {
        let method = request.method().clone();
        let callers = extensions.get::<Operation>().is_some();
        let operation = self.keys.begin(&method, request.headers_mut(), extensions);
        let repeatable = self.limits.policy.repeatable(&method, request.headers(), extensions);

        // One attempt after the other; the lock is never waited for.
        let extensions = Mutex::new(extensions);
        let send = |request| {
            let next = next.clone();
            let extensions = &extensions;
            async move {
                // Its query may hold what must not be in an error.
                let response = next.run(request, *extensions.lock().await).await;
                Ok(with_url(response.map_err(Error::without_url)?))
            }
        };
        let called = call::call(&self.limits, &operation, repeatable, request, Request::try_clone, send).await;
        if !callers {
            // The next request with these extensions is another operation.
            extensions.into_inner().remove::<Operation>();
        }
        let response = called.map_err(Error::middleware)?;
        Ok(response.map(Body::wrap).into())
    }
}

/// The response with its URL as the extension that `reqwest` takes it from again.
fn with_url(response: Response) -> http::Response<Body> {
    let url = http::Response::builder().url(response.url().clone()).body(());
    let mut response = http::Response::from(response);
    if let Ok(url) = url {
        response.extensions_mut().extend(url.into_parts().0.extensions);
    }
    response
}
