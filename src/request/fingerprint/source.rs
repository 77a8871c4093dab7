//! The parts of a request that a fingerprint covers.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use http::request::Parts;

use super::Fingerprint;
use crate::digest::Digest;
use crate::error::{BoxError, ConfigError};
use crate::request::json::Pointer;

pub(super) type HeadFn = dyn Fn(&Parts) -> Result<Vec<u8>, BoxError> + Send + Sync;
pub(super) type BodyFn = dyn Fn(&Parts, &Bytes) -> Result<Vec<u8>, BoxError> + Send + Sync;

/// The parts of a request that must be equal for two requests with the same key to be treated as
/// the same request. The default is [`request`](Self::request).
///
/// The built-in sources do not cover headers, because signatures and trace headers change with each
/// attempt. To cover headers, use a closure. A `multipart/form-data` body is compared by its parts
/// (name, file name, content type, content). Its boundary is not compared, because clients generate
/// a new boundary for each attempt. If a body cannot be read in the way that the source requires,
/// the whole body is compared byte for byte. A malformed value is never treated as absent.
///
/// After a deploy that changed the source, the stored fingerprints cannot be compared with those of
/// new requests ([`Fingerprint::is_same_rule`]). A retry then gets a replay, and is never reported
/// as a different request. Two closures passed to the same method are treated as the same rule.
///
/// ```
/// use tower_idempotency::FingerprintSource;
///
/// // `{"a":1,"b":2}` and `{ "b": 2, "a": 1 }` are the same request.
/// let tolerant = FingerprintSource::canonical_json();
/// // Of the body, only the amount and the currency are compared.
/// let fields = FingerprintSource::json_fields(["/amount", "/currency"]);
/// // Leave out the fields that the client generates anew for each attempt.
/// let stable = FingerprintSource::request().without(["/csrf", "/sent_at"]);
/// # let _ = (tolerant, fields, stable);
/// ```
#[derive(Clone)]
pub struct FingerprintSource {
    pub(super) covers: Covers,
    /// The fields of the body that are left out, sorted.
    pub(super) without: Result<Arc<[Pointer]>, ConfigError>,
    pub(super) rule: [u8; Fingerprint::RULE],
}

#[derive(Clone)]
pub(super) enum Covers {
    Request,
    CanonicalJson,
    JsonFields(Result<Arc<[Pointer]>, ConfigError>),
    Body,
    Closure(Arc<BodyFn>),
    Head(Arc<HeadFn>),
    Nothing,
}

impl Default for FingerprintSource {
    fn default() -> Self {
        Self::request()
    }
}

impl FingerprintSource {
    /// Covers the method, path, query and body. This is the default. In a nested Axum router, the
    /// path is the original path, not the stripped path.
    #[must_use]
    pub fn request() -> Self {
        Self::new(Covers::Request)
    }

    /// Like [`request`](Self::request), but compares the body as canonical JSON. White space,
    /// escapes and the order of members are ignored. `1` and `1.0` differ.
    ///
    /// A body has no canonical form if it is not JSON, contains text that is not Unicode, contains
    /// a member more than once, or is nested deeper than 64 levels. Such a body is compared in
    /// full.
    #[must_use]
    pub fn canonical_json() -> Self {
        Self::new(Covers::CanonicalJson)
    }

    /// Like [`canonical_json`](Self::canonical_json), but covers only the values at these JSON
    /// pointers (RFC 6901) instead of the whole body.
    ///
    /// A body without a canonical form is compared in full. A string that is not a JSON pointer, or
    /// an empty list, is an error when the layer is built.
    #[must_use]
    pub fn json_fields<I>(pointers: I) -> Self
    where
        I: IntoIterator,
        I::Item: AsRef<str>,
    {
        let parsed = parse(
            pointers,
            "`json_fields` needs at least one JSON pointer; use `none()` to cover nothing",
        );
        Self::new(Covers::JsonFields(parsed.map(Into::into)))
    }

    /// Covers only the body. A request with the same key and body to a different path is treated as
    /// the same request.
    #[must_use]
    pub fn body() -> Self {
        Self::new(Covers::Body)
    }

    /// Covers the bytes that the closure computes from the request's head. The body is not covered.
    ///
    /// If the closure fails, the request is compared as with [`request`](Self::request). The error
    /// is not logged, because it may quote the request. A panic propagates to the outer layers
    /// before anything is claimed.
    ///
    /// ```
    /// use tower_idempotency::FingerprintSource;
    ///
    /// // The client's own digest of the content (RFC 9530).
    /// let declared = FingerprintSource::from_head(|parts| {
    ///     let digest = parts.headers.get("content-digest").ok_or("no digest")?;
    ///     Ok(digest.as_bytes().to_vec())
    /// });
    /// # let _ = declared;
    /// ```
    #[must_use]
    pub fn from_head<F>(cover: F) -> Self
    where
        F: Fn(&Parts) -> Result<Vec<u8>, BoxError> + Send + Sync + 'static,
    {
        Self::new(Covers::Head(Arc::new(cover)))
    }

    /// Covers the bytes that the closure computes from the head and the body.
    ///
    /// If the closure fails, the request is compared as with [`request`](Self::request). The error
    /// is not logged, because it may quote the request. A panic propagates to the outer layers
    /// before anything is claimed.
    ///
    /// ```
    /// use tower_idempotency::FingerprintSource;
    ///
    /// #[derive(serde::Deserialize)]
    /// struct Order {
    ///     reference: String,
    /// }
    ///
    /// let by_reference = FingerprintSource::from_fn(|_parts, body| {
    ///     let order: Order = serde_json::from_slice(body)?;
    ///     Ok(order.reference.into_bytes())
    /// });
    /// # let _ = by_reference;
    /// ```
    #[must_use]
    pub fn from_fn<F>(cover: F) -> Self
    where
        F: Fn(&Parts, &Bytes) -> Result<Vec<u8>, BoxError> + Send + Sync + 'static,
    {
        Self::new(Covers::Closure(Arc::new(cover)))
    }

