//! The memory store's ledger. It records when each record expires, when to check each claim, and
//! how much space each scope uses.
//!
//! The ledger contains one line for each record and each claim, in chronological order. When a
//! record or claim is removed for any reason, its line is removed too, so the ledger always matches
//! the store's contents. The lines are stored in B-trees, so no step moves more than a few nodes,
//! and empty nodes are freed.
//!
//! Eviction considers only scopes that use more than half of an equal share. It removes whichever
//! of their records is next to expire. Earlier lines that belong to other scopes are set aside, in
//! order, and checked again when no other lines remain. Together, the scopes that use more than
//! half of an equal share have at least half of all bytes. There is therefore always a record to
//! evict, and lines stay set aside until at least half of all bytes have been removed.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet, btree_map};

use super::hash::{ShareOf, SlotHash};
use crate::store::Millis;

/// The maximum number of lines that one eviction step sets aside. The step then unlocks the ledger,
/// so that other calls can use it.
const SET_ASIDE: usize = 64;

#[derive(Default)]
pub(super) struct Ledger {
    /// The time at which each record expires.
    expiring: BTreeSet<Line>,
    /// The records that eviction passed over.
    set_aside: BTreeSet<Line>,
    /// The time at which to check whether each claim is forgotten. These checks find claims whose
    /// holders died.
    claims: BTreeSet<Line>,
    takings: Takings,
    /// The number of the last line that was added.
    number: u32,
}

/// A tick is 2¹⁰ ms. A record becomes due for sweeping up to one tick after it expires. Until it is
/// swept, reads treat it as expired.
const TICK_BITS: u32 = 10;

/// Returns the tick that a time falls into. The last tick, which comes in 139 years, represents all
/// later times.
fn tick(at: Millis) -> u32 {
    u32::try_from(at.0 >> TICK_BITS).unwrap_or(u32::MAX)
}

/// The identity of a map entry, and the time at which the entry is due.
///
/// A line takes sixteen bytes. The hash locates the entry in the map, and the line number
/// identifies the entry.
#[derive(Clone, Copy, Debug)]
pub(super) struct Line {
    tick: u32,
    /// Lines in the same tick are in the order in which they were written. No two lines are equal
    /// unless four billion lines are written while one line stays in the ledger.
    pub(super) number: u32,
    pub(super) hash: SlotHash,
    /// The scope that the entry belongs to.
    pub(super) scope: ShareOf,
}

impl Line {
    pub(super) fn new(at: Millis, number: u32, hash: SlotHash, scope: ShareOf) -> Self {
        Self {
            tick: tick(at),
            number,
            hash,
            scope,
        }
    }
}

impl Ord for Line {
    fn cmp(&self, other: &Self) -> Ordering {
        let order = |line: &Self| u64::from(line.tick) << 32 | u64::from(line.number);
        order(self).cmp(&order(other))
    }
}

impl PartialOrd for Line {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Line {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Line {}

/// The record to evict, if any.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Evictable {
    /// Evict the record that belongs to this line.
    Record(Line),
    /// No record to evict has been found yet, but there may be one. Call the method again.
    NotYetFound,
    Nothing,
}

/// The bytes that each scope's records use, for scopes that have records.
#[derive(Default)]
struct Takings {
    scopes: BTreeMap<ShareOf, u64>,
    total: u64,
}

/// The approximate number of bytes that the table of scopes takes for each scope. The actual number
/// can differ by a third.
const SCOPE_BYTES: usize = 24;
/// The number of scopes whose table entries are not counted, so that a store with a few tenants is
/// charged only for its records.
const UNCOUNTED_SCOPES: usize = 256;

impl Takings {
    fn add(&mut self, scope: ShareOf, bytes: u64) {
        self.total += bytes;
        *self.scopes.entry(scope).or_default() += bytes;
    }

    fn subtract(&mut self, scope: ShareOf, bytes: u64) {
        self.total = self.total.saturating_sub(bytes);
        let btree_map::Entry::Occupied(mut taken) = self.scopes.entry(scope) else {
            return;
        };
        *taken.get_mut() = taken.get().saturating_sub(bytes);
        if *taken.get() == 0 {
            taken.remove();
        }
    }

    /// Returns whether a scope uses more than half of an equal share. The scope that uses the most
    /// bytes always does.
    fn are_a_share(&self, scope: ShareOf) -> bool {
        let taken = self.scopes.get(&scope).copied().unwrap_or_default();
        taken.saturating_mul(2).saturating_mul(self.scopes.len() as u64) > self.total
    }
}

/// Removes and returns the first line if its tick is before `end`.
fn pop_before(lines: &mut BTreeSet<Line>, end: u32) -> Option<Line> {
    if lines.first()?.tick < end {
        lines.pop_first()
    } else {
        None
    }
}

impl Ledger {
    /// Returns the bytes that the table of scopes takes.
    pub(super) fn scope_bytes(&self) -> usize {
        SCOPE_BYTES * self.takings.scopes.len().saturating_sub(UNCOUNTED_SCOPES)
    }

