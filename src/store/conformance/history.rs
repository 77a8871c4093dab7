//! A random history that the store and the machine both follow, step by step.

use std::time::Duration;

use tokio::time::Instant;
use uuid::Uuid;

use super::harness::Harness;
use super::probe::{Probe, alike, named, random_slot, random_token, response};
use crate::request::fingerprint::BodyPrint;
use crate::request::{Fingerprint, Slot};
use crate::store::{ClaimOutcome, ClaimRequest, Held, Machine, Millis, OnLapse, Record, Store, Token};

const SLOTS: usize = 6;
const STEPS: u32 = 40;
/// The maximum number of calls in a step. In a step without calls, only time passes.
const CALLS: usize = 4;
/// The maximum number of tries for a history, in case the store or this process is too slow. With
/// each try, the unit grows by the harness's unit.
const TRIES: u32 = 5;

pub(super) async fn a_random_history_follows_the_machine<H: Harness>(probe: Probe<'_, H>) {
    follow(&probe, Uuid::new_v4().as_u64_pair().1).await;
}

/// Follows the history that the given seed generates.
///
/// Step `k` begins at `k` units and takes less than a third of a unit. Leases and TTLs expire half
/// a unit after the start of a step. A call that is slightly late is therefore still on the right
/// side of every expiry.
pub(super) async fn follow<H: Harness>(probe: &Probe<'_, H>, seed: u64) {
    let unit = probe.harness.unit();
    for attempt in 1..=TRIES {
        if history(probe, seed, unit * attempt).await.is_ok() {
            return;
        }
    }
    probe.broken(
        &format!("a history (seed {seed:#x})"),
        format_args!(
            "in each of {TRIES} tries, a step's calls took longer than a third of a unit ({unit:?} in the first try, \
             {TRIES} times that in the last); give the harness a longer unit"
        ),
    )
}

/// A step took so long that its expected results are uncertain.
struct TooSlow;

async fn history<H: Harness>(probe: &Probe<'_, H>, seed: u64, unit: Duration) -> Result<(), TooSlow> {
    let mut dice = Dice(seed);
    let mut slots: Vec<Followed> = (0..SLOTS).map(|_| Followed::new(&mut dice)).collect();
    let mut clock = Clock::start();
    for step in 0..STEPS {
        let from = unit * step;
        clock.pass_until(from, probe.harness).await;
        let now = Millis(0).after(from);
        for _ in 0..dice.below(CALLS + 1) {
            let index = dice.below(SLOTS);
            let call = slots[index].draw(&mut dice, unit);
            let slot = &mut slots[index];
            let (answer, expected) = match &call {
                Call::Begin(begin) => {
                    let answer = probe.store.begin(begin).await;
                    let expected = slot.machine.begin(begin, now);
                    (answer.map(Answer::ClaimOutcome), Answer::ClaimOutcome(expected))
                }
                Call::Renew(token, lease) => {
                    let answer = probe.store.renew(&slot.slot, *token, *lease).await;
                    let expected = slot.machine.renew(*token, *lease, now);
                    (answer.map(Answer::Held), Answer::Held(expected))
                }
                Call::Complete(token, print, ttl) => {
                    let record = record_of(*print, *token);
                    let answer = probe.store.complete(&slot.slot, *token, &record, *ttl).await;
                    let expected = slot.machine.complete(*token, &record, *ttl, now);
                    (answer.map(Answer::Held), Answer::Held(expected))
                }
                Call::Release(token) => {
                    let answer = probe.store.release(&slot.slot, *token).await;
                    let expected = slot.machine.release(*token, now);
                    (answer.map(Answer::Held), Answer::Held(expected))
                }
            };
            if clock.elapsed() >= from + unit / 3 {
                return Err(TooSlow);
            }
            let told = |answer: &str| format!("\n  at {step} units: {call:?} -> {answer}");
            let history = || {
                format!(
                    "a history (seed {seed:#x}), in which the calls on this slot are{}{}\n ",
                    slot.told,
                    told("?")
                )
            };
            let answer = match answer {
                Ok(answer) => answer,
                Err(error) => probe.answered(&history(), Err(error)),
            };
            if !answer.is_like(&expected) {
                let (answer, expected) = (answer.named(), expected.named());
                probe.broken(
                    &history(),
                    format_args!("expected {expected} as the answer to the last call, got {answer}"),
                );
            }
            slot.told += &told(&answer.named());
        }
    }
    Ok(())
}

