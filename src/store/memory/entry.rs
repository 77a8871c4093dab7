//! A slot that is not vacant, and its size.

use std::sync::Arc;

use tokio::sync::Notify;

use super::hash::{ScopeHash, SlotHash};
use super::ledger::{Ledger, Line};
use crate::request::Slot;
use crate::store::rules::Occupant;
use crate::store::{ClaimRequest, Millis, Record};

/// The bytes that an entry takes in addition to its record. They include the entry (88 bytes, plus
/// 8 for the allocation), its place in its shard's table (19 to 39, up to 51 after many removals),
/// its line in the ledger (20 to 40), and the record's reference counts (16, plus rounding the
/// record's length up to a multiple of eight). `benches/footprint.rs` and
/// `tests/memory_accounting.rs` measure these numbers.
const ENTRY_BYTES: usize = 176;
/// The bytes that a claim takes, including its entry: about 236, or slightly more if other requests
/// are waiting for the claim to end.
pub(super) const CLAIM: usize = 240;

/// A slot that is not vacant.
pub(super) struct Entry {
    pub(super) slot: Slot,
    pub(super) occupant: Occupant<Hold>,
    pub(super) scope: ScopeHash,
    /// The entry's line number in the ledger.
    pub(super) number: u32,
}

/// The data that is stored with a claim.
pub(super) struct Hold {
    /// The time at which a write checks whether the claim is forgotten.
    pub(super) look_at: Millis,
    /// `None` until a request waits for the claim to end.
    waiters: Option<Arc<Notify>>,
}

/// Returns the time at which a claim is forgotten, unless the claim is renewed or taken over.
pub(super) fn look_at(begin: &ClaimRequest, now: Millis) -> Millis {
    now.after(begin.lease).after(begin.ttl)
}

pub(super) fn cost_of(record: &Record) -> usize {
    ENTRY_BYTES + record.len()
}

impl Entry {
    /// Creates a new claim's entry. `number` is the entry's line number in the ledger.
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

    /// Returns the number of bytes that the budget counts for the entry.
    pub(super) fn cost(&self) -> usize {
        match &self.occupant {
            Occupant::Running(_) => CLAIM,
            Occupant::Done { record, .. } => cost_of(record),
        }
    }

    /// Returns the entry's line in the ledger.
    pub(super) fn line(&self, hash: SlotHash) -> Line {
        let at = match &self.occupant {
            Occupant::Running(running) => running.extra.look_at,
            Occupant::Done { expires_at, .. } => *expires_at,
        };
        Line::new(at, self.number, hash, self.scope.share())
    }

    /// Removes the entry's line from the ledger.
    pub(super) fn leave(&self, ledger: &mut Ledger, hash: SlotHash) {
        let line = self.line(hash);
        match &self.occupant {
            Occupant::Running(_) => ledger.remove_claim(line),
            Occupant::Done { record, .. } => ledger.remove_record(line, cost_of(record) as u64),
        }
    }
}

/// The requests that are waiting for a claim to end.
#[derive(Default)]
#[must_use = "they wait until they are woken"]
pub(super) struct Waiters(Option<Arc<Notify>>);

impl Waiters {
    /// Wakes the waiting requests. Do not call this method while holding a lock.
    pub(super) fn wake(self) {
        if let Some(waiters) = self.0 {
            waiters.notify_waiters();
        }
    }
}

impl Hold {
    /// Removes and returns the waiting requests.
    pub(super) fn waiters(&mut self) -> Waiters {
        Waiters(self.waiters.take())
    }

    /// Returns the notifier that wakes one more waiting request when the claim ends.
    pub(super) fn wait(&mut self) -> Arc<Notify> {
        Arc::clone(self.waiters.get_or_insert_with(Arc::default))
    }
}

/// Wakes the requests that were waiting for a removed claim. Do not call this function while
/// holding a lock.
pub(super) fn wake(gone: Occupant<Hold>) {
    if let Occupant::Running(mut running) = gone {
        running.extra.waiters().wake();
    }
}

#[cfg(test)]
impl Entry {
    /// Creates an entry for a slot with a record. `number` is the entry's line number in the
    /// ledger.
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
