//! The digest of a body that is streamed instead of buffered.

use std::fmt;
use std::sync::Arc;

use http::HeaderMap;
use smallvec::SmallVec;

use super::pairs::Pairs;
use super::parts::Parts;
use super::source::{Covers, FingerprintSource};
use crate::digest::{Digest, StreamDigest};
use crate::request::content::{is_encoded, is_form, may_be_json};
use crate::request::integrity::Vouch;
use crate::request::json::Pointer;

/// The information about the request's body that a record contains.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct BodyPrint {
    /// The digest of the covered parts of the body.
    pub(crate) digest: [u8; BodyPrint::LEN],
    /// The digests that the client declared and the layer verified.
    pub(crate) vouched: SmallVec<[Vouch; 2]>,
}

impl BodyPrint {
    /// The length of a digest, in bytes. This length is enough: a client that found two bodies with
    /// the same digest would only receive its own first response for the second body.
    pub(crate) const LEN: usize = 16;
}

impl fmt::Debug for BodyPrint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [first, second, ..] = self.digest;
        write!(
            f,
            "BodyPrint({first:02x}{second:02x}.., {} vouched)",
            self.vouched.len()
        )
    }
}

// The tags for the ways to read a body. Stored records depend on these values, so they must never
// change.
const RAW: u8 = 1;
const MULTIPART: u8 = 2;
const FORM: u8 = 3;
const JSON: u8 = 4;

/// Digests a body while it is streamed.
pub(crate) struct BodyDigest {
    /// The digest of the raw bytes, used if the body cannot be read in the way that the source
    /// requires.
    raw: StreamDigest,
    read_as: ReadAs,
}

enum ReadAs {
    Bytes,
    Parts(Box<Parts>),
    Pairs(Box<Pairs>),
    /// The text received so far, and the source that selects the covered parts of it.
    Json {
        text: Vec<u8>,
        limit: usize,
        source: FingerprintSource,
    },
}

impl BodyDigest {
    pub(super) fn new(source: &FingerprintSource, headers: &HeaderMap, json_limit: usize) -> Self {
        let without: Arc<[Pointer]> = source.without.clone().unwrap_or_default();
        let as_json = match source.covers {
            Covers::CanonicalJson | Covers::JsonFields(_) => true,
            Covers::Request => !without.is_empty() && may_be_json(headers),
            _ => false,
        };
        let read_as = if let Some(parts) = Parts::of(headers, &without) {
            ReadAs::Parts(Box::new(parts))
        } else if !without.is_empty() && is_form(headers) && !is_encoded(headers) {
            ReadAs::Pairs(Box::new(Pairs::new(&without)))
        } else if as_json {
            ReadAs::Json {
                text: Vec::new(),
                limit: json_limit,
                source: source.clone(),
            }
        } else {
            ReadAs::Bytes
        };
        Self {
            raw: StreamDigest::new(),
            read_as,
        }
    }

    pub(crate) fn data(&mut self, data: &[u8]) {
        match &mut self.read_as {
            // Every body can be read as fields, so the raw digest is never needed.
            ReadAs::Pairs(pairs) => return pairs.data(data),
            ReadAs::Bytes => {}
            ReadAs::Parts(parts) => parts.data(data),
            ReadAs::Json { text, limit, .. } => {
                if text.len().saturating_add(data.len()) > *limit {
                    self.read_as = ReadAs::Bytes;
                } else {
                    text.extend_from_slice(data);
                }
            }
        }
        self.raw.update(data);
    }

    /// Returns the digest of the covered parts of the body. Call this method when the body has
    /// ended.
    pub(crate) fn finish(self) -> [u8; BodyPrint::LEN] {
        let raw = || self.raw.finish();
        let (tag, digest) = match self.read_as {
            ReadAs::Bytes => (RAW, raw()),
            ReadAs::Parts(parts) => match parts.finish() {
                Some(digest) => (MULTIPART, digest),
                None => (RAW, raw()),
            },
            ReadAs::Pairs(pairs) => (FORM, pairs.finish()),
            ReadAs::Json { text, source, .. } => {
                let mut digest = Digest::new(b"ti.json1");
                match source.json_of(&mut digest, &text) {
                    true => (JSON, digest.finish()),
                    false => (RAW, raw()),
                }
            }
        };
        let mut whole = blake3::Hasher::new();
        whole.update(b"ti.body1").update(&[tag]).update(&digest);
        let mut print = [0; BodyPrint::LEN];
        print.copy_from_slice(&whole.finalize().as_bytes()[..BodyPrint::LEN]);
        print
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digest::hex;
    use http::header::CONTENT_TYPE;

    fn of(source: &FingerprintSource, content_type: &str, body: &str) -> [u8; BodyPrint::LEN] {
        let headers = HeaderMap::from_iter([(CONTENT_TYPE, content_type.parse().unwrap())]);
        let mut digest = BodyDigest::new(source, &headers, 100);
        body.as_bytes().chunks(7).for_each(|frame| digest.data(frame));
        digest.finish()
    }

    /// These digests are stored, so those of a released version must never change.
    #[test]
    fn golden_body_prints() {
        let json = r#"{"b":1,"a":[2]}"#;
        let form = "--b\r\nContent-Disposition: form-data; name=\"a\"\r\n\r\n1\r\n--b--\r\n";
        let multipart = "multipart/form-data; boundary=b";
        for (source, content_type, body, golden) in [
            (
                FingerprintSource::request(),
                "text/plain",
                json,
                "a382521fd4c091a881196fc91f0d2164",
            ),
            (
                FingerprintSource::canonical_json(),
                "text/plain",
                json,
                "0a8deca4d458dd4148cf9db1cdaea9bf",
            ),
            (
                FingerprintSource::json_fields(["/a/0", "/c"]),
                "text/plain",
                json,
                "9e5325dc0637e1b27d4b74a92399f04b",
            ),
            (
                FingerprintSource::request(),
                multipart,
                form,
                "9159cc4c2287ed27a55a23cce9a94595",
            ),
            (
                FingerprintSource::request().without(["/b"]),
                "application/x-www-form-urlencoded",
                "a=1&b=2",
                "3ec5d062d2d7546bd08f5cb3308bf262",
            ),
        ] {
            assert_eq!(
                hex(&of(&source, content_type, body)),
                golden,
                "{source:?} {content_type}"
            );
        }
    }

    #[test]
    fn contract_8_5_one_text_read_in_two_ways_is_two_bodies() {
        let form = "application/x-www-form-urlencoded";
        let without = FingerprintSource::request().without(["/x"]);
        let prints = [
            of(&without, "text/plain", "{}"),
            of(&without, "application/json", "{}"),
            of(&without, form, "{}"),
            of(&without, "multipart/form-data; boundary=b", "--b--"),
            of(&without, "text/plain", "--b--"),
        ];
        let distinct: std::collections::HashSet<_> = prints.iter().collect();
        assert_eq!(distinct.len(), prints.len());
    }

    #[test]
    fn contract_8_5_no_text_is_held_beyond_its_limit() {
        let source = FingerprintSource::canonical_json();
        let mut digest = BodyDigest::new(&source, &HeaderMap::new(), 100);
        for _ in 0..100 {
            digest.data(b"1234567890");
            assert!(!matches!(&digest.read_as, ReadAs::Json { text, .. } if text.len() > 100));
        }
        assert!(matches!(digest.read_as, ReadAs::Bytes));
    }
}
