//! Where a request carries its key.

use std::borrow::Cow;
use std::fmt::{self, Write as _};
use std::sync::Arc;

use bytes::Bytes;
use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue};

use super::text::{InvalidKey, KeyFormat, check_length, check_text, is_placeholder, not_visible, unquote};
use crate::error::ConfigError;
use crate::request::content::is_encoded;
use crate::request::header_name;
use crate::request::json::Pointer;

/// The header of the draft, and the default.
pub(crate) const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");

type HeadFn = dyn Fn(&Parts) -> Result<Option<String>, InvalidKey> + Send + Sync;
type BodyFn = dyn Fn(&Parts, &Bytes) -> Result<Option<String>, InvalidKey> + Send + Sync;

/// Where a request carries its key. The default is the header `Idempotency-Key`.
///
/// Every key has 1 to [`max_key_length`](crate::IdempotencyLayerBuilder::max_key_length) bytes of
/// visible ASCII and spaces, wherever it comes from. Values that only a bug in a client can send
/// are refused: `undefined`, `null`, `None`, `nil`, `NaN`, `[object Object]`, an unfilled template
/// (`{{key}}`, `${key}`), the nil UUID and the max UUID. A key that breaks a rule is `400` problem
/// `invalid-key`.
///
/// | the key is in | source | is the body read for it? |
/// |---|---|---|
/// | a header | [`header`](Self::header), or the first of [`headers`](Self::headers) | no |
/// | the head: path, query, several headers | [`from_head`](Self::from_head) | no |
/// | a JSON body | [`json_pointer`](Self::json_pointer), or [`json_pointers`](Self::json_pointers) joined | yes |
/// | anything else in the body | [`from_fn`](Self::from_fn) | yes |
///
/// ```
/// use tower_idempotency::KeySource;
///
/// let paypal = KeySource::header("PayPal-Request-Id");
/// let square = KeySource::json_pointer("/idempotency_key");
/// let by_query = KeySource::from_head(|parts| Ok(parts.uri.query().map(str::to_owned)));
/// let by_first_line = KeySource::from_fn(|_parts, body| {
///     let line = body.split(|byte| *byte == b'\n').next().unwrap_or_default();
///     Ok(std::str::from_utf8(line).ok().map(str::to_owned))
/// });
/// # let _ = (paypal, square, by_query, by_first_line);
/// ```
#[derive(Clone)]
pub struct KeySource(Source);

#[derive(Clone)]
enum Source {
    Headers(Named<Vec<HeaderName>>),
    Head(Arc<HeadFn>),
    Pointers(Named<Vec<Pointer>>),
    Body(Arc<BodyFn>),
}

/// Parsed when it is given, reported when the layer is built.
type Named<T> = Result<T, ConfigError>;

impl Default for KeySource {
    fn default() -> Self {
        Self(Source::Headers(Ok(vec![IDEMPOTENCY_KEY])))
    }
}

impl KeySource {
    /// The header of that name.
    ///
    /// A name that is not a header name (RFC 9110, section 5.1) is an error when the layer is
    /// built.
    #[must_use]
    pub fn header(name: &str) -> Self {
        Self::headers([name])
    }

    /// The first of these headers that the request has.
    ///
    /// A header that is present and invalid is `400` problem `invalid-key`; the next one is not
    /// tried. No name, or one that is not a header name, is an error when the layer is built.
    ///
    /// ```
    /// use tower_idempotency::{IdempotencyLayer, KeySource, MemoryStore};
    ///
    /// let layer = IdempotencyLayer::builder(MemoryStore::new())
    ///     .key(KeySource::headers(["Idempotency-Key", "X-Idempotency-Key"]))
    ///     .build()?;
    /// # let _ = layer;
    /// # Ok::<(), tower_idempotency::ConfigError>(())
    /// ```
    #[must_use]
    pub fn headers<I>(names: I) -> Self
    where
        I: IntoIterator,
        I::Item: AsRef<str>,
    {
        let parse = |name: I::Item| header_name::parse("key", name.as_ref());
        let names = names.into_iter().map(parse).collect();
        Self(Source::Headers(at_least_one(
            names,
            "`headers` needs at least one header name",
        )))
    }

    /// The header `webhook-id` of [Standard Webhooks](https://www.standardwebhooks.com): the
    /// event's id, the same at each delivery. Short for `header("webhook-id")`; see
    /// [`webhooks`](crate::IdempotencyLayerBuilder::webhooks).
    #[must_use]
    pub fn webhook_id() -> Self {
        Self::header("webhook-id")
    }

