//! The scope: whose key it is (contract, section 3).

use std::borrow::Cow;
use std::fmt;
use std::hash::{BuildHasher, DefaultHasher, Hasher, RandomState};
use std::sync::{Arc, LazyLock};

use http::header;
use http::request::Parts;
use http::{Extensions, HeaderName};
use smallvec::{SmallVec, smallvec};

use super::authorization;
use super::header_name;
use super::slot::{ScopeTag, Slot, SlotError};
use super::target::original_uri;
use crate::digest::Digest;
use crate::error::{BoxError, ConfigError};

type ExtensionFn = dyn Fn(&Extensions) -> Option<String> + Send + Sync;
type HeadFn = dyn Fn(&Parts) -> Result<String, BoxError> + Send + Sync;

/// Whose key it is. The same key under two scopes names two unrelated operations.
///
/// The default is the `Authorization` header's value, which separates callers without any set-up.
/// The scheme is compared case-insensitively. Where tokens rotate or signatures change with every
/// request (AWS SigV4, Digest, OAuth 1.0), take the user or tenant that your authentication layer
/// found instead: a retry with a refreshed token is then still the same caller's.
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
pub struct ScopeSource(Source);

#[derive(Clone)]
enum Source {
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

// The tags of the fields; part of what stored slots mean, so never to be changed.
const KEY: u8 = 0;
const HEADER: u8 = 1;
const EXTENSION: u8 = 2;
const CLOSURE: u8 = 3;
const SHARED: u8 = 4;
const HOST: u8 = 5;
/// Before the fields of each source that is combined with others.
const PART: u8 = 6;
const NAMESPACE: u8 = 7;
const ENDPOINT: u8 = 8;

/// A key in its scope.
#[derive(Debug)]
pub(crate) struct Scoped {
    pub(crate) slot: Slot,
    pub(crate) tag: ScopeTag,
    pub(crate) doubts: Doubts,
}

/// What suggests that the scope does not tell callers apart, or does not recognise one.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Doubts {
    /// The request fell into the anonymous scope although a cookie says who sent it.
    pub(crate) overlooks_cookie: bool,
    /// The scope has credentials of this scheme, which are others with every request.
    pub(crate) changing_scheme: Option<&'static str>,
}

/// The scope cannot be determined: `500` problem `scope-unavailable`.
#[derive(Debug)]
pub(crate) struct ScopeUnavailable(pub(crate) BoxError);

impl ScopeSource {
    /// The value of a header. Requests without it share one anonymous scope.
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
    /// Combine it with a scope that separates callers ([`and`](Self::and)), for one service under
    /// many names.
    #[must_use]
    pub fn host() -> Self {
        Self(Source::Host)
    }

    /// The endpoint: method and path, without the query. In a nested Axum router it is the original path.
    ///
    /// Combine it with another scope ([`and`](Self::and)) where one key may name an operation at each of several
    /// endpoints, as the id of an event does that is sent to two of them. For
    /// [`slot`](crate::IdempotencyLayer::slot) its value is both with a space between, as in `POST /hooks/billing`.
    #[must_use]
    pub fn endpoint() -> Self {
        Self(Source::Endpoint)
    }

    /// A part of a request extension that a layer further out has put there: a user or tenant id.
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

    /// What the closure makes of the request's head.
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

    /// One scope of that name for all requests, as for webhooks of one sender. **Every caller can
    /// then read every other caller's stored answers by knowing the key.**
    #[must_use]
    pub fn shared_by_all(name: &str) -> Self {
        Self(Source::Shared(name.into()))
    }

    /// This scope *and* another one: two requests are in one scope only if they agree on both.
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

    fn sources(&self) -> &[Source] {
        match &self.0 {
            Source::All(sources) => sources,
            source => std::slice::from_ref(source),
        }
    }
}

/// The values of a scope, one for each source that is combined in it, in their order. `None` is a
/// source that finds nothing.
///
/// It is made of an `Option<&str>` for a simple scope, and of an array of them for a combined one:
///
/// ```
/// use tower_idempotency::{IdempotencyLayer, MemoryStore, ScopeSource};
///
/// let simple = IdempotencyLayer::new(MemoryStore::new());
/// let anonymous = simple.slot(None, "order-17")?;
/// let acme = simple.slot(Some("Bearer sk_acme"), "order-17")?;
/// assert_ne!(anonymous, acme);
///
/// let combined = IdempotencyLayer::builder(MemoryStore::new())
///     .scope(ScopeSource::default().and(ScopeSource::header("stripe-account")))
///     .build()?;
/// let platform = combined.slot([Some("Bearer sk_acme"), None], "order-17")?;
/// let account = combined.slot(["Bearer sk_acme", "acct_1"], "order-17")?;
/// assert_ne!(platform, account);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone)]
pub struct ScopeValues<'a>(SmallVec<[Option<&'a str>; 2]>);

