//! The slots in memory: a map of occupants, a ledger of what ends when, and a byte budget.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crossbeam_utils::CachePadded;
use smallvec::SmallVec;
use tokio::sync::Notify;
use tokio::sync::futures::OwnedNotified;
use tokio::time::Instant;

use super::hash::{SlotHash, SlotHasher};
use super::ledger::{Evictable, Ledger, Line};
use super::shard::{self, Shard};
use super::{Census, Entry, MemoryStats, Phase, WhenFull};
use crate::request::Slot;
use crate::store::Record;
use crate::store::rules::Occupant;
use crate::store::{ClaimOutcome, ClaimRequest, Held, Millis, Token};
use crate::store::{StoreError, StoreErrorKind};

/// Lock shards of the map. Many, so that doubling the table of one, which moves it under its lock,
/// stays below a millisecond with ten million keys: eighty thousand places of eight bytes.
const SHARDS: usize = 128;
/// Expired records that one write sweeps at most. More than one, so that sweeping keeps up.
const SWEEP: usize = 8;
/// Records that one write evicts at most, which bounds its work. More than it can need, unless one
/// large record takes the place of many small ones; the next writes then go on.
const EVICT: usize = 512;
/// What an entry takes beside its record: itself (64 bytes), its place in its shard's table (10 to 27,
/// 15 on average), its line in the ledger (26 to 46, about 35) and the record's reference counts (16,
/// and its length is rounded up to eight). Measured by `benches/footprint.rs` and
/// `tests/memory_accounting.rs`.
const ENTRY_BYTES: usize = 136;
/// What a claim takes, entry and all: about 180, and some more if others wait for its end.
const CLAIM: usize = 216;

pub(super) struct Slots {
    /// Lock order: a shard, then `ledger`. No guard of either is held across an await. The line of an
    /// entry is changed under the lock of its shard, so that the two always agree.
    shards: Box<[CachePadded<Mutex<Shard>>]>,
    ledger: CachePadded<Mutex<Ledger>>,
    hasher: SlotHasher,
    origin: Instant,
    pub(super) budget: usize,
    pub(super) when_full: WhenFull,
    bytes: CachePadded<AtomicUsize>,
    entries: CachePadded<AtomicUsize>,
    evicted: AtomicU64,
}

/// What the store hangs on a claim.
pub(super) struct Hold {
    /// When the ledger has it looked at.
    look_at: Millis,
    /// Made by the first who waits.
    waiters: Option<Arc<Notify>>,
}

fn cost(occupant: &Occupant<Hold>) -> usize {
    match occupant {
        Occupant::Running(_) => CLAIM,
        Occupant::Done { record, .. } => cost_of(record),
    }
}

fn cost_of(record: &Record) -> usize {
    ENTRY_BYTES + record.len()
}

/// The line of an entry in the ledger.
fn line(hash: SlotHash, entry: &shard::Entry) -> Line {
    let at = match &entry.occupant {
        Occupant::Running(running) => running.extra.look_at,
        Occupant::Done { expires_at, .. } => *expires_at,
    };
    Line::new(at, entry.number, hash, entry.scope)
}

/// Whether there is room for a new key.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Room {
    Unknown,
    Enough,
    None,
}

/// What a write found to sweep; it is swept when no lock is held. Its lines are out of the ledger.
#[derive(Default)]
struct Due {
    records: SmallVec<[Line; SWEEP]>,
    claim: Option<Line>,
}

impl Due {
    fn take(&mut self, ledger: &mut Ledger, now: Millis) {
        while self.records.len() < SWEEP
            && let Some(line) = ledger.pop_due(now)
        {
            self.records.push(line);
        }
        self.claim = ledger.pop_claim(now);
    }
}

