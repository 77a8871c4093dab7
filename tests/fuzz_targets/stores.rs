//! Histories of calls: the memory store beside the state machine, in lock-step on paused time.

use std::collections::HashMap;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use http::Response;
use tokio::time::{Instant, advance};
use tower_idempotency::store::{
    ClaimOutcome, ClaimRequest, Held, Inspect, Machine, MemoryStore, Millis, OnLapse, Phase, Record, StoreErrorKind,
    Token, WhenFull,
};
use tower_idempotency::{Fingerprint, Slot, Store};

use super::claim::Claim;
use super::input::{Input, at_once};

pub fn run(data: &[u8]) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .expect("a runtime");
    let mut input = Input::new(data);
    runtime.block_on(async {
        match input.byte() % 4 {
            0 => full(&mut input, WhenFull::EvictNearestExpiry).await,
            1 => full(&mut input, WhenFull::RefuseNew).await,
            _ => lock_step(&mut input).await,
        }
    });
}

const SLOTS: u8 = 5;
/// Some of them around the ticks that the memory store sorts by.
const TIMES: [u64; 12] = [
    0, 1, 2, 10, 1023, 1024, 1025, 2048, 30_000, 61_000, 3_600_000, 86_400_000,
];

fn slot_of(slot: u8) -> Slot {
    Slot::from_bytes([slot.wrapping_mul(37); Slot::LEN])
}

/// 0 and 1 are of one rule, 2 and 3 of another, and nobody asks with those of a third.
fn print_of(print: u8) -> Fingerprint {
    let mut bytes = [print; Fingerprint::LEN];
    bytes[..2].fill(print / 2);
    Fingerprint::from_bytes(bytes)
}

fn time(input: &mut Input<'_>) -> Duration {
    match input.byte() {
        255 => Duration::MAX,
        254 => Duration::from_nanos(1),
        choice => Duration::from_millis(TIMES[usize::from(choice) % TIMES.len()]),
    }
}

fn claim(slot: Slot, print: u8, token: u64, lease: Duration, ttl: Duration, refuse: bool) -> ClaimRequest {
    super::claim::claim(slot)
        // A few tenants, who share the room.
        .scope(u32::from(slot.as_bytes()[0] % 3))
        .print(print_of(print))
        .token(token)
        .lease(lease)
        .ttl(ttl)
        .on_lapse(if refuse { OnLapse::Refuse } else { OnLapse::RunAgain })
}

fn record_of(print: u8, bytes: usize) -> Record {
    let answer = Response::new(Bytes::from(vec![b'x'; bytes]));
    Record::of_response(print_of(print), &answer)
}

/// Somebody who waits for the end of what ran in the slot when it began to wait.
struct Waiter {
    slot: u8,
    wait: Pin<Box<dyn Future<Output = ()>>>,
}

impl Waiter {
    fn is_ready(&mut self) -> bool {
        let mut cx = Context::from_waker(Waker::noop());
        matches!(self.wait.as_mut().poll(&mut cx), Poll::Ready(()))
    }
}

#[derive(Default)]
struct Book {
    machine: Machine,
    /// Who held the slot last.
    holder: Option<Token>,
}

