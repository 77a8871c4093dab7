//! Section 4 of the contract: what is kept of what the handler did, and what a retry gets.

use std::future::{pending, ready};
use std::pin::pin;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use tower::{Layer, Service, ServiceExt};
use tower_idempotency::store::{OnLapse, Store};
use tower_idempotency::{
    Fate, IdempotencyKey, IdempotencyLayer, IdempotencyService, MemoryStore, Outcome, Policy, Verdict,
};

use crate::support::store::{Act, Op, Scripted};
use crate::support::{
    Answer, BrokenBody, Count, Gate, Inner, ScriptedBody, Step, counted, drain, inner, ok, poll_once, post, respond,
    send, settle, spawn,
};

type Request4 = Request<Body>;

/// Answers each run with its number, under that status.
fn numbered<St: Store>(
    layer: &IdempotencyLayer<St>,
    runs: &Count,
    status: StatusCode,
) -> IdempotencyService<Inner, St> {
    let runs = runs.clone();
    layer.layer(inner(move |_| {
        let mut response = ok(format!("run {}", runs.up()));
        *response.status_mut() = status;
        ready(response)
    }))
}

fn attempt_of<B>(request: &Request<B>) -> u32 {
    request
        .extensions()
        .get::<IdempotencyKey>()
        .expect("a key is there whenever the layer runs a handler for one")
        .attempt()
}

#[tokio::test(start_paused = true)]
async fn contract_4_1_a_success_is_kept_with_status_headers_body_and_trailers() {
    let runs = Count::default();
    let counter = runs.clone();
    let service = IdempotencyLayer::new(MemoryStore::new()).layer(inner(move |_| {
        counter.up();
        let mut trailers = HeaderMap::new();
        trailers.append("x-checksum", HeaderValue::from_static("one"));
        trailers.append("x-checksum", HeaderValue::from_static("two"));
        let body = ScriptedBody::new([
            Step::Data("he".into()),
            Step::Yield,
            Step::Data("llo".into()),
            Step::Trailers(trailers),
        ]);
        let response = Response::builder()
            .status(201)
            .header("location", "/things/1")
            .header("link", "</a>")
            .header("link", "</b>")
            .header("x-raw", HeaderValue::from_bytes(b"caf\xe9").unwrap())
            .header("x-empty", "")
            .body(body)
            .unwrap();
        ready(response)
    }));
    let first = send(&service, post("/", "k", "b")).await;
    assert_eq!((first.status.as_u16(), first.text()), (201, "hello"));
    assert_eq!(first.headers.get_all("link").iter().count(), 2);
    assert_eq!(first.trailers.as_ref().map(HeaderMap::len), Some(2));
    assert_eq!(first.outcome(), "executed");
    for _ in 0..3 {
        send(&service, post("/", "k", "b")).await.assert_replay_of(&first);
    }
    assert_eq!(runs.get(), 1);
}

#[tokio::test(start_paused = true)]
async fn contract_4_1_every_2xx_is_stored_by_default() {
    for status in [200, 201, 202, 204, 206, 299].map(|status| StatusCode::from_u16(status).unwrap()) {
        let runs = Count::default();
        let service = numbered(&IdempotencyLayer::new(MemoryStore::new()), &runs, status);
        let first = send(&service, post("/", "k", "")).await;
        send(&service, post("/", "k", "")).await.assert_replay_of(&first);
        assert_eq!((first.status, runs.get()), (status, 1));
    }
}

#[tokio::test(start_paused = true)]
async fn contract_4_2_any_other_response_frees_the_key() {
    for status in [300, 302, 304, 400, 401, 404, 409, 422, 429, 500, 502, 503] {
        let status = StatusCode::from_u16(status).unwrap();
        let runs = Count::default();
        let layer = IdempotencyLayer::new(MemoryStore::new());
        let service = numbered(&layer, &runs, status);
        let first = send(&service, post("/", "k", "a")).await;
        assert_eq!(
            (first.status, first.text(), first.outcome()),
            (status, "run 1", "released")
        );
        // The key is free again: for another body too.
        let second = send(&service, post("/", "k", "b")).await;
        assert_eq!((second.status, second.text()), (status, "run 2"));
        assert!(!second.is_replay());
        assert_eq!(counted(&layer, "released"), 2);
    }
}

#[tokio::test(start_paused = true)]
async fn contract_4_2_the_body_of_a_response_that_is_not_stored_streams() {
    let service = IdempotencyLayer::new(MemoryStore::new()).layer(inner(|_| async {
        let body = ScriptedBody::new([Step::Data("early".into()), Step::Hang]);
        Response::builder().status(404).body(body).unwrap()
    }));
    let response = respond(&service, post("/", "k", "")).await;
    let mut body = pin!(response.into_body());
    let frame = body.frame().await.unwrap().unwrap();
    assert_eq!(frame.into_data().unwrap(), "early");
}