impl<'a> From<Option<&'a str>> for ScopeValues<'a> {
    fn from(value: Option<&'a str>) -> Self {
        Self(smallvec![value])
    }
}

impl<'a, const N: usize> From<[Option<&'a str>; N]> for ScopeValues<'a> {
    fn from(values: [Option<&'a str>; N]) -> Self {
        Self(SmallVec::from_slice(&values))
    }
}

impl<'a, const N: usize> From<[&'a str; N]> for ScopeValues<'a> {
    fn from(values: [&'a str; N]) -> Self {
        Self(values.into_iter().map(Some).collect())
    }
}

impl fmt::Debug for ScopeValues<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Not the values: they are credentials.
        write!(f, "ScopeValues({})", self.0.len())
    }
}

/// The scope, within the application's namespace.
#[derive(Debug, Clone, Default)]
pub(crate) struct ScopeRules {
    pub(crate) namespace: Option<Arc<str>>,
    pub(crate) source: ScopeSource,
}

impl ScopeRules {
    pub(crate) fn validate(&self) -> Result<(), ConfigError> {
        if self.namespace.as_deref() == Some("") {
            return Err(ConfigError::new(
                "namespace",
                "it is empty; name the application, or leave the option out",
            ));
        }
        self.source.sources().iter().try_for_each(|source| match source {
            Source::Header(Err(error)) => Err(error.clone()),
            _ => Ok(()),
        })
    }

    /// The slot of a key whose scope has these values.
    pub(crate) fn slot_of(&self, values: &ScopeValues<'_>, key: &[u8]) -> Result<Slot, SlotError> {
        let sources = self.source.sources();
        if sources.len() != values.0.len() {
            return Err(SlotError::ScopeValues {
                expected: sources.len(),
                given: values.0.len(),
            });
        }
        let mut digest = self.digest();
        for (source, value) in sources.iter().zip(&values.0) {
            digest.begin(source, sources.len());
            source.write_value(*value, &mut digest);
        }
        Ok(digest.finish(key).0)
    }

    /// The slot of a key in a request's scope.
    pub(crate) fn slot(&self, parts: &Parts, key: &[u8]) -> Result<Scoped, ScopeUnavailable> {
        let mut digest = self.digest();
        let sources = self.source.sources();
        let mut doubts = Doubts::default();
        for source in sources {
            digest.begin(source, sources.len());
            source.write(parts, &mut digest, &mut doubts)?;
        }
        // An identity that the application found makes up for a missing `Authorization`.
        if doubts.overlooks_cookie {
            let is_identity = |source: &Source| matches!(source, Source::Extension(..) | Source::Head(_));
            doubts.overlooks_cookie = !sources.iter().any(is_identity);
        }
        let (slot, tag) = digest.finish(key);
        Ok(Scoped { slot, tag, doubts })
    }

    fn digest(&self) -> ScopeDigest {
        let mut digest = ScopeDigest::new();
        if let Some(namespace) = &self.namespace {
            digest.field(NAMESPACE, namespace.as_bytes());
        }
        digest
    }
}

