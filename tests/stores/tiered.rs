//! `Tiered`: replays from memory, no longer than it says, and never of what was forgotten here.

use std::future::ready;
use std::pin::pin;
use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use http::{Extensions, Request, Response};
use tower::Layer;
use tower_idempotency::store::{
    Census, ClaimOutcome, ClaimRequest, Commit, Held, Inspect, Phase, Record, StoreError, StoreErrorKind, Tiered, Token,
};
use tower_idempotency::{IdempotencyLayer, MemoryStore, Store};

use super::work::Work;
use crate::support::claim::{Claim, HOUR, PRINT, claim, print, print_under_another_rule};
use crate::support::store::{Act, Op, Scripted};
use crate::support::{Count, Gate, inner, ok, poll_once, post, send, settle};

const MAX_AGE: Duration = Duration::from_secs(60);

mod conforms {
    use tower_idempotency::store::{KeyRing, Sealed, conformance};

    use super::*;
    use crate::support::conformance::Handles;

    #[tokio::test(start_paused = true)]
    async fn a_tiered_store_conforms() {
        let store = Tiered::new(MemoryStore::new());
        let harness = Handles::to(store.clone());
        conformance::check(&harness).await;
        for check in conformance::inspection_checks() {
            check.run(&harness).await;
        }
        assert!(store.stats().hits > 0);
        for seed in 0..300 {
            conformance::check_history(&harness, seed).await;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_smallest_cache_and_the_shortest_age_conform() {
        let builder = Tiered::builder(MemoryStore::new()).capacity(64 * 1024);
        conformance::check(&Handles::to(builder.max_age(Duration::from_millis(1)).build().unwrap())).await;
    }

    #[tokio::test(start_paused = true)]
    async fn handles_with_caches_of_their_own_conform_but_for_the_age() {
        let memory = MemoryStore::new();
        let host = || {
            Tiered::builder(memory.clone())
                .max_age(Duration::from_millis(200))
                .build()
                .unwrap()
        };
        // Two hosts, whose caches may be old by less than the suite's unit.
        conformance::check(&Handles::new([host(), host()], Duration::from_millis(300))).await;
    }

    #[tokio::test(start_paused = true)]
    async fn tiered_over_sealed_conforms() {
        let sealed = Sealed::new(MemoryStore::new(), KeyRing::new([7; 32])).unwrap();
        conformance::check(&Handles::to(Tiered::new(sealed))).await;
    }
}

#[test]
fn it_is_never_in_process() {
    const { assert!(!<Tiered<MemoryStore> as Store>::IN_PROCESS) };
}

/// The next answer of that call stops at the gate, the call having had its effect.
fn hold(remote: &Scripted, call: Op) -> Gate {
    let gate = Gate::default();
    remote.once(call, Act::StopAfterEffect(gate.clone()));
    gate
}

fn tiered() -> (Scripted, Tiered<Scripted>) {
    let remote = Scripted::default();
    (remote.clone(), Tiered::new(remote))
}

fn record(body: impl Into<Bytes>) -> Record {
    Record::of_response(PRINT, &Response::new(body.into()))
}

async fn run(store: &impl Store, begin: &ClaimRequest, record: &Record, ttl: Duration) {
    assert!(matches!(
        store.begin(begin).await.unwrap(),
        ClaimOutcome::Started { .. }
    ));
    let held = store.complete(&begin.slot, begin.token, record, ttl).await.unwrap();
    assert_eq!(held, Held::Yes);
}

async fn done(store: &impl Store, at: u64) -> Option<Record> {
    match store.begin(&claim(at)).await.unwrap() {
        ClaimOutcome::Done(record) => Some(record),
        ClaimOutcome::Started { .. } => None,
        other => panic!("{other:?}"),
    }
}

#[tokio::test(start_paused = true)]
async fn contract_5_1_a_cached_replay_asks_the_store_nothing() {
    let (remote, store) = tiered();
    let runs = Count::default();
    let service = IdempotencyLayer::new(store.clone()).layer(inner({
        let runs = runs.clone();
        move |_: Request<Body>| ready(ok(format!("run {}", runs.up())))
    }));
    let first = send(&service, post("/", "k", "b")).await;
    assert_eq!((remote.calls(Op::Begin), remote.calls(Op::Complete)), (1, 1));
    for _ in 0..5 {
        send(&service, post("/", "k", "b")).await.assert_replay_of(&first);
    }
    send(&service, post("/", "k", "another"))
        .await
        .assert_problem(422, "key-reused");
    assert_eq!(
        (remote.calls(Op::Begin), remote.calls(Op::Complete), runs.get()),
        (1, 1, 1)
    );
    assert_eq!((store.stats().hits, store.stats().entries), (6, 1));
}

#[tokio::test(start_paused = true)]
async fn what_was_completed_is_cached_until_its_ttl_ends() {
    let (remote, store) = tiered();
    let (begin, record) = (claim(1), record("x"));
    let ttl = Duration::from_secs(10);
    assert!(matches!(
        store.begin(&begin).await.unwrap(),
        ClaimOutcome::Started { .. }
    ));
    // The answer takes three seconds, which do not count twice.
    let gate = hold(&remote, Op::Complete);
    let (held, ()) = tokio::join!(store.complete(&begin.slot, begin.token, &record, ttl), async {
        gate.arrival().await;
        tokio::time::sleep(Duration::from_secs(3)).await;
        gate.open_once();
    });
    assert_eq!(held.unwrap(), Held::Yes);
    tokio::time::sleep(Duration::from_millis(6_998)).await;
    assert_eq!(done(&store, 1).await, Some(record));
    assert_eq!(remote.calls(Op::Begin), 1);
    tokio::time::sleep(Duration::from_millis(3)).await;
    assert_eq!(done(&store, 1).await, None);
    assert_eq!(remote.calls(Op::Begin), 2);
}

#[tokio::test(start_paused = true)]
async fn a_record_is_cached_for_max_age_at_most() {
    let (remote, store) = tiered();
    let first = record("x");
    run(&store, &claim(1), &first, HOUR).await;
    tokio::time::sleep(MAX_AGE - Duration::from_millis(1)).await;
    assert_eq!(done(&store, 1).await, Some(first.clone()));
    assert_eq!(remote.calls(Op::Begin), 1);
    tokio::time::sleep(Duration::from_millis(1)).await;
    // Found in the store, and cached as that.
    assert_eq!(done(&store, 1).await, Some(first.clone()));
    assert_eq!(remote.calls(Op::Begin), 2);
    tokio::time::sleep(MAX_AGE - Duration::from_millis(1)).await;
    assert_eq!(done(&store, 1).await, Some(first.clone()));
    assert_eq!(remote.calls(Op::Begin), 2);
    // Forgotten elsewhere: a hit does not prolong.
    remote.memory().forget(&claim(1).slot).await.unwrap();
    assert_eq!(done(&store, 1).await, Some(first));
    tokio::time::sleep(Duration::from_millis(1)).await;
    assert_eq!(done(&store, 1).await, None);
    assert_eq!(store.stats().entries, 0);
}

#[tokio::test(start_paused = true)]
async fn a_found_record_is_as_old_as_the_question() {
    let (remote, store) = tiered();
    let first = record("x");
    run(&remote, &claim(1), &first, HOUR).await;
    let gate = hold(&remote, Op::Begin);
    let (found, ()) = tokio::join!(done(&store, 1), async {
        gate.arrival().await;
        tokio::time::sleep(MAX_AGE / 2).await;
        gate.open_once();
    });
    assert_eq!(found, Some(first.clone()));
    tokio::time::sleep(MAX_AGE / 2).await;
    assert_eq!(done(&store, 1).await, Some(first));
    assert_eq!(remote.calls(Op::Begin), 3, "asked again");
}

#[tokio::test(start_paused = true)]
async fn contract_5_9_a_cached_record_of_another_rule_is_replayed() {
    let (remote, store) = tiered();
    run(&store, &claim(1), &record("x"), HOUR).await;
    for byte in [0xAB, 2] {
        let other = claim(1).print(print_under_another_rule(byte));
        assert_eq!(store.begin(&other).await.unwrap(), ClaimOutcome::Done(record("x")));
    }
    assert_eq!(
        store.begin(&claim(1).print(print(2))).await.unwrap(),
        ClaimOutcome::Mismatch
    );
    assert_eq!((remote.calls(Op::Begin), store.stats().hits), (1, 3));
}

#[tokio::test(start_paused = true)]
async fn contract_5_9_a_record_that_was_found_under_another_rule_is_cached_with_its_own_fingerprint() {
    let (remote, store) = tiered();
    run(&remote, &claim(1), &record("x"), HOUR).await;
    let other = claim(1).print(print_under_another_rule(2));
    assert_eq!(store.begin(&other).await.unwrap(), ClaimOutcome::Done(record("x")));
    assert_eq!(
        store.begin(&claim(1).print(print(2))).await.unwrap(),
        ClaimOutcome::Mismatch
    );
    assert_eq!(done(&store, 1).await, Some(record("x")));
    assert_eq!((remote.calls(Op::Begin), store.stats().hits), (2, 2));
}

#[tokio::test(start_paused = true)]
async fn claims_are_not_cached_nor_what_was_not_completed() {
    let (remote, store) = tiered();
    let begin = claim(1);
    store.begin(&begin).await.unwrap();
    assert!(matches!(
        store.begin(&claim(1)).await.unwrap(),
        ClaimOutcome::InFlight { .. }
    ));
    assert_eq!(
        store.begin(&claim(1).print(print(2))).await.unwrap(),
        ClaimOutcome::Mismatch
    );
    assert_eq!(store.renew(&begin.slot, begin.token, HOUR).await.unwrap(), Held::Yes);
    let lost = store.complete(&begin.slot, Token(0), &record("x"), HOUR).await.unwrap();
    assert_eq!((lost, store.stats().entries), (Held::Lost, 0));
    assert_eq!(store.release(&begin.slot, begin.token).await.unwrap(), Held::Yes);
    assert_eq!(store.begin(&begin).await.unwrap(), ClaimOutcome::started(1));
    assert_eq!((remote.calls(Op::Begin), store.stats().hits), (4, 0));
}

#[tokio::test(start_paused = true)]
async fn what_is_forgotten_here_is_not_replayed() {
    let (_, store) = tiered();
    let (begin, clone) = (claim(1), store.clone());
    run(&store, &begin, &record("x"), HOUR).await;
    run(&store, &claim(2), &record("y"), HOUR).await;
    assert!(clone.forget(&begin.slot).await.unwrap());
    assert_eq!(store.stats().entries, 1);
    run(&store, &claim(1), &record("new"), HOUR).await;
    assert_eq!(done(&clone, 1).await, Some(record("new")));
    assert_eq!(done(&clone, 2).await, Some(record("y")));
    assert_eq!(store.stats().hits, 2);
}

#[tokio::test(start_paused = true)]
async fn an_answer_from_before_a_forget_is_not_put_back_after_it() {
    for call in [Op::Begin, Op::Complete] {
        let (remote, store) = tiered();
        let (begin, old) = (claim(1), record("old"));
        let gate;
        let late = match call {
            Op::Complete => {
                store.begin(&begin).await.unwrap();
                gate = hold(&remote, call);
                let (store, old) = (store.clone(), old.clone());
                tokio::spawn(async move {
                    let held = store.complete(&begin.slot, begin.token, &old, HOUR).await;
                    assert_eq!(held.unwrap(), Held::Yes);
                })
            }
            _ => {
                run(&remote, &begin, &old, HOUR).await;
                gate = hold(&remote, call);
                let (store, old) = (store.clone(), old.clone());
                tokio::spawn(async move { assert_eq!(done(&store, 1).await, Some(old)) })
            }
        };
        gate.arrival().await;
        assert!(store.forget(&begin.slot).await.unwrap());
        gate.open_once();
        late.await.unwrap();
        assert_eq!(store.stats().entries, 0);
        assert_eq!(done(&store, 1).await, None);
    }
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_comes_while_a_forget_is_under_way_does_not_outlive_it() {
    let (remote, store) = tiered();
    let begin = claim(1);
    run(&remote, &begin, &record("old"), HOUR).await;
    // The question comes after the first removal, and its answer before the second.
    let gate = hold(&remote, Op::Forget);
    let forget = tokio::spawn({
        let store = store.clone();
        async move { store.forget(&claim(1).slot).await.unwrap() }
    });
    gate.arrival().await;
    // The network lets the question overtake: what it finds is from before.
    run(&remote, &begin, &record("old"), HOUR).await;
    assert!(done(&store, 1).await.is_some());
    assert_eq!(store.stats().entries, 1);
    gate.open_once();
    assert!(forget.await.unwrap());
    assert_eq!(store.stats().entries, 0);
}

#[tokio::test(start_paused = true)]
async fn a_cached_record_is_not_replayed_while_it_is_being_forgotten() {
    let (remote, store) = tiered();
    run(&store, &claim(1), &record("old"), HOUR).await;
    let gate = hold(&remote, Op::Forget);
    let begin = claim(1);
    let mut forget = pin!(store.forget(&begin.slot));
    assert!(poll_once(forget.as_mut()).await.is_pending());
    gate.arrival().await;
    assert_eq!(done(&store, 1).await, None);
    gate.open_once();
    assert!(forget.await.unwrap());
}

#[tokio::test(start_paused = true)]
async fn a_forget_that_fails_or_is_dropped_counts_as_well() {
    for fails in [true, false] {
        let (remote, store) = tiered();
        let begin = claim(1);
        run(&remote, &begin, &record("old"), HOUR).await;
        let gate = Gate::default();
        let act = match fails {
            true => Act::StopAfterEffectAndFail(gate.clone()),
            false => Act::StopAfterEffect(gate.clone()),
        };
        remote.once(Op::Forget, act);
        let mut forget = Box::pin(store.forget(&begin.slot));
        assert!(poll_once(forget.as_mut()).await.is_pending());
        run(&remote, &begin, &record("old"), HOUR).await;
        assert!(done(&store, 1).await.is_some());
        if fails {
            gate.open_once();
            assert!(forget.await.is_err());
        } else {
            drop(forget);
        }
        settle().await;
        assert_eq!(store.stats().entries, 0, "fails: {fails}");
    }
}

#[tokio::test(start_paused = true)]
async fn the_store_is_inspected_and_not_the_cache() {
    let (remote, store) = tiered();
    let begin = claim(1);
    run(&store, &begin, &record("x"), HOUR).await;
    remote.memory().forget(&begin.slot).await.unwrap();
    assert_eq!(store.look_up(&begin.slot).await.unwrap(), None);
    assert_eq!(store.count().await.unwrap(), Census::default());
    assert_eq!((remote.calls(Op::LookUp), remote.calls(Op::Count)), (1, 1));
    // Settling goes through the cache, and so is cached.
    store.begin(&claim(2)).await.unwrap();
    tokio::time::sleep(HOUR).await;
    let settled = store
        .settle(&claim(2).slot, &Response::new(Bytes::from_static(b"s")), HOUR)
        .await;
    assert!(settled.unwrap());
    let before = remote.calls(Op::Begin);
    assert_eq!(done(&store, 2).await, Some(record("s")));
    assert_eq!(remote.calls(Op::Begin), before);
    // The record is cached here, but elsewhere it was forgotten, and the next run died.
    run(&store, &claim(3), &record("x"), HOUR).await;
    remote.memory().forget(&claim(3).slot).await.unwrap();
    let died = claim(3).token(33).lease(Duration::ZERO);
    remote.memory().begin(&died).await.unwrap();
    let settled = store
        .settle(&claim(3).slot, &Response::new(Bytes::from_static(b"s")), HOUR)
        .await;
    assert!(settled.unwrap());
    let entry = remote.memory().look_up(&claim(3).slot).await.unwrap().unwrap();
    assert!(matches!(entry.phase, Phase::Done { .. }), "{entry:?}");
}

#[tokio::test(start_paused = true)]
async fn a_commit_that_is_done_is_cached_and_no_other() {
    let (remote, store) = tiered();
    assert!(store.unit_of_work(&claim(1)).is_none());
    let error = || StoreError::new(StoreErrorKind::Unavailable, "as the test wants");
    for (commit, cached) in [
        (Commit::Lost, false),
        (Commit::Failed(error()), false),
        (Commit::Unknown(error()), false),
        (Commit::Done, true),
    ] {
        let expected = format!("{commit:?}");
        remote.offer(Work::ending(commit));
        let work = store.unit_of_work(&claim(1)).unwrap();
        let mut extensions = Extensions::new();
        work.offer(&mut extensions);
        assert_eq!(extensions.get(), Some(&7u8));
        assert!(work.is_begun() && work.was_committed().await.unwrap());
        work.roll_back().await;
        let commit = work.commit(&record("x"), Duration::from_secs(10)).await;
        assert_eq!(format!("{commit:?}"), expected);
        assert_eq!(store.stats().entries, usize::from(cached), "{expected}");
    }
    assert_eq!(done(&store, 1).await, Some(record("x")));
    tokio::time::sleep(Duration::from_secs(10)).await;
    assert_eq!(done(&store, 1).await, None, "its TTL has ended");
}

#[tokio::test(start_paused = true)]
async fn the_cache_keeps_to_its_capacity() {
    for capacity in [64 * 1024, 1_000_000, 9 * 1024 * 1024] {
        let (remote, _) = tiered();
        let store = Tiered::builder(remote.clone()).capacity(capacity).build().unwrap();
        for at in 0..3000 {
            run(&store, &claim(at), &record(vec![b'x'; 4000]), HOUR).await;
            assert!(store.stats().bytes <= capacity as u64);
        }
        let stats = store.stats();
        assert!(stats.bytes as usize > capacity * 3 / 4, "{stats:?} of {capacity}");
        assert!(stats.bytes > stats.entries as u64 * 4150, "places count: {stats:?}");
        // What is not there is asked for, and answered all the same.
        for at in 0..3000 {
            assert!(done(&store, at).await.is_some());
        }
        // A record that does not fit is replayed from the store.
        run(&store, &claim(5000), &record(vec![b'x'; capacity]), HOUR).await;
        let before = remote.calls(Op::Begin);
        assert!(done(&store, 5000).await.is_some());
        assert_eq!(remote.calls(Op::Begin), before + 1);
        assert!(store.stats().bytes <= capacity as u64);
    }
}

#[test]
fn limits_that_cannot_work_are_refused() {
    let builder = || Tiered::builder(MemoryStore::new());
    let refused = |builder: tower_idempotency::store::TieredBuilder<MemoryStore>| builder.build().unwrap_err();
    assert_eq!(refused(builder().capacity(64 * 1024 - 1)).option(), "capacity");
    for age in [
        Duration::ZERO,
        Duration::from_nanos(999_999),
        Duration::from_millis(86_400_001),
    ] {
        let error = refused(builder().max_age(age));
        assert_eq!(error.option(), "max_age");
        assert!(error.to_string().contains("1 ms"), "{error}");
    }
    for age in [Duration::from_millis(1), Duration::from_secs(86_400)] {
        assert!(builder().max_age(age).capacity(64 * 1024).build().is_ok());
    }
}

#[tokio::test(start_paused = true)]
async fn debug_shows_no_contents() {
    let (_, store) = tiered();
    run(&store, &claim(1), &record("HUSH"), HOUR).await;
    let debug = format!("{store:?}");
    assert!(
        debug.contains("max_age: 60s") && debug.contains("entries: 1"),
        "{debug}"
    );
    assert!(debug.contains(&format!("capacity: {}", 64 * 1024 * 1024)), "{debug}");
    assert!(!debug.contains("HUSH") && !debug.contains("01010101"), "{debug}");
}