/// A service whose run fails in a way of the test's choice, the first time.
#[derive(Clone)]
struct FailsOnce {
    how: How,
    runs: Count,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum How {
    PanicInCall,
    PanicAtOnce,
    PanicLater,
    PanicInBody,
    Error,
}

#[derive(Debug, PartialEq, Eq)]
struct Refused(u32);

impl Service<Request4> for FailsOnce {
    type Response = Response<ScriptedBody>;
    type Error = Refused;
    type Future = std::pin::Pin<Box<dyn Future<Output = Result<Response<ScriptedBody>, Refused>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Refused>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request4) -> Self::Future {
        let how = (self.runs.up() == 1).then_some(self.how);
        let attempt = attempt_of(&request);
        assert_ne!(how, Some(How::PanicInCall), "panics as the test wants");
        Box::pin(async move {
            assert_ne!(how, Some(How::PanicAtOnce), "panics as the test wants");
            tokio::task::yield_now().await;
            assert_ne!(how, Some(How::PanicLater), "panics as the test wants");
            match how {
                Some(How::Error) => Err(Refused(17)),
                Some(How::PanicInBody) => Ok(Response::new(ScriptedBody::new([
                    Step::Data("half".into()),
                    Step::Yield,
                    Step::Panic,
                ]))),
                _ => Ok(Response::new(ScriptedBody::from(Bytes::from(format!(
                    "attempt {attempt}"
                ))))),
            }
        })
    }
}

async fn a_panic_goes_on_and_the_key_is_free(how: How) {
    let runs = Count::default();
    let layer = IdempotencyLayer::new(MemoryStore::new());
    let service = layer.layer(FailsOnce {
        how,
        runs: runs.clone(),
    });
    let request = service.clone().oneshot(post("/", "k", "a"));
    let panic = tokio::spawn(request)
        .await
        .expect_err("the panic goes on to outer layers");
    assert!(panic.is_panic(), "{how:?}");
    assert_eq!(counted(&layer, "released"), 1, "{how:?}");
    let second = send(&service, post("/", "k", "b")).await;
    assert_eq!((second.status.as_u16(), second.text()), (200, "attempt 1"), "{how:?}");
    assert_eq!(runs.get(), 2, "{how:?}");
}

#[tokio::test(start_paused = true)]
async fn contract_4_3_a_panic_goes_on_and_frees_the_key() {
    for how in [How::PanicAtOnce, How::PanicLater] {
        a_panic_goes_on_and_the_key_is_free(how).await;
    }
}

#[tokio::test(start_paused = true)]
async fn contract_4_3_a_panic_in_call_itself_frees_the_key() {
    a_panic_goes_on_and_the_key_is_free(How::PanicInCall).await;
}

