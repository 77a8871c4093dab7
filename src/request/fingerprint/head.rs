//! The part of a fingerprint that comes from a request's head alone.

use http::request::Parts;

use super::Fingerprint;
use super::body::BodyDigest;
use super::cover::{CLOSURE, target};
use super::source::{Covers, FingerprintSource};
use crate::digest::Digest;
use crate::error::ConfigError;

/// The fingerprint of a request whose body has not arrived yet.
pub(crate) struct HeadPrint {
    pub(crate) fingerprint: Fingerprint,
    /// Digests the body while it is streamed. `None` if the body is not covered.
    pub(crate) body: Option<BodyDigest>,
}

impl FingerprintSource {
    /// Returns the fingerprint, if the body is not covered.
    pub(crate) fn of_head(&self, parts: &Parts) -> Option<Fingerprint> {
        match &self.covers {
            Covers::Nothing => Some(Fingerprint::new(self.rule, &[0; 32])),
            Covers::Head(cover) => {
                let covered = cover(parts).ok()?;
                let mut digest = Digest::new(b"ti.prnt2");
                digest.content(CLOSURE, &covered);
                Some(Fingerprint::new(self.rule, &digest.finish()))
            }
            _ => None,
        }
    }

    /// Returns the fingerprint of a request whose body is streamed. A JSON body of at most
    /// `json_limit` bytes is compared by meaning.
    pub(crate) fn of_streamed(&self, parts: &Parts, json_limit: usize) -> HeadPrint {
        if let Some(fingerprint) = self.of_head(parts) {
            return HeadPrint {
                fingerprint,
                body: None,
            };
        }
        let mut digest = Digest::new(b"ti.head1");
        if !matches!(self.covers, Covers::Body) {
            target(&mut digest, parts);
        }
        let [first, second] = self.rule;
        HeadPrint {
            fingerprint: Fingerprint::new([first | Fingerprint::STREAMED, second], &digest.finish()),
            body: Some(BodyDigest::new(self, &parts.headers, json_limit)),
        }
    }

    /// Checks that this source can cover a body that is not buffered.
    pub(crate) fn validate_streamed(&self) -> Result<(), ConfigError> {
        match self.covers {
            Covers::Closure(_) => Err(ConfigError::new(
                "stream_request_bodies",
                "the fingerprint is a closure over the whole body, which would have to be buffered; use another \
                 `FingerprintSource`, such as `request()` or `from_head(…)`",
            )),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digest::hex;
    use bytes::Bytes;

    fn head(method: &str, uri: &str) -> Parts {
        let request = http::Request::builder().method(method).uri(uri);
        request.body(()).unwrap().into_parts().0
    }

    fn sources() -> [FingerprintSource; 6] {
        [
            FingerprintSource::request(),
            FingerprintSource::canonical_json(),
            FingerprintSource::json_fields(["/a"]),
            FingerprintSource::body(),
            FingerprintSource::request().without(["/a"]),
            FingerprintSource::from_head(|_| Err("it cannot".into())),
        ]
    }

    #[test]
    fn contract_8_2_the_head_of_a_streamed_request_is_its_method_path_and_query() {
        for source in sources() {
            let of = |method, uri| source.of_streamed(&head(method, uri), 100).fingerprint;
            let is_body_alone = matches!(source.covers, Covers::Body);
            let first = of("POST", "/a?x=1");
            assert_eq!(first, of("POST", "/a?x=1"));
            for (method, uri) in [
                ("PATCH", "/a?x=1"),
                ("POST", "/b?x=1"),
                ("POST", "/a?x=2"),
                ("POST", "/a"),
            ] {
                assert_eq!(first == of(method, uri), is_body_alone, "{source:?} {method} {uri}");
            }
        }
    }

    #[test]
    fn contract_5_9_a_streamed_request_is_of_another_rule_than_a_held_one() {
        let parts = head("POST", "/");
        let streamed = sources().map(|source| source.of_streamed(&parts, 100).fingerprint);
        let held = sources().map(|source| source.of(&parts, &Bytes::new()));
        let all = [streamed, held].concat();
        for (at, one) in all.iter().enumerate() {
            let same = all.iter().filter(|other| one.is_same_rule(other)).count();
            assert_eq!(same, 1, "{at}");
        }
    }

    #[test]
    fn contract_8_6_a_body_that_does_not_count_leaves_the_fingerprint_as_it_is() {
        let parts = head("POST", "/");
        for source in [
            FingerprintSource::none(),
            FingerprintSource::from_head(|_| Ok(b"covered".to_vec())),
        ] {
            let held = source.of(&parts, &Bytes::from("a body"));
            let streamed = source.of_streamed(&parts, 100);
            assert_eq!((streamed.fingerprint, source.of_head(&parts)), (held, Some(held)));
            assert!(streamed.body.is_none());
        }
    }

    /// Fingerprints are stored, so those of a released version must never change.
    #[test]
    fn golden_heads() {
        let of = |source: FingerprintSource| source.of_streamed(&head("POST", "/a?x=1"), 100).fingerprint;
        for (source, golden) in [
            (FingerprintSource::request(), "932c266c14ba09440f4b46090f12df80"),
            (FingerprintSource::body(), "c32c68a7d3731e9050e3131b69da13ed"),
        ] {
            assert_eq!(hex(of(source).as_bytes()), golden);
        }
    }
}