impl Source {
    /// The fields that this source finds in a request.
    fn write(&self, parts: &Parts, digest: &mut ScopeDigest, doubts: &mut Doubts) -> Result<(), ScopeUnavailable> {
        match self {
            Self::Header(Err(error)) => return Err(ScopeUnavailable(error.clone().into())),
            Self::Header(Ok(name)) => {
                let mut lines = parts.headers.get_all(name).iter().peekable();
                if *name == header::AUTHORIZATION {
                    match lines.peek() {
                        Some(line) => doubts.changing_scheme = authorization::changing_scheme(line.as_bytes()),
                        None => doubts.overlooks_cookie = parts.headers.contains_key(header::COOKIE),
                    }
                }
                // All lines count: whichever of two the application believes, it is in the scope.
                for line in lines {
                    digest.field(HEADER, &comparable(name, line.as_bytes()));
                }
            }
            Self::Host => match parts.uri.authority() {
                Some(authority) => {
                    let host = authority.as_str();
                    digest.host(host.rsplit_once('@').map_or(host, |(_, host)| host).as_bytes());
                }
                None => parts
                    .headers
                    .get_all(header::HOST)
                    .iter()
                    .for_each(|line| digest.host(line.as_bytes())),
            },
            Self::Endpoint => {
                let endpoint = format!("{} {}", parts.method, original_uri(parts).path());
                digest.field(ENDPOINT, endpoint.as_bytes());
            }
            Self::Extension(name, read) => {
                let scope = read(&parts.extensions).ok_or_else(|| {
                    let missing = format!(
                        "the request has no extension `{name}`: is the layer that puts it there outside the idempotency layer?"
                    );
                    ScopeUnavailable(missing.into())
                })?;
                digest.field(EXTENSION, scope.as_bytes());
            }
            Self::Head(scope) => {
                let scope = scope(parts).map_err(ScopeUnavailable)?;
                digest.field(CLOSURE, scope.as_bytes());
            }
            Self::Shared(name) => digest.field(SHARED, name.as_bytes()),
            // Flattened by `and`.
            Self::All(_) => {}
        }
        Ok(())
    }

    /// The same field, of a value that somebody says this source has found.
    fn write_value(&self, value: Option<&str>, digest: &mut ScopeDigest) {
        match (self, value) {
            (Self::Shared(name), _) => digest.field(SHARED, name.as_bytes()),
            (_, None) => {}
            (Self::Header(Ok(name)), Some(value)) => digest.field(HEADER, &comparable(name, value.as_bytes())),
            (Self::Host, Some(value)) => digest.host(value.as_bytes()),
            (Self::Endpoint, Some(value)) => digest.field(ENDPOINT, value.as_bytes()),
            (Self::Extension(..), Some(value)) => digest.field(EXTENSION, value.as_bytes()),
            (Self::Head(_), Some(value)) => digest.field(CLOSURE, value.as_bytes()),
            // An invalid name was reported when the layer was built.
            (Self::Header(Err(_)) | Self::All(_), Some(_)) => {}
        }
    }
}

