//! Stores that break one rule each, and one with a clock of its own that breaks none.

use std::collections::HashMap;
use std::future::{pending, ready};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use sha2::{Digest, Sha256};
use tokio::sync::Notify;
use tokio::task::yield_now;
use tokio::time::Instant;
use tower_idempotency::Fingerprint;
use tower_idempotency::store::{
    ClaimOutcome, ClaimRequest, Held, Machine, MemoryStore, Millis, OnLapse, Record, Slot, Store, StoreError,
    StoreErrorKind, Token,
};

use crate::support::claim::Claim;

/// What is wrong with a store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    Nothing,
    StartsAtAttempt0,
    StartsEverybody,
    LeaseLeftIsTheTtl,
    CompleteIgnoresTheToken,
    ReleaseIgnoresTheToken,
    RenewIgnoresTheToken,
    NeverLapses,
    ForgetsFingerprintsInFlight,
    ForgetsFingerprintsWhenDone,
    HalvesFingerprints,
    ComparesAcrossRules,
    TakeoverKeepsTheFingerprint,
    HalvesSlots,
    TokensAreDoubles,
    TokensArePositive,
    AttemptIsAlways1,
    AttemptOutlivesRelease,
    ReleaseDoesNothing,
    ReleaseKeepsTheFingerprint,
    RenewDoesNothing,
    RenewAddsToTheLease,
    CompletesTwice,
    RepeatedBeginIsInFlight,
    TtlFromBegin,
    ReadingProlongs,
    RecordsNeverExpire,
    ForgetsLapsedClaims,
    RemembersLapsedClaims,
    IgnoresOnLapse,
    LapsedClaimsAreLost,
    ZeroLeaseIsIgnored,
    ZeroLeaseFrees,
    WrapsLongTimes,
    FailsOnLongTimes,
    CutsRecords,
    RecordsAreText,
    LosesTombstones,
    BeginReadsThenWrites,
    TakeoverReadsThenWrites,
    CompleteReadsThenWrites,
    DroppedBeginHolds,
    DroppedCompleteFrees,
    ChangedNeverWakes,
    ChangedMissesWhatWasBefore,
    ChangedSpins,
    ReleaseDoesNotWake,
}

use Fault::*;