impl Slots {
    pub(super) fn new(budget: usize, when_full: WhenFull) -> Self {
        Self {
            shards: (0..SHARDS).map(|_| CachePadded::default()).collect(),
            ledger: CachePadded::default(),
            hasher: SlotHasher::new(),
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

    /// No code that can panic runs under the lock; should it ever, the map is still whole.
    fn shard(&self, hash: SlotHash) -> MutexGuard<'_, Shard> {
        lock(&self.shards[hash.shard_of(SHARDS)])
    }

    /// Changes the ledger, and counts what its table of scopes takes more or less.
    fn with_ledger<T>(&self, change: impl FnOnce(&mut Ledger) -> T) -> T {
        let mut ledger = lock(&self.ledger);
        let before = ledger.scope_bytes();
        let result = change(&mut ledger);
        let after = ledger.scope_bytes();
        if after != before {
            self.add(after.wrapping_sub(before));
        }
        result
    }

    pub(super) fn begin(&self, begin: &ClaimRequest) -> Result<ClaimOutcome, StoreError> {
        let now = self.now();
        let hash = self.hasher.hash(&begin.slot);
        let mut room = if self.is_over(CLAIM) {
            Room::Unknown
        } else {
            Room::Enough
        };
        let mut due = Due::default();
        let before = loop {
            let mut shard = self.shard(hash);
            if let Some(at) = shard.find(hash, &begin.slot) {
                let entry = shard.get_mut(at);
                if let Some(begun) = entry.occupant.begin(begin, now) {
                    return Ok(begun);
                }
                // Expired and not swept yet: vacant.
                self.add(CLAIM.wrapping_sub(cost(&entry.occupant)));
                let number = self.with_ledger(|ledger| {
                    remove(ledger, hash, entry);
                    due.take(ledger, now);
                    ledger.add_claim(look_at(begin, now), hash, begin.scope)
                });
                break Some(std::mem::replace(entry, claim(begin, number, now)));
            }
            match room {
                // Room is made only for a key that is new, and without its shard's lock.
                Room::Unknown => {
                    drop(shard);
                    room = self.make_room(CLAIM, now);
                }
                Room::None => {
                    return Err(StoreError::new(
                        StoreErrorKind::Full,
                        "memory store: the byte budget is spent; raise it, shorten the TTL, or let it evict",
                    ));
                }
                Room::Enough => {
                    self.entries.fetch_add(1, Ordering::Relaxed);
                    self.add(CLAIM);
                    let number = self.with_ledger(|ledger| {
                        due.take(ledger, now);
                        ledger.add_claim(look_at(begin, now), hash, begin.scope)
                    });
                    shard.insert(hash, claim(begin, number, now));
                    break None;
                }
            }
        };
        if let Some(before) = before {
            wake_all(before.occupant);
        }
        self.sweep(&due, now);
        Ok(ClaimOutcome::Started { attempt: 1 })
    }

    pub(super) fn renew(&self, slot: &Slot, token: Token, lease: Duration) -> Held {
        let now = self.now();
        let hash = self.hasher.hash(slot);
        let waiters = {
            let mut shard = self.shard(hash);
            let Some(entry) = shard.find(hash, slot).map(|at| shard.get_mut(at)) else {
                return Held::Lost;
            };
            let before = line(hash, entry);
            let Some(running) = entry.occupant.held_by(token, now) else {
                return Held::Lost;
            };
            running.lease_until = now.after(lease);
            if !lease.is_zero() {
                return Held::Yes;
            }
            // It lapses at once: whoever waits may take it over, and nobody may ever come back.
            let look_at = running.lease_until.after(running.memory);
            running.extra.look_at = look_at;
            let waiters = running.extra.waiters.take();
            entry.number = self.with_ledger(|ledger| {
                ledger.remove_claim(before);
                ledger.add_claim(look_at, hash, before.scope)
            });
            waiters
        };
        wake(waiters);
        Held::Yes
    }

    pub(super) fn complete(&self, slot: &Slot, token: Token, record: &Record, ttl: Duration) -> Held {
        let now = self.now();
        let expires_at = now.after(ttl);
        let hash = self.hasher.hash(slot);
        let bytes = cost_of(record);
        // A record may take less than its claim did.
        let more = bytes.saturating_sub(CLAIM);
        if self.is_over(more) && self.is_held(hash, slot, token, now) {
            // Before the new record is in the ledger, so that it is not the one to go.
            self.make_room(more, now);
        }
        let mut due = Due::default();
        let claim = {
            let mut shard = self.shard(hash);
            let Some(entry) = shard.find(hash, slot).map(|at| shard.get_mut(at)) else {
                return Held::Lost;
            };
            if entry.occupant.held_by(token, now).is_none() {
                return Held::Lost;
            }
            self.add(bytes.wrapping_sub(cost(&entry.occupant)));
            entry.number = self.with_ledger(|ledger| {
                ledger.remove_claim(line(hash, entry));
                due.take(ledger, now);
                ledger.add_record(expires_at, hash, entry.scope, bytes as u64)
            });
            let record = record.clone();
            std::mem::replace(&mut entry.occupant, Occupant::Done { record, expires_at })
        };
        wake_all(claim);
        self.sweep(&due, now);
        Held::Yes
    }

    fn is_held(&self, hash: SlotHash, slot: &Slot, token: Token, now: Millis) -> bool {
        let mut shard = self.shard(hash);
        let entry = shard.find(hash, slot).map(|at| shard.get_mut(at));
        entry.is_some_and(|entry| entry.occupant.held_by(token, now).is_some())
    }

    pub(super) fn release(&self, slot: &Slot, token: Token) -> Held {
        let now = self.now();
        match self.vacate(slot, |occupant| occupant.held_by(token, now).is_some()) {
            Some(occupant) => {
                wake_all(occupant);
                Held::Yes
            }
            None => Held::Lost,
        }
    }

    /// Empties a slot.
    pub(super) fn forget(&self, slot: &Slot) -> bool {
        let now = self.now();
        self.vacate(slot, |_| true).is_some_and(|occupant| {
            let known = !occupant.is_forgotten(now);
            wake_all(occupant);
            known
        })
    }

    /// Takes an occupant out before its time, and its line.
    fn vacate(&self, slot: &Slot, is_meant: impl FnOnce(&mut Occupant<Hold>) -> bool) -> Option<Occupant<Hold>> {
        let hash = self.hasher.hash(slot);
        let mut shard = self.shard(hash);
        let at = shard.find(hash, slot)?;
        if !is_meant(&mut shard.get_mut(at).occupant) {
            return None;
        }
        let entry = self.take(&mut shard, at);
        self.with_ledger(|ledger| remove(ledger, hash, &entry));
        Some(entry.occupant)
    }

    /// Takes an entry out of the map, and not its line.
    fn take(&self, shard: &mut Shard, at: usize) -> shard::Entry {
        let entry = shard.remove(at, &self.hasher);
        self.entries.fetch_sub(1, Ordering::Relaxed);
        self.subtract(cost(&entry.occupant));
        entry
    }

    pub(super) fn look_up(&self, slot: &Slot) -> Option<Entry> {
        let now = self.now();
        let hash = self.hasher.hash(slot);
        let shard = self.shard(hash);
        let occupant = &shard.get(shard.find(hash, slot)?).occupant;
        let forgotten_in = now.until(occupant.forgotten_at());
        (!forgotten_in.is_zero()).then(|| match occupant {
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
        for shard in &self.shards {
            for entry in lock(shard).iter().filter(|entry| !entry.occupant.is_forgotten(now)) {
                match &entry.occupant {
                    Occupant::Running(running) if running.lease_until > now => census.running += 1,
                    Occupant::Running(_) => census.lapsed += 1,
                    Occupant::Done { .. } => census.done += 1,
                }
            }
        }
        census
    }

    /// Removes what is due, if it is still what the ledger said.
    fn sweep(&self, due: &Due, now: Millis) {
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

    /// Takes out the record of a line that was taken out of the ledger, if the slot was not used again
    /// meanwhile.
    fn take_record(&self, of: Line) -> Option<(Record, Millis)> {
        let mut shard = self.shard(of.hash);
        let is_meant =
            |entry: &shard::Entry| matches!(entry.occupant, Occupant::Done { .. }) && line(of.hash, entry) == of;
        let at = shard.find_by(of.hash, is_meant)?;
        match self.take(&mut shard, at).occupant {
            Occupant::Done { record, expires_at } => Some((record, expires_at)),
            Occupant::Running(_) => None,
        }
    }

    /// Records are gone whose lines were taken out of the ledger.
    fn strike(&self, gone: &[(Line, Record)]) {
        self.with_ledger(|ledger| {
            for (line, record) in gone {
                ledger.strike(*line, cost_of(record) as u64);
            }
        });
    }

    /// Removes a claim whose holder died and whose memory has ended; another is looked at again when
    /// that will be so.
    fn sweep_claim(&self, of: Line, now: Millis) {
        let lapsed = {
            let mut shard = self.shard(of.hash);
            let is_meant =
                |entry: &shard::Entry| matches!(entry.occupant, Occupant::Running(_)) && line(of.hash, entry) == of;
            let Some(at) = shard.find_by(of.hash, is_meant) else {
                return;
            };
            let entry = shard.get_mut(at);
            let look_at = entry.occupant.forgotten_at();
            match &mut entry.occupant {
                Occupant::Running(running) if look_at > now => {
                    running.extra.look_at = look_at;
                    entry.number = self.with_ledger(|ledger| ledger.add_claim(look_at, of.hash, of.scope));
                    return;
                }
                _ => self.take(&mut shard, at).occupant,
            }
        };
        wake_all(lapsed);
    }

    /// Sweeps and, if allowed, evicts until `needed` bytes fit, or enough was done for one write.
    fn make_room(&self, needed: usize, now: Millis) -> Room {
        for _ in 0..EVICT {
            if !self.is_over(needed) {
                return Room::Enough;
            }
            let (next, claim) = self.with_ledger(|ledger| {
                let next = match (ledger.pop_due(now), self.when_full) {
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
                // Only the claims can make room now; they are looked at in the writes to come.
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

    /// Removes the record of a line that was taken out of the ledger.
    fn evict(&self, line: Line, now: Millis) {
        let Some((record, expires_at)) = self.take_record(line) else {
            return;
        };
        self.strike(&[(line, record)]);
        if expires_at > now {
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
        let hash = self.hasher.hash(slot);
        let mut shard = self.shard(hash);
        let at = shard.find(hash, slot)?;
        match &mut shard.get_mut(at).occupant {
            Occupant::Running(running) => {
                let waiters = running.extra.waiters.get_or_insert_with(Arc::default);
                Some(Arc::clone(waiters).notified_owned())
            }
            Occupant::Done { .. } => None,
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// When a claim is forgotten, unless it is renewed or taken over.
fn look_at(begin: &ClaimRequest, now: Millis) -> Millis {
    now.after(begin.lease).after(begin.ttl)
}

/// The entry of a new claim, whose line has that number.
fn claim(begin: &ClaimRequest, number: u32, now: Millis) -> shard::Entry {
    let hold = Hold {
        look_at: look_at(begin, now),
        waiters: None,
    };
    shard::Entry {
        slot: begin.slot,
        occupant: Occupant::claim(begin, 1, now, hold),
        scope: begin.scope,
        number,
    }
}

/// Takes the line of an entry out of the ledger.
fn remove(ledger: &mut Ledger, hash: SlotHash, entry: &shard::Entry) {
    let line = line(hash, entry);
    match &entry.occupant {
        Occupant::Running(_) => ledger.remove_claim(line),
        Occupant::Done { record, .. } => ledger.remove_record(line, cost_of(record) as u64),
    }
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
