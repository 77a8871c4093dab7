//! Random histories of many slots: the machine and the memory store beside a model written apart.

use std::collections::BTreeMap;
use std::time::Duration;

use http::StatusCode;
use proptest::prelude::*;
use proptest::sample::select;
use proptest::test_runner::Config;
use proptest_state_machine::{ReferenceStateMachine, StateMachineTest, prop_state_machine};
use tokio::runtime::Runtime;
use tower_idempotency::Fingerprint;
use tower_idempotency::store::{
    ClaimOutcome, ClaimRequest, Held, Machine, MemoryStore, Millis, OnLapse, Record, Slot, Store, Token,
};

use crate::support::claim::{Claim, claim, print, print_under_another_rule};

/// What is asked of a store. Names are small numbers, times milliseconds.
#[derive(Debug, Clone)]
enum Ask {
    Begin(Wish),
    Renew { slot: u8, token: u16, lease: u64 },
    Complete { slot: u8, token: u16, print: u8, ttl: u64 },
    Release { slot: u8, token: u16 },
    Advance(u64),
}

#[derive(Debug, Clone, Copy)]
struct Wish {
    slot: u8,
    print: u8,
    token: u16,
    lease: u64,
    ttl: u64,
    refuse: bool,
}

/// What a store is expected to answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Reply {
    #[default]
    None,
    Started(u32),
    InFlight(u64),
    Mismatch,
    /// The print and the token of who completed.
    Done(u8, u16),
    Unknown,
    Held(bool),
}

#[derive(Debug, Clone)]
enum Fact {
    /// Claimed by the token; the claim counts as running before `lapses`, and at all before `over`.
    Claimed {
        token: u16,
        print: u8,
        attempt: u32,
        lapses: u64,
        memory: u64,
    },
    Completed {
        token: u16,
        print: u8,
        over: u64,
    },
}

impl Fact {
    fn over(&self) -> u64 {
        match *self {
            Self::Claimed { lapses, memory, .. } => lapses + memory,
            Self::Completed { over, .. } => over,
        }
    }
}

/// The model: the facts as they were last told, and what time it is.
#[derive(Debug, Clone, Default)]
struct Model {
    now: u64,
    facts: BTreeMap<u8, Fact>,
    tokens: u16,
    /// When whatever was ever told is over.
    horizon: u64,
    reply: Reply,
}

impl Model {
    /// What is known of the slot, unless its time is over.
    fn known(&self, slot: u8) -> Option<&Fact> {
        self.facts.get(&slot).filter(|fact| self.now < fact.over())
    }

    fn holds(&self, slot: u8, asking: u16) -> bool {
        matches!(self.known(slot), Some(Fact::Claimed { token, .. }) if *token == asking)
    }

    fn begin(&mut self, wish: Wish) -> Reply {
        let claimed = |attempt, now| Fact::Claimed {
            token: wish.token,
            print: wish.print,
            attempt,
            lapses: now + wish.lease,
            memory: wish.ttl,
        };
        let now = self.now;
        let (reply, fact) = match self.known(wish.slot) {
            None => (Reply::Started(1), Some(claimed(1, now))),
            Some(Fact::Claimed { token, attempt, .. }) if *token == wish.token => (Reply::Started(*attempt), None),
            Some(Fact::Claimed { print, .. } | Fact::Completed { print, .. })
                if *print != wish.print && rule_of(*print) == rule_of(wish.print) =>
            {
                (Reply::Mismatch, None)
            }
            Some(Fact::Completed { print, token, .. }) => (Reply::Done(*print, *token), None),
            Some(Fact::Claimed { lapses, .. }) if *lapses > now => (Reply::InFlight(lapses - now), None),
            Some(Fact::Claimed { .. }) if wish.refuse => (Reply::Unknown, None),
            Some(Fact::Claimed { attempt, .. }) => (Reply::Started(attempt + 1), Some(claimed(attempt + 1, now))),
        };
        if let Some(fact) = fact {
            self.facts.insert(wish.slot, fact);
        }
        reply
    }

    fn tell(&mut self, ask: &Ask) -> Reply {
        match *ask {
            Ask::Begin(wish) => {
                self.tokens = self.tokens.max(wish.token + 1);
                self.begin(wish)
            }
            Ask::Renew { slot, token, lease } => {
                let held = self.holds(slot, token);
                if let (true, Some(Fact::Claimed { lapses, .. })) = (held, self.facts.get_mut(&slot)) {
                    *lapses = self.now + lease;
                }
                Reply::Held(held)
            }
            Ask::Complete {
                slot,
                token,
                print,
                ttl,
            } => {
                let held = self.holds(slot, token);
                if held {
                    let over = self.now + ttl;
                    self.facts.insert(slot, Fact::Completed { token, print, over });
                }
                Reply::Held(held)
            }
            Ask::Release { slot, token } => {
                let held = self.holds(slot, token);
                if held {
                    self.facts.remove(&slot);
                }
                Reply::Held(held)
            }
            Ask::Advance(by) => {
                self.now += by;
                Reply::None
            }
        }
    }

