//! Section 8 of the contract: request bodies that are streamed to the handler and not held.

use std::future::{pending, ready};
use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use tower::Layer;
use tower_idempotency::store::{Inspect, OnLapse};
use tower_idempotency::{
    Fate, FingerprintSource, IdempotencyKey, IdempotencyLayer, IdempotencyLayerBuilder, IdempotencyService, KeySource,
    MemoryStore, Policy, Reconciled, Verdict,
};

use crate::support::store::{Act, Op, Scripted};
use crate::support::wait::watched;
use crate::support::{
    Answer, Count, Gate, Inner, ScriptedBody, Step, counted, drain, inner, ok, request, respond, send, settle, spawn,
};

const MIB: usize = 1024 * 1024;
const PATIENCE: Duration = Duration::from_secs(120);

/// What the handler does with the body.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Reads {
    /// Reads it to its end; a body that fails is answered with `500`.
    All,
    /// Reads as far as it comes, and answers `201` whatever became of it.
    Carelessly,
    /// Answers after the first frame.
    First,
    /// Answers without reading.
    Nothing,
}

impl Reads {
    /// At most so many.
    fn frames(self) -> usize {
        match self {
            Self::All | Self::Carelessly => usize::MAX,
            Self::First => 1,
            Self::Nothing => 0,
        }
    }
}

/// An upload's receiver: counts its runs, and answers `201` with the number of the run and the length.
#[derive(Clone, Default)]
struct Receiver {
    runs: Count,
    /// How often the body failed.
    failures: Count,
    /// Frames that came.
    frames: Count,
}

impl Receiver {
    async fn receive(self, reads: Reads, request: Request<Body>) -> Response<Full<Bytes>> {
        let run = self.runs.up();
        let attempt = request.extensions().get().map_or(0, IdempotencyKey::attempt);
        let mut body = request.into_body();
        let mut length = 0;
        let mut status = StatusCode::CREATED;
        for _ in 0..reads.frames() {
            match body.frame().await {
                Some(Ok(frame)) => {
                    length += frame.data_ref().map_or(0, Bytes::len);
                    self.frames.up();
                }
                Some(Err(_)) => {
                    self.failures.up();
                    if reads == Reads::All {
                        status = StatusCode::INTERNAL_SERVER_ERROR;
                    }
                    break;
                }
                None => break,
            }
        }
        drop(body);
        let mut response = ok(format!("run {run} attempt {attempt} of {length}"));
        *response.status_mut() = status;
        response
    }

    fn behind(&self, layer: &IdempotencyLayer<Scripted>, reads: Reads) -> IdempotencyService<Inner, Scripted> {
        let receiver = self.clone();
        layer.layer(inner(move |request| receiver.clone().receive(reads, request)))
    }
}

struct Uploads {
    store: Scripted,
    receiver: Receiver,
    layer: IdempotencyLayer<Scripted>,
    service: IdempotencyService<Inner, Scripted>,
}

impl Uploads {
    fn new(reads: Reads) -> Self {
        Self::with(reads, |builder| builder)
    }

    fn with(
        reads: Reads,
        configure: impl FnOnce(IdempotencyLayerBuilder<Scripted>) -> IdempotencyLayerBuilder<Scripted>,
    ) -> Self {
        let store = Scripted::default();
        let builder = IdempotencyLayer::builder(store.clone()).stream_request_bodies(MIB);
        let layer = configure(builder).build().unwrap();
        let receiver = Receiver::default();
        Self {
            service: receiver.behind(&layer, reads),
            store,
            receiver,
            layer,
        }
    }

    async fn send(&self, body: impl Into<Body>) -> Answer {
        send(&self.service, upload("/files", &[], body)).await
    }

    /// How many slots are not vacant.
    async fn held(&self) -> u64 {
        let census = self.store.count().await.unwrap();
        census.running + census.lapsed + census.done
    }

    fn runs(&self) -> usize {
        self.receiver.runs.get()
    }
}

fn upload(path: &str, headers: &[(&str, &str)], body: impl Into<Body>) -> Request<Body> {
    let headers = [&[("idempotency-key", "k")], headers].concat();
    request("POST", path, &headers, body)
}

fn scripted(steps: impl IntoIterator<Item = Step>) -> Body {
    Body::new(ScriptedBody::new(steps))
}

fn data(bytes: &'static str) -> Step {
    Step::Data(Bytes::from_static(bytes.as_bytes()))
}

#[tokio::test]
async fn contract_8_1_the_handler_reads_while_the_body_arrives_and_nothing_is_held() {
    let uploads = Uploads::new(Reads::All);
    let gate = Gate::default();
    let first = spawn(
        &uploads.service,
        upload(
            "/files",
            &[],
            scripted([data("one "), Step::Stop(gate.clone()), data("two")]),
        ),
    );
    gate.arrival().await;
    settle().await;
    assert_eq!(
        uploads.receiver.frames.get(),
        1,
        "the first frame is there before the second"
    );
    assert_eq!(uploads.store.count().await.unwrap().running, 1, "the key is claimed");
    gate.open();
    let first = first.await.unwrap();
    assert_eq!(
        (first.status, first.text()),
        (StatusCode::CREATED, "run 1 attempt 1 of 7")
    );
    assert_eq!(first.outcome(), "executed");
    uploads.send("one two").await.assert_replay_of(&first);
    assert_eq!(uploads.runs(), 1);
}