#[tokio::test(start_paused = true)]
async fn contract_4_3_and_4_7_a_panic_in_the_response_body_does_not_leave_the_key_in_flight() {
    let runs = Count::default();
    let layer = IdempotencyLayer::new(MemoryStore::new());
    let service = layer.layer(FailsOnce {
        how: How::PanicInBody,
        runs: runs.clone(),
    });
    let panic = tokio::spawn(service.clone().oneshot(post("/", "k", "a"))).await;
    assert!(panic.expect_err("the panic goes on").is_panic());
    let second = send(&service, post("/", "k", "a")).await;
    // Freed as by a panic (4.3), or a tombstone as of a body that failed midway (4.7).
    assert!(
        second.status == 200
            || second.json()["code"] == "response-not-retained"
            || second.json()["code"] == "outcome-unknown",
        "{second:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn contract_4_3_a_policy_that_panics_is_a_panic_of_the_handler() {
    let runs = Count::default();
    let policy = Policy::from_fn(|status, _| {
        assert_ne!(status, StatusCode::IM_A_TEAPOT, "panics as the test wants");
        Verdict::Store
    });
    let layer = IdempotencyLayer::builder(MemoryStore::new())
        .policy(policy)
        .build()
        .unwrap();
    let teapot = numbered(&layer, &runs, StatusCode::IM_A_TEAPOT);
    assert!(spawn(&teapot, post("/", "k", "")).await.unwrap_err().is_panic());
    let well = numbered(&layer, &runs, StatusCode::OK);
    assert_eq!(send(&well, post("/", "k", "")).await.text(), "run 2");
}

#[tokio::test(start_paused = true)]
async fn contract_4_4_an_error_of_the_inner_service_goes_on_unchanged() {
    let runs = Count::default();
    let layer = IdempotencyLayer::new(MemoryStore::new());
    let service = layer.layer(FailsOnce {
        how: How::Error,
        runs: runs.clone(),
    });
    let error = service.clone().oneshot(post("/", "k", "a")).await.unwrap_err();
    assert_eq!(error, Refused(17));
    assert_eq!(counted(&layer, "released"), 1);
    let second = send(&service, post("/", "k", "b")).await;
    assert_eq!((second.text(), runs.get()), ("attempt 1", 2));
}

/// Answers when the gate lets it.
fn gated<St: Store>(layer: &IdempotencyLayer<St>, gate: &Gate, runs: &Count) -> IdempotencyService<Inner, St> {
    let (gate, runs) = (gate.clone(), runs.clone());
    layer.layer(inner(move |request| {
        let (gate, runs) = (gate.clone(), runs.clone());
        async move {
            let run = runs.up();
            gate.pass().await;
            ok(format!("run {run} attempt {}", attempt_of(&request)))
        }
    }))
}

#[tokio::test(start_paused = true)]
async fn contract_4_5_a_client_that_hangs_up_does_not_cancel_the_handler() {
    let (gate, runs) = (Gate::default(), Count::default());
    let layer = IdempotencyLayer::new(MemoryStore::new());
    let service = gated(&layer, &gate, &runs);
    {
        let mut request = pin!(service.clone().oneshot(post("/", "k", "b")));
        assert!(poll_once(request.as_mut()).await.is_pending());
        gate.arrival().await;
    }
    assert_eq!(layer.background().len(), 1);
    send(&service, post("/", "k", "b"))
        .await
        .assert_problem(409, "in-flight");
    gate.open();
    drain(&layer).await;
    assert_eq!(layer.background().len(), 0);
    let replay = send(&service, post("/", "k", "b")).await;
    assert!(replay.is_replay());
    assert_eq!((replay.text(), runs.get()), ("run 1 attempt 1", 1));
    assert_eq!(counted(&layer, "executed"), 1);
}

#[tokio::test(start_paused = true)]
async fn contract_4_5_an_outer_timeout_does_not_cancel_the_handler() {
    let (gate, runs) = (Gate::default(), Count::default());
    let layer = IdempotencyLayer::new(MemoryStore::new());
    let service = gated(&layer, &gate, &runs);
    let timed = tower::timeout::Timeout::new(service.clone(), Duration::from_secs(1));
    assert!(timed.oneshot(post("/", "k", "b")).await.is_err());
    send(&service, post("/", "k", "b"))
        .await
        .assert_problem(409, "in-flight");
    gate.open();
    drain(&layer).await;
    assert!(send(&service, post("/", "k", "b")).await.is_replay());
    assert_eq!(runs.get(), 1);
}

/// Raises its count when it is dropped: tells that a handler was cancelled.
struct OnDrop(Count);

impl Drop for OnDrop {
    fn drop(&mut self) {
        self.0.up();
    }
}

#[tokio::test(start_paused = true)]
async fn contract_4_5_one_can_opt_out_and_cancel() {
    for (fate, code) in [(Fate::Release, None), (Fate::Seal, Some("outcome-unknown"))] {
        let (runs, dropped) = (Count::default(), Count::default());
        let layer = IdempotencyLayer::builder(MemoryStore::new())
            .cancel_on_disconnect(fate)
            .build()
            .unwrap();
        let service = {
            let (runs, dropped) = (runs.clone(), dropped.clone());
            layer.layer(inner(move |_| {
                let (run, guard) = (runs.up(), OnDrop(dropped.clone()));
                async move {
                    let _guard = guard;
                    if run == 1 {
                        pending::<()>().await;
                    }
                    Response::new(Full::<Bytes>::from("done"))
                }
            }))
        };
        {
            let mut request = pin!(service.clone().oneshot(post("/", "k", "b")));
            assert!(poll_once(request.as_mut()).await.is_pending());
        }
        drain(&layer).await;
        assert_eq!((runs.get(), dropped.get()), (1, 1), "{fate:?}: cancelled");
        let retry = send(&service, post("/", "k", "b")).await;
        match code {
            None => assert_eq!((retry.text(), runs.get()), ("done", 2)),
            Some(code) => {
                retry.assert_problem(409, code);
                assert_eq!((retry.header("retry-after"), runs.get()), (None, 1));
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn contract_4_5_work_without_its_client_is_bounded() {
    let (gate, runs) = (Gate::default(), Count::default());
    let layer = IdempotencyLayer::builder(MemoryStore::new())
        .max_detached(2)
        .build()
        .unwrap();
    let service = gated(&layer, &gate, &runs);
    for key in ["a", "b"] {
        let mut request = pin!(service.clone().oneshot(post("/", key, "")));
        assert!(poll_once(request.as_mut()).await.is_pending());
    }
    let refused = send(&service, post("/", "c", "")).await;
    refused.assert_problem(503, "overloaded");
    assert!(refused.header("retry-after").is_some());
    assert_eq!((refused.outcome(), runs.get()), ("overloaded", 2));
    // Not the first request: it is told what it was told before.
    send(&service, post("/", "a", ""))
        .await
        .assert_problem(409, "in-flight");
    gate.open();
    drain(&layer).await;
    assert!(send(&service, post("/", "a", "")).await.is_replay());
    let free = send(&service, post("/", "c", "")).await;
    assert_eq!(
        (free.status.as_u16(), free.text()),
        (200, "run 3 attempt 1"),
        "nothing was kept of the refusal"
    );
}

#[tokio::test(start_paused = true)]
async fn contract_4_6_a_lapsed_lease_is_taken_over_as_attempt_2() {
    let store = Scripted::default();
    let gate = Gate::default();
    gate.open();
    let runs = Count::default();
    let layer = IdempotencyLayer::builder(store.clone())
        .lease(Duration::from_secs(30))
        .ttl(Duration::from_secs(3600))
        .build()
        .unwrap();
    let service = gated(&layer, &gate, &runs);

    // A process claims, and dies.
    store.once(Op::Begin, Act::Fail);
    send(&service, post("/", "k", "b"))
        .await
        .assert_problem(503, "store-unavailable");
    store.claim_and_die().await;

    tokio::time::advance(Duration::from_millis(29_999)).await;
    send(&service, post("/", "k", "b"))
        .await
        .assert_problem(409, "in-flight");
    tokio::time::advance(Duration::from_millis(1)).await;
    send(&service, post("/", "k", "other"))
        .await
        .assert_problem(422, "key-reused");
    assert_eq!(runs.get(), 0);
    let second = send(&service, post("/", "k", "b")).await;
    assert_eq!(second.text(), "run 1 attempt 2");
    assert_eq!(second.outcome(), "executed");
    send(&service, post("/", "k", "b")).await.assert_replay_of(&second);
}

#[tokio::test(start_paused = true)]
async fn contract_4_6_a_lapsed_claim_is_remembered_for_the_ttl() {
    let store = Scripted::default();
    let runs = Count::default();
    let layer = IdempotencyLayer::builder(store.clone())
        .lease(Duration::from_secs(30))
        .ttl(Duration::from_secs(3600))
        .build()
        .unwrap();
    let service = numbered(&layer, &runs, StatusCode::OK);
    store.once(Op::Begin, Act::Fail);
    send(&service, post("/", "k", "b")).await;
    store.claim_and_die().await;
    tokio::time::advance(Duration::from_millis(3_629_999)).await;
    send(&service, post("/", "k", "other"))
        .await
        .assert_problem(422, "key-reused");
    tokio::time::advance(Duration::from_millis(1)).await;
    assert_eq!(send(&service, post("/", "k", "other")).await.text(), "run 1");
}

#[tokio::test(start_paused = true)]
async fn contract_4_6_after_an_outcome_that_freed_the_key_it_is_attempt_1_again() {
    let store = Scripted::default();
    let layer = IdempotencyLayer::new(store.clone());
    let attempts = std::sync::Arc::new(std::sync::Mutex::new(Vec::new()));
    let seen = attempts.clone();
    let service = layer.layer(inner(move |request| {
        seen.lock().unwrap().push(attempt_of(&request));
        ready(Response::builder().status(500).body(Full::<Bytes>::default()).unwrap())
    }));
    store.once(Op::Begin, Act::Fail);
    send(&service, post("/", "k", "b")).await;
    store.claim_and_die().await;
    tokio::time::advance(Duration::from_secs(30)).await;
    send(&service, post("/", "k", "b")).await;
    send(&service, post("/", "k", "any other fingerprint")).await;
    assert_eq!(*attempts.lock().unwrap(), [2, 1]);
}

#[tokio::test(start_paused = true)]
async fn contract_4_6_an_overload_does_not_make_a_lapsed_claim_forgotten() {
    let store = Scripted::default();
    let (gate, runs) = (Gate::default(), Count::default());
    let layer = IdempotencyLayer::builder(store.clone())
        .max_detached(1)
        .build()
        .unwrap();
    let service = gated(&layer, &gate, &runs);
    store.once(Op::Begin, Act::Fail);
    send(&service, post("/", "k", "b")).await;
    store.claim_and_die().await;
    tokio::time::advance(Duration::from_secs(30)).await;
    {
        let mut other = pin!(service.clone().oneshot(post("/", "other", "")));
        while poll_once(other.as_mut()).await.is_pending() && runs.get() == 0 {}
        gate.arrival().await;
    }
    send(&service, post("/", "k", "b"))
        .await
        .assert_problem(503, "overloaded");
    gate.open();
    drain(&layer).await;
    // The operation did not run in between, so that the first claim's end is still unknown.
    tokio::time::advance(Duration::from_secs(30)).await;
    send(&service, post("/", "k", "another"))
        .await
        .assert_problem(422, "key-reused");
    let retry = send(&service, post("/", "k", "b")).await;
    assert_ne!(
        retry.text(),
        "run 2 attempt 1",
        "the handler must see that an earlier attempt died"
    );
}

/// Answers with that many bytes in frames of 64, and trailers.
fn large(bytes: usize, runs: &Count) -> Inner<ScriptedBody> {
    let runs = runs.clone();
    inner(move |_| {
        runs.up();
        let mut steps = vec![Step::Data(Bytes::from(vec![b'x'; 64])); bytes / 64];
        steps.push(Step::Data(Bytes::from(vec![b'y'; bytes % 64])));
        steps.push(Step::Yield);
        let mut trailers = HeaderMap::new();
        trailers.insert("x-end", HeaderValue::from_static("yes"));
        steps.push(Step::Trailers(trailers));
        let response = Response::builder().status(201).body(ScriptedBody::new(steps));
        ready(response.unwrap())
    })
}

fn assert_tombstone(answer: &Answer, original: u16) {
    answer.assert_problem(409, "response-not-retained");
    assert_eq!(answer.json()["original_status"], original);
    assert_eq!(answer.header("retry-after"), None);
    assert_eq!(answer.header("x-should-retry"), Some("false"));
    assert_eq!(answer.outcome(), "not-retained");
}

#[tokio::test(start_paused = true)]
async fn contract_4_7_a_response_over_the_limit_is_delivered_and_leaves_a_tombstone() {
    for (bytes, kept) in [(1000, true), (1001, false), (5000, false)] {
        let runs = Count::default();
        let layer = IdempotencyLayer::builder(MemoryStore::new())
            .max_response_body(1000)
            .build()
            .unwrap();
        let service = layer.layer(large(bytes, &runs));
        let first = send(&service, post("/", "k", "b")).await;
        assert_eq!((first.status.as_u16(), first.body.len()), (201, bytes));
        assert_eq!(first.body.iter().filter(|&&byte| byte == b'y').count(), bytes % 64);
        assert_eq!(first.trailers.as_ref().map(HeaderMap::len), Some(1), "{bytes}");
        assert_eq!(first.outcome(), if kept { "executed" } else { "sealed" });
        for _ in 0..3 {
            let retry = send(&service, post("/", "k", "b")).await;
            if kept {
                retry.assert_replay_of(&first);
            } else {
                assert_tombstone(&retry, 201);
            }
        }
        send(&service, post("/", "k", "other"))
            .await
            .assert_problem(422, "key-reused");
        assert_eq!(runs.get(), 1);
    }
}

#[tokio::test(start_paused = true)]
async fn contract_4_7_a_declared_length_over_the_limit_streams_at_once() {
    let layer = IdempotencyLayer::builder(MemoryStore::new())
        .max_response_body(4)
        .build()
        .unwrap();
    let service = layer.layer(inner(|_| async {
        let body = ScriptedBody::new([Step::Data("hello".into()), Step::Hang]).declaring(10);
        Response::new(body)
    }));
    let response = respond(&service, post("/", "k", "b")).await;
    let mut body = pin!(response.into_body());
    assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), "hello");
    assert_tombstone(&send(&service, post("/", "k", "b")).await, 200);
}

#[tokio::test(start_paused = true)]
async fn contract_4_7_a_body_that_failed_midway_fails_at_the_client_and_leaves_a_tombstone() {
    let runs = Count::default();
    let counter = runs.clone();
    let service = IdempotencyLayer::new(MemoryStore::new()).layer(inner(move |_| {
        counter.up();
        let body = ScriptedBody::new([Step::Data("half".into()), Step::Yield, Step::Fail]);
        ready(Response::new(body))
    }));
    let response = respond(&service, post("/", "k", "b")).await;
    assert_eq!(response.extensions().get(), Some(&Outcome::Sealed));
    let mut body = pin!(response.into_body());
    assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), "half");
    let BrokenBody = body.frame().await.unwrap().unwrap_err();
    assert!(body.frame().await.is_none());
    assert_tombstone(&send(&service, post("/", "k", "b")).await, 200);
    assert_eq!(runs.get(), 1);
}

#[tokio::test(start_paused = true)]
async fn contract_4_8_a_stream_goes_out_live_and_leaves_a_tombstone_when_it_has_ended() {
    for content_type in [
        "text/event-stream",
        "Text/Event-Stream; charset=utf-8",
        "application/x-ndjson",
        "application/jsonl",
        "application/json-seq",
        "multipart/x-mixed-replace; boundary=b",
    ] {
        let gate = Gate::default();
        let stops = gate.clone();
        let service = IdempotencyLayer::new(MemoryStore::new()).layer(inner(move |_| {
            let body = ScriptedBody::new([Step::Data("data: 1\n\n".into()), Step::Stop(stops.clone())]);
            let response = Response::builder().header("content-type", content_type);
            ready(response.body(body).unwrap())
        }));
        let response = respond(&service, post("/", "k", "b")).await;
        assert_eq!(response.extensions().get(), Some(&Outcome::Sealed));
        let mut body = pin!(response.into_body());
        assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), "data: 1\n\n");
        // The stream is still open: its operation runs.
        send(&service, post("/", "k", "b"))
            .await
            .assert_problem(409, "in-flight");
        gate.open();
        assert!(body.frame().await.is_none());
        assert_tombstone(&send(&service, post("/", "k", "b")).await, 200);
    }
}