/// A header's value in the spelling that is compared.
fn comparable<'v>(name: &HeaderName, value: &'v [u8]) -> Cow<'v, [u8]> {
    match *name == header::AUTHORIZATION {
        true => authorization::with_scheme_in_one_case(value),
        false => Cow::Borrowed(value),
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

    /// Where the fields of the next source begin. A simple scope has no such mark: its slots are
    /// older than combined ones.
    fn begin(&mut self, source: &Source, of: usize) {
        if of > 1 {
            let name = match source {
                Source::Header(Ok(name)) => name.as_str(),
                _ => "",
            };
            self.field(PART, name.as_bytes());
        }
    }

    fn host(&mut self, host: &[u8]) {
        self.field(HOST, &host.to_ascii_lowercase());
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

    fn rules(source: &ScopeSource) -> ScopeRules {
        ScopeRules {
            namespace: None,
            source: source.clone(),
        }
    }

    fn scoped(source: &ScopeSource, parts: &Parts, key: &str) -> Scoped {
        rules(source).slot(parts, key.as_bytes()).unwrap()
    }

    fn slot(source: &ScopeSource, headers: &[(&str, &str)], key: &str) -> Slot {
        scoped(source, &parts(headers), key).slot
    }

    fn slot_of<'a>(source: &ScopeSource, values: impl Into<ScopeValues<'a>>, key: &str) -> Slot {
        rules(source).slot_of(&values.into(), key.as_bytes()).unwrap()
    }

    #[test]
    fn golden_slots() {
        // Stores hold operations under these names.
        let hex = |source: &ScopeSource, headers: &[(&str, &str)]| slot(source, headers, "k").to_hex();
        let by_header = hex(&ScopeSource::default(), &[("authorization", "Bearer a")]);
        assert_eq!(
            by_header,
            "82bab9af868bbe77d288e3dbaf5b62dd6c0d895419bf90ad05c99abe57677e68"
        );
        assert_eq!(
            hex(&ScopeSource::default(), &[]),
            "1bcd266c17b265b036825f7f594b691531ef23849156a473f5f96aca4094f95b"
        );
        assert_eq!(
            hex(&ScopeSource::shared_by_all("a"), &[]),
            "8893fd7d8e3e69275ec581174c627462d410f6ef278f545f6e932c3258f6d1b0"
        );
        let combined = ScopeSource::default().and(ScopeSource::host());
        let headers = [("authorization", "Bearer a"), ("host", "example.com")];
        assert_eq!(
            hex(&combined, &headers),
            "e63468f8220fa2a66b8119d8ae3e6f343d0f58a9f83801b9e811b18167a0b226"
        );
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
            slot(&ScopeSource::from_head(|_| Ok("a".into())), &[], "k"),
        ];
        let distinct: std::collections::HashSet<_> = pairs.iter().collect();
        assert_eq!(distinct.len(), pairs.len());
    }

    #[test]
    fn the_slot_of_a_scope_and_key_is_the_one_of_their_requests() {
        let header = ScopeSource::default();
        let sent = slot(&header, &[("authorization", "Bearer a")], "k");
        assert_eq!(slot_of(&header, Some("Bearer a"), "k"), sent);
        assert_eq!(slot_of(&header, None, "k"), slot(&header, &[], "k"));
        let closure = ScopeSource::from_head(|_| Ok("a".into()));
        assert_eq!(slot_of(&closure, Some("a"), "k"), slot(&closure, &[], "k"));
        let shared = ScopeSource::shared_by_all("a");
        assert_eq!(slot_of(&shared, None, "k"), slot(&shared, &[], "k"));
        let extension = ScopeSource::extension(|name: &String| name.clone());
        let mut parts = parts(&[]);
        parts.extensions.insert("a".to_owned());
        let found = scoped(&extension, &parts, "k").slot;
        assert_eq!(slot_of(&extension, Some("a"), "k"), found);
        assert!(found.to_hex().starts_with(&found.to_string()) && found.to_hex().len() == 64);
    }

    #[test]
    fn contract_3_1_and_3_2_the_scope_separates_callers_and_nothing_else_does() {
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
        let tag = |headers: &[(&str, &str)], key: &str| scoped(&scope, &parts(headers), key).tag;
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
        let scope = rules(&scope);
        let error = scope.slot(&parts, b"k").unwrap_err().0.to_string();
        assert!(error.contains("Tenant"), "{error}");
        parts.extensions.insert(Tenant(1));
        let one = scope.slot(&parts, b"k").unwrap().slot;
        parts.extensions.insert(Tenant(2));
        assert_ne!(one, scope.slot(&parts, b"k").unwrap().slot);
        let refusing = rules(&ScopeSource::from_head(|_| Err("no session".into())));
        assert!(refusing.slot(&parts, b"k").is_err());
    }

    #[test]
    fn contract_3_2_a_cookie_without_authorization_is_noticed() {
        let overlooks =
            |scope: &ScopeSource, headers: &[(&str, &str)]| scoped(scope, &parts(headers), "k").doubts.overlooks_cookie;
        let scope = ScopeSource::default();
        assert!(overlooks(&scope, &[("cookie", "sid=1")]));
        assert!(!overlooks(&scope, &[("cookie", "sid=1"), ("authorization", "x")]));
        assert!(!overlooks(&scope, &[]));
        assert!(!overlooks(&ScopeSource::header("cookie"), &[("cookie", "sid=1")]));
        assert!(!overlooks(&ScopeSource::header("x-account"), &[("cookie", "sid=1")]));
        let with_host = ScopeSource::default().and(ScopeSource::host());
        assert!(overlooks(&with_host, &[("cookie", "sid=1"), ("host", "a")]));
        let with_user = ScopeSource::default().and(ScopeSource::from_head(|_| Ok("user".into())));
        assert!(!overlooks(&with_user, &[("cookie", "sid=1")]));
    }

    #[test]
    fn contract_3_2_combined_scopes_are_not_confusable() {
        let header = ScopeSource::header;
        let (auth, account) = (ScopeSource::default(), header("stripe-account"));
        let two = auth.clone().and(account.clone());
        let swapped = account.clone().and(auth.clone());
        let other = auth.clone().and(header("x-account"));
        let three = two.clone().and(ScopeSource::host());
        let of = |source: &ScopeSource, headers: &[(&str, &str)]| slot(source, headers, "k");
        let (a, b) = (("authorization", "A"), ("stripe-account", "B"));
        let slots = [
            of(&two, &[]),
            of(&two, &[a]),
            of(&two, &[b]),
            of(&two, &[a, b]),
            of(&two, &[a, a]),
            of(&two, &[("authorization", "AB")]),
            of(&two, &[a, ("stripe-account", "")]),
            of(&swapped, &[a, b]),
            of(&other, &[a, ("x-account", "B")]),
            of(&other, &[a]),
            of(&three, &[a, b]),
            of(&three, &[a, b, ("host", "B")]),
            of(&three, &[a, ("host", "B")]),
            of(&auth, &[a]),
            of(&auth, &[a, ("authorization", "B")]),
            of(&auth, &[]),
            of(&account, &[b]),
            of(&ScopeSource::shared_by_all("A").and(account.clone()), &[b]),
            of(&ScopeSource::from_head(|_| Ok("A".into())).and(account.clone()), &[b]),
        ];
        let distinct: std::collections::HashSet<_> = slots.iter().collect();
        assert_eq!(distinct.len(), slots.len());
        // How they were put together does not count.
        let right = auth.and(account.and(ScopeSource::host()));
        assert_eq!(of(&right, &[a, b]), of(&three, &[a, b]));
        assert_eq!(
            format!("{two:?}"),
            "ScopeSource::header(\"authorization\") and ScopeSource::header(\"stripe-account\")"
        );
    }

    #[test]
    fn contract_3_2_the_slot_of_combined_values_is_the_one_of_their_requests() {
        let scope = ScopeSource::default()
            .and(ScopeSource::host())
            .and(ScopeSource::shared_by_all("s"));
        let sent = slot(&scope, &[("authorization", "bearer a"), ("host", "A.Example:80")], "k");
        assert_eq!(
            slot_of(&scope, [Some("Bearer a"), Some("a.example:80"), None], "k"),
            sent
        );
        assert_eq!(slot_of(&scope, ["BEARER a", "a.EXAMPLE:80", "s"], "k"), sent);
        let anonymous = slot(&scope, &[("host", "a")], "k");
        assert_eq!(slot_of(&scope, [None, Some("a"), None], "k"), anonymous);
        for wrong in [ScopeValues::from(Some("Bearer a")), ["a", "b"].into(), ["a"; 4].into()] {
            let error = rules(&scope).slot_of(&wrong, b"k").unwrap_err().to_string();
            assert!(error.contains('3'), "{error}");
        }
    }

    #[test]
    fn contract_3_2_the_host_is_the_authority_or_the_header() {
        let scope = ScopeSource::host();
        let at = |uri: &str, host: Option<&str>| {
            let mut parts = parts(&[]);
            parts.uri = uri.parse().unwrap();
            if let Some(host) = host {
                parts.headers.insert("host", host.parse().unwrap());
            }
            scoped(&scope, &parts, "k").slot
        };
        let example = at("/", Some("example.com"));
        assert_eq!(at("/", Some("EXAMPLE.com")), example);
        assert_eq!(at("https://Example.Com/x", None), example);
        assert_eq!(at("https://user@example.com/x", Some("else")), example);
        for other in [
            at("/", None),
            at("/", Some("example.com:443")),
            at("/", Some("example.org")),
        ] {
            assert_ne!(other, example);
        }
    }

    #[test]
    fn contract_3_5_a_namespace_is_a_part_of_every_slot() {
        let within = |namespace: Option<&str>, source: ScopeSource| ScopeRules {
            namespace: namespace.map(Into::into),
            source,
        };
        let by = parts(&[("authorization", "a")]);
        for source in [
            ScopeSource::default(),
            ScopeSource::shared_by_all("a"),
            ScopeSource::default().and(ScopeSource::host()),
        ] {
            let slots = [None, Some("billing"), Some("gateway"), Some("a")]
                .map(|namespace| within(namespace, source.clone()).slot(&by, b"k").unwrap().slot);
            let distinct: std::collections::HashSet<_> = slots.iter().collect();
            assert_eq!(distinct.len(), 4);
        }
        let billing = within(Some("billing"), ScopeSource::default());
        let sent = billing.slot(&by, b"k").unwrap().slot;
        assert_eq!(billing.slot_of(&Some("a").into(), b"k").unwrap(), sent);
        assert_eq!(
            within(Some(""), ScopeSource::default())
                .validate()
                .unwrap_err()
                .option(),
            "namespace"
        );
    }
}
