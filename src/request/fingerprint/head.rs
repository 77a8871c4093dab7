//! What the head of a request alone says of its fingerprint.

use http::request::Parts;

use super::Fingerprint;
use super::body::BodyDigest;
use super::cover::{CLOSURE, target};
use super::source::{Covers, FingerprintSource};
use crate::digest::Digest;
use crate::error::ConfigError;

/// The fingerprint of a request whose body is not there yet.
pub(crate) struct HeadPrint {
    pub(crate) fingerprint: Fingerprint,
    /// What digests the body on its way. `None`: nothing of it counts.
    pub(crate) body: Option<BodyDigest>,
}

impl FingerprintSource {
    /// The fingerprint, if the body does not count.
    pub(crate) fn of_head(&self, parts: &Parts) -> Option<Fingerprint> {
        match &self.covers {
            Covers::Nothing => Some(Fingerprint::new(self.rule, &[0; 32])),
            Covers::Head(cover) => {
                let covered = cover(parts).ok()?;
                let mut digest = Digest::new(b"ti.prnt2");
                digest.field(CLOSURE, &covered);
                Some(Fingerprint::new(self.rule, &digest.finish()))
            }
            _ => None,
        }
    }

    /// The fingerprint of a request whose body is streamed. JSON is compared by its meaning if it has at most
    /// `json_limit` bytes.
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
        // The sources take seven of the sixteen numbers that the four bits of a rule have.
        let [first, second] = self.rule;
        HeadPrint {
            fingerprint: Fingerprint::new([first | 0x80, second], &digest.finish()),
            body: Some(BodyDigest::new(self, &parts.headers, json_limit)),
        }
    }

    /// Whether what it covers can be told of a body that is not held.
    pub(crate) fn validate_streamed(&self) -> Result<(), ConfigError> {
        match self.covers {
            Covers::Closure(_) => Err(ConfigError::new(
                "stream_request_bodies",
                "the fingerprint is a closure over the whole body, which would have to be held; use another \
                 `FingerprintSource`, such as `request()` or `from_head(…)`",
            )),
            _ => Ok(()),
        }
    }
}
