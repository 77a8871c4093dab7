//! Where a request carries its key.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue};

use super::text::{InvalidKey, KeyFormat, check_length, check_text, not_visible, unquote};
use crate::error::ConfigError;
use crate::request::header_name;
use crate::request::json::{Ambiguous, Pointer};

/// The header of the draft, and the default.
pub(crate) const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");

type KeyFn = dyn Fn(&Parts, &Bytes) -> Result<Option<String>, InvalidKey> + Send + Sync;

/// Where a request carries its key.
///
/// ```
/// use tower_idempotency::KeySource;
///
/// let paypal = KeySource::header("PayPal-Request-Id");
/// let square = KeySource::json_pointer("/idempotency_key");
/// let own = KeySource::from_fn(|parts, _body| {
///     Ok(parts.uri.query().map(str::to_owned))
/// });
/// # let _ = (paypal, square, own);
/// ```
#[derive(Clone)]
pub struct KeySource(Source);

#[derive(Clone)]
enum Source {
    Header(Named<HeaderName>),
    Pointer(Named<Pointer>),
    Closure(Arc<KeyFn>),
}

/// Parsed when it is given, reported when the layer is built.
type Named<T> = Result<T, ConfigError>;

impl Default for KeySource {
    fn default() -> Self {
        Self(Source::Header(Ok(IDEMPOTENCY_KEY)))
    }
}

impl KeySource {
    /// The header of that name. The default is `Idempotency-Key`. A name that is no header name is
    /// an error when the layer is built.
    #[must_use]
    pub fn header(name: &str) -> Self {
        Self(Source::Header(header_name::parse("key", name)))
    }

    /// The header `webhook-id` of [Standard Webhooks](https://www.standardwebhooks.com): the event's
    /// id, the same at each delivery. Short for `header("webhook-id")`; see
    /// [`webhooks`](crate::IdempotencyLayerBuilder::webhooks).
    #[must_use]
    pub fn webhook_id() -> Self {
        Self::header("webhook-id")
    }

    /// The string, or integer taken by its digits, at a JSON pointer (RFC 6901) into the body.
    ///
    /// Nothing there, or a body that is not JSON, is a missing key. To look, every request of a
    /// guarded method is buffered, up to `max_request_body`. A pointer that is none is an
    /// error when the layer is built.
    #[must_use]
    pub fn json_pointer(pointer: &str) -> Self {
        Self(Source::Pointer(Pointer::parse("key", pointer)))
    }

    /// Whatever the closure finds in the head and the buffered body; `None` is a missing key.
    ///
    /// Every request of a guarded method is buffered for it, up to `max_request_body`. The length and
    /// the characters are checked as for every other key. A panic of the closure
    /// goes on to the outer layers before anything is claimed.
    #[must_use]
    pub fn from_fn<F>(find: F) -> Self
    where
        F: Fn(&Parts, &Bytes) -> Result<Option<String>, InvalidKey> + Send + Sync + 'static,
    {
        Self(Source::Closure(Arc::new(find)))
    }

    pub(crate) fn validate(&self) -> Result<(), ConfigError> {
        match &self.0 {
            Source::Header(Err(error)) | Source::Pointer(Err(error)) => Err(error.clone()),
            _ => Ok(()),
        }
    }

    /// Whether the key can be told only from the buffered body.
    pub(crate) fn needs_body(&self) -> bool {
        !matches!(self.0, Source::Header(_))
    }
}

impl fmt::Debug for KeySource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Source::Header(Ok(name)) => write!(f, "KeySource::header({name:?})"),
            Source::Pointer(Ok(pointer)) => write!(f, "KeySource::json_pointer({pointer:?})"),
            Source::Header(Err(error)) | Source::Pointer(Err(error)) => write!(f, "KeySource({error})"),
            Source::Closure(_) => f.write_str("KeySource::from_fn(..)"),
        }
    }
}

/// The source with the rules that its keys obey.
#[derive(Debug, Clone)]
pub(crate) struct KeyRules {
    pub(crate) source: KeySource,
    pub(crate) format: KeyFormat,
    pub(crate) max_length: usize,
}