    /// What the closure finds in the request's head. The body is not read for it; `None` is a
    /// missing key.
    ///
    /// The text of the error is the `detail` of the `400` problem `invalid-key`. A panic of the
    /// closure goes on to the outer layers before anything is claimed.
    ///
    /// ```
    /// use tower_idempotency::{InvalidKey, KeySource};
    ///
    /// // GitHub's webhooks: the delivery's id at this path.
    /// let delivery = KeySource::from_head(|parts| {
    ///     let Some(id) = parts.headers.get("x-github-delivery") else {
    ///         return Ok(None);
    ///     };
    ///     let id = id.to_str().map_err(|_| InvalidKey::new("`X-GitHub-Delivery` must be visible ASCII"))?;
    ///     Ok(Some(id.to_owned()))
    /// });
    /// # let _ = delivery;
    /// ```
    #[must_use]
    pub fn from_head<F>(find: F) -> Self
    where
        F: Fn(&Parts) -> Result<Option<String>, InvalidKey> + Send + Sync + 'static,
    {
        Self(Source::Head(Arc::new(find)))
    }

    /// The string, or integer taken by its digits, at a JSON pointer (RFC 6901) into the body.
    ///
    /// Every request of a guarded method is buffered to look for it, up to
    /// [`max_request_body`](crate::IdempotencyLayerBuilder::max_request_body). An empty body, or
    /// nothing at the pointer, is a missing key. A body that cannot be read is `400` problem
    /// `invalid-key`: it is not JSON, has a `Content-Encoding`, or has a member on the way more
    /// than once. A text that is not a JSON pointer is an error when the layer is built.
    #[must_use]
    pub fn json_pointer(pointer: &str) -> Self {
        Self::json_pointers([pointer])
    }

    /// The values at several JSON pointers, joined: for example an event's code *and* its
    /// reference.
    ///
    /// Each value obeys the rules of [`json_pointer`](Self::json_pointer). All must be there,
    /// otherwise the key is missing. The key is what [`join`](Self::join) makes of the values, in
    /// the order of the pointers. No pointer at all is an error when the layer is built.
    ///
    /// ```
    /// use tower_idempotency::{IdempotencyLayer, KeySource, MemoryStore};
    ///
    /// // Adyen sends one event code for many payments, and many event codes for one payment.
    /// let layer = IdempotencyLayer::builder(MemoryStore::new())
    ///     .key(KeySource::json_pointers(["/eventCode", "/pspReference"]))
    ///     .build()?;
    /// # let _ = layer;
    /// # Ok::<(), tower_idempotency::ConfigError>(())
    /// ```
    #[must_use]
    pub fn json_pointers<I>(pointers: I) -> Self
    where
        I: IntoIterator,
        I::Item: AsRef<str>,
    {
        let parse = |pointer: I::Item| Pointer::parse("key", pointer.as_ref());
        let pointers = pointers.into_iter().map(parse).collect();
        Self(Source::Pointers(at_least_one(
            pointers,
            "`json_pointers` needs at least one JSON pointer",
        )))
    }

    /// What the closure finds in the head and the buffered body; `None` is a missing key.
    ///
    /// Every request of a guarded method is buffered for it, up to
    /// [`max_request_body`](crate::IdempotencyLayerBuilder::max_request_body);
    /// [`from_head`](Self::from_head) buffers nothing. The text of the error is the `detail` of the
    /// `400` problem `invalid-key`. A panic of the closure goes on to the outer layers before
    /// anything is claimed.
    ///
    /// ```
    /// use tower_idempotency::{InvalidKey, KeySource};
    ///
    /// let by_number = KeySource::from_fn(|_parts, body| {
    ///     let text = std::str::from_utf8(body).map_err(|_| InvalidKey::new("the body must be UTF-8"))?;
    ///     Ok(text.lines().find_map(|line| line.strip_prefix("number=")).map(str::to_owned))
    /// });
    /// # let _ = by_number;
    /// ```
    #[must_use]
    pub fn from_fn<F>(find: F) -> Self
    where
        F: Fn(&Parts, &Bytes) -> Result<Option<String>, InvalidKey> + Send + Sync + 'static,
    {
        Self(Source::Body(Arc::new(find)))
    }

