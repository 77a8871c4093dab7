//! The source of a scope in a request.

use std::fmt;
use std::sync::Arc;

use http::header;
use http::request::Parts;
use http::{Extensions, HeaderName};

use crate::error::{BoxError, ConfigError};
use crate::request::header_name;

type ExtensionFn = dyn Fn(&Extensions) -> Option<String> + Send + Sync;
type HeadFn = dyn Fn(&Parts) -> Result<String, BoxError> + Send + Sync;

/// The source of a key's scope. The scope determines whose key it is: the same key in two scopes
/// names two unrelated operations.
///
/// The default is the value of the `Authorization` header, which separates callers without any
/// setup. The scheme in this value is compared case-insensitively. If tokens are renewed, or
/// signatures change with every request (AWS SigV4, Digest, OAuth 1.0), use the user or tenant that
/// your authentication layer identified. A retry with a new token then still belongs to the same
/// caller.
///
/// ```
/// use tower_idempotency::ScopeSource;
///
/// #[derive(Clone)]
/// struct Tenant(u64);
///
/// let by_tenant = ScopeSource::extension(|tenant: &Tenant| tenant.0.to_string());
/// // A Stripe platform acts on behalf of its connected accounts with one API key.
/// let by_account = ScopeSource::header("authorization").and(ScopeSource::header("stripe-account"));
/// # let _ = (by_tenant, by_account);
/// ```
#[derive(Clone)]
pub struct ScopeSource(pub(super) Source);

#[derive(Clone)]
pub(super) enum Source {
    Header(Result<HeaderName, ConfigError>),
    Host,
    Endpoint,
    Extension(&'static str, Arc<ExtensionFn>),
    Head(Arc<HeadFn>),
    Shared(Arc<str>),
    /// At least two sources, none of which is `All`.
    All(Arc<[Source]>),
}

impl Default for ScopeSource {
    fn default() -> Self {
        Self(Source::Header(Ok(header::AUTHORIZATION)))
    }
}

impl ScopeSource {
    /// Uses the value of a header. Requests without this header share one anonymous scope.
    ///
    /// A name that is not a valid header name (RFC 9110, section 5.1) is an error when the layer is
    /// built.
    #[must_use]
    pub fn header(name: &str) -> Self {
        Self(Source::Header(header_name::parse("scope", name)))
    }

    /// Uses the request's host: the URI's authority or, if the URI has none, the `Host` header. The
    /// host is case-insensitive, and includes the port, if present.
    ///
    /// If one service has many host names, combine the host with a scope that separates callers
    /// ([`and`](Self::and)).
    #[must_use]
    pub fn host() -> Self {
        Self(Source::Host)
    }

    /// Uses the endpoint: the method and the path, without the query. In a nested Axum router, this
    /// is the original path.
    ///
    /// Combine the endpoint with another scope ([`and`](Self::and)) if the same key can name an
    /// operation at each of several endpoints. For example, the key may be the id of an event that
    /// is sent to two endpoints. When you call [`slot`](crate::IdempotencyLayer::slot), pass the
    /// method, a space and the path as this value, such as `POST /hooks/billing`.
    #[must_use]
    pub fn endpoint() -> Self {
        Self(Source::Endpoint)
    }

    /// Uses a value from a request extension that an outer layer has set, such as a user or tenant
    /// id.
    ///
    /// A request without the extension is refused with the `500` problem `scope-unavailable`. In
    /// that case, the authentication layer is missing, or it is inside this layer instead of
    /// outside.
    #[must_use]
    pub fn extension<T, F>(id: F) -> Self
    where
        T: Clone + Send + Sync + 'static,
        F: Fn(&T) -> String + Send + Sync + 'static,
    {
        let read = move |extensions: &Extensions| extensions.get::<T>().map(&id);
        Self(Source::Extension(std::any::type_name::<T>(), Arc::new(read)))
    }

    /// Uses the value that the closure returns for the request's head.
    ///
    /// If the closure returns an error, the request is refused with the `500` problem
    /// `scope-unavailable`. The error is logged, but not shown to the client. A panic in the
    /// closure propagates to the outer layers before anything is claimed.
    ///
    /// ```
    /// use tower_idempotency::ScopeSource;
    ///
    /// let by_account = ScopeSource::from_head(|parts| {
    ///     let account = parts.headers.get("x-account").ok_or("the gateway did not set X-Account")?;
    ///     Ok(account.to_str()?.to_ascii_lowercase())
    /// });
    /// # let _ = by_account;
    /// ```
    #[must_use]
    pub fn from_head<F>(scope: F) -> Self
    where
        F: Fn(&Parts) -> Result<String, BoxError> + Send + Sync + 'static,
    {
        Self(Source::Head(Arc::new(scope)))
    }

    /// Uses one scope with this name for all requests, for example for the webhooks of a single
    /// sender. **Every caller who knows a key can then read any other caller's stored response.**
    #[must_use]
    pub fn shared_by_all(name: &str) -> Self {
        Self(Source::Shared(name.into()))
    }

    /// Combines this scope with another scope. Two requests are in the same scope only if both
    /// parts are equal.
    ///
    /// The order matters: `a.and(b)` and `b.and(a)` are different scopes. A combined scope is never
    /// equal to a simple scope.
    ///
    /// ```
    /// use tower_idempotency::{IdempotencyLayer, MemoryStore, ScopeSource};
    ///
    /// let layer = IdempotencyLayer::builder(MemoryStore::new())
    ///     .scope(ScopeSource::default().and(ScopeSource::header("stripe-account")).and(ScopeSource::host()))
    ///     .build()?;
    /// # let _ = layer;
    /// # Ok::<(), tower_idempotency::ConfigError>(())
    /// ```
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        let all = [self, other].into_iter().flat_map(|scope| match scope.0 {
            Source::All(sources) => sources.to_vec(),
            source => vec![source],
        });
        Self(Source::All(all.collect()))
    }

    pub(super) fn sources(&self) -> &[Source] {
        match &self.0 {
            Source::All(sources) => sources,
            source => std::slice::from_ref(source),
        }
    }
}

impl fmt::Debug for ScopeSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, source) in self.sources().iter().enumerate() {
            if i > 0 {
                f.write_str(" and ")?;
            }
            match source {
                Source::Header(Ok(name)) => write!(f, "ScopeSource::header({name:?})")?,
                Source::Header(Err(error)) => write!(f, "ScopeSource({error})")?,
                Source::Host => f.write_str("ScopeSource::host()")?,
                Source::Endpoint => f.write_str("ScopeSource::endpoint()")?,
                Source::Extension(name, _) => write!(f, "ScopeSource::extension::<{name}>(..)")?,
                Source::Head(_) => f.write_str("ScopeSource::from_head(..)")?,
                Source::Shared(name) => write!(f, "ScopeSource::shared_by_all({name:?})")?,
                Source::All(_) => {}
            }
        }
        Ok(())
    }
}
