//! What the memory store holds of the heap, beside what it counts, and what uploads and large answers
//! take: measured by a counting allocator, so that nothing depends on time or on the machine.

#[cfg(unix)]
mod support;

mod memory_accounting {
    #[cfg(unix)]
    mod answers;
    mod outages;
    mod uploads;
}

use std::alloc::System;
use std::convert::Infallible;
use std::future::Future;
use std::pin::pin;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};
use tokio::runtime::Builder;
use tokio::time::advance;
use tower::{Layer, ServiceExt, service_fn};
use tower_idempotency::store::{
    ClaimOutcome, ClaimRequest, Held, Inspect, MemoryStats, MemoryStore, Record, ScopeTag, Slot, Store, Token,
};
use tower_idempotency::{Fingerprint, IdempotencyLayer, Outcome};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

const PRINT: Fingerprint = Fingerprint::from_bytes([1; Fingerprint::LEN]);
const SECOND: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_secs(3600);
const MIB: usize = 1024 * 1024;
/// What a store without entries takes, and does not count: its locks and, kept for the next, the room of
/// a few entries and scopes.
const EMPTY: usize = 96 * 1024;
/// Four times as much in release mode: without optimizations, a call of the store takes ten times longer.
const SCALE: u64 = if cfg!(debug_assertions) { 1 } else { 4 };
/// Keys that come and go.
const KEYS: u64 = 250_000 * SCALE;
/// So many records that what each shard wastes once does not matter.
const MANY: u64 = 50_000 * SCALE;

/// The heap of one store, while no other test of this binary runs.
struct Heap {
    region: Region<'static, System>,
    _alone: MutexGuard<'static, ()>,
}

/// Waits until no other test of this binary runs.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Runs a test on this runtime while no other test of this binary runs. The runtime is not made earlier,
/// because it takes tens of kilobytes of the heap that another test may be measuring.
fn run_alone(runtime: &mut Builder, test: impl AsyncFnOnce(&Heap)) {
    let alone = alone();
    let runtime = runtime.enable_all().build().unwrap();
    let heap = Heap::from_now_on(alone);
    runtime.block_on(test(&heap));
    drop(runtime);
}

fn on_paused_time(test: impl AsyncFnOnce(&Heap)) {
    run_alone(Builder::new_current_thread().start_paused(true), test);
}

impl Heap {
    fn measure() -> Self {
        Self::from_now_on(alone())
    }

    fn from_now_on(alone: MutexGuard<'static, ()>) -> Self {
        Self {
            region: Region::new(ALLOCATOR),
            _alone: alone,
        }
    }

    /// Bytes allocated and not freed since.
    fn bytes(&self) -> usize {
        let change = self.region.change();
        change.bytes_allocated.saturating_sub(change.bytes_deallocated)
    }

    /// Held is at most 1.1 of what is counted; nor is so much counted that a budget is wasted.
    #[track_caller]
    fn assert_counted(&self, stats: MemoryStats, when: &str) {
        let ratio = self.bytes() as f64 / stats.bytes as f64;
        assert!(
            (0.8..=1.1).contains(&ratio),
            "{when}: the heap holds {ratio:.3} of what is counted, {stats:?}"
        );
    }

    #[track_caller]
    fn assert_empty(&self, stats: MemoryStats) {
        assert_eq!((stats.entries, stats.bytes), (0, 0));
        let heap = self.bytes();
        assert!(heap <= EMPTY, "{heap} bytes are held for nothing");
    }
}

fn large() -> MemoryStore {
    MemoryStore::builder().budget(4096 * MIB).build().unwrap()
}

/// The answer of a future that does not wait.
fn now<T>(future: impl Future<Output = T>) -> T {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(answer) => answer,
        Poll::Pending => panic!("the memory store's calls are ready at once"),
    }
}