    /// One key of several values, each with its length before it. A single value stays as it is.
    ///
    /// No two different lists give the same key. [`json_pointers`](Self::json_pointers) joins in
    /// this way; use it in your own closures and with
    /// [`IdempotencyLayer::slot`](crate::IdempotencyLayer::slot).
    ///
    /// ```
    /// use tower_idempotency::KeySource;
    ///
    /// assert_eq!(KeySource::join(["CAPTURE", "ref-1"]), "7:CAPTURE5:ref-1");
    /// assert_eq!(KeySource::join(["evt_1"]), "evt_1");
    /// ```
    #[must_use]
    pub fn join<I>(values: I) -> String
    where
        I: IntoIterator,
        I::Item: AsRef<str>,
    {
        let values: Vec<_> = values.into_iter().collect();
        if let [value] = &values[..] {
            return value.as_ref().to_owned();
        }
        let mut key = String::new();
        for value in &values {
            let value = value.as_ref();
            // Writing to a `String` does not fail.
            let _ = write!(key, "{}:{value}", value.len());
        }
        key
    }

    /// Whether a closure over the head finds the key.
    pub(crate) fn is_of_head(&self) -> bool {
        matches!(self.0, Source::Head(_))
    }

    /// Whether the key can be told only from the buffered body.
    pub(crate) fn needs_body(&self) -> bool {
        matches!(self.0, Source::Pointers(_) | Source::Body(_))
    }
}

fn at_least_one<T>(values: Named<Vec<T>>, otherwise: &'static str) -> Named<Vec<T>> {
    match values {
        Ok(values) if values.is_empty() => Err(ConfigError::new("key", otherwise)),
        values => values,
    }
}

impl fmt::Debug for KeySource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Source::Headers(Ok(names)) => write!(f, "KeySource::headers({names:?})"),
            Source::Pointers(Ok(pointers)) => write!(f, "KeySource::json_pointers({pointers:?})"),
            Source::Headers(Err(error)) | Source::Pointers(Err(error)) => write!(f, "KeySource({error})"),
            Source::Head(_) => f.write_str("KeySource::from_head(..)"),
            Source::Body(_) => f.write_str("KeySource::from_fn(..)"),
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
    pub(crate) fn validate(&self) -> Result<(), ConfigError> {
        if self.max_length == 0 {
            return Err(ConfigError::new("max_key_length", "0 would refuse every key"));
        }
        match &self.source.0 {
            Source::Headers(Err(error)) | Source::Pointers(Err(error)) => Err(error.clone()),
            Source::Pointers(Ok(pointers)) if pointers.len() > 1 && self.format == KeyFormat::Uuid => {
                Err(ConfigError::new(
                    "key_format",
                    "a key that is joined from several JSON pointers is never a UUID",
                ))
            }
            _ => Ok(()),
        }
    }

    /// The key in the headers, if the source looks there. A key that is present but invalid is an
    /// error, an empty one too.
    pub(crate) fn in_headers<'h>(&self, headers: &'h HeaderMap) -> Result<Option<Cow<'h, str>>, InvalidKey> {
        let Source::Headers(Ok(names)) = &self.source.0 else {
            return Ok(None);
        };
        for name in names {
            let mut lines = headers.get_all(name).iter();
            let Some(line) = lines.next() else { continue };
            if lines.next().is_some() {
                return Err(InvalidKey::new(
                    "the key header appears more than once; send exactly one",
                ));
            }
            return self.in_line(line).map(Some);
        }
        Ok(None)
    }

    /// The key that a closure finds in the head, if that is the source.
    pub(crate) fn in_head(&self, parts: &Parts) -> Result<Option<Cow<'static, str>>, InvalidKey> {
        match &self.source.0 {
            Source::Head(find) => self.of_closure(find(parts)?),
            _ => Ok(None),
        }
    }

    /// The key in the buffered request, if the source needs the body.
    pub(crate) fn in_body(&self, parts: &Parts, body: &Bytes) -> Result<Option<Cow<'static, str>>, InvalidKey> {
        match &self.source.0 {
            Source::Headers(_) | Source::Head(_) | Source::Pointers(Err(_)) => Ok(None),
            Source::Body(find) => find(parts, body).and_then(|key| self.of_closure(key)),
            Source::Pointers(Ok(pointers)) => {
                if body.is_empty() {
                    return Ok(None);
                }
                if is_encoded(&parts.headers) {
                    return Err(InvalidKey::new(
                        "the key in the body cannot be read because the body has a `Content-Encoding`; send the body without one",
                    ));
                }
                self.at_pointers(pointers, body)
            }
        }
    }

    /// The key that a text names: what a client sent, or what
    /// [`IdempotencyKey::as_str`](crate::IdempotencyKey::as_str) says. Where keys are in headers, a
    /// text that begins with a quotation mark is quoted.
    pub(crate) fn of_text<'t>(&self, text: &'t str) -> Result<Cow<'t, str>, InvalidKey> {
        let key = match &self.source.0 {
            Source::Headers(_) if text.starts_with('"') => unquote(text.as_bytes())?,
            _ => Cow::Borrowed(text),
        };
        check_text(&key, self.max_length)?;
        self.check(key)
    }

    fn of_closure(&self, key: Option<String>) -> Result<Option<Cow<'static, str>>, InvalidKey> {
        let Some(key) = key else { return Ok(None) };
        check_text(&key, self.max_length)?;
        self.check(Cow::Owned(key)).map(Some)
    }

    fn at_pointers(&self, pointers: &[Pointer], body: &[u8]) -> Result<Option<Cow<'static, str>>, InvalidKey> {
        let mut values = Vec::with_capacity(pointers.len());
        for pointer in pointers {
            // What cannot be read is refused even if another value is missing: a missing key lets
            // the request pass.
            let value = pointer.find(body).map_err(|why| InvalidKey::new(why.to_string()))?;
            if let Some(value) = value {
                let value = text_of(value.get())?;
                check_text(&value, self.max_length)?;
                refuse_placeholder(&value)?;
                values.push(value);
            }
        }
        if values.len() < pointers.len() {
            return Ok(None);
        }
        self.check(Cow::Owned(KeySource::join(values))).map(Some)
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
        refuse_placeholder(&key)?;
        if self.format != KeyFormat::Uuid {
            return Ok(key);
        }
        // `try_parse` takes three more spellings; the length leaves only the one with hyphens.
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

