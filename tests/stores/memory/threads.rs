//! Threads that race.

use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Barrier, Mutex};

use super::*;

#[test]
fn clones_share_what_they_hold() {
    let store = MemoryStore::new();
    let clone = store.clone();
    started(&store, &claim(1).token(1));
    assert!(matches!(
        now(clone.begin(&claim(1).token(2))),
        Ok(ClaimOutcome::InFlight { .. })
    ));
    assert_eq!(
        now(clone.complete(&slot(1), Token(1), &record(100), HOUR)).unwrap(),
        Held::Yes
    );
    assert_eq!(
        now(store.begin(&claim(1).token(2))).unwrap(),
        ClaimOutcome::Done(record(100))
    );
    assert_eq!(store.stats(), clone.stats());
    assert_eq!(store.stats().entries, 1);
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
            match now(store.begin(&claim(1).token(token))).unwrap() {
                ClaimOutcome::Started { attempt, .. } => {
                    assert_eq!(attempt, 1);
                    assert!(!inside.swap(true, Ordering::SeqCst), "another is at work");
                    runs.fetch_add(1, Ordering::SeqCst);
                    std::thread::yield_now();
                    assert!(inside.swap(false, Ordering::SeqCst));
                    assert_eq!(now(store.release(&slot(1), Token(token))).unwrap(), Held::Yes);
                }
                ClaimOutcome::InFlight { .. } => {
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
            let begin = claim(1).token(thread << 32 | n).lease(Duration::ZERO);
            let attempt = loop {
                match now(store.begin(&begin)).unwrap() {
                    ClaimOutcome::Started { attempt, .. } => break attempt,
                    ClaimOutcome::InFlight { .. } => std::thread::yield_now(),
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
            if let ClaimOutcome::Started { attempt, .. } = now(store.begin(&claim(at).token(token))).unwrap() {
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
            let Ok(ClaimOutcome::Started { .. }) = now(store.begin(&claim(key).token(key))) else {
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
        if let Ok(ClaimOutcome::Done(record)) = now(store.begin(&claim(key).token(key))) {
            keep(&room, key, &record, HOUR);
            found += 1;
        } else {
            now(store.release(&slot(key), Token(key))).unwrap();
        }
    }
    let stats = store.stats();
    assert_eq!((stats.entries, stats.bytes), (found, room.stats().bytes));
}

#[test]
fn threads_at_a_full_store_are_not_refused_while_there_is_something_to_evict() {
    let store = full(WhenFull::EvictNearestExpiry);
    let (record, refused) = (record(22), AtomicUsize::new(0));
    threads(8, |thread| {
        for n in 0..20_000 {
            let key = thread << 32 | n;
            match now(store.begin(&claim(key).token(key))) {
                Ok(ClaimOutcome::Started { .. }) => {
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

#[test]
fn counts_do_not_fall_below_zero_for_a_moment() {
    let store = MemoryStore::new();
    let (most, refused) = (AtomicUsize::new(0), AtomicUsize::new(0));
    // Both begin and release under one token, as one does whose `begin` was not answered in time.
    threads(2, |_| {
        for n in 0..100_000 {
            if now(store.begin(&claim(1).token(n))).is_err() {
                refused.fetch_add(1, Ordering::SeqCst);
            }
            most.fetch_max(store.stats().entries, Ordering::SeqCst);
            now(store.release(&slot(1), Token(n))).unwrap();
        }
    });
    assert_eq!(refused.into_inner(), 0, "two claims at most are held");
    assert!(most.into_inner() <= 4);
}