async fn lock_step(input: &mut Input<'_>) {
    let store = MemoryStore::new();
    let origin = Instant::now();
    let now = || Millis(u64::try_from(origin.elapsed().as_millis()).expect("not that long"));
    let mut books: Vec<Book> = (0..SLOTS).map(|_| Book::default()).collect();
    let mut waiters: Vec<Waiter> = Vec::new();
    for _ in 0..200 {
        if input.is_empty() {
            break;
        }
        let choice = input.byte();
        let slot = (choice >> 4) % SLOTS;
        let book = &mut books[usize::from(slot)];
        // The holder itself, or anybody.
        let token = |input: &mut Input<'_>, book: &Book| match (input.byte(), book.holder) {
            (0..192, Some(holder)) => holder,
            (byte, _) => Token(u64::from(byte % 8)),
        };
        match choice % 8 {
            0..=2 => {
                let (print, who) = (input.one_of(&[0, 0, 0, 0, 1, 1, 2, 3]), u64::from(input.byte() % 8));
                let begin = claim(slot_of(slot), print, who, time(input), time(input), input.is_odd());
                let expected = book.machine.begin(&begin, now());
                let begun = at_once(store.begin(&begin)).expect("there is room");
                assert_eq!(begun, expected);
                if let ClaimOutcome::Started { attempt, .. } = begun {
                    let before = book.holder.replace(begin.token);
                    // Who waits for a claim that was taken over waits for its successor.
                    if attempt == 1 && before != Some(begin.token) {
                        woken(&mut waiters, slot);
                    }
                }
            }
            3 => {
                let (token, lease) = (token(input, book), time(input));
                let expected = book.machine.renew(token, lease, now());
                assert_eq!(
                    at_once(store.renew(&slot_of(slot), token, lease)).expect("no failure"),
                    expected
                );
                if expected == Held::Yes && lease.is_zero() {
                    woken(&mut waiters, slot);
                }
            }
            4 => {
                let (token, ttl) = (token(input, book), time(input));
                let record = record_of(input.byte() % 4, input.below(64));
                let expected = book.machine.complete(token, &record, ttl, now());
                let held = at_once(store.complete(&slot_of(slot), token, &record, ttl));
                assert_eq!(held.expect("no failure"), expected);
                if expected == Held::Yes {
                    book.holder = None;
                    woken(&mut waiters, slot);
                }
            }
            5 => {
                let token = token(input, book);
                let expected = book.machine.release(token, now());
                assert_eq!(
                    at_once(store.release(&slot_of(slot), token)).expect("no failure"),
                    expected
                );
                if expected == Held::Yes {
                    book.holder = None;
                    woken(&mut waiters, slot);
                }
            }
            6 => {
                let by = time(input).min(Duration::from_secs(90_000));
                advance(by).await;
            }
            _ => match input.byte() % 4 {
                0 => {
                    let known = at_once(store.look_up(&slot_of(slot))).expect("no failure");
                    let forgot = at_once(store.forget(&slot_of(slot))).expect("no failure");
                    assert_eq!(forgot, known.is_some());
                    *book = Book::default();
                    woken(&mut waiters, slot);
                }
                1 => look(&store, slot, book, now()),
                _ if waiters.len() < 16 => {
                    let store = store.clone();
                    let wait = Box::pin(async move { store.changed(&slot_of(slot), 0).await });
                    let mut waiter = Waiter { slot, wait };
                    match waiter.is_ready() {
                        true => assert!(!is_running(book, now()), "there is something to wait for"),
                        false => waiters.push(waiter),
                    }
                }
                _ => {}
            },
        }
    }
    for (slot, book) in (0..SLOTS).zip(&books) {
        look(&store, slot, book, now());
        at_once(store.forget(&slot_of(slot))).expect("no failure");
        woken(&mut waiters, slot);
    }
    let stats = store.stats();
    assert_eq!((stats.entries, stats.bytes, stats.evicted), (0, 0, 0));
}

/// All who wait for the slot are woken.
fn woken(waiters: &mut Vec<Waiter>, slot: u8) {
    waiters.retain_mut(|waiter| {
        if waiter.slot != slot {
            return true;
        }
        assert!(waiter.is_ready(), "a wake-up is lost");
        false
    });
}

/// What the machine would answer to one who only looks.
fn probe(book: &Book, print: Fingerprint, now: Millis) -> ClaimOutcome {
    let begin = claim(slot_of(0), 0, u64::MAX, Duration::ZERO, Duration::ZERO, true).print(print);
    book.machine.clone().begin(&begin, now)
}

fn is_running(book: &Book, now: Millis) -> bool {
    matches!(probe(book, print_of(9), now), ClaimOutcome::InFlight { .. })
}

