//! The scope: whose key it is (contract, section 3).

use std::fmt;
use std::hash::{BuildHasher, DefaultHasher, Hasher, RandomState};
use std::sync::{Arc, LazyLock};

use http::header;
use http::request::Parts;
use http::{Extensions, HeaderName};

use super::header_name;
use super::slot::{ScopeTag, Slot};
use crate::digest::Digest;
use crate::error::{BoxError, ConfigError};

type ExtensionFn = dyn Fn(&Extensions) -> Option<String> + Send + Sync;
type ScopeFn = dyn Fn(&Parts) -> Result<String, BoxError> + Send + Sync;

/// Whose key it is. The same key under two scopes names two unrelated operations.
///
/// The default is the `Authorization` header's value, which parts callers without any set-up. Where
/// tokens rotate, take the user or tenant that your authentication layer found instead: a retry
/// with a refreshed token is then still the same caller's.
///
/// ```
/// use tower_idempotency::ScopeSource;
///
/// #[derive(Clone)]
/// struct Tenant(u64);
///
/// let by_tenant = ScopeSource::extension(|tenant: &Tenant| tenant.0.to_string());
/// # let _ = by_tenant;
/// ```
#[derive(Clone)]
pub struct ScopeSource(Source);

#[derive(Clone)]
enum Source {
    Header(Result<HeaderName, ConfigError>),
    Extension(&'static str, Arc<ExtensionFn>),
    Closure(Arc<ScopeFn>),
    Shared(Arc<str>),
}

impl Default for ScopeSource {
    fn default() -> Self {
        Self(Source::Header(Ok(header::AUTHORIZATION)))
    }
}

// The tags of the fields; part of what stored slots mean, so never to be changed.
const KEY: u8 = 0;
const HEADER: u8 = 1;
const EXTENSION: u8 = 2;
const CLOSURE: u8 = 3;
const SHARED: u8 = 4;

/// A key in its scope.
#[derive(Debug)]
pub(crate) struct Scoped {
    pub(crate) slot: Slot,
    pub(crate) tag: ScopeTag,
    /// The request fell into the anonymous scope although a cookie says who sent it.
    pub(crate) overlooks_cookie: bool,
}

/// The scope cannot be determined: `500` problem `scope-unavailable`.
#[derive(Debug)]
pub(crate) struct ScopeUnavailable(pub(crate) BoxError);

impl ScopeSource {
    /// The value of a header. Requests without it share one anonymous scope. A name that is no
    /// header name is an error when the layer is built.
    #[must_use]
    pub fn header(name: &str) -> Self {
        Self(Source::Header(header_name::parse("scope", name)))
    }

    /// A part of a request extension that a layer further out has put there: a user or tenant id.
    ///
    /// A request without the extension is refused with `500` problem `scope-unavailable`: the
    /// authentication layer is missing, or stands inside this layer instead of outside.
    #[must_use]
    pub fn extension<T, F>(id: F) -> Self
    where
        T: Clone + Send + Sync + 'static,
        F: Fn(&T) -> String + Send + Sync + 'static,
    {
        let read = move |extensions: &Extensions| extensions.get::<T>().map(&id);
        Self(Source::Extension(std::any::type_name::<T>(), Arc::new(read)))
    }

    /// Whatever the closure makes of the request's head. An error is `500` problem
    /// `scope-unavailable`; it is logged, not shown to the client.
    #[must_use]
    pub fn from_fn<F>(scope: F) -> Self
    where
        F: Fn(&Parts) -> Result<String, BoxError> + Send + Sync + 'static,
    {
        Self(Source::Closure(Arc::new(scope)))
    }

    /// One scope of that name for all requests, as for webhooks of one sender. **Every caller can
    /// then read every other caller's stored answers by knowing the key.**
    #[must_use]
    pub fn shared_by_all(name: &str) -> Self {
        Self(Source::Shared(name.into()))
    }

    pub(crate) fn validate(&self) -> Result<(), ConfigError> {
        match &self.0 {
            Source::Header(Err(error)) => Err(error.clone()),
            _ => Ok(()),
        }
    }

