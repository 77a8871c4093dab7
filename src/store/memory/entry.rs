//! A slot that is not vacant, and what it costs.

use std::sync::Arc;

use tokio::sync::Notify;

use super::hash::{ScopeHash, SlotHash};
use super::ledger::{Ledger, Line};
use crate::request::Slot;
use crate::store::rules::Occupant;
use crate::store::{ClaimRequest, Millis, Record};

/// What an entry takes beside its record: the entry (88 bytes, and 8 for the allocation), its place in the table of its shard
/// (19 to 39, up to 51 after many removals), its line in the ledger (20 to 40) and the reference counts
/// of the record (16, and its length is rounded up to eight). Measured by `benches/footprint.rs` and
/// `tests/memory_accounting.rs`.
const ENTRY_BYTES: usize = 176;
/// What a claim takes, with its entry: about 236, and some more if others wait for its end.
pub(super) const CLAIM: usize = 240;

/// One slot that is not vacant.
pub(super) struct Entry {
    pub(super) slot: Slot,
    pub(super) occupant: Occupant<Hold>,
    pub(super) scope: ScopeHash,
    /// The number of the entry's line in the ledger.
    pub(super) number: u32,
}

/// What the store keeps with a claim.
pub(super) struct Hold {
    /// When a write looks whether the claim was forgotten.
    pub(super) look_at: Millis,
    /// Made by the first who waits.
    waiters: Option<Arc<Notify>>,
}

/// When a claim is forgotten, unless it is renewed or taken over.
pub(super) fn look_at(begin: &ClaimRequest, now: Millis) -> Millis {
    now.after(begin.lease).after(begin.ttl)
}

pub(super) fn cost_of(record: &Record) -> usize {
    ENTRY_BYTES + record.len()
}

impl Entry {
    /// The entry of a new claim, whose line has that number.
    pub(super) fn claim(begin: &ClaimRequest, scope: ScopeHash, number: u32, now: Millis) -> Self {
        let hold = Hold {
            look_at: look_at(begin, now),
            waiters: None,
        };
        Self {
            slot: begin.slot,
            occupant: Occupant::claim(begin, 1, now, hold),
            scope,
            number,
        }
    }

    /// What is counted for the entry.
    pub(super) fn cost(&self) -> usize {
        match &self.occupant {
            Occupant::Running(_) => CLAIM,
            Occupant::Done { record, .. } => cost_of(record),
        }
    }

    /// The entry's line in the ledger.
    pub(super) fn line(&self, hash: SlotHash) -> Line {
        let at = match &self.occupant {
            Occupant::Running(running) => running.extra.look_at,
            Occupant::Done { expires_at, .. } => *expires_at,
        };
        Line::new(at, self.number, hash, self.scope.share())
    }

    /// Takes the entry's line out of the ledger.
    pub(super) fn leave(&self, ledger: &mut Ledger, hash: SlotHash) {
        let line = self.line(hash);
        match &self.occupant {
            Occupant::Running(_) => ledger.remove_claim(line),
            Occupant::Done { record, .. } => ledger.remove_record(line, cost_of(record) as u64),
        }
    }
}

/// Those who wait for the end of a claim.
#[derive(Default)]
#[must_use = "they wait until they are woken"]
pub(super) struct Waiters(Option<Arc<Notify>>);

impl Waiters {
    /// Wakes them. Not under a lock.
    pub(super) fn wake(self) {
        if let Some(waiters) = self.0 {
            waiters.notify_waiters();
        }
    }
}

impl Hold {
    /// Takes out those who wait.
    pub(super) fn waiters(&mut self) -> Waiters {
        Waiters(self.waiters.take())
    }

    /// What tells the end of the claim to one more who waits.
    pub(super) fn wait(&mut self) -> Arc<Notify> {
        Arc::clone(self.waiters.get_or_insert_with(Arc::default))
    }
}

/// Wakes those who wait for a claim that is gone. Not under a lock.
pub(super) fn wake(gone: Occupant<Hold>) {
    if let Occupant::Running(mut running) = gone {
        running.extra.waiters().wake();
    }
}

#[cfg(test)]
impl Entry {
    /// The record of a slot, whose line has that number.
    pub(super) fn of_test(slot: Slot, number: u32) -> Self {
        use crate::request::{Fingerprint, ScopeTag};
        use crate::store::memory::hash::SlotHasher;

        Self {
            slot,
            occupant: Occupant::Done {
                record: Record::outcome_unknown(Fingerprint::from_bytes([0; Fingerprint::LEN])),
                expires_at: Millis(0),
            },
            scope: SlotHasher::new().scope(&ScopeTag::default()),
            number,
        }
    }
}
