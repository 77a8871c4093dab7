//! Who writes waits in one queue, and who reads does not.

use std::sync::atomic::{AtomicUsize, Ordering};

use axum::body::Body;
use http::Request;
use tokio::sync::Semaphore;
use tower::{Layer, ServiceExt, service_fn};
use tower_idempotency::IdempotencyLayer;

use super::*;
use crate::support::{Gate, ScriptedBody, Step, post, send, spawn};

/// A database that is never checkpointed, and whose lock is not waited for: whoever meets it fails.
async fn impatient(directory: &Directory) -> SqliteStore {
    // The last connection takes the lock as it closes.
    open(directory).await.pool().close().await;
    let options = options(directory).busy_timeout(Duration::ZERO);
    with(options.pragma("wal_autocheckpoint", "0")).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replay_waits_neither_for_a_handler_that_writes_nor_for_claims_that_wait() {
    let directory = Directory::new();
    let store = impatient(&directory).await;
    done(&store, &claim(1)).await;
    let handler = Handler::of(&store, &claim(2)).await;
    let work = handler.begin().await;
    let waiting: Vec<_> = (10..22)
        .map(|number| {
            let store = store.clone();
            tokio::spawn(async move { store.begin(&claim(number)).await })
        })
        .collect();
    for _ in 0..20 {
        let replay = watched(PATIENCE, store.begin(&claim(1))).await;
        assert_eq!(replay.unwrap(), ClaimOutcome::Done(record()));
        let duplicate = watched(PATIENCE, store.begin(&claim(2))).await.unwrap();
        assert!(matches!(duplicate, ClaimOutcome::InFlight { .. }), "{duplicate:?}");
        assert!(store.look_up(&claim(2).slot).await.unwrap().is_some());
    }
    assert!(waiting.iter().all(|waiting| !waiting.is_finished()));
    drop(work);
    assert!(matches!(handler.commit().await, Commit::Done));
    for waiting in waiting {
        assert_eq!(waiting.await.unwrap().unwrap(), ClaimOutcome::started(1));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_queue_is_told_at_once_and_what_waits_is_written_in_few_transactions() {
    let directory = Directory::new();
    let store = impatient(&directory).await;
    let handler = Handler::of(&store, &claim(1)).await;
    let work = handler.begin().await;
    let refused = Arc::new(AtomicUsize::new(0));
    let waiting: Vec<_> = (0..1124)
        .map(|number| {
            let (store, refused) = (store.clone(), Arc::clone(&refused));
            tokio::spawn(async move {
                let begun = store.begin(&claim(1000 + number)).await;
                refused.fetch_add(usize::from(begun.is_err()), Ordering::Relaxed);
                begun
            })
        })
        .collect();
    eventually("the queue is full", async || refused.load(Ordering::Relaxed) == 100).await;
    // Half of those who wait leave.
    let mut left = 0;
    let mut staying = Vec::new();
    for waiting in waiting {
        if waiting.is_finished() {
            let error = waiting.await.unwrap().unwrap_err();
            assert_told(
                &error,
                StoreErrorKind::Unavailable,
                &["begin", "1024 calls are already waiting"],
            );
            assert!(error.had_no_effect());
        } else if left < 512 {
            waiting.abort();
            left += 1;
            assert!(waiting.await.unwrap_err().is_cancelled());
        } else {
            staying.push(waiting);
        }
    }
    assert_eq!(staying.len(), 512);
    let before = commits(&directory.path("keys.db"));
    drop(work);
    drop(handler);
    for waiting in staying {
        assert_eq!(waiting.await.unwrap().unwrap(), ClaimOutcome::started(1));
    }
    assert_eq!(commits(&directory.path("keys.db")) - before, 512 / 128);
    assert_eq!(store.count().await.unwrap().running, 512 + 1, "who left has no claim");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_call_of_a_batch_gets_its_own_result() {
    const HELD: u64 = 37;
    let directory = Directory::new();
    let store = impatient(&directory).await;
    let of = |number: u64| {
        let body = Bytes::from(format!("the response of {number}"));
        Record::of_response(PRINT, &http::Response::new(body))
    };
    for number in 0..HELD {
        store.begin(&claim(number).token(number + 1)).await.unwrap();
    }
    done(&store, &claim(50)).await;
    let handler = Handler::of(&store, &claim(60)).await;
    let work = handler.begin().await;
    let completions = (0..HELD).map(|number| {
        let is_held = number % 3 != 2;
        let token = Token(if is_held { number + 1 } else { 1000 });
        let store = store.clone();
        tokio::spawn(async move {
            let held = store
                .complete(&claim(number).slot, token, &of(number), HOUR)
                .await
                .unwrap();
            assert_eq!(held, if is_held { Held::Yes } else { Held::Lost }, "{number}");
        })
    });
    let completions: Vec<_> = completions.collect();
    // The claim's own record is no reason to report the claim as lost.
    let renewals = (0..HELD).map(|number| {
        let store = store.clone();
        tokio::spawn(async move {
            let held = store.renew(&claim(number).slot, Token(number + 1), HOUR).await;
            assert_eq!(held.unwrap(), Held::Yes, "{number}");
        })
    });
    let renewals: Vec<_> = renewals.collect();
    let begin = |number| {
        let store = store.clone();
        tokio::spawn(async move { store.begin(&claim(number)).await.unwrap() })
    };
    let begins: Vec<_> = (100..123).map(|number| [begin(number), begin(number)]).collect();
    let replay = begin(50);
    let before = commits(&directory.path("keys.db"));
    // The lane takes its jobs when it is its turn.
    tokio::time::sleep(Duration::from_millis(200)).await;
    drop(work);
    drop(handler);
    for call in completions.into_iter().chain(renewals) {
        call.await.unwrap();
    }
    for [one, other] in begins {
        let outcomes = [one.await.unwrap(), other.await.unwrap()];
        let started = outcomes.iter().filter(|outcome| **outcome == ClaimOutcome::started(1));
        assert_eq!(started.count(), 1, "{outcomes:?}");
        assert!(
            outcomes
                .iter()
                .any(|outcome| matches!(outcome, ClaimOutcome::InFlight { .. })),
            "{outcomes:?}"
        );
    }
    assert_eq!(replay.await.unwrap(), ClaimOutcome::Done(record()));
    assert_eq!(
        commits(&directory.path("keys.db")) - before,
        1,
        "all in one transaction"
    );
    for number in 0..HELD {
        let outcome = store.begin(&claim(number)).await.unwrap();
        match number % 3 {
            2 => assert!(
                matches!(outcome, ClaimOutcome::InFlight { .. }),
                "{number}: {outcome:?}"
            ),
            _ => assert_eq!(outcome, ClaimOutcome::Done(of(number)), "{number}"),
        }
    }
}

/// Through two pools, one of which knows the file by another name, with transactions that are committed,
/// rolled back, dropped, and given up before they begin.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_in_the_process_meets_the_lock_of_another() {
    const OPERATIONS: u64 = 120;
    let directory = Directory::new();
    let store = impatient(&directory).await;
    execute(&store, "CREATE TABLE charges (id INTEGER NOT NULL)").await;
    #[cfg(unix)]
    std::os::unix::fs::symlink(directory.path("keys.db"), directory.path("link.db")).unwrap();
    #[cfg(not(unix))]
    std::fs::hard_link(directory.path("keys.db"), directory.path("link.db")).unwrap();
    let other = with(
        options(&directory)
            .filename(directory.path("link.db"))
            .busy_timeout(Duration::ZERO),
    )
    .await;
    // As many as the pools have connections, so that nobody waits for one for long.
    let at_once = Arc::new(Semaphore::new(8));
    let operations: Vec<_> = (0..OPERATIONS)
        .map(|number| {
            let store = if number % 2 == 0 { store.clone() } else { other.clone() };
            let at_once = Arc::clone(&at_once);
            tokio::spawn(async move {
                let _place = at_once.acquire().await.unwrap();
                let claim = claim(number).token(number);
                let handler = Handler::of(&store, &claim).await;
                if number % 5 == 4 {
                    let mut begin = Box::pin(handler.transaction.begin());
                    let _ = poll_once(begin.as_mut()).await;
                    drop(begin);
                    drop(handler);
                    assert_eq!(store.release(&claim.slot, claim.token).await.unwrap(), Held::Yes);
                    return;
                }
                let mut work = handler.begin().await;
                let charge = sqlx::query("INSERT INTO charges VALUES (?1)").bind(number as i64);
                charge.execute(&mut *work).await.unwrap();
                tokio::task::yield_now().await;
                drop(work);
                match number % 5 {
                    0 | 1 => assert!(matches!(handler.commit().await, Commit::Done)),
                    2 => {
                        handler.unit.roll_back().await;
                        assert_eq!(store.renew(&claim.slot, claim.token, HOUR).await.unwrap(), Held::Yes);
                    }
                    _ => {
                        drop(handler);
                        let held = store.complete(&claim.slot, claim.token, &record(), HOUR).await;
                        assert_eq!(held.unwrap(), Held::Yes);
                    }
                }
            })
        })
        .collect();
    for operation in operations {
        operation.await.unwrap();
    }
    let charges: i64 = sqlx::query_scalar("SELECT count(*) FROM charges")
        .fetch_one(store.pool())
        .await
        .unwrap();
    assert_eq!(charges as u64, OPERATIONS * 2 / 5);
    let census = store.count().await.unwrap();
    assert_eq!((census.done, census.running), (OPERATIONS * 3 / 5, OPERATIONS / 5));
}

/// A holder's renewal that waited as long as another's claim is written first.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lapsed_claim_that_was_renewed_while_a_handler_wrote_is_not_taken_over() {
    let directory = Directory::new();
    let store = impatient(&directory).await;
    let lapsed = claim(1).token(1).lease(Duration::ZERO);
    store.begin(&lapsed).await.unwrap();
    let handler = Handler::of(&store, &claim(2)).await;
    let work = handler.begin().await;
    let (taking, renewing) = (store.clone(), store.clone());
    let mut takeover = Box::pin(async move { taking.begin(&claim(1).token(2)).await });
    let mut renewal = Box::pin(async move { renewing.renew(&claim(1).slot, Token(1), HOUR).await });
    // The takeover is in the queue before the renewal.
    for _ in 0..20 {
        assert!(poll_once(takeover.as_mut()).await.is_pending());
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    assert!(poll_once(renewal.as_mut()).await.is_pending());
    drop(work);
    drop(handler);
    let (takeover, renewal) = tokio::join!(takeover, renewal);
    assert_eq!(renewal.unwrap(), Held::Yes);
    assert!(matches!(takeover.unwrap(), ClaimOutcome::InFlight { .. }));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_caller_that_leaves_while_it_writes_holds_up_nobody() {
    let directory = Directory::new();
    drop(open(&directory).await);
    let store = with(options(&directory).busy_timeout(PATIENCE)).await;
    store.begin(&claim(1)).await.unwrap();
    // As another process does, which knows nothing of the queue.
    let lock = store.pool().begin_with("BEGIN IMMEDIATE").await.unwrap();
    for number in 2..5 {
        let claim = claim(number);
        let mut leaving = Box::pin(store.begin(&claim));
        for _ in 0..20 {
            assert!(poll_once(leaving.as_mut()).await.is_pending());
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
    lock.rollback().await.unwrap();
    let handler = Handler::of(&store, &claim(10)).await;
    drop(handler.begin().await);
    assert!(matches!(handler.commit().await, Commit::Done));
}

#[test]
fn each_runtime_has_connections_of_its_own() {
    let runtime = || {
        let mut builder = tokio::runtime::Builder::new_current_thread();
        builder.enable_all().build().unwrap()
    };
    let directory = Directory::new();
    let first = runtime();
    let store = first.block_on(open(&directory));
    first.block_on(async { done(&store, &claim(1)).await });
    let second = runtime();
    second.block_on(async { done(&store, &claim(2)).await });
    drop(first);
    second.block_on(async {
        assert_eq!(store.begin(&claim(1)).await.unwrap(), ClaimOutcome::Done(record()));
        done(&store, &claim(3)).await;
    });
}

#[tokio::test]
async fn a_closed_pool_is_told_and_the_file_is_let_go() {
    let directory = Directory::new();
    let store = open(&directory).await;
    done(&store, &claim(1)).await;
    store.pool().close().await;
    let error = store.begin(&claim(2)).await.unwrap_err();
    assert_told(&error, StoreErrorKind::Unavailable, &["begin", "pool is closed"]);
    // The last connection removes the log as it closes.
    eventually("the file is closed", async || {
        let _ = store.begin(&claim(1)).await;
        !directory.path("keys.db-wal").exists()
    })
    .await;
}

/// Atomic mode reads a response before it commits. One that does not end is committed as a stream.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_body_that_does_not_end_holds_the_writer_no_longer_than_it_is_waited_for() {
    let directory = Directory::new();
    let store = impatient(&directory).await;
    let layer = IdempotencyLayer::builder(store.clone())
        .response_body_within(Duration::from_millis(50))
        .build()
        .unwrap();
    let service = layer.layer(service_fn(async |request: Request<Body>| {
        let transaction = request.extensions().get::<Transaction<Sqlite>>().unwrap().clone();
        drop(transaction.begin().await.unwrap());
        Ok::<_, std::convert::Infallible>(Response::new(ScriptedBody::new([Step::Hang])))
    }));
    let response = watched(PATIENCE, service.oneshot(post("/", "k", "{}"))).await.unwrap();
    assert_eq!(response.status(), 200);
    // Its body has not ended.
    assert_eq!(
        watched(PATIENCE, store.begin(&claim(1))).await.unwrap(),
        ClaimOutcome::started(1)
    );
    drop(response);
}

/// While a body is read, the writer is held: replays go on, and who wants to write gets an answer in time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_body_costs_other_first_requests_their_store_timeout_at_most() {
    let directory = Directory::new();
    let store = impatient(&directory).await;
    let layer = IdempotencyLayer::builder(store.clone())
        .store_timeout(Duration::from_secs(2))
        .without_circuit_breaker()
        .response_body_within(PATIENCE)
        .build()
        .unwrap();
    let gate = Gate::default();
    let slow = gate.clone();
    let service = layer.layer(service_fn(move |request: Request<Body>| {
        let slow = slow.clone();
        async move {
            if request.uri().path() != "/slow" {
                return Ok::<_, std::convert::Infallible>(Response::new(ScriptedBody::from("quick")));
            }
            let transaction = request.extensions().get::<Transaction<Sqlite>>().unwrap().clone();
            drop(transaction.begin().await.unwrap());
            Ok(Response::new(ScriptedBody::new([
                Step::Data("slow".into()),
                Step::Stop(slow),
            ])))
        }
    }));
    // Each connection is made, however long that takes here.
    let known = eventually("the store is quick enough", async || {
        let answer = send(&service, post("/quick", "known", "{}")).await;
        (answer.status == 200).then_some(answer)
    })
    .await;
    let first = spawn(&service, post("/slow", "slow", "{}"));
    gate.arrival().await;
    let refused = watched(PATIENCE, send(&service, post("/quick", "new", "{}"))).await;
    refused.assert_problem(503, "store-unavailable");
    assert!(refused.header("retry-after").is_some());
    let replay = watched(PATIENCE, send(&service, post("/quick", "known", "{}"))).await;
    replay.assert_replay_of(&known);
    gate.open();
    let first = watched(PATIENCE, first).await.unwrap();
    assert_eq!((first.status.as_u16(), first.outcome()), (200, "executed"));
    let retried = eventually("the retry", async || {
        let answer = send(&service, post("/quick", "new", "{}")).await;
        (answer.status == 200).then_some(answer)
    })
    .await;
    assert_eq!(retried.outcome(), "executed");
    send(&service, post("/slow", "slow", "{}"))
        .await
        .assert_replay_of(&first);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_handler_that_waits_too_long_for_its_turn_gets_an_error() {
    let directory = Directory::new();
    drop(open(&directory).await);
    let pool = SqlitePoolOptions::new()
        .min_connections(2)
        .max_connections(2)
        .acquire_timeout(Duration::from_secs(3));
    let store = SqliteStore::new(pool.connect_with(options(&directory)).await.unwrap());
    let (first, second) = (
        Handler::of(&store, &claim(1)).await,
        Handler::of(&store, &claim(2)).await,
    );
    let work = first.begin().await;
    let error = watched(PATIENCE, second.transaction.begin()).await.unwrap_err();
    assert!(error.is_transient());
    let told = error.as_sqlx_error().unwrap().to_string();
    assert!(told.contains("other writers") && told.contains("3s"), "{told}");
    drop(work);
    assert!(matches!(first.commit().await, Commit::Done));
    // It lost nothing by it.
    drop(second.begin().await);
    assert!(matches!(second.commit().await, Commit::Done));
}