#[tokio::test]
async fn contract_8_1_a_request_without_a_key_passes_untouched() {
    let uploads = Uploads::new(Reads::All);
    let large = vec![b'x'; 2 * MIB];
    let answer = send(&uploads.service, request("POST", "/files", &[], large)).await;
    assert_eq!(answer.text(), format!("run 1 attempt 0 of {}", 2 * MIB));
    assert_eq!(counted(&uploads.layer, "unguarded"), 1);
}

#[tokio::test]
async fn contract_8_1_trailers_reach_the_handler() {
    let layer = IdempotencyLayer::builder(MemoryStore::new());
    let layer = layer.stream_request_bodies(MIB).build().unwrap();
    let service = layer.layer(inner(|request: Request<Body>| async {
        let collected = request.into_body().collect().await.unwrap();
        let sum = collected.trailers().and_then(|trailers| trailers.get("x-sum")).cloned();
        ok(sum.map_or_else(Bytes::new, |sum| Bytes::copy_from_slice(sum.as_bytes())))
    }));
    let mut trailers = HeaderMap::new();
    trailers.insert("x-sum", HeaderValue::from_static("abc"));
    let body = scripted([data("one"), Step::Trailers(trailers)]);
    let first = send(&service, upload("/", &[], body)).await;
    assert_eq!(first.text(), "abc");
    // They are not a part of the content.
    send(&service, upload("/", &[], "one")).await.assert_replay_of(&first);
}

#[tokio::test]
async fn contract_8_2_a_duplicate_in_flight_is_refused_and_its_body_is_not_read() {
    let uploads = Uploads::new(Reads::All);
    let gate = Gate::default();
    let first = spawn(
        &uploads.service,
        upload("/files?a=1", &[], scripted([Step::Stop(gate.clone()), data("one")])),
    );
    gate.arrival().await;
    let polled = Count::default();
    let unread = || Body::new(ScriptedBody::new([Step::Hang]).counting(&polled));
    let expect = [("expect", "100-continue")];
    send(&uploads.service, upload("/files?a=1", &expect, unread()))
        .await
        .assert_problem(409, "in-flight");
    for (method, path) in [
        ("PATCH", "/files?a=1"),
        ("POST", "/other?a=1"),
        ("POST", "/files?a=2"),
        ("POST", "/files"),
    ] {
        let headers = [("idempotency-key", "k"), ("expect", "100-continue")];
        send(&uploads.service, request(method, path, &headers, unread()))
            .await
            .assert_problem(422, "key-reused");
    }
    settle().await;
    assert_eq!(polled.get(), 0, "who reads tells the client to send");
    // Without `Expect` the answer does not wait for the body either.
    send(&uploads.service, upload("/files?a=1", &[], scripted([Step::Hang])))
        .await
        .assert_problem(409, "in-flight");
    gate.open();
    assert_eq!(first.await.unwrap().status, 201);
    assert_eq!(uploads.runs(), 1);
}

#[tokio::test]
async fn contract_8_2_a_duplicate_that_waits_does_not_read_its_body_before_the_outcome() {
    let uploads = Uploads::with(Reads::All, |builder| builder.wait(Duration::from_secs(60)));
    let gate = Gate::default();
    let first = spawn(
        &uploads.service,
        upload("/files", &[], scripted([Step::Stop(gate.clone()), data("one")])),
    );
    gate.arrival().await;
    let polled = Count::default();
    let body = Body::new(ScriptedBody::new([data("one")]).counting(&polled));
    let second = spawn(&uploads.service, upload("/files", &[], body));
    settle().await;
    assert_eq!(polled.get(), 0);
    gate.open();
    let first = first.await.unwrap();
    second.await.unwrap().assert_replay_of(&first);
    assert!(polled.get() > 0);
}

#[tokio::test]
async fn contract_8_3_a_later_duplicate_is_compared_by_its_body() {
    let uploads = Uploads::new(Reads::All);
    let first = uploads.send("one two").await;
    // Frames do not count.
    let frames = scripted([data("one"), Step::Yield, data(""), data(" t"), data("wo")]);
    uploads.send(frames).await.assert_replay_of(&first);
    for other in ["one tw", "one two ", "", "ONE TWO"] {
        uploads.send(other).await.assert_problem(422, "key-reused");
    }
    uploads.send("one two").await.assert_replay_of(&first);
    assert_eq!(uploads.runs(), 1);
    assert_eq!(counted(&uploads.layer, "key-reused"), 4);
}

#[tokio::test]
async fn contract_8_3_an_empty_body_is_a_body() {
    let uploads = Uploads::new(Reads::All);
    let first = uploads.send(Body::empty()).await;
    uploads.send(scripted([])).await.assert_replay_of(&first);
    uploads.send("x").await.assert_problem(422, "key-reused");
}

