//! The fingerprint: what makes two requests with one key the same request (contract, section 5).

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use http::request::Parts;

use crate::digest::Digest;
use crate::error::ConfigError;
use crate::request::json::{self, Pointer};

/// 128 bits of a SHA-256 over what the fingerprint covers.
///
/// A client that found two requests with one fingerprint would only get its own first answer for
/// the second, so that half a SHA-256 is ample; slots, which part tenants, keep the whole.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Fingerprint([u8; Fingerprint::LEN]);

impl Fingerprint {
    /// Bytes of a fingerprint.
    pub const LEN: usize = 16;

    /// A fingerprint read back from a store.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; Self::LEN]) -> Self {
        Self(bytes)
    }

    /// The bytes that a store keeps.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8; Self::LEN] {
        &self.0
    }

    /// Whether both fingerprints were made under the same rule. The first two bytes name the rule, the
    /// others are the digest. Fingerprints of different rules cannot be compared.
    #[must_use]
    pub fn is_same_rule(&self, other: &Self) -> bool {
        self.0[..2] == other.0[..2]
    }

    /// Whether the requests differ: both fingerprints are of the same rule, and their digests are not
    /// equal.
    #[must_use]
    pub fn conflicts_with(&self, other: &Self) -> bool {
        self.is_same_rule(other) && self != other
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // A digest of a short body could be found by trying; a few bytes are enough to compare by eye.
        write!(f, "Fingerprint({:02x}{:02x}..)", self.0[0], self.0[1])
    }
}

type FingerprintFn = dyn Fn(&Parts, &Bytes) -> Vec<u8> + Send + Sync;

/// What a fingerprint covers. Headers never count: signatures and traces change with each attempt.
///
/// ```
/// use tower_idempotency::FingerprintSource;
///
/// // `{"a":1,"b":2}` and `{ "b": 2, "a": 1 }` are the same request.
/// let tolerant = FingerprintSource::canonical_json();
/// // Only the money counts.
/// let fields = FingerprintSource::json_fields(["/amount", "/currency"]);
/// # let _ = (tolerant, fields);
/// ```
#[derive(Clone, Default)]
pub struct FingerprintSource(Covers);

#[derive(Clone, Default)]
enum Covers {
    #[default]
    Request,
    CanonicalJson,
    JsonFields(Result<Arc<[Pointer]>, ConfigError>),
    Body,
    Closure(Arc<FingerprintFn>),
    Nothing,
}

impl FingerprintSource {
    /// Method, path, query and the body's bytes: the default. In a nested Axum router the path is
    /// the original one, not the stripped one.
    #[must_use]
    pub fn request() -> Self {
        Self(Covers::Request)
    }

    /// As [`request`](Self::request), with the body as canonical JSON: order of members, white
    /// space and escapes do not count; `1` and `1.0` differ. A body without a canonical form (not
    /// JSON, a member twice, nested deeper than 64) counts by its bytes.
    #[must_use]
    pub fn canonical_json() -> Self {
        Self(Covers::CanonicalJson)
    }

    /// As [`canonical_json`](Self::canonical_json), but of the body only the values at these JSON
    /// pointers (RFC 6901) count. A pointer that is none, or no pointer at all, is an error when
    /// the layer is built.
    #[must_use]
    pub fn json_fields<I>(pointers: I) -> Self
    where
        I: IntoIterator,
        I::Item: AsRef<str>,
    {
        let parsed = pointers
            .into_iter()
            .map(|pointer| Pointer::parse("fingerprint", pointer.as_ref()))
            .collect::<Result<Arc<[_]>, _>>()
            .and_then(|pointers| match pointers.len() {
                0 => Err(ConfigError::new(
                    "fingerprint",
                    "json_fields needs at least one pointer; use none() to cover nothing",
                )),
                _ => Ok(pointers),
            });
        Self(Covers::JsonFields(parsed))
    }

    /// The body's bytes alone: the same key and body on another path is the same request.
    #[must_use]
    pub fn body() -> Self {
        Self(Covers::Body)
    }

    /// Whatever bytes the closure returns. A panic of the closure goes on to the outer layers
    /// before anything is claimed.
    #[must_use]
    pub fn from_fn<F>(cover: F) -> Self
    where
        F: Fn(&Parts, &Bytes) -> Vec<u8> + Send + Sync + 'static,
    {
        Self(Covers::Closure(Arc::new(cover)))
    }

    /// Nothing: the key alone counts, and `key-reused` is never answered. For webhooks, whose
    /// sender may change a time stamp in the body of a later delivery.
    #[must_use]
    pub fn none() -> Self {
        Self(Covers::Nothing)
    }

    pub(crate) fn validate(&self) -> Result<(), ConfigError> {
        match &self.0 {
            Covers::JsonFields(Err(error)) => Err(error.clone()),
            _ => Ok(()),
        }
    }

    pub(crate) fn of(&self, parts: &Parts, body: &Bytes) -> Fingerprint {
        let mut digest = Digest::new(b"ti.prnt1");
        match &self.0 {
            Covers::Request => {
                target(&mut digest, parts);
                digest.field(RAW, body);
            }
            Covers::CanonicalJson => {
                target(&mut digest, parts);
                canonical_or_raw(&mut digest, body);
            }
            Covers::JsonFields(pointers) => {
                target(&mut digest, parts);
                if !json::is_json(body) {
                    digest.field(RAW, body);
                }
                for pointer in pointers.iter().flat_map(|pointers| pointers.iter()) {
                    match pointer.find(body) {
                        Ok(Some(value)) => canonical_or_raw(&mut digest, value.get().as_bytes()),
                        Ok(None) => digest.field(ABSENT, b""),
                        Err(_) => {
                            digest.field(AMBIGUOUS, body);
                        }
                    }
                }
            }
            Covers::Body => digest.field(RAW, body),
            Covers::Closure(cover) => digest.field(RAW, &cover(parts, body)),
            Covers::Nothing => {}
        }
        let [print @ .., _, _, _, _, _, _, _, _, _, _, _, _, _, _, _, _] = digest.finish();
        Fingerprint(print)
    }
}