    /// The slot of a key in that scope; no scope is the anonymous one.
    pub(crate) fn slot_of(&self, scope: Option<&str>, key: &str) -> Slot {
        let mut digest = Digest::new(b"ti.slot1");
        let tag = match &self.0 {
            Source::Header(_) => HEADER,
            Source::Extension(..) => EXTENSION,
            Source::Closure(_) => CLOSURE,
            Source::Shared(name) => {
                digest.field(SHARED, name.as_bytes());
                digest.field(KEY, key.as_bytes());
                return Slot::from_bytes(digest.finish());
            }
        };
        if let Some(scope) = scope {
            digest.field(tag, scope.as_bytes());
        }
        digest.field(KEY, key.as_bytes());
        Slot::from_bytes(digest.finish())
    }

    pub(crate) fn slot(&self, parts: &Parts, key: &[u8]) -> Result<Scoped, ScopeUnavailable> {
        let mut digest = ScopeDigest::new();
        let mut overlooks_cookie = false;
        match &self.0 {
            Source::Header(Err(error)) => return Err(ScopeUnavailable(error.clone().into())),
            Source::Header(Ok(name)) => {
                let mut lines = parts.headers.get_all(name).iter().peekable();
                if lines.peek().is_none() && name == header::AUTHORIZATION {
                    overlooks_cookie = parts.headers.contains_key(header::COOKIE);
                }
                // All lines count: whichever of two the application believes, it is in the scope.
                for line in lines {
                    digest.field(HEADER, line.as_bytes());
                }
            }
            Source::Extension(name, read) => {
                let scope = read(&parts.extensions).ok_or_else(|| {
                    let missing = format!(
                        "the request has no extension `{name}`: does the layer that puts it there stand outside the idempotency layer?"
                    );
                    ScopeUnavailable(missing.into())
                })?;
                digest.field(EXTENSION, scope.as_bytes());
            }
            Source::Closure(scope) => {
                let scope = scope(parts).map_err(ScopeUnavailable)?;
                digest.field(CLOSURE, scope.as_bytes());
            }
            Source::Shared(name) => digest.field(SHARED, name.as_bytes()),
        }
        let (slot, tag) = digest.finish(key);
        Ok(Scoped {
            slot,
            tag,
            overlooks_cookie,
        })
    }
}

/// The slot's digest and the scope's tag, made of the same fields.
struct ScopeDigest {
    digest: Digest,
    tag: DefaultHasher,
}

impl ScopeDigest {
    fn new() -> Self {
        // By a seed of this process, so that no client can make scopes that share a tag.
        static SEED: LazyLock<RandomState> = LazyLock::new(RandomState::new);
        Self {
            digest: Digest::new(b"ti.slot1"),
            tag: SEED.build_hasher(),
        }
    }

    fn field(&mut self, tag: u8, bytes: &[u8]) {
        self.digest.field(tag, bytes);
        self.tag.write(bytes);
        self.tag.write_u8(tag);
    }