/// An event stream that has sent one event.
async fn open_stream<St: Store>(
    layer: &IdempotencyLayer<St>,
    gate: &Gate,
) -> impl http_body::Body<Data = Bytes> + use<St> {
    let stops = gate.clone();
    let service = layer.layer(inner(move |_| {
        let body = ScriptedBody::new([
            Step::Data("data: 1\n\n".into()),
            Step::Stop(stops.clone()),
            Step::Data("data: 2\n\n".into()),
        ]);
        let response = Response::builder().header("content-type", "text/event-stream");
        ready(response.body(body).unwrap())
    }));
    let mut body = Box::pin(respond(&service, post("/", "k", "b")).await.into_body());
    assert!(body.frame().await.unwrap().unwrap().is_data());
    body
}

#[tokio::test(start_paused = true)]
async fn contract_4_8_if_the_client_disconnects_from_a_stream_the_outcome_is_unknown() {
    let layer = IdempotencyLayer::new(MemoryStore::new());
    drop(open_stream(&layer, &Gate::default()).await);
    let service = numbered(&layer, &Count::default(), StatusCode::OK);
    send(&service, post("/", "k", "b"))
        .await
        .assert_problem(409, "outcome-unknown");
    assert_eq!(layer.background().len(), 0);
}

/// A server that knows the length does not ask for the end.
#[tokio::test]
async fn contract_4_8_a_stream_whose_declared_length_was_sent_has_ended() {
    for (sent, code) in [(1, "outcome-unknown"), (2, "response-not-retained")] {
        let service = IdempotencyLayer::new(MemoryStore::new()).layer(inner(|_| {
            let body = ScriptedBody::new([Step::Data("one".into()), Step::Data("two".into()), Step::Hang]);
            let response = Response::builder()
                .header("content-type", "text/event-stream")
                .header("content-length", "6");
            ready(response.body(body).unwrap())
        }));
        let response = respond(&service, post("/", "k", "b")).await;
        {
            let mut body = pin!(response.into_body());
            for _ in 0..sent {
                body.frame().await.unwrap().unwrap();
            }
        }
        send(&service, post("/", "k", "b")).await.assert_problem(409, code);
    }
}

