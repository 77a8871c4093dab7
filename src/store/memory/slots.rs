//! The slots in memory: a map of occupants, a ledger of what ends when, and a byte budget.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crossbeam_utils::CachePadded;
use dashmap::{DashMap, Entry as Place};
use tokio::sync::Notify;
use tokio::sync::futures::OwnedNotified;
use tokio::time::Instant;

use super::hash::SlotState;
use super::ledger::{Evictable, Ledger, Line, tick};
use super::{Census, Entry, MemoryStats, Phase, WhenFull};
use crate::request::{ScopeTag, Slot};
use crate::store::Record;
use crate::store::rules::Occupant;
use crate::store::{Begin, Begun, Held, Millis, Token};
use crate::store::{StoreError, StoreErrorKind};

/// Lock shards of the map. Many, so that growing one, which moves all its entries under its lock,
/// stays below a millisecond with ten million keys.
const SHARDS: usize = 512;
/// Expired records that one write sweeps at most. More than one, so that sweeping keeps up.
const SWEEP: usize = 8;
/// Records that one write evicts at most, which bounds its work. More than it can need, unless one
/// large record takes the place of many small ones; the next writes then go on.
const EVICT: usize = 512;
/// When a claim that was looked at and was alive is looked at again.
const LOOK_AGAIN: Duration = Duration::from_secs(60);
/// What an entry takes beside its record: its place in the map (at three quarters full), its line
/// in the ledger and the record's reference counts. Measured by `benches/footprint.rs`.
const ENTRY_BYTES: usize = 136;
/// What a claim takes, entry and all.
const CLAIM: usize = ENTRY_BYTES + 128;

pub(super) struct Slots {
    /// Lock order: a shard of `map`, then `ledger`. No guard of either is held across an await.
    map: DashMap<Slot, Occupant<Hold>, SlotState>,
    ledger: CachePadded<Mutex<Ledger>>,
    origin: Instant,
    pub(super) budget: usize,
    pub(super) when_full: WhenFull,
    bytes: CachePadded<AtomicUsize>,
    entries: CachePadded<AtomicUsize>,
    evicted: AtomicU64,
}

/// What the store hangs on a claim.
struct Hold {
    /// The claim's place in the ledger.
    index: usize,
    /// Whose room its record will take.
    scope: ScopeTag,
    /// Made by the first who waits.
    waiters: Option<Arc<Notify>>,
}

fn cost(occupant: &Occupant<Hold>) -> usize {
    match occupant {
        Occupant::Running(_) => CLAIM,
        Occupant::Done { record, .. } => ENTRY_BYTES + record.len(),
    }
}

/// Whether there is room for a new key.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Room {
    Unknown,
    Enough,
    None,
}

/// What a write found to sweep; it is swept when no lock is held.
#[derive(Default)]
struct Due {
    records: Vec<Slot>,
    claim: Option<(usize, Slot)>,
}

impl Slots {
    pub(super) fn new(budget: usize, when_full: WhenFull) -> Self {
        Self {
            map: DashMap::with_capacity_and_hasher_and_shard_amount(0, SlotState::new(), SHARDS),
            ledger: CachePadded::default(),
            origin: Instant::now(),
            budget,
            when_full,
            bytes: CachePadded::default(),
            entries: CachePadded::default(),
            evicted: AtomicU64::new(0),
        }
    }

    pub(super) fn stats(&self) -> MemoryStats {
        MemoryStats {
            entries: self.entries.load(Ordering::Relaxed),
            bytes: self.bytes.load(Ordering::Relaxed),
            evicted: self.evicted.load(Ordering::Relaxed),
        }
    }

    fn now(&self) -> Millis {
        let elapsed = Instant::now().saturating_duration_since(self.origin);
        Millis(elapsed.as_secs().saturating_mul(1000) + u64::from(elapsed.subsec_millis()))
    }

    /// No code that can panic runs under the lock; should it ever, the book is still whole.
    fn ledger(&self) -> MutexGuard<'_, Ledger> {
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn begin(&self, begin: &Begin) -> Result<Begun, StoreError> {
        let now = self.now();
        let mut room = self.room_for_claim();
        let (due, before) = loop {
            match self.map.entry(begin.slot) {
                Place::Occupied(mut entry) => {
                    if let Some(begun) = entry.get_mut().begin(begin, now) {
                        return Ok(begun);
                    }
                    // Expired and not swept yet: vacant.
                    let (hold, due) = self.book(begin, now, Some(entry.get()));
                    let before = std::mem::replace(entry.get_mut(), Occupant::claim(begin, 1, now, hold));
                    self.add(CLAIM.wrapping_sub(cost(&before)));
                    break (due, Some(before));
                }
                // Room is made only for a key that is new, and without its shard's lock.
                Place::Vacant(entry) if room == Room::Unknown => {
                    drop(entry);
                    room = self.make_room(CLAIM, now);
                }
                Place::Vacant(_) if room == Room::None => {
                    return Err(StoreError::new(
                        StoreErrorKind::Full,
                        "memory store: the byte budget is spent; raise it, shorten the TTL, or let it evict",
                    ));
                }
                Place::Vacant(entry) => {
                    let (hold, due) = self.book(begin, now, None);
                    // Counted before it can be seen, so that nobody subtracts it first.
                    self.entries.fetch_add(1, Ordering::Relaxed);
                    self.add(CLAIM);
                    entry.insert(Occupant::claim(begin, 1, now, hold));
                    break (due, None);
                }
            }
        };
        before.into_iter().for_each(wake_all);
        self.sweep(due, now);
        Ok(Begun::Started { attempt: 1 })
    }

