//! The memory store: its budget, its sweeping, threads, and those who wait.

use std::collections::HashSet;
use std::future::Future;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Barrier, Mutex};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use sha2::{Digest, Sha256};
use tokio::time::{advance, timeout};
use tower_idempotency::Fingerprint;
use tower_idempotency::store::{
    Begin, Begun, Held, MemoryStore, OnLapse, Record, ScopeTag, Slot, Store, StoreErrorKind, Token, WhenFull,
};

const BUDGET: usize = 64 * 1024;
const SECOND: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_secs(3600);
const PRINT: Fingerprint = Fingerprint::from_bytes([1; Fingerprint::LEN]);
/// What the store sorts expiries by.
const TICK: Duration = Duration::from_millis(1024);
/// Records that one write sweeps at most.
const SWEEP: usize = 8;

fn full(when_full: WhenFull) -> MemoryStore {
    MemoryStore::builder()
        .budget(BUDGET)
        .when_full(when_full)
        .build()
        .unwrap()
}

fn slot(n: u64) -> Slot {
    let mut bytes = [0; Slot::LEN];
    bytes[..8].copy_from_slice(&mix(n).to_le_bytes());
    bytes[8..16].copy_from_slice(&n.to_le_bytes());
    Slot::from_bytes(bytes)
}

/// One-to-one, and as good as random.
fn mix(n: u64) -> u64 {
    let z = n.wrapping_add(1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z ^ (z >> 27)
}

fn begin(n: u64, token: u64) -> Begin {
    Begin {
        slot: slot(n),
        scope: ScopeTag::default(),
        fingerprint: PRINT,
        token: Token(token),
        lease: HOUR,
        ttl: HOUR,
        on_lapse: OnLapse::RunAgain,
    }
}

fn other_print(begin: Begin) -> Begin {
    Begin {
        fingerprint: Fingerprint::from_bytes([2; Fingerprint::LEN]),
        ..begin
    }
}

/// A record of that many bytes.
fn record(bytes: usize) -> Record {
    // Version 1, a response, status 200, its fingerprint, no flags, no headers.
    let mut content = vec![1, 0, 0, 200];
    content.extend_from_slice(PRINT.as_bytes());
    content.extend_from_slice(&[0, 0]);
    content.resize(bytes, b'x');
    let sum = Sha256::digest(&content);
    content.extend_from_slice(&sum[..8]);
    Record::from_bytes(&content).unwrap()
}

/// The answer of a future that does not wait, without a runtime.
fn now<T>(future: impl Future<Output = T>) -> T {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(answer) => answer,
        Poll::Pending => panic!("the memory store's calls are ready at once"),
    }
}

fn started(store: &MemoryStore, begin: &Begin) -> u32 {
    match now(store.begin(begin)).unwrap() {
        Begun::Started { attempt } => attempt,
        other => panic!("expected Started, got {other:?}"),
    }
}

/// Claims the slot and completes it.
fn keep(store: &MemoryStore, n: u64, record: &Record, ttl: Duration) {
    assert_eq!(started(store, &begin(n, n)), 1);
    assert_eq!(now(store.complete(&slot(n), Token(n), record, ttl)).unwrap(), Held::Yes);
}

/// A write to a slot of its own, which leaves nothing.
fn write(store: &MemoryStore, n: u64) {
    assert_eq!(started(store, &begin(1 << 40 | n, n)), 1);
    assert_eq!(now(store.release(&slot(1 << 40 | n), Token(n))).unwrap(), Held::Yes);
}

/// Whether the store knows the slot.
fn knows(store: &MemoryStore, n: u64) -> bool {
    let probe = other_print(begin(n, u64::MAX));
    match now(store.begin(&probe)).unwrap() {
        Begun::Mismatch => true,
        Begun::Started { .. } => {
            now(store.release(&probe.slot, probe.token)).unwrap();
            false
        }
        other => panic!("expected Mismatch or Started, got {other:?}"),
    }
}

#[test]
fn a_budget_that_is_too_small_is_refused() {
    let error = MemoryStore::builder().budget(BUDGET - 1).build().unwrap_err();
    assert_eq!(error.option(), "budget");
    assert!(error.to_string().contains("65535"), "{error}");
}

#[test]
fn clones_share_what_they_hold() {
    let store = MemoryStore::new();
    let clone = store.clone();
    started(&store, &begin(1, 1));
    assert!(matches!(now(clone.begin(&begin(1, 2))), Ok(Begun::InFlight { .. })));
    assert_eq!(
        now(clone.complete(&slot(1), Token(1), &record(100), HOUR)).unwrap(),
        Held::Yes
    );
    assert_eq!(now(store.begin(&begin(1, 2))).unwrap(), Begun::Done(record(100)));
    assert_eq!(store.stats(), clone.stats());
    assert_eq!(store.stats().entries, 1);
}

