//! The memory store's book of what ends when: which records expire, and which claims there are.
//!
//! Each record has one line here, in the bucket of the tick at which it expires; buckets are in
//! order of time, lines within a bucket in order of completion. So taking the next to expire costs
//! the same however many there are, and no line is ever searched for.

use std::collections::{BTreeMap, VecDeque};

use slab::Slab;

use crate::scope::Slot;
use crate::state::Millis;

/// A bucket spans 2¹⁰ ms. A record is swept up to one tick after it expired; until then, reading
/// it finds it expired.
const TICK_BITS: u32 = 10;
/// Lines of one chunk. Full chunks are never moved, so that a bucket grows without copying, and
/// wastes little.
const CHUNK: usize = 256;

/// Which bucket a time falls into.
pub(super) fn tick(at: Millis) -> u64 {
    at.0 >> TICK_BITS
}

#[derive(Default)]
pub(super) struct Ledger {
    expiring: BTreeMap<u64, Bucket>,
    claims: Slab<Claim>,
    /// The next claim to look at: one step for each write, so that claims whose holders died are
    /// found without a scan.
    hand: usize,
}

struct Claim {
    slot: Slot,
    /// Not worth looking at before.
    look_at: Millis,
}

#[derive(Default)]
struct Bucket {
    chunks: VecDeque<Vec<Slot>>,
    /// Lines of the first chunk that were taken.
    taken: usize,
}

impl Bucket {
    fn push(&mut self, slot: Slot) {
        match self.chunks.back_mut() {
            Some(last) if last.len() < CHUNK => {
                if last.len() == last.capacity() {
                    last.reserve_exact(last.len().min(CHUNK - last.len()));
                }
                last.push(slot);
            }
            Some(_) => {
                let mut chunk = Vec::with_capacity(CHUNK);
                chunk.push(slot);
                self.chunks.push_back(chunk);
            }
            None => self.chunks.push_back(vec![slot]),
        }
    }

    fn pop(&mut self) -> Option<Slot> {
        let first = self.chunks.front()?;
        let slot = first.get(self.taken).copied();
        self.taken += 1;
        if self.taken >= first.len() {
            self.chunks.pop_front();
            self.taken = 0;
        }
        slot
    }
}

impl Ledger {
    pub(super) fn add_record(&mut self, slot: Slot, expires_at: Millis) {
        self.expiring.entry(tick(expires_at)).or_default().push(slot);
    }

    /// The next line of a bucket that is wholly past, if there is one.
    pub(super) fn pop_due(&mut self, now: Millis) -> Option<(u64, Slot)> {
        self.pop_before(tick(now))
    }

    /// The line nearest to expiry, with its tick.
    pub(super) fn pop_nearest(&mut self) -> Option<(u64, Slot)> {
        self.pop_before(u64::MAX)
    }

    fn pop_before(&mut self, end: u64) -> Option<(u64, Slot)> {
        let mut first = self.expiring.first_entry()?;
        let at = *first.key();
        if at >= end {
            return None;
        }
        let slot = first.get_mut().pop();
        if first.get().chunks.is_empty() {
            first.remove();
        }
        slot.map(|slot| (at, slot))
    }

    pub(super) fn add_claim(&mut self, slot: Slot, look_at: Millis) -> usize {
        self.claims.insert(Claim { slot, look_at })
    }

    pub(super) fn remove_claim(&mut self, index: usize) {
        self.claims.try_remove(index);
    }

    /// The claim is worth a look from then on.
    pub(super) fn look_at_claim(&mut self, index: usize, at: Millis) {
        if let Some(claim) = self.claims.get_mut(index) {
            claim.look_at = at;
        }
    }

    /// Moves the hand one step; a claim whose time has come is returned for a closer look, and
    /// not before `again` a second time.
    pub(super) fn inspect_claim(&mut self, now: Millis, again: Millis) -> Option<(usize, Slot)> {
        let index = self.hand;
        self.hand = if index >= self.claims.capacity() { 0 } else { index + 1 };
        let claim = self.claims.get_mut(index)?;
        if claim.look_at > now {
            return None;
        }
        claim.look_at = again;
        Some((index, claim.slot))
    }

    #[cfg(test)]
    pub(super) fn lines(&self) -> usize {
        let lines = |bucket: &Bucket| bucket.chunks.iter().map(Vec::len).sum::<usize>() - bucket.taken;
        self.expiring.values().map(lines).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slot(n: u64) -> Slot {
        let mut bytes = [0; Slot::LEN];
        bytes[..8].copy_from_slice(&n.to_le_bytes());
        Slot::from_bytes(bytes)
    }

    #[test]
    fn records_come_out_in_order_of_their_expiry() {
        let mut ledger = Ledger::default();
        for n in 0..1000 {
            ledger.add_record(slot(n), Millis(5_000));
        }
        ledger.add_record(slot(5000), Millis(1_000));
        assert_eq!(ledger.lines(), 1001);
        assert_eq!(ledger.pop_nearest(), Some((0, slot(5000))));
        for n in 0..1000 {
            assert_eq!(ledger.pop_nearest(), Some((4, slot(n))));
        }
        assert_eq!(ledger.pop_nearest(), None);
        assert_eq!(ledger.lines(), 0);
    }

    #[test]
    fn nothing_is_due_before_its_whole_tick_has_passed() {
        let mut ledger = Ledger::default();
        ledger.add_record(slot(1), Millis(1030));
        assert_eq!(ledger.pop_due(Millis(2047)), None);
        assert_eq!(ledger.pop_due(Millis(2048)), Some((1, slot(1))));
        assert_eq!(ledger.pop_due(Millis(u64::MAX)), None);
    }

    #[test]
    fn the_hand_reaches_every_claim() {
        let mut ledger = Ledger::default();
        let indices: Vec<_> = (0..10).map(|n| ledger.add_claim(slot(n), Millis(100))).collect();
        ledger.remove_claim(indices[3]);
        let mut seen = Vec::new();
        for _ in 0..200 {
            assert!(ledger.inspect_claim(Millis(99), Millis(1000)).is_none(), "not yet");
        }
        for _ in 0..200 {
            seen.extend(ledger.inspect_claim(Millis(100), Millis(1000)).map(|(index, _)| index));
        }
        seen.sort_unstable();
        assert_eq!(
            seen,
            [0, 1, 2, 4, 5, 6, 7, 8, 9],
            "each once, and not again before its time"
        );
    }
}
