//! The memory store's book of what ends when: which records expire, and which claims there are; and
//! of what each scope takes.
//!
//! Each record has one line here, in the bucket of the tick at which it expires; buckets are in
//! order of time, lines within a bucket in order of completion. So taking the next to expire costs
//! the same however many there are, and no line is ever searched for.
//!
//! Evicting takes the next to expire of those scopes that hold more than half of an equal share. The
//! lines of others that stand before it are set aside, in order, and looked at again when the rest
//! is used up. The scopes above that measure hold at least half of all bytes, so that there always is
//! something to evict, and what is set aside stays so until as much as that is gone.

use std::collections::btree_map::OccupiedEntry;
use std::collections::{BTreeMap, HashMap, VecDeque, hash_map};

use std::hash::BuildHasherDefault;

use slab::Slab;

use super::hash::TagHasher;
use crate::request::{ScopeTag, Slot};
use crate::store::Millis;

/// A bucket spans 2¹⁰ ms. A record is swept up to one tick after it expired; until then, reading
/// it finds it expired.
const TICK_BITS: u32 = 10;
/// Lines of one chunk. Full chunks are never moved, so that a bucket grows without copying, and
/// wastes little.
const CHUNK: usize = 256;

/// Lines that are set aside at most before others may have the ledger.
const SET_ASIDE: usize = 64;

/// Which bucket a time falls into.
pub(super) fn tick(at: Millis) -> u64 {
    at.0 >> TICK_BITS
}

#[derive(Default)]
pub(super) struct Ledger {
    expiring: Lines,
    /// Those that eviction passed over.
    set_aside: Lines,
    takings: Takings,
    claims: Slab<Claim>,
    /// The next claim to look at: one step for each write, so that claims whose holders died are
    /// found without a scan.
    hand: usize,
}

/// Of one record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Line {
    pub(super) slot: Slot,
    pub(super) scope: ScopeTag,
    /// What the record takes; four gigabytes and more count as that.
    pub(super) bytes: u32,
}

/// What there is to evict.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Evictable {
    /// This record, which expires in that tick.
    Record(u64, Slot),
    /// Perhaps something: ask again.
    NotYetFound,
    Nothing,
}

struct Claim {
    slot: Slot,
    /// Not worth looking at before.
    look_at: Millis,
}

#[derive(Default)]
struct Bucket {
    chunks: VecDeque<Vec<Line>>,
    /// Lines of the first chunk that were taken.
    taken: usize,
}

impl Bucket {
    fn push(&mut self, line: Line) {
        match self.chunks.back_mut() {
            Some(last) if last.len() < CHUNK => {
                if last.len() == last.capacity() {
                    last.reserve_exact(last.len().min(CHUNK - last.len()));
                }
                last.push(line);
            }
            Some(_) => {
                let mut chunk = Vec::with_capacity(CHUNK);
                chunk.push(line);
                self.chunks.push_back(chunk);
            }
            None => self.chunks.push_back(vec![line]),
        }
    }

    fn first(&self) -> Option<&Line> {
        self.chunks.front()?.get(self.taken)
    }

    fn drop_first(&mut self) {
        self.taken += 1;
        if self.chunks.front().is_some_and(|first| self.taken >= first.len()) {
            self.chunks.pop_front();
            self.taken = 0;
        }
    }
}

/// Buckets by their ticks; none is empty.
#[derive(Default)]
struct Lines(BTreeMap<u64, Bucket>);

impl Lines {
    fn push(&mut self, at: u64, line: Line) {
        self.0.entry(at).or_default().push(line);
    }

    /// The first line, with its tick, if that is before `end`.
    fn pop_before(&mut self, end: u64) -> Option<(u64, Line)> {
        let mut bucket: OccupiedEntry<'_, _, _> = self.0.first_entry()?;
        let at = *bucket.key();
        if at >= end {
            return None;
        }
        let line = bucket.get().first().copied();
        bucket.get_mut().drop_first();
        if bucket.get().chunks.is_empty() {
            bucket.remove();
        }
        line.map(|line| (at, line))
    }
}

/// What the lines of each scope that has any take.
struct Takings {
    /// In parts, so that growing one, which moves all its entries under the ledger's lock, is soon done.
    parts: Box<[Taken]>,
    scopes: u64,
    total: u64,
}

type Taken = HashMap<ScopeTag, u64, BuildHasherDefault<TagHasher>>;

/// Parts of [`Takings`].
const PARTS: usize = 256;

impl Default for Takings {
    fn default() -> Self {
        Self {
            parts: (0..PARTS).map(|_| Taken::default()).collect(),
            scopes: 0,
            total: 0,
        }
    }
}

impl Takings {
    fn part(&mut self, scope: ScopeTag) -> &mut Taken {
        &mut self.parts[scope.part_of(PARTS)]
    }

    fn add(&mut self, line: Line) {
        self.total += u64::from(line.bytes);
        match self.part(line.scope).entry(line.scope) {
            hash_map::Entry::Occupied(mut taken) => *taken.get_mut() += u64::from(line.bytes),
            hash_map::Entry::Vacant(entry) => {
                entry.insert(u64::from(line.bytes));
                self.scopes += 1;
            }
        }
    }

