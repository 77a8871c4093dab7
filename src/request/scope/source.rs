//! Where a request says whose key it is.

use std::fmt;
use std::sync::Arc;

use http::header;
use http::request::Parts;
use http::{Extensions, HeaderName};

use crate::error::{BoxError, ConfigError};
use crate::request::header_name;

type ExtensionFn = dyn Fn(&Extensions) -> Option<String> + Send + Sync;
type HeadFn = dyn Fn(&Parts) -> Result<String, BoxError> + Send + Sync;

/// Whose key it is. The same key under two scopes names two unrelated operations.
///
/// The default is the value of the `Authorization` header, which separates callers without any set-up. Its
/// scheme is compared case-insensitively. If tokens are renewed, or signatures change with every request (AWS
/// SigV4, Digest, OAuth 1.0), use the user or tenant that your authentication layer found. A retry with a new
/// token then still belongs to the same caller.
///
/// ```
/// use tower_idempotency::ScopeSource;
///
/// #[derive(Clone)]
/// struct Tenant(u64);
///
/// let by_tenant = ScopeSource::extension(|tenant: &Tenant| tenant.0.to_string());
/// // Stripe's platforms act for connected accounts under one API key.
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
    /// At least two, none of them `All`.
    All(Arc<[Source]>),
}

impl Default for ScopeSource {
    fn default() -> Self {
        Self(Source::Header(Ok(header::AUTHORIZATION)))
    }
}

impl ScopeSource {
    /// The value of a header. Requests without this header share one anonymous scope.
    ///
    /// A name that is not a header name (RFC 9110, section 5.1) is an error when the layer is
    /// built.
    #[must_use]
    pub fn header(name: &str) -> Self {
        Self(Source::Header(header_name::parse("scope", name)))
    }

    /// The host that the request is for: the URI's authority, otherwise the `Host` header.
    /// Case-insensitive, with the port if there is one.
    ///
    /// Combine it with a scope that separates callers ([`and`](Self::and)), if one service has many host names.
    #[must_use]
    pub fn host() -> Self {
        Self(Source::Host)
    }

    /// The endpoint: method and path, without the query. In a nested Axum router it is the original path.
    ///
    /// Combine it with another scope ([`and`](Self::and)) if one key may name an operation at each of several
    /// endpoints, such as the id of an event that is sent to two of them. Its value for
    /// [`slot`](crate::IdempotencyLayer::slot) is the method, a space and the path, such as
    /// `POST /hooks/billing`.
    #[must_use]
    pub fn endpoint() -> Self {
        Self(Source::Endpoint)
    }

    /// A value from a request extension that an outer layer has set, such as a user or tenant id.
    ///
    /// A request without the extension is refused with `500` problem `scope-unavailable`: the
    /// authentication layer is missing, or is inside this layer instead of outside.
    #[must_use]
    pub fn extension<T, F>(id: F) -> Self
    where
        T: Clone + Send + Sync + 'static,
        F: Fn(&T) -> String + Send + Sync + 'static,
    {
        let read = move |extensions: &Extensions| extensions.get::<T>().map(&id);
        Self(Source::Extension(std::any::type_name::<T>(), Arc::new(read)))
    }

    /// What the closure returns for the request's head.
    ///
    /// An error is `500` problem `scope-unavailable`; it is logged, not shown to the client. A
    /// panic of the closure goes on to the outer layers before anything is claimed.
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

    /// One scope with this name for all requests, for example for webhooks of one sender. **Every caller who
    /// knows a key can then read the stored response of any other caller.**
    #[must_use]
    pub fn shared_by_all(name: &str) -> Self {
        Self(Source::Shared(name.into()))
    }

    /// This scope *and* another one. Two requests are in the same scope only if both parts are equal.
    ///
    /// The order counts: `a.and(b)` and `b.and(a)` are different scopes. A combined scope is never
    /// equal to a simple one.
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
