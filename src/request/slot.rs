//! The slot: all that a store sees of scope and key.

use std::fmt;

use super::key::InvalidKey;
use crate::digest::hex;

/// A SHA-256 of scope and key, each length-prefixed: the name under which a store keeps an
/// operation. Neither the key nor the credentials can be read from it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Slot([u8; Slot::LEN]);

impl Slot {
    /// Bytes of a slot.
    pub const LEN: usize = 32;

    /// A slot made elsewhere, as for a store's own tests.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; Self::LEN]) -> Self {
        Self(bytes)
    }

    /// The slot in hexadecimal, whole, as the stores show it.
    #[must_use]
    pub fn to_hex(&self) -> String {
        hex(&self.0)
    }

    /// The bytes to store it under.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8; Self::LEN] {
        &self.0
    }
}

/// The first four bytes in hexadecimal: enough to find an operation in logs, and little to test
/// guesses of a weak credential against.
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

/// Why [`IdempotencyLayer::slot`](crate::IdempotencyLayer::slot) cannot name a slot.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum SlotError {
    /// The layer refuses requests with this key, so that no operation is kept under it.
    InvalidKey(InvalidKey),
    /// The layer's scope combines another number of sources.
    #[non_exhaustive]
    ScopeValues {
        /// How many sources the layer's [`ScopeSource`](crate::ScopeSource) combines.
        expected: usize,
        /// How many values were given.
        given: usize,
    },
}

impl fmt::Display for SlotError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::InvalidKey(invalid) => write!(f, "the key is invalid: {invalid}"),
            Self::ScopeValues { expected, given } => write!(
                f,
                "the scope has {given} values, but the layer combines {expected} sources; give one value for each, in their order"
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

/// Names a scope: all slots of one scope have the same tag. A store keeps it with each record, shares
/// out its room by it, and can [forget](crate::store::Inspect::forget_scope) a whole scope.
///
/// It is a SipHash-2-4 of 128 bits, keyed by
/// [`scope_tag_secret`](crate::IdempotencyLayerBuilder::scope_tag_secret). Processes with the same secret
/// make the same tags. [`IdempotencyLayer::scope_tag`](crate::IdempotencyLayer::scope_tag) names the tag of
/// a caller.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct ScopeTag([u8; ScopeTag::LEN]);

impl ScopeTag {
    /// Bytes of a tag.
    pub const LEN: usize = 16;

    /// A tag made elsewhere, such as one that a store kept.
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

/// The first four bytes: enough to tell scopes from each other in logs.
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