#[test]
fn what_is_held_is_counted() {
    let store = MemoryStore::new();
    assert_eq!((store.stats().entries, store.stats().bytes), (0, 0));
    started(&store, &begin(1, 1));
    let claimed = store.stats();
    assert_eq!(claimed.entries, 1);
    for again in [begin(1, 1), begin(1, 2), other_print(begin(1, 3))] {
        now(store.begin(&again)).unwrap();
        assert_eq!(store.stats(), claimed, "nothing was added by {again:?}");
    }
    now(store.complete(&slot(1), Token(1), &record(10_000), HOUR)).unwrap();
    let kept = store.stats();
    assert_eq!(kept.entries, 1);
    assert!((10_000..11_000).contains(&kept.bytes), "{kept:?}");
    keep(&store, 2, &record(5_000), HOUR);
    assert_eq!(store.stats().bytes - kept.bytes, kept.bytes - 5_000);
    write(&store, 3);
    assert_eq!(store.stats().entries, 2);
}

#[tokio::test(start_paused = true)]
async fn an_entry_that_is_used_again_is_counted_once() {
    let store = MemoryStore::new();
    for n in 0..100 {
        let begin = Begin {
            lease: SECOND,
            ttl: SECOND,
            ..begin(1, n)
        };
        assert_eq!(started(&store, &begin), 1);
        if n % 2 == 0 {
            now(store.complete(&slot(1), Token(n), &record(500), SECOND)).unwrap();
        }
        assert_eq!(store.stats().entries, 1);
        assert!(store.stats().bytes < 1000, "{:?}", store.stats());
        // Expired, and within the tick, so that nothing has swept it.
        advance(2 * SECOND).await;
    }
    advance(2 * TICK).await;
    (0..8).for_each(|n| write(&store, n));
    assert_eq!((store.stats().entries, store.stats().bytes), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn what_expires_first_is_evicted_first() {
    for seed in 0..50 {
        let store = full(WhenFull::EvictNearestExpiry);
        let mut kept = Vec::new();
        // As many again as there is room for; some expire in one tick, and not in order.
        for n in 0..250 {
            let dice = mix(seed * 1000 + n);
            let ttl = match dice % 4 {
                0 => Duration::from_millis(10_000 + dice / 4 % 3000),
                _ => Duration::from_secs(10 + dice / 4 % 3600),
            };
            let size = 22 + (dice >> 32) as usize % 1000;
            keep(&store, n, &record(size), ttl);
            kept.push((n, ttl));
            assert!(store.stats().bytes <= BUDGET, "{:?}", store.stats());
        }
        // Makes room for one claim, which then serves the probes below.
        write(&store, 0);
        let before = store.stats();
        assert!(before.evicted > 50, "{before:?}");
        assert_eq!(before.entries as u64 + before.evicted, 250);
        // Only those that were not there yet when others were evicted may expire before these.
        let gone: HashSet<_> = kept.iter().map(|(n, _)| *n).filter(|&n| !knows(&store, n)).collect();
        assert_eq!(gone.len() as u64, store.stats().evicted);
        let (mut present, mut absent) = (Vec::new(), Vec::new());
        for &(n, ttl) in &kept {
            if gone.contains(&n) { &mut absent } else { &mut present }.push((n, ttl));
        }
        for &(n, ttl) in &absent {
            for &(m, later) in present.iter().filter(|(m, _)| *m < n) {
                assert!(
                    later + TICK > ttl,
                    "{n} ({ttl:?}) was evicted, and {m} ({later:?}) was not"
                );
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn what_had_expired_was_not_evicted() {
    let store = full(WhenFull::EvictNearestExpiry);
    let record = record(500);
    for round in 0..20 {
        for n in 0..80 {
            keep(&store, round * 1000 + n, &record, SECOND);
        }
        advance(SECOND + TICK).await;
    }
    assert_eq!(store.stats().evicted, 0);
    assert!(store.stats().bytes <= BUDGET);
}

#[tokio::test(start_paused = true)]
async fn running_claims_are_never_evicted() {
    let store = full(WhenFull::EvictNearestExpiry);
    let claims = 0..100;
    for n in claims.clone() {
        started(&store, &begin(n, n));
    }
    for n in 1000..6000 {
        keep(&store, n, &record(22 + n as usize % 700), HOUR);
    }
    assert!(store.stats().evicted > 4000, "{:?}", store.stats());
    for n in claims {
        assert!(matches!(now(store.begin(&begin(n, 9999))), Ok(Begun::InFlight { .. })));
        assert_eq!(now(store.renew(&slot(n), Token(n), HOUR)).unwrap(), Held::Yes);
        assert_eq!(
            now(store.complete(&slot(n), Token(n), &record(100), HOUR)).unwrap(),
            Held::Yes
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_key_in_use_again_is_not_evicted_for_what_it_was() {
    let store = full(WhenFull::EvictNearestExpiry);
    let short = Duration::from_millis(10);
    keep(&store, 1, &record(100), short);
    keep(&store, 2, &record(100), short);
    advance(short).await;
    // Expired, and used again before their first records were swept.
    keep(&store, 1, &record(100), 10 * HOUR);
    started(&store, &begin(2, 2));
    for n in 1000..2000 {
        keep(&store, n, &record(100), HOUR);
    }
    assert!(store.stats().evicted > 500);
    assert_eq!(now(store.begin(&begin(1, 9))).unwrap(), Begun::Done(record(100)));
    assert_eq!(now(store.renew(&slot(2), Token(2), HOUR)).unwrap(), Held::Yes);
}

#[tokio::test(start_paused = true)]
async fn claims_alone_can_fill_the_budget() {
    for when_full in [WhenFull::EvictNearestExpiry, WhenFull::RefuseNew] {
        let store = full(when_full);
        let mut claimed = 0;
        let error = loop {
            match now(store.begin(&begin(claimed, claimed))) {
                Ok(begun) => assert_eq!(begun, Begun::Started { attempt: 1 }),
                Err(error) => break error,
            }
            claimed += 1;
            assert!(claimed < 1000);
        };
        assert_eq!(error.kind(), StoreErrorKind::Full);
        assert!(error.to_string().contains("budget"), "{error}");
        assert!(claimed >= 200, "{claimed}");
        let stats = store.stats();
        assert_eq!(stats.entries as u64, claimed);
        assert!(stats.bytes <= BUDGET);
        // Those that have begun are not in the way of each other.
        for n in 0..claimed {
            assert!(matches!(now(store.begin(&begin(n, 9999))), Ok(Begun::InFlight { .. })));
            assert_eq!(now(store.renew(&slot(n), Token(n), HOUR)).unwrap(), Held::Yes);
        }
        assert_eq!(store.stats(), stats, "and a refusal leaves nothing");
        now(store.release(&slot(0), Token(0))).unwrap();
        started(&store, &begin(claimed, claimed));
    }
}

#[tokio::test(start_paused = true)]
async fn refusing_new_keys_keeps_the_known() {
    let store = full(WhenFull::RefuseNew);
    let running = begin(9000, 9000);
    started(&store, &running);
    let record = record(500);
    let mut kept = 0;
    while store.stats().bytes + 1000 < BUDGET {
        keep(&store, kept, &record, HOUR);
        kept += 1;
    }
    let late = begin(9001, 9001);
    started(&store, &late);
    let error = (5000..5010)
        .find_map(|n| now(store.begin(&begin(n, n))).err())
        .expect("the budget is spent");
    assert_eq!(error.kind(), StoreErrorKind::Full);

    let before = store.stats();
    for n in 0..kept {
        assert_eq!(now(store.begin(&begin(n, 9999))).unwrap(), Begun::Done(record.clone()));
        let other = other_print(begin(n, 9999));
        assert_eq!(now(store.begin(&other)).unwrap(), Begun::Mismatch);
    }
    assert!(matches!(now(store.begin(&begin(9000, 1))), Ok(Begun::InFlight { .. })));
    assert_eq!(store.stats(), before);
    assert_eq!(before.evicted, 0);

    // What ran is recorded, over the budget if need be.
    let large = self::record(BUDGET);
    assert_eq!(
        now(store.complete(&slot(9001), late.token, &large, HOUR)).unwrap(),
        Held::Yes
    );
    assert_eq!(now(store.begin(&begin(9001, 1))).unwrap(), Begun::Done(large));
    assert!(store.stats().bytes > BUDGET);
    assert_eq!(
        now(store.renew(&slot(9000), running.token, 3 * HOUR)).unwrap(),
        Held::Yes
    );
    assert_eq!(
        now(store.begin(&begin(6000, 6000))).unwrap_err().kind(),
        StoreErrorKind::Full
    );

    // It recovers when records have expired, not before.
    advance(HOUR - SECOND).await;
    assert!(now(store.begin(&begin(6000, 6000))).is_err());
    advance(SECOND + TICK).await;
    let refused = (0..10)
        .filter(|&n| now(store.begin(&begin(7000 + n, n))).is_err())
        .count();
    assert!(refused <= 2, "{refused} were refused although nearly all had expired");
    assert!(matches!(now(store.begin(&begin(9000, 1))), Ok(Begun::InFlight { .. })));
    assert_eq!(store.stats().evicted, 0);
}

#[test]
fn a_flood_of_keys_stays_within_the_budget() {
    let keys = if cfg!(debug_assertions) { 200_000 } else { 1_000_000 };
    let store = full(WhenFull::EvictNearestExpiry);
    let records: Vec<_> = (0..16).map(|n| record(22 + 30 * n)).collect();
    let (mut most, mut entries) = (0, 0);
    for n in 0..keys {
        keep(&store, n, &records[n as usize % records.len()], HOUR);
        let stats = store.stats();
        most = most.max(stats.bytes);
        entries = entries.max(stats.entries);
    }
    assert!(most <= BUDGET, "{most}");
    assert!((100..500).contains(&entries), "{entries}");
    let stats = store.stats();
    assert_eq!(stats.entries as u64 + stats.evicted, keys);
    assert_eq!(
        now(store.begin(&begin(keys - 1, 1))).unwrap(),
        Begun::Done(records[15].clone())
    );
}

#[tokio::test(start_paused = true)]
async fn each_write_sweeps_a_few_that_expired() {
    let store = MemoryStore::new();
    for n in 0..1000 {
        keep(&store, n, &record(100), SECOND + Duration::from_millis(n % 7));
    }
    keep(&store, 5000, &record(100), HOUR);
    write(&store, 0);
    assert_eq!(store.stats().entries, 1001, "nothing has expired");
    advance(2 * SECOND + TICK).await;
    for written in 1..=1000_usize.div_ceil(SWEEP) {
        write(&store, 10 + written as u64);
        assert_eq!(store.stats().entries, 1 + 1000_usize.saturating_sub(SWEEP * written));
    }
    assert!(knows(&store, 5000), "what lives is not swept");
    assert_eq!(store.stats().evicted, 0);
    assert!(store.stats().bytes < 1000, "{:?}", store.stats());
}

#[tokio::test(start_paused = true)]
async fn reading_sweeps_nothing_and_finds_nothing_that_expired() {
    let store = MemoryStore::new();
    keep(&store, 1, &record(100), SECOND);
    advance(SECOND).await;
    // Not swept before its tick is over, and yet gone.
    assert!(!knows(&store, 1));
    assert_eq!(store.stats().entries, 0);
}

#[tokio::test(start_paused = true)]
async fn claims_whose_holders_died_are_swept_after_lease_and_ttl() {
    let store = MemoryStore::new();
    let dead = 0..1000_u64;
    for n in dead.clone() {
        started(
            &store,
            &Begin {
                lease: SECOND,
                ttl: 10 * SECOND,
                ..begin(n, n)
            },
        );
    }
    started(&store, &begin(5000, 5000));
    advance(10 * SECOND).await;
    (0..5000).for_each(|n| write(&store, n));
    assert_eq!(store.stats().entries, 1001, "a lapsed claim is remembered for its ttl");
    advance(SECOND).await;
    let mut writes = 0;
    while store.stats().entries > 1 {
        let before = store.stats().entries;
        write(&store, writes);
        assert!(store.stats().entries + 1 >= before, "one at most for each write");
        writes += 1;
        assert!(writes < 5000, "{:?}", store.stats());
    }
    assert_eq!(now(store.renew(&slot(5000), Token(5000), HOUR)).unwrap(), Held::Yes);
}

#[tokio::test(start_paused = true)]
async fn a_claim_that_was_renewed_and_then_died_is_swept_too() {
    let store = MemoryStore::new();
    let lease = 10 * SECOND;
    started(
        &store,
        &Begin {
            lease,
            ttl: lease,
            ..begin(1, 1)
        },
    );
    for n in 0..100 {
        advance(5 * SECOND).await;
        assert_eq!(now(store.renew(&slot(1), Token(1), lease)).unwrap(), Held::Yes);
        (0..20).for_each(|m| write(&store, n * 100 + m));
        assert_eq!(store.stats().entries, 1);
    }
    advance(2 * lease + Duration::from_secs(60)).await;
    (0..20).for_each(|n| write(&store, n));
    assert_eq!((store.stats().entries, store.stats().bytes), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn cycles_of_one_key_leave_nothing_behind() {
    let store = MemoryStore::new();
    for n in 0..50_000 {
        started(&store, &begin(1, n));
        now(store.release(&slot(1), Token(n))).unwrap();
    }
    for n in 0..50_000 {
        keep_again(&store, n).await;
    }
    // Had the book kept a line of each, it would take as many writes to get to these.
    started(
        &store,
        &Begin {
            lease: SECOND,
            ttl: SECOND,
            ..begin(2, 2)
        },
    );
    keep(&store, 3, &record(100), SECOND);
    advance(2 * SECOND + TICK).await;
    (0..20).for_each(|n| write(&store, n));
    assert_eq!((store.stats().entries, store.stats().bytes), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn waves_of_dead_claims_leave_nothing_behind() {
    let store = MemoryStore::new();
    let wave = |from: u64, count: u64| {
        for n in from..from + count {
            let begin = Begin {
                lease: SECOND,
                ttl: SECOND,
                ..begin(n, n)
            };
            started(&store, &begin);
        }
    };
    for n in 0..50 {
        wave(n * 1000, 100);
        advance(2 * SECOND).await;
        (0..400).for_each(|n| write(&store, n));
        assert_eq!((store.stats().entries, store.stats().bytes), (0, 0));
    }
    // Had each left its line in the book, it would take thousands of writes to come round.
    wave(100_000, 1);
    advance(2 * SECOND).await;
    (0..400).for_each(|n| write(&store, n));
    assert_eq!(store.stats().entries, 0);
}

async fn keep_again(store: &MemoryStore, n: u64) {
    started(store, &begin(1, n));
    let ttl = Duration::from_millis(100);
    now(store.complete(&slot(1), Token(n), &record(22), ttl)).unwrap();
    advance(ttl).await;
}

#[test]
fn no_runtime_is_needed() {
    let store = MemoryStore::new();
    let holder = store.clone();
    std::thread::spawn(move || started(&holder, &begin(1, 1)))
        .join()
        .unwrap();
    assert!(matches!(now(store.begin(&begin(1, 2))), Ok(Begun::InFlight { .. })));
    let first = slot(1);
    let mut waiting = pin!(store.changed(&first, 0));
    let woken = Arc::new(Woken::default());
    let waker = Waker::from(Arc::clone(&woken));
    let mut context = Context::from_waker(&waker);
    assert!(waiting.as_mut().poll(&mut context).is_pending());
    let holder = store.clone();
    std::thread::spawn(move || now(holder.release(&slot(1), Token(1))).unwrap())
        .join()
        .unwrap();
    assert_eq!(woken.0.load(Ordering::SeqCst), 1);
    assert!(waiting.as_mut().poll(&mut context).is_ready());
}

#[derive(Default)]
struct Woken(AtomicUsize);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

#[tokio::test(start_paused = true)]
async fn one_release_wakes_all_who_wait_for_the_slot() {
    let store = MemoryStore::new();
    for n in 0..2 {
        started(&store, &begin(n, n));
    }
    let mut waiters = tokio::task::JoinSet::new();
    for n in (0..2).cycle().take(200) {
        let store = store.clone();
        waiters.spawn(async move {
            store.changed(&slot(n), 0).await;
            n
        });
    }
    tokio::task::yield_now().await;
    assert!(waiters.try_join_next().is_none());
    now(store.release(&slot(0), Token(0))).unwrap();
    for _ in 0..100 {
        let woken = timeout(SECOND, waiters.join_next()).await.expect("woken");
        assert_eq!(woken.unwrap().unwrap(), 0);
    }
    assert!(
        timeout(HOUR / 2, waiters.join_next()).await.is_err(),
        "slot 1 runs still"
    );
    now(store.complete(&slot(1), Token(1), &record(22), HOUR)).unwrap();
    for _ in 0..100 {
        let woken = timeout(SECOND, waiters.join_next()).await.expect("woken");
        assert_eq!(woken.unwrap().unwrap(), 1);
    }
}

fn is_ready(future: &mut Pin<&mut impl Future>) -> bool {
    future.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_ready()
}

#[test]
fn no_wake_up_is_lost() {
    let (store, slot) = (MemoryStore::new(), slot(1));
    assert!(is_ready(&mut pin!(store.changed(&slot, 0))), "nothing runs");

    started(&store, &begin(1, 1));
    let mut early = pin!(store.changed(&slot, 0));
    now(store.release(&slot, Token(1))).unwrap();
    started(&store, &begin(1, 2));
    assert!(
        is_ready(&mut early),
        "asked about the first claim, first polled while the second runs"
    );

    let mut next = pin!(store.changed(&slot, 0));
    assert!(!is_ready(&mut next), "the second claim runs");
    drop(Box::pin(store.changed(&slot, 0)));
    now(store.complete(&slot, Token(2), &record(22), HOUR)).unwrap();
    assert!(is_ready(&mut next), "the second claim has ended");
    assert!(is_ready(&mut pin!(store.changed(&slot, 0))), "done");
}

#[tokio::test(start_paused = true)]
async fn who_waits_for_a_claim_that_lapsed_waits_for_its_successor() {
    let (store, slot) = (MemoryStore::new(), slot(1));
    started(
        &store,
        &Begin {
            lease: SECOND,
            ..begin(1, 1)
        },
    );
    let mut waiting = pin!(store.changed(&slot, 0));
    assert!(!is_ready(&mut waiting));
    advance(SECOND).await;
    assert_eq!(started(&store, &begin(1, 2)), 2);
    now(store.release(&slot, Token(2))).unwrap();
    assert!(is_ready(&mut waiting));
}

/// Runs it on so many threads, which begin together.
fn threads(count: u64, work: impl Fn(u64) + Sync) {
    let barrier = Barrier::new(count as usize);
    std::thread::scope(|scope| {
        for thread in 0..count {
            let (work, barrier) = (&work, &barrier);
            scope.spawn(move || {
                barrier.wait();
                work(thread);
            });
        }
    });
}

#[test]
fn of_many_threads_at_one_slot_one_at_a_time_is_started() {
    let store = MemoryStore::new();
    let (inside, runs) = (AtomicBool::new(false), AtomicU64::new(0));
    threads(8, |thread| {
        for n in 0..10_000 {
            let token = thread << 32 | n;
            match now(store.begin(&begin(1, token))).unwrap() {
                Begun::Started { attempt } => {
                    assert_eq!(attempt, 1);
                    assert!(!inside.swap(true, Ordering::SeqCst), "another is at work");
                    runs.fetch_add(1, Ordering::SeqCst);
                    std::thread::yield_now();
                    assert!(inside.swap(false, Ordering::SeqCst));
                    assert_eq!(now(store.release(&slot(1), Token(token))).unwrap(), Held::Yes);
                }
                Begun::InFlight { .. } => {
                    assert_eq!(now(store.release(&slot(1), Token(token))).unwrap(), Held::Lost);
                }
                other => panic!("expected Started or InFlight, got {other:?}"),
            }
        }
    });
    assert!(runs.into_inner() >= 8);
    assert_eq!((store.stats().entries, store.stats().bytes), (0, 0));
}

#[test]
fn every_takeover_is_an_attempt_of_its_own_and_one_completes() {
    let store = MemoryStore::new();
    let (attempts, completed) = (Mutex::new(Vec::new()), AtomicUsize::new(0));
    threads(8, |thread| {
        for n in 0..1000 {
            // Lapsed at once, so that each takes over. A thread that read the clock a while ago may
            // find it running still.
            let begin = Begin {
                lease: Duration::ZERO,
                ..begin(1, thread << 32 | n)
            };
            let attempt = loop {
                match now(store.begin(&begin)).unwrap() {
                    Begun::Started { attempt } => break attempt,
                    Begun::InFlight { .. } => std::thread::yield_now(),
                    other => panic!("expected Started or InFlight, got {other:?}"),
                }
            };
            attempts.lock().unwrap().push(attempt);
        }
    });
    let mut attempts = attempts.into_inner().unwrap();
    attempts.sort_unstable();
    assert!(attempts.into_iter().eq(1..=8000), "each once");
    threads(8, |thread| {
        for n in 0..1000 {
            let held = now(store.complete(&slot(1), Token(thread << 32 | n), &record(22), HOUR));
            if held.unwrap() == Held::Yes {
                completed.fetch_add(1, Ordering::SeqCst);
            }
        }
    });
    assert_eq!(completed.into_inner(), 1);
    assert_eq!(store.stats().entries, 1);
}

#[test]
fn many_threads_at_many_slots_do_not_meet() {
    const SLOTS: u64 = 64;
    let store = MemoryStore::new();
    let inside: Vec<_> = (0..SLOTS).map(|_| AtomicBool::new(false)).collect();
    let kept = AtomicUsize::new(0);
    threads(8, |thread| {
        let mut dice = thread;
        for n in 0..10_000 {
            dice = mix(dice);
            let (at, token) = (dice % SLOTS, thread << 32 | n);
            if let Begun::Started { attempt } = now(store.begin(&begin(at, token))).unwrap() {
                assert_eq!(attempt, 1);
                assert!(!inside[at as usize].swap(true, Ordering::SeqCst), "another is at work");
                assert!(inside[at as usize].swap(false, Ordering::SeqCst));
                let held = if dice >> 32 & 0xFF == 0 {
                    kept.fetch_add(1, Ordering::SeqCst);
                    now(store.complete(&slot(at), Token(token), &record(100), HOUR))
                } else {
                    now(store.release(&slot(at), Token(token)))
                };
                assert_eq!(held.unwrap(), Held::Yes);
            }
        }
    });
    let kept = kept.into_inner();
    let done = (0..SLOTS).filter(|&n| knows(&store, n)).count();
    assert_eq!((done, store.stats().entries), (kept, kept));
}

#[test]
fn what_many_threads_left_is_counted_right() {
    let store = full(WhenFull::EvictNearestExpiry);
    let (records, completed) = ([record(22), record(300), record(900)], AtomicU64::new(0));
    threads(8, |thread| {
        for n in 0..5_000 {
            let key = thread << 32 | n;
            let Ok(Begun::Started { .. }) = now(store.begin(&begin(key, key))) else {
                continue;
            };
            if n % 3 == 0 {
                assert_eq!(now(store.release(&slot(key), Token(key))).unwrap(), Held::Yes);
                continue;
            }
            let record = &records[(n % 7 % 3) as usize];
            assert_eq!(
                now(store.complete(&slot(key), Token(key), record, HOUR)).unwrap(),
                Held::Yes
            );
            completed.fetch_add(1, Ordering::SeqCst);
        }
    });
    let stats = store.stats();
    assert_eq!(stats.entries as u64 + stats.evicted, completed.into_inner());
    // Makes room for one claim, so that the looks below evict nothing.
    write(&store, 0);
    // As many are there as are counted, and what they take is what is counted.
    let room = MemoryStore::new();
    let mut found = 0;
    for key in (0..8).flat_map(|thread| (0..5_000).map(move |n| thread << 32 | n)) {
        if let Ok(Begun::Done(record)) = now(store.begin(&begin(key, key))) {
            keep(&room, key, &record, HOUR);
            found += 1;
        } else {
            now(store.release(&slot(key), Token(key))).unwrap();
        }
    }
    let stats = store.stats();
    assert_eq!((stats.entries, stats.bytes), (found, room.stats().bytes));
}

/// Keeps small records until there is no room for a claim, and returns how many.
fn fill(store: &MemoryStore) -> u64 {
    let record = record(22);
    let each = {
        keep(store, 0, &record, HOUR);
        store.stats().bytes
    };
    let claim = {
        let before = store.stats().bytes;
        started(store, &begin(1 << 40, 1));
        let claim = store.stats().bytes - before;
        now(store.release(&slot(1 << 40), Token(1))).unwrap();
        claim
    };
    let mut kept = 1;
    while store.stats().bytes + each + claim <= BUDGET {
        keep(store, kept, &record, HOUR);
        kept += 1;
    }
    while store.stats().bytes + claim <= BUDGET {
        keep(store, kept, &record, HOUR);
        kept += 1;
    }
    assert_eq!(store.stats().evicted, 0);
    kept
}

#[tokio::test(start_paused = true)]
async fn a_known_key_evicts_nothing() {
    let store = full(WhenFull::EvictNearestExpiry);
    let kept = fill(&store);
    // The first to go, should anything be evicted.
    assert_eq!(now(store.begin(&begin(0, 9999))).unwrap(), Begun::Done(record(22)));
    let other = other_print(begin(kept - 1, 9999));
    assert_eq!(now(store.begin(&other)).unwrap(), Begun::Mismatch);
    assert_eq!(store.stats().evicted, 0, "a duplicate needs no room");
}

#[tokio::test(start_paused = true)]
async fn claims_that_are_forgotten_do_not_fill_the_budget_for_ever() {
    for when_full in [WhenFull::EvictNearestExpiry, WhenFull::RefuseNew] {
        let store = full(when_full);
        let dead = (0..).take_while(|&n| {
            let begin = Begin {
                lease: SECOND,
                ttl: SECOND,
                ..begin(n, n)
            };
            now(store.begin(&begin)).is_ok()
        });
        let dead = dead.count();
        assert!(dead >= 200);
        advance(2 * SECOND + Duration::from_secs(60)).await;
        let refused = (0..10_000)
            .take_while(|&n| now(store.begin(&begin(1 << 40 | n, n))).is_err())
            .count();
        assert!(
            refused < 2 * dead,
            "{when_full:?}: {refused} were refused, and nothing but claims long forgotten is held"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_large_record_makes_room_for_itself() {
    let store = full(WhenFull::EvictNearestExpiry);
    let kept = fill(&store);
    started(&store, &begin(kept, kept));
    let large = record(BUDGET / 2);
    assert_eq!(
        now(store.complete(&slot(kept), Token(kept), &large, HOUR)).unwrap(),
        Held::Yes
    );
    let refused = (0..100)
        .filter(|&n| now(store.begin(&begin(1 << 40 | n, n))).is_err())
        .count();
    assert_eq!(refused, 0, "there is enough to evict");
    assert_eq!(now(store.begin(&begin(kept, 9999))).unwrap(), Begun::Done(large));
}

#[test]
fn threads_at_a_full_store_are_not_refused_while_there_is_something_to_evict() {
    let store = full(WhenFull::EvictNearestExpiry);
    let (record, refused) = (record(22), AtomicUsize::new(0));
    threads(8, |thread| {
        for n in 0..20_000 {
            let key = thread << 32 | n;
            match now(store.begin(&begin(key, key))) {
                Ok(Begun::Started { .. }) => {
                    now(store.complete(&slot(key), Token(key), &record, HOUR)).unwrap();
                }
                Ok(other) => panic!("expected Started, got {other:?}"),
                Err(_) => _ = refused.fetch_add(1, Ordering::SeqCst),
            }
        }
    });
    assert_eq!(
        refused.into_inner(),
        0,
        "eight claims at most run, and hundreds of records can go"
    );
}

#[tokio::test(start_paused = true)]
async fn who_waits_for_a_claim_that_is_forgotten_is_woken() {
    // (what happens when lease and ttl are over)
    let again: fn(&MemoryStore) = |store| assert_eq!(started(store, &begin(1, 2)), 1);
    let swept: fn(&MemoryStore) = |store| (0..20).for_each(|n| write(store, n));
    for (happens, what) in [(again, "the slot is claimed again"), (swept, "the claim is swept")] {
        let (store, slot) = (MemoryStore::new(), slot(1));
        started(
            &store,
            &Begin {
                lease: SECOND,
                ttl: SECOND,
                ..begin(1, 1)
            },
        );
        let mut waiting = pin!(store.changed(&slot, 0));
        assert!(!is_ready(&mut waiting));
        advance(2 * SECOND).await;
        happens(&store);
        assert!(is_ready(&mut waiting), "{what}");
    }
}

#[test]
fn counts_do_not_fall_below_zero_for_a_moment() {
    let store = MemoryStore::new();
    let (most, refused) = (AtomicUsize::new(0), AtomicUsize::new(0));
    // Both begin and release under one token, as one does whose `begin` was not answered in time.
    threads(2, |_| {
        for n in 0..100_000 {
            if now(store.begin(&begin(1, n))).is_err() {
                refused.fetch_add(1, Ordering::SeqCst);
            }
            most.fetch_max(store.stats().entries, Ordering::SeqCst);
            now(store.release(&slot(1), Token(n))).unwrap();
        }
    });
    assert_eq!(refused.into_inner(), 0, "two claims at most are held");
    assert!(most.into_inner() <= 4);
}

/// As `keep`, for a scope.
fn keep_for(store: &MemoryStore, scope: u32, n: u64, record: &Record) {
    let begin = Begin {
        scope: ScopeTag::new(scope),
        ..begin(n, n)
    };
    assert_eq!(started(store, &begin), 1);
    assert_eq!(
        now(store.complete(&slot(n), Token(n), record, HOUR)).unwrap(),
        Held::Yes
    );
}

#[test]
fn a_million_keys_of_one_tenant_cost_the_others_nothing() {
    const BUDGET: usize = 4 * 1024 * 1024;
    let store = MemoryStore::builder().budget(BUDGET).build().unwrap();
    let record = record(200);
    // Nine tenants with a hundred keys each: an eighth of the room, together. They came first, so
    // that they are nearest to expiry, and go on while the flood lasts.
    let others: Vec<(u32, u64)> = (1..10).flat_map(|tenant| (0..100).map(move |n| (tenant, n))).collect();
    let number = |tenant: u32, n: u64| u64::from(tenant) << 48 | n;
    let (early, late): (Vec<_>, Vec<_>) = others.iter().copied().partition(|(_, n)| *n < 50);
    for (tenant, n) in early {
        keep_for(&store, tenant, number(tenant, n), &record);
    }
    let mut late = late.into_iter();
    for n in 0..1_000_000 {
        keep_for(&store, 0, n, &record);
        if n % 1000 == 0 {
            assert!(store.stats().bytes <= BUDGET, "{:?}", store.stats());
            if let Some((tenant, n)) = late.next() {
                keep_for(&store, tenant, number(tenant, n), &record);
            }
        }
    }
    assert!(late.next().is_none());
    for (tenant, n) in others {
        assert!(knows(&store, number(tenant, n)), "tenant {tenant} lost {n}");
    }
    assert!(knows(&store, 999_999) && !knows(&store, 0));
    assert!(store.stats().evicted > 900_000, "{:?}", store.stats());
}

#[test]
fn a_tenant_alone_may_fill_the_budget_and_two_alike_share_it() {
    let store = full(WhenFull::EvictNearestExpiry);
    let before = store.stats();
    // The room of the only tenant there was goes to the new one, up to where both have enough.
    let record = record(200);
    for n in 0..100_000_u64 {
        keep_for(&store, 1 + (n % 2) as u32, 1 << 50 | n, &record);
    }
    let stats = store.stats();
    assert!(stats.bytes * 10 > before.bytes * 9, "{stats:?} of {before:?}");
    let known = |parity: u64| {
        (0..100_000)
            .filter(|n| n % 2 == parity && knows(&store, 1 << 50 | n))
            .count()
    };
    let (one, other) = (known(0), known(1));
    assert!(one.abs_diff(other) <= one.max(other) / 10, "{one} and {other}");
}
