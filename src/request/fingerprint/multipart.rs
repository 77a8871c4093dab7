//! The parts of a `multipart/form-data` body (RFC 7578). Clients separate the parts with a new
//! boundary for every attempt.

use std::convert::Infallible;
use std::future::ready;
use std::pin::pin;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use futures_util::stream;
use http::HeaderMap;
use http::header::{CONTENT_DISPOSITION, CONTENT_TYPE, HeaderName};
use multer::{Field, Multipart};

use crate::digest::Digest;
use crate::request::content::{content_type, is_encoded};
use crate::request::json::Pointer;

/// The maximum number of parts. A body with more parts is compared by its bytes, because such a
/// body is not a form that a person filled in.
pub(super) const MAX_PARTS: usize = 10_000;
pub(super) const CONTENT_TRANSFER_ENCODING: &str = "content-transfer-encoding";
/// The maximum length of a boundary (RFC 2046, section 5.1.1).
const MAX_BOUNDARY: usize = 70;

// The tags of the fields. Stored fingerprints depend on these values, so they must never change.
const DISPOSITION: u8 = 1;
const TYPE: u8 = 2;
const TRANSFER_ENCODING: u8 = 3;
const CONTENT: u8 = 4;

/// Returns a digest of the parts, in order. For each part, the digest covers `Content-Disposition`
/// (which contains the name and the file name), `Content-Type`, `Content-Transfer-Encoding` and the
/// content. Parts whose name is in `without` are left out.
///
/// Returns `None` if the body is not `multipart/form-data`, or is malformed.
pub(super) fn digest_of(headers: &HeaderMap, body: &Bytes, without: &[Pointer]) -> Option<[u8; 32]> {
    // The first byte is enough to rule out nearly every body of a different type.
    match body.starts_with(b"--") {
        true => digest_of_form(headers, body, without),
        false => None,
    }
}

#[cold]
fn digest_of_form(headers: &HeaderMap, body: &Bytes, without: &[Pointer]) -> Option<[u8; 32]> {
    let boundary = boundary_of(headers)?;
    let reading = pin!(read(body, &boundary, without));
    // The body is in memory, so the future never has to wait.
    match reading.poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(digest) => digest,
        Poll::Pending => None,
    }
}

/// Returns the boundary between the parts of a form, or `None` if the body is not a form or is
/// encoded.
pub(super) fn boundary_of(headers: &HeaderMap) -> Option<String> {
    if is_encoded(headers) {
        return None;
    }
    let boundary = multer::parse_boundary(content_type(headers)?).ok()?;
    (1..=MAX_BOUNDARY).contains(&boundary.len()).then_some(boundary)
}

async fn read(body: &Bytes, boundary: &str, without: &[Pointer]) -> Option<[u8; 32]> {
    let mut digest = Digest::new(b"ti.parts");
    let whole = stream::once(ready(Ok::<_, Infallible>(body.clone())));
    let mut multipart = Multipart::new(whole, boundary);
    let mut rest = &body[..];
    let mut parts = 0;
    while let Some(mut part) = multipart.next_field().await.ok()? {
        parts += 1;
        if parts > MAX_PARTS {
            return None;
        }
        let content = content_of(&mut part).await?;
        rest = after_part(rest, boundary, part.headers(), &content)?;
        let name = part
            .headers()
            .get(CONTENT_DISPOSITION)
            .and_then(|line| name_in(line.as_bytes()));
        if name.is_some_and(|name| without.iter().any(|pointer| pointer.is_name(name))) {
            continue;
        }
        for (tag, name) in [
            (DISPOSITION, CONTENT_DISPOSITION),
            (TYPE, CONTENT_TYPE),
            (TRANSFER_ENCODING, HeaderName::from_static(CONTENT_TRANSFER_ENCODING)),
        ] {
            if let Some(line) = part.headers().get(name) {
                digest.field(tag, line.as_bytes());
            }
        }
        digest.content(CONTENT, &content);
    }
    is_end(rest, boundary).then(|| digest.finish())
}

/// Returns a part's whole content. The content arrives in one piece, because the body does.
async fn content_of(part: &mut Field<'_>) -> Option<Bytes> {
    let content = part.chunk().await.ok()?.unwrap_or_default();
    part.chunk().await.ok()?.is_none().then_some(content)
}

/// Returns the rest of the body after a part, or `None` if the parser has skipped text, which the
/// digest would not cover.
fn after_part<'b>(rest: &'b [u8], boundary: &str, headers: &HeaderMap, content: &[u8]) -> Option<&'b [u8]> {
    let rest = rest.strip_prefix(b"--")?.strip_prefix(boundary.as_bytes())?;
    let rest = rest.strip_prefix(b"\r\n")?;
    let end = rest.windows(4).position(|four| four == b"\r\n\r\n")?;
    // If a header appears twice, the parser returns only its last line.
    if rest[..end].split(|byte| *byte == b'\n').count() != headers.len() {
        return None;
    }
    rest[end + 4..].strip_prefix(content)?.strip_prefix(b"\r\n")
}

