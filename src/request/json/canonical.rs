//! One form for every spelling of the same JSON.

use std::collections::BTreeMap;
use std::fmt;

use serde::de::{Deserializer, Error as _, MapAccess, Visitor};
use serde_json::value::RawValue;

/// Deeper bodies are not canonicalised. serde_json refuses to parse deeper than 128 itself; each
/// level is read once more, so the limit also bounds the work a hostile body can cause.
const MAX_DEPTH: usize = 64;

/// Whether the bytes are one JSON text.
pub(crate) fn is_json(body: &[u8]) -> bool {
    serde_json::from_slice::<&RawValue>(body).is_ok()
}

/// The same bytes for every spelling of the same JSON: no white space, members sorted by name,
/// strings escaped one way; numbers as they are written. `None` for what has no single canonical
/// form: text that is not JSON, an object with a member twice, nesting deeper than [`MAX_DEPTH`].
pub(crate) fn canonical(body: &[u8]) -> Option<Vec<u8>> {
    let raw: &RawValue = serde_json::from_slice(body).ok()?;
    let mut out = Vec::with_capacity(body.len());
    write_canonical(raw.get(), &mut out, MAX_DEPTH)?;
    Some(out)
}

fn write_canonical(raw: &str, out: &mut Vec<u8>, depth: usize) -> Option<()> {
    let depth = depth.checked_sub(1)?;
    match raw.trim_start().as_bytes().first()? {
        b'{' => {
            let members: Members<'_> = serde_json::from_str(raw).ok()?;
            out.push(b'{');
            for (i, (name, value)) in members.0.iter().enumerate() {
                if i > 0 {
                    out.push(b',');
                }
                serde_json::to_writer(&mut *out, name).ok()?;
                out.push(b':');
                write_canonical(value.get(), out, depth)?;
            }
            out.push(b'}');
        }
        b'[' => {
            let elements: Vec<&RawValue> = serde_json::from_str(raw).ok()?;
            out.push(b'[');
            for (i, value) in elements.iter().enumerate() {
                if i > 0 {
                    out.push(b',');
                }
                write_canonical(value.get(), out, depth)?;
            }
            out.push(b']');
        }
        b'"' => {
            let text: String = serde_json::from_str(raw).ok()?;
            serde_json::to_writer(out, &text).ok()?;
        }
        _ => out.extend_from_slice(raw.trim().as_bytes()),
    }
    Some(())
}

/// The members of an object in the order of their names, each once.
struct Members<'a>(BTreeMap<String, &'a RawValue>);

impl<'de> serde::Deserialize<'de> for Members<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Once;
        impl<'de> Visitor<'de> for Once {
            type Value = Members<'de>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut members = BTreeMap::new();
                while let Some((name, value)) = map.next_entry::<String, &RawValue>()? {
                    if members.insert(name, value).is_some() {
                        return Err(A::Error::custom("a member stands twice"));
                    }
                }
                Ok(Members(members))
            }
        }
        deserializer.deserialize_map(Once)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn canonical_form_ignores_order_space_and_escapes_only() {
        let canon = |text: &str| canonical(text.as_bytes()).map(|v| String::from_utf8(v).unwrap());
        assert_eq!(
            canon(" { \"b\" : [ 1 , {\"y\":null,\"x\":true} ] , \"a\" : \"\\u0041\" } ").unwrap(),
            r#"{"a":"A","b":[1,{"x":true,"y":null}]}"#
        );
        assert_ne!(canon("1.0"), canon("1"));
        assert_ne!(canon("12345678901234567890123"), canon("12345678901234567890124"));
        assert_ne!(canon("[1,2]"), canon("[2,1]"));
        assert_eq!(canon(r#"{"a":1,"a":1}"#), None);
        assert_eq!(canon("{"), None);
    }

    #[test]
    fn nesting_beyond_the_limit_is_refused_without_recursing_further() {
        let nested = |depth: usize| format!("{}{}", "[".repeat(depth), "]".repeat(depth));
        assert!(canonical(nested(MAX_DEPTH).as_bytes()).is_some());
        assert!(canonical(nested(MAX_DEPTH + 1).as_bytes()).is_none());
        assert!(canonical(nested(100_000).as_bytes()).is_none());
    }
}