    fn line(&mut self, at: Millis, hash: SlotHash, scope: ShareOf) -> Line {
        self.number = self.number.wrapping_add(1);
        Line::new(at, self.number, hash, scope)
    }

    /// Returns the record's line number.
    pub(super) fn add_record(&mut self, expires_at: Millis, hash: SlotHash, scope: ShareOf, bytes: u64) -> u32 {
        let line = self.line(expires_at, hash, scope);
        self.takings.add(scope, bytes);
        self.expiring.insert(line);
        line.number
    }

    pub(super) fn remove_record(&mut self, line: Line, bytes: u64) {
        if !self.expiring.remove(&line) {
            self.set_aside.remove(&line);
        }
        self.strike(line, bytes);
    }

    /// Subtracts the bytes of a removed record whose line was already removed.
    pub(super) fn strike(&mut self, line: Line, bytes: u64) {
        self.takings.subtract(line.scope, bytes);
    }

    /// Removes and returns the line for a record whose tick is entirely in the past, if there is
    /// one.
    pub(super) fn pop_due(&mut self, now: Millis) -> Option<Line> {
        let end = tick(now);
        pop_before(&mut self.set_aside, end).or_else(|| pop_before(&mut self.expiring, end))
    }

    /// Removes and returns the line for the record that is next to expire. Considers only scopes
    /// that use more than half of an equal share of all records' bytes.
    pub(super) fn pop_evictable(&mut self) -> Evictable {
        for _ in 0..SET_ASIDE {
            let Some(line) = self.expiring.pop_first() else {
                if self.set_aside.is_empty() {
                    return Evictable::Nothing;
                }
                std::mem::swap(&mut self.expiring, &mut self.set_aside);
                continue;
            };
            if self.takings.are_a_share(line.scope) {
                return Evictable::Record(line);
            }
            self.set_aside.insert(line);
        }
        Evictable::NotYetFound
    }

    /// Returns the claim's line number.
    pub(super) fn add_claim(&mut self, look_at: Millis, hash: SlotHash, scope: ShareOf) -> u32 {
        let line = self.line(look_at, hash, scope);
        self.claims.insert(line);
        line.number
    }

    pub(super) fn remove_claim(&mut self, line: Line) {
        self.claims.remove(&line);
    }

