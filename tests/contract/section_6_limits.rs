//! Section 6 of the contract: limits, and stores that fail.

use std::convert::Infallible;
use std::future::ready;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, StatusCode};
use tower::{Layer, ServiceExt, service_fn};
use tower_idempotency::store::{DynStore, Record, StoreErrorKind, WhenFull};
use tower_idempotency::{
    Fingerprint, IdempotencyKey, IdempotencyLayer, IdempotencyLayerBuilder, IdempotencyService, MemoryStore, Store,
};

use crate::support::store::{Act, Op, Scripted};
use crate::support::{
    Count, Gate, Inner, ScriptedBody, Step, capture, counted, drain, inner, ok, post, read, send, settle, spawn,
};

/// Answers each run with its number and attempt, under that status.
fn numbered<St: Store>(
    layer: &IdempotencyLayer<St>,
    runs: &Count,
    status: StatusCode,
) -> IdempotencyService<Inner, St> {
    let runs = runs.clone();
    layer.layer(inner(move |request: Request<_>| {
        let attempt = request.extensions().get().map_or(0, IdempotencyKey::attempt);
        let mut response = ok(format!("run {} attempt {attempt}", runs.up()));
        *response.status_mut() = status;
        ready(response)
    }))
}

/// Sends a body of these steps, with or without a key.
async fn send_body(
    builder: IdempotencyLayerBuilder<Scripted>,
    key: Option<&str>,
    body: ScriptedBody,
    runs: &Count,
) -> crate::support::Answer {
    let runs = runs.clone();
    let service = builder
        .build()
        .unwrap()
        .layer(service_fn(move |request: Request<ScriptedBody>| {
            let run = runs.up();
            async move {
                let body = http_body_util::BodyExt::collect(request.into_body()).await;
                let length = body.map(|body| body.to_bytes().len());
                Ok::<_, Infallible>(ok(format!("run {run} of {}", length.unwrap_or_default())))
            }
        }));
    let mut request = Request::post("/");
    if let Some(key) = key {
        request = request.header("idempotency-key", key);
    }
    send(&service, request.body(body).unwrap()).await
}

fn chunks(lengths: &[usize]) -> Vec<Step> {
    let chunk = |length: &usize| Step::Data(Bytes::from(vec![b'x'; *length]));
    lengths.iter().map(chunk).collect()
}