/// Every fault, with a rule that is there to find it.
pub(crate) const ALL: [(Fault, &str); 46] = [
    (StartsAtAttempt0, "the_first_begin_starts_attempt_1"),
    (StartsEverybody, "a_duplicate_is_in_flight"),
    (LeaseLeftIsTheTtl, "a_duplicate_is_in_flight"),
    (CompleteIgnoresTheToken, "a_foreign_token_is_lost_and_changes_nothing"),
    (ReleaseIgnoresTheToken, "a_former_holder_is_fenced_off"),
    (RenewIgnoresTheToken, "a_foreign_renew_does_not_move_the_lease"),
    (NeverLapses, "a_lapsed_claim_is_taken_over_as_the_next_attempt"),
    (ForgetsFingerprintsInFlight, "another_fingerprint_is_a_mismatch"),
    (ForgetsFingerprintsWhenDone, "another_fingerprint_is_a_mismatch"),
    (HalvesFingerprints, "fingerprints_count_to_the_last_bit"),
    (ComparesAcrossRules, "a_fingerprint_of_another_rule_is_not_a_mismatch"),
    (
        TakeoverKeepsTheFingerprint,
        "a_takeover_under_another_rule_brings_its_fingerprint",
    ),
    (HalvesSlots, "slots_count_to_the_last_bit"),
    (TokensAreDoubles, "tokens_count_to_the_last_bit"),
    (TokensArePositive, "tokens_count_to_the_last_bit"),
    (AttemptIsAlways1, "a_lapsed_claim_is_taken_over_as_the_next_attempt"),
    (AttemptOutlivesRelease, "release_frees_the_slot_for_any_fingerprint"),
    (ReleaseDoesNothing, "release_frees_the_slot_for_any_fingerprint"),
    (ReleaseKeepsTheFingerprint, "release_frees_the_slot_for_any_fingerprint"),
    (RenewDoesNothing, "renew_moves_the_lease"),
    (RenewAddsToTheLease, "renew_moves_the_lease"),
    (CompletesTwice, "a_claim_ends_once"),
    (RepeatedBeginIsInFlight, "begin_can_be_repeated_with_its_token"),
    (TtlFromBegin, "a_record_lives_for_its_ttl_from_completion"),
    (ReadingProlongs, "a_record_lives_for_its_ttl_from_completion"),
    (RecordsNeverExpire, "a_record_lives_for_its_ttl_from_completion"),
    (ForgetsLapsedClaims, "a_lapsed_claim_is_remembered_for_its_ttl"),
    (RemembersLapsedClaims, "nobody_holds_what_is_forgotten"),
    (IgnoresOnLapse, "a_lapsed_claim_can_be_refused"),
    (
        LapsedClaimsAreLost,
        "a_lapsed_claim_that_nobody_took_over_is_still_held",
    ),
    (ZeroLeaseIsIgnored, "a_lease_of_zero_lapses_at_once_and_is_remembered"),
    (ZeroLeaseFrees, "a_lease_of_zero_lapses_at_once_and_is_remembered"),
    (WrapsLongTimes, "very_long_times_do_not_overflow"),
    (FailsOnLongTimes, "very_long_times_do_not_overflow"),
    (CutsRecords, "a_large_record_comes_back_whole"),
    (RecordsAreText, "a_record_comes_back_byte_for_byte"),
    (LosesTombstones, "a_tombstone_comes_back"),
    (BeginReadsThenWrites, "one_of_many_begins_starts"),
    (TakeoverReadsThenWrites, "one_of_many_takes_a_lapsed_claim_over"),
    (CompleteReadsThenWrites, "one_of_many_completes_counts"),
    (DroppedBeginHolds, "a_dropped_begin_can_be_given_back"),
    (DroppedCompleteFrees, "a_dropped_complete_is_done_or_not"),
    (ChangedNeverWakes, "waiters_learn_of_completion"),
    (ChangedMissesWhatWasBefore, "changed_returns_when_the_claim_has_ended"),
    (ChangedSpins, "waiters_learn_of_completion"),
    (ReleaseDoesNotWake, "waiters_learn_of_release"),
];

const DAY: Duration = Duration::from_secs(86_400);

/// A memory store with a fault.
#[derive(Clone)]
pub(crate) struct Faulty {
    inner: MemoryStore,
    fault: Fault,
    seen: Arc<Mutex<HashMap<Slot, Seen>>>,
    somewhere: Arc<Notify>,
}

/// What the wrapper saw of a slot.
#[derive(Clone)]
struct Seen {
    begin: ClaimRequest,
    since: Instant,
    attempts: u32,
    lapses: Instant,
    done: Option<Record>,
    /// How long what is done is kept.
    kept: Duration,
}

impl Faulty {
    pub(crate) fn new(fault: Fault) -> Self {
        Self {
            inner: MemoryStore::new(),
            fault,
            seen: Arc::default(),
            somewhere: Arc::default(),
        }
    }

    fn seen(&self, slot: &Slot) -> Option<Seen> {
        self.seen.lock().unwrap().get(slot).cloned()
    }

    fn slot(&self, slot: &Slot) -> Slot {
        let mut bytes = *slot.as_bytes();
        if self.fault == HalvesSlots {
            bytes[Slot::LEN / 2..].fill(0);
        }
        Slot::from_bytes(bytes)
    }

    fn token(&self, token: Token) -> Token {
        Token(match self.fault {
            TokensAreDoubles => token.0 as f64 as u64,
            TokensArePositive => token.0 & (u64::MAX >> 1),
            _ => token.0,
        })
    }

    fn lease(&self, lease: Duration) -> Duration {
        match self.fault {
            NeverLapses => 365 * DAY,
            WrapsLongTimes if lease > 60 * 365 * DAY => Duration::from_secs((lease.as_secs() as i32).max(0) as u64),
            _ => lease,
        }
    }

    /// The token that a call is made with: that of the holder, if tokens are ignored.
    fn bearer(&self, ignored: Fault, slot: &Slot, token: Token) -> Token {
        match self.seen(slot) {
            Some(seen) if self.fault == ignored => seen.begin.token,
            _ => self.token(token),
        }
    }