    /// Removes and returns the line for a claim that is due for a check, if there is one. A claim
    /// is due from the start of the tick in which it may be forgotten. If the claim is not
    /// forgotten yet, its new line is placed after the other lines in its tick.
    pub(super) fn pop_claim(&mut self, now: Millis) -> Option<Line> {
        pop_before(&mut self.claims, tick(now).saturating_add(1))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;
    use crate::request::Slot;
    use crate::store::memory::hash::SlotHasher;

    /// The bytes that a record takes in these tests.
    const BYTES: u64 = 100;

    /// A ledger, and the record that each line belongs to.
    struct Book {
        ledger: Ledger,
        hash: SlotHash,
        names: HashMap<u32, u64>,
    }

    impl Book {
        fn new() -> Self {
            Self {
                ledger: Ledger::default(),
                hash: SlotHasher::new().hash(&Slot::from_bytes([7; Slot::LEN])),
                names: HashMap::new(),
            }
        }

        fn add(&mut self, scope: u32, n: u64, at: u64) -> Line {
            let scope = ShareOf(scope);
            let number = self.ledger.add_record(Millis(at), self.hash, scope, BYTES);
            self.names.insert(number, n);
            Line::new(Millis(at), number, self.hash, scope)
        }

        fn due(&mut self, now: u64) -> Option<u64> {
            let line = self.ledger.pop_due(Millis(now))?;
            self.ledger.strike(line, BYTES);
            self.names.get(&line.number).copied()
        }

        /// Removes the next record to evict and its line. Returns `None` if nothing is left to
        /// evict.
        fn evict(&mut self) -> Option<u64> {
            loop {
                match self.ledger.pop_evictable() {
                    Evictable::Record(line) => {
                        self.ledger.strike(line, BYTES);
                        return self.names.get(&line.number).copied();
                    }
                    Evictable::NotYetFound => {}
                    Evictable::Nothing => return None,
                }
            }
        }

        fn lines(&self) -> usize {
            self.ledger.expiring.len() + self.ledger.set_aside.len()
        }

        fn assert_empty(&self) {
            let takings = &self.ledger.takings;
            let held = (
                self.lines(),
                self.ledger.claims.len(),
                takings.total,
                takings.scopes.len(),
            );
            assert_eq!(held, (0, 0, 0, 0));
        }
    }

    #[test]
    fn records_come_out_in_order_of_their_expiry() {
        let mut book = Book::new();
        for n in 0..1000 {
            book.add(1, n, 5_000);
        }
        book.add(1, 5000, 1_000);
        assert_eq!(book.lines(), 1001);
        assert_eq!(book.evict(), Some(5000));
        for n in 0..1000 {
            assert_eq!(book.evict(), Some(n));
        }
        assert_eq!(book.evict(), None);
        book.assert_empty();
    }

    #[test]
    fn a_scope_below_half_of_its_share_is_passed_over_and_expires_in_time() {
        let mut book = Book::new();
        // 240 lines for a small scope, before and among the 1000 lines for a large scope.
        for n in 0..240 {
            book.add(2, 10_000 + n, n * 10);
        }
        for n in 0..1000 {
            book.add(1, n, 2_000 + n);
        }
        for n in 0..480 {
            assert_eq!(book.evict(), Some(n));
        }
        // The records that were passed over are swept when they are due, starting with the lines in
        // the first tick.
        for n in 0..103 {
            assert_eq!(book.due(1024), Some(10_000 + n));
        }
        assert_eq!(book.due(1024), None);
        assert_eq!(book.lines(), 240 - 103 + 520);
    }

    #[test]
    fn equal_scopes_are_evicted_alike_and_everything_comes_out_once() {
        let mut book = Book::new();
        for n in 0..1000 {
            book.add((n % 10) as u32, n, n * 100);
        }
        let mut out = Vec::new();
        let mut asked = 0;
        loop {
            asked += 1;
            match book.ledger.pop_evictable() {
                Evictable::Record(line) => {
                    book.ledger.strike(line, BYTES);
                    out.push(book.names[&line.number]);
                }
                Evictable::NotYetFound => {}
                Evictable::Nothing => break,
            }
        }
        assert_eq!(out.len(), 1000);
        assert!(asked < 1100, "{asked}");
        out.sort_unstable();
        assert!(out.into_iter().eq(0..1000));
        book.assert_empty();
    }

    #[test]
    fn a_forgotten_record_leaves_no_line_wherever_it_was() {
        let mut book = Book::new();
        let mut lines: Vec<_> = (0..10).map(|n| book.add(2, n, n)).collect();
        let others: Vec<_> = (10..100).map(|n| book.add(1, n, n)).collect();
        assert_eq!(book.evict(), Some(10));
        assert_eq!(book.ledger.set_aside.len(), 10);
        lines.extend(&others[1..]);
        for line in lines {
            book.ledger.remove_record(line, BYTES);
        }
        book.assert_empty();
    }

    #[test]
    fn nothing_is_due_before_its_whole_tick_has_passed() {
        let mut book = Book::new();
        book.add(1, 1, 1030);
        book.add(1, 2, u64::MAX);
        assert_eq!(book.due(2047), None);
        assert_eq!(book.due(2048), Some(1));
        assert_eq!(book.due(u64::MAX), None);
    }

    #[test]
    fn each_claim_is_checked_on_time_and_only_once() {
        let mut book = Book::new();
        let scope = ShareOf(1);
        let (hash, ledger) = (book.hash, &mut book.ledger);
        let numbers: Vec<_> = (0..10)
            .map(|n| ledger.add_claim(Millis(2000 + n % 2 * 1024), hash, scope))
            .collect();
        ledger.remove_claim(Line::new(Millis(2000), numbers[4], hash, scope));
        assert_eq!(ledger.pop_claim(Millis(1023)), None);
        let mut seen = Vec::new();
        while let Some(line) = ledger.pop_claim(Millis(1024)) {
            seen.push(line.number);
        }
        assert_eq!(seen, [0, 2, 6, 8].map(|n| numbers[n]));
        assert_eq!(ledger.pop_claim(Millis(2048)).map(|line| line.number), Some(numbers[1]));
    }

    #[test]
    fn scopes_beyond_the_first_are_counted_while_they_have_records() {
        let mut book = Book::new();
        let scopes = 10_000 + UNCOUNTED_SCOPES;
        let mut lines = Vec::new();
        for n in 0..scopes {
            lines.push(book.add(n as u32, n as u64, n as u64));
            let counted = (n + 1).saturating_sub(UNCOUNTED_SCOPES);
            assert_eq!(book.ledger.scope_bytes(), SCOPE_BYTES * counted);
        }
        for line in lines {
            book.ledger.remove_record(line, BYTES);
        }
        book.assert_empty();
        assert_eq!(book.ledger.scope_bytes(), 0);
    }
}