/// Creates a record. If the token is odd, the record has data about a streamed request body, as if
/// the claim's fingerprint covered only the request's head.
fn record_of(print: Fingerprint, token: Token) -> Record {
    let bytes = token.0.to_le_bytes();
    let record = response(print, &bytes);
    if token.0 & 1 == 0 {
        return record;
    }
    record.with_body(&BodyPrint {
        digest: *print.as_bytes(),
        vouched: std::iter::once(*print.as_bytes()).collect(),
    })
}

/// The store's time, as far as this process can determine it: the time that the harness let pass,
/// plus the time that calls took.
struct Clock {
    passed: Duration,
    since: Instant,
}

impl Clock {
    fn start() -> Self {
        Self {
            passed: Duration::ZERO,
            since: Instant::now(),
        }
    }

    fn elapsed(&self) -> Duration {
        self.passed + self.since.elapsed()
    }

    async fn pass_until(&mut self, time: Duration, harness: &impl Harness) {
        let elapsed = self.elapsed();
        let missing = time.saturating_sub(elapsed);
        let before = Instant::now();
        if !missing.is_zero() {
            harness.pass(missing).await;
        }
        // A harness that advances its own clock uses no real time.
        self.passed = elapsed + missing.max(before.elapsed());
        self.since = Instant::now();
    }
}

#[derive(Debug)]
enum Call {
    Begin(ClaimRequest),
    Renew(Token, Duration),
    Complete(Token, Fingerprint, Duration),
    Release(Token),
}

enum Answer {
    ClaimOutcome(ClaimOutcome),
    Held(Held),
}

impl Answer {
    fn is_like(&self, expected: &Self) -> bool {
        match (self, expected) {
            (Self::ClaimOutcome(answer), Self::ClaimOutcome(expected)) => alike(answer, expected),
            (Self::Held(answer), Self::Held(expected)) => answer == expected,
            _ => false,
        }
    }

    fn named(&self) -> String {
        match self {
            Self::ClaimOutcome(begun) => named(begun),
            Self::Held(held) => format!("{held:?}"),
        }
    }
}

/// A slot, the machine's state for this slot, and the claims that were attempted on this slot.
struct Followed {
    slot: Slot,
    machine: Machine,
    /// Two fingerprints from one rule, and two fingerprints from a different rule.
    prints: [Fingerprint; 4],
    begun: Vec<ClaimRequest>,
    /// The calls so far, for the failure message.
    told: String,
}

impl Followed {
    fn new(dice: &mut Dice) -> Self {
        let print = dice.next() as u8;
        Self {
            slot: random_slot(),
            machine: Machine::default(),
            prints: [(0, print), (0, !print), (1, print), (1, !print)].map(|(rule, digest)| {
                let mut bytes = [digest; Fingerprint::LEN];
                bytes[..2].copy_from_slice(&[rule, print]);
                Fingerprint::from_bytes(bytes)
            }),
            begun: Vec::new(),
            told: String::new(),
        }
    }

    fn draw(&mut self, dice: &mut Dice, unit: Duration) -> Call {
        // `halves` returns whole units plus half a unit. The time for which a lapsed claim is
        // remembered is a whole number of units, because it is added to a lease.
        let whole = |dice: &mut Dice| unit * (1 + dice.below(6) as u32);
        let halves = |dice: &mut Dice| unit * dice.below(7) as u32 + unit / 2;
        let recent = self.begun.len().saturating_sub(3);
        let chosen = match self.begun.len() {
            0 => None,
            _ if dice.below(4) > 0 => self.begun.get(recent + dice.below(self.begun.len() - recent)),
            _ => self.begun.get(dice.below(self.begun.len())),
        };
        match (dice.below(10), chosen.copied()) {
            (0, Some(begin)) => Call::Begin(begin),
            (1..=2, Some(begin)) => Call::Renew(begin.token, halves(dice)),
            (3..=4, Some(begin)) => Call::Complete(begin.token, begin.fingerprint, halves(dice)),
            (5, Some(begin)) => Call::Release(begin.token),
            (6, _) if dice.below(4) == 0 => Call::Release(random_token()),
            _ => {
                let print = self.prints[[0, 0, 0, 0, 0, 0, 1, 1, 2, 3][dice.below(10)]];
                let on_lapse = match dice.below(4) {
                    0 => OnLapse::Refuse,
                    _ => OnLapse::RunAgain,
                };
                let begin = ClaimRequest::new(self.slot, print)
                    .with_lease(halves(dice))
                    .with_ttl(whole(dice))
                    .with_on_lapse(on_lapse);
                self.begun.push(begin);
                Call::Begin(begin)
            }
        }
    }
}

/// SplitMix64: the seed determines the whole history.
struct Dice(u64);

impl Dice {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound.max(1) as u64) as usize
    }
}
