//! The `Authorization` header (RFC 9110, section 11.6.2), which can identify the caller.

use std::borrow::Cow;

/// Schemes whose credentials change with every request. The credentials contain a signature, a
/// nonce or a date, or are a step in a handshake.
const CHANGING: [&str; 8] = [
    "AWS4-HMAC-SHA256",
    "Digest",
    "OAuth",
    "Signature",
    "DPoP",
    "Negotiate",
    "NTLM",
    "Hawk",
];

/// Returns whether the value has a scheme that nearly every client sends, spelled as in the RFCs.
fn is_usual(value: &[u8]) -> bool {
    value.starts_with(b"Bearer ") || value.starts_with(b"Basic ")
}

/// Returns the scheme of this value, if its credentials change with every request.
pub(crate) fn changing_scheme(value: &[u8]) -> Option<&'static str> {
    if is_usual(value) {
        return None;
    }
    let scheme = scheme_of(value)?;
    if scheme.len() > 5 && scheme[..5].eq_ignore_ascii_case(b"AWS4-") {
        return Some(CHANGING[0]);
    }
    CHANGING
        .into_iter()
        .find(|changing| scheme.eq_ignore_ascii_case(changing.as_bytes()))
}

/// Returns the value with its scheme capitalized, as in `Bearer`. Schemes are case-insensitive (RFC
/// 9110, section 11.1).
///
/// The common spelling is returned unchanged, without an allocation.
pub(crate) fn with_scheme_in_one_case(value: &[u8]) -> Cow<'_, [u8]> {
    if is_usual(value) {
        return Cow::Borrowed(value);
    }
    let Some([first, rest @ ..]) = scheme_of(value) else {
        return Cow::Borrowed(value);
    };
    if !first.is_ascii_lowercase() && !rest.iter().any(u8::is_ascii_uppercase) {
        return Cow::Borrowed(value);
    }
    let mut value = value.to_vec();
    if let [first, others @ ..] = &mut value[..=rest.len()] {
        first.make_ascii_uppercase();
        others.make_ascii_lowercase();
    }
    Cow::Owned(value)
}

/// Returns the scheme before the first space. A single-word value has no scheme. Such a value may
/// be a bare token, which is case-sensitive.
fn scheme_of(value: &[u8]) -> Option<&[u8]> {
    let end = value.iter().position(|byte| *byte == b' ')?;
    let scheme = &value[..end];
    let is_token = |byte: &u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(byte);
    scheme.iter().all(is_token).then_some(scheme)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one_case(value: &str) -> String {
        String::from_utf8(with_scheme_in_one_case(value.as_bytes()).into_owned()).unwrap()
    }

    #[test]
    fn contract_3_2_only_the_scheme_is_put_in_one_case() {
        for (value, expected) in [
            ("Bearer aBc", "Bearer aBc"),
            ("bearer aBc", "Bearer aBc"),
            ("BEARER aBc", "Bearer aBc"),
            ("bEARER", "bEARER"),
            ("sk_Test", "sk_Test"),
            ("", ""),
            (" a", " a"),
            ("a:B c", "a:B c"),
            ("b c d", "B c d"),
            ("aws4-hmac-sha256 X", "Aws4-hmac-sha256 X"),
            ("AWS4-HMAC-SHA256 X", "Aws4-hmac-sha256 X"),
        ] {
            assert_eq!(one_case(value), expected);
        }
        assert!(matches!(with_scheme_in_one_case(b"Bearer aBc"), Cow::Borrowed(_)));
        assert_eq!(with_scheme_in_one_case(b"basic \xff"), &b"Basic \xff"[..]);
    }

    #[test]
    fn contract_3_2_schemes_whose_credentials_change_are_known() {
        for value in [
            "AWS4-HMAC-SHA256 Credential=x",
            "aws4-ecdsa-p256-sha256 Credential=x",
            "digest username=x",
            "OAuth oauth_nonce=x",
            "Signature keyId=x",
            "dpop x",
            "Negotiate x",
            "NTLM x",
            "hawk id=x",
        ] {
            assert!(changing_scheme(value.as_bytes()).is_some(), "{value}");
        }
        for value in [
            "Bearer Digest x",
            "Basic x",
            "Digest",
            "Digesting x",
            "",
            " Digest x",
            "AWS4- x",
        ] {
            assert_eq!(changing_scheme(value.as_bytes()), None, "{value}");
        }
    }
}