impl fmt::Debug for FingerprintSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match &self.0 {
            Covers::Request => "FingerprintSource::request()",
            Covers::CanonicalJson => "FingerprintSource::canonical_json()",
            Covers::JsonFields(_) => "FingerprintSource::json_fields(..)",
            Covers::Body => "FingerprintSource::body()",
            Covers::Closure(_) => "FingerprintSource::from_fn(..)",
            Covers::Nothing => "FingerprintSource::none()",
        })
    }
}

// The tags of the fields; part of what stored fingerprints mean, so never to be changed.
const METHOD: u8 = 1;
const PATH: u8 = 2;
const QUERY: u8 = 3;
const RAW: u8 = 4;
const CANONICAL: u8 = 5;
const ABSENT: u8 = 6;
const AMBIGUOUS: u8 = 7;

/// Method, path and query.
fn target(digest: &mut Digest, parts: &Parts) {
    let uri = original_uri(parts);
    digest.field(METHOD, parts.method.as_str().as_bytes());
    digest.field(PATH, uri.path().as_bytes());
    if let Some(query) = uri.query() {
        digest.field(QUERY, query.as_bytes());
    }
}

#[cfg(feature = "axum")]
pub(super) fn original_uri(parts: &Parts) -> &http::Uri {
    parts
        .extensions
        .get::<axum::extract::OriginalUri>()
        .map_or(&parts.uri, |original| &original.0)
}

#[cfg(not(feature = "axum"))]
pub(super) fn original_uri(parts: &Parts) -> &http::Uri {
    &parts.uri
}

/// The tags keep a raw body from being taken for the canonical form of another.
fn canonical_or_raw(digest: &mut Digest, body: &[u8]) {
    match json::canonical(body) {
        Some(canonical) => digest.field(CANONICAL, &canonical),
        None => digest.field(RAW, body),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn print(source: &FingerprintSource, method: &str, uri: &str, body: &str) -> Fingerprint {
        let (parts, ()) = http::Request::builder()
            .method(method)
            .uri(uri)
            .header("x-trace", format!("{:p}", &body))
            .body(())
            .unwrap()
            .into_parts();
        source.of(&parts, &Bytes::copy_from_slice(body.as_bytes()))
    }

    #[test]
    fn contract_5_4_each_source_covers_what_it_says() {
        // (source, same as ("POST", "/a?x=1", {"a":1,"b":2}) for: method, path, query, order, value of b, white space)
        let base = ("POST", "/a?x=1", r#"{"a":1,"b":2}"#);
        for (source, [method, path, query, order, b, space]) in [
            (FingerprintSource::request(), [false, false, false, false, false, false]),
            (
                FingerprintSource::canonical_json(),
                [false, false, false, true, false, true],
            ),
            (
                FingerprintSource::json_fields(["/a"]),
                [false, false, false, true, true, true],
            ),
            (FingerprintSource::body(), [true, true, true, false, false, false]),
            (
                FingerprintSource::from_fn(|parts, _| parts.method.as_str().into()),
                [false, true, true, true, true, true],
            ),
            (FingerprintSource::none(), [true; 6]),
        ] {
            let first = print(&source, base.0, base.1, base.2);
            for (what, same, other) in [
                ("itself", true, base),
                ("method", method, ("PATCH", base.1, base.2)),
                ("path", path, (base.0, "/b?x=1", base.2)),
                ("query", query, (base.0, "/a?x=2", base.2)),
                ("no query", query, (base.0, "/a", base.2)),
                ("order", order, (base.0, base.1, r#"{"b":2,"a":1}"#)),
                ("value", b, (base.0, base.1, r#"{"a":1,"b":3}"#)),
                ("space", space, (base.0, base.1, r#"{"a":1, "b":2}"#)),
            ] {
                let second = print(&source, other.0, other.1, other.2);
                assert_eq!(first == second, same, "{source:?} {what}");
            }
        }
    }

    #[test]
    fn a_body_without_canonical_form_counts_by_its_bytes() {
        let source = FingerprintSource::canonical_json();
        let of = |body| print(&source, "POST", "/", body);
        assert_eq!(of("{"), of("{"));
        assert_ne!(of("{"), of("{ "));
        assert_ne!(of(r#"{"a":1,"a":2}"#), of(r#"{"a":2}"#));
        let fields = FingerprintSource::json_fields(["/a"]);
        let of = |body| print(&fields, "POST", "/", body);
        assert_ne!(of(r#"{"a":1,"a":2}"#), of(r#"{"a":1,"a":3}"#));
        assert_ne!(of(r#"{"a":null}"#), of(r#"{}"#));
        assert_ne!(of("a=1"), of("a=2"));
    }

    #[test]
    fn pointers_are_checked_when_the_layer_is_built() {
        assert!(FingerprintSource::json_fields(["amount"]).validate().is_err());
        assert!(FingerprintSource::json_fields([""; 0]).validate().is_err());
        assert!(FingerprintSource::json_fields(["/amount"]).validate().is_ok());
    }
}
