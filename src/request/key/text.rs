//! Valid keys, and their representation in a header.

use std::borrow::Cow;
use std::fmt;

#[cfg(feature = "client")]
use http::HeaderValue;
use smallvec::SmallVec;

/// The forms of a key that are accepted in a header.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum KeyFormat {
    /// The quoted form of the draft and the bare form that SDKs send. Both forms represent the same
    /// key.
    #[default]
    Any,
    /// Only a structured-field String (RFC 9651, section 3.3.3), as section 2.1 of the draft
    /// requires.
    Structured,
    /// Only UUIDs, of any version, in the form of RFC 9562, section 4, bare or quoted. The case of
    /// the digits is ignored.
    Uuid,
}

/// The reason why a key is refused. The text is the problem's `detail`, and never contains the key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InvalidKey(Cow<'static, str>);

impl InvalidKey {
    /// Creates an error with this reason. The reason is sent to the client as the problem's
    /// `detail`.
    #[must_use]
    pub fn new(reason: impl Into<Cow<'static, str>>) -> Self {
        Self(reason.into())
    }

    pub(crate) fn into_detail(self) -> Cow<'static, str> {
        self.0
    }
}

impl fmt::Display for InvalidKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for InvalidKey {}

/// A validated key. A key of ordinary length, such as a UUID, needs no allocation.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct KeyText(SmallVec<[u8; 40]>);

impl From<&str> for KeyText {
    fn from(key: &str) -> Self {
        Self(SmallVec::from_slice(key.as_bytes()))
    }
}

impl KeyText {
    pub(crate) fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    pub(crate) fn as_str(&self) -> &str {
        // The bytes come from a `str`.
        std::str::from_utf8(&self.0).unwrap_or_default()
    }
}

/// Checks the characters and the length of a key, whatever its source.
pub(crate) fn check_text(key: &str, max_length: usize) -> Result<(), InvalidKey> {
    if !key.bytes().all(|byte| matches!(byte, b' '..=b'~')) {
        return Err(not_visible());
    }
    check_length(key, max_length)
}

pub(super) fn check_length(key: &str, max_length: usize) -> Result<(), InvalidKey> {
    if key.is_empty() {
        return Err(InvalidKey::new("the key is empty"));
    }
    if key.len() > max_length {
        return Err(InvalidKey::new(format!(
            "the key is {} bytes long; at most {max_length} bytes are allowed",
            key.len(),
        )));
    }
    Ok(())
}

/// Returns whether this value can only come from a bug in a client: a missing value turned into
/// text, an unfilled template, the nil UUID or the max UUID (RFC 9562, sections 5.9 and 5.10). The
/// comparison ignores case.
///
/// For nearly every key, the first byte is enough to decide.
pub(super) fn is_placeholder(key: &str) -> bool {
    let is_one_of = |texts: &[&str]| texts.iter().any(|text| key.eq_ignore_ascii_case(text));
    match key.as_bytes() {
        [b'n' | b'N', ..] => is_one_of(&["null", "none", "nil", "nan"]),
        [b'u' | b'U', ..] => {
            is_one_of(&["undefined"])
                || key
                    .get(9..)
                    .is_some_and(|uuid| key[..9].eq_ignore_ascii_case("urn:uuid:") && is_nil_or_max(uuid))
        }
        [b'[', ..] => is_one_of(&["[object Object]"]),
        [b'$', b'{', .., b'}'] | [b'{', b'{', .., b'}', b'}'] => true,
        [b'{', uuid @ .., b'}'] => std::str::from_utf8(uuid).is_ok_and(is_nil_or_max),
        _ => is_nil_or_max(key),
    }
}

/// Returns whether the text is the nil or the max UUID, with or without hyphens.
fn is_nil_or_max(text: &str) -> bool {
    let [digit @ (b'0' | b'f' | b'F'), ..] = text.as_bytes() else {
        return false;
    };
    // Most keys already differ from both UUIDs at the second byte, so few keys are parsed.
    text.bytes()
        .all(|byte| byte == b'-' || byte.eq_ignore_ascii_case(digit))
        && uuid::Uuid::try_parse(text).is_ok()
}