fn is_end(rest: &[u8], boundary: &str) -> bool {
    let end = rest
        .strip_prefix(b"--")
        .and_then(|rest| rest.strip_prefix(boundary.as_bytes()));
    matches!(end, Some(b"--" | b"--\r\n"))
}

/// Returns the name in a `Content-Disposition`, if the name is where every client puts it. A part
/// whose name is in a different place is not left out.
pub(super) fn name_in(disposition: &[u8]) -> Option<&str> {
    let text = std::str::from_utf8(disposition).ok()?;
    let text = text.trim_start().strip_prefix("form-data")?.trim_start();
    let text = text.strip_prefix(';')?.trim_start().strip_prefix("name=")?;
    match text.strip_prefix('"') {
        Some(quoted) => quoted
            .split_once('"')
            .map(|(name, _)| name)
            .filter(|name| !name.contains('\\')),
        None => text.split(';').next().map(str::trim_end),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest(boundary: &str, body: &str) -> Option<[u8; 32]> {
        digest_without(boundary, body, &[])
    }

    fn digest_without(boundary: &str, body: &str, without: &[&str]) -> Option<[u8; 32]> {
        let without: Vec<_> = without.iter().map(|text| Pointer::parse("", text).unwrap()).collect();
        let mut headers = HeaderMap::new();
        let value = format!("multipart/form-data; boundary={boundary}");
        headers.insert(CONTENT_TYPE, value.parse().unwrap());
        digest_of(&headers, &Bytes::copy_from_slice(body.as_bytes()), &without)
    }

    /// Returns a well-formed body. Each part is a pair of its header lines and its content.
    fn form(boundary: &str, parts: &[(&[&str], &str)]) -> String {
        let mut body = String::new();
        for (lines, content) in parts {
            body += &format!("--{boundary}\r\n{}\r\n\r\n{content}\r\n", lines.join("\r\n"));
        }
        body + &format!("--{boundary}--\r\n")
    }

    const NAME: &str = r#"Content-Disposition: form-data; name="a""#;
    const FILE: &str = r#"Content-Disposition: form-data; name="f"; filename="x.png""#;
    const PNG: &str = "Content-Type: image/png";

    #[test]
    fn contract_5_4_a_form_is_its_parts_and_not_its_boundary() {
        let parts: &[(&[&str], &str)] = &[(&[NAME], "1"), (&[FILE, PNG], "bytes\r\n--other\r\n")];
        let first = digest("one", &form("one", parts)).unwrap();
        for boundary in ["two", "----WebKitFormBoundary7MA4YWxkTrZu0gW", "'()+_,-./:=?"] {
            let quoted = format!("\"{boundary}\"");
            assert_eq!(digest(&quoted, &form(boundary, parts)), Some(first), "{boundary}");
        }
        // Other spellings of headers, and headers that are not covered.
        let name = NAME.replace("Content-Disposition: ", "content-disposition:");
        let other: &[(&[&str], &str)] = &[
            (&[&name, "Content-Length: 1"], "1"),
            (&[PNG, FILE], "bytes\r\n--other\r\n"),
        ];
        assert_eq!(digest("one", &form("one", other)), Some(first));
        let body = form("one", parts);
        assert_eq!(digest("one", body.strip_suffix("\r\n").unwrap()), Some(first));
    }

    #[test]
    fn contract_5_4_whatever_counts_of_a_part_makes_another_form() {
        let gif = "Content-Type: image/gif";
        let renamed = FILE.replace("x.png", "y.png");
        let starred = FILE.to_owned() + "; filename*=utf-8''z.png";
        let base64 = "Content-Transfer-Encoding: base64";
        let forms: &[&[(&[&str], &str)]] = &[
            &[],
            &[(&[NAME], "1")],
            &[(&[NAME], "2")],
            &[(&[NAME], "")],
            &[(&[NAME], "1"), (&[NAME], "1")],
            &[(&[FILE], "1")],
            &[(&[&renamed], "1")],
            &[(&[&starred], "1")],
            &[(&[FILE, PNG], "1")],
            &[(&[FILE, gif], "1")],
            &[(&[FILE, gif, base64], "1")],
            &[(&[FILE], "1"), (&[NAME], "1")],
            &[(&[NAME], "1"), (&[FILE], "1")],
            &[(&["X: y"], "1")],
        ];
        let digests: Vec<_> = forms
            .iter()
            .filter_map(|parts| digest("b", &form("b", parts)))
            .collect();
        // A form without parts has only the last boundary line.
        assert_eq!(digests.len(), forms.len());
        let distinct: std::collections::HashSet<_> = digests.iter().collect();
        assert_eq!(distinct.len(), digests.len());
    }

    #[test]
    fn contract_5_4_malformed_multipart_is_not_read() {
        let good = form("b", &[(&[NAME], "1")]);
        assert!(digest("b", &good).is_some());
        let part = good.strip_suffix("--b--\r\n").unwrap();
        for (why, body) in [
            ("empty", String::new()),
            ("another boundary", good.replace("--b", "--c")),
            ("no end", part.to_owned()),
            ("no end of the end", part.to_owned() + "--b-"),
            ("a preamble", "--x\r\n".to_owned() + &good),
            ("a preamble on the line", "--x".to_owned() + &good),
            ("an epilogue", good.clone() + "more"),
            ("another form after the end", good.clone() + &good),
            ("padding", good.replace("--b\r\n", "--b \r\n")),
            ("bare line feeds", good.replace("\r\n", "\n")),
            ("a header twice", form("b", &[(&[NAME, NAME], "1")])),
            (
                "a header twice, other case",
                form("b", &[(&[NAME, &NAME.replace("Content-D", "content-d")], "1")]),
            ),
            (
                "an empty line of a line feed",
                form("b", &[(&[NAME, "X: y\n\nZ: z"], "1")]),
            ),
            ("no colon", form("b", &[(&["Content-Disposition"], "1")])),
            ("no headers", "--b\r\n\r\n1\r\n--b--\r\n".to_owned()),
            ("40 headers", form("b", &[(&["X: y"; 40], "1")])),
        ] {
            assert_eq!(digest("b", &body), None, "{why}");
        }
        for boundary in ["", "\"\"", &"b".repeat(71), "\"b"] {
            assert_eq!(digest(boundary, &good), None, "{boundary}");
        }
        let mut headers = HeaderMap::new();
        let body = Bytes::from(good);
        assert_eq!(digest_of(&headers, &body, &[]), None);
        headers.insert(CONTENT_TYPE, "multipart/mixed; boundary=b".parse().unwrap());
        assert_eq!(digest_of(&headers, &body, &[]), None);
        headers.insert(CONTENT_TYPE, "multipart/form-data; boundary=b".parse().unwrap());
        assert!(digest_of(&headers, &body, &[]).is_some());
        headers.insert("content-encoding", "gzip".parse().unwrap());
        assert_eq!(digest_of(&headers, &body, &[]), None);
    }

    #[test]
    fn contract_5_4_parts_can_be_left_out_by_name() {
        let csrf = r#"Content-Disposition: form-data; name="csrf""#;
        let bare = "Content-Disposition: form-data; name=csrf";
        let rest = form("b", &[(&[NAME], "1")]);
        let expected = digest("b", &rest);
        for parts in [
            &[(&[csrf][..], "x"), (&[NAME], "1")][..],
            &[(&[NAME], "1"), (&[csrf], "y")],
            &[
                (&[bare], "z"),
                (&[NAME], "1"),
                (&[csrf, "Content-Type: text/plain"], ""),
            ],
        ] {
            assert_eq!(digest_without("b", &form("b", parts), &["/csrf", "/x/y"]), expected);
        }
        // Parts with names that only resemble `csrf` are not left out.
        for name in ["csrf2", "CSRF", "csr", "\\\"csrf"] {
            let line = format!(r#"Content-Disposition: form-data; name="{name}""#);
            let body = form("b", &[(&[&line], "x"), (&[NAME], "1")]);
            assert_ne!(digest_without("b", &body, &["/csrf"]), expected, "{name}");
        }
        let hidden = r#"Content-Disposition: form-data; filename="; name=csrf"; name="b""#;
        let body = form("b", &[(&[hidden], "x"), (&[NAME], "1")]);
        assert_ne!(digest_without("b", &body, &["/csrf"]), expected);
    }

    #[test]
    fn contract_5_4_many_parts_and_huge_headers_are_bounded() {
        let parts = |count| form("b", &vec![(&[NAME][..], "1"); count]);
        assert!(digest("b", &parts(MAX_PARTS)).is_some());
        assert_eq!(digest("b", &parts(MAX_PARTS + 1)), None);
        let huge = format!("X: {}", "y".repeat(1_000_000));
        assert!(digest("b", &form("b", &[(&[NAME, &huge], "1")])).is_some());
        // Patterns that look like the beginning of a delimiter, repeated many times and never
        // completed.
        for pattern in [
            "--b",
            "\r\n--b",
            "\r\n--",
            "\r\n",
            "--b\r\n",
            "--b\r\n\r\n",
            "--b\r\nX: y\r\n",
        ] {
            let body = format!("--b\r\n{NAME}\r\n\r\n{}", pattern.repeat(2_000_000 / pattern.len()));
            assert_eq!(digest("b", &body), None, "{pattern:?}");
        }
    }
}