impl KeyRules {
    /// The key in the head, if the source is a header. A present but invalid key is an error, an
    /// empty one too.
    pub(crate) fn in_head<'h>(&self, headers: &'h HeaderMap) -> Result<Option<Cow<'h, str>>, InvalidKey> {
        let Source::Header(Ok(name)) = &self.source.0 else {
            return Ok(None);
        };
        let mut lines = headers.get_all(name).iter();
        let Some(line) = lines.next() else {
            return Ok(None);
        };
        if lines.next().is_some() {
            return Err(InvalidKey::new("the key header stands more than once; send one key"));
        }
        self.in_line(line).map(Some)
    }

    /// The key in the buffered request, if the source needs the body.
    pub(crate) fn in_body(&self, parts: &Parts, body: &Bytes) -> Result<Option<String>, InvalidKey> {
        let key = match &self.source.0 {
            Source::Header(_) | Source::Pointer(Err(_)) => return Ok(None),
            Source::Closure(find) => find(parts, body)?,
            Source::Pointer(Ok(pointer)) => match pointer.find(body) {
                Ok(Some(value)) => Some(text_of(value.get())?),
                Ok(None) => None,
                Err(Ambiguous) => return Err(InvalidKey::new("the body holds the key's member more than once")),
            },
        };
        let Some(key) = key else { return Ok(None) };
        check_text(&key, self.max_length)?;
        self.check(Cow::Owned(key)).map(|key| Some(key.into_owned()))
    }

    fn in_line<'h>(&self, line: &'h HeaderValue) -> Result<Cow<'h, str>, InvalidKey> {
        let bytes = line.as_bytes();
        if bytes.first() == Some(&b'"') {
            return self.check(unquote(bytes)?);
        }
        if self.format == KeyFormat::Structured {
            return Err(InvalidKey::new(
                "the key must be a quoted structured-field String (RFC 9651, section 3.3.3), as in \"8e03978e-40d5-43dd-bc93-6894a57f9324\"",
            ));
        }
        let plain = |byte: &u8| byte.is_ascii_graphic() && !matches!(byte, b',' | b'"');
        match line.to_str() {
            Ok(text) if bytes.iter().all(plain) => self.check(Cow::Borrowed(text)),
            _ if bytes.contains(&b',') => Err(InvalidKey::new(
                "a bare key must not contain a comma; send one key, or quote it",
            )),
            _ if bytes.contains(&b'"') => Err(InvalidKey::new(
                "a bare key must not contain a quotation mark; quote and escape it",
            )),
            _ => Err(not_visible()),
        }
    }

    /// Length and, if asked for, the form of a UUID; the characters are allowed ones.
    fn check<'k>(&self, key: Cow<'k, str>) -> Result<Cow<'k, str>, InvalidKey> {
        check_length(&key, self.max_length)?;
        if self.format != KeyFormat::Uuid {
            return Ok(key);
        }
        // `parse_str` takes three more spellings; the length leaves only the one with hyphens.
        match uuid::Uuid::try_parse(&key) {
            Ok(_) if key.len() == uuid::fmt::Hyphenated::LENGTH => {
                if key.bytes().any(|byte| byte.is_ascii_uppercase()) {
                    Ok(Cow::Owned(key.to_ascii_lowercase()))
                } else {
                    Ok(key)
                }
            }
            _ => Err(InvalidKey::new(
                "the key must be a UUID (RFC 9562), as in 8e03978e-40d5-43dd-bc93-6894a57f9324",
            )),
        }
    }
}

