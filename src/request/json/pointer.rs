//! Finds the value at a JSON pointer (RFC 6901).

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;

use crate::error::ConfigError;

/// A JSON pointer (RFC 6901), checked and split when the layer is built.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Pointer {
    tokens: Vec<String>,
}

impl Pointer {
    pub(crate) fn parse(option: &'static str, text: &str) -> Result<Self, ConfigError> {
        let Some(rest) = text.strip_prefix('/') else {
            return Err(ConfigError::new(
                option,
                format!("the JSON pointer {text:?} must begin with `/` (RFC 6901), as in `/event_id`"),
            ));
        };
        let tokens = rest
            .split('/')
            .map(unescape)
            .collect::<Option<Vec<_>>>()
            .ok_or_else(|| {
                ConfigError::new(
                    option,
                    format!("in the JSON pointer {text:?}, each `~` must be followed by `0` or `1` (RFC 6901)"),
                )
            })?;
        Ok(Self { tokens })
    }

    /// Returns the name or index at each step of the path.
    pub(crate) fn tokens(&self) -> &[String] {
        &self.tokens
    }

    /// Returns whether this pointer names the form field `name`. Forms have no nesting.
    pub(crate) fn is_name(&self, name: &str) -> bool {
        matches!(&self.tokens[..], [token] if token == name)
    }

    /// Returns the index that a token names in an array. According to RFC 6901, section 4, an index
    /// has no leading zeros, and `-` names the nonexistent element after the last one.
    pub(super) fn index(token: &str) -> Option<usize> {
        if token.starts_with(['0', '+']) && token != "0" {
            return None;
        }
        token.parse().ok()
    }

    /// Returns the raw text of the value at this pointer, or `None` if there is no value.
    pub(crate) fn find<'a>(&self, body: &'a [u8]) -> Result<Option<&'a RawValue>, Unreadable> {
        let mut ambiguous = false;
        let mut parser = serde_json::Deserializer::from_slice(body);
        let seek = Seek {
            tokens: &self.tokens,
            ambiguous: &mut ambiguous,
        };
        let found = seek.deserialize(&mut parser);
        let found = found.and_then(|found| parser.end().map(|()| found));
        match found {
            _ if ambiguous => Err(Unreadable::Ambiguous),
            Ok(found) => Ok(found),
            // The parser's messages name a position, but never quote the text at that position.
            Err(error) => Err(Unreadable::NotJson(error.to_string())),
        }
    }
}

/// Replaces `~1` with `/` and `~0` with `~`. Returns `None` if a `~` is not followed by `0` or `1`,
/// because the token is then not part of a valid pointer.
fn unescape(token: &str) -> Option<String> {
    let mut plain = String::with_capacity(token.len());
    let mut rest = token.chars();
    while let Some(c) = rest.next() {
        plain.push(match c {
            '~' => match rest.next()? {
                '0' => '~',
                '1' => '/',
                _ => return None,
            },
            c => c,
        });
    }
    Some(plain)
}

/// The reason why the value at a pointer cannot be determined. The message is written for the API
/// client's developer.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Unreadable {
    /// A member on the path to the value appears in its object more than once.
    Ambiguous,
    /// The part of the text that had to be read is not JSON. The string is the parser's error
    /// message.
    NotJson(String),
}

impl fmt::Display for Unreadable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ambiguous => f.write_str("a JSON member on the path to the key appears more than once; send it once"),
            Self::NotJson(reason) => write!(
                f,
                "the key in the body cannot be read because the body is not JSON: {reason}"
            ),
        }
    }
}

/// Follows the path to the value without building any value that is not on the path.
struct Seek<'p> {
    tokens: &'p [String],
    ambiguous: &'p mut bool,
}

impl<'de> DeserializeSeed<'de> for Seek<'_> {
    type Value = Option<&'de RawValue>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        if self.tokens.is_empty() {
            serde::Deserialize::deserialize(deserializer).map(Some)
        } else {
            deserializer.deserialize_any(self)
        }
    }
}

