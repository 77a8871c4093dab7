//! What a fingerprint covers.

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

/// What makes two requests with one key the same. The default is [`request`](Self::request).
///
/// Headers never count: signatures and traces change with each attempt. A `multipart/form-data`
/// body counts by its parts (name, file name, content type, content), not by its boundary, which
/// clients make anew for each attempt. What cannot be read as its source needs it counts whole, by
/// its bytes: nothing is taken as absent because it is malformed.
///
/// After a deploy that changed the source, the stored fingerprints cannot be compared with those of
/// new requests ([`Fingerprint::is_same_rule`]): a retry is replayed, and never reported as another
/// request. Two closures count as one rule.
///
/// ```
/// use tower_idempotency::FingerprintSource;
///
/// // `{"a":1,"b":2}` and `{ "b": 2, "a": 1 }` are the same request.
/// let tolerant = FingerprintSource::canonical_json();
/// // Only the money counts.
/// let fields = FingerprintSource::json_fields(["/amount", "/currency"]);
/// // All but what the client makes anew for each attempt.
/// let stable = FingerprintSource::request().without(["/csrf", "/sent_at"]);
/// # let _ = (tolerant, fields, stable);
/// ```
#[derive(Clone)]
pub struct FingerprintSource {
    pub(super) covers: Covers,
    /// What of the body does not count; sorted.
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
    /// Method, path, query and body: the default. In a nested Axum router the path is the original
    /// one, not the stripped one.
    #[must_use]
    pub fn request() -> Self {
        Self::new(Covers::Request)
    }

    /// As [`request`](Self::request), with the body as canonical JSON: order of members, white
    /// space and escapes do not count; `1` and `1.0` differ.
    ///
    /// A body without a canonical form (not JSON, text that is not Unicode, a member more than
    /// once, nested deeper than 64) counts whole.
    #[must_use]
    pub fn canonical_json() -> Self {
        Self::new(Covers::CanonicalJson)
    }

    /// As [`canonical_json`](Self::canonical_json), but of the body only the values at these JSON
    /// pointers (RFC 6901) count.
    ///
    /// A body without a canonical form counts whole. A text that is not a JSON pointer, or no
    /// pointer at all, is an error when the layer is built.
    #[must_use]
    pub fn json_fields<I>(pointers: I) -> Self
    where
        I: IntoIterator,
        I::Item: AsRef<str>,
    {
        let parsed = parse(
            pointers,
            "json_fields needs at least one pointer; use none() to cover nothing",
        );
        Self::new(Covers::JsonFields(parsed.map(Into::into)))
    }

    /// The body alone: the same key and body on another path is the same request.
    #[must_use]
    pub fn body() -> Self {
        Self::new(Covers::Body)
    }

    /// The bytes that the closure makes of the request's head; the body does not count.
    ///
    /// If it fails, the request counts as under [`request`](Self::request). The error is not
    /// logged: it may quote the request. A panic goes on to the outer layers before anything is
    /// claimed.
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

    /// The bytes that the closure makes of the head and the body.
    ///
    /// If it fails, the request counts as under [`request`](Self::request). The error is not
    /// logged: it may quote the request. A panic goes on to the outer layers before anything is
    /// claimed.
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

    /// Nothing: the key alone counts, and `key-reused` is never answered. For webhooks, whose
    /// sender may change a time stamp in the body of a later delivery.
    #[must_use]
    pub fn none() -> Self {
        Self::new(Covers::Nothing)
    }

    /// Leaves out fields of the body that do not count, such as a CSRF token or a time stamp. For
    /// [`request`](Self::request) and [`canonical_json`](Self::canonical_json).
    ///
    /// A field is a JSON pointer (RFC 6901), whatever the body is:
    ///
    /// | `Content-Type` | `/csrf` names | how the rest is compared |
    /// |---|---|---|
    /// | JSON, a `+json` type, or none | the member `csrf`; `/items/0/at` an inner value | as canonical JSON |
    /// | `application/x-www-form-urlencoded` | every field `csrf` | field by field, in order |
    /// | `multipart/form-data` | every part `csrf` | part by part, in order |
    ///
    /// [`canonical_json`](Self::canonical_json) reads JSON under any other type as well. Whether a
    /// field is there does not count either. A pointer of several steps names nothing in a form.
    /// Any other body, and one that cannot be read, counts whole.
    ///
    /// No pointer, a text that is not one, or another source are errors when the layer is built.
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
            Covers::Request | Covers::CanonicalJson => parse(fields, "without needs at least one field"),
            _ => Err(ConfigError::new(
                "fingerprint",
                "`without` works on `request()` and `canonical_json()`: the others name what counts",
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

/// The tag of a rule: four bits for the source, so that no two sources are confused, and twelve of
/// a digest of its parameters. Part of what stored fingerprints mean: a source that comes to cover
/// something else takes another domain, here and for the fingerprint.
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