#[tokio::test(start_paused = true)]
async fn contract_6_1_a_body_over_the_limit_is_413_declared_or_chunked() {
    for (steps, declared, allowed) in [
        (chunks(&[10]), None, true),
        (chunks(&[10]), Some(10), true),
        (chunks(&[4, 0, 6]), None, true),
        (chunks(&[]), None, true),
        (chunks(&[11]), None, false),
        (chunks(&[11]), Some(11), false),
        (chunks(&[4, 6, 1]), None, false),
        (chunks(&[4, 7]), None, false),
    ] {
        let (store, runs) = (Scripted::default(), Count::default());
        let builder = IdempotencyLayer::builder(store.clone()).max_request_body(10);
        let mut body = ScriptedBody::new(steps.clone());
        if let Some(declared) = declared {
            body = body.declaring(declared);
        }
        let answer = send_body(builder, Some("k"), body, &runs).await;
        if allowed {
            assert_eq!((answer.status.as_u16(), runs.get()), (200, 1), "{steps:?}");
        } else {
            answer.assert_problem(413, "body-too-large");
            assert_eq!(answer.outcome(), "body-too-large");
            assert_eq!((runs.get(), store.calls(Op::Begin)), (0, 0), "{steps:?}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn contract_6_1_the_limit_is_2_mib_by_default() {
    const MIB: usize = 1024 * 1024;
    for (bytes, allowed) in [(2 * MIB, true), (2 * MIB + 1, false)] {
        let runs = Count::default();
        let builder = IdempotencyLayer::builder(Scripted::default());
        let body = ScriptedBody::from(Bytes::from(vec![0; bytes]));
        let answer = send_body(builder, Some("k"), body, &runs).await;
        assert_eq!(answer.status == 200, allowed, "{bytes}");
        // Without a key the layer's limit does not apply.
        let builder = IdempotencyLayer::builder(Scripted::default());
        let body = ScriptedBody::from(Bytes::from(vec![0; bytes]));
        let answer = send_body(builder, None, body, &runs).await;
        assert!(answer.text().ends_with(&format!("of {bytes}")), "{}", answer.text());
    }
}

#[tokio::test(start_paused = true)]
async fn contract_6_1_what_is_over_the_limit_is_not_read() {
    // Declared: nothing is read.
    let (polled, runs) = (Count::default(), Count::default());
    let builder = || IdempotencyLayer::builder(Scripted::default()).max_request_body(10);
    let body = ScriptedBody::new([Step::Hang]).declaring(u64::MAX).counting(&polled);
    send_body(builder(), Some("k"), body, &runs)
        .await
        .assert_problem(413, "body-too-large");
    assert_eq!(polled.get(), 0);
    // Without end: not more than the limit and one frame.
    let endless = std::iter::repeat_n(Step::Data(Bytes::from_static(b"xxx")), 1000);
    let body = ScriptedBody::new(endless).counting(&polled);
    send_body(builder(), Some("k"), body, &runs)
        .await
        .assert_problem(413, "body-too-large");
    assert_eq!(polled.get(), 4);
}

#[tokio::test(start_paused = true)]
async fn contract_6_2_a_body_that_fails_is_400_and_nothing_is_kept() {
    for steps in [
        vec![Step::Fail],
        vec![Step::Data("half".into()), Step::Yield, Step::Fail],
    ] {
        let (store, runs) = (Scripted::default(), Count::default());
        let builder = || IdempotencyLayer::builder(store.clone());
        let answer = send_body(builder(), Some("k"), ScriptedBody::new(steps), &runs).await;
        answer.assert_problem(400, "body-unreadable");
        assert_eq!(answer.outcome(), "body-unreadable");
        assert_eq!((runs.get(), store.calls(Op::Begin)), (0, 0));
        assert_eq!(store.memory().stats().entries, 0);
        let whole = send_body(builder(), Some("k"), ScriptedBody::from("whole"), &runs).await;
        assert_eq!(whole.text(), "run 1 of 5");
    }
}

#[tokio::test(start_paused = true)]
async fn contract_6_2_a_body_shorter_than_declared_counts_by_what_came() {
    // That it broke off is for the body to say, which hyper's does; the layer does not guess.
    let runs = Count::default();
    let body = ScriptedBody::new(chunks(&[4])).declaring(8);
    let builder = IdempotencyLayer::builder(Scripted::default());
    let answer = send_body(builder, Some("k"), body, &runs).await;
    assert_eq!(answer.text(), "run 1 of 4");
}

#[tokio::test(start_paused = true)]
async fn contract_6_3_a_store_that_fails_before_the_handler_is_503() {
    for act in [Act::Fail, Act::Hang] {
        let (store, runs) = (Scripted::default(), Count::default());
        let layer = IdempotencyLayer::new(store.clone());
        let service = numbered(&layer, &runs, StatusCode::OK);
        store.once(Op::Begin, act.clone());
        let asked = tokio::time::Instant::now();
        let answer = send(&service, post("/", "k", "b")).await;
        answer.assert_problem(503, "store-unavailable");
        assert!(answer.header("retry-after").is_some());
        assert_eq!((answer.outcome(), runs.get()), ("store-unavailable", 0));
        let waited = if matches!(act, Act::Hang) { 5 } else { 0 };
        assert_eq!(asked.elapsed(), Duration::from_secs(waited), "5 s is the default");
        let retry = send(&service, post("/", "k", "b")).await;
        assert_eq!(retry.text(), "run 1 attempt 1");
    }
}

#[tokio::test(start_paused = true)]
async fn contract_6_3_the_store_timeout_can_be_changed() {
    let store = Scripted::default();
    store.always(Op::Begin, Act::Hang);
    let layer = IdempotencyLayer::builder(store)
        .store_timeout(Duration::from_millis(70))
        .build()
        .unwrap();
    let service = numbered(&layer, &Count::default(), StatusCode::OK);
    let asked = tokio::time::Instant::now();
    send(&service, post("/", "k", "b"))
        .await
        .assert_problem(503, "store-unavailable");
    assert_eq!(asked.elapsed(), Duration::from_millis(70));
}

#[tokio::test(start_paused = true)]
async fn contract_6_3_a_record_that_cannot_be_decoded_never_lets_a_request_run() {
    let (store, runs) = (Scripted::default(), Count::default());
    let layer = IdempotencyLayer::builder(store.clone())
        .run_unprotected_when_store_fails()
        .build()
        .unwrap();
    let service = numbered(&layer, &runs, StatusCode::OK);
    store.always(Op::Begin, Act::Corrupt);
    for _ in 0..10 {
        send(&service, post("/", "k", "b"))
            .await
            .assert_problem(503, "store-unavailable");
    }
    assert_eq!(
        (runs.get(), store.calls(Op::Begin)),
        (0, 10),
        "an answer is no failure of the store"
    );
}

#[tokio::test(start_paused = true)]
async fn contract_6_3_while_the_store_is_away_requests_are_refused_at_once() {
    let (store, runs) = (Scripted::default(), Count::default());
    let layer = IdempotencyLayer::builder(store.clone())
        .store_timeout(Duration::from_secs(2))
        .circuit_breaker(3, Duration::from_secs(10))
        .build()
        .unwrap();
    let service = numbered(&layer, &runs, StatusCode::OK);
    store.always(Op::Begin, Act::Hang);
    let asked = tokio::time::Instant::now();
    for _ in 0..3 {
        send(&service, post("/", "k", "b"))
            .await
            .assert_problem(503, "store-unavailable");
    }
    assert_eq!(asked.elapsed(), Duration::from_secs(6));
    let calls = store.calls(Op::Begin);
    for _ in 0..100 {
        send(&service, post("/", "k", "b"))
            .await
            .assert_problem(503, "store-unavailable");
    }
    assert_eq!(asked.elapsed(), Duration::from_secs(6), "no time passes");
    // One request at a time looks for the store; the others are refused meanwhile.
    tokio::time::sleep(Duration::from_secs(10)).await;
    let gate = Gate::default();
    store.always(Op::Begin, Act::Stop(gate.clone()));
    let probe = spawn(&service, post("/", "probe", "b"));
    gate.arrival().await;
    send(&service, post("/", "k", "b"))
        .await
        .assert_problem(503, "store-unavailable");
    gate.open();
    assert!(probe.await.unwrap().text().starts_with("run 1"));
    assert!(send(&service, post("/", "k", "b")).await.text().starts_with("run 2"));
    assert!(store.calls(Op::Begin) > calls, "asked again");
}

#[tokio::test(start_paused = true)]
async fn contract_6_3_the_breaker_can_be_disabled() {
    let store = Scripted::default();
    let layer = IdempotencyLayer::builder(store.clone())
        .without_circuit_breaker()
        .settle_within(Duration::ZERO)
        .build()
        .unwrap();
    let service = numbered(&layer, &Count::default(), StatusCode::OK);
    for _ in 0..20 {
        store.once(Op::Begin, Act::Fail);
        send(&service, post("/", "k", "b"))
            .await
            .assert_problem(503, "store-unavailable");
    }
    assert!(send(&service, post("/", "k", "b")).await.text().starts_with("run 1"));
}

#[tokio::test(start_paused = true)]
async fn contract_6_3_fail_open_runs_unprotected_and_reports_it() {
    capture::install();
    for act in [Act::Fail, Act::Hang] {
        let (store, runs) = (Scripted::default(), Count::default());
        let layer = IdempotencyLayer::builder(store.clone())
            .run_unprotected_when_store_fails()
            .build()
            .unwrap();
        let service = numbered(&layer, &runs, StatusCode::OK);
        store.always(Op::Begin, act.clone());
        capture::take();
        for run in 1..=2 {
            let answer = send(&service, post("/", "k", "b")).await;
            assert_eq!(answer.status.as_u16(), 200);
            assert!(answer.text().starts_with(&format!("run {run}")), "{}", answer.text());
            assert_eq!(answer.outcome(), "unprotected");
        }
        assert_eq!(counted(&layer, "unprotected"), 2);
        let events = capture::take();
        let warned = |event: &&capture::Captured| event.level <= tracing::Level::WARN;
        assert_eq!(events.iter().filter(warned).count(), 2, "{act:?}: {events:?}");
        // What the client did wrong is refused all the same.
        send(&service, post("/", "", "b"))
            .await
            .assert_problem(400, "invalid-key");
        store.always(Op::Begin, Act::Pass);
        let first = send(&service, post("/", "k", "b")).await;
        assert_eq!(first.outcome(), "executed");
        send(&service, post("/", "k", "b")).await.assert_replay_of(&first);
    }
}

#[tokio::test(start_paused = true)]
async fn contract_6_3_a_store_that_is_full_is_503_for_new_keys_only() {
    let memory = MemoryStore::builder()
        .budget(64 * 1024)
        .when_full(WhenFull::RefuseNew)
        .build()
        .unwrap();
    let layer = IdempotencyLayer::new(DynStore::new(memory));
    let service = layer.layer(inner(|_| ready(ok(vec![b'x'; 16 * 1024]))));
    let mut refused = 0;
    for key in 0..10 {
        let answer = send(&service, post("/", &key.to_string(), "b")).await;
        if answer.status != 200 {
            answer.assert_problem(503, "store-unavailable");
            refused += 1;
        }
    }
    assert!(refused >= 4, "{refused}");
    assert!(send(&service, post("/", "0", "b")).await.is_replay());
}

/// A claim that the store made, and whose answer was lost, was never run.
#[tokio::test(start_paused = true)]
async fn contract_6_3_a_claim_whose_answer_was_lost_is_given_back() {
    for act in [Act::FailAfterEffect, Act::HangAfterEffect] {
        let (store, runs) = (Scripted::default(), Count::default());
        let layer = IdempotencyLayer::new(store.clone());
        let service = numbered(&layer, &runs, StatusCode::OK);
        store.once(Op::Begin, act.clone());
        send(&service, post("/", "k", "b"))
            .await
            .assert_problem(503, "store-unavailable");
        // As `Retry-After` says.
        tokio::time::sleep(Duration::from_secs(1)).await;
        drain(&layer).await;
        let retry = send(&service, post("/", "k", "b")).await;
        assert_eq!(retry.text(), "run 1 attempt 1", "{act:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn contract_6_4_a_store_that_fails_after_the_handler_delays_nothing_but_the_record() {
    for act in [Act::Fail, Act::Hang, Act::Corrupt] {
        let (store, runs) = (Scripted::default(), Count::default());
        let layer = IdempotencyLayer::new(store.clone());
        let service = numbered(&layer, &runs, StatusCode::OK);
        store.once(Op::Complete, act.clone());
        store.once(Op::Complete, act.clone());
        let asked = tokio::time::Instant::now();
        let first = send(&service, post("/", "k", "b")).await;
        assert_eq!((first.status.as_u16(), first.text()), (200, "run 1 attempt 1"));
        assert!(asked.elapsed() <= Duration::from_secs(5), "{:?}", asked.elapsed());
        assert_eq!(layer.background().len(), 1);
        send(&service, post("/", "k", "b"))
            .await
            .assert_problem(409, "in-flight");
        send(&service, post("/", "k", "other"))
            .await
            .assert_problem(422, "key-reused");
        drain(&layer).await;
        assert_eq!(store.calls(Op::Complete), 3);
        send(&service, post("/", "k", "b")).await.assert_replay_of(&first);
        assert_eq!(runs.get(), 1);
    }
}

#[tokio::test(start_paused = true)]
async fn contract_6_4_a_record_whose_answer_was_lost_is_replayed_at_once() {
    let (store, runs) = (Scripted::default(), Count::default());
    let layer = IdempotencyLayer::new(store.clone());
    let service = numbered(&layer, &runs, StatusCode::OK);
    store.once(Op::Complete, Act::FailAfterEffect);
    let first = send(&service, post("/", "k", "b")).await;
    send(&service, post("/", "k", "b")).await.assert_replay_of(&first);
    drain(&layer).await;
    send(&service, post("/", "k", "b")).await.assert_replay_of(&first);
    assert_eq!((runs.get(), store.calls(Op::Complete)), (1, 2));
}

#[tokio::test(start_paused = true)]
async fn contract_6_4_a_release_that_fails_is_tried_again_too() {
    let (store, runs) = (Scripted::default(), Count::default());
    let layer = IdempotencyLayer::new(store.clone());
    let service = numbered(&layer, &runs, StatusCode::BAD_GATEWAY);
    store.once(Op::Release, Act::Fail);
    assert_eq!(send(&service, post("/", "k", "b")).await.status.as_u16(), 502);
    drain(&layer).await;
    let second = send(&service, post("/", "k", "other")).await;
    assert_eq!(second.text(), "run 2 attempt 1");
}

#[tokio::test(start_paused = true)]
async fn contract_6_4_it_is_tried_within_bounds() {
    let (store, runs) = (Scripted::default(), Count::default());
    let layer = IdempotencyLayer::builder(store.clone())
        .settle_within(Duration::from_secs(20))
        .build()
        .unwrap();
    let service = numbered(&layer, &runs, StatusCode::OK);
    store.always(Op::Complete, Act::Fail);
    send(&service, post("/", "k", "b")).await;
    let asked = tokio::time::Instant::now();
    drain(&layer).await;
    assert_eq!(asked.elapsed().as_secs(), 20);
    let calls = store.calls(Op::Complete);
    assert!(
        (5..=60).contains(&calls),
        "neither a busy loop nor a single try: {calls}"
    );
    tokio::time::sleep(Duration::from_secs(600)).await;
    assert_eq!(store.calls(Op::Complete), calls);
}

/// The store takes claims all the while; only the record does not get through.
#[tokio::test(start_paused = true)]
async fn contract_6_4_the_lease_keeps_a_retry_from_running_as_long_as_storing_is_tried() {
    let (store, runs) = (Scripted::default(), Count::default());
    let layer = IdempotencyLayer::new(store.clone());
    let service = numbered(&layer, &runs, StatusCode::OK);
    store.always(Op::Complete, Act::Fail);
    let first = send(&service, post("/", "k", "b")).await;
    // Twice the lease, and well within the five minutes for which it is tried.
    for second in 0..60 {
        tokio::time::sleep(Duration::from_secs(1)).await;
        let retry = send(&service, post("/", "k", "b")).await;
        assert_eq!((retry.outcome(), runs.get()), ("in-flight", 1), "after {second} s");
    }
    store.always(Op::Complete, Act::Pass);
    drain(&layer).await;
    send(&service, post("/", "k", "b")).await.assert_replay_of(&first);
}

#[tokio::test(start_paused = true)]
async fn contract_6_4_a_renewal_that_never_answers_does_not_hold_the_response_up() {
    let (store, runs) = (Scripted::default(), Count::default());
    store.always(Op::Renew, Act::Hang);
    let layer = IdempotencyLayer::builder(store.clone())
        .lease(Duration::from_secs(3))
        .build()
        .unwrap();
    let gate = Gate::default();
    let (stop, counter) = (gate.clone(), runs.clone());
    let service = layer.layer(inner(move |_| {
        let (stop, run) = (stop.clone(), counter.up());
        async move {
            stop.pass().await;
            ok(format!("run {run}"))
        }
    }));
    let first = spawn(&service, post("/", "k", "b"));
    gate.arrival().await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(store.calls(Op::Renew), 1);
    gate.open();
    let asked = tokio::time::Instant::now();
    assert_eq!(first.await.unwrap().outcome(), "executed");
    assert!(asked.elapsed().is_zero());
}

#[tokio::test(start_paused = true)]
async fn contract_6_5_what_cannot_be_decoded_is_503_and_never_a_wrong_replay() {
    let (store, runs) = (Scripted::default(), Count::default());
    let layer = IdempotencyLayer::new(store.clone());
    let service = numbered(&layer, &runs, StatusCode::OK);
    let first = send(&service, post("/", "k", "b")).await;
    store.once(Op::Begin, Act::Corrupt);
    let answer = send(&service, post("/", "k", "b")).await;
    answer.assert_problem(503, "store-unavailable");
    assert!(answer.header("retry-after").is_some());
    assert_eq!((answer.outcome(), runs.get()), ("store-unavailable", 1));
    send(&service, post("/", "k", "b")).await.assert_replay_of(&first);
}

#[tokio::test(start_paused = true)]
async fn contract_6_5_damaged_and_newer_records_are_told_by_their_bytes() {
    let store = Scripted::default();
    let layer = IdempotencyLayer::new(store.clone());
    let service = numbered(&layer, &Count::default(), StatusCode::OK);
    send(&service, post("/", "k", "b")).await;
    let stored = store.records()[0].to_bytes();
    assert_eq!(Record::from_bytes(&stored).unwrap(), store.records()[0]);
    for at in 0..stored.len() {
        let mut damaged = stored.clone();
        damaged[at] ^= 0x20;
        let error = Record::from_bytes(&damaged).expect_err("damage is noticed");
        assert_eq!(error.kind(), StoreErrorKind::Corrupt, "byte {at}");
        let error = Record::from_bytes(&stored[..at]).expect_err("a cut is noticed");
        assert_eq!(error.kind(), StoreErrorKind::Corrupt, "cut at {at}");
    }
    let mut newer = stored;
    newer[0] = 2;
    let error = Record::from_bytes(&newer).expect_err("a newer version");
    assert!(error.to_string().contains("newer"), "{error}");
    assert_eq!(
        Record::outcome_unknown(Fingerprint::from_bytes([1; 16])).fingerprint(),
        Fingerprint::from_bytes([1; 16])
    );
}

#[tokio::test(start_paused = true)]
async fn contract_6_3_to_6_5_a_response_is_never_lost_to_the_store() {
    // Whatever the store does after the handler ran, its answer comes, whole and once.
    for op in [Op::Complete, Op::Renew] {
        for act in [
            Act::Fail,
            Act::Hang,
            Act::FailAfterEffect,
            Act::HangAfterEffect,
            Act::Corrupt,
            Act::Lost,
            Act::Late(7),
        ] {
            let store = Scripted::default();
            store.always(op, act.clone());
            let layer = IdempotencyLayer::builder(store)
                .lease(Duration::from_secs(1))
                .build()
                .unwrap();
            let service = layer.layer(inner(|_| async {
                tokio::time::sleep(Duration::from_secs(10)).await;
                ok("the answer")
            }));
            let response = service.oneshot(post("/", "k", "b")).await.unwrap();
            assert_eq!(read(response).await.text(), "the answer", "{op:?} {act:?}");
            settle().await;
        }
    }
}

#[test]
fn contract_6_6_without_a_timer_a_request_is_refused_before_the_handler_runs() {
    let runs = Count::default();
    let layer = IdempotencyLayer::new(MemoryStore::new());
    let service = numbered(&layer, &runs, StatusCode::OK);
    let without_timer = tokio::runtime::Builder::new_current_thread().build().unwrap();
    for _ in 0..2 {
        let answer = without_timer.block_on(tower::ServiceExt::oneshot(service.clone(), post("/", "k", "b")));
        assert_eq!(answer.unwrap().status(), 500);
        // Nothing that needs a timer goes on in the background.
        without_timer.block_on(async {
            for _ in 0..20 {
                tokio::task::yield_now().await;
            }
        });
    }
    assert_eq!(runs.get(), 0);
    // On a runtime that has one it works, whatever was before.
    let with_timer = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .unwrap();
    let answer = with_timer.block_on(send(&service, post("/", "k", "b")));
    assert_eq!((answer.status.as_u16(), runs.get()), (200, 1));
}

/// The store fails while a duplicate waits. It is known by then that the operation runs.
#[tokio::test(start_paused = true)]
async fn contract_6_3_a_duplicate_that_waits_does_not_run_unprotected() {
    let (store, runs, gate) = (Scripted::default(), Count::default(), Gate::default());
    let layer = IdempotencyLayer::builder(store.clone())
        .run_unprotected_when_store_fails()
        .wait(Duration::from_secs(10))
        .build()
        .unwrap();
    let (counts, stop) = (runs.clone(), gate.clone());
    let service = layer.layer(inner(move |_: Request<_>| {
        let (run, stop) = (counts.up(), stop.clone());
        async move {
            stop.pass().await;
            ok(format!("run {run}"))
        }
    }));
    let first = spawn(&service, post("/", "k", "b"));
    gate.arrival().await;
    store.once(Op::Begin, Act::Pass);
    store.always(Op::Begin, Act::Fail);
    send(&service, post("/", "k", "b"))
        .await
        .assert_problem(409, "in-flight");
    // If the store works again in time, the duplicate gets the answer.
    store.once(Op::Begin, Act::Pass);
    let duplicate = spawn(&service, post("/", "k", "b"));
    tokio::time::sleep(Duration::from_secs(2)).await;
    store.always(Op::Begin, Act::Pass);
    gate.open();
    let first = first.await.unwrap();
    duplicate.await.unwrap().assert_replay_of(&first);
    assert_eq!(runs.get(), 1);
}

#[tokio::test(start_paused = true)]
async fn contract_6_3_a_duplicate_that_waited_through_a_failure_keeps_its_claim() {
    for failure in [Act::Fail, Act::FailAfterEffect] {
        waits_through(failure).await;
    }
}

/// A duplicate waits. Once the first request has failed, the duplicate's claim fails in this way.
async fn waits_through(failure: Act) {
    let (store, runs) = (Scripted::default(), Count::default());
    let gates = [Gate::default(), Gate::default()];
    let layer = IdempotencyLayer::builder(store.clone())
        .run_unprotected_when_store_fails()
        .wait(Duration::from_secs(10))
        .build()
        .unwrap();
    let (counts, stops) = (runs.clone(), gates.clone());
    let service = layer.layer(inner(move |_: Request<_>| {
        let run = counts.up();
        let stop = stops.get(run - 1).cloned();
        async move {
            if let Some(stop) = stop {
                stop.pass().await;
            }
            let mut response = ok(format!("run {run}"));
            if run == 1 {
                *response.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
            }
            response
        }
    }));
    let first = spawn(&service, post("/", "k", "b"));
    gates[0].arrival().await;
    store.once(Op::Begin, Act::Pass);
    store.once(Op::Begin, failure);
    let duplicate = spawn(&service, post("/", "k", "b"));
    tokio::time::sleep(Duration::from_millis(10)).await;
    gates[0].open();
    assert_eq!(first.await.unwrap().status, 500);
    gates[1].arrival().await;
    // By now, the failed claim has been given back, and no other.
    tokio::time::sleep(Duration::from_secs(20)).await;
    send(&service, post("/", "k", "b"))
        .await
        .assert_problem(409, "in-flight");
    gates[1].open();
    let answer = duplicate.await.unwrap();
    assert_eq!(answer.text(), "run 2");
    send(&service, post("/", "k", "b")).await.assert_replay_of(&answer);
    assert_eq!(runs.get(), 2);
}