    fn finish(mut self, key: &[u8]) -> (Slot, ScopeTag) {
        self.digest.field(KEY, key);
        (
            Slot::from_bytes(self.digest.finish()),
            ScopeTag::new(self.tag.finish() as u32),
        )
    }
}

impl fmt::Debug for ScopeSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Source::Header(Ok(name)) => write!(f, "ScopeSource::header({name:?})"),
            Source::Header(Err(error)) => write!(f, "ScopeSource({error})"),
            Source::Extension(name, _) => write!(f, "ScopeSource::extension::<{name}>(..)"),
            Source::Closure(_) => f.write_str("ScopeSource::from_fn(..)"),
            Source::Shared(name) => write!(f, "ScopeSource::shared_by_all({name:?})"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(headers: &[(&str, &str)]) -> Parts {
        let mut request = http::Request::builder();
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.body(()).unwrap().into_parts().0
    }

    fn slot(source: &ScopeSource, headers: &[(&str, &str)], key: &str) -> Slot {
        source.slot(&parts(headers), key.as_bytes()).unwrap().slot
    }

    #[test]
    fn contract_2_6_crafted_pairs_do_not_collide() {
        let scope = ScopeSource::default();
        let pairs = [
            slot(&scope, &[], "k"),
            slot(&scope, &[("authorization", "")], "k"),
            slot(&scope, &[("authorization", "a")], "k"),
            slot(&scope, &[("authorization", "a"), ("authorization", "")], "k"),
            slot(&scope, &[("authorization", "ak")], "k"),
            slot(&scope, &[("authorization", "a")], "kk"),
            slot(&ScopeSource::shared_by_all("a"), &[], "k"),
            slot(&ScopeSource::from_fn(|_| Ok("a".into())), &[], "k"),
        ];
        let distinct: std::collections::HashSet<_> = pairs.iter().collect();
        assert_eq!(distinct.len(), pairs.len());
    }

    #[test]
    fn the_slot_of_a_scope_and_key_is_the_one_of_their_requests() {
        let header = ScopeSource::default();
        let sent = slot(&header, &[("authorization", "Bearer a")], "k");
        assert_eq!(header.slot_of(Some("Bearer a"), "k"), sent);
        assert_eq!(header.slot_of(None, "k"), slot(&header, &[], "k"));
        let closure = ScopeSource::from_fn(|_| Ok("a".into()));
        assert_eq!(closure.slot_of(Some("a"), "k"), slot(&closure, &[], "k"));
        let shared = ScopeSource::shared_by_all("a");
        assert_eq!(shared.slot_of(None, "k"), slot(&shared, &[], "k"));
        let extension = ScopeSource::extension(|name: &String| name.clone());
        let mut parts = parts(&[]);
        parts.extensions.insert("a".to_owned());
        let found = extension.slot(&parts, b"k").unwrap().slot;
        assert_eq!(extension.slot_of(Some("a"), "k"), found);
        assert!(found.to_hex().starts_with(&found.to_string()) && found.to_hex().len() == 64);
    }

    #[test]
    fn contract_3_1_and_3_2_the_scope_parts_callers_and_nothing_else_does() {
        let scope = ScopeSource::default();
        let acme = slot(&scope, &[("authorization", "Bearer acme")], "k");
        assert_ne!(acme, slot(&scope, &[("authorization", "Bearer globex")], "k"));
        assert_eq!(
            acme,
            slot(&scope, &[("authorization", "Bearer acme"), ("x-trace", "1")], "k")
        );
        let own = ScopeSource::header("x-account");
        assert_ne!(
            slot(&own, &[("x-account", "a")], "k"),
            slot(&own, &[("x-account", "b")], "k")
        );
    }

    #[test]
    fn the_tag_is_of_the_scope_and_not_of_the_key() {
        let scope = ScopeSource::default();
        let tag = |headers: &[(&str, &str)], key: &str| scope.slot(&parts(headers), key.as_bytes()).unwrap().tag;
        let acme = tag(&[("authorization", "acme")], "k");
        assert_eq!(acme, tag(&[("authorization", "acme")], "other"));
        assert_ne!(acme, tag(&[("authorization", "globex")], "k"));
        assert_ne!(acme, tag(&[], "k"));
    }

    #[test]
    fn contract_3_3_a_scope_that_cannot_be_determined_is_an_error() {
        #[derive(Clone)]
        struct Tenant(u8);
        let scope = ScopeSource::extension(|tenant: &Tenant| tenant.0.to_string());
        let mut parts = parts(&[]);
        let error = scope.slot(&parts, b"k").unwrap_err().0.to_string();
        assert!(error.contains("Tenant"), "{error}");
        parts.extensions.insert(Tenant(1));
        let one = scope.slot(&parts, b"k").unwrap().slot;
        parts.extensions.insert(Tenant(2));
        assert_ne!(one, scope.slot(&parts, b"k").unwrap().slot);
        assert!(
            ScopeSource::from_fn(|_| Err("no session".into()))
                .slot(&parts, b"k")
                .is_err()
        );
    }

    #[test]
    fn contract_3_2_a_cookie_without_authorization_is_noticed() {
        let overlooks =
            |scope: &ScopeSource, headers: &[(&str, &str)]| scope.slot(&parts(headers), b"k").unwrap().overlooks_cookie;
        let scope = ScopeSource::default();
        assert!(overlooks(&scope, &[("cookie", "sid=1")]));
        assert!(!overlooks(&scope, &[("cookie", "sid=1"), ("authorization", "x")]));
        assert!(!overlooks(&scope, &[]));
        assert!(!overlooks(&ScopeSource::header("cookie"), &[("cookie", "sid=1")]));
        assert!(!overlooks(&ScopeSource::header("x-account"), &[("cookie", "sid=1")]));
    }
}
