//! The map of the slots that are not vacant: a [`DashMap`] keyed by the slot's hash.
//!
//! A shard's table takes only sixteen bytes for each entry, because the entries themselves are on
//! the heap. A table doubles in size when it grows, so part of it is often unused, but with sixteen
//! bytes for each entry, this wastes little memory. Growing a table moves hashes and pointers
//! without reading entries.

use std::hash::{BuildHasher, BuildHasherDefault};

use dashmap::DashMap;
use dashmap::mapref::one::{MappedRef, MappedRefMut};

use super::chain::{Chain, Taken};
use super::entry::Entry;
use super::hash::{ScopeHash, SlotHash, SlotHasher, Spread};
use crate::request::{ScopeTag, Slot};

/// The number of lock shards in the map. The map has many shards to keep each table small, because
/// doubling a table moves it under its shard's lock. With ten million keys, a table contains eighty
/// thousand entries of sixteen bytes, and moving it takes less than a millisecond.
const SHARDS: usize = 128;
/// The number of buckets that a table starts with and always keeps, so that adding and removing a
/// single key does not move the table.
const KEPT_BUCKETS: usize = 4;

pub(super) struct Map {
    chains: DashMap<SlotHash, Chain, BuildHasherDefault<Spread>>,
    hasher: SlotHasher,
}

/// A slot's place in the map, with its shard locked.
pub(super) struct Place<'a>(dashmap::Entry<'a, SlotHash, Chain>);

impl Place<'_> {
    /// Returns the given slot's entry. The caller must have located this place with the slot's
    /// hash.
    pub(super) fn find(&mut self, slot: &Slot) -> Option<&mut Entry> {
        match &mut self.0 {
            dashmap::Entry::Occupied(chain) => chain.get_mut().find_mut(slot),
            dashmap::Entry::Vacant(_) => None,
        }
    }

    /// Adds an entry for a slot that has no entry.
    pub(super) fn insert(self, entry: Entry) {
        match self.0 {
            dashmap::Entry::Occupied(mut chain) => chain.get_mut().push(entry),
            dashmap::Entry::Vacant(place) => drop(place.insert(Chain::new(entry))),
        }
    }
}

impl Map {
    pub(super) fn new() -> Self {
        Self {
            chains: DashMap::with_hasher_and_shard_amount(BuildHasherDefault::default(), SHARDS),
            hasher: SlotHasher::new(),
        }
    }

    pub(super) fn hash(&self, slot: &Slot) -> SlotHash {
        self.hasher.hash(slot)
    }

    pub(super) fn hash_of_scope(&self, tag: &ScopeTag) -> ScopeHash {
        self.hasher.scope(tag)
    }