/// A JSON value as a key: a string, or an integer by its digits.
fn text_of(raw: &str) -> Result<String, InvalidKey> {
    let integer = |raw: &str| {
        let digits = raw.strip_prefix('-').unwrap_or(raw);
        digits.bytes().all(|byte| byte.is_ascii_digit())
    };
    if raw.starts_with('"') {
        serde_json::from_str(raw).map_err(|_| InvalidKey::new("the key in the body is not a valid string"))
    } else if integer(raw) {
        Ok(raw.to_owned())
    } else {
        Err(InvalidKey::new("the key in the body must be a string or an integer"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(format: KeyFormat) -> KeyRules {
        KeyRules {
            source: KeySource::default(),
            format,
            max_length: 255,
        }
    }

    fn head(format: KeyFormat, line: &[u8]) -> Result<Option<String>, InvalidKey> {
        let mut headers = HeaderMap::new();
        headers.insert(IDEMPOTENCY_KEY, HeaderValue::from_bytes(line).unwrap());
        rules(format).in_head(&headers).map(|key| key.map(Cow::into_owned))
    }

    const UUID: &str = "8e03978e-40d5-43dd-bc93-6894a57f9324";

    #[test]
    fn contract_2_2_quoted_and_bare_name_the_same_key() {
        use KeyFormat::{Any, Structured, Uuid};
        let quoted = format!("\"{UUID}\"");
        let params = format!("\"{UUID}\";v=1;flag");
        let upper = UUID.to_ascii_uppercase();
        for (format, line, expected) in [
            (Any, UUID, Some(UUID)),
            (Any, quoted.as_str(), Some(UUID)),
            (Any, params.as_str(), Some(UUID)),
            (Any, r#""a\"b\\c d""#, Some(r#"a"b\c d"#)),
            (Any, r"a;b\c", Some(r"a;b\c")),
            (Any, "a/b:c{d}", Some("a/b:c{d}")),
            (Any, "\"a,b\"", Some("a,b")),
            (Structured, quoted.as_str(), Some(UUID)),
            (Structured, UUID, None),
            (Uuid, UUID, Some(UUID)),
            (Uuid, quoted.as_str(), Some(UUID)),
            (Uuid, upper.as_str(), Some(UUID)),
            (
                Uuid,
                "00000000-0000-0000-0000-000000000000",
                Some("00000000-0000-0000-0000-000000000000"),
            ),
            (Uuid, "8e03978e40d543ddbc936894a57f9324", None),
            (Uuid, "{8e03978e-40d5-43dd-bc93-6894a57f9324}", None),
            (Uuid, "order-17", None),
        ] {
            let key = head(format, line.as_bytes());
            assert_eq!(
                key.clone().ok().flatten().as_deref(),
                expected,
                "{format:?} {line} {key:?}"
            );
        }
    }

    #[test]
    fn contract_2_3_and_2_4_invalid_keys_say_why() {
        let long = "k".repeat(256);
        for (line, reason) in [
            (&b""[..], "empty"),
            (b"\"\"", "empty"),
            (b"a,b", "comma"),
            (b"a\"b", "quotation mark"),
            (b"a b", "visible ASCII"),
            (b"a\tb", "visible ASCII"),
            (b"caf\xc3\xa9", "visible ASCII"),
            (b"\xff", "visible ASCII"),
            (b"\"abc", "structured-field"),
            (b"\"abc\" trailing", "structured-field"),
            (b"\"abc\";", "structured-field"),
            (b"\"a\", \"b\"", "structured-field"),
            (b"\"\\x\"", "structured-field"),
            (b"\"caf\xc3\xa9\"", "structured-field"),
            (long.as_bytes(), "256 bytes"),
        ] {
            let error = head(KeyFormat::Any, line).unwrap_err();
            assert!(error.to_string().contains(reason), "{line:?}: {error}");
        }
        assert!(head(KeyFormat::Any, &b"k".repeat(255)).is_ok());
        assert!(head(KeyFormat::Any, format!("\"{}\"", "k".repeat(255)).as_bytes()).is_ok());
    }

    #[test]
    fn contract_2_4_two_header_lines_are_invalid() {
        let mut headers = HeaderMap::new();
        headers.append(IDEMPOTENCY_KEY, HeaderValue::from_static("a"));
        headers.append(IDEMPOTENCY_KEY, HeaderValue::from_static("a"));
        assert!(rules(KeyFormat::Any).in_head(&headers).is_err());
    }

    #[test]
    fn contract_2_5_a_pointer_finds_strings_and_integers() {
        let mut rules = rules(KeyFormat::Any);
        rules.source = KeySource::json_pointer("/event_id");
        let (parts, ()) = http::Request::new(()).into_parts();
        let find = |body: &str| rules.in_body(&parts, &Bytes::copy_from_slice(body.as_bytes()));
        assert_eq!(find(r#"{"event_id":"evt_1"}"#), Ok(Some("evt_1".into())));
        assert_eq!(
            find(r#"{"event_id":98765432109876543210987654321}"#),
            Ok(Some("98765432109876543210987654321".into()))
        );
        assert_eq!(find(r#"{"event_id":-7}"#), Ok(Some("-7".into())));
        assert_eq!(find(r#"{"other":1}"#), Ok(None));
        assert_eq!(find("not json"), Ok(None));
        for bad in [
            "1.5",
            "1e3",
            "null",
            "true",
            "[]",
            "{}",
            "\"\"",
            "\"caf\u{e9}\"",
            "\"\\ud800\"",
        ] {
            assert!(find(&format!("{{\"event_id\":{bad}}}")).is_err(), "{bad}");
        }
        assert!(find(r#"{"event_id":"a","event_id":"b"}"#).is_err());
        assert!(find(&format!("{{\"event_id\":\"{}\"}}", "k".repeat(256))).is_err());
    }

    #[test]
    fn the_short_cut_for_quoted_keys_agrees_with_the_structured_field_parser() {
        for inner in ["", " ", "a", "a b", "~!#$%&'()*+,-./:;<=>?@[]^_`{|}"] {
            let line = format!("\"{inner}\"");
            let item: sfv::Item = sfv::Parser::new(line.as_bytes()).parse().unwrap();
            let sfv::BareItem::String(oracle) = item.bare_item else {
                panic!("a string")
            };
            assert_eq!(unquote(line.as_bytes()).unwrap(), String::from(oracle));
        }
    }
}
