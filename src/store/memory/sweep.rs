//! Removing expired entries, and making room in the budget.

use smallvec::SmallVec;

use super::budget::WhenFull;
use super::entry::{cost_of, wake};
use super::ledger::{Evictable, Ledger, Line};
use super::slots::Slots;
use crate::store::rules::Occupant;
use crate::store::{Millis, Record};

/// The maximum number of expired records that one write sweeps. The limit is more than one so that
/// sweeping keeps up with writes.
const SWEEP: usize = 8;
/// The maximum number of records that one write evicts. The limit bounds the work of a single
/// write. A write never needs to evict this many records, unless one large record replaces many
/// small records. In that case, the next writes continue the eviction.
const EVICT: usize = 512;

/// Whether there is room for a new key.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Room {
    Unknown,
    Enough,
    None,
}

/// The entries that a write has to sweep. Their lines are already removed from the ledger. The
/// entries themselves are removed once no lock is held.
#[derive(Default)]
pub(super) struct Due {
    records: SmallVec<[Line; SWEEP]>,
    claim: Option<Line>,
}

impl Due {
    pub(super) fn take(&mut self, ledger: &mut Ledger, now: Millis) {
        while self.records.len() < SWEEP
            && let Some(line) = ledger.pop_due(now)
        {
            self.records.push(line);
        }
        self.claim = ledger.pop_claim(now);
    }
}

impl Slots {
    /// Removes the entries that are due, if they still match their ledger lines.
    pub(super) fn sweep(&self, due: &Due, now: Millis) {
        if !due.records.is_empty() {
            let gone: SmallVec<[(Line, Record); SWEEP]> = due
                .records
                .iter()
                .filter_map(|line| Some((*line, self.take_record(*line)?.0)))
                .collect();
            self.strike(&gone);
        }
        if let Some(claim) = due.claim {
            self.sweep_claim(claim, now);
        }
    }

    /// Removes and returns the record for a line that was removed from the ledger, unless the slot
    /// has been reused since.
    fn take_record(&self, of: Line) -> Option<(Record, Millis)> {
        let entry = self.map.take_if(of.hash, |entry| {
            let is_meant = matches!(entry.occupant, Occupant::Done { .. }) && entry.line(of.hash) == of;
            if is_meant {
                self.budget.leave(entry.cost());
            }
            is_meant
        })?;
        match entry.occupant {
            Occupant::Done { record, expires_at } => Some((record, expires_at)),
            Occupant::Running(_) => None,
        }
    }

    /// Subtracts the bytes of removed records whose lines were already removed from the ledger.
    fn strike(&self, gone: &[(Line, Record)]) {
        self.with_ledger(|ledger| {
            for (line, record) in gone {
                ledger.strike(*line, cost_of(record) as u64);
            }
        });
    }

    /// Removes a claim that is now forgotten because its holder died. A claim that is not forgotten
    /// yet is checked again when it would be forgotten.
    fn sweep_claim(&self, of: Line, now: Millis) {
        let lapsed = self.map.take_if(of.hash, |entry| {
            if entry.line(of.hash) != of {
                return false;
            }
            let look_at = entry.occupant.forgotten_at();
            match &mut entry.occupant {
                Occupant::Running(running) if look_at > now => {
                    running.extra.look_at = look_at;
                    entry.number = self.with_ledger(|ledger| ledger.add_claim(look_at, of.hash, of.scope));
                    false
                }
                Occupant::Running(_) => {
                    self.budget.leave(entry.cost());
                    true
                }
                Occupant::Done { .. } => false,
            }
        });
        if let Some(lapsed) = lapsed {
            wake(lapsed.occupant);
        }
    }

    /// Sweeps expired entries and, if allowed, evicts records until `needed` bytes fit or the limit
    /// for one write is reached.
    pub(super) fn make_room(&self, needed: usize, now: Millis) -> Room {
        for _ in 0..EVICT {
            if !self.budget.is_over(needed) {
                return Room::Enough;
            }
            let (next, claim) = self.with_ledger(|ledger| {
                let next = match (ledger.pop_due(now), self.budget.when_full) {
                    (Some(line), _) => Evictable::Record(line),
                    (None, WhenFull::EvictNearestExpiry) => ledger.pop_evictable(),
                    (None, WhenFull::RefuseNew) => Evictable::Nothing,
                };
                (next, ledger.pop_claim(now))
            });
            if let Some(claim) = claim {
                self.sweep_claim(claim, now);
            }
            match next {
                Evictable::Record(line) => self.evict(line, now),
                Evictable::NotYetFound => {}
                // No record can be removed now. Only removing claims can make room, and the next
                // writes check the claims.
                Evictable::Nothing if !self.budget.is_over(needed) => return Room::Enough,
                Evictable::Nothing => return Room::None,
            }
        }
        // The store is far over its budget, for example after a large record was stored. The next
        // writes continue to make room.
        match self.budget.when_full {
            WhenFull::EvictNearestExpiry => Room::Enough,
            WhenFull::RefuseNew if self.budget.is_over(needed) => Room::None,
            WhenFull::RefuseNew => Room::Enough,
        }
    }

    /// Removes the record for a line that was removed from the ledger.
    fn evict(&self, line: Line, now: Millis) {
        let Some((record, expires_at)) = self.take_record(line) else {
            return;
        };
        self.strike(&[(line, record)]);
        if expires_at > now {
            self.budget.evicted();
        }
    }
}
