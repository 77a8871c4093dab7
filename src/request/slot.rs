//! The slot and the scope's tag: the only forms in which a store sees the scope and the key.

use std::fmt;

use super::key::InvalidKey;
use crate::digest::hex;

/// The name under which a store saves an operation: a SHA-256 digest of the scope and the key, each
/// prefixed with its length. Neither the key nor the credentials can be recovered from the slot.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Slot([u8; Slot::LEN]);

impl Slot {
    /// The length of a slot, in bytes.
    pub const LEN: usize = 32;

    /// Creates a slot from its bytes, for example in a store's tests.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; Self::LEN]) -> Self {
        Self(bytes)
    }

    /// Returns the complete slot in hexadecimal, as the stores display it.
    #[must_use]
    pub fn to_hex(&self) -> String {
        hex(&self.0)
    }

    /// The bytes under which a store saves the operation.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8; Self::LEN] {
        &self.0
    }
}

/// Shows the first four bytes in hexadecimal. These bytes are enough to find an operation in a log,
/// but not enough to test guesses of a weak credential.
impl fmt::Display for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0[..4].iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Slot({self}..)")
    }
}

/// The reason why [`IdempotencyLayer::slot`](crate::IdempotencyLayer::slot) cannot return a slot.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum SlotError {
    /// The layer refuses requests with this key, so no operation has this key.
    InvalidKey(InvalidKey),
    /// The number of values differs from the number of sources that the layer's scope combines.
    #[non_exhaustive]
    ScopeValues {
        /// The number of sources that the layer's [`ScopeSource`](crate::ScopeSource) combines.
        expected: usize,
        /// The number of values that were given.
        given: usize,
    },
}

impl fmt::Display for SlotError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::InvalidKey(invalid) => write!(f, "the key is invalid: {invalid}"),
            Self::ScopeValues { expected, given } => write!(
                f,
                "the scope has {given} values, but the layer combines {expected} sources; pass one value for each source, in order"
            ),
        }
    }
}

impl std::error::Error for SlotError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::InvalidKey(invalid) => Some(invalid),
            Self::ScopeValues { .. } => None,
        }
    }
}

impl From<InvalidKey> for SlotError {
    fn from(invalid: InvalidKey) -> Self {
        Self::InvalidKey(invalid)
    }
}

/// The name of a scope: all slots in a scope have the same tag. A store saves the tag with each
/// record, uses it to divide its space among scopes, and can
/// [forget](crate::store::Inspect::forget_scope) a whole scope.
///
/// The tag is a 128-bit SipHash-2-4, keyed with
/// [`scope_tag_secret`](crate::IdempotencyLayerBuilder::scope_tag_secret). Processes with the same
/// secret compute the same tags.
/// [`IdempotencyLayer::scope_tag`](crate::IdempotencyLayer::scope_tag) returns a caller's tag.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct ScopeTag([u8; ScopeTag::LEN]);

impl ScopeTag {
    /// The length of a tag, in bytes.
    pub const LEN: usize = 16;

    /// Creates a tag from its bytes, for example from bytes that a store has saved.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; Self::LEN]) -> Self {
        Self(bytes)
    }

    /// The bytes to store.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; Self::LEN] {
        &self.0
    }
}

/// Shows the first four bytes, which are enough to tell scopes apart in logs.
impl fmt::Debug for ScopeTag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ScopeTag({}..)", hex(&self.0[..4]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neither_display_nor_debug_shows_a_whole_slot_or_tag() {
        let slot = Slot::from_bytes([0xAB; 32]);
        assert_eq!(format!("{slot} {slot:?}"), "abababab Slot(abababab..)");
        let tag = ScopeTag::from_bytes([0xCD; ScopeTag::LEN]);
        assert_eq!(format!("{tag:?}"), "ScopeTag(cdcdcdcd..)");
    }
}
