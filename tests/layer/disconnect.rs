//! Clients that leave: the response future is dropped at every await point there is, in every mode,
//! on a runtime and off it.

use std::convert::Infallible;
use std::future::{pending, ready};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Request, Response, StatusCode};
use http_body_util::Full;
use tower::util::BoxCloneSyncService;
use tower::{Layer, Service, ServiceExt, service_fn};
use tower_idempotency::{
    Fate, FingerprintSource, IdempotencyLayer, IdempotencyLayerBuilder, IdempotencyService, KeySource, MemoryStore,
    Policy, ScopeSource, Store, Verdict,
};

use crate::support::store::{Act, Op, Scripted};
use crate::support::{
    BrokenBody, Count, Gate, Inner, ScriptedBody, Step, capture, counted, drain, inner, ok, poll_once, poll_times,
    post, respond, send, settle, spawn,
};

/// What one run of the handler did.
#[derive(Clone, Default)]
struct Journal {
    started: Count,
    ended: Count,
    dropped: Count,
}

/// Tells when a handler's future goes, whether it has ended or not.
struct Guard(Count);

impl Drop for Guard {
    fn drop(&mut self) {
        self.0.up();
    }
}

type Scripts = BoxCloneSyncService<Request<ScriptedBody>, Response<ScriptedBody>, Infallible>;

/// A handler that yields three times, and answers with a body that yields between its frames.
fn yielding(journal: &Journal, status: StatusCode) -> Scripts {
    let journal = journal.clone();
    BoxCloneSyncService::new(service_fn(move |_: Request<ScriptedBody>| {
        let (run, journal) = (journal.started.up(), journal.clone());
        async move {
            let _guard = Guard(journal.dropped.clone());
            crate::support::yields(3).await;
            journal.ended.up();
            let mut trailers = HeaderMap::new();
            trailers.insert("x-end", http::HeaderValue::from_static("yes"));
            let body = ScriptedBody::new([
                Step::Yield,
                Step::Data(format!("run {run} ").into()),
                Step::Yield,
                Step::Data("answers".into()),
                Step::Yield,
                Step::Trailers(trailers),
                Step::Yield,
            ]);
            Ok(Response::builder().status(status).body(body).unwrap())
        }
    }))
}

/// A request whose body yields between its frames.
fn request() -> Request<ScriptedBody> {
    let body = ScriptedBody::new([
        Step::Yield,
        Step::Data("a request ".into()),
        Step::Yield,
        Step::Data("in pieces".into()),
        Step::Yield,
    ]);
    Request::post("/").header("idempotency-key", "k").body(body).unwrap()
}

/// A store each of whose calls yields twice.
fn slow() -> Scripted {
    let store = Scripted::default();
    for op in [Op::Begin, Op::Renew, Op::Complete, Op::Release] {
        store.always(op, Act::Late(2));
    }
    store
}

/// Sends a request and drops it after `polls` polls. Whether it was answered before.
async fn leave_after<St: Store>(service: &IdempotencyService<Scripts, St>, polls: usize) -> bool {
    let mut request = Box::pin(service.clone().oneshot(request()));
    poll_times(request.as_mut(), polls).await.is_some()
}

/// A request until it is not refused as in flight.
async fn retried<St: Store>(service: &IdempotencyService<Scripts, St>) -> crate::support::Answer {
    for _ in 0..1000 {
        let answer = send(service, request()).await;
        if answer.status != StatusCode::CONFLICT || answer.json()["code"] != "in-flight" {
            return answer;
        }
        tokio::task::yield_now().await;
    }
    panic!("the key is stuck");
}