impl<'de> Visitor<'de> for Seek<'_> {
    type Value = Option<&'de RawValue>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let (token, deeper) = (&self.tokens[0], &self.tokens[1..]);
        let (mut seen, mut found) = (false, None);
        while let Some(name) = map.next_key::<String>()? {
            if name != *token {
                map.next_value::<IgnoredAny>()?;
                continue;
            }
            if seen {
                *self.ambiguous = true;
                return Err(A::Error::custom("a member appears more than once"));
            }
            seen = true;
            found = map.next_value_seed(Seek {
                tokens: deeper,
                ambiguous: self.ambiguous,
            })?;
        }
        Ok(found)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
        let index = self.tokens.first().and_then(|token| Pointer::index(token));
        let (mut at, mut found) = (0usize, None);
        loop {
            if Some(at) == index {
                let seed = Seek {
                    tokens: &self.tokens[1..],
                    ambiguous: self.ambiguous,
                };
                match seq.next_element_seed(seed)? {
                    Some(value) => found = value,
                    None => return Ok(found),
                }
            } else if seq.next_element::<IgnoredAny>()?.is_none() {
                return Ok(found);
            }
            at += 1;
        }
    }

    fn visit_bool<E>(self, _: bool) -> Result<Self::Value, E> {
        Ok(None)
    }
    fn visit_i64<E>(self, _: i64) -> Result<Self::Value, E> {
        Ok(None)
    }
    fn visit_u64<E>(self, _: u64) -> Result<Self::Value, E> {
        Ok(None)
    }
    fn visit_f64<E>(self, _: f64) -> Result<Self::Value, E> {
        Ok(None)
    }
    fn visit_str<E>(self, _: &str) -> Result<Self::Value, E> {
        Ok(None)
    }
    fn visit_unit<E>(self) -> Result<Self::Value, E> {
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn find(pointer: &str, body: &str) -> Result<Option<String>, Unreadable> {
        let pointer = Pointer::parse("key", pointer).unwrap();
        pointer.find(body.as_bytes()).map(|v| v.map(|raw| raw.get().to_owned()))
    }

    #[test]
    fn pointers_find_what_rfc_6901_says() {
        let body = r#"{"a":{"b":[10,{"c/d":"x","m~n":"y"}]},"":"empty","big":123456789012345678901234567890}"#;
        for (pointer, expected) in [
            ("/a/b/0", Some("10")),
            ("/a/b/1/c~1d", Some("\"x\"")),
            ("/a/b/1/m~0n", Some("\"y\"")),
            ("/", Some("\"empty\"")),
            ("/big", Some("123456789012345678901234567890")),
            ("/a/b/2", None),
            ("/a/b/-", None),
            ("/a/b/00", None),
            ("/a/b/0/deeper", None),
            ("/missing", None),
        ] {
            assert_eq!(find(pointer, body).unwrap().as_deref(), expected, "{pointer}");
        }
    }

    #[test]
    fn what_is_not_json_cannot_be_read() {
        for body in [
            "",
            "{",
            "not json",
            "{\"id\":\"x\"} trailing",
            "\u{1F600}",
            "[1,2",
            r#"{"note\ud800":1,"id":"x"}"#,
        ] {
            let found = find("/id", body);
            assert!(matches!(found, Err(Unreadable::NotJson(_))), "{body:?} {found:?}");
        }
    }

    #[test]
    fn a_member_that_appears_twice_is_ambiguous() {
        assert_eq!(find("/id", r#"{"id":"a","id":"b"}"#), Err(Unreadable::Ambiguous));
        assert_eq!(find("/id", r#"{"id":"a","\u0069d":"b"}"#), Err(Unreadable::Ambiguous));
        assert_eq!(find("/id", r#"{"x":1,"x":2,"id":"a"}"#), Ok(Some("\"a\"".into())));
    }

    #[test]
    fn bad_pointers_are_configuration_errors() {
        for text in ["", "event_id", "/a~", "/a~2b"] {
            assert!(Pointer::parse("key", text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn a_path_deeper_than_the_parser_goes_cannot_be_read() {
        let body = format!("{}1{}", r#"{"a":"#.repeat(200), "}".repeat(200));
        let found = find(&"/a".repeat(200), &body);
        assert!(matches!(found, Err(Unreadable::NotJson(_))), "{found:?}");
        assert_eq!(
            find(
                &"/a".repeat(100),
                &format!("{}1{}", r#"{"a":"#.repeat(100), "}".repeat(100))
            ),
            Ok(Some("1".into()))
        );
    }

    #[test]
    fn deep_nesting_beside_the_pointer_is_skipped_without_recursion() {
        let nested = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
        assert_eq!(
            find("/id", &format!("{{\"x\":{nested},\"id\":\"a\"}}")),
            Ok(Some("\"a\"".into()))
        );
    }
}