    /// Steps that end at, just before and just after what ends next in some slot.
    fn boundaries(&self) -> Vec<u64> {
        let mut ends: Vec<u64> = self
            .facts
            .values()
            .flat_map(|fact| match *fact {
                Fact::Claimed { lapses, memory, .. } => [lapses, lapses + memory],
                Fact::Completed { over, .. } => [over, over],
            })
            .filter(|&end| end > self.now)
            .flat_map(|end| [end - 1, end, end + 1])
            .map(|end| end - self.now)
            .collect();
        ends.extend([0, 1, 1023, 1024, 70_000]);
        ends
    }
}

const SLOTS: std::ops::Range<u8> = 0..6;
const PRINTS: std::ops::Range<u8> = 0..4;

/// What a print can be compared with.
fn rule_of(print: u8) -> u8 {
    print / 2
}

/// Some of them around the ticks that the memory store sorts by.
fn times() -> impl Strategy<Value = u64> + Clone {
    prop_oneof![
        select(vec![0, 1, 2, 10, 1023, 1024, 1025, 2048, 61_000, 3_600_000]),
        0..3000_u64
    ]
}

impl ReferenceStateMachine for Model {
    type State = Self;
    type Transition = Ask;

    fn init_state() -> BoxedStrategy<Self> {
        Just(Self::default()).boxed()
    }

    fn transitions(model: &Self) -> BoxedStrategy<Ask> {
        let (fresh, boundaries) = (model.tokens, model.boundaries());
        let holders: Vec<(u8, u16, u8)> = model
            .facts
            .iter()
            .filter_map(|(&slot, fact)| match *fact {
                Fact::Claimed { token, print, .. } => Some((slot, token, print)),
                Fact::Completed { .. } => None,
            })
            .collect();
        let strangers = (SLOTS, 0..=fresh, PRINTS).boxed();
        let who = match holders.is_empty() {
            true => strangers,
            false => prop_oneof![3 => select(holders), 1 => strangers].boxed(),
        };
        prop_oneof![
            8 => (SLOTS, prop_oneof![4 => Just(0), 2 => PRINTS], prop_oneof![9 => Just(fresh), 1 => 0..=fresh], times(), times(), any::<bool>())
                .prop_map(|(slot, print, token, lease, ttl, refuse)| {
                    Ask::Begin(Wish { slot, print, token, lease, ttl, refuse })
                }),
            2 => (who.clone(), times()).prop_map(|((slot, token, _), lease)| Ask::Renew { slot, token, lease }),
            4 => (who.clone(), times())
                .prop_map(|((slot, token, print), ttl)| Ask::Complete { slot, token, print, ttl }),
            1 => who.prop_map(|(slot, token, _)| Ask::Release { slot, token }),
            6 => select(boundaries).prop_map(Ask::Advance),
        ]
        .boxed()
    }

    fn apply(mut model: Self, ask: &Ask) -> Self {
        model.reply = model.tell(ask);
        let over = model.facts.values().map(Fact::over).max();
        model.horizon = model.horizon.max(over.unwrap_or(0));
        model
    }
}

fn slot_of(slot: u8) -> Slot {
    // Spread as digests are.
    Slot::from_bytes([slot.wrapping_mul(37); Slot::LEN])
}

/// 0 and 1 are of one rule, 2 and 3 of another.
fn print_of(name: u8) -> Fingerprint {
    match name {
        0 | 1 => print(name),
        _ => print_under_another_rule(name),
    }
}

/// A record that says who completed.
fn record_of(print: u8, token: u16) -> Record {
    let status = StatusCode::from_u16(100 + token % 900).unwrap();
    Record::response_not_retained(print_of(print), status)
}

fn token_of(token: u16) -> Token {
    Token(u64::from(token) << 40)
}

fn begin_of(wish: Wish) -> ClaimRequest {
    let on_lapse = match wish.refuse {
        true => OnLapse::Refuse,
        false => OnLapse::RunAgain,
    };
    claim(slot_of(wish.slot))
        .print(print_of(wish.print))
        .token(token_of(wish.token).0)
        .lease(Duration::from_millis(wish.lease))
        .ttl(Duration::from_millis(wish.ttl))
        .on_lapse(on_lapse)
}

fn check_begun(begun: ClaimOutcome, expected: Reply) {
    let same = match (&begun, expected) {
        (ClaimOutcome::Started { attempt, .. }, Reply::Started(expected)) => *attempt == expected,
        (ClaimOutcome::InFlight { lease_left, .. }, Reply::InFlight(expected)) => {
            *lease_left == Duration::from_millis(expected)
        }
        (ClaimOutcome::Mismatch, Reply::Mismatch) | (ClaimOutcome::OutcomeUnknown, Reply::Unknown) => true,
        (ClaimOutcome::Done(record), Reply::Done(print, token)) => *record == record_of(print, token),
        _ => false,
    };
    assert!(same, "answered {begun:?}, expected {expected:?}");
}

fn check_held(held: Held, expected: Reply) {
    assert_eq!(Reply::Held(held == Held::Yes), expected);
}

/// The pure machine: one for each slot.
struct Machines {
    now: u64,
    slots: BTreeMap<u8, Machine>,
}

