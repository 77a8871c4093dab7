//! Finds a request's key in its source, and checks the key against the rules.

use std::borrow::Cow;

use bytes::Bytes;
use http::request::Parts;
use http::{HeaderMap, HeaderValue};

use super::source::{KeySource, Source};
use super::text::{InvalidKey, KeyFormat, check_length, check_text, is_placeholder, not_visible, unquote};
use crate::error::ConfigError;
use crate::request::content::is_encoded;
use crate::request::json::Pointer;
use crate::request::lines::lines;

/// The source of the keys, with the rules that the keys must obey.
#[derive(Debug, Clone)]
pub(crate) struct KeyRules {
    pub(crate) source: KeySource,
    pub(crate) format: KeyFormat,
    pub(crate) max_length: usize,
}

impl KeyRules {
    pub(crate) fn validate(&self) -> Result<(), ConfigError> {
        if self.max_length == 0 {
            return Err(ConfigError::new(
                "max_key_length",
                "0 would refuse every key; use at least 1",
            ));
        }
        match &self.source.0 {
            Source::Headers(Err(error)) | Source::Pointers(Err(error)) => Err(error.clone()),
            Source::Pointers(Ok(pointers)) if pointers.len() > 1 && self.format == KeyFormat::Uuid => {
                Err(ConfigError::new(
                    "key_format",
                    "a key joined from the values at several JSON pointers is never a UUID; use `KeyFormat::Any`",
                ))
            }
            _ => Ok(()),
        }
    }

    /// Returns the key in the headers, if the source is a header. A key that is present but invalid
    /// is an error. An empty key is invalid too.
    pub(crate) fn in_headers<'h>(&self, headers: &'h HeaderMap) -> Result<Option<Cow<'h, str>>, InvalidKey> {
        let Source::Headers(Ok(names)) = &self.source.0 else {
            return Ok(None);
        };
        for name in names {
            let mut lines = lines(headers, name);
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

    /// Returns the key that a closure finds in the head, if the source is such a closure.
    pub(crate) fn in_head(&self, parts: &Parts) -> Result<Option<Cow<'static, str>>, InvalidKey> {
        match &self.source.0 {
            Source::Head(find) => self.of_closure(find(parts)?),
            _ => Ok(None),
        }
    }

    /// Returns the key in the buffered request, if the source needs the body.
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

    /// Returns the key that `text` represents. `text` is either the value that a client sent, or
    /// the result of [`IdempotencyKey::as_str`](crate::IdempotencyKey::as_str). If the source is a
    /// header, a value that begins with a quotation mark is treated as quoted.
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
            // An unreadable value is refused even if one of the other values is missing, because a
            // missing key lets the request pass.
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
                "the key must be a quoted structured-field String (RFC 9651, section 3.3.3), such as \"8e03978e-40d5-43dd-bc93-6894a57f9324\"",
            ));
        }
        match std::str::from_utf8(bytes) {
            Ok(text) if is_bare(bytes) => self.check(Cow::Borrowed(text)),
            _ if bytes.contains(&b',') => Err(InvalidKey::new(
                "a bare key must not contain a comma; send only one key, or quote the key",
            )),
            _ if bytes.contains(&b'"') => Err(InvalidKey::new(
                "a bare key must not contain a quotation mark; quote the key and escape the mark",
            )),
            _ => Err(not_visible()),
        }
    }

    /// Checks the key's length, refuses placeholders and, if the format requires it, checks that
    /// the key is a UUID. The characters have already been checked.
    fn check<'k>(&self, key: Cow<'k, str>) -> Result<Cow<'k, str>, InvalidKey> {
        check_length(&key, self.max_length)?;
        refuse_placeholder(&key)?;
        if self.format != KeyFormat::Uuid {
            return Ok(key);
        }
        // `try_parse` accepts three more spellings. Only the hyphenated spelling passes the length
        // check.
        match uuid::Uuid::try_parse(&key) {
            Ok(_) if key.len() == uuid::fmt::Hyphenated::LENGTH => {
                if key.bytes().any(|byte| byte.is_ascii_uppercase()) {
                    Ok(Cow::Owned(key.to_ascii_lowercase()))
                } else {
                    Ok(key)
                }
            }
            _ => Err(InvalidKey::new(
                "the key must be a UUID (RFC 9562), such as 8e03978e-40d5-43dd-bc93-6894a57f9324",
            )),
        }
    }
}

/// Returns whether a key with these bytes needs no quotes.
fn is_bare(bytes: &[u8]) -> bool {
    // This loop does not stop at the first invalid byte, so that the compiler can generate code
    // that checks many bytes in one step.
    bytes.iter().fold(true, |all, byte| {
        all & byte.is_ascii_graphic() & (*byte != b',') & (*byte != b'"')
    })
}

fn refuse_placeholder(key: &str) -> Result<(), InvalidKey> {
    if is_placeholder(key) {
        return Err(InvalidKey::new(
            "the key is a placeholder (such as `undefined`, `null`, an unfilled template, the nil UUID or the max UUID); \
             send a key that is unique to the operation",
        ));
    }
    Ok(())
}

/// Returns a JSON value as a key: the text of a string, or the digits of an integer.
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
    use crate::request::key::source::IDEMPOTENCY_KEY;

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
        let lists: [&[&str]; 13] = [
            &["7:CAPTURE5:ref-1"],
            &["CAPTURE", "ref-1"],
            &["5:12:30"],
            &["12:30"],
            &[":a"],
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
    fn the_shortcut_for_quoted_keys_agrees_with_the_structured_field_parser() {
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