fn look(store: &MemoryStore, slot: u8, book: &Book, now: Millis) {
    let found = at_once(store.look_up(&slot_of(slot))).expect("no failure");
    let print = found.map_or(print_of(9), |entry| entry.fingerprint);
    match (found.map(|entry| entry.phase), probe(book, print, now)) {
        (None, ClaimOutcome::Started { attempt: 1, .. }) => {}
        (
            Some(Phase::Running { lease_left, .. }),
            ClaimOutcome::InFlight {
                lease_left: expected, ..
            },
        ) => {
            assert_eq!(lease_left, expected);
        }
        (Some(Phase::Running { lease_left, .. }), ClaimOutcome::OutcomeUnknown) => assert!(lease_left.is_zero()),
        (Some(Phase::Done { bytes }), ClaimOutcome::Done(record)) => assert_eq!(bytes, record.len()),
        (found, expected) => panic!("found {found:?}, expected {expected:?}"),
    }
}

/// The smallest budget, and records that spend it.
async fn full(input: &mut Input<'_>, when_full: WhenFull) {
    const BUDGET: usize = 64 * 1024;
    /// More than any claim takes.
    const CLAIM: usize = 1024;
    let store = MemoryStore::builder()
        .budget(BUDGET)
        .when_full(when_full)
        .build()
        .expect("large enough");
    let slot_of = |slot: u8| Slot::from_bytes([slot; Slot::LEN]);
    let mut running: Vec<(u8, Token)> = Vec::new();
    let mut done: HashMap<u8, Record> = HashMap::new();
    for token in 0..300 {
        if input.is_empty() {
            break;
        }
        let slot = input.byte();
        match input.byte() % 8 {
            0..=3 => {
                let ttl = input.one_of(&[Duration::from_secs(60), Duration::from_secs(3600)]);
                let begin = claim(slot_of(slot), 0, token, Duration::MAX, ttl, false);
                match at_once(store.begin(&begin)) {
                    Ok(ClaimOutcome::Started { attempt, .. }) => {
                        assert_eq!(attempt, 1);
                        assert!(running.iter().all(|(other, _)| *other != slot), "claimed twice");
                        running.push((slot, begin.token));
                    }
                    Ok(ClaimOutcome::InFlight { .. }) => assert!(running.iter().any(|(other, _)| *other == slot)),
                    Ok(ClaimOutcome::Done(record)) => assert_eq!(Some(&record), done.get(&slot)),
                    Ok(begun) => panic!("one fingerprint, and no lease that lapses: {begun:?}"),
                    Err(error) => {
                        assert_eq!(error.kind(), StoreErrorKind::Full);
                        let stats = store.stats();
                        assert!(
                            stats.bytes + CLAIM > BUDGET,
                            "refused although there is room: {stats:?}"
                        );
                    }
                }
            }
            what @ 4..=6 if !running.is_empty() => {
                let (slot, token) = running.swap_remove(input.below(running.len()));
                let held = if what == 6 {
                    at_once(store.release(&slot_of(slot), token))
                } else {
                    let record = record_of(0, usize::from(input.byte()) * 64);
                    let ttl = input.one_of(&[Duration::from_secs(1), Duration::from_secs(60), Duration::MAX]);
                    done.insert(slot, record.clone());
                    at_once(store.complete(&slot_of(slot), token, &record, ttl))
                };
                assert_eq!(held.expect("no failure"), Held::Yes, "a running claim is never evicted");
                let stats = store.stats();
                if when_full == WhenFull::EvictNearestExpiry {
                    assert!(stats.bytes <= BUDGET + running.len() * CLAIM, "{stats:?}");
                }
            }
            _ => {
                advance(input.one_of(&[
                    Duration::from_millis(1),
                    Duration::from_secs(2),
                    Duration::from_secs(61),
                ]))
                .await
            }
        }
    }
    let census = at_once(store.count()).expect("no failure");
    assert_eq!((census.running, census.lapsed), (running.len() as u64, 0));
    for slot in 0..=u8::MAX {
        at_once(store.forget(&slot_of(slot))).expect("no failure");
    }
    let stats = store.stats();
    assert_eq!((stats.entries, stats.bytes), (0, 0));
    if when_full == WhenFull::RefuseNew {
        assert_eq!(stats.evicted, 0);
    }
}