#[tokio::test(start_paused = true)]
async fn dropped_at_any_await_a_request_runs_to_its_end_or_not_at_all() {
    async fn check<St: Store>(
        store: impl Fn() -> St,
        build: impl Fn(IdempotencyLayerBuilder<St>) -> IdempotencyLayer<St>,
    ) {
        let (mut unstarted, mut unfinished) = (0, 0);
        for polls in 0.. {
            let journal = Journal::default();
            let layer = build(IdempotencyLayer::builder(store()));
            let service = layer.layer(yielding(&journal, StatusCode::CREATED));
            let answered = leave_after(&service, polls).await;
            let started = journal.started.get();
            unstarted += usize::from(started == 0);
            unfinished += usize::from(started == 1 && !answered);

            // Not a moment of the clock passes: a claim that is not given back would be in flight.
            let now = tokio::time::Instant::now();
            drain(&layer).await;
            assert_eq!(
                journal.started.get(),
                started,
                "after {polls} polls: nothing starts later"
            );
            assert_eq!(journal.ended.get(), started, "after {polls} polls: it runs to its end");
            assert_eq!(layer.background().len(), 0);
            let retry = retried(&service).await;
            assert_eq!(retry.text(), "run 1 answers", "after {polls} polls");
            assert_eq!(retry.is_replay(), started == 1, "after {polls} polls");
            assert_eq!(retry.trailers.as_ref().map(HeaderMap::len), Some(1));
            assert_eq!(journal.started.get(), 1, "after {polls} polls: one run in all");
            assert!(now.elapsed().is_zero(), "after {polls} polls: {:?}", now.elapsed());
            if answered {
                break;
            }
        }
        assert!(
            unstarted > 3 && unfinished > 5,
            "{unstarted} {unfinished}: every state was seen"
        );
    }
    check(slow, |builder| builder.build().unwrap()).await;
    check(slow, |builder| builder.wait(Duration::from_secs(9)).build().unwrap()).await;
    check(MemoryStore::new, |builder| builder.build().unwrap()).await;
    check(MemoryStore::new, |builder| {
        builder.wait(Duration::from_secs(9)).build().unwrap()
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn dropped_at_any_await_a_request_that_fails_frees_the_key() {
    for polls in 0.. {
        let journal = Journal::default();
        let layer = IdempotencyLayer::new(slow());
        let service = layer.layer(yielding(&journal, StatusCode::BAD_GATEWAY));
        let answered = leave_after(&service, polls).await;
        let started = journal.started.get();
        drain(&layer).await;
        assert_eq!((journal.started.get(), journal.ended.get()), (started, started));
        let service = layer.layer(yielding(&journal, StatusCode::CREATED));
        let retry = retried(&service).await;
        assert!(!retry.is_replay(), "after {polls} polls");
        assert_eq!(retry.text(), format!("run {} answers", started + 1));
        if answered {
            assert!(polls > 6, "{polls}");
            return;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_duplicate_that_leaves_at_any_await_harms_nobody() {
    for wait in [0, 60] {
        for polls in 0.. {
            let gate = Gate::default();
            let runs = Count::default();
            let layer = IdempotencyLayer::builder(slow())
                .wait(Duration::from_secs(wait))
                .build()
                .unwrap();
            let service = gated(&layer, &gate, &runs);
            let first = spawn(&service, post("/", "k", "b"));
            gate.arrival().await;
            let answered = {
                let mut duplicate = Box::pin(service.clone().oneshot(post("/", "k", "b")));
                poll_times(duplicate.as_mut(), polls).await.is_some()
            };
            drain(&layer).await;
            send_in_flight(&service, wait == 0).await;
            gate.open();
            let first = first.await.unwrap();
            assert_eq!((first.text(), first.outcome()), ("run 1", "executed"));
            send(&service, post("/", "k", "b")).await.assert_replay_of(&first);
            assert_eq!(runs.get(), 1, "wait {wait}, after {polls} polls");
            if answered || polls > 20 {
                assert!(polls > 1);
                break;
            }
        }
    }
}

/// Answers when the gate lets it.
fn gated<St: Store>(layer: &IdempotencyLayer<St>, gate: &Gate, runs: &Count) -> IdempotencyService<Inner, St> {
    let (gate, runs) = (gate.clone(), runs.clone());
    layer.layer(inner(move |_| {
        let gate = gate.clone();
        let run = runs.up();
        async move {
            gate.pass().await;
            ok(format!("run {run}"))
        }
    }))
}

async fn send_in_flight<St: Store>(service: &IdempotencyService<Inner, St>, at_once: bool) {
    if at_once {
        let answer = send(service, post("/", "k", "b")).await;
        answer.assert_problem(409, "in-flight");
    }
}

/// Starts a request and leaves it when the handler is at the gate.
async fn leave_at_gate<St: Store>(service: &IdempotencyService<Inner, St>, gate: &Gate, key: &str) {
    let mut request = Box::pin(service.clone().oneshot(post("/", key, "b")));
    let arrival = gate.arrival();
    let mut arrival = pin!(arrival);
    loop {
        assert!(poll_once(request.as_mut()).await.is_pending());
        if poll_once(arrival.as_mut()).await.is_ready() {
            return;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_waiter_that_was_woken_and_leaves_gives_the_claim_to_the_next() {
    // The first fails, all wake, and the one that would run next leaves at that very moment.
    for polls in 0..8 {
        let store = slow();
        let gate = Gate::default();
        let runs = Count::default();
        let layer = IdempotencyLayer::builder(store.clone())
            .wait(Duration::from_secs(60))
            .policy(Policy::from_fn(|_, headers| match headers.contains_key("x-fails") {
                true => Verdict::Release,
                false => Verdict::Store,
            }))
            .build()
            .unwrap();
        let service = {
            let (gate, runs) = (gate.clone(), runs.clone());
            layer.layer(inner(move |_| {
                let (gate, run) = (gate.clone(), runs.up());
                async move {
                    gate.pass().await;
                    let mut response = ok(format!("run {run}"));
                    if run == 1 {
                        response
                            .headers_mut()
                            .insert("x-fails", http::HeaderValue::from_static("1"));
                    }
                    response
                }
            }))
        };
        let first = spawn(&service, post("/", "k", "b"));
        gate.arrival().await;
        let mut leaving = Box::pin(service.clone().oneshot(post("/", "k", "b")));
        assert!(poll_times(leaving.as_mut(), 4).await.is_none());
        gate.open();
        first.await.unwrap();
        let _ = poll_times(leaving.as_mut(), polls).await;
        let started = runs.get();
        drop(leaving);
        let now = tokio::time::Instant::now();
        drain(&layer).await;
        let next = send(&service, post("/", "k", "b")).await;
        assert_eq!(next.status.as_u16(), 200, "{next:?}");
        assert_eq!(runs.get(), 2, "after {polls} polls, {started} started");
        assert!(now.elapsed().is_zero());
    }
}

#[tokio::test(start_paused = true)]
async fn a_claim_whose_asker_left_is_given_back_whatever_the_store_does() {
    for act in [Act::Late(5), Act::Pass] {
        let store = Scripted::default();
        let gate = Gate::default();
        store.once(Op::Begin, Act::Stop(gate.clone()));
        store.once(Op::Release, act);
        let journal = Journal::default();
        let layer = IdempotencyLayer::new(store.clone());
        let service = layer.layer(yielding(&journal, StatusCode::OK));
        assert!(!leave_after(&service, 6).await);
        assert_eq!(layer.background().len(), 1);
        gate.open();
        drain(&layer).await;
        assert_eq!((store.calls(Op::Release), journal.started.get()), (1, 0));
        let retry = send(&service, request()).await;
        assert_eq!((retry.is_replay(), retry.text()), (false, "run 1 answers"));
    }
}

#[tokio::test(start_paused = true)]
async fn a_lapsed_claim_whose_taker_left_before_the_handler_started_is_still_remembered() {
    let store = Scripted::default();
    let journal = Journal::default();
    let layer = IdempotencyLayer::new(store.clone());
    let service = layer.layer(yielding(&journal, StatusCode::OK));
    store.once(Op::Begin, Act::Fail);
    send(&service, request()).await.assert_problem(503, "store-unavailable");
    store.claim_and_die().await;
    tokio::time::advance(Duration::from_secs(30)).await;
    store.once(Op::Begin, Act::Late(5));
    assert!(!leave_after(&service, 12).await);
    drain(&layer).await;
    assert_eq!(journal.started.get(), 0);
    // Whether the operation was done by the process that died is as unknown as before.
    let other = Request::post("/").header("idempotency-key", "k");
    let other = other.body(ScriptedBody::from("another body")).unwrap();
    send(&service, other).await.assert_problem(422, "key-reused");
}

#[tokio::test(start_paused = true)]
async fn work_that_runs_unprotected_without_its_client_is_bounded_too() {
    let (gate, runs) = (Gate::default(), Count::default());
    let store = Scripted::default();
    store.always(Op::Begin, Act::Fail);
    let layer = IdempotencyLayer::builder(store)
        .run_unprotected_when_store_fails()
        .max_detached(2)
        .build()
        .unwrap();
    let service = gated(&layer, &gate, &runs);
    leave_at_gate(&service, &gate, "a").await;
    leave_at_gate(&service, &gate, "b").await;
    assert_eq!(layer.background().len(), 2);
    let mut third = Box::pin(service.clone().oneshot(post("/", "c", "b")));
    match poll_once(third.as_mut()).await {
        Poll::Ready(answer) => crate::support::read(answer.unwrap())
            .await
            .assert_problem(503, "overloaded"),
        Poll::Pending => panic!("run {} starts at the bound", runs.get()),
    }
}

#[tokio::test(start_paused = true)]
async fn with_cancel_on_disconnect_the_handler_is_dropped_at_once() {
    for fate in [Fate::Release, Fate::Seal] {
        let mut cancelled = 0;
        for polls in 0.. {
            let journal = Journal::default();
            let layer = IdempotencyLayer::builder(slow())
                .cancel_on_disconnect(fate)
                .build()
                .unwrap();
            let service = layer.layer(yielding(&journal, StatusCode::CREATED));
            let answered = leave_after(&service, polls).await;
            let (started, ended) = (journal.started.get(), journal.ended.get());
            drain(&layer).await;
            assert_eq!(
                (journal.started.get(), journal.ended.get()),
                (started, ended),
                "not a step further"
            );
            assert_eq!(
                journal.dropped.get(),
                started,
                "after {polls} polls: nothing of it is left"
            );
            let retry = retried(&service).await;
            if ended == 1 {
                // Its effect is complete: whatever became of its response, it must not be lost.
                assert!(
                    retry.is_replay() || fate == Fate::Release || retry.status == 409,
                    "after {polls} polls: {retry:?}"
                );
            } else if started == 1 && fate == Fate::Seal {
                cancelled += 1;
                retry.assert_problem(409, "outcome-unknown");
                assert_eq!(journal.started.get(), 1);
            } else {
                cancelled += started;
                assert_eq!(
                    (retry.status.as_u16(), retry.is_replay()),
                    (201, false),
                    "after {polls} polls"
                );
                assert_eq!(journal.started.get(), started + 1);
            }
            if answered {
                break;
            }
        }
        assert!(cancelled > 2, "{cancelled}");
    }
}

#[tokio::test(start_paused = true)]
async fn with_cancel_on_disconnect_a_response_body_that_never_ends_is_dropped_too() {
    let journal = Journal::default();
    let layer = IdempotencyLayer::builder(MemoryStore::new())
        .cancel_on_disconnect(Fate::Release)
        .build()
        .unwrap();
    let runs = journal.started.clone();
    let service = layer.layer(inner(move |_| {
        let steps = match runs.up() {
            1 => vec![Step::Data("half".into()), Step::Hang],
            _ => vec![Step::Data("whole".into())],
        };
        ready(Response::new(ScriptedBody::new(steps)))
    }));
    {
        let mut request = pin!(service.clone().oneshot(post("/", "k", "b")));
        assert!(poll_times(request.as_mut(), 3).await.is_none());
    }
    settle().await;
    assert_eq!(layer.background().len(), 0, "nothing goes on: the client has left");
    let retry = send(&service, post("/", "k", "b")).await;
    assert_eq!(retry.text(), "whole");
}

/// Ready only when the gate lets it.
#[derive(Clone)]
struct Unready {
    gate: Arc<Mutex<bool>>,
    runs: Count,
}

impl Service<Request<axum::body::Body>> for Unready {
    type Response = Response<Full<Bytes>>;
    type Error = Infallible;
    type Future = std::future::Ready<Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        cx.waker().wake_by_ref();
        match *self.gate.lock().unwrap() {
            true => Poll::Ready(Ok(())),
            false => Poll::Pending,
        }
    }

    fn call(&mut self, _: Request<axum::body::Body>) -> Self::Future {
        ready(Ok(ok(format!("run {}", self.runs.up()))))
    }
}

#[tokio::test(start_paused = true)]
async fn with_cancel_on_disconnect_a_handler_that_has_not_started_is_not_sealed() {
    let open = Arc::new(Mutex::new(true));
    let store = Scripted::default();
    let layer = IdempotencyLayer::builder(store.clone())
        .wait(Duration::from_secs(60))
        .cancel_on_disconnect(Fate::Seal)
        .build()
        .unwrap();
    let unready = Unready {
        gate: open.clone(),
        runs: Count::default(),
    };
    let runs = unready.runs.clone();
    let service = layer.layer(unready);
    {
        let gate = Gate::default();
        store.once(Op::Begin, Act::Stop(gate.clone()));
        let mut request = Box::pin(service.clone().oneshot(post("/", "k", "b")));
        assert!(poll_times(request.as_mut(), 2).await.is_none());
        *open.lock().unwrap() = false;
        gate.open();
        assert!(poll_times(request.as_mut(), 5).await.is_none());
        assert_eq!(runs.get(), 0, "it waits for a place");
    }
    settle().await;
    *open.lock().unwrap() = true;
    drain(&layer).await;
    let retry = send(&service, post("/", "k", "b")).await;
    assert_eq!((retry.status.as_u16(), retry.text()), (200, "run 1"), "{retry:?}");
}

#[tokio::test(start_paused = true)]
async fn with_cancel_on_disconnect_a_handler_that_runs_unprotected_is_cancelled_too() {
    let journal = Journal::default();
    let store = Scripted::default();
    store.always(Op::Begin, Act::Fail);
    let layer = IdempotencyLayer::builder(store)
        .run_unprotected_when_store_fails()
        .cancel_on_disconnect(Fate::Release)
        .build()
        .unwrap();
    let service = layer.layer(yielding(&journal, StatusCode::OK));
    let mut polls = 0;
    while journal.started.get() == 0 {
        polls += 1;
        assert!(!leave_after(&service, polls).await);
    }
    drain(&layer).await;
    assert_eq!(journal.ended.get(), 0, "as axum alone would");
    assert_eq!(journal.dropped.get(), 1);
}

#[tokio::test(start_paused = true)]
async fn work_without_its_client_is_counted_bounded_and_counted_down() {
    let (gate, runs) = (Gate::default(), Count::default());
    let layer = IdempotencyLayer::builder(MemoryStore::new())
        .max_detached(3)
        .build()
        .unwrap();
    let service = gated(&layer, &gate, &runs);
    let background = layer.background();
    assert!(background.is_empty());
    background.wait().await;
    for (n, key) in ["a", "b", "c"].into_iter().enumerate() {
        leave_at_gate(&service, &gate, key).await;
        assert_eq!(background.len(), n + 1);
    }
    for _ in 0..2 {
        send(&service, post("/", "d", "b"))
            .await
            .assert_problem(503, "overloaded");
    }
    assert_eq!(counted(&layer, "overloaded"), 2);
    // What has no key, and what is known, is answered all the same.
    send(&service, post("/", "a", "b"))
        .await
        .assert_problem(409, "in-flight");
    send(&service, post("/", "a", "c"))
        .await
        .assert_problem(422, "key-reused");
    gate.open_once();
    while background.len() == 3 {
        tokio::task::yield_now().await;
    }
    assert_eq!(background.len(), 2);
    let here = spawn(&service, post("/", "d", "b"));
    gate.arrival().await;
    gate.open();
    assert_eq!(here.await.unwrap().text(), "run 4");
    background.wait().await;
    assert_eq!((background.len(), background.is_empty()), (0, true));
    for key in ["a", "b", "c", "d"] {
        assert!(send(&service, post("/", key, "b")).await.is_replay(), "{key}");
    }
    assert_eq!((runs.get(), counted(&layer, "executed")), (4, 4));
}

#[tokio::test(start_paused = true)]
async fn background_wait_waits_for_all_there_is() {
    let (gate, runs) = (Gate::default(), Count::default());
    let layer = IdempotencyLayer::new(MemoryStore::new());
    let service = gated(&layer, &gate, &runs);
    leave_at_gate(&service, &gate, "a").await;
    leave_at_gate(&service, &gate, "b").await;
    let background = layer.background();
    let mut waiting = Box::pin(background.wait());
    assert!(poll_once(waiting.as_mut()).await.is_pending());
    gate.open_once();
    settle().await;
    assert!(poll_once(waiting.as_mut()).await.is_pending(), "one is left");
    // Work that comes while it is awaited counts too.
    leave_at_gate(&service, &gate, "c").await;
    gate.open();
    waiting.await;
    assert_eq!((background.len(), runs.get()), (0, 3));
    // And it can be used again.
    leave_at_gate_open(&service, "d").await;
    background.wait().await;
    assert_eq!(background.len(), 0);
}

/// As [`leave_at_gate`], of a gate that is open: leaves before the first poll is over.
async fn leave_at_gate_open<St: Store>(service: &IdempotencyService<Inner, St>, key: &str) {
    let mut request = Box::pin(service.clone().oneshot(post("/", key, "b")));
    let _ = poll_once(request.as_mut()).await;
}

#[tokio::test(start_paused = true)]
async fn dropped_outside_a_runtime_it_goes_on_in_the_runtime_that_it_came_from() {
    for mode in [None, Some(Fate::Release)] {
        let (gate, runs) = (Gate::default(), Count::default());
        let mut builder = IdempotencyLayer::builder(MemoryStore::new());
        if let Some(fate) = mode {
            builder = builder.cancel_on_disconnect(fate);
        }
        let layer = builder.build().unwrap();
        let service = gated(&layer, &gate, &runs);
        let mut request = Box::pin(service.clone().oneshot(post("/", "k", "b")));
        assert!(poll_once(request.as_mut()).await.is_pending());
        gate.arrival().await;
        std::thread::spawn(move || drop(request)).join().unwrap();
        assert_eq!(layer.background().len(), 1);
        gate.open();
        drain(&layer).await;
        let retry = send(&service, post("/", "k", "b")).await;
        assert_eq!(
            (retry.is_replay(), runs.get()),
            if mode.is_none() { (true, 1) } else { (false, 2) }
        );
    }
}

#[test]
fn dropped_where_there_never_was_a_runtime_it_does_not_panic() {
    let runs = Count::default();
    let layer = IdempotencyLayer::new(MemoryStore::new());
    let counter = runs.clone();
    let service = layer.layer(inner(move |_| {
        counter.up();
        ready(ok("done"))
    }));
    // Refused before the handler runs, since nothing could be done after it.
    let mut request = Box::pin(service.clone().oneshot(post("/", "k", "b")));
    let mut cx = Context::from_waker(Waker::noop());
    let Poll::Ready(Ok(refused)) = request.as_mut().poll(&mut cx) else {
        panic!("an answer at once")
    };
    assert_eq!(refused.status(), 500);
    // Dropped before its first poll: nothing has happened.
    drop(Box::pin(service.clone().oneshot(post("/", "k2", "b"))));
    assert_eq!((runs.get(), layer.background().len()), (0, 0));
}

#[test]
fn dropped_after_its_runtime_ended_it_is_abandoned_without_a_panic() {
    let (gate, runs) = (Gate::default(), Count::default());
    let layer = IdempotencyLayer::new(MemoryStore::new());
    let service = gated(&layer, &gate, &runs);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let mut request = Box::pin(service.clone().oneshot(post("/", "k", "b")));
    runtime.block_on(async {
        assert!(poll_once(request.as_mut()).await.is_pending());
    });
    drop(runtime);
    drop(request);
    assert_eq!((runs.get(), layer.background().len()), (1, 0));
}

#[tokio::test(start_paused = true)]
async fn the_span_of_the_request_follows_the_handler() {
    capture::install();
    let gate = Gate::default();
    let stop = gate.clone();
    let layer = IdempotencyLayer::new(MemoryStore::new());
    let service = layer.layer(inner(move |_| {
        let stop = stop.clone();
        async move {
            tracing::info!(target: "handler", "begins");
            stop.pass().await;
            tracing::info!(target: "handler", "ends");
            ok("done")
        }
    }));
    capture::take();
    {
        use tracing::Instrument;
        let request = service.clone().oneshot(post("/", "k", "b"));
        let mut request = Box::pin(request.instrument(tracing::info_span!("request")));
        assert!(poll_once(request.as_mut()).await.is_pending());
        gate.arrival().await;
    }
    gate.open();
    {
        use tracing::Instrument;
        let elsewhere = layer.background();
        let wait = async move { elsewhere.wait().await };
        wait.instrument(tracing::info_span!("elsewhere")).await;
    }
    let events = capture::take();
    for message in ["begins", "ends", "request guarded"] {
        let event = events.iter().find(|event| event.message() == message);
        let event = event.unwrap_or_else(|| panic!("no event says {message}: {events:?}"));
        assert_eq!(event.spans, ["request"], "{message}");
    }
}

/// Panics in the handler at a gate: before or after its client has left.
fn panicking<St: Store>(layer: &IdempotencyLayer<St>, gate: &Gate, runs: &Count) -> IdempotencyService<Inner, St> {
    let (gate, runs) = (gate.clone(), runs.clone());
    layer.layer(inner(move |_| {
        let (gate, run) = (gate.clone(), runs.up());
        async move {
            gate.pass().await;
            assert_ne!(run, 1, "panics as the test wants");
            ok(format!("run {run}"))
        }
    }))
}

#[tokio::test(start_paused = true)]
async fn a_panic_after_the_client_left_frees_the_key_or_seals_it() {
    for fate in [Fate::Release, Fate::Seal] {
        let (gate, runs) = (Gate::default(), Count::default());
        let layer = IdempotencyLayer::builder(MemoryStore::new())
            .policy(Policy::success().on_panic(fate))
            .build()
            .unwrap();
        let service = panicking(&layer, &gate, &runs);
        leave_at_gate(&service, &gate, "k").await;
        gate.open();
        drain(&layer).await;
        assert_eq!(layer.background().len(), 0);
        let retry = send(&service, post("/", "k", "b")).await;
        match fate {
            Fate::Release => assert_eq!(retry.text(), "run 2"),
            Fate::Seal => retry.assert_problem(409, "outcome-unknown"),
            other => panic!("no test of {other:?}"),
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_panic_before_the_client_left_is_not_run_again_in_the_background() {
    let (gate, runs) = (Gate::default(), Count::default());
    let layer = IdempotencyLayer::new(MemoryStore::new());
    let service = panicking(&layer, &gate, &runs);
    let mut request = Box::pin(service.clone().oneshot(post("/", "k", "b")));
    assert!(poll_once(request.as_mut()).await.is_pending());
    gate.open();
    let mut cx = Context::from_waker(Waker::noop());
    // The semaphore of the gate wakes its waiter when it is polled next.
    let panic = catch_unwind(AssertUnwindSafe(|| {
        let poll = request.as_mut().poll(&mut cx);
        assert!(poll.is_pending(), "it panics before it is ready");
    }));
    assert!(panic.is_err());
    drop(request);
    assert_eq!(layer.background().len(), 0);
    assert_eq!(send(&service, post("/", "k", "b")).await.text(), "run 2");
}

#[tokio::test(start_paused = true)]
async fn a_panic_in_the_response_body_after_the_client_left_does_not_leave_the_key_in_flight() {
    let gate = Gate::default();
    let runs = Count::default();
    let layer = IdempotencyLayer::new(MemoryStore::new());
    let (stop, counter) = (gate.clone(), runs.clone());
    let service = layer.layer(inner(move |_| {
        let steps = match counter.up() {
            1 => vec![Step::Data("half".into()), Step::Stop(stop.clone()), Step::Panic],
            _ => vec![Step::Data("whole".into())],
        };
        ready(Response::new(ScriptedBody::new(steps)))
    }));
    {
        let mut request = Box::pin(service.clone().oneshot(post("/", "k", "b")));
        assert!(poll_once(request.as_mut()).await.is_pending());
        gate.arrival().await;
    }
    gate.open();
    drain(&layer).await;
    let retry = send(&service, post("/", "k", "b")).await;
    assert!(
        retry.text() == "whole" || retry.json()["code"] != "in-flight",
        "freed or sealed, but not in flight: {retry:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn a_response_body_that_fails_after_the_client_left_leaves_a_tombstone() {
    let gate = Gate::default();
    let layer = IdempotencyLayer::new(MemoryStore::new());
    let stop = gate.clone();
    let service = layer.layer(inner(move |_| {
        let steps = [Step::Data("half".into()), Step::Stop(stop.clone()), Step::Fail];
        ready(Response::new(ScriptedBody::new(steps)))
    }));
    {
        let mut request = Box::pin(service.clone().oneshot(post("/", "k", "b")));
        assert!(poll_once(request.as_mut()).await.is_pending());
        gate.arrival().await;
    }
    gate.open();
    drain(&layer).await;
    send(&service, post("/", "k", "b"))
        .await
        .assert_problem(409, "response-not-retained");
}

#[tokio::test(start_paused = true)]
async fn panics_of_closures_go_on_and_claim_nothing() {
    fn panics() -> bool {
        panic!("as the test wants")
    }
    let store = Scripted::default();
    type Configure = fn(IdempotencyLayerBuilder<Scripted>) -> IdempotencyLayerBuilder<Scripted>;
    let builders: [(&str, Configure); 3] = [
        ("key", |builder| {
            builder.key(KeySource::from_fn(|_, _| Ok(panics().then(String::new))))
        }),
        ("scope", |builder| {
            builder.scope(ScopeSource::from_head(|_| Ok(panics().to_string())))
        }),
        ("fingerprint", |builder| {
            builder.fingerprint(FingerprintSource::from_fn(|_, _| Ok(vec![u8::from(panics())])))
        }),
    ];
    for (what, configure) in builders {
        let layer = configure(IdempotencyLayer::builder(store.clone())).build().unwrap();
        let service = layer.layer(inner(|_| ready(ok("ran"))));
        let request = service.clone().oneshot(post("/", "k", "b"));
        let panic = tokio::spawn(request).await.expect_err("it goes on");
        assert!(panic.is_panic(), "{what}");
        assert_eq!(store.calls(Op::Begin), 0, "{what}");
        // The service can still be used: with another layer, the same key runs.
        let plain = IdempotencyLayer::new(MemoryStore::new()).layer(inner(|_| ready(ok("ran"))));
        assert_eq!(send(&plain, post("/", "k", "b")).await.text(), "ran");
    }
}

#[tokio::test(start_paused = true)]
async fn a_policy_that_panics_after_the_client_left_frees_the_key() {
    let (gate, runs) = (Gate::default(), Count::default());
    let judged = Count::default();
    let judge = judged.clone();
    let layer = IdempotencyLayer::builder(MemoryStore::new())
        .policy(Policy::from_fn(move |_, _| {
            assert_ne!(judge.up(), 1, "panics as the test wants");
            Verdict::Store
        }))
        .build()
        .unwrap();
    let service = gated(&layer, &gate, &runs);
    leave_at_gate(&service, &gate, "k").await;
    gate.open();
    drain(&layer).await;
    assert_eq!(send(&service, post("/", "k", "b")).await.text(), "run 2");
    assert!(send(&service, post("/", "k", "b")).await.is_replay());
}

#[tokio::test(start_paused = true)]
async fn a_panic_while_refusals_are_rendered_claims_nothing() {
    let layer = IdempotencyLayer::builder(MemoryStore::new())
        .problem_response(|_, _| panic!("as the test wants"))
        .build()
        .unwrap();
    let service = layer.layer(inner(|_| ready(ok("ran"))));
    assert_eq!(send(&service, post("/", "k", "b")).await.text(), "ran");
    let panic = tokio::spawn(service.clone().oneshot(post("/", "k", "c"))).await;
    assert!(panic.expect_err("it goes on").is_panic());
    assert!(send(&service, post("/", "k", "b")).await.is_replay());
}

#[tokio::test(start_paused = true)]
async fn a_request_body_that_never_comes_is_left_without_a_trace() {
    let store = Scripted::default();
    let journal = Journal::default();
    let layer = IdempotencyLayer::new(store.clone());
    let service = layer.layer(yielding(&journal, StatusCode::OK));
    let hanging = Request::post("/")
        .header("idempotency-key", "k")
        .body(ScriptedBody::new([Step::Data("half".into()), Step::Hang]))
        .unwrap();
    {
        let mut request = Box::pin(service.clone().oneshot(hanging));
        assert!(poll_times(request.as_mut(), 5).await.is_none());
    }
    assert_eq!((store.calls(Op::Begin), layer.background().len()), (0, 0));
    assert_eq!(send(&service, request()).await.text(), "run 1 answers");
}

#[tokio::test(start_paused = true)]
async fn a_response_that_was_not_read_is_kept_all_the_same() {
    let runs = Count::default();
    let layer = IdempotencyLayer::new(MemoryStore::new());
    let counter = runs.clone();
    let service = layer.layer(inner(move |_| {
        counter.up();
        let body = ScriptedBody::new([Step::Data("a".into()), Step::Yield, Step::Data("b".into())]);
        ready(Response::new(body))
    }));
    drop(respond(&service, post("/", "k", "")).await);
    assert_eq!(send(&service, post("/", "k", "")).await.text(), "ab");
    assert_eq!(runs.get(), 1);
}

/// A handler that does not end.
#[tokio::test(start_paused = true)]
async fn the_lease_is_renewed_for_work_without_its_client() {
    let store = Scripted::default();
    let (gate, runs) = (Gate::default(), Count::default());
    let layer = IdempotencyLayer::builder(store.clone())
        .lease(Duration::from_secs(3))
        .build()
        .unwrap();
    let service = gated(&layer, &gate, &runs);
    leave_at_gate(&service, &gate, "k").await;
    for _ in 0..30 {
        tokio::time::sleep(Duration::from_secs(1)).await;
        send(&service, post("/", "k", "b"))
            .await
            .assert_problem(409, "in-flight");
    }
    gate.open();
    drain(&layer).await;
    assert!(send(&service, post("/", "k", "b")).await.is_replay());
    assert_eq!(runs.get(), 1);
}

#[tokio::test(start_paused = true)]
async fn an_error_after_the_client_left_frees_the_key() {
    let gate = Gate::default();
    let runs = Count::default();
    let layer = IdempotencyLayer::new(MemoryStore::new());
    let (stop, counter) = (gate.clone(), runs.clone());
    let service = layer.layer(service_fn(move |_: Request<axum::body::Body>| {
        let (stop, run) = (stop.clone(), counter.up());
        async move {
            stop.pass().await;
            match run {
                1 => Err(BrokenBody),
                _ => Ok(ok(format!("run {run}"))),
            }
        }
    }));
    {
        let mut request = Box::pin(service.clone().oneshot(post("/", "k", "b")));
        assert!(poll_once(request.as_mut()).await.is_pending());
        gate.arrival().await;
    }
    gate.open();
    drain(&layer).await;
    assert_eq!(send(&service, post("/", "k", "other")).await.text(), "run 2");
}

#[tokio::test(start_paused = true)]
async fn a_request_that_passes_through_is_cancelled_as_ever() {
    let journal = Journal::default();
    let layer = IdempotencyLayer::new(MemoryStore::new());
    let dropped = journal.dropped.clone();
    let service = layer.layer(inner(move |_| {
        let guard = Guard(dropped.clone());
        async move {
            let _guard = guard;
            pending::<()>().await;
            ok("never")
        }
    }));
    {
        let request = crate::support::request("POST", "/", &[], "b");
        let mut request: Pin<Box<_>> = Box::pin(service.clone().oneshot(request));
        assert!(poll_once(request.as_mut()).await.is_pending());
    }
    assert_eq!((journal.dropped.get(), layer.background().len()), (1, 0));
}