#[tokio::test]
async fn contract_8_3_a_duplicate_whose_body_fails_or_is_too_large_is_refused() {
    let uploads = Uploads::new(Reads::All);
    let first = uploads.send("one").await;
    uploads
        .send(scripted([data("one"), Step::Fail]))
        .await
        .assert_problem(400, "body-unreadable");
    uploads
        .send(vec![b'x'; MIB + 1])
        .await
        .assert_problem(413, "body-too-large");
    let endless = std::iter::repeat_n(Step::Data(Bytes::from(vec![b'x'; MIB / 4])), 5);
    uploads
        .send(scripted(endless))
        .await
        .assert_problem(413, "body-too-large");
    let short = Body::new(ScriptedBody::new([data("one")]).declaring(4));
    uploads.send(short).await.assert_problem(400, "body-unreadable");
    uploads.send("one").await.assert_replay_of(&first);
    assert_eq!(uploads.runs(), 1);
}

#[tokio::test]
async fn contract_8_3_a_tombstone_is_compared_as_a_record_is() {
    let uploads = Uploads::with(Reads::All, |builder| {
        builder.policy(Policy::from_fn(|_, _| Verdict::Seal))
    });
    assert_eq!(uploads.send("one").await.outcome(), "sealed");
    uploads.send("one").await.assert_problem(409, "response-not-retained");
    uploads.send("two").await.assert_problem(422, "key-reused");
}

#[tokio::test]
async fn contract_8_4_if_the_body_breaks_off_the_handler_sees_it_and_nothing_is_stored() {
    for reads in [Reads::All, Reads::Carelessly] {
        let uploads = Uploads::new(reads);
        let broken: [Body; 3] = [
            scripted([data("one"), Step::Fail]),
            scripted([Step::Fail]),
            Body::new(ScriptedBody::new([data("one")]).declaring(4)),
        ];
        for (count, body) in (1..).zip(broken) {
            let answer = uploads.send(body).await;
            answer.assert_problem(400, "body-unreadable");
            assert_eq!(answer.outcome(), "body-unreadable");
            assert_eq!(uploads.receiver.failures.get(), count, "the handler sees it");
            assert_eq!(uploads.held().await, 0, "nothing is kept");
        }
        let whole = uploads.send("one two").await;
        assert_eq!(whole.text(), "run 4 attempt 1 of 7");
        uploads.send("one two").await.assert_replay_of(&whole);
    }
}

#[tokio::test]
async fn contract_8_4_a_handler_that_ignores_a_broken_body_keeps_nothing_whatever_its_verdict() {
    for (verdict, kept) in [
        (Verdict::Store, 0),
        (Verdict::StoreFor(Duration::from_secs(1)), 0),
        (Verdict::Seal, 0),
        (Verdict::Release, 0),
        // The key stays bound to its head, and the next run is attempt 2.
        (Verdict::Reopen, 1),
    ] {
        let uploads = Uploads::with(Reads::Carelessly, |builder| {
            builder.policy(Policy::from_fn(move |_, _| verdict))
        });
        uploads
            .send(scripted([data("one"), Step::Fail]))
            .await
            .assert_problem(400, "body-unreadable");
        assert_eq!(uploads.held().await, kept, "{verdict:?}");
        let again = uploads.send("one").await;
        assert_eq!(again.text(), format!("run 2 attempt {} of 3", 1 + kept), "{verdict:?}");
    }
}

#[tokio::test]
async fn contract_8_4_the_rest_is_read_before_the_outcome_is_stored() {
    for reads in [Reads::First, Reads::Nothing] {
        let uploads = Uploads::new(reads);
        let gate = Gate::default();
        let body = scripted([data("one"), Step::Stop(gate.clone()), data(" two")]);
        let first = spawn(&uploads.service, upload("/files", &[], body));
        gate.arrival().await;
        settle().await;
        assert_eq!(uploads.runs(), 1, "the handler has run");
        assert!(!first.is_finished(), "{reads:?}: the answer waits for the rest");
        gate.open();
        let first = first.await.unwrap();
        assert_eq!((first.status.as_u16(), first.outcome()), (201, "executed"));
        uploads.send("one two").await.assert_replay_of(&first);
        uploads.send("one").await.assert_problem(422, "key-reused");
    }
}

#[tokio::test(start_paused = true)]
async fn contract_8_4_a_rest_that_does_not_come_whole_seals_the_outcome() {
    let too_large = std::iter::repeat_n(Step::Data(Bytes::from(vec![b'x'; MIB / 4])), 6);
    for rest in [
        vec![data("one"), Step::Fail],
        too_large.collect(),
        // Beyond `response_body_within`.
        vec![data("one"), Step::Hang],
    ] {
        for reads in [Reads::First, Reads::Nothing] {
            let uploads = Uploads::new(reads);
            let first = uploads.send(scripted(rest.clone())).await;
            assert_eq!((first.status.as_u16(), first.outcome()), (201, "sealed"), "{rest:?}");
            // What the body was is not known, so that no retry runs, whatever its body is.
            for body in ["one", "two"] {
                let retry = uploads.send(body).await;
                retry.assert_problem(409, "response-not-retained");
                assert_eq!(retry.json()["original_status"], 201);
            }
            assert_eq!(uploads.runs(), 1);
        }
    }
}

#[tokio::test]
async fn contract_8_4_an_answer_that_is_not_stored_does_not_wait_for_the_rest() {
    let uploads = Uploads::with(Reads::Nothing, |builder| {
        builder.policy(Policy::from_fn(|_, _| Verdict::Release))
    });
    let answer = uploads.send(scripted([data("one"), Step::Hang])).await;
    assert_eq!((answer.status.as_u16(), answer.outcome()), (201, "released"));
}