    fn room_for_claim(&self) -> Room {
        if self.is_over(CLAIM) {
            Room::Unknown
        } else {
            Room::Enough
        }
    }

    /// Enters a new claim in the ledger, takes its predecessor out, and looks what is due.
    fn book(&self, begin: &Begin, now: Millis, before: Option<&Occupant<Hold>>) -> (Hold, Due) {
        let mut ledger = self.ledger();
        if let Some(Occupant::Running(lapsed)) = before {
            ledger.remove_claim(lapsed.extra.index);
        }
        let index = ledger.add_claim(begin.slot, now.after(begin.lease).after(begin.ttl));
        let hold = Hold {
            index,
            scope: begin.scope,
            waiters: None,
        };
        (hold, due(&mut ledger, now))
    }

    pub(super) fn renew(&self, slot: &Slot, token: Token, lease: Duration) -> Held {
        let now = self.now();
        let waiters = {
            let Some(mut occupant) = self.map.get_mut(slot) else {
                return Held::Lost;
            };
            let Some(running) = occupant.held_by(token, now) else {
                return Held::Lost;
            };
            running.lease_until = now.after(lease);
            if !lease.is_zero() {
                return Held::Yes;
            }
            // It lapses at once: whoever waits may take it over, and nobody may ever come back.
            let forgotten_at = running.lease_until.after(running.memory);
            self.ledger().look_at_claim(running.extra.index, forgotten_at);
            running.extra.waiters.take()
        };
        wake(waiters);
        Held::Yes
    }

    pub(super) fn complete(&self, slot: &Slot, token: Token, record: &Record, ttl: Duration) -> Held {
        let now = self.now();
        let expires_at = now.after(ttl);
        let Hold { index, scope, waiters } = {
            let Some(mut occupant) = self.map.get_mut(slot) else {
                return Held::Lost;
            };
            if occupant.held_by(token, now).is_none() {
                return Held::Lost;
            }
            let done = Occupant::Done {
                record: record.clone(),
                expires_at,
            };
            // In one step; a record may take less than its claim did.
            self.add(cost(&done).wrapping_sub(cost(&occupant)));
            match std::mem::replace(&mut *occupant, done) {
                Occupant::Running(running) => running.extra,
                Occupant::Done { .. } => return Held::Lost,
            }
        };
        if self.is_over(0) {
            // Before the new record is in the ledger, so that it is not the one to go.
            self.make_room(0, now);
        }
        let due = {
            let mut ledger = self.ledger();
            ledger.remove_claim(index);
            let line = Line {
                slot: *slot,
                scope,
                bytes: u32::try_from(ENTRY_BYTES + record.len()).unwrap_or(u32::MAX),
            };
            ledger.add_record(line, expires_at);
            due(&mut ledger, now)
        };
        wake(waiters);
        self.sweep(due, now);
        Held::Yes
    }

    pub(super) fn release(&self, slot: &Slot, token: Token) -> Held {
        let now = self.now();
        let removed = self
            .map
            .remove_if_mut(slot, |_, occupant| occupant.held_by(token, now).is_some());
        match removed {
            Some((_, occupant)) => {
                self.vacate(occupant);
                Held::Yes
            }
            None => Held::Lost,
        }
    }

    /// After an occupant was taken out of the map before its time.
    fn vacate(&self, occupant: Occupant<Hold>) {
        self.uncount(&occupant);
        if let Occupant::Running(running) = &occupant {
            self.ledger().remove_claim(running.extra.index);
        }
        wake_all(occupant);
    }

    /// Empties a slot. The ledger keeps a record's line, which then names nothing.
    pub(super) fn forget(&self, slot: &Slot) -> bool {
        let now = self.now();
        self.map.remove(slot).is_some_and(|(_, occupant)| {
            let known = !occupant.is_forgotten(now);
            self.vacate(occupant);
            known
        })
    }