fn refuse_placeholder(key: &str) -> Result<(), InvalidKey> {
    if is_placeholder(key) {
        return Err(InvalidKey::new(
            "the key is a placeholder (such as `undefined`, `null`, an unfilled template, the nil UUID or the max UUID); \
             send a key that is unique for the operation",
        ));
    }
    Ok(())
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
        rules(format).in_headers(&headers).map(|key| key.map(Cow::into_owned))
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
                "00000000-0000-0000-0000-000000000001",
                Some("00000000-0000-0000-0000-000000000001"),
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
        assert!(rules(KeyFormat::Any).in_headers(&headers).is_err());
    }

    #[test]
    fn contract_2_5_a_pointer_finds_strings_and_integers() {
        let mut rules = rules(KeyFormat::Any);
        rules.source = KeySource::json_pointer("/event_id");
        let (parts, ()) = http::Request::new(()).into_parts();
        let find = |body: &str| {
            let found = rules.in_body(&parts, &Bytes::copy_from_slice(body.as_bytes()));
            found.map(|key| key.map(Cow::into_owned))
        };
        assert_eq!(find(r#"{"event_id":"evt_1"}"#), Ok(Some("evt_1".into())));
        assert_eq!(
            find(r#"{"event_id":98765432109876543210987654321}"#),
            Ok(Some("98765432109876543210987654321".into()))
        );
        assert_eq!(find(r#"{"event_id":-7}"#), Ok(Some("-7".into())));
        assert_eq!(find(r#"{"other":1}"#), Ok(None));
        assert_eq!(find(""), Ok(None));
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
        for unreadable in [
            "not json",
            r#"{"event_id":"a","event_id":"b"}"#,
            r#"{"note\ud800":1,"event_id":"a"}"#,
            "{\"event_id\":\"a\"",
        ] {
            assert!(find(unreadable).is_err(), "{unreadable}");
        }
        assert!(find(&format!("{{\"event_id\":\"{}\"}}", "k".repeat(256))).is_err());
    }

    #[test]
    fn contract_2_5_joined_values_name_one_key_each() {
        let lists: [&[&str]; 8] = [
            &["ab", "c"],
            &["a", "bc"],
            &["", "abc"],
            &["abc", ""],
            &["1:a", "b"],
            &["1", "1:a"],
            &["a", "b", "c"],
            &["a", "b1:c"],
        ];
        let keys: std::collections::HashSet<_> = lists.iter().map(|list| KeySource::join(*list)).collect();
        assert_eq!(keys.len(), lists.len(), "{keys:?}");
    }

    #[test]
    fn contract_2_5_only_sources_in_the_body_need_it() {
        for (source, needs) in [
            (KeySource::default(), false),
            (KeySource::headers(["a", "b"]), false),
            (KeySource::from_head(|_| Ok(None)), false),
            (KeySource::json_pointers(["/a", "/b"]), true),
            (KeySource::from_fn(|_, _| Ok(None)), true),
        ] {
            assert_eq!(source.needs_body(), needs, "{source:?}");
        }
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