#[tokio::test]
async fn contract_8_4_a_body_above_the_limit_is_413() {
    for reads in [Reads::All, Reads::Carelessly] {
        let uploads = Uploads::new(reads);
        // Declared: the handler does not run.
        uploads
            .send(vec![b'x'; MIB + 1])
            .await
            .assert_problem(413, "body-too-large");
        assert_eq!(uploads.runs(), 0);
        let endless = std::iter::repeat_n(Step::Data(Bytes::from(vec![b'x'; MIB / 4])), 5);
        uploads
            .send(scripted(endless))
            .await
            .assert_problem(413, "body-too-large");
        assert_eq!((uploads.runs(), uploads.receiver.frames.get()), (1, 4));
        assert_eq!(uploads.held().await, 0);
        // One that has just the limit is taken.
        let first = uploads.send(vec![b'x'; MIB]).await;
        uploads.send(vec![b'x'; MIB]).await.assert_replay_of(&first);
    }
}

#[tokio::test]
async fn contract_8_4_the_handler_sees_a_limit_as_every_limit_of_http_body_util() {
    let layer = IdempotencyLayer::builder(MemoryStore::new());
    let layer = layer.stream_request_bodies(2).build().unwrap();
    let seen = Count::default();
    let sees = seen.clone();
    let service = layer.layer(inner(move |request: Request<Body>| {
        let sees = sees.clone();
        async move {
            let error = request.into_body().collect().await.unwrap_err().into_inner();
            if error.is::<http_body_util::LengthLimitError>() {
                sees.up();
            }
            ok("")
        }
    }));
    let answer = send(&service, upload("/", &[], scripted([data("one")]))).await;
    answer.assert_problem(413, "body-too-large");
    assert_eq!(seen.get(), 1);
}

#[tokio::test]
async fn contract_8_4_a_limit_outside_the_layer_is_413_too() {
    let uploads = Uploads::new(Reads::All);
    let body = Body::new(http_body_util::Limited::new(
        ScriptedBody::new([data("one"), data("two")]),
        4,
    ));
    uploads.send(body).await.assert_problem(413, "body-too-large");
    assert_eq!((uploads.runs(), uploads.receiver.failures.get()), (1, 1));
}

#[tokio::test]
async fn contract_8_4_a_body_that_is_read_in_a_task_of_the_handler_is_waited_for() {
    let layer = IdempotencyLayer::builder(MemoryStore::new());
    let layer = layer.stream_request_bodies(MIB).build().unwrap();
    let service = layer.layer(inner(|request: Request<Body>| {
        // Accepted, and worked on later.
        tokio::spawn(request.into_body().collect());
        ready(ok("accepted"))
    }));
    let gate = Gate::default();
    let body = scripted([data("one"), Step::Stop(gate.clone()), data(" two")]);
    let first = spawn(&service, upload("/", &[], body));
    gate.arrival().await;
    settle().await;
    assert!(!first.is_finished());
    gate.open();
    let first = first.await.unwrap();
    assert_eq!(first.outcome(), "executed");
    send(&service, upload("/", &[], "one two"))
        .await
        .assert_replay_of(&first);
    send(&service, upload("/", &[], "one"))
        .await
        .assert_problem(422, "key-reused");
}

#[tokio::test]
async fn contract_8_4_an_echo_reads_the_body_while_it_is_read() {
    let layer = IdempotencyLayer::builder(MemoryStore::new());
    let layer = layer.stream_request_bodies(MIB).build().unwrap();
    let service = layer.layer(inner(|request: Request<Body>| {
        ready(Response::new(request.into_body()))
    }));
    let first = send(
        &service,
        upload("/", &[], scripted([data("one"), Step::Yield, data(" two")])),
    )
    .await;
    assert_eq!((first.text(), first.outcome()), ("one two", "executed"));
    send(&service, upload("/", &[], "one two"))
        .await
        .assert_replay_of(&first);
    send(&service, upload("/", &[], "one"))
        .await
        .assert_problem(422, "key-reused");
}

#[tokio::test]
async fn contract_8_4_a_live_echo_is_sealed_when_it_ends_with_what_its_body_was() {
    for (body, retries) in [
        (
            vec![data("one"), Step::Yield, data(" two")],
            [(409, "response-not-retained"), (422, "key-reused")],
        ),
        // The response was on its way: that it broke off is an outcome that nobody knows.
        (
            vec![data("one"), Step::Fail],
            [(409, "outcome-unknown"), (409, "outcome-unknown")],
        ),
    ] {
        let layer = IdempotencyLayer::builder(MemoryStore::new());
        let layer = layer.stream_request_bodies(MIB).build().unwrap();
        let service = layer.layer(inner(|request: Request<Body>| {
            let response = Response::builder().header("content-type", "text/event-stream");
            ready(response.body(request.into_body()).unwrap())
        }));
        let response = respond(&service, upload("/", &[], scripted(body))).await;
        let _ = response.into_body().collect().await;
        drain(&layer).await;
        for (retry, (status, slug)) in ["one two", "other"].into_iter().zip(retries) {
            send(&service, upload("/", &[], retry))
                .await
                .assert_problem(status, slug);
        }
    }
}