    pub(super) fn look_up(&self, slot: &Slot) -> Option<Entry> {
        let now = self.now();
        let occupant = self.map.get(slot)?;
        let forgotten_in = now.until(occupant.forgotten_at());
        (!forgotten_in.is_zero()).then(|| match &*occupant {
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
        for occupant in self.map.iter().filter(|occupant| !occupant.is_forgotten(now)) {
            match &*occupant {
                Occupant::Running(running) if running.lease_until > now => census.running += 1,
                Occupant::Running(_) => census.lapsed += 1,
                Occupant::Done { .. } => census.done += 1,
            }
        }
        census
    }

    /// Removes what is due, if it is still what the ledger says.
    fn sweep(&self, due: Due, now: Millis) {
        for slot in due.records {
            self.remove_if(&slot, |occupant| {
                matches!(occupant, Occupant::Done { .. }) && occupant.is_forgotten(now)
            });
        }
        if let Some(claim) = due.claim {
            self.sweep_claim(claim, now);
        }
    }

    /// Removes a claim whose holder died and whose memory has ended.
    fn sweep_claim(&self, (index, slot): (usize, Slot), now: Millis) {
        let lapsed = |occupant: &Occupant<Hold>| match occupant {
            Occupant::Running(running) => running.extra.index == index && occupant.is_forgotten(now),
            Occupant::Done { .. } => false,
        };
        if self.remove_if(&slot, lapsed) {
            self.ledger().remove_claim(index);
        }
    }

    /// Sweeps and, if allowed, evicts until `needed` bytes fit, or enough was done for one write.
    fn make_room(&self, needed: usize, now: Millis) -> Room {
        for _ in 0..EVICT {
            if !self.is_over(needed) {
                return Room::Enough;
            }
            let (next, claim) = {
                let mut ledger = self.ledger();
                let next = match (ledger.pop_due(now), self.when_full) {
                    (Some((at, slot)), _) => Evictable::Record(at, slot),
                    (None, WhenFull::EvictNearestExpiry) => ledger.pop_evictable(),
                    (None, WhenFull::RefuseNew) => Evictable::Nothing,
                };
                (next, ledger.inspect_claim(now, now.after(LOOK_AGAIN)))
            };
            if let Some(claim) = claim {
                self.sweep_claim(claim, now);
            }
            match next {
                Evictable::Record(at, slot) => self.evict(&slot, at, now),
                Evictable::NotYetFound => {}
                // Only the claims can make room now; the hand passes them in the writes to come.
                Evictable::Nothing if !self.is_over(needed) => return Room::Enough,
                Evictable::Nothing => return Room::None,
            }
        }
        // Far over, as after a large record: the next writes go on.
        match self.when_full {
            WhenFull::EvictNearestExpiry => Room::Enough,
            WhenFull::RefuseNew if self.is_over(needed) => Room::None,
            WhenFull::RefuseNew => Room::Enough,
        }
    }

    /// Removes the record of a line of the ledger. A line that its slot has outlived (it expired
    /// and is in use again) names nothing.
    fn evict(&self, slot: &Slot, at: u64, now: Millis) {
        let mut early = false;
        let removed = self.remove_if(slot, |occupant| match occupant {
            Occupant::Done { expires_at, .. } => {
                early = *expires_at > now;
                !early || tick(*expires_at) == at
            }
            Occupant::Running(_) => false,
        });
        if removed && early {
            let evicted = self.evicted.fetch_add(1, Ordering::Relaxed) + 1;
            // At 1, 2, 4, 8 and so on: seen at once, and never a flood.
            if evicted.is_power_of_two() {
                tracing::warn!(
                    target: "tower_idempotency",
                    evicted,
                    budget = self.budget,
                    "the memory store is full and evicts records before they expire; their keys would run again"
                );
            }
        }
    }

    fn remove_if(&self, slot: &Slot, condition: impl FnOnce(&Occupant<Hold>) -> bool) -> bool {
        match self.map.remove_if(slot, |_, occupant| condition(occupant)) {
            Some((_, occupant)) => {
                self.uncount(&occupant);
                wake_all(occupant);
                true
            }
            None => false,
        }
    }

    fn uncount(&self, occupant: &Occupant<Hold>) {
        self.entries.fetch_sub(1, Ordering::Relaxed);
        self.subtract(cost(occupant));
    }

    fn add(&self, bytes: usize) {
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    fn subtract(&self, bytes: usize) {
        self.bytes.fetch_sub(bytes, Ordering::Relaxed);
    }

    fn is_over(&self, needed: usize) -> bool {
        self.bytes.load(Ordering::Relaxed).saturating_add(needed) > self.budget
    }

    /// A future that is ready when the slot's present claim has ended. It is registered before the
    /// slot's lock is given back, so that no end can slip by.
    pub(super) fn ended(&self, slot: &Slot) -> Option<OwnedNotified> {
        match &mut *self.map.get_mut(slot)? {
            Occupant::Running(running) => {
                let waiters = running.extra.waiters.get_or_insert_with(Arc::default);
                Some(Arc::clone(waiters).notified_owned())
            }
            Occupant::Done { .. } => None,
        }
    }
}

fn due(ledger: &mut Ledger, now: Millis) -> Due {
    let mut due = Due::default();
    while due.records.len() < SWEEP
        && let Some((_, slot)) = ledger.pop_due(now)
    {
        due.records.push(slot);
    }
    due.claim = ledger.inspect_claim(now, now.after(LOOK_AGAIN));
    due
}

fn wake(waiters: Option<Arc<Notify>>) {
    if let Some(waiters) = waiters {
        waiters.notify_waiters();
    }
}

/// Wakes those who wait for a claim that is gone.
fn wake_all(gone: Occupant<Hold>) {
    if let Occupant::Running(running) = gone {
        wake(running.extra.waiters);
    }
}