/// One-to-one, and as good as random.
fn mix(n: u64) -> u64 {
    let z = n.wrapping_add(1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z ^ (z >> 27)
}

fn slot(n: u64) -> Slot {
    let mut bytes = [0; Slot::LEN];
    bytes[..8].copy_from_slice(&mix(n).to_le_bytes());
    bytes[8..16].copy_from_slice(&n.to_le_bytes());
    Slot::from_bytes(bytes)
}

/// A record of its own, of 22 bytes and the answer's.
fn record(answer: usize) -> Record {
    Record::of_response(PRINT, &Response::new(Bytes::from(vec![b'x'; answer])))
}

fn claim(store: &MemoryStore, scope: u32, n: u64, lease: Duration, ttl: Duration) {
    let mut tag = [0; ScopeTag::LEN];
    tag[..4].copy_from_slice(&scope.to_le_bytes());
    let begin = ClaimRequest::new(slot(n), PRINT)
        .with_scope(ScopeTag::from_bytes(tag))
        .with_token(Token(n))
        .with_lease(lease)
        .with_ttl(ttl);
    assert_eq!(now(store.begin(&begin)).unwrap(), ClaimOutcome::started(1));
}

fn keep(store: &MemoryStore, scope: u32, n: u64, answer: usize, ttl: Duration) {
    claim(store, scope, n, HOUR, ttl);
    let held = now(store.complete(&slot(n), Token(n), &record(answer), ttl));
    assert_eq!(held.unwrap(), Held::Yes);
}

fn forget(store: &MemoryStore, n: u64) -> bool {
    now(store.forget(&slot(n))).unwrap()
}

/// Writes to other slots, each of which sweeps a few, until nothing is left.
fn sweep(store: &MemoryStore) {
    let most = store.stats().entries;
    for n in 0.. {
        if store.stats().entries == 0 {
            break;
        }
        assert!(n <= most, "each write sweeps one at least: {:?}", store.stats());
        let n = 1 << 60 | n as u64;
        claim(store, 0, n, HOUR, HOUR);
        now(store.release(&slot(n), Token(n))).unwrap();
    }
}

/// What the records of [`MANY`] more keys take, looked at in between: the tables are as full as they
/// get, and just doubled.
fn fill(heap: &Heap, store: &MemoryStore, scopes: u64, answer: impl Fn(u64) -> usize, ttl: impl Fn(u64) -> Duration) {
    for n in 0..2 * MANY {
        let scope = (n % scopes) as u32;
        keep(store, scope.wrapping_mul(0x9E37_79B9), n, answer(n), ttl(n));
        if n >= MANY && n % 2048 == 0 {
            heap.assert_counted(store.stats(), &format!("{n} records of {scopes} scopes"));
        }
    }
}

#[test]
fn an_empty_store_is_small() {
    let heap = Heap::measure();
    let store = MemoryStore::new();
    assert!(heap.bytes() < 24 * 1024, "{} bytes are held", heap.bytes());
    heap.assert_empty(store.stats());
}

#[test]
fn keys_that_are_completed_and_forgotten_leave_nothing() {
    let heap = Heap::measure();
    let store = MemoryStore::builder().budget(MIB).build().unwrap();
    for n in 0..KEYS {
        keep(&store, 0, n, 200, 24 * HOUR);
        assert!(forget(&store, n));
        if n % 32_768 == 0 {
            heap.assert_empty(store.stats());
        }
    }
    heap.assert_empty(store.stats());
    assert_eq!(store.stats().evicted, 0);
}

#[test]
fn what_is_evicted_is_given_back_within_the_budget() {
    const BUDGET: usize = 16 * MIB;
    let heap = Heap::measure();
    let store = MemoryStore::builder().budget(BUDGET).build().unwrap();
    for n in 0..KEYS / 2 {
        keep(&store, 0, n, mix(n) as usize % 400, 24 * HOUR);
        if n % 4096 == 0 {
            assert!(
                heap.bytes() <= EMPTY + BUDGET / 10 * 11,
                "{}: {:?}",
                heap.bytes(),
                store.stats()
            );
        }
    }
    assert!(store.stats().evicted > KEYS / 4);
    heap.assert_counted(store.stats(), "after evictions");
}

#[test]
fn keys_that_expired_leave_nothing() {
    on_paused_time(async |heap| {
        let store = large();
        for n in 0..KEYS {
            keep(&store, 0, n, 20, Duration::from_millis(1000 + n % 5000));
        }
        heap.assert_counted(store.stats(), "all");
        // One in sixteen is there still when all others have been swept.
        for n in (0..KEYS).filter(|n| n % 16 == 0) {
            forget(&store, n);
            keep(&store, 0, n, 20, HOUR);
        }
        advance(10 * SECOND).await;
        for n in 0..KEYS / 8 {
            claim(&store, 0, 1 << 50 | n, HOUR, HOUR);
            now(store.release(&slot(1 << 50 | n), Token(1 << 50 | n))).unwrap();
        }
        assert_eq!(store.stats().entries, KEYS as usize / 16);
        heap.assert_counted(store.stats(), "a sixteenth");
        advance(2 * HOUR).await;
        sweep(&store);
        heap.assert_empty(store.stats());
    });
}

#[test]
fn claims_are_counted_and_leave_nothing() {
    on_paused_time(async |heap| {
        let store = large();
        for n in 0..2 * MANY {
            // As in the process, and as of holders that may die.
            let lease = if n % 2 == 0 { Duration::MAX } else { SECOND };
            claim(&store, 0, n, lease, SECOND);
            if n >= MANY && n % 2048 == 0 {
                heap.assert_counted(store.stats(), &format!("{n} claims"));
            }
        }
        for n in (0..2 * MANY).filter(|n| n % 2 == 0) {
            now(store.release(&slot(n), Token(n))).unwrap();
        }
        heap.assert_counted(store.stats(), "those of the dead");
        advance(3 * SECOND).await;
        sweep(&store);
        heap.assert_empty(store.stats());
    });
}

#[test]
fn a_large_record_leaves_no_buffer_behind() {
    let heap = Heap::measure();
    drop(record(64 * MIB));
    assert!(heap.bytes() < 64 * 1024, "{} bytes are held", heap.bytes());

    let store = large();
    keep(&store, 0, 1, 64 * MIB, HOUR);
    assert!(heap.bytes() < 65 * MIB, "{} bytes are held", heap.bytes());
    heap.assert_counted(store.stats(), "one large record");
    assert!(forget(&store, 1));
    heap.assert_empty(store.stats());
}

#[test]
fn the_count_holds_at_one_scope() {
    let heap = Heap::measure();
    fill(&heap, &large(), 1, |_| 200, |_| HOUR);
}

#[test]
fn the_count_holds_at_a_thousand_scopes() {
    let heap = Heap::measure();
    fill(
        &heap,
        &large(),
        1_000,
        |n| mix(n) as usize % 400,
        |n| HOUR + SECOND * (n % 1000) as u32,
    );
}

#[test]
fn the_count_holds_at_a_hundred_thousand_scopes() {
    let heap = Heap::measure();
    fill(&heap, &large(), 100_000, |n| mix(n) as usize % 400, |_| HOUR);
}

#[test]
fn the_count_holds_if_each_record_has_its_scope_and_its_time() {
    let heap = Heap::measure();
    let time = |n| HOUR + Duration::from_millis(mix(n) % 80_000_000);
    fill(&heap, &large(), u64::MAX, |n| mix(n) as usize % 100, time);
}

#[test]
fn the_count_holds_for_the_smallest_records() {
    let heap = Heap::measure();
    fill(&heap, &large(), 1, |_| 0, |_| HOUR);
}

#[test]
fn the_count_holds_for_records_of_kilobytes() {
    let heap = Heap::measure();
    fill(&heap, &large(), 10, |n| 1000 + mix(n) as usize % 1000, |_| HOUR);
}

/// A store in which keys are kept, expire, are forgotten, released and evicted, by chance.
async fn churn(heap: &Heap, scopes: u64, answers: usize, budget: usize) {
    let store = MemoryStore::builder().budget(budget).build().unwrap();
    let (mut kept, mut evicted) = (0, 0);
    // More at first, fewer later, so that all tables grow and are given back.
    for (round, forgets) in [1, 2, 4, 6, 7, 3].into_iter().enumerate() {
        for n in 0..MANY {
            let dice = mix(n ^ (round as u64) << 40);
            let scope = (dice % scopes) as u32;
            if dice >> 32 & 7 < forgets && kept > 0 {
                forget(&store, dice % kept);
            } else {
                let ttl = Duration::from_millis(1 + (dice >> 20) % 300_000);
                keep(
                    &store,
                    scope.wrapping_mul(0x9E37_79B9),
                    kept,
                    (dice >> 40) as usize % answers,
                    ttl,
                );
                kept += 1;
            }
            if n % 500 == 0 {
                advance(SECOND / 4).await;
            }
            // Not where so few are left that what is kept for each shard shows.
            if n % 2048 == 0 && store.stats().entries >= MANY as usize / 2 {
                heap.assert_counted(store.stats(), &format!("round {round}, {n}"));
            }
        }
        evicted = store.stats().evicted;
    }
    assert_eq!(evicted > 0, budget < 4096 * MIB);
    advance(HOUR).await;
    sweep(&store);
    heap.assert_empty(store.stats());
}

#[test]
fn the_count_holds_after_churn() {
    on_paused_time(async |heap| {
        churn(heap, 1, 300, 4096 * MIB).await;
    });
}

#[test]
fn the_count_holds_after_churn_of_many_scopes() {
    on_paused_time(async |heap| {
        churn(heap, 100_000, 300, 4096 * MIB).await;
    });
}

#[test]
fn the_count_holds_after_churn_under_a_budget() {
    on_paused_time(async |heap| {
        churn(heap, 1_000, 300, 12 * MIB * SCALE as usize).await;
    });
}

#[test]
fn the_count_holds_after_churn_of_the_smallest_records() {
    on_paused_time(async |heap| {
        churn(heap, 10, 1, 4096 * MIB).await;
    });
}

/// What a request through a layer allocates in all, while its handler makes its answer, and a replay.
async fn allocated(heap: &Heap, answer: fn() -> Response<Full<Bytes>>) -> (usize, usize) {
    let layer = IdempotencyLayer::builder(large()).max_response_body(64 * MIB);
    let layer = layer.build().unwrap();
    let service = layer.layer(service_fn(move |_: Request<Full<Bytes>>| async move {
        Ok::<_, Infallible>(answer())
    }));
    let mut allocated = Vec::new();
    for outcome in [Outcome::Executed, Outcome::Replayed] {
        let request = Request::post("/").header("idempotency-key", "k").body(Full::default());
        let before = heap.region.change().bytes_allocated;
        let response = service.clone().oneshot(request.unwrap()).await.unwrap();
        assert_eq!(response.extensions().get(), Some(&outcome));
        let body = response.into_body().collect().await.unwrap().to_bytes();
        assert_eq!(body.len(), 16 * MIB);
        allocated.push(heap.region.change().bytes_allocated - before);
    }
    (allocated[0], allocated[1])
}

#[test]
fn a_large_answer_is_not_copied() {
    on_paused_time(async |heap| {
        let (first, replay) = allocated(heap, || Response::new(Full::from(vec![b'x'; 16 * MIB]))).await;
        assert!(first <= 17 * MIB, "{first}: the answer itself, and little more");
        assert!(replay <= MIB, "{replay}");
    });
}

#[test]
fn what_is_kept_of_a_large_answer_has_no_room_to_spare() {
    on_paused_time(async |heap| {
        fn spacious() -> Response<Full<Bytes>> {
            let mut buffer = bytes::BytesMut::with_capacity(32 * MIB);
            buffer.resize(16 * MIB, b'x');
            Response::new(Full::new(buffer.freeze()))
        }
        let (first, replay) = allocated(heap, spacious).await;
        assert!(first <= 49 * MIB, "{first}: the handler's buffer, and one that fits");
        assert!(replay <= MIB, "{replay}");
    });
}