impl StateMachineTest for Machines {
    type SystemUnderTest = Self;
    type Reference = Model;

    fn init_test(_: &Model) -> Self {
        Self {
            now: 0,
            slots: BTreeMap::new(),
        }
    }

    fn apply(mut machines: Self, model: &Model, ask: Ask) -> Self {
        let now = Millis(machines.now);
        let slots = &mut machines.slots;
        match ask {
            Ask::Begin(wish) => check_begun(
                slots.entry(wish.slot).or_default().begin(&begin_of(wish), now),
                model.reply,
            ),
            Ask::Renew { slot, token, lease } => {
                let held = slots
                    .entry(slot)
                    .or_default()
                    .renew(token_of(token), Duration::from_millis(lease), now);
                check_held(held, model.reply);
            }
            Ask::Complete {
                slot,
                token,
                print,
                ttl,
            } => {
                let ttl = Duration::from_millis(ttl);
                let held = slots
                    .entry(slot)
                    .or_default()
                    .complete(token_of(token), &record_of(print, token), ttl, now);
                check_held(held, model.reply);
            }
            Ask::Release { slot, token } => check_held(
                slots.entry(slot).or_default().release(token_of(token), now),
                model.reply,
            ),
            Ask::Advance(by) => machines.now += by,
        }
        machines
    }
}

/// The memory store, on a clock that stands still.
struct Memory {
    runtime: Runtime,
    store: MemoryStore,
}

/// What an entry takes at least, and at most with these records.
const LEAST: usize = 64;
const MOST: usize = 1024;

impl Memory {
    fn new() -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .unwrap();
        let store = runtime.block_on(async { MemoryStore::new() });
        Self { runtime, store }
    }

    /// Enough writes to other slots that whatever is over has been swept.
    async fn sweep(store: &MemoryStore) {
        for n in 0..200 {
            let mut slot = [0xEE; Slot::LEN];
            slot[0] = n;
            let begin = claim(Slot::from_bytes(slot))
                .lease(Duration::from_secs(1))
                .ttl(Duration::from_secs(1));
            assert_eq!(store.begin(&begin).await.unwrap(), ClaimOutcome::started(1));
            assert_eq!(store.release(&begin.slot, begin.token).await.unwrap(), Held::Yes);
        }
    }
}

impl StateMachineTest for Memory {
    type SystemUnderTest = Self;
    type Reference = Model;

    fn init_test(_: &Model) -> Self {
        Self::new()
    }

    fn apply(memory: Self, model: &Model, ask: Ask) -> Self {
        let store = &memory.store;
        memory.runtime.block_on(async {
            match ask {
                Ask::Begin(wish) => check_begun(store.begin(&begin_of(wish)).await.unwrap(), model.reply),
                Ask::Renew { slot, token, lease } => {
                    let lease = Duration::from_millis(lease);
                    let held = store.renew(&slot_of(slot), token_of(token), lease).await;
                    check_held(held.unwrap(), model.reply);
                }
                Ask::Complete {
                    slot,
                    token,
                    print,
                    ttl,
                } => {
                    let (record, ttl) = (record_of(print, token), Duration::from_millis(ttl));
                    let held = store.complete(&slot_of(slot), token_of(token), &record, ttl).await;
                    check_held(held.unwrap(), model.reply);
                }
                Ask::Release { slot, token } => {
                    let held = store.release(&slot_of(slot), token_of(token)).await;
                    check_held(held.unwrap(), model.reply);
                }
                Ask::Advance(by) => tokio::time::advance(Duration::from_millis(by)).await,
            }
        });
        memory
    }

    /// Entries are those that live, and at most those besides that nothing has swept.
    fn check_invariants(memory: &Self, model: &Model) {
        let stats = memory.store.stats();
        let live = model.facts.values().filter(|fact| model.now < fact.over()).count();
        let (least, most) = (live, model.facts.len());
        assert!(
            (least..=most).contains(&stats.entries),
            "{stats:?}, and {least} to {most} entries are expected"
        );
        let bytes = stats.entries * LEAST..=stats.entries * MOST;
        assert!(bytes.contains(&stats.bytes), "{stats:?}, and {bytes:?} are expected");
        assert_eq!(stats.evicted, 0);
    }

    fn teardown(memory: Self, model: Model) {
        let Self { runtime, store } = memory;
        runtime.block_on(async {
            // A claim whose lease was made shorter is looked for when the longer would have been
            // over; one that was found alive is looked at again a minute later.
            let rest = model.horizon.saturating_sub(model.now) + 61_000;
            tokio::time::advance(Duration::from_millis(rest)).await;
            Self::sweep(&store).await;
        });
        let stats = store.stats();
        assert_eq!((stats.entries, stats.bytes), (0, 0), "when all is over and swept");
    }
}

fn config() -> Config {
    Config {
        cases: 400,
        failure_persistence: None,
        ..Config::default()
    }
}

prop_state_machine! {
    #![proptest_config(config())]

    #[test]
    fn the_machine_follows_the_model(sequential 1..120 => Machines);

    #[test]
    fn the_memory_store_follows_the_model(sequential 1..120 => Memory);
}