    fn subtract(&mut self, line: Line) {
        self.total = self.total.saturating_sub(u64::from(line.bytes));
        if let hash_map::Entry::Occupied(mut taken) = self.part(line.scope).entry(line.scope) {
            *taken.get_mut() = taken.get().saturating_sub(u64::from(line.bytes));
            if *taken.get() == 0 {
                taken.remove();
                self.scopes -= 1;
            }
        }
    }

    /// More than half of an equal share. There always is a scope that takes that: the one that takes
    /// most.
    fn are_a_share(&mut self, scope: ScopeTag) -> bool {
        let (scopes, total) = (self.scopes, self.total);
        let taken = self.part(scope).get(&scope).copied().unwrap_or_default();
        taken.saturating_mul(2).saturating_mul(scopes) > total
    }
}

impl Ledger {
    pub(super) fn add_record(&mut self, line: Line, expires_at: Millis) {
        self.takings.add(line);
        self.expiring.push(tick(expires_at), line);
    }

    /// The next line of a bucket that is wholly past, if there is one.
    pub(super) fn pop_due(&mut self, now: Millis) -> Option<(u64, Slot)> {
        let end = tick(now);
        let due = self.set_aside.pop_before(end).or_else(|| self.expiring.pop_before(end));
        due.map(|(at, line)| (at, self.strike(line)))
    }

    /// The record nearest to expiry among those of scopes that take more than half of an equal
    /// share of all records' room.
    pub(super) fn pop_evictable(&mut self) -> Evictable {
        for _ in 0..SET_ASIDE {
            let Some((at, line)) = self.expiring.pop_before(u64::MAX) else {
                if self.set_aside.0.is_empty() {
                    return Evictable::Nothing;
                }
                std::mem::swap(&mut self.expiring, &mut self.set_aside);
                continue;
            };
            if self.takings.are_a_share(line.scope) {
                return Evictable::Record(at, self.strike(line));
            }
            self.set_aside.push(at, line);
        }
        Evictable::NotYetFound
    }

    /// After a line was taken out.
    fn strike(&mut self, line: Line) -> Slot {
        self.takings.subtract(line);
        line.slot
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
        self.expiring
            .0
            .values()
            .chain(self.set_aside.0.values())
            .map(lines)
            .sum()
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

    fn line(n: u64) -> Line {
        line_of(1, n)
    }

    fn line_of(scope: u32, n: u64) -> Line {
        Line {
            slot: slot(n),
            scope: ScopeTag::new(scope),
            bytes: 100,
        }
    }

    #[test]
    fn records_come_out_in_order_of_their_expiry() {
        let mut ledger = Ledger::default();
        for n in 0..1000 {
            ledger.add_record(line(n), Millis(5_000));
        }
        ledger.add_record(line(5000), Millis(1_000));
        assert_eq!(ledger.lines(), 1001);
        assert_eq!(ledger.pop_evictable(), Evictable::Record(0, slot(5000)));
        for n in 0..1000 {
            assert_eq!(ledger.pop_evictable(), Evictable::Record(4, slot(n)));
        }
        assert_eq!(ledger.pop_evictable(), Evictable::Nothing);
        assert_eq!((ledger.lines(), ledger.takings.total, ledger.takings.scopes), (0, 0, 0));
    }

    /// Asks until there is something, or nothing.
    fn evict(ledger: &mut Ledger) -> Option<Slot> {
        loop {
            match ledger.pop_evictable() {
                Evictable::Record(_, slot) => return Some(slot),
                Evictable::NotYetFound => {}
                Evictable::Nothing => return None,
            }
        }
    }

    #[test]
    fn a_scope_below_half_of_its_share_is_passed_over_and_expires_in_time() {
        let mut ledger = Ledger::default();
        // 240 lines of a small scope, before and among 1000 of a large one.
        for n in 0..240 {
            ledger.add_record(line_of(2, 10_000 + n), Millis(n * 10));
        }
        for n in 0..1000 {
            ledger.add_record(line_of(1, n), Millis(2_000 + n));
        }
        for n in 0..480 {
            assert_eq!(evict(&mut ledger), Some(slot(n)));
        }
        // What was passed over is swept when it is due: the lines of the first tick.
        for n in 0..103 {
            assert_eq!(ledger.pop_due(Millis(1024)), Some((0, slot(10_000 + n))));
        }
        assert_eq!(ledger.pop_due(Millis(1024)), None);
        assert_eq!(ledger.lines(), 240 - 103 + 520);
    }

    #[test]
    fn equal_scopes_are_evicted_alike_and_everything_comes_out_once() {
        let mut ledger = Ledger::default();
        for n in 0..1000 {
            ledger.add_record(line_of((n % 10) as u32, n), Millis(n * 100));
        }
        let mut out = Vec::new();
        let mut asked = 0;
        loop {
            asked += 1;
            match ledger.pop_evictable() {
                Evictable::Record(_, slot) => out.push(slot),
                Evictable::NotYetFound => {}
                Evictable::Nothing => break,
            }
        }
        assert_eq!(out.len(), 1000);
        assert!(asked < 1100, "{asked}");
        out.sort_unstable();
        out.dedup();
        assert_eq!((out.len(), ledger.takings.total, ledger.takings.scopes), (1000, 0, 0));
    }

    #[test]
    fn nothing_is_due_before_its_whole_tick_has_passed() {
        let mut ledger = Ledger::default();
        ledger.add_record(line(1), Millis(1030));
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