/// Whether the call succeeded is in the trailers alone.
#[tokio::test]
async fn contract_4_8_and_7_3_without_its_trailers_the_outcome_of_a_call_is_unknown() {
    let layer = IdempotencyLayer::builder(MemoryStore::new()).policy(Policy::grpc());
    let failed = layer.build().unwrap().layer(inner(|_| {
        let body = ScriptedBody::new([Step::Data("one".into()), Step::Fail]);
        let response = Response::builder().header("content-type", "application/grpc");
        ready(response.body(body).unwrap())
    }));
    let response = respond(&failed, post("/", "k", "b")).await;
    assert!(response.into_body().collect().await.is_err());
    send(&failed, post("/", "k", "b"))
        .await
        .assert_problem(409, "outcome-unknown");
}

#[tokio::test(start_paused = true)]
async fn contract_4_8_by_option_a_stream_is_drained_without_its_client() {
    let layer = IdempotencyLayer::builder(MemoryStore::new())
        .drain_streams(true)
        .build()
        .unwrap();
    let gate = Gate::default();
    drop(open_stream(&layer, &gate).await);
    let service = numbered(&layer, &Count::default(), StatusCode::OK);
    send(&service, post("/", "k", "b"))
        .await
        .assert_problem(409, "in-flight");
    assert_eq!(layer.background().len(), 1);
    gate.open();
    drain(&layer).await;
    assert_tombstone(&send(&service, post("/", "k", "b")).await, 200);
}

