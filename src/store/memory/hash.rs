//! Hashing slots.

use std::hash::{BuildHasher, Hasher};

/// Hashes slots. A slot is a digest already, so that folding two of its words is enough; the seed
/// keeps a client from making keys that fall into one place.
#[derive(Clone)]
pub(super) struct SlotState {
    seed: (u64, u64),
}

impl SlotState {
    pub(super) fn new() -> Self {
        Self {
            seed: uuid::Uuid::new_v4().as_u64_pair(),
        }
    }
}

impl BuildHasher for SlotState {
    type Hasher = SlotHasher;

    fn build_hasher(&self) -> SlotHasher {
        SlotHasher {
            seed: self.seed,
            hash: 0,
        }
    }
}

pub(super) struct SlotHasher {
    seed: (u64, u64),
    hash: u64,
}

impl Hasher for SlotHasher {
    fn write(&mut self, bytes: &[u8]) {
        if let Some((first, rest)) = bytes.split_first_chunk::<8>()
            && let Some(second) = rest.first_chunk::<8>()
        {
            let (first, second) = (u64::from_le_bytes(*first), u64::from_le_bytes(*second));
            let product = u128::from(first ^ self.seed.0) * u128::from(second ^ self.seed.1);
            self.hash = (product as u64) ^ ((product >> 64) as u64);
        }
    }

    /// The length prefix that arrays are hashed with.
    fn write_usize(&mut self, _: usize) {}

    fn finish(&self) -> u64 {
        self.hash
    }
}

/// Hashes tags of scopes, which are random already: the map takes its places from the lower bits and
/// compares the upper ones, so that both get some of each.
#[derive(Clone, Copy, Default)]
pub(super) struct TagHasher(u64);

impl Hasher for TagHasher {
    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.write_u32(byte.into());
        }
    }

    fn write_u32(&mut self, tag: u32) {
        // The golden ratio's fraction, as in Fibonacci hashing.
        self.0 = (self.0.rotate_left(32) ^ u64::from(tag)).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    }

    fn finish(&self) -> u64 {
        self.0 ^ (self.0 >> 32)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::request::Slot;

    #[test]
    fn slots_that_begin_alike_do_not_hash_alike() {
        let state = SlotState::new();
        let hash = |n: u64| {
            let mut bytes = [7; Slot::LEN];
            bytes[8..16].copy_from_slice(&n.to_le_bytes());
            state.hash_one(Slot::from_bytes(bytes))
        };
        // The map's parts are told by the upper bits, places in a part by the lower.
        for bits in [0..8, 49..57] {
            let places: std::collections::HashSet<_> = (0..10_000)
                .map(|n| hash(n) >> bits.start & ((1 << (bits.end - bits.start)) - 1))
                .collect();
            assert!(places.len() > 200, "{bits:?}: {}", places.len());
        }
    }

    #[test]
    fn tags_spread_over_upper_and_lower_bits() {
        let state = std::hash::BuildHasherDefault::<TagHasher>::default();
        for bits in [0..8, 57..64] {
            let places: std::collections::HashSet<_> = (0..10_000)
                .map(|n| state.hash_one(crate::request::ScopeTag::new(n * 256)) >> bits.start)
                .map(|hash| hash & ((1 << (bits.end - bits.start)) - 1))
                .collect();
            assert!(places.len() > 100, "{bits:?}: {}", places.len());
        }
    }

    #[test]
    fn each_store_hashes_by_a_seed_of_its_own() {
        let slot = Slot::from_bytes([7; Slot::LEN]);
        assert_ne!(SlotState::new().hash_one(slot), SlotState::new().hash_one(slot));
    }
}
