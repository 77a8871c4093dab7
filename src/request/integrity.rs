//! The digests that a client declares for its body: `Content-Digest` and `Repr-Digest` (RFC 9530).

use std::fmt;

use http::HeaderMap;
use http::header::{CONTENT_ENCODING, CONTENT_RANGE, CONTENT_TYPE, HeaderName};
use sha2::{Digest as _, Sha256, Sha512};
use smallvec::SmallVec;

const CONTENT_DIGEST: HeaderName = HeaderName::from_static("content-digest");
const REPR_DIGEST: HeaderName = HeaderName::from_static("repr-digest");

/// The name under which a record stores a declared digest that was verified.
pub(crate) type Vouch = [u8; 16];

/// A digest header that is invalid, whatever the body contains.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum InvalidDigest {
    /// The header is not a structured field of digests.
    Malformed(&'static str),
    /// Two headers declare different digests for the same body.
    Contradictory,
}

/// The declared digests that can be checked. Digests with other algorithms are ignored.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct DeclaredDigests {
    sha256: Option<[u8; 32]>,
    sha512: Option<[u8; 64]>,
}

impl fmt::Debug for DeclaredDigests {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DeclaredDigests").finish_non_exhaustive()
    }
}

impl DeclaredDigests {
    /// Returns the digests that the headers declare, or `None` if none of them can be checked.
    pub(crate) fn of(headers: &HeaderMap) -> Result<Option<Self>, InvalidDigest> {
        // Requests have few headers, and comparing names is faster than hashing them.
        if !headers
            .keys()
            .any(|name| *name == CONTENT_DIGEST || *name == REPR_DIGEST)
        {
            return Ok(None);
        }
        let mut declared = Self {
            sha256: None,
            sha512: None,
        };
        declared.read(headers, &CONTENT_DIGEST, "Content-Digest")?;
        // The digest of a representation does not apply to a part of it.
        if !headers.contains_key(CONTENT_RANGE) {
            declared.read(headers, &REPR_DIGEST, "Repr-Digest")?;
        }
        Ok(Some(declared).filter(|declared| declared.sha256.is_some() || declared.sha512.is_some()))
    }

    fn read(&mut self, headers: &HeaderMap, name: &HeaderName, title: &'static str) -> Result<(), InvalidDigest> {
        let malformed = InvalidDigest::Malformed(title);
        let mut lines = headers.get_all(name).iter();
        let Some(first) = lines.next() else { return Ok(()) };
        let mut field = first.as_bytes().to_vec();
        for line in lines {
            field.extend_from_slice(b", ");
            field.extend_from_slice(line.as_bytes());
        }
        let digests: sfv::Dictionary = sfv::Parser::new(&field).parse().map_err(|_| malformed)?;
        for (algorithm, entry) in &digests {
            let bytes = match entry {
                sfv::ListEntry::Item(item) => item.bare_item.as_byte_sequence(),
                sfv::ListEntry::InnerList(_) => None,
            };
            match algorithm.as_str() {
                "sha-256" => set(&mut self.sha256, bytes, malformed)?,
                "sha-512" => set(&mut self.sha512, bytes, malformed)?,
                _ => {}
            }
        }
        Ok(())
    }

    /// Returns whether the body matches these digests.
    pub(crate) fn match_body(&self, body: &[u8]) -> bool {
        let mut check = self.check();
        check.data(body);
        check.finish()
    }

    /// Starts checking a streamed body.
    pub(crate) fn check(&self) -> DigestCheck {
        DigestCheck {
            sha256: self.sha256.map(|declared| (Sha256::new(), declared)),
            sha512: self.sha512.map(|declared| (Sha512::new(), declared)),
        }
    }

    /// Returns the names of the declared digests. Each name is derived from the digest and from the
    /// headers that determine how the body is read.
    pub(crate) fn vouches(&self, headers: &HeaderMap) -> SmallVec<[Vouch; 2]> {
        let of = |algorithm: &[u8], digest: &[u8]| {
            let mut vouch = blake3::Hasher::new();
            let mut field = |bytes: &[u8]| {
                vouch.update(&(bytes.len() as u64).to_le_bytes());
                vouch.update(bytes);
            };
            field(b"ti.vouch");
            field(algorithm);
            field(digest);
            for name in [CONTENT_TYPE, CONTENT_ENCODING] {
                for line in headers.get_all(&name) {
                    field(name.as_str().as_bytes());
                    field(line.as_bytes());
                }
            }
            let mut name = Vouch::default();
            name.copy_from_slice(&vouch.finalize().as_bytes()[..16]);
            name
        };
        let sha256 = self.sha256.iter().map(|digest| of(b"sha-256", digest));
        let sha512 = self.sha512.iter().map(|digest| of(b"sha-512", digest));
        sha256.chain(sha512).collect()
    }
}

fn set<const N: usize>(
    declared: &mut Option<[u8; N]>,
    bytes: Option<&[u8]>,
    malformed: InvalidDigest,
) -> Result<(), InvalidDigest> {
    let digest = bytes.and_then(|bytes| bytes.try_into().ok()).ok_or(malformed)?;
    match declared.replace(digest) {
        Some(other) if other != digest => Err(InvalidDigest::Contradictory),
        _ => Ok(()),
    }
}

/// Checks a streamed body against its declared digests as data arrives.
pub(crate) struct DigestCheck {
    sha256: Option<(Sha256, [u8; 32])>,
    sha512: Option<(Sha512, [u8; 64])>,
}

impl DigestCheck {
    pub(crate) fn data(&mut self, data: &[u8]) {
        if let Some((digest, _)) = &mut self.sha256 {
            digest.update(data);
        }
        if let Some((digest, _)) = &mut self.sha512 {
            digest.update(data);
        }
    }

    /// Returns whether every declared digest is correct. Call this method when the body has ended.
    pub(crate) fn finish(self) -> bool {
        self.sha256
            .is_none_or(|(digest, declared)| <[u8; 32]>::from(digest.finalize()) == declared)
            && self
                .sha512
                .is_none_or(|(digest, declared)| <[u8; 64]>::from(digest.finalize()) == declared)
    }
}