#[tokio::test(start_paused = true)]
async fn contract_4_3_and_4_8_a_stream_that_fails_or_panics_is_settled() {
    for (step, fate, code) in [
        (Step::Fail, Fate::Release, "outcome-unknown"),
        (Step::Panic, Fate::Seal, "outcome-unknown"),
        (Step::Panic, Fate::Release, "ran"),
    ] {
        let layer = IdempotencyLayer::builder(MemoryStore::new())
            .policy(Policy::success().on_panic(fate))
            .build()
            .unwrap();
        let last = step.clone();
        let service = layer.layer(inner(move |_| {
            let body = ScriptedBody::new([Step::Data("data: 1\n\n".into()), last.clone()]);
            let response = Response::builder().header("content-type", "text/event-stream");
            ready(response.body(body).unwrap())
        }));
        let body = respond(&service, post("/", "k", "b")).await.into_body();
        let read = tokio::spawn(body.collect()).await;
        assert!(read.is_err() || read.unwrap().is_err());
        let retry = send(
            &numbered(&layer, &Count::default(), StatusCode::OK),
            post("/", "k", "b"),
        )
        .await;
        match code {
            "ran" => assert_eq!(retry.text(), "run 1"),
            code => retry.assert_problem(409, code),
        }
    }
}

#[tokio::test(start_paused = true)]
async fn contract_4_8_the_policy_can_say_so_of_others() {
    let by_type = Policy::success().stream_types(["application/x-ndjson"]);
    let by_verdict = Policy::from_fn(|_, headers| match headers.get("x-live") {
        Some(_) => Verdict::Seal,
        None => Verdict::Store,
    });
    for (policy, meanwhile) in [(by_type, "in-flight"), (by_verdict, "response-not-retained")] {
        let layer = IdempotencyLayer::builder(MemoryStore::new())
            .policy(policy)
            .build()
            .unwrap();
        let service = layer.layer(inner(|_| async {
            let body = ScriptedBody::new([Step::Data("{}\n".into()), Step::Hang]);
            let response = Response::builder()
                .header("content-type", "application/x-ndjson")
                .header("x-live", "1");
            response.body(body).unwrap()
        }));
        let response = respond(&service, post("/", "k", "b")).await;
        let mut body = pin!(response.into_body());
        assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), "{}\n");
        // A stream is awaited; that the operation is done is what `Seal` says.
        send(&service, post("/", "k", "b")).await.assert_problem(409, meanwhile);
    }
}

#[tokio::test(start_paused = true)]
async fn contract_4_cache_control_plays_no_part() {
    for cache_control in ["no-store", "private, no-cache", "max-age=0"] {
        let runs = Count::default();
        let counter = runs.clone();
        let service = IdempotencyLayer::new(MemoryStore::new()).layer(inner(move |_| {
            counter.up();
            let response = Response::builder().header("cache-control", cache_control);
            ready(response.body(Full::<Bytes>::from("paid")).unwrap())
        }));
        let first = send(&service, post("/", "k", "b")).await;
        let second = send(&service, post("/", "k", "b")).await;
        second.assert_replay_of(&first);
        assert_eq!(second.header("cache-control"), Some(cache_control));
        assert_eq!(runs.get(), 1);
    }
}