#[tokio::test]
async fn contract_8_4_a_client_that_leaves_does_not_stop_an_upload_that_is_whole() {
    let uploads = Uploads::new(Reads::All);
    let gate = Gate::default();
    let body = scripted([data("one"), Step::Stop(gate.clone()), data(" two")]);
    let first = spawn(&uploads.service, upload("/files", &[], body));
    gate.arrival().await;
    first.abort();
    assert!(first.await.unwrap_err().is_cancelled());
    gate.open();
    drain(&uploads.layer).await;
    let retry = uploads.send("one two").await;
    assert_eq!(retry.text(), "run 1 attempt 1 of 7");
    assert!(retry.is_replay());
}

#[tokio::test]
async fn contract_8_4_a_client_that_leaves_in_the_middle_leaves_nothing() {
    for fate in [None, Some(Fate::Release)] {
        let uploads = Uploads::with(Reads::Carelessly, |builder| match fate {
            Some(fate) => builder.cancel_on_disconnect(fate),
            None => builder,
        });
        let gate = Gate::default();
        let body = scripted([data("one"), Step::Stop(gate.clone()), Step::Fail]);
        let first = spawn(&uploads.service, upload("/files", &[], body));
        gate.arrival().await;
        first.abort();
        assert!(first.await.unwrap_err().is_cancelled());
        gate.open();
        drain(&uploads.layer).await;
        assert_eq!(uploads.held().await, 0, "{fate:?}");
        assert_eq!(uploads.send("one two").await.text(), "run 2 attempt 1 of 7");
    }
}

#[tokio::test]
async fn contract_8_4_a_panic_in_the_body_is_one_of_the_handler() {
    let uploads = Uploads::with(Reads::All, |builder| {
        builder.policy(Policy::default().on_panic(Fate::Seal))
    });
    let first = spawn(
        &uploads.service,
        upload("/files", &[], scripted([data("one"), Step::Panic])),
    );
    assert!(first.await.unwrap_err().is_panic());
    drain(&uploads.layer).await;
    uploads.send("one").await.assert_problem(409, "outcome-unknown");

    // Also when nobody but the layer reads it.
    let uploads = Uploads::new(Reads::Nothing);
    let first = spawn(
        &uploads.service,
        upload("/files", &[], scripted([data("one"), Step::Panic])),
    );
    assert!(first.await.unwrap_err().is_panic());
    drain(&uploads.layer).await;
    assert_eq!(uploads.held().await, 0);
    assert_eq!(uploads.send("one").await.text(), "run 2 attempt 1 of 0");
}

#[tokio::test]
async fn contract_8_4_a_handler_that_panics_over_a_broken_body_ends_as_the_policy_says() {
    for (fate, retry) in [(Fate::Release, "run 2 attempt 1"), (Fate::Reopen, "run 2 attempt 2")] {
        let store = MemoryStore::new();
        let layer = IdempotencyLayer::builder(store).stream_request_bodies(MIB);
        let layer = layer.policy(Policy::default().on_panic(fate)).build().unwrap();
        let runs = Count::default();
        let service = layer.layer(inner(move |request: Request<Body>| {
            let run = runs.up();
            async move {
                let attempt = request.extensions().get().map_or(0, IdempotencyKey::attempt);
                request
                    .into_body()
                    .collect()
                    .await
                    .expect("a whole body, as the test wants");
                ok(format!("run {run} attempt {attempt}"))
            }
        }));
        let broken = spawn(&service, upload("/", &[], scripted([data("one"), Step::Fail])));
        assert!(broken.await.unwrap_err().is_panic());
        assert_eq!(send(&service, upload("/", &[], "one")).await.text(), retry);
    }
}

#[tokio::test(start_paused = true)]
async fn contract_8_1_a_slow_body_has_all_the_time_it_needs() {
    let uploads = Uploads::new(Reads::All);
    let gate = Gate::default();
    let body = scripted([data("one"), Step::Stop(gate.clone()), data(" two")]);
    let first = spawn(&uploads.service, upload("/files", &[], body));
    gate.arrival().await;
    // Hours beyond every timeout and the lease: the claim is still held.
    tokio::time::sleep(Duration::from_secs(4 * 3600)).await;
    uploads.send(Body::empty()).await.assert_problem(409, "in-flight");
    gate.open();
    let first = first.await.unwrap();
    assert_eq!(first.outcome(), "executed");

    // A duplicate as well.
    let gate = Gate::default();
    let body = scripted([data("one"), Step::Stop(gate.clone()), data(" two")]);
    let second = spawn(&uploads.service, upload("/files", &[], body));
    gate.arrival().await;
    tokio::time::sleep(Duration::from_secs(4 * 3600)).await;
    gate.open();
    second.await.unwrap().assert_replay_of(&first);
}