    fn has_lapsed(&self, slot: &Slot) -> bool {
        self.seen(slot).is_some_and(|seen| seen.lapses <= Instant::now())
    }

    fn fail_if_long(&self, time: Duration) -> Result<(), StoreError> {
        match self.fault {
            FailsOnLongTimes if time > 100 * 365 * DAY => {
                Err(StoreError::new(StoreErrorKind::Unavailable, "too long for me"))
            }
            _ => Ok(()),
        }
    }

    /// The record as it is kept.
    fn kept(&self, record: &Record) -> Record {
        let stored = record.to_bytes();
        let content = &stored[..stored.len() - 8];
        match self.fault {
            CutsRecords => sealed(&content[..content.len().min(60_000)]),
            RecordsAreText => {
                let head = &content[..60.min(content.len())];
                let text = String::from_utf8_lossy(&content[head.len()..]).into_owned();
                sealed(&[head, text.as_bytes()].concat())
            }
            LosesTombstones if content[1] != 0 => Record::outcome_unknown(record.fingerprint()),
            _ => record.clone(),
        }
    }
}

/// The record of these bytes.
fn sealed(content: &[u8]) -> Record {
    let sum = Sha256::digest(content);
    Record::from_bytes(&[content, &sum[..8]].concat()).unwrap()
}

impl Store for Faulty {
    async fn begin(&self, begin: &ClaimRequest) -> Result<ClaimOutcome, StoreError> {
        self.fail_if_long(begin.ttl)?;
        let before = self.seen(&begin.slot);
        let mut asked = begin.token(self.token(begin.token).0).lease(self.lease(begin.lease));
        asked.slot = self.slot(&begin.slot);
        match self.fault {
            HalvesFingerprints => {
                let mut bytes = *begin.fingerprint.as_bytes();
                bytes[Fingerprint::LEN / 2..].fill(0);
                asked.fingerprint = Fingerprint::from_bytes(bytes);
            }
            TakeoverKeepsTheFingerprint if self.has_lapsed(&begin.slot) => {
                if let Some(seen) = before
                    .as_ref()
                    .filter(|seen| !seen.begin.fingerprint.is_same_rule(&begin.fingerprint))
                {
                    asked.fingerprint = seen.begin.fingerprint;
                }
            }
            ForgetsLapsedClaims => asked.ttl = Duration::ZERO,
            RemembersLapsedClaims => asked.ttl = DAY,
            IgnoresOnLapse => asked.on_lapse = OnLapse::RunAgain,
            BeginReadsThenWrites if before.is_none() => {
                yield_now().await;
                self.inner.begin(&asked).await?;
                return Ok(ClaimOutcome::started(1));
            }
            TakeoverReadsThenWrites if self.has_lapsed(&begin.slot) => {
                let attempt = before.map_or(1, |seen| seen.attempts + 1);
                yield_now().await;
                self.inner.begin(&asked).await?;
                return Ok(ClaimOutcome::started(attempt));
            }
            // As a cache would that keeps what is read.
            ReadingProlongs
                if before.as_ref().is_some_and(|seen| seen.done.is_some()) && !self.has_lapsed(&begin.slot) =>
            {
                let mut seen = self.seen.lock().unwrap();
                let seen = seen.get_mut(&begin.slot).unwrap();
                seen.lapses = Instant::now() + seen.kept;
                return Ok(match seen.done.clone() {
                    Some(record) if !record.fingerprint().conflicts_with(&begin.fingerprint) => {
                        ClaimOutcome::Done(record)
                    }
                    _ => ClaimOutcome::Mismatch,
                });
            }
            DroppedBeginHolds => {
                let draft = asked.token(!asked.token.0);
                if self.inner.begin(&draft).await? == ClaimOutcome::started(1) {
                    yield_now().await;
                    self.inner.release(&asked.slot, draft.token).await?;
                }
            }
            RepeatedBeginIsInFlight if before.as_ref().is_some_and(|seen| seen.begin.token == begin.token) => {
                asked.token = Token(!asked.token.0);
            }
            ReleaseKeepsTheFingerprint
                if before
                    .as_ref()
                    .is_some_and(|seen| seen.begin.fingerprint != begin.fingerprint) =>
            {
                return Ok(ClaimOutcome::Mismatch);
            }
            _ => {}
        }
        let begun = self.inner.begin(&asked).await?;
        if let ClaimOutcome::Started { attempt, .. } = begun {
            let now = Instant::now();
            let attempts = match (&before, self.fault) {
                (Some(seen), AttemptOutlivesRelease) if seen.done.is_none() && attempt == 1 => seen.attempts.max(1),
                _ => attempt,
            };
            let seen = Seen {
                begin: asked,
                since: now,
                attempts,
                lapses: now + asked.lease.min(DAY),
                done: None,
                kept: Duration::ZERO,
            };
            self.seen.lock().unwrap().insert(begin.slot, seen);
            return Ok(ClaimOutcome::started(match self.fault {
                StartsAtAttempt0 => attempt - 1,
                AttemptIsAlways1 => 1,
                _ => attempts,
            }));
        }
        let done = before.as_ref().and_then(|seen| seen.done.clone());
        let differs = before.is_some_and(|seen| seen.begin.fingerprint != begin.fingerprint);
        Ok(match (self.fault, begun) {
            (StartsEverybody, ClaimOutcome::InFlight { .. }) => ClaimOutcome::started(1),
            (LeaseLeftIsTheTtl, ClaimOutcome::InFlight { .. }) => ClaimOutcome::in_flight(DAY),
            (ForgetsFingerprintsInFlight, ClaimOutcome::Mismatch) if done.is_none() => {
                ClaimOutcome::in_flight(begin.lease)
            }
            (ComparesAcrossRules, ClaimOutcome::InFlight { .. } | ClaimOutcome::Done(_)) if differs => {
                ClaimOutcome::Mismatch
            }
            (ForgetsFingerprintsWhenDone, ClaimOutcome::Mismatch) if done.is_some() => {
                ClaimOutcome::Done(done.unwrap())
            }
            (_, begun) => begun,
        })
    }

