//! The fields of an `application/x-www-form-urlencoded` body (WHATWG URL, section 5).

use std::borrow::Cow;

use crate::digest::Digest;
use crate::request::json::Pointer;

const PAIR: u8 = 1;

/// Returns a digest of the fields' bytes, in order. Fields whose name is in `without` are left out.
pub(super) fn digest_of(body: &[u8], without: &[Pointer]) -> [u8; 32] {
    let mut digest = Digest::new(b"ti.pairs");
    for pair in body.split(|byte| *byte == b'&') {
        let name = pair.split(|byte| *byte == b'=').next().unwrap_or_default();
        let name = name_of(name);
        if !without.iter().any(|pointer| pointer.is_name(&name)) {
            digest.field(PAIR, pair);
        }
    }
    digest.finish()
}

/// Returns the decoded name of a field, from the text before the `=`.
pub(super) fn name_of(encoded: &[u8]) -> Cow<'_, str> {
    // The text contains neither `&` nor `=`, so the parser returns at most one pair.
    form_urlencoded::parse(encoded)
        .next()
        .map(|(name, _)| name)
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest(body: &str, without: &[&str]) -> [u8; 32] {
        let without: Vec<_> = without.iter().map(|text| Pointer::parse("", text).unwrap()).collect();
        digest_of(body.as_bytes(), &without)
    }

    #[test]
    fn contract_5_4_fields_of_a_form_can_be_left_out() {
        let rest = digest("a=1&b=2", &["/csrf"]);
        for same in [
            "csrf=x&a=1&b=2",
            "a=1&csrf=&b=2",
            "a=1&b=2&csrf",
            "a=1&b=2&csrf=x=y",
            "a=1&%63srf=x&b=2&csrf=z",
        ] {
            assert_eq!(digest(same, &["/csrf"]), rest, "{same}");
        }
        for other in [
            "a=1",
            "a=1&b=3",
            "b=2&a=1",
            "a=1&b=2&csrf2=x",
            "a=1&b=2&",
            "a=1&&b=2",
            "a=1%26b=2",
            "CSRF=x&a=1&b=2",
        ] {
            assert_ne!(digest(other, &["/csrf"]), rest, "{other}");
        }
        assert_eq!(digest("sent+at=1&x=1", &["/sent at"]), digest("x=1", &["/sent at"]));
        assert_eq!(digest("a%2Fb=1&x=1", &["/a~1b"]), digest("x=1", &["/a~1b"]));
        // A pointer with two steps names no field.
        assert_ne!(digest("csrf=1&x=1", &["/csrf/0"]), digest("x=1", &["/csrf/0"]));
        // Bytes that are not UTF-8 are not confused with each other.
        assert_ne!(digest("%ff=1", &["/csrf"]), digest("%fe=1", &["/csrf"]));
    }
}
