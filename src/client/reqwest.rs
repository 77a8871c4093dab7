//! Client-side support for `reqwest`, as middleware for
//! [`reqwest-middleware`](https://docs.rs/reqwest-middleware).
//!
//! ```
//! use tower_idempotency::client::Operation;
//! use tower_idempotency::client::reqwest::IdempotencyMiddleware;
//!
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let client = reqwest_middleware::ClientBuilder::new(reqwest::Client::new())
//!     .with(IdempotencyMiddleware::default())
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

use async_trait::async_trait;
use http::Extensions;
use reqwest::{Body, Request, Response, ResponseBuilderExt};
use reqwest_middleware::{Error, Middleware, Next};
use tokio::sync::Mutex;

use super::call;
use super::layer::ClientLayer;
use super::operation::Operation;
use super::retry::{EveryError, Transient};

/// Adds the keys, retries and limits of a [`ClientLayer`] to `reqwest`.
///
/// Middleware that you add after this one sees each attempt, so add signing and authentication
/// middleware there. Set the operation with `RequestBuilder::with_extension`. The response carries
/// the operation in its extensions. A request whose body is a stream cannot be sent again, so it is
/// not retried.
///
/// A call without a final response returns an [`Error::Middleware`] that contains a
/// [`CallError`](super::CallError). To get the `CallError`, call
/// `error.downcast_ref::<CallError>()`.
///
/// `reqwest` itself follows redirects within each attempt, and the redirected requests carry the
/// key. `307` and `308` repeat the request; `301`, `302` and `303` turn a `POST` into a `GET`. Too
/// many redirects cause an error that is not retried. A request that `reqwest` cannot build is not
/// retried either.
///
/// ```
/// use std::time::Duration;
/// use tower_idempotency::client::reqwest::IdempotencyMiddleware;
/// use tower_idempotency::client::{ClientLayer, RetryPolicy};
///
/// let settings = ClientLayer::builder(RetryPolicy::builder().attempts(5).build()?)
///     .attempt_time(Duration::from_secs(5))
///     .build()?;
/// let middleware = IdempotencyMiddleware::new(settings);
/// # let _ = middleware;
/// # Ok::<(), tower_idempotency::ConfigError>(())
/// ```
#[derive(Clone)]
pub struct IdempotencyMiddleware<C = EveryError>(ClientLayer<C>);

impl<C> IdempotencyMiddleware<C> {
    /// Creates the middleware with these settings.
    #[must_use]
    pub fn new(settings: ClientLayer<C>) -> Self {
        Self(settings)
    }
}

/// Creates the middleware with the default settings.
impl Default for IdempotencyMiddleware {
    fn default() -> Self {
        Self::new(ClientLayer::new())
    }
}

impl<C> fmt::Debug for IdempotencyMiddleware<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("IdempotencyMiddleware").field(&self.0).finish()
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
        let ClientLayer { limits, keys } = &self.0;
        let method = request.method().clone();
        let callers = extensions.get::<Operation>().is_some();
        let operation = keys.begin(&method, request.headers_mut(), extensions);
        let repeatable = limits.policy.repeatable(&method, request.headers(), extensions);

        // Attempts run one after the other, so no attempt ever waits for the lock.
        let extensions = Mutex::new(Borrowed { extensions, callers });
        let send = |request| {
            let next = next.clone();
            let extensions = &extensions;
            async move {
                // The query of the URL may contain data that must not appear in an error.
                let response = next.run(request, extensions.lock().await.extensions).await;
                Ok(with_url(response.map_err(Error::without_url)?))
            }
        };
        // An error in the request itself would occur again in the next attempt.
        let is_transient =
            |error: &Error| !error.is_builder() && !error.is_redirect() && limits.policy.is_transient(error);
        let called = call::call(
            limits,
            &operation,
            repeatable,
            request,
            Request::try_clone,
            is_transient,
            send,
        )
        .await;
        let response = called.map_err(Error::middleware)?;
        Ok(response.map(Body::wrap).into())
    }
}

/// The caller's extensions during a call.
struct Borrowed<'a> {
    extensions: &'a mut Extensions,
    /// Whether the caller set the operation.
    callers: bool,
}

impl Drop for Borrowed<'_> {
    /// Removes the call's own operation, even if the call's future is dropped: the next request with
    /// these extensions is a different operation.
    fn drop(&mut self) {
        if !self.callers {
            self.extensions.remove::<Operation>();
        }
    }
}

/// Converts a response, and preserves its URL in the extension from which `reqwest` reads the URL.
fn with_url(response: Response) -> http::Response<Body> {
    let url = http::Response::builder().url(response.url().clone()).body(());
    let mut response = http::Response::from(response);
    if let Ok(url) = url {
        response.extensions_mut().extend(url.into_parts().0.extensions);
    }
    response
}