    async fn renew(&self, slot: &Slot, token: Token, lease: Duration) -> Result<Held, StoreError> {
        self.fail_if_long(lease)?;
        let lapsed = self.has_lapsed(slot);
        let bearer = self.bearer(RenewIgnoresTheToken, slot, token);
        let held = match self.fault {
            RenewDoesNothing => return self.inner.renew(&self.slot(slot), bearer, self.left(slot)).await,
            RenewAddsToTheLease => {
                let lease = lease.saturating_add(self.left(slot));
                self.inner.renew(&self.slot(slot), bearer, lease).await?
            }
            LapsedClaimsAreLost if lapsed => Held::Lost,
            ZeroLeaseIsIgnored if lease.is_zero() => return Ok(Held::Yes),
            ZeroLeaseFrees if lease.is_zero() => self.inner.release(&self.slot(slot), bearer).await?,
            _ => self.inner.renew(&self.slot(slot), bearer, self.lease(lease)).await?,
        };
        if held == Held::Yes {
            let lapses = Instant::now() + lease.min(DAY);
            self.seen
                .lock()
                .unwrap()
                .entry(*slot)
                .and_modify(|seen| seen.lapses = lapses);
        }
        Ok(match self.fault {
            RenewIgnoresTheToken if self.seen(slot).is_some_and(|seen| seen.begin.token != token) => Held::Lost,
            _ => held,
        })
    }

