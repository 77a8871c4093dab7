//! The fingerprint of a request: a digest of the parts that its source covers.

use bytes::Bytes;
use http::request::Parts;

use super::source::{Covers, FingerprintSource};
use super::{Fingerprint, form, multipart};
use crate::digest::Digest;
use crate::error::BoxError;
use crate::request::content::{is_encoded, is_form, may_be_json};
use crate::request::json::{self, Pointer};
use crate::request::target::original_uri;

impl FingerprintSource {
    pub(crate) fn of(&self, parts: &Parts, body: &Bytes) -> Fingerprint {
        let mut digest = Digest::new(b"ti.prnt2");
        match &self.covers {
            Covers::Nothing => return Fingerprint::new(self.rule, &[0; 32]),
            Covers::Request => self.request_of(&mut digest, parts, body, !self.fields().is_empty()),
            Covers::CanonicalJson => self.request_of(&mut digest, parts, body, true),
            Covers::JsonFields(_) => {
                target(&mut digest, parts);
                if !self.json_of(&mut digest, body) {
                    whole(&mut digest, parts, body);
                }
            }
            Covers::Body => whole(&mut digest, parts, body),
            Covers::Closure(cover) => self.closure_of(&mut digest, parts, body, cover(parts, body)),
            Covers::Head(cover) => self.closure_of(&mut digest, parts, body, cover(parts)),
        }
        Fingerprint::new(self.rule, &digest.finish())
    }

    fn closure_of(&self, digest: &mut Digest, parts: &Parts, body: &Bytes, covered: Result<Vec<u8>, BoxError>) {
        match covered {
            Ok(covered) => digest.content(CLOSURE, &covered),
            Err(_) => self.request_of(digest, parts, body, false),
        }
    }

    /// Digests the method, the path, the query, and the body without the fields that are left out.
    fn request_of(&self, digest: &mut Digest, parts: &Parts, body: &Bytes, as_json: bool) {
        target(digest, parts);
        let without = self.fields();
        let any_type = matches!(self.covers, Covers::CanonicalJson);
        if let Some(print) = multipart::digest_of(&parts.headers, body, without) {
            digest.field(MULTIPART, &print);
        } else if !without.is_empty() && is_form(&parts.headers) && !is_encoded(&parts.headers) {
            digest.field(FORM, &form::digest_of(body, without));
        } else if !(as_json && (any_type || may_be_json(&parts.headers)) && self.json_of(digest, body)) {
            digest.content(RAW, body);
        }
    }

    /// Digests the covered parts of a JSON body. If the body has no canonical form, digests nothing
    /// and returns `false`.
    pub(super) fn json_of(&self, digest: &mut Digest, body: &[u8]) -> bool {
        let Some(text) = json::canonical(body, self.fields()) else {
            return false;
        };
        let Covers::JsonFields(pointers) = &self.covers else {
            digest.content(CANONICAL, &text);
            return true;
        };
        for pointer in pointers.iter().flat_map(|pointers| pointers.iter()) {
            match pointer.find(&text) {
                Ok(Some(value)) => digest.content(CANONICAL, value.get().as_bytes()),
                Ok(None) => digest.field(ABSENT, b""),
                // A canonical form can always be read.
                Err(_) => digest.content(RAW, body),
            }
        }
        true
    }

    /// Returns the fields that are left out, or no fields if their pointers could not be parsed.
    /// The parse error was already reported when the layer was built.
    pub(super) fn fields(&self) -> &[Pointer] {
        self.without.as_deref().unwrap_or_default()
    }
}

// The tags of the fields. Stored fingerprints depend on these values, so they must never change.
const METHOD: u8 = 1;
const PATH: u8 = 2;
const QUERY: u8 = 3;
const RAW: u8 = 4;
const CANONICAL: u8 = 5;
const ABSENT: u8 = 6;
const MULTIPART: u8 = 8;
const FORM: u8 = 9;
pub(super) const CLOSURE: u8 = 10;

/// Digests the method, path and query.
pub(super) fn target(digest: &mut Digest, parts: &Parts) {
    let uri = original_uri(parts);
    digest.field(METHOD, parts.method.as_str().as_bytes());
    digest.field(PATH, uri.path().as_bytes());
    if let Some(query) = uri.query() {
        digest.field(QUERY, query.as_bytes());
    }
}

