//! The fingerprint: what makes two requests with one key the same request (contract, section 5).

mod body;
mod cover;
mod form;
mod head;
mod multipart;
mod pairs;
mod parts;
mod source;

use std::fmt;

pub(crate) use body::{BodyDigest, BodyPrint};
pub(crate) use head::HeadPrint;
pub use source::FingerprintSource;

/// What makes two requests with one key the same: a digest of what counts, and the rule that says
/// what counts.
///
/// | bytes | hold |
/// |---|---|
/// | 0 and 1 | the rule: which [`FingerprintSource`] with which parameters, in which version; the first bit says that the body is streamed |
/// | 2 to 15 | 112 bits of a SHA-256 over what the rule covers; zeros if it covers nothing |
///
/// The fingerprint of a request whose body is streamed covers the head. What the rule covers of the body
/// is in the record, once the body has ended.
///
/// Two fingerprints can be compared only if they were made by one rule
/// ([`is_same_rule`](Self::is_same_rule)). After a deploy that changed the rule, the fingerprints
/// in the store say nothing of the requests that arrive: a store must not answer that they differ.
///
/// A client that found two requests with one fingerprint would only get its own first answer for
/// the second, so that half a SHA-256 is ample; slots, which separate tenants, keep the whole.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Fingerprint([u8; Fingerprint::LEN]);

impl Fingerprint {
    /// Bytes of a fingerprint.
    pub const LEN: usize = 16;

    /// How many of them, at the front, say which rule made it.
    const RULE: usize = 2;

    /// A fingerprint read back from a store.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; Self::LEN]) -> Self {
        Self(bytes)
    }

    /// The bytes that a store keeps.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8; Self::LEN] {
        &self.0
    }

    /// Whether both were made by one rule, so that they can be compared. If not, that they are
    /// different says nothing.
    ///
    /// ```
    /// use tower_idempotency::Fingerprint;
    ///
    /// let stored = Fingerprint::from_bytes([1, 0, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7]);
    /// let other_body = Fingerprint::from_bytes([1, 0, 8, 8, 8, 8, 8, 8, 8, 8, 8, 8, 8, 8, 8, 8]);
    /// let other_rule = Fingerprint::from_bytes([2, 0, 8, 8, 8, 8, 8, 8, 8, 8, 8, 8, 8, 8, 8, 8]);
    /// assert!(stored.is_same_rule(&other_body));
    /// assert!(!stored.is_same_rule(&other_rule));
    /// ```
    #[must_use]
    pub fn is_same_rule(&self, other: &Self) -> bool {
        self.0[..Self::RULE] == other.0[..Self::RULE]
    }

    /// Whether the requests differ: both fingerprints are of one rule, and their digests are not equal.
    #[must_use]
    pub fn conflicts_with(&self, other: &Self) -> bool {
        self.is_same_rule(other) && self != other
    }

    /// Whether both are of one source, and one is of a request whose body is streamed and the other is not.
    /// Each says of its request what the other does not.
    pub(crate) fn differs_in_streaming(&self, other: &Self) -> bool {
        self.0[0] ^ other.0[0] == Self::STREAMED && self.0[1] == other.0[1]
    }

    /// The bit of the rule of a request whose body is streamed. The sources take seven of the sixteen numbers
    /// that the first four bits of a rule have.
    const STREAMED: u8 = 0x80;

    pub(crate) fn is_streamed(&self) -> bool {
        self.0[0] & Self::STREAMED != 0
    }

    /// Of a rule and the digest of what it covers.
    fn new(rule: [u8; Self::RULE], digest: &[u8; 32]) -> Self {
        let mut bytes = [0; Self::LEN];
        bytes[..Self::RULE].copy_from_slice(&rule);
        bytes[Self::RULE..].copy_from_slice(&digest[..Self::LEN - Self::RULE]);
        Self(bytes)
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // A digest of a short body could be found by trying; a few bytes are enough to compare by
        // eye.
        let [source, rule, first, second, ..] = self.0;
        write!(f, "Fingerprint({source:02x}{rule:02x}:{first:02x}{second:02x}..)")
    }
}