    /// Covers nothing. Only the key is compared, and no request is refused with `key-reused`. Use
    /// this source for webhooks, whose sender may change a timestamp in the body when it repeats a
    /// delivery.
    #[must_use]
    pub fn none() -> Self {
        Self::new(Covers::Nothing)
    }

    /// Leaves out fields in the body, such as a CSRF token or a timestamp. This method is valid
    /// only with [`request`](Self::request) and [`canonical_json`](Self::canonical_json).
    ///
    /// A field is named by a JSON pointer (RFC 6901), whatever the type of the body:
    ///
    /// | `Content-Type` | `/csrf` names | how the rest is compared |
    /// |---|---|---|
    /// | JSON, a `+json` type, or none | the member `csrf`; `/items/0/at` names an inner value | as canonical JSON |
    /// | `application/x-www-form-urlencoded` | every field named `csrf` | field by field, in order |
    /// | `multipart/form-data` | every part named `csrf` | part by part, in order |
    ///
    /// [`canonical_json`](Self::canonical_json) also reads JSON in a body with any other
    /// `Content-Type`. Whether a request contains an ignored field at all makes no difference. A
    /// pointer with several steps does not name any field in a form. Any other body, and any body
    /// that cannot be read, is compared in full.
    ///
    /// An empty list, a string that is not a JSON pointer, or a different source is an error when
    /// the layer is built.
    ///
    /// ```
    /// use tower_idempotency::{FingerprintSource, IdempotencyLayer, MemoryStore};
    ///
    /// let layer = IdempotencyLayer::builder(MemoryStore::new())
    ///     .fingerprint(FingerprintSource::request().without(["/csrf", "/sent_at"]))
    ///     .build()?;
    /// # let _ = layer;
    /// # Ok::<(), tower_idempotency::ConfigError>(())
    /// ```
    #[must_use]
    pub fn without<I>(mut self, fields: I) -> Self
    where
        I: IntoIterator,
        I::Item: AsRef<str>,
    {
        let parsed = match self.covers {
            Covers::Request | Covers::CanonicalJson => parse(fields, "`without` needs at least one field"),
            _ => Err(ConfigError::new(
                "fingerprint",
                "`without` works only with `request()` and `canonical_json()`; the other sources already define what they cover",
            )),
        };
        self.without = self.without.and_then(|before| {
            let mut fields = parsed?;
            fields.extend_from_slice(&before);
            fields.sort_unstable();
            fields.dedup();
            Ok(fields.into())
        });
        self.rule = rule(&self.covers, &self.without);
        self
    }

    fn new(covers: Covers) -> Self {
        let without = Ok(Arc::default());
        Self {
            rule: rule(&covers, &without),
            covers,
            without,
        }
    }

    pub(crate) fn validate(&self) -> Result<(), ConfigError> {
        match (&self.covers, &self.without) {
            (Covers::JsonFields(Err(error)), _) | (_, Err(error)) => Err(error.clone()),
            _ => Ok(()),
        }
    }
}

fn parse<I>(pointers: I, if_none: &'static str) -> Result<Vec<Pointer>, ConfigError>
where
    I: IntoIterator,
    I::Item: AsRef<str>,
{
    let parse = |pointer: I::Item| Pointer::parse("fingerprint", pointer.as_ref());
    let parsed: Vec<_> = pointers.into_iter().map(parse).collect::<Result<_, _>>()?;
    match parsed.is_empty() {
        true => Err(ConfigError::new("fingerprint", if_none)),
        false => Ok(parsed),
    }
}

impl fmt::Debug for FingerprintSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match &self.covers {
            Covers::Request => "FingerprintSource::request()",
            Covers::CanonicalJson => "FingerprintSource::canonical_json()",
            Covers::JsonFields(_) => "FingerprintSource::json_fields(..)",
            Covers::Body => "FingerprintSource::body()",
            Covers::Closure(_) => "FingerprintSource::from_fn(..)",
            Covers::Head(_) => "FingerprintSource::from_head(..)",
            Covers::Nothing => "FingerprintSource::none()",
        })?;
        match self.without.as_deref() {
            Ok([]) => Ok(()),
            _ => f.write_str(".without(..)"),
        }
    }
}

/// Returns the tag of a rule: four bits for the source, so that no two sources are confused, and
/// twelve bits of a digest of its parameters. Stored fingerprints depend on this tag. If you change
/// the parts that a source covers, use a new domain, both here and for the fingerprint's digest.
fn rule(covers: &Covers, without: &Result<Arc<[Pointer]>, ConfigError>) -> [u8; Fingerprint::RULE] {
    let (source, counting) = match covers {
        Covers::Request => (1, None),
        Covers::CanonicalJson => (2, None),
        Covers::JsonFields(pointers) => (3, pointers.as_deref().ok()),
        Covers::Body => (4, None),
        Covers::Closure(_) => (5, None),
        Covers::Head(_) => (6, None),
        Covers::Nothing => (7, None),
    };
    let mut digest = Digest::new(b"ti.rule2");
    for (tag, pointers) in [(1, counting), (2, without.as_deref().ok())] {
        for pointer in pointers.unwrap_or_default() {
            digest.field(tag, b"");
            pointer
                .tokens()
                .iter()
                .for_each(|token| digest.field(0, token.as_bytes()));
        }
    }
    let [first, second, ..] = digest.finish();
    [source << 4 | first >> 4, second]
}
