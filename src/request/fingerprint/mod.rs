//! The fingerprint, which decides whether two requests with the same key are the same request
//! (contract, section 5).

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

/// A digest of the parts of a request that decide whether two requests with the same key are the
/// same request, and the rule that selects these parts.
///
/// | bytes | content |
/// |---|---|
/// | 0 and 1 | the rule: the [`FingerprintSource`], its parameters and its version; the first bit is set if the body is streamed |
/// | 2 to 15 | 112 bits of a SHA-256 digest of the parts that the rule covers; zeros if the rule covers nothing |
///
/// If a request's body is streamed, the fingerprint covers only the head. Once the body has ended,
/// the record contains a digest of the parts of the body that the rule covers.
///
/// Two fingerprints can be compared only if they were made by the same rule
/// ([`is_same_rule`](Self::is_same_rule)). After a deploy that changed the rule, the stored
/// fingerprints cannot be compared with those of new requests. In that case, a store must not
/// report that the requests differ.
///
/// A client that found two requests with the same fingerprint would only receive its own first
/// response for the second request. Therefore, 112 bits are enough. By contrast, slots separate
/// tenants, so a slot is a whole digest.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Fingerprint([u8; Fingerprint::LEN]);

impl Fingerprint {
    /// The length of a fingerprint, in bytes.
    pub const LEN: usize = 16;

    /// The number of leading bytes that identify the rule.
    const RULE: usize = 2;

    /// Creates a fingerprint from the bytes that a store saved.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; Self::LEN]) -> Self {
        Self(bytes)
    }

    /// The bytes that a store saves.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8; Self::LEN] {
        &self.0
    }

    /// Returns whether both fingerprints were made by the same rule, so that they can be compared.
    /// If not, a difference between the fingerprints has no meaning.
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

    /// Returns whether the requests differ: both fingerprints were made by the same rule, and their
    /// digests are not equal.
    #[must_use]
    pub fn conflicts_with(&self, other: &Self) -> bool {
        self.is_same_rule(other) && self != other
    }

    /// Returns whether both fingerprints have the same source, but only one of the two requests has
    /// a streamed body. The two fingerprints then cover different parts of the request.
    pub(crate) fn differs_in_streaming(&self, other: &Self) -> bool {
        self.0[0] ^ other.0[0] == Self::STREAMED && self.0[1] == other.0[1]
    }

    /// The bit in the rule that marks a request whose body is streamed. The first four bits of a
    /// rule hold the source's number, which is 1 to 7, so the top bit is free.
    const STREAMED: u8 = 0x80;

    pub(crate) fn is_streamed(&self) -> bool {
        self.0[0] & Self::STREAMED != 0
    }

    /// Creates a fingerprint from a rule and the digest of the parts that the rule covers.
    fn new(rule: [u8; Self::RULE], digest: &[u8; 32]) -> Self {
        let mut bytes = [0; Self::LEN];
        bytes[..Self::RULE].copy_from_slice(&rule);
        bytes[Self::RULE..].copy_from_slice(&digest[..Self::LEN - Self::RULE]);
        Self(bytes)
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The whole digest is not shown, because guesses of a short body could be tested against
        // it. A few bytes are enough to compare fingerprints by eye.
        let [source, rule, first, second, ..] = self.0;
        write!(f, "Fingerprint({source:02x}{rule:02x}:{first:02x}{second:02x}..)")
    }
}