    /// Locks the given hash's shard for a slot that may have no entry.
    pub(super) fn place(&self, hash: SlotHash) -> Place<'_> {
        Place(self.chains.entry(hash))
    }

    /// Returns the given slot's entry, and locks the entry's shard for reading.
    pub(super) fn get(&self, hash: SlotHash, slot: &Slot) -> Option<MappedRef<'_, SlotHash, Chain, Entry>> {
        self.chains.get(&hash)?.try_map(|chain| chain.find(slot)).ok()
    }

    /// Returns the given slot's entry, and locks the entry's shard for writing.
    pub(super) fn get_mut(&self, hash: SlotHash, slot: &Slot) -> Option<MappedRefMut<'_, SlotHash, Chain, Entry>> {
        self.chains.get_mut(&hash)?.try_map(|chain| chain.find_mut(slot)).ok()
    }

    /// Removes and returns the first entry that has the given hash and meets the condition.
    ///
    /// The condition runs under the shard's lock. It also makes any changes that must be atomic
    /// with the change to the map.
    pub(super) fn take_if(&self, hash: SlotHash, condition: impl FnMut(&mut Entry) -> bool) -> Option<Entry> {
        let mut taken = None;
        let chain = self
            .chains
            .remove_if_mut(&hash, |_, chain| match chain.take_if(condition) {
                Taken::Entry(entry) => {
                    taken = Some(entry);
                    false
                }
                Taken::Last => true,
                Taken::Nothing => false,
            });
        if let Some((_, chain)) = chain {
            self.give_back(hash);
            return Some(chain.into_entry());
        }
        taken
    }

    /// Shrinks the table in the hash's shard if the table is far larger than its entries need.
    ///
    /// `DashMap::shrink_to_fit` would move all shards. This method moves only one shard's table,
    /// and only if less than a third of the table is used. The cost is therefore amortized: since
    /// the table was last moved, at least as many entries have been removed, or places used up, as
    /// are moved now.
    fn give_back(&self, hash: SlotHash) {
        let mut table = self.chains.shards()[self.chains.determine_map(&hash)].write();
        let (len, buckets) = (table.len(), table.buckets());
        // A table that is less than 7/16 full can be halved. The limit here is lower, one third, so
        // that the table does not alternate between halving and doubling.
        if buckets > KEPT_BUCKETS && len < buckets / 3 {
            table.shrink_to(len.max(1), |(hash, _)| self.chains.hasher().hash_one(hash));
        }
    }

    /// Calls the closure with each entry, one shard after another.
    pub(super) fn for_each(&self, mut call: impl FnMut(&Entry)) {
        for chain in &self.chains {
            chain.iter().for_each(&mut call);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    /// Each group of three slots has the same hash, whatever the seed, because the hash depends
    /// only on a slot's first half.
    fn slot(n: u64) -> Slot {
        let mut bytes = [0; Slot::LEN];
        bytes[..8].copy_from_slice(&(n / 3).to_le_bytes());
        bytes[16..24].copy_from_slice(&n.to_le_bytes());
        Slot::from_bytes(bytes)
    }

    fn insert(map: &Map, n: u64, number: u32) {
        map.place(map.hash(&slot(n))).insert(Entry::of_test(slot(n), number));
    }

    fn take(map: &Map, n: u64) -> Option<u32> {
        let taken = map.take_if(map.hash(&slot(n)), |entry| entry.slot == slot(n))?;
        assert_eq!(taken.slot, slot(n));
        Some(taken.number)
    }

    /// The numbers of entries and buckets in each table.
    fn tables(map: &Map) -> Vec<(usize, usize)> {
        let shards = map.chains.shards().iter();
        shards
            .map(|shard| (shard.read().len(), shard.read().buckets()))
            .collect()
    }

    #[test]
    fn the_table_has_sixteen_bytes_for_an_entry() {
        assert_eq!(size_of::<(SlotHash, Chain)>(), 16);
    }

    #[test]
    fn the_map_holds_what_was_put_in_and_not_taken_out() {
        const KEYS: u64 = 60_000;
        let (map, mut model) = (Map::new(), HashMap::new());
        assert_eq!(map.hash(&slot(0)), map.hash(&slot(2)));
        assert_ne!(map.hash(&slot(0)), map.hash(&slot(3)));
        // The map grows to tens of thousands of entries, shrinks to a few, and grows again.
        for (round, inserts) in [(0, 3), (1, 1), (2, 0), (3, 3), (4, 0)] {
            for n in 0..2 * KEYS {
                let dice = (n + round * 2 * KEYS).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 20;
                let key = dice % KEYS;
                let hash = map.hash(&slot(key));
                let expected = model.get(&key).copied();
                assert_eq!(map.get(hash, &slot(key)).map(|entry| entry.number), expected);
                assert_eq!(map.get_mut(hash, &slot(key)).map(|entry| entry.number), expected);
                assert_eq!(map.place(hash).find(&slot(key)).map(|entry| entry.number), expected);
                if n % 4 >= inserts {
                    assert_eq!(take(&map, key), expected);
                    model.remove(&key);
                } else if expected.is_none() {
                    insert(&map, key, n as u32);
                    model.insert(key, n as u32);
                }
            }
            let mut numbers = Vec::new();
            map.for_each(|entry| numbers.push(entry.number));
            let mut expected: Vec<_> = model.values().copied().collect();
            numbers.sort_unstable();
            expected.sort_unstable();
            assert_eq!(numbers, expected);
            for (len, buckets) in tables(&map) {
                assert!(buckets <= (len * 3 + 3).max(KEPT_BUCKETS), "{buckets} for {len}");
            }
        }
        for key in 0..KEYS {
            assert_eq!(take(&map, key), model.remove(&key));
        }
        assert!(tables(&map).into_iter().all(|table| table == (0, KEPT_BUCKETS)));
    }

    #[test]
    fn a_key_that_comes_and_goes_moves_no_table() {
        for others in [0, 1, 100, 400, 1000, 5000, 14_000] {
            let map = Map::new();
            (0..others).for_each(|n| insert(&map, n * 3, 0));
            let before = tables(&map);
            for n in 0..100 {
                let key = (1 << 40 | n) * 3;
                insert(&map, key, 0);
                let with: usize = tables(&map).into_iter().map(|(_, buckets)| buckets).sum();
                take(&map, key);
                let without: usize = tables(&map).into_iter().map(|(_, buckets)| buckets).sum();
                assert_eq!(with, without, "beside {others}");
            }
            assert!(
                tables(&map)
                    .into_iter()
                    .map(|(len, _)| len)
                    .eq(before.into_iter().map(|(len, _)| len))
            );
        }
    }
}