#[tokio::test(start_paused = true)]
async fn contract_8_7_a_lapsed_upload_is_taken_over_and_the_late_one_is_fenced_off() {
    let uploads = Uploads::new(Reads::All);
    let gate = Gate::default();
    let body = scripted([data("one"), Step::Stop(gate.clone()), data(" two")]);
    let first = spawn(&uploads.service, upload("/files", &[], body));
    gate.arrival().await;
    uploads.store.always(Op::Renew, Act::Fail);
    tokio::time::sleep(Duration::from_secs(60)).await;
    uploads.store.always(Op::Renew, Act::Pass);
    // What the first attempt's body would have been is not known.
    let second = uploads.send("other body").await;
    assert_eq!(second.text(), "run 2 attempt 2 of 10");
    gate.open();
    assert_eq!(first.await.unwrap().outcome(), "released");
    uploads.send("other body").await.assert_replay_of(&second);
    uploads.send("one two").await.assert_problem(422, "key-reused");
}

#[tokio::test(start_paused = true)]
async fn contract_8_7_a_reconciler_is_told_that_the_body_is_not_there() {
    let asked = Count::default();
    let asks = asked.clone();
    let uploads = Uploads::with(Reads::All, move |builder| {
        builder.policy(Policy::default().reconcile(move |lapsed| {
            asks.up();
            assert!(!lapsed.has_body && lapsed.body.is_empty());
            let done = lapsed.request.uri.path() == "/done";
            ready(Ok(match done {
                true => Reconciled::Done(Response::new(Bytes::from("it was done"))),
                false => Reconciled::Run,
            }))
        }))
    });
    for (path, expected) in [("/files", "run 2 attempt 2 of 3"), ("/done", "it was done")] {
        let headers = [("idempotency-key", path)];
        let hangs = request("POST", path, &headers, scripted([Step::Hang]));
        let first = spawn(&uploads.service, hangs);
        settle().await;
        uploads.store.always(Op::Renew, Act::Fail);
        tokio::time::sleep(Duration::from_secs(60)).await;
        uploads.store.always(Op::Renew, Act::Pass);
        let second = send(&uploads.service, request("POST", path, &headers, "one")).await;
        assert_eq!(second.text(), expected);
        first.abort();
    }
    assert_eq!(asked.get(), 2);
    // What the reconciler said is of no body that is known: every retry gets it.
    for body in ["one", "two"] {
        let headers = [("idempotency-key", "/done")];
        let retry = send(&uploads.service, request("POST", "/done", &headers, body)).await;
        assert_eq!(retry.text(), "it was done");
    }
}

#[tokio::test(start_paused = true)]
async fn contract_8_7_a_lapsed_upload_can_be_refused() {
    let uploads = Uploads::with(Reads::All, |builder| {
        builder.policy(Policy::default().on_lapse(OnLapse::Refuse))
    });
    let first = spawn(&uploads.service, upload("/files", &[], scripted([Step::Hang])));
    settle().await;
    uploads.store.always(Op::Renew, Act::Fail);
    tokio::time::sleep(Duration::from_secs(60)).await;
    uploads.send("one").await.assert_problem(409, "outcome-unknown");
    first.abort();
}

#[tokio::test]
async fn contract_8_the_store_fails_before_or_after() {
    // Before: nothing runs, and the body is not read.
    let uploads = Uploads::new(Reads::All);
    uploads.store.once(Op::Begin, Act::Fail);
    let polled = Count::default();
    let body = Body::new(ScriptedBody::new([data("one")]).counting(&polled));
    send(&uploads.service, upload("/files", &[("expect", "100-continue")], body))
        .await
        .assert_problem(503, "store-unavailable");
    assert_eq!((uploads.runs(), polled.get()), (0, 0));

    // Open: it runs with the body as it is.
    let uploads = Uploads::with(Reads::All, |builder| builder.run_unprotected_when_store_fails());
    uploads.store.down(true);
    let answer = uploads.send("one").await;
    assert_eq!(
        (answer.outcome(), answer.text()),
        ("unprotected", "run 1 attempt 1 of 3")
    );
    // The handler still cannot be sent more than the limit, or another content than was declared.
    let endless = scripted(std::iter::repeat_n(data("sixteen bytes .."), MIB / 16 + 1));
    let digest = [(
        "content-digest",
        "sha-256=:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=:",
    )];
    for request in [upload("/files", &[], endless), upload("/files", &digest, "two")] {
        let answer = send(&uploads.service, request).await;
        assert_eq!((answer.outcome(), answer.status.as_u16()), ("unprotected", 500));
    }
    assert_eq!(uploads.receiver.failures.get(), 2);

    // After: the outcome is stored in the background, with the body.
    let uploads = Uploads::new(Reads::All);
    uploads.store.once(Op::Complete, Act::Fail);
    let first = uploads.send("one").await;
    assert_eq!(first.status, 201);
    drain(&uploads.layer).await;
    uploads.send("one").await.assert_replay_of(&first);
    uploads.send("two").await.assert_problem(422, "key-reused");
}

#[tokio::test]
async fn contract_8_3_a_record_whose_body_cannot_be_read_lets_nothing_run() {
    let uploads = Uploads::new(Reads::All);
    let first = uploads.send("one").await;
    assert_eq!(first.status, 201);
    let slot = uploads.store.begins()[0].slot;
    let mut bytes = uploads.store.records()[0].to_bytes();
    let length = bytes.len();
    bytes[length - 20] ^= 1;
    uploads.store.plant(slot, bytes);
    uploads.send("one").await.assert_problem(503, "store-unavailable");
    uploads.store.unplant();
    uploads.send("one").await.assert_replay_of(&first);
}

