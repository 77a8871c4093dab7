//! Hashing slots.

use crate::request::Slot;

/// Hashes slots. A slot is a digest already, so that folding two of its words is enough; the seed
/// keeps a client from making keys that fall into one place.
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
        let word = |at: usize| {
            let mut word = [0; 8];
            word.copy_from_slice(&slot.as_bytes()[at..at + 8]);
            u64::from_le_bytes(word)
        };
        let product = u128::from(word(0) ^ self.seed.0) * u128::from(word(8) ^ self.seed.1);
        let folded = (product as u64) ^ ((product >> 64) as u64);
        SlotHash((folded >> 32) as u32)
    }
}

/// The hash of a slot: what an entry is found by, and all that the ledger keeps of its slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SlotHash(u32);

impl SlotHash {
    /// One of so many shards, by the upper bits. `shards` is a power of two.
    pub(super) fn shard_of(self, shards: usize) -> usize {
        (self.0 >> (u32::BITS - shards.ilog2())) as usize
    }

    /// For the table of a shard, which takes places from the lower bits and compares the upper ones:
    /// the hashes of one shard have their upper bits in common.
    pub(super) fn spread(self) -> u64 {
        u64::from(self.0).wrapping_mul(FIBONACCI)
    }
}

/// The golden ratio's fraction, as in Fibonacci hashing.
const FIBONACCI: u64 = 0x9E37_79B9_7F4A_7C15;

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn slots_that_begin_alike_do_not_hash_alike() {
        let hasher = SlotHasher::new();
        let hash = |n: u64| {
            let mut bytes = [7; Slot::LEN];
            bytes[8..16].copy_from_slice(&n.to_le_bytes());
            hasher.hash(&Slot::from_bytes(bytes))
        };
        let shards: HashSet<_> = (0..10_000).map(|n| hash(n).shard_of(128)).collect();
        assert_eq!(shards.len(), 128);
        // Within one shard.
        let hashes = || (0..1_000_000).map(hash).filter(|hash| hash.shard_of(128) == 5);
        for bits in [0..8, 57..64] {
            let of = |hash: SlotHash| hash.spread() >> bits.start & ((1 << (bits.end - bits.start)) - 1);
            let places: HashSet<_> = hashes().map(of).collect();
            assert_eq!(places.len(), 1 << (bits.end - bits.start));
        }
    }

    #[test]
    fn each_store_hashes_by_a_seed_of_its_own() {
        let slot = Slot::from_bytes([7; Slot::LEN]);
        assert_ne!(SlotHasher::new().hash(&slot), SlotHasher::new().hash(&slot));
    }
}
