//! A part of the map: entries without gaps, and a table of where each is.
//!
//! Entries are in chunks, so that a shard grows without copying them. What doubles, and wastes up to
//! half of itself, is the table alone, of nine bytes an entry. Removing an entry puts the last one in
//! its place, so that chunks become empty and are given back; the table is halved as it empties.
//! Every step of that moves a bounded share of one shard, under that shard's lock.

use hashbrown::HashTable;
use smallvec::SmallVec;

use super::hash::{SlotHash, SlotHasher};
use super::slots::Hold;
use crate::request::{ScopeTag, Slot};
use crate::store::rules::Occupant;

/// Entries of a chunk. A shard wastes less than one and a half.
const CHUNK: usize = 32;
/// Entries that a shard keeps room for when it empties, so that a key that comes and goes allocates
/// nothing.
const KEPT: usize = 2;
/// Buckets that a table keeps, for the same reason: as many as it begins with.
const KEPT_BUCKETS: usize = 4;

#[derive(Default)]
pub(super) struct Shard {
    places: HashTable<Place>,
    /// All full but the last; one more may be empty.
    chunks: SmallVec<[Vec<Entry>; 1]>,
    len: usize,
}

/// One slot that is not vacant.
pub(super) struct Entry {
    pub(super) slot: Slot,
    pub(super) occupant: Occupant<Hold>,
    /// Whose room its record takes.
    pub(super) scope: ScopeTag,
    /// Of its line in the ledger.
    pub(super) number: u32,
}

/// Where an entry is. With its hash, so that a table grows and shrinks without looking at entries.
struct Place {
    hash: SlotHash,
    at: u32,
}

impl Shard {
    /// Where that slot's entry is.
    pub(super) fn find(&self, hash: SlotHash, slot: &Slot) -> Option<usize> {
        self.find_by(hash, |entry| entry.slot == *slot)
    }

    /// Where the entry is that is meant, of those whose slots have that hash.
    pub(super) fn find_by(&self, hash: SlotHash, is_meant: impl Fn(&Entry) -> bool) -> Option<usize> {
        let found = self.places.find(hash.spread(), |place| {
            place.hash == hash && is_meant(self.get(place.at as usize))
        });
        found.map(|place| place.at as usize)
    }

    pub(super) fn get(&self, at: usize) -> &Entry {
        &self.chunks[at / CHUNK][at % CHUNK]
    }

    pub(super) fn get_mut(&mut self, at: usize) -> &mut Entry {
        &mut self.chunks[at / CHUNK][at % CHUNK]
    }

    /// Adds an entry whose slot has none.
    pub(super) fn insert(&mut self, hash: SlotHash, entry: Entry) {
        let at = self.len;
        if at / CHUNK == self.chunks.len() {
            self.chunks.push(Vec::new());
        }
        self.chunks[at / CHUNK].push(entry);
        self.len += 1;
        let place = Place { hash, at: at as u32 };
        self.places
            .insert_unique(hash.spread(), place, |place| place.hash.spread());
    }

    /// Takes the entry out that is there; the last one takes its place.
    pub(super) fn remove(&mut self, at: usize, hasher: &SlotHasher) -> Entry {
        let hash = hasher.hash(&self.get(at).slot);
        if let Ok(place) = self.places.find_entry(hash.spread(), |place| place.at as usize == at) {
            place.remove();
        }
        let last = self.len - 1;
        self.len = last;
        let chunk = &mut self.chunks[last / CHUNK];
        let removed = if at / CHUNK == last / CHUNK {
            chunk.swap_remove(at % CHUNK)
        } else {
            let moved = chunk.swap_remove(last % CHUNK);
            std::mem::replace(self.get_mut(at), moved)
        };
        if at != last {
            let moved = hasher.hash(&self.get(at).slot).spread();
            if let Some(place) = self.places.find_mut(moved, |place| place.at as usize == last) {
                place.at = at as u32;
            }
        }
        self.give_back();
        removed
    }