    async fn complete(&self, slot: &Slot, token: Token, record: &Record, ttl: Duration) -> Result<Held, StoreError> {
        self.fail_if_long(ttl)?;
        let bearer = self.bearer(CompleteIgnoresTheToken, slot, token);
        let inner = self.slot(slot);
        let before = self.seen(slot);
        let mut ttl = ttl;
        match self.fault {
            LapsedClaimsAreLost if self.has_lapsed(slot) => return Ok(Held::Lost),
            TtlFromBegin => {
                ttl = ttl.saturating_sub(before.as_ref().map_or(Duration::ZERO, |seen| seen.since.elapsed()))
            }
            RecordsNeverExpire => ttl = 365 * DAY,
            WrapsLongTimes => ttl = self.lease(ttl),
            CompletesTwice
                if before
                    .as_ref()
                    .is_some_and(|seen| seen.begin.token == token && seen.done.is_some()) =>
            {
                return Ok(Held::Yes);
            }
            CompleteReadsThenWrites
                if before
                    .as_ref()
                    .is_some_and(|seen| seen.begin.token == token && seen.done.is_none()) =>
            {
                yield_now().await;
                self.inner.complete(&inner, bearer, record, ttl).await?;
                return Ok(Held::Yes);
            }
            DroppedCompleteFrees => {
                if let (Some(seen), Held::Yes) = (&before, self.inner.release(&inner, bearer).await?) {
                    yield_now().await;
                    self.inner.begin(&seen.begin).await?;
                }
            }
            _ => {}
        }
        let held = self.inner.complete(&inner, bearer, &self.kept(record), ttl).await?;
        if held == Held::Yes {
            let kept = ttl.min(DAY);
            self.seen.lock().unwrap().entry(*slot).and_modify(|seen| {
                seen.done = Some(record.clone());
                seen.kept = kept;
                seen.lapses = Instant::now() + kept;
            });
        }
        self.somewhere.notify_waiters();
        Ok(held)
    }

    async fn release(&self, slot: &Slot, token: Token) -> Result<Held, StoreError> {
        let bearer = self.bearer(ReleaseIgnoresTheToken, slot, token);
        match self.fault {
            ReleaseDoesNothing => return self.inner.renew(&self.slot(slot), bearer, self.left(slot)).await,
            LapsedClaimsAreLost if self.has_lapsed(slot) => return Ok(Held::Lost),
            _ => {}
        }
        let held = self.inner.release(&self.slot(slot), bearer).await?;
        let keeps = [ReleaseKeepsTheFingerprint, AttemptOutlivesRelease].contains(&self.fault);
        if held == Held::Yes && !keeps {
            self.seen.lock().unwrap().remove(slot);
        }
        if self.fault != ReleaseDoesNotWake {
            self.somewhere.notify_waiters();
        }
        Ok(held)
    }

    async fn changed(&self, slot: &Slot, round: u32) {
        match self.fault {
            ChangedNeverWakes => pending().await,
            ChangedMissesWhatWasBefore => self.somewhere.notified().await,
            ReleaseDoesNotWake => {
                let completed = self.somewhere.notified();
                if self.seen(slot).is_some_and(|seen| seen.done.is_none()) {
                    completed.await;
                }
            }
            ChangedSpins => ready(()).await,
            _ => self.inner.changed(&self.slot(slot), round).await,
        }
    }
}

impl Faulty {
    fn left(&self, slot: &Slot) -> Duration {
        self.seen(slot).map_or(Duration::ZERO, |seen| {
            seen.lapses.saturating_duration_since(Instant::now())
        })
    }
}

/// The machine under a lock, with a clock that is moved by hand.
#[derive(Clone, Default)]
pub(crate) struct ManualStore(Arc<Mutex<Manual>>);

#[derive(Default)]
struct Manual {
    now: Millis,
    slots: HashMap<Slot, Machine>,
}

impl ManualStore {
    pub(crate) fn pass(&self, time: Duration) {
        let mut manual = self.0.lock().unwrap();
        manual.now = manual.now.after(time);
    }

    fn with<T>(&self, slot: &Slot, ask: impl FnOnce(&mut Machine, Millis) -> T) -> T {
        let mut manual = self.0.lock().unwrap();
        let now = manual.now;
        ask(manual.slots.entry(*slot).or_default(), now)
    }
}

impl Store for ManualStore {
    async fn begin(&self, begin: &ClaimRequest) -> Result<ClaimOutcome, StoreError> {
        Ok(self.with(&begin.slot, |machine, now| machine.begin(begin, now)))
    }

    async fn renew(&self, slot: &Slot, token: Token, lease: Duration) -> Result<Held, StoreError> {
        Ok(self.with(slot, |machine, now| machine.renew(token, lease, now)))
    }

    async fn complete(&self, slot: &Slot, token: Token, record: &Record, ttl: Duration) -> Result<Held, StoreError> {
        Ok(self.with(slot, |machine, now| machine.complete(token, record, ttl, now)))
    }

    async fn release(&self, slot: &Slot, token: Token) -> Result<Held, StoreError> {
        Ok(self.with(slot, |machine, now| machine.release(token, now)))
    }
}