/// Routes of both kinds share keys, and a deploy may switch.
#[tokio::test]
async fn contract_8_8_requests_are_compared_with_those_of_the_other_setting() {
    for (source, path_counts) in [
        (FingerprintSource::request(), true),
        (FingerprintSource::canonical_json(), true),
        (FingerprintSource::json_fields(["/a"]), true),
        (FingerprintSource::request().without(["/b"]), true),
        (FingerprintSource::body(), false),
    ] {
        let store = Scripted::default();
        let receiver = Receiver::default();
        let build = |streams: bool| {
            let builder = IdempotencyLayer::builder(store.clone()).fingerprint(source.clone());
            let builder = builder.max_request_body(1000);
            let builder = if streams {
                builder.stream_request_bodies(MIB)
            } else {
                builder
            };
            receiver.behind(&builder.build().unwrap(), Reads::All)
        };
        for (key, before, after) in [("a", build(false), build(true)), ("b", build(true), build(false))] {
            let send = async |service, path, body: &str| {
                let headers = [("idempotency-key", key)];
                send(service, request("POST", path, &headers, body.to_owned())).await
            };
            let body = r#"{"a":1}"#;
            let first = send(&before, "/", body).await;
            assert_eq!(first.outcome(), "executed");
            for service in [&after, &before] {
                send(service, "/", body).await.assert_replay_of(&first);
                send(service, "/", r#"{"a":2}"#).await.assert_problem(422, "key-reused");
                send(service, "/", "").await.assert_problem(422, "key-reused");
                let elsewhere = send(service, "/other", body).await;
                match path_counts {
                    true => elsewhere.assert_problem(422, "key-reused"),
                    false => elsewhere.assert_replay_of(&first),
                }
            }
            // More than what is held is another body.
            let long = format!("{body}{}", " ".repeat(1000));
            let long = send(&after, "/", &long).await;
            assert!([413, 422].contains(&long.status.as_u16()), "{long:?}");
            send(&after, "/", body).await.assert_replay_of(&first);
        }
        assert_eq!(receiver.runs.get(), 2, "{source:?}");
    }
}

#[tokio::test]
async fn contract_8_8_a_tombstone_without_a_body_is_compared_by_its_head() {
    let store = Scripted::default();
    let receiver = Receiver::default();
    let build = |streams: bool| {
        let builder = IdempotencyLayer::builder(store.clone());
        let builder = if streams {
            builder.stream_request_bodies(MIB)
        } else {
            builder
        };
        receiver.behind(&builder.build().unwrap(), Reads::Nothing)
    };
    let broken = scripted([data("one"), Step::Fail]);
    let first = send(&build(true), upload("/", &[], broken)).await;
    assert_eq!(first.outcome(), "sealed");
    for service in [build(true), build(false)] {
        let retry = send(&service, upload("/", &[], "any body")).await;
        retry.assert_problem(409, "response-not-retained");
        let other = send(&service, upload("/other", &[], "any body")).await;
        other.assert_problem(422, "key-reused");
    }
}

#[tokio::test]
async fn contract_8_8_another_rule_is_not_compared() {
    let store = Scripted::default();
    let receiver = Receiver::default();
    let build = |streams: bool, source: FingerprintSource| {
        let builder = IdempotencyLayer::builder(store.clone()).fingerprint(source);
        let builder = if streams {
            builder.stream_request_bodies(MIB)
        } else {
            builder
        };
        receiver.behind(&builder.build().unwrap(), Reads::All)
    };
    for (key, streams) in [("a", [true, true]), ("b", [true, false]), ("c", [false, true])] {
        let headers = [("idempotency-key", key)];
        let before = build(streams[0], FingerprintSource::request());
        let first = send(&before, request("POST", "/", &headers, "one")).await;
        let after = build(streams[1], FingerprintSource::body());
        send(&after, request("POST", "/", &headers, "other"))
            .await
            .assert_replay_of(&first);
    }
}

#[tokio::test]
async fn contract_8_an_operation_that_was_settled_by_hand_is_replayed_to_every_body() {
    let uploads = Uploads::with(Reads::All, |builder| {
        builder.policy(Policy::from_fn(|_, _| Verdict::Reopen))
    });
    uploads.send("one").await;
    let begin = uploads.store.begins()[0];
    let answer = Response::builder().status(201).body(Bytes::from("by hand")).unwrap();
    uploads
        .store
        .settle(&begin.slot, &answer, Duration::from_secs(60))
        .await
        .unwrap();
    for body in ["one", "two"] {
        assert_eq!(uploads.send(body).await.text(), "by hand");
    }
}

#[tokio::test]
async fn contract_8_overload_and_readiness_leave_the_body_alone() {
    let uploads = Uploads::with(Reads::All, |builder| builder.max_detached(1));
    let gone = spawn(
        &uploads.service,
        request("POST", "/", &[("idempotency-key", "gone")], scripted([Step::Hang])),
    );
    settle().await;
    gone.abort();
    let _ = gone.await;
    let polled = Count::default();
    let body = Body::new(ScriptedBody::new([data("one")]).counting(&polled));
    send(&uploads.service, upload("/files", &[("expect", "100-continue")], body))
        .await
        .assert_problem(503, "overloaded");
    assert_eq!(polled.get(), 0);
}

#[tokio::test]
async fn contract_8_6_without_fingerprint_and_with_a_key_in_the_head_nothing_is_buffered() {
    for (source, streams) in [
        (FingerprintSource::none(), false),
        (FingerprintSource::none(), true),
        (FingerprintSource::from_head(|parts| Ok(parts.uri.path().into())), false),
        (FingerprintSource::from_head(|parts| Ok(parts.uri.path().into())), true),
    ] {
        for key in [
            KeySource::default(),
            KeySource::from_head(|parts| {
                let line = parts.headers.get("idempotency-key");
                Ok(line.and_then(|line| line.to_str().ok()).map(str::to_owned))
            }),
        ] {
            let store = Scripted::default();
            let builder = IdempotencyLayer::builder(store.clone())
                .fingerprint(source.clone())
                .key(key);
            // Smaller than the bodies: it holds where something is buffered.
            let builder = builder.max_request_body(2);
            let builder = if streams {
                builder.stream_request_bodies(MIB)
            } else {
                builder
            };
            let layer = builder.build().unwrap();
            let receiver = Receiver::default();
            let service = receiver.behind(&layer, Reads::All);
            let gate = Gate::default();
            let body = scripted([data("one"), Step::Stop(gate.clone()), data(" two")]);
            let first = spawn(&service, upload("/", &[], body));
            gate.arrival().await;
            settle().await;
            assert_eq!(receiver.frames.get(), 1, "{source:?}");
            gate.open();
            let first = first.await.unwrap();
            assert_eq!(first.text(), "run 1 attempt 1 of 7");
            // The body does not count, and is not read.
            let polled = Count::default();
            let body = Body::new(ScriptedBody::new([Step::Hang]).counting(&polled));
            let retry = send(&service, upload("/", &[("expect", "100-continue")], body)).await;
            retry.assert_replay_of(&first);
            assert_eq!(polled.get(), 0);
        }
    }
}

#[tokio::test]
async fn contract_8_6_a_closure_over_the_head_that_fails_makes_the_whole_request_count() {
    for streams in [false, true] {
        let store = Scripted::default();
        let builder = IdempotencyLayer::builder(store).fingerprint(FingerprintSource::from_head(|_| Err("no".into())));
        let builder = if streams {
            builder.stream_request_bodies(MIB)
        } else {
            builder
        };
        let service = Receiver::default().behind(&builder.build().unwrap(), Reads::All);
        let first = send(&service, upload("/", &[], "one")).await;
        send(&service, upload("/", &[], "one")).await.assert_replay_of(&first);
        send(&service, upload("/", &[], "two"))
            .await
            .assert_problem(422, "key-reused");
    }
}

#[tokio::test]
async fn contract_8_a_body_type_that_cannot_stream_is_refused_before_the_handler_runs() {
    let layer = IdempotencyLayer::builder(MemoryStore::new());
    let layer = layer.stream_request_bodies(MIB).build().unwrap();
    let runs = Count::default();
    let counts = runs.clone();
    let service = layer.layer(tower::service_fn(move |_: Request<ScriptedBody>| {
        counts.up();
        ready(Ok::<_, std::convert::Infallible>(ok("")))
    }));
    let request = || {
        let request = Request::post("/").header("idempotency-key", "k");
        request.body(ScriptedBody::from("one")).unwrap()
    };
    for _ in 0..2 {
        send(&service, request()).await.assert_problem(500, "misconfigured");
    }
    assert_eq!(runs.get(), 0);
}

#[tokio::test]
async fn contract_8_what_cannot_be_streamed_is_told_when_the_layer_is_built() {
    let builder = || IdempotencyLayer::builder(MemoryStore::new()).stream_request_bodies(MIB);
    for (builder, why) in [
        (builder().stream_request_bodies(0), "0 would refuse"),
        (builder().key(KeySource::json_pointer("/id")), "a key in the body"),
        (builder().key(KeySource::from_fn(|_, _| Ok(None))), "a key in the body"),
        (
            builder().fingerprint(FingerprintSource::from_fn(|_, _| Ok(Vec::new()))),
            "the whole body",
        ),
        (builder().grpc(), "`grpc`"),
    ] {
        let error = builder.build().unwrap_err();
        assert_eq!(error.option(), "stream_request_bodies");
        assert!(error.to_string().contains(why), "{error}");
    }
    for builder in [
        builder().stripe(),
        builder().webhooks("sender", KeySource::header("webhook-id")),
        builder().key(KeySource::from_head(|_| Ok(None))),
    ] {
        assert!(builder.build().is_ok());
    }
}

#[tokio::test]
async fn contract_8_a_handler_that_never_answers_is_no_hang_of_the_layer() {
    let layer = IdempotencyLayer::builder(MemoryStore::new());
    let layer = layer.stream_request_bodies(MIB).build().unwrap();
    let service = layer.layer(inner(|request: Request<Body>| async move {
        drop(request);
        pending::<()>().await;
        ok("")
    }));
    let first = spawn(&service, upload("/", &[], "one"));
    settle().await;
    let refused = watched(PATIENCE, send(&service, upload("/", &[], "one"))).await;
    refused.assert_problem(409, "in-flight");
    first.abort();
}