/// Digests the whole body: by its parts if it has any, otherwise by its bytes. The tags ensure that
/// the two digests are never confused.
fn whole(digest: &mut Digest, parts: &Parts, body: &Bytes) {
    match multipart::digest_of(&parts.headers, body, &[]) {
        Some(print) => digest.field(MULTIPART, &print),
        None => digest.content(RAW, body),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn print(source: &FingerprintSource, method: &str, uri: &str, body: &str) -> Fingerprint {
        let (parts, ()) = http::Request::builder()
            .method(method)
            .uri(uri)
            .header("x-trace", format!("{:p}", &body))
            .body(())
            .unwrap()
            .into_parts();
        source.of(&parts, &Bytes::copy_from_slice(body.as_bytes()))
    }

    #[test]
    fn contract_5_4_each_source_covers_what_it_says() {
        // (source, same as ("POST", "/a?x=1", {"a":1,"b":2}) for: method, path, query, order, value
        // of b, white space)
        let base = ("POST", "/a?x=1", r#"{"a":1,"b":2}"#);
        for (source, [method, path, query, order, b, space]) in [
            (FingerprintSource::request(), [false, false, false, false, false, false]),
            (
                FingerprintSource::canonical_json(),
                [false, false, false, true, false, true],
            ),
            (
                FingerprintSource::json_fields(["/a"]),
                [false, false, false, true, true, true],
            ),
            (FingerprintSource::body(), [true, true, true, false, false, false]),
            (
                FingerprintSource::from_fn(|parts, _| Ok(parts.method.as_str().into())),
                [false, true, true, true, true, true],
            ),
            (
                FingerprintSource::from_head(|parts| Ok(parts.uri.path().into())),
                [true, false, true, true, true, true],
            ),
            (
                FingerprintSource::from_fn(|_, body| Ok(serde_json::from_slice::<u8>(body)?.to_string().into())),
                [false, false, false, false, false, false],
            ),
            (
                FingerprintSource::request().without(["/b"]),
                [false, false, false, true, true, true],
            ),
            (FingerprintSource::none(), [true; 6]),
        ] {
            let first = print(&source, base.0, base.1, base.2);
            for (what, same, other) in [
                ("itself", true, base),
                ("method", method, ("PATCH", base.1, base.2)),
                ("path", path, (base.0, "/b?x=1", base.2)),
                ("query", query, (base.0, "/a?x=2", base.2)),
                ("no query", query, (base.0, "/a", base.2)),
                ("order", order, (base.0, base.1, r#"{"b":2,"a":1}"#)),
                ("value", b, (base.0, base.1, r#"{"a":1,"b":3}"#)),
                ("space", space, (base.0, base.1, r#"{"a":1, "b":2}"#)),
            ] {
                let second = print(&source, other.0, other.1, other.2);
                assert_eq!(first == second, same, "{source:?} {what}");
            }
        }
    }

    #[test]
    fn a_body_without_a_canonical_form_is_compared_by_its_bytes() {
        let source = FingerprintSource::canonical_json();
        let of = |body| print(&source, "POST", "/", body);
        assert_eq!(of("{"), of("{"));
        assert_ne!(of("{"), of("{ "));
        assert_ne!(of(r#"{"a":1,"a":2}"#), of(r#"{"a":2}"#));
        let fields = FingerprintSource::json_fields(["/a"]);
        let of = |body| print(&fields, "POST", "/", body);
        assert_ne!(of(r#"{"a":1,"a":2}"#), of(r#"{"a":1,"a":3}"#));
        assert_ne!(of(r#"{"a":null}"#), of(r#"{}"#));
        assert_ne!(of("a=1"), of("a=2"));
    }

    #[test]
    fn contract_5_4_what_cannot_be_read_counts_whole_and_is_never_absent() {
        for source in [
            FingerprintSource::canonical_json(),
            FingerprintSource::json_fields(["/amount"]),
            FingerprintSource::request().without(["/note"]),
            FingerprintSource::canonical_json().without(["/note"]),
        ] {
            let of = |body: &str| print(&source, "POST", "/", body);
            let deep = format!("{}{}", "[".repeat(100), "]".repeat(100));
            for unreadable in [
                r#"{"note\ud800":1,"amount":N}"#,
                r#"{"note":"\ud800","amount":N}"#,
                r#"{"x":{"y":["\udfff"]},"amount":N}"#,
                r#"{"amount":N,"amount":N}"#,
                r#"{"x":1,"x":1,"amount":N}"#,
                r#"{"amount":N"#,
                r#"{"amount":N} more"#,
                r#"{"x":DEEP,"amount":N}"#,
            ] {
                let with = |amount: &str| unreadable.replace("DEEP", &deep).replace('N', amount);
                assert_ne!(of(&with("5")), of(&with("9000")), "{source:?} {unreadable}");
                assert_eq!(of(&with("5")), of(&with("5")), "{source:?} {unreadable}");
            }
        }
    }

    #[test]
    fn contract_5_4_left_out_fields_do_not_make_the_rest_equal() {
        let source = FingerprintSource::request().without(["/csrf", "/list/1"]);
        let typed = |content_type: Option<&str>, body: &str| {
            let (mut parts, ()) = http::Request::post("/").body(()).unwrap().into_parts();
            if let Some(content_type) = content_type {
                parts.headers.insert("content-type", content_type.parse().unwrap());
            }
            source.of(&parts, &Bytes::copy_from_slice(body.as_bytes()))
        };
        let (json, form) = (Some("application/json"), Some("application/x-www-form-urlencoded"));
        let multipart = Some("multipart/form-data; boundary=b");
        let csrf = "--b\r\nContent-Disposition: form-data; name=\"csrf\"\r\n\r\nx\r\n";
        let same = [
            (json, r#"{"csrf":"x","a":1}"#, json, r#"{"a":1,"csrf":["y",{}]}"#),
            (json, r#"{"csrf":"x"}"#, json, "{}"),
            (json, r#"{"list":[1,2,3]}"#, json, r#"{"list":[1,9,3]}"#),
            (json, r#"{"a":1}"#, None, r#"{"a":1,"csrf":2}"#),
            (
                json,
                r#"{"a":1}"#,
                Some("application/vnd.api+json"),
                r#"{"csrf":2,"a":1}"#,
            ),
            (form, "csrf=1&a=1", form, "a=1&csrf=2"),
            (
                multipart,
                &format!("{csrf}--b--"),
                multipart,
                &format!("{csrf}{csrf}--b--"),
            ),
        ];
        for (one_type, one, other_type, other) in same {
            assert_eq!(typed(one_type, one), typed(other_type, other), "{one} {other}");
        }
        let rests = [
            typed(json, "{}"),
            typed(json, r#"{"list":[]}"#),
            typed(json, r#"{"list":[1]}"#),
            typed(json, r#"{"list":[1,2,3]}"#),
            typed(json, r#"{"list":[3,2,1]}"#),
            typed(json, r#"{"list":{"0":1}}"#),
            typed(json, ""),
            typed(json, r#"{"csrf":1"#),
            typed(json, r#"{"csrf":2"#),
            typed(form, "csrf=1"),
            typed(form, "csrf=1&csrf=1&"),
            typed(form, "{}"),
            typed(multipart, &format!("{csrf}--b--")),
            typed(multipart, csrf),
            typed(Some("text/plain"), "csrf=1"),
            typed(Some("text/plain"), "csrf=2"),
            typed(Some("text/plain"), r#"{"csrf":1}"#),
        ];
        let distinct: std::collections::HashSet<_> = rests.iter().collect();
        assert_eq!(distinct.len(), rests.len(), "{rests:?}");
        // The fields of an encoded form cannot be read.
        let encoded = |body: &str| {
            let request = http::Request::post("/").header("content-encoding", "x");
            let request = request.header("content-type", "application/x-www-form-urlencoded");
            let (parts, ()) = request.body(()).unwrap().into_parts();
            source.of(&parts, &Bytes::copy_from_slice(body.as_bytes()))
        };
        assert_ne!(encoded("csrf=1"), encoded("csrf=2"));
    }

    #[test]
    fn contract_5_9_every_rule_has_a_tag_of_its_own() {
        let fields = |pointers: &[&str]| FingerprintSource::json_fields(pointers);
        let rules = [
            FingerprintSource::request(),
            FingerprintSource::canonical_json(),
            FingerprintSource::body(),
            FingerprintSource::none(),
            FingerprintSource::from_fn(|_, _| Ok(Vec::new())),
            FingerprintSource::from_head(|_| Ok(Vec::new())),
            fields(&["/a"]),
            fields(&["/b"]),
            fields(&["/a", "/b"]),
            fields(&["/a/b"]),
            FingerprintSource::request().without(["/a"]),
            FingerprintSource::request().without(["/a", "/b"]),
            FingerprintSource::canonical_json().without(["/a"]),
        ];
        for (i, one) in rules.iter().enumerate() {
            for (j, other) in rules.iter().enumerate() {
                let (one, other) = (print(one, "POST", "/", "1"), print(other, "PATCH", "/x", "2"));
                assert_eq!(one.is_same_rule(&other), i == j, "{:?} {:?}", rules[i], rules[j]);
            }
        }
        let again = FingerprintSource::request().without(["/b"]).without(["/a", "/b"]);
        let fields = FingerprintSource::request().without(["/a", "/b"]);
        assert_eq!(print(&again, "POST", "/", "{}"), print(&fields, "POST", "/", "{}"));
    }

    /// Fingerprints are stored, so those of a released version must never change.
    #[test]
    fn golden_fingerprints() {
        let body = r#"{"b":1,"a":[2]}"#;
        for (source, golden) in [
            (FingerprintSource::request(), "132c73b15d0cf44e22647ebe6506d7bc"),
            (FingerprintSource::canonical_json(), "232cd9e06f344264c26ca48a165d8aaf"),
            (
                FingerprintSource::json_fields(["/a/0", "/c"]),
                "3ad3cc2ba8960fc4c73a59787644f2d3",
            ),
            (FingerprintSource::body(), "432cf049311e428a93e32a40c10ac690"),
            (
                FingerprintSource::from_fn(|_, _| Ok(b"covered".to_vec())),
                "532c0f14f31c7c8f5db36172c2cc2fba",
            ),
            (
                FingerprintSource::from_head(|_| Ok(b"covered".to_vec())),
                "632c0f14f31c7c8f5db36172c2cc2fba",
            ),
            (FingerprintSource::none(), "732c0000000000000000000000000000"),
            (
                FingerprintSource::request().without(["/b"]),
                "1d94c8d47a729ddd56661f9fed7eb649",
            ),
        ] {
            let of = print(&source, "POST", "/a?x=1", body);
            assert_eq!(crate::digest::hex(of.as_bytes()), golden, "{source:?}");
        }
    }

    /// In earlier releases, the digest of content of 4 KiB or more was different, and so was the
    /// rule. A new request is therefore treated as the same request, and gets a replay, if the
    /// stored fingerprint is from an earlier release.
    #[test]
    fn contract_5_9_fingerprints_of_the_older_rule_do_not_conflict() {
        let now = print(&FingerprintSource::request(), "POST", "/a?x=1", r#"{"b":1,"a":[2]}"#);
        let older = *b"\x1a\xe8\x73\xb1\x5d\x0c\xf4\x4e\x22\x64\x7e\xbe\x65\x06\xd7\xbc";
        let older = Fingerprint::from_bytes(older);
        assert!(older != now && !older.conflicts_with(&now));
    }

    #[test]
    fn golden_fingerprints_of_long_bodies() {
        let text = |length: usize| format!("\"{}\"", "x".repeat(length - 2));
        // These values were also computed with other implementations of SHA-256 and BLAKE3.
        for (source, length, golden) in [
            (FingerprintSource::request(), 4095, "132c03b442592b937f2dd529f6210419"),
            (FingerprintSource::request(), 4096, "132c25d03a5b789fa159b791572e06e1"),
            (
                FingerprintSource::canonical_json(),
                4096,
                "232c1b6ddb1dcbb0fca9446fe78880e4",
            ),
            (FingerprintSource::body(), 4096, "432c7ce57d809dce1347c1e5b2ce6ff7"),
        ] {
            let of = print(&source, "POST", "/a?x=1", &text(length));
            assert_eq!(crate::digest::hex(of.as_bytes()), golden, "{source:?} {length}");
        }
    }

    #[test]
    fn a_body_is_not_mistaken_for_the_digest_of_a_longer_one() {
        let long = "x".repeat(5000);
        let digest = blake3::hash(long.as_bytes());
        let mut short = Digest::new(b"ti.test.");
        short.content(RAW, digest.as_bytes());
        let mut whole = Digest::new(b"ti.test.");
        whole.content(RAW, long.as_bytes());
        assert_ne!(short.finish(), whole.finish());
    }

    #[test]
    fn pointers_are_checked_when_the_layer_is_built() {
        assert!(FingerprintSource::json_fields(["amount"]).validate().is_err());
        assert!(FingerprintSource::json_fields([""; 0]).validate().is_err());
        assert!(FingerprintSource::json_fields(["/amount"]).validate().is_ok());
        let without = |source: FingerprintSource, fields: &[&str]| source.without(fields).validate();
        assert!(without(FingerprintSource::request(), &["/csrf"]).is_ok());
        assert!(without(FingerprintSource::canonical_json(), &["/a/0"]).is_ok());
        assert!(without(FingerprintSource::request(), &["csrf"]).is_err());
        assert!(without(FingerprintSource::request(), &[]).is_err());
        assert!(without(FingerprintSource::request().without(["csrf"]), &["/a"]).is_err());
        for source in [
            FingerprintSource::body(),
            FingerprintSource::none(),
            FingerprintSource::json_fields(["/a"]),
            FingerprintSource::from_fn(|_, _| Ok(Vec::new())),
            FingerprintSource::from_head(|_| Ok(Vec::new())),
        ] {
            assert!(without(source, &["/csrf"]).is_err());
        }
    }
}
