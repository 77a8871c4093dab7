//! Hashes of slots and scopes.

use std::hash::Hasher;

use crate::request::{ScopeTag, Slot};

/// Hashes slots. A slot is already a digest, so folding two of its words is enough. The seed
/// prevents a client from creating keys that all have the same hash.
pub(super) struct SlotHasher {
    seed: (u64, u64),
}

impl SlotHasher {
    pub(super) fn new() -> Self {
        Self {
            seed: uuid::Uuid::new_v4().as_u64_pair(),
        }
    }

    pub(super) fn hash(&self, slot: &Slot) -> SlotHash {
        SlotHash((self.fold(slot.as_bytes()) >> 32) as u32)
    }

    pub(super) fn scope(&self, tag: &ScopeTag) -> ScopeHash {
        ScopeHash(self.fold(tag.as_bytes()))
    }

    fn fold(&self, digest: &[u8]) -> u64 {
        let word = |at: usize| {
            let mut word = [0; 8];
            word.copy_from_slice(&digest[at..at + 8]);
            u64::from_le_bytes(word)
        };
        let product = u128::from(word(0) ^ self.seed.0) * u128::from(word(8) ^ self.seed.1);
        (product as u64) ^ ((product >> 64) as u64)
    }
}

/// A slot's hash, which locates the slot's entry in the map. The ledger stores only the hash, not
/// the slot. Different slots can have the same hash.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct SlotHash(u32);

/// The hash of a scope's tag. Two scopes with the same hash would be forgotten together, so the
/// hash has 64 bits to make collisions very unlikely.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ScopeHash(u64);

impl ScopeHash {
    pub(super) fn share(self) -> ShareOf {
        ShareOf((self.0 >> 32) as u32)
    }
}

/// Identifies the scope whose share of the space an entry uses. This value is half of a
/// [`ScopeHash`], so scopes with the same half are counted as one scope.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct ShareOf(pub(super) u32);

/// Spreads a [`SlotHash`] over 64 bits for the map. The map takes an entry's tag from the upper
/// bits, its shard from the bits below those, and its place from the lower bits.
#[derive(Clone, Copy, Default)]
pub(super) struct Spread(u64);

/// The fractional part of the golden ratio, as in Fibonacci hashing.
const FIBONACCI: u64 = 0x9E37_79B9_7F4A_7C15;

impl Hasher for Spread {
    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.write_u32(byte.into());
        }
    }

    fn write_u32(&mut self, hash: u32) {
        self.0 = (self.0.rotate_left(32) ^ u64::from(hash)).wrapping_mul(FIBONACCI);
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::hash::BuildHasher;

    use super::*;

    #[test]
    fn slots_that_begin_alike_do_not_hash_alike() {
        let hasher = SlotHasher::new();
        let hash = |n: u64| {
            let mut bytes = [7; Slot::LEN];
            bytes[8..16].copy_from_slice(&n.to_le_bytes());
            hasher.hash(&Slot::from_bytes(bytes))
        };
        let state = std::hash::BuildHasherDefault::<Spread>::default();
        let spread = |n| state.hash_one(hash(n));
        // The same computation as in `DashMap` with 128 shards.
        let shard = |spread: &u64| spread >> 50 & 127;
        let shards: HashSet<_> = (0..10_000).map(|n| shard(&spread(n))).collect();
        assert_eq!(shards.len(), 128);
        let of_one_shard: Vec<_> = (0..1_000_000).map(spread).filter(|spread| shard(spread) == 5).collect();
        for bits in [0..8, 57..64] {
            let of = |spread: &u64| spread >> bits.start & ((1 << (bits.end - bits.start)) - 1);
            let places: HashSet<_> = of_one_shard.iter().map(of).collect();
            assert_eq!(places.len(), 1 << (bits.end - bits.start));
        }
    }

    #[test]
    fn each_store_hashes_by_a_seed_of_its_own() {
        let slot = Slot::from_bytes([7; Slot::LEN]);
        assert_ne!(SlotHasher::new().hash(&slot), SlotHasher::new().hash(&slot));
    }
}
