//! Inspecting and freeing slots.

use super::entry::{Entry as Kept, wake};
use super::slots::Slots;
use crate::request::{ScopeTag, Slot};
use crate::store::rules::Occupant;
use crate::store::{Census, Entry, Phase};

impl Slots {
    pub(super) fn look_up(&self, slot: &Slot) -> Option<Entry> {
        let now = self.now();
        let entry = self.map.get(self.map.hash(slot), slot)?;
        let forgotten_in = now.until(entry.occupant.forgotten_at());
        (!forgotten_in.is_zero()).then(|| match &entry.occupant {
            Occupant::Running(running) => {
                let phase = Phase::Running {
                    attempt: running.attempt,
                    lease_left: now.until(running.lease_until),
                };
                Entry::new(running.fingerprint, phase, forgotten_in)
            }
            Occupant::Done { record, .. } => {
                let phase = Phase::Done { bytes: record.len() };
                Entry::new(record.fingerprint(), phase, forgotten_in)
            }
        })
    }

    pub(super) fn count(&self) -> Census {
        let now = self.now();
        let mut census = Census::default();
        self.map.for_each(|entry| match &entry.occupant {
            occupant if occupant.is_forgotten(now) => {}
            Occupant::Running(running) if running.lease_until > now => census.running += 1,
            Occupant::Running(_) => census.lapsed += 1,
            Occupant::Done { .. } => census.done += 1,
        });
        census
    }

    /// Forgets a scope's records, and returns the number of records that had not expired.
    ///
    /// To keep other calls from waiting long, this method first collects the slots, locking one
    /// shard at a time, and then frees the slots one by one.
    pub(super) fn forget_scope(&self, tag: &ScopeTag) -> u64 {
        let now = self.now();
        let scope = self.map.hash_of_scope(tag);
        let is_meant = |entry: &mut Kept| entry.scope == scope && matches!(entry.occupant, Occupant::Done { .. });
        let mut slots = Vec::new();
        self.map.for_each(|entry| {
            if entry.scope == scope {
                slots.push(entry.slot);
            }
        });
        let mut forgotten = 0;
        for slot in slots {
            let gone = self.vacate(&slot, is_meant);
            forgotten += u64::from(gone.is_some_and(|occupant| !occupant.is_forgotten(now)));
        }
        forgotten
    }

    /// Frees a slot, and returns whether the slot had an entry.
    pub(super) fn forget(&self, slot: &Slot) -> bool {
        let now = self.now();
        self.vacate(slot, |_| true).is_some_and(|occupant| {
            let known = !occupant.is_forgotten(now);
            wake(occupant);
            known
        })
    }
}
