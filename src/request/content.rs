//! The headers that describe a request's body.

use http::HeaderMap;
use http::header::{CONTENT_ENCODING, CONTENT_TYPE};

use super::lines::lines;

/// Returns whether the body is encoded, which means that its bytes are not the content itself (RFC
/// 9110, section 8.4).
pub(crate) fn is_encoded(headers: &HeaderMap) -> bool {
    let is_coding = |coding: &[u8]| !coding.is_empty() && !coding.eq_ignore_ascii_case(b"identity");
    headers
        .get_all(CONTENT_ENCODING)
        .iter()
        .flat_map(|line| line.as_bytes().split(|byte| *byte == b','))
        .any(|coding| is_coding(coding.trim_ascii()))
}

/// Returns the `Content-Type` with its parameters, or `None` if the header is missing or appears
/// more than once.
pub(crate) fn content_type(headers: &HeaderMap) -> Option<&str> {
    let mut lines = lines(headers, &CONTENT_TYPE);
    let line = lines.next()?;
    match lines.next() {
        None => line.to_str().ok(),
        Some(_) => None,
    }
}

/// Returns the media type of a `Content-Type`, without parameters.
pub(crate) fn media_type(content_type: &str) -> &str {
    content_type.split(';').next().unwrap_or_default().trim()
}

pub(crate) fn is_form(headers: &HeaderMap) -> bool {
    content_type(headers)
        .is_some_and(|value| media_type(value).eq_ignore_ascii_case("application/x-www-form-urlencoded"))
}

/// Returns whether the request declares its body as JSON (`application/json`, or the suffix `+json`
/// from RFC 6839), or declares no type at all.
pub(crate) fn may_be_json(headers: &HeaderMap) -> bool {
    if !headers.contains_key(CONTENT_TYPE) {
        return true;
    }
    content_type(headers).is_some_and(|value| {
        let media_type = media_type(value);
        let suffix = media_type
            .len()
            .checked_sub("+json".len())
            .and_then(|at| media_type.get(at..));
        media_type.eq_ignore_ascii_case("application/json")
            || suffix.is_some_and(|suffix| suffix.eq_ignore_ascii_case("+json"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(name: &'static str, values: &[&str]) -> HeaderMap {
        values
            .iter()
            .map(|value| (name.parse().unwrap(), value.parse().unwrap()))
            .collect()
    }

    #[test]
    fn every_coding_but_identity_encodes() {
        for (values, encoded) in [
            (&[][..], false),
            (&["identity"], false),
            (&["IDENTITY, identity"], false),
            (&[""], false),
            (&["gzip"], true),
            (&["identity, br"], true),
            (&["identity", "zstd"], true),
            (&["unknown"], true),
        ] {
            assert_eq!(is_encoded(&of("content-encoding", values)), encoded, "{values:?}");
        }
    }

    #[test]
    fn media_types_are_case_insensitive_and_may_have_parameters() {
        for (values, json, form) in [
            (&[][..], true, false),
            (&["application/json"], true, false),
            (&["Application/JSON; charset=utf-8"], true, false),
            (&["application/vnd.api+json"], true, false),
            (&["text/plain"], false, false),
            (&["json"], false, false),
            (&["application/json", "text/plain"], false, false),
            (&["application/x-www-form-urlencoded; charset=UTF-8"], false, true),
            (&["multipart/form-data; boundary=x"], false, false),
        ] {
            let headers = of("content-type", values);
            assert_eq!((may_be_json(&headers), is_form(&headers)), (json, form), "{values:?}");
        }
    }
}