    /// Gives back what is far more than the entries take.
    fn give_back(&mut self) {
        // Half a chunk more than they are in, so that it is not given back and taken in turns.
        self.chunks.truncate((self.len + CHUNK / 2).div_ceil(CHUNK));
        if self.chunks.spilled() && self.chunks.len() < (self.chunks.capacity() / 4).max(2) {
            self.chunks.shrink_to_fit();
        }
        if let [only] = &mut *self.chunks
            && only.capacity() > KEPT
            && only.len() <= only.capacity() / 4
        {
            only.shrink_to((only.len() * 2).max(KEPT));
        }
        // A half of seven eighths of the buckets is when it could be halved. A third is less, so that
        // it is not halved and doubled in turns.
        let buckets = self.places.num_buckets();
        if buckets > KEPT_BUCKETS && self.len < buckets / 3 {
            self.places.shrink_to(self.len.max(1), |place| place.hash.spread());
        }
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Entry> {
        self.chunks.iter().flatten()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;
    use crate::request::Fingerprint;
    use crate::store::Millis;
    use crate::store::Record;

    fn slot(n: u64) -> Slot {
        let mut bytes = [0; Slot::LEN];
        bytes[..8].copy_from_slice(&n.to_le_bytes());
        Slot::from_bytes(bytes)
    }

    fn entry(n: u64, number: u32) -> Entry {
        Entry {
            slot: slot(n),
            occupant: Occupant::Done {
                record: Record::outcome_unknown(Fingerprint::from_bytes([0; Fingerprint::LEN])),
                expires_at: Millis(0),
            },
            scope: ScopeTag::new(0),
            number,
        }
    }

    /// What a shard has room for: entries, chunks and buckets.
    fn room(shard: &Shard) -> (usize, usize, usize) {
        let entries = shard.chunks.iter().map(Vec::capacity).sum();
        (entries, shard.chunks.capacity(), shard.places.num_buckets())
    }

    #[test]
    fn an_entry_is_a_line_of_the_cache() {
        assert_eq!((size_of::<Entry>(), size_of::<Place>()), (64, 8));
    }

    #[test]
    fn a_shard_holds_what_was_put_in_and_not_taken_out() {
        let hasher = SlotHasher::new();
        let (mut shard, mut model) = (Shard::default(), HashMap::new());
        // Grows to some thousands, shrinks to few, and grows again.
        for (round, inserts) in [(0, 3), (1, 1), (2, 3), (3, 0)] {
            for n in 0..8000_u64 {
                let dice = (n + round * 8000).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 20;
                let key = dice % 6000;
                let hash = hasher.hash(&slot(key));
                let found = shard.find(hash, &slot(key));
                assert_eq!(found.map(|at| shard.get(at).number), model.get(&key).copied());
                match found {
                    None if n % 4 < inserts => {
                        shard.insert(hash, entry(key, n as u32));
                        model.insert(key, n as u32);
                    }
                    Some(at) if n % 4 >= inserts => {
                        assert_eq!(shard.remove(at, &hasher).slot, slot(key));
                        model.remove(&key);
                    }
                    _ => {}
                }
                assert_eq!(shard.len, model.len());
                let (entries, _, buckets) = room(&shard);
                assert!(
                    entries <= (shard.len + CHUNK / 2).next_multiple_of(CHUNK),
                    "{entries} for {}",
                    shard.len
                );
                assert!(
                    buckets <= (shard.len * 3 + 3).max(KEPT_BUCKETS),
                    "{buckets} for {}",
                    shard.len
                );
            }
            let mut numbers: Vec<_> = shard.iter().map(|entry| entry.number).collect();
            let mut expected: Vec<_> = model.values().copied().collect();
            numbers.sort_unstable();
            expected.sort_unstable();
            assert_eq!(numbers, expected);
        }
        for key in 0..6000 {
            if let Some(at) = shard.find(hasher.hash(&slot(key)), &slot(key)) {
                shard.remove(at, &hasher);
            }
        }
        assert_eq!((shard.len, room(&shard)), (0, (KEPT, 1, KEPT_BUCKETS)));
    }

    #[test]
    fn a_key_that_comes_and_goes_moves_nothing() {
        let hasher = SlotHasher::new();
        for others in [0, 1, 14, 28, 31, 32, 33, 64, 448] {
            let mut shard = Shard::default();
            for n in 0..others {
                shard.insert(hasher.hash(&slot(n)), entry(n, 0));
            }
            let come_and_go = |shard: &mut Shard, n: u64| {
                let hash = hasher.hash(&slot(n));
                shard.insert(hash, entry(n, 0));
                let with = room(shard);
                if let Some(at) = shard.find(hash, &slot(n)) {
                    shard.remove(at, &hasher);
                }
                with
            };
            let first = come_and_go(&mut shard, 1000);
            for n in 1001..1500 {
                // But for a rehash of a table that is full of what was removed.
                assert_eq!(come_and_go(&mut shard, n), room(&shard));
            }
            assert!(room(&shard).0 <= first.0, "{others}");
        }
    }
}