pub(super) fn not_visible() -> InvalidKey {
    InvalidKey::new("the key must contain only visible ASCII characters (and, inside quotes, spaces)")
}

/// Returns the key in a header line. A quoted key is unquoted, and any other line is returned
/// unchanged. Returns `None` if the line is not text, or if the key is empty.
#[cfg(feature = "client")]
pub(crate) fn text_of_line(line: &HeaderValue) -> Option<Cow<'_, str>> {
    let text = line.to_str().ok()?;
    let text = match text.as_bytes().first()? {
        b'"' => unquote(text.as_bytes()).unwrap_or(Cow::Borrowed(text)),
        _ => Cow::Borrowed(text),
    };
    (!text.is_empty()).then_some(text)
}

/// Returns the string inside a structured-field Item. The Item's parameters are checked for
/// validity, but otherwise ignored.
pub(super) fn unquote(line: &[u8]) -> Result<Cow<'_, str>, InvalidKey> {
    // Nearly every client sends this form: quotes around text that needs no escapes.
    if let [b'"', inner @ .., b'"'] = line
        && inner
            .iter()
            .all(|&byte| matches!(byte, b' '..=b'~') && byte != b'"' && byte != b'\\')
    {
        return std::str::from_utf8(inner).map(Cow::Borrowed).map_err(|_| not_visible());
    }
    let item: sfv::Item = sfv::Parser::new(line).parse().map_err(|error| {
        InvalidKey::new(format!(
            "the key is not a structured-field String (RFC 9651, section 3.3.3): {error}"
        ))
    })?;
    match item.bare_item {
        sfv::BareItem::String(text) => Ok(Cow::Owned(text.into())),
        _ => Err(InvalidKey::new(
            "the key is not a structured-field String (RFC 9651, section 3.3.3)",
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn contract_2_7_placeholders_are_whole_values_in_any_case() {
        for placeholder in [
            "undefined",
            "null",
            "None",
            "nil",
            "NaN",
            "[object Object]",
            "{{key}}",
            "{{}}",
            "{{ $guid }}",
            "${key}",
            "${}",
            "00000000-0000-0000-0000-000000000000",
            "00000000000000000000000000000000",
            "{00000000-0000-0000-0000-000000000000}",
            "urn:uuid:00000000-0000-0000-0000-000000000000",
            "ffffffff-ffff-ffff-ffff-ffffffffffff",
            "ffffffffffffffffffffffffffffffff",
            "{ffffffff-ffff-ffff-ffff-ffffffffffff}",
            "urn:uuid:ffffffff-ffff-ffff-ffff-ffffffffffff",
        ] {
            for spelling in [
                placeholder.to_owned(),
                placeholder.to_uppercase(),
                placeholder.to_lowercase(),
            ] {
                assert!(is_placeholder(&spelling), "{spelling}");
            }
        }
    }

    #[test]
    fn contract_2_7_what_only_resembles_a_placeholder_is_a_key() {
        for key in [
            "",
            "0",
            "f",
            "nullable",
            "undefined-1",
            " null",
            "[object Object]1",
            "{key}",
            "{{key}}-1",
            "a{{key}}",
            "{{key}",
            "${key}1",
            "$key",
            "{{",
            "${",
            "}}",
            "{}",
            "000000000000",
            "0000-0000",
            "00000000-0000-0000-0000-000000000001",
            "10000000-0000-0000-0000-000000000000",
            "ffffffff-ffff-ffff-ffff-fffffffffff0",
            "0000000-00000-0000-0000-000000000000",
            "urn:uuid:8e03978e-40d5-43dd-bc93-6894a57f9324",
            "urn:uuid",
        ] {
            assert!(!is_placeholder(key), "{key}");
        }
    }
}
