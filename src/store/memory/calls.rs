//! The [`Store`](crate::store::Store) calls.

use std::time::Duration;

use tokio::sync::futures::OwnedNotified;

use super::entry::{CLAIM, Entry, cost_of, look_at, wake};
use super::hash::SlotHash;
use super::slots::Slots;
use super::sweep::{Due, Room};
use crate::request::Slot;
use crate::store::rules::Occupant;
use crate::store::{ClaimOutcome, ClaimRequest, Held, Millis, Record, StoreError, StoreErrorKind, Token};

impl Slots {
    pub(super) fn begin(&self, begin: &ClaimRequest) -> Result<ClaimOutcome, StoreError> {
        let now = self.now();
        let hash = self.map.hash(&begin.slot);
        let scope = self.map.hash_of_scope(&begin.scope);
        let mut room = if self.budget.is_over(CLAIM) {
            Room::Unknown
        } else {
            Room::Enough
        };
        let mut due = Due::default();
        let before = loop {
            let mut place = self.map.place(hash);
            if let Some(entry) = place.find(&begin.slot) {
                if let Some(begun) = entry.occupant.begin(begin, now) {
                    return Ok(begun);
                }
                // The entry has expired but has not been swept yet, so the slot is vacant.
                self.budget.change(entry.cost(), CLAIM);
                let number = self.with_ledger(|ledger| {
                    entry.leave(ledger, hash);
                    due.take(ledger, now);
                    ledger.add_claim(look_at(begin, now), hash, scope.share())
                });
                break Some(std::mem::replace(entry, Entry::claim(begin, scope, number, now)));
            }
            match room {
                // Make room only if the key is new, and not while holding the lock on its shard.
                Room::Unknown => {
                    drop(place);
                    room = self.make_room(CLAIM, now);
                }
                Room::None => {
                    return Err(StoreError::new(
                        StoreErrorKind::Full,
                        "memory store: the byte budget is used up; raise it, shorten the TTL, or let the store evict records",
                    ));
                }
                Room::Enough => {
                    // The entry's bytes are counted before the entry becomes visible, so that no
                    // other call can subtract the bytes before they are counted.
                    self.budget.enter(CLAIM);
                    let number = self.with_ledger(|ledger| {
                        due.take(ledger, now);
                        ledger.add_claim(look_at(begin, now), hash, scope.share())
                    });
                    place.insert(Entry::claim(begin, scope, number, now));
                    break None;
                }
            }
        };
        if let Some(before) = before {
            wake(before.occupant);
        }
        self.sweep(&due, now);
        Ok(ClaimOutcome::Started { attempt: 1 })
    }

    pub(super) fn renew(&self, slot: &Slot, token: Token, lease: Duration) -> Held {
        let now = self.now();
        let hash = self.map.hash(slot);
        let waiters = {
            let Some(mut entry) = self.map.get_mut(hash, slot) else {
                return Held::Lost;
            };
            let before = entry.line(hash);
            let Some(running) = entry.occupant.held_by(token, now) else {
                return Held::Lost;
            };
            running.lease_until = now.after(lease);
            if !lease.is_zero() {
                return Held::Yes;
            }
            // The claim lapses immediately. A waiting request can take over the claim, but perhaps
            // none ever will.
            let look_at = running.lease_until.after(running.memory);
            running.extra.look_at = look_at;
            let waiters = running.extra.waiters();
            entry.number = self.with_ledger(|ledger| {
                ledger.remove_claim(before);
                ledger.add_claim(look_at, hash, before.scope)
            });
            waiters
        };
        waiters.wake();
        Held::Yes
    }

    pub(super) fn complete(&self, slot: &Slot, token: Token, record: &Record, ttl: Duration) -> Held {
        let now = self.now();
        let expires_at = now.after(ttl);
        let hash = self.map.hash(slot);
        let bytes = cost_of(record);
        // A record can take less space than its claim did.
        let more = bytes.saturating_sub(CLAIM);
        if self.budget.is_over(more) && self.is_held(hash, slot, token, now) {
            // Make room before the new record is in the ledger, so that the new record itself is
            // not evicted.
            self.make_room(more, now);
        }
        let mut due = Due::default();
        let claim = {
            let Some(mut entry) = self.map.get_mut(hash, slot) else {
                return Held::Lost;
            };
            if entry.occupant.held_by(token, now).is_none() {
                return Held::Lost;
            }
            self.budget.change(entry.cost(), bytes);
            entry.number = self.with_ledger(|ledger| {
                ledger.remove_claim(entry.line(hash));
                due.take(ledger, now);
                ledger.add_record(expires_at, hash, entry.scope.share(), bytes as u64)
            });
            let record = record.clone();
            std::mem::replace(&mut entry.occupant, Occupant::Done { record, expires_at })
        };
        wake(claim);
        self.sweep(&due, now);
        Held::Yes
    }

    fn is_held(&self, hash: SlotHash, slot: &Slot, token: Token, now: Millis) -> bool {
        let entry = self.map.get_mut(hash, slot);
        entry.is_some_and(|mut entry| entry.occupant.held_by(token, now).is_some())
    }

    pub(super) fn release(&self, slot: &Slot, token: Token) -> Held {
        let now = self.now();
        match self.vacate(slot, |entry| entry.occupant.held_by(token, now).is_some()) {
            Some(occupant) => {
                wake(occupant);
                Held::Yes
            }
            None => Held::Lost,
        }
    }

    /// Returns a future that completes when the slot's current claim ends. The future is registered
    /// before the slot's lock is released, so it cannot miss the claim's end.
    pub(super) fn ended(&self, slot: &Slot) -> Option<OwnedNotified> {
        let mut entry = self.map.get_mut(self.map.hash(slot), slot)?;
        // The clock is read under the lock. A time that was read earlier can precede the end of a
        // claim that has just lapsed, and nobody would wake the future.
        let now = self.now();
        match &mut entry.occupant {
            // A claim that has lapsed can be taken over now.
            Occupant::Running(running) if running.lease_until <= now => None,
            Occupant::Running(running) => Some(running.extra.wait().notified_owned()),
            Occupant::Done { .. } => None,
        }
    }
}