#[tokio::test(start_paused = true)]
async fn contract_4_a_panic_and_an_error_can_be_sealed() {
    for how in [How::PanicInCall, How::PanicAtOnce, How::PanicLater, How::Error] {
        let runs = Count::default();
        let layer = IdempotencyLayer::builder(MemoryStore::new())
            .policy(Policy::success().on_panic(Fate::Seal).on_error(Fate::Seal))
            .build()
            .unwrap();
        let service = layer.layer(FailsOnce {
            how,
            runs: runs.clone(),
        });
        match tokio::spawn(service.clone().oneshot(post("/", "k", "b"))).await {
            Ok(result) => assert_eq!(result.unwrap_err(), Refused(17)),
            Err(panic) => assert!(panic.is_panic()),
        }
        assert_eq!(counted(&layer, "sealed"), 1);
        let retry = send(&service, post("/", "k", "b")).await;
        retry.assert_problem(409, "outcome-unknown");
        assert_eq!((retry.header("retry-after"), retry.outcome()), (None, "not-retained"));
        assert_eq!(runs.get(), 1, "{how:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn contract_4_a_lapsed_lease_can_be_sealed() {
    let store = Scripted::default();
    let runs = Count::default();
    let layer = IdempotencyLayer::builder(store.clone())
        .policy(Policy::success().on_lapse(OnLapse::Refuse))
        .build()
        .unwrap();
    let service = numbered(&layer, &runs, StatusCode::OK);
    store.once(Op::Begin, Act::Fail);
    send(&service, post("/", "k", "b")).await;
    store.claim_and_die().await;
    tokio::time::advance(Duration::from_secs(31)).await;
    for _ in 0..2 {
        let retry = send(&service, post("/", "k", "b")).await;
        retry.assert_problem(409, "outcome-unknown");
        assert_eq!(retry.header("retry-after"), None);
    }
    send(&service, post("/", "k", "other"))
        .await
        .assert_problem(422, "key-reused");
    assert_eq!(runs.get(), 0);
}

#[tokio::test(start_paused = true)]
async fn contract_4_a_lost_body_can_be_released() {
    let runs = Count::default();
    let layer = IdempotencyLayer::builder(MemoryStore::new())
        .max_response_body(1)
        .policy(Policy::success().on_lost_body(Fate::Release))
        .build()
        .unwrap();
    let service = numbered(&layer, &runs, StatusCode::OK);
    assert_eq!(send(&service, post("/", "k", "b")).await.text(), "run 1");
    assert_eq!(send(&service, post("/", "k", "b")).await.text(), "run 2");
}

#[tokio::test(start_paused = true)]
async fn contract_4_any_response_can_be_stored_released_or_sealed() {
    let policy = Policy::from_fn(|status, headers| match (status.as_u16(), headers.get("x-verdict")) {
        (404, _) => Verdict::Store,
        (_, Some(_)) => Verdict::Seal,
        _ => Verdict::Release,
    });
    let layer = IdempotencyLayer::builder(MemoryStore::new())
        .policy(policy)
        .build()
        .unwrap();
    let runs = Count::default();
    let missing = numbered(&layer, &runs, StatusCode::NOT_FOUND);
    let first = send(&missing, post("/", "a", "")).await;
    send(&missing, post("/", "a", "")).await.assert_replay_of(&first);
    let fine = numbered(&layer, &runs, StatusCode::OK);
    assert_eq!(send(&fine, post("/", "b", "")).await.text(), "run 2");
    assert_eq!(send(&fine, post("/", "b", "")).await.text(), "run 3");
    let sealed = layer.layer(inner(|_| async {
        let response = Response::builder().status(409).header("x-verdict", "seal");
        response.body(Full::<Bytes>::from("done before")).unwrap()
    }));
    assert_eq!(send(&sealed, post("/", "c", "")).await.text(), "done before");
    assert_tombstone(&send(&sealed, post("/", "c", "")).await, 409);
}

#[tokio::test(start_paused = true)]
async fn contract_4_everything_is_one_line_and_policies_compose() {
    for status in [StatusCode::OK, StatusCode::NOT_FOUND, StatusCode::INTERNAL_SERVER_ERROR] {
        let runs = Count::default();
        let layer = IdempotencyLayer::builder(MemoryStore::new())
            .policy(Policy::everything())
            .build()
            .unwrap();
        let service = numbered(&layer, &runs, status);
        let first = send(&service, post("/", "k", "")).await;
        send(&service, post("/", "k", "")).await.assert_replay_of(&first);
    }
    let declined = Policy::from_fn(|status, _| match status {
        StatusCode::PAYMENT_REQUIRED => Verdict::Store,
        _ => Verdict::Release,
    });
    let layer = IdempotencyLayer::builder(MemoryStore::new())
        .policy(Policy::success().or(declined))
        .build()
        .unwrap();
    for (status, stored) in [(200, true), (402, true), (500, false)] {
        let runs = Count::default();
        let service = numbered(&layer, &runs, StatusCode::from_u16(status).unwrap());
        let key = format!("k{status}");
        send(&service, post("/", &key, "")).await;
        assert_eq!(
            send(&service, post("/", &key, "")).await.is_replay(),
            stored,
            "{status}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn contract_4_the_response_is_stored_before_the_client_sees_it() {
    let store = Scripted::default();
    let gate = Gate::default();
    let runs = Count::default();
    store.once(Op::Complete, Act::Stop(gate.clone()));
    let layer = IdempotencyLayer::new(store.clone());
    let service = numbered(&layer, &runs, StatusCode::OK);
    let mut request = pin!(send(&service, post("/", "k", "b")));
    for _ in 0..50 {
        assert!(
            poll_once(request.as_mut()).await.is_pending(),
            "not before the store has it"
        );
        tokio::task::yield_now().await;
    }
    gate.arrival().await;
    gate.open();
    let first = request.await;
    assert_eq!(first.text(), "run 1");
    send(&service, post("/", "k", "b")).await.assert_replay_of(&first);
}

#[tokio::test(start_paused = true)]
async fn contract_4_a_handler_that_is_longer_than_the_lease_is_safe() {
    let store = Scripted::default();
    let (gate, runs) = (Gate::default(), Count::default());
    let layer = IdempotencyLayer::builder(store.clone())
        .lease(Duration::from_secs(3))
        .build()
        .unwrap();
    let service = gated(&layer, &gate, &runs);
    let first = spawn(&service, post("/", "k", "b"));
    gate.arrival().await;
    for _ in 0..100 {
        tokio::time::sleep(Duration::from_secs(1)).await;
        send(&service, post("/", "k", "b"))
            .await
            .assert_problem(409, "in-flight");
    }
    assert!(store.calls(Op::Renew) >= 90, "{}", store.calls(Op::Renew));
    gate.open();
    let first = first.await.unwrap();
    send(&service, post("/", "k", "b")).await.assert_replay_of(&first);
    assert_eq!(runs.get(), 1);
    let renewals = store.calls(Op::Renew);
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(store.calls(Op::Renew), renewals, "it is not renewed after its end");
}

#[tokio::test(start_paused = true)]
async fn contract_4_the_lease_is_renewed_while_the_response_body_is_read() {
    let store = Scripted::default();
    let gate = Gate::default();
    let layer = IdempotencyLayer::builder(store.clone())
        .lease(Duration::from_secs(3))
        .build()
        .unwrap();
    let runs = Count::default();
    let (counter, stop) = (runs.clone(), gate.clone());
    let service = layer.layer(inner(move |_| {
        counter.up();
        let body = ScriptedBody::new([Step::Stop(stop.clone()), Step::Data("slow".into())]);
        ready(Response::new(body))
    }));
    let first = spawn(&service, post("/", "k", "b"));
    gate.arrival().await;
    for _ in 0..20 {
        tokio::time::sleep(Duration::from_secs(1)).await;
        send(&service, post("/", "k", "b"))
            .await
            .assert_problem(409, "in-flight");
    }
    gate.open();
    assert_eq!(first.await.unwrap().text(), "slow");
    assert_eq!(runs.get(), 1);
}

#[tokio::test(start_paused = true)]
async fn contract_4_a_holder_that_lost_its_lease_cannot_store_but_answers_its_client() {
    let store = Scripted::default();
    let (gate, runs) = (Gate::default(), Count::default());
    let layer = IdempotencyLayer::builder(store.clone())
        .lease(Duration::from_secs(30))
        .build()
        .unwrap();
    let service = gated(&layer, &gate, &runs);
    // The store does not hear from the first holder any more.
    store.always(Op::Renew, Act::Fail);
    let first = spawn(&service, post("/", "k", "b"));
    gate.arrival().await;
    tokio::time::sleep(Duration::from_secs(31)).await;
    store.always(Op::Renew, Act::Pass);
    let second = spawn(&service, post("/", "k", "b"));
    gate.arrival().await;
    // Semaphores are fair: the first goes first.
    gate.open_once();
    let first = first.await.unwrap();
    assert_eq!((first.status.as_u16(), first.text()), (200, "run 1 attempt 1"));
    assert_eq!(first.outcome(), "released", "it ran, and is not stored");
    send(&service, post("/", "k", "b"))
        .await
        .assert_problem(409, "in-flight");
    gate.open_once();
    let second = second.await.unwrap();
    assert_eq!((second.text(), second.outcome()), ("run 2 attempt 2", "executed"));
    send(&service, post("/", "k", "b")).await.assert_replay_of(&second);
}

#[tokio::test(start_paused = true)]
async fn contract_4_a_renewal_that_fails_once_is_tried_again_before_the_lease_lapses() {
    for act in [Act::Fail, Act::Hang] {
        let store = Scripted::default();
        let (gate, runs) = (Gate::default(), Count::default());
        let layer = IdempotencyLayer::builder(store.clone())
            .lease(Duration::from_secs(30))
            .build()
            .unwrap();
        let service = gated(&layer, &gate, &runs);
        store.once(Op::Renew, act);
        let first = spawn(&service, post("/", "k", "b"));
        gate.arrival().await;
        for _ in 0..60 {
            tokio::time::sleep(Duration::from_secs(1)).await;
            send(&service, post("/", "k", "b"))
                .await
                .assert_problem(409, "in-flight");
        }
        gate.open();
        assert_eq!(first.await.unwrap().outcome(), "executed");
        assert_eq!(runs.get(), 1);
    }
}

#[tokio::test(start_paused = true)]
async fn contract_4_a_lost_claim_is_not_renewed_but_its_handler_ends() {
    let store = Scripted::default();
    store.always(Op::Complete, Act::Lost);
    let layer = IdempotencyLayer::new(store.clone());
    let runs = Count::default();
    let service = numbered(&layer, &runs, StatusCode::OK);
    let first = send(&service, post("/", "k", "b")).await;
    assert_eq!((first.text(), first.outcome()), ("run 1", "released"));
    settle().await;
    assert_eq!(store.calls(Op::Complete), 1, "fenced off, not tried again");
}
