//! Section 5 of the contract: what a duplicate is answered.

use std::future::ready;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, Response};
use http_body::Body as _;
use http_body_util::Full;
use tower::{Layer, ServiceExt};
use tower_idempotency::store::{ClaimOutcome, Held, Record};
use tower_idempotency::{
    FingerprintSource, IdempotencyLayer, IdempotencyLayerBuilder, IdempotencyService, MemoryStore, Store,
};

use crate::support::claim::{Claim, claim, print, print_under_another_rule};
use crate::support::store::{Op, Scripted};
use crate::support::{
    Answer, Count, Gate, Inner, ScriptedBody, Step, counted, drain, inner, ok, poll_once, post, request, respond, send,
    settle, spawn,
};

fn builder() -> IdempotencyLayerBuilder {
    IdempotencyLayer::builder(MemoryStore::new())
}

/// Answers each run with its number.
fn numbered<St: Store>(layer: &IdempotencyLayer<St>, runs: &Count) -> IdempotencyService<Inner, St> {
    let runs = runs.clone();
    layer.layer(inner(move |_| ready(ok(format!("run {}", runs.up())))))
}

/// Answers when the gate lets it: `200`, or `500` to runs whose number is at most `failing`.
fn gated<St: Store>(
    layer: &IdempotencyLayer<St>,
    gate: &Gate,
    runs: &Count,
    failing: usize,
) -> IdempotencyService<Inner, St> {
    let (gate, runs) = (gate.clone(), runs.clone());
    layer.layer(inner(move |_| {
        let (gate, runs) = (gate.clone(), runs.clone());
        async move {
            let run = runs.up();
            gate.pass().await;
            let mut response = ok(format!("run {run}"));
            if run <= failing {
                *response.status_mut() = http::StatusCode::INTERNAL_SERVER_ERROR;
            }
            response
        }
    }))
}

#[tokio::test(start_paused = true)]
async fn contract_5_1_a_replay_is_the_first_answer_byte_for_byte_and_marked() {
    let runs = Count::default();
    let counter = runs.clone();
    let body: Bytes = (0..=255).cycle().take(10_000).collect::<Vec<u8>>().into();
    let sent = body.clone();
    let service = IdempotencyLayer::new(MemoryStore::new()).layer(inner(move |_| {
        counter.up();
        let response = Response::builder()
            .status(202)
            .header("content-type", "application/octet-stream")
            .header("etag", "\"v1\"")
            .header("x-request-id", "r-1")
            .header("vary", "accept")
            .header("vary", "origin")
            .body(Full::new(sent.clone()));
        ready(response.unwrap())
    }));
    let first = send(&service, post("/a?b=c", "k", "request")).await;
    assert_eq!((first.status.as_u16(), &first.body), (202, &body));
    assert_eq!(first.header("idempotency-replayed"), None, "the first has no marker");
    let replay = send(&service, post("/a?b=c", "k", "request")).await;
    replay.assert_replay_of(&first);
    assert_eq!(replay.header("idempotency-replayed"), Some("true"));
    assert_eq!(runs.get(), 1);
}

#[tokio::test(start_paused = true)]
async fn contract_5_1_the_marker_can_be_named_otherwise() {
    let runs = Count::default();
    let layer = builder().replay_header("Idempotent-Replayed").build().unwrap();
    let service = numbered(&layer, &runs);
    let first = send(&service, post("/", "k", "")).await;
    assert_eq!(first.header("idempotent-replayed"), None);
    let replay = send(&service, post("/", "k", "")).await;
    assert_eq!(replay.header("idempotent-replayed"), Some("true"));
    assert_eq!(replay.header("idempotency-replayed"), None);
}

#[tokio::test(start_paused = true)]
async fn contract_5_1_a_marker_that_the_handler_sets_is_not_doubled_in_the_replay() {
    // The handler proxies another guarded service, whose answer was a replay.
    let service = IdempotencyLayer::new(MemoryStore::new()).layer(inner(|_| {
        let response = Response::builder().header("idempotency-replayed", "true");
        ready(response.body(Full::<Bytes>::from("x")).unwrap())
    }));
    send(&service, post("/", "k", "")).await;
    let replay = send(&service, post("/", "k", "")).await;
    assert_eq!(replay.headers.get_all("idempotency-replayed").iter().count(), 1);
}

#[tokio::test(start_paused = true)]
async fn contract_5_1_content_length_is_right_whatever_the_handler_said() {
    for (said, expected) in [(None, None), (Some("5"), Some("5")), (Some("999"), Some("5"))] {
        let service = IdempotencyLayer::new(MemoryStore::new()).layer(inner(move |_| {
            let mut response = ok("hello");
            if let Some(said) = said {
                let said = HeaderValue::from_static(said);
                response.headers_mut().insert("content-length", said);
            }
            ready(response)
        }));
        send(&service, post("/", "k", "")).await;
        let response = respond(&service, post("/", "k", "")).await;
        assert_eq!(response.body().size_hint().exact(), Some(5));
        let length = response.headers().get("content-length");
        assert_eq!(length.map(|value| value.to_str().unwrap()), expected);
    }
}

#[tokio::test(start_paused = true)]
async fn contract_5_1_an_empty_body_replays_as_an_empty_body() {
    for body in [vec![], vec![Step::Data(Bytes::new())], vec![Step::Yield]] {
        let service = IdempotencyLayer::new(MemoryStore::new()).layer(inner(move |_| {
            ready(
                Response::builder()
                    .status(204)
                    .body(ScriptedBody::new(body.clone()))
                    .unwrap(),
            )
        }));
        let first = send(&service, post("/", "k", "")).await;
        let response = respond(&service, post("/", "k", "")).await;
        assert!(response.body().is_end_stream());
        crate::support::read(response).await.assert_replay_of(&first);
    }
}

#[tokio::test(start_paused = true)]
async fn contract_5_2_hop_by_hop_headers_date_and_cookies_are_not_replayed() {
    let dropped = [
        ("connection", "keep-alive, X-Hop"),
        ("x-hop", "1"),
        ("keep-alive", "timeout=5"),
        ("proxy-connection", "keep-alive"),
        ("proxy-authenticate", "Basic"),
        ("te", "trailers"),
        ("trailer", "x-end"),
        ("transfer-encoding", "chunked"),
        ("upgrade", "h2c"),
        ("date", "Tue, 15 Nov 1994 08:12:31 GMT"),
        ("set-cookie", "sid=1"),
    ];
    let service = IdempotencyLayer::new(MemoryStore::new()).layer(inner(move |_| {
        let mut response = Response::builder().header("x-kept", "1").header("set-cookie", "b=2");
        for (name, value) in dropped {
            response = response.header(name, value);
        }
        ready(response.body(Full::<Bytes>::from("x")).unwrap())
    }));
    let first = send(&service, post("/", "k", "")).await;
    for (name, value) in dropped {
        let values: Vec<_> = first.headers.get_all(name).iter().collect();
        assert!(values.iter().any(|sent| **sent == value), "the first has {name}");
    }
    let replay = send(&service, post("/", "k", "")).await;
    assert!(replay.is_replay());
    for (name, _) in dropped {
        assert_eq!(replay.header(name), None, "{name}");
    }
    assert_eq!(replay.header("x-kept"), Some("1"));
}

#[tokio::test(start_paused = true)]
async fn contract_5_2_the_list_can_be_changed() {
    let layer = builder().unreplayed_headers(["X-Trace"]).build().unwrap();
    let service = layer.layer(inner(|_| {
        let response = Response::builder()
            .header("x-trace", "1")
            .header("connection", "close")
            .header("set-cookie", "sid=1")
            .header("date", "then");
        ready(response.body(Full::<Bytes>::from("x")).unwrap())
    }));
    send(&service, post("/", "k", "")).await;
    let replay = send(&service, post("/", "k", "")).await;
    assert_eq!(replay.header("x-trace"), None);
    assert_eq!(replay.header("connection"), None, "hop-by-hop, whatever the list says");
    assert_eq!(
        (replay.header("set-cookie"), replay.header("date")),
        (Some("sid=1"), Some("then"))
    );
}

fn assert_in_flight(answer: &Answer) {
    answer.assert_problem(409, "in-flight");
    assert_eq!(answer.header("retry-after"), Some("1"));
    assert_eq!(answer.header("x-should-retry"), Some("true"));
    assert_eq!(answer.outcome(), "in-flight");
}

#[tokio::test(start_paused = true)]
async fn contract_5_3_in_flight_is_409_with_what_makes_a_client_retry() {
    let (gate, runs) = (Gate::default(), Count::default());
    let layer = IdempotencyLayer::new(MemoryStore::new());
    let service = gated(&layer, &gate, &runs, 0);
    let first = spawn(&service, post("/", "k", "b"));
    gate.arrival().await;
    assert_in_flight(&send(&service, post("/", "k", "b")).await);
    gate.open();
    let first = first.await.unwrap();
    send(&service, post("/", "k", "b")).await.assert_replay_of(&first);
    assert_eq!(runs.get(), 1);
}

#[tokio::test(start_paused = true)]
async fn contract_5_3_with_wait_a_duplicate_gets_the_outcome() {
    async fn check<St: Store>(store: St) {
        let (gate, runs) = (Gate::default(), Count::default());
        let layer = IdempotencyLayer::builder(store)
            .wait(Duration::from_secs(10))
            .build()
            .unwrap();
        let service = gated(&layer, &gate, &runs, 0);
        let first = spawn(&service, post("/", "k", "b"));
        gate.arrival().await;
        let waiting: Vec<_> = (0..5).map(|_| spawn(&service, post("/", "k", "b"))).collect();
        settle().await;
        tokio::time::sleep(Duration::from_secs(9)).await;
        assert!(waiting.iter().all(|waiter| !waiter.is_finished()));
        let opened = tokio::time::Instant::now();
        gate.open();
        let first = first.await.unwrap();
        for waiter in waiting {
            waiter.await.unwrap().assert_replay_of(&first);
        }
        assert!(
            opened.elapsed().is_zero(),
            "they were woken, and did not look from time to time"
        );
        assert_eq!((runs.get(), counted(&layer, "replayed")), (1, 5));
    }
    check(MemoryStore::new()).await;
    check(Scripted::default()).await;
    check(tower_idempotency::store::DynStore::new(MemoryStore::new())).await;
}

#[tokio::test(start_paused = true)]
async fn contract_5_3_with_wait_a_duplicate_gets_409_at_the_bound() {
    async fn check<St: Store>(store: St) {
        let (gate, runs) = (Gate::default(), Count::default());
        let layer = IdempotencyLayer::builder(store)
            .wait(Duration::from_secs(10))
            .build()
            .unwrap();
        let service = gated(&layer, &gate, &runs, 0);
        let first = spawn(&service, post("/", "k", "b"));
        gate.arrival().await;
        let asked = tokio::time::Instant::now();
        assert_in_flight(&send(&service, post("/", "k", "b")).await);
        // The clock is the test's: it moves only when everything waits for it.
        assert_eq!(asked.elapsed().as_secs(), 10);
        gate.open();
        assert_eq!(first.await.unwrap().text(), "run 1");
        assert_eq!(runs.get(), 1);
    }
    check(MemoryStore::new()).await;
    check(Scripted::default()).await;
}

#[tokio::test(start_paused = true)]
async fn contract_5_3_with_wait_one_waiter_runs_when_the_first_failed() {
    async fn check<St: Store>(store: St) {
        let (gate, runs) = (Gate::default(), Count::default());
        let layer = IdempotencyLayer::builder(store)
            .wait(Duration::from_secs(60))
            .build()
            .unwrap();
        let service = gated(&layer, &gate, &runs, 1);
        let first = spawn(&service, post("/", "k", "b"));
        gate.arrival().await;
        let waiting: Vec<_> = (0..5).map(|_| spawn(&service, post("/", "k", "b"))).collect();
        settle().await;
        gate.open_once();
        assert_eq!(first.await.unwrap().status.as_u16(), 500);
        gate.arrival().await;
        tokio::time::sleep(Duration::from_secs(5)).await;
        assert_eq!(runs.get(), 2, "one waiter runs, the others wait on");
        gate.open_once();
        let mut executed = 0;
        for waiter in waiting {
            let answer = waiter.await.unwrap();
            assert_eq!((answer.status.as_u16(), answer.text()), (200, "run 2"));
            executed += usize::from(answer.outcome() == "executed");
        }
        assert_eq!((executed, runs.get()), (1, 2));
    }
    check(MemoryStore::new()).await;
    check(Scripted::default()).await;
}

#[tokio::test(start_paused = true)]
async fn contract_5_3_with_wait_a_waiter_takes_over_when_the_lease_lapses() {
    let store = Scripted::default();
    let runs = Count::default();
    let layer = IdempotencyLayer::builder(store.clone())
        .wait(Duration::from_secs(60))
        .build()
        .unwrap();
    let service = numbered(&layer, &runs);
    send(&service, post("/", "other", "b")).await;
    store.once(Op::Begin, crate::support::store::Act::Fail);
    send(&service, post("/", "k", "b"))
        .await
        .assert_problem(503, "store-unavailable");
    store.claim_and_die().await;
    let asked = tokio::time::Instant::now();
    let answer = send(&service, post("/", "k", "b")).await;
    assert_eq!(answer.text(), "run 2");
    assert_eq!(asked.elapsed().as_secs(), 30);
}

#[tokio::test(start_paused = true)]
async fn contract_5_3_a_waiter_that_leaves_does_not_harm_the_others() {
    let (gate, runs) = (Gate::default(), Count::default());
    let layer = builder().wait(Duration::from_secs(60)).build().unwrap();
    let service = gated(&layer, &gate, &runs, 1);
    let first = spawn(&service, post("/", "k", "b"));
    gate.arrival().await;
    {
        let mut leaving = pin!(service.clone().oneshot(post("/", "k", "b")));
        assert!(poll_once(leaving.as_mut()).await.is_pending());
    }
    let staying = spawn(&service, post("/", "k", "b"));
    settle().await;
    assert_eq!(runs.get(), 1);
    gate.open();
    assert_eq!(first.await.unwrap().status.as_u16(), 500);
    assert_eq!(staying.await.unwrap().text(), "run 2");
    drain(&layer).await;
    assert_eq!(runs.get(), 2);
}

#[tokio::test(start_paused = true)]
async fn contract_5_4_another_fingerprint_is_422_and_the_original_still_replays() {
    let (gate, runs) = (Gate::default(), Count::default());
    let layer = builder().methods([Method::POST, Method::PATCH]).build().unwrap();
    let service = gated(&layer, &gate, &runs, 0);
    let others = || {
        let key = [("idempotency-key", "k")];
        [
            ("body", request("POST", "/a?q=1", &key, "other")),
            ("no body", request("POST", "/a?q=1", &key, "")),
            ("path", request("POST", "/b?q=1", &key, "b")),
            ("query", request("POST", "/a?q=2", &key, "b")),
            ("no query", request("POST", "/a", &key, "b")),
            ("empty query", request("POST", "/a?", &key, "b")),
            ("method", request("PATCH", "/a?q=1", &key, "b")),
        ]
    };
    async fn check(service: &IdempotencyService<Inner>, others: [(&str, Request<Body>); 7]) {
        for (what, other) in others {
            let answer = send(service, other).await;
            answer.assert_problem(422, "key-reused");
            assert_eq!(answer.header("x-should-retry"), Some("false"), "{what}");
            assert_eq!(answer.header("retry-after"), None, "{what}");
            assert_eq!(answer.outcome(), "key-reused", "{what}");
        }
    }
    let first = spawn(&service, post("/a?q=1", "k", "b"));
    gate.arrival().await;
    check(&service, others()).await;
    gate.open();
    let first = first.await.unwrap();
    check(&service, others()).await;
    send(&service, post("/a?q=1", "k", "b")).await.assert_replay_of(&first);
    assert_eq!(runs.get(), 1);
}

#[tokio::test(start_paused = true)]
async fn contract_5_4_with_wait_another_fingerprint_does_not_wait() {
    let (gate, runs) = (Gate::default(), Count::default());
    let layer = builder().wait(Duration::from_secs(60)).build().unwrap();
    let service = gated(&layer, &gate, &runs, 0);
    let first = spawn(&service, post("/", "k", "b"));
    gate.arrival().await;
    let asked = tokio::time::Instant::now();
    send(&service, post("/", "k", "other"))
        .await
        .assert_problem(422, "key-reused");
    assert!(asked.elapsed().is_zero());
    gate.open();
    first.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn contract_5_4_frames_and_headers_do_not_count() {
    let runs = Count::default();
    let layer = IdempotencyLayer::new(MemoryStore::new());
    let counter = runs.clone();
    let service = layer.layer(tower::service_fn(move |_: Request<ScriptedBody>| {
        ready(Ok::<_, std::convert::Infallible>(ok(format!("run {}", counter.up()))))
    }));
    let frames = |frames: &[&'static str]| {
        let steps = frames
            .iter()
            .map(|frame| Step::Data(Bytes::from_static(frame.as_bytes())));
        Request::post("/")
            .header("idempotency-key", "k")
            .header("x-signature", frames.len().to_string())
            .header("traceparent", frames.concat())
            .body(ScriptedBody::new(steps.collect::<Vec<_>>()))
            .unwrap()
    };
    let first = send(&service, frames(&["hello"])).await;
    for same in [&["he", "llo"][..], &["", "h", "", "e", "l", "l", "o", ""]] {
        send(&service, frames(same)).await.assert_replay_of(&first);
    }
    send(&service, frames(&["hell"]))
        .await
        .assert_problem(422, "key-reused");
    assert_eq!(runs.get(), 1);
}

#[tokio::test(start_paused = true)]
async fn contract_5_4_the_fingerprint_has_alternatives() {
    let by_header = FingerprintSource::from_fn(|parts, _| {
        let print = parts.headers.get("x-print");
        Ok(print.map(|value| value.as_bytes().to_vec()).unwrap_or_default())
    });
    let json = r#"{"a":1,"b":[1,2]}"#;
    for (name, source, cases) in [
        (
            "canonical JSON",
            FingerprintSource::canonical_json(),
            vec![
                ("/", r#"{ "b" : [1, 2], "a":1 }"#, "", true),
                ("/", r#"{"\u0061":1,"b":[1,2]}"#, "", true),
                ("/", r#"{"a":1,"b":[2,1]}"#, "", false),
                ("/", r#"{"a":1.0,"b":[1,2]}"#, "", false),
                ("/", r#"{"a":1,"a":1,"b":[1,2]}"#, "", false),
                ("/other", json, "", false),
            ],
        ),
        (
            "fields",
            FingerprintSource::json_fields(["/a", "/b/1"]),
            vec![
                ("/", r#"{"a":1,"b":[9,2],"c":3}"#, "", true),
                ("/", r#"{"a":1,"b":[1,3]}"#, "", false),
                ("/", r#"{"b":[1,2]}"#, "", false),
                ("/", "not json", "", false),
                ("/other", json, "", false),
            ],
        ),
        (
            "body",
            FingerprintSource::body(),
            vec![("/other?q", json, "", true), ("/", "{}", "", false)],
        ),
        (
            "closure",
            by_header,
            vec![("/other", "{}", "", true), ("/", json, "p", false)],
        ),
        (
            "none",
            FingerprintSource::none(),
            vec![("/other", "{}", "p", true), ("/", "", "", true)],
        ),
    ] {
        let runs = Count::default();
        let layer = builder().fingerprint(source).build().unwrap();
        let service = numbered(&layer, &runs);
        let first = send(&service, post("/", "k", json)).await;
        for (path, body, print, same) in cases {
            let mut request = post(path, "k", body);
            if !print.is_empty() {
                let print = HeaderValue::from_static(print);
                request.headers_mut().insert("x-print", print);
            }
            let answer = send(&service, request).await;
            if same {
                answer.assert_replay_of(&first);
            } else {
                assert_eq!(answer.status.as_u16(), 422, "{name}: {path} {body} {answer:?}");
            }
        }
        assert_eq!(runs.get(), 1, "{name}");
    }
}

#[tokio::test(start_paused = true)]
async fn contract_5_5_a_record_past_its_ttl_is_forgotten() {
    let runs = Count::default();
    let layer = builder().ttl(Duration::from_secs(60)).build().unwrap();
    let service = numbered(&layer, &runs);
    send(&service, post("/", "k", "b")).await;
    tokio::time::advance(Duration::from_millis(59_999)).await;
    assert!(send(&service, post("/", "k", "b")).await.is_replay());
    tokio::time::advance(Duration::from_millis(1)).await;
    let again = send(&service, post("/", "k", "another body")).await;
    assert_eq!((again.text(), again.outcome()), ("run 2", "executed"));
}

#[tokio::test(start_paused = true)]
async fn contract_5_5_a_tombstone_past_its_ttl_is_forgotten() {
    let runs = Count::default();
    let layer = builder()
        .ttl(Duration::from_secs(60))
        .max_response_body(1)
        .build()
        .unwrap();
    let service = numbered(&layer, &runs);
    send(&service, post("/", "k", "b")).await;
    tokio::time::advance(Duration::from_millis(59_999)).await;
    send(&service, post("/", "k", "b"))
        .await
        .assert_problem(409, "response-not-retained");
    tokio::time::advance(Duration::from_millis(1)).await;
    assert_eq!(send(&service, post("/", "k", "b")).await.text(), "run 2");
}

#[tokio::test(start_paused = true)]
async fn contract_5_5_the_ttl_is_24_hours_from_completion_by_default() {
    let (gate, runs) = (Gate::default(), Count::default());
    let layer = IdempotencyLayer::new(MemoryStore::new());
    let service = gated(&layer, &gate, &runs, 0);
    let first = spawn(&service, post("/", "k", "b"));
    gate.arrival().await;
    tokio::time::sleep(Duration::from_secs(3600)).await;
    gate.open();
    first.await.unwrap();
    tokio::time::advance(Duration::from_secs(24 * 3600 - 1)).await;
    assert!(send(&service, post("/", "k", "b")).await.is_replay());
    tokio::time::advance(Duration::from_secs(1)).await;
    assert_eq!(send(&service, post("/", "k", "b")).await.text(), "run 2");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn contract_5_6_of_identical_requests_at_once_exactly_one_runs() {
    for round in 0..20 {
        let (gate, runs) = (Gate::default(), Count::default());
        let store = MemoryStore::new();
        // Two layers on one store, as two processes would have.
        let layers = [
            IdempotencyLayer::new(store.clone()),
            IdempotencyLayer::new(store.clone()),
        ];
        let services = layers.each_ref().map(|layer| gated(layer, &gate, &runs, 0));
        let barrier = Arc::new(tokio::sync::Barrier::new(32));
        let requests: Vec<_> = (0..32)
            .map(|n| {
                let (service, barrier) = (services[n % 2].clone(), barrier.clone());
                tokio::spawn(async move {
                    barrier.wait().await;
                    send(&service, post("/", "k", "b")).await
                })
            })
            .collect();
        gate.arrival().await;
        gate.open();
        let mut statuses = std::collections::BTreeMap::new();
        for request in requests {
            let answer = request.await.unwrap();
            if answer.status == 200 {
                assert_eq!(answer.text(), "run 1");
            }
            *statuses.entry(answer.outcome()).or_insert(0) += 1;
        }
        assert_eq!(runs.get(), 1, "round {round}: {statuses:?}");
        assert_eq!(statuses["executed"], 1, "{statuses:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn contract_5_6_with_wait_all_identical_requests_get_the_one_answer() {
    let runs = Count::default();
    let layer = builder().wait(Duration::from_secs(60)).build().unwrap();
    let counter = runs.clone();
    let service = layer.layer(inner(move |_| {
        let run = counter.up();
        async move {
            crate::support::yields(3).await;
            ok(format!("run {run}"))
        }
    }));
    for key in (0..20).map(|n| n.to_string()) {
        let before = runs.get();
        let requests: Vec<_> = (0..32).map(|_| spawn(&service, post("/", &key, "b"))).collect();
        for request in requests {
            let answer = request.await.unwrap();
            assert_eq!(answer.text(), format!("run {}", before + 1));
        }
        assert_eq!(runs.get(), before + 1);
    }
}

#[tokio::test(start_paused = true)]
async fn contract_5_trailers_are_replayed_with_an_empty_body_too() {
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", HeaderValue::from_static("0"));
    let sent = trailers.clone();
    let service = IdempotencyLayer::new(MemoryStore::new()).layer(inner(move |_| {
        ready(Response::new(ScriptedBody::new([Step::Trailers(sent.clone())])))
    }));
    let first = send(&service, post("/", "k", "")).await;
    assert_eq!(first.trailers, Some(trailers));
    send(&service, post("/", "k", "")).await.assert_replay_of(&first);
}

/// The layers of two hosts on one store, before and after a deploy that changes the rule.
fn before_and_after(runs: &Count, gate: &Gate) -> [IdempotencyService<Inner, MemoryStore>; 2] {
    let store = MemoryStore::new();
    [FingerprintSource::request(), FingerprintSource::canonical_json()].map(|rule| {
        let layer = IdempotencyLayer::builder(store.clone())
            .fingerprint(rule)
            .build()
            .unwrap();
        gated(&layer, gate, runs, 0)
    })
}

#[tokio::test(start_paused = true)]
async fn contract_5_9_a_retry_after_the_fingerprint_rule_has_changed_is_replayed() {
    let (runs, gate) = (Count::default(), Gate::default());
    let [before, after] = before_and_after(&runs, &gate);
    let json = r#"{"a":1,"b":2}"#;
    let first = spawn(&before, post("/", "k", json));
    gate.arrival().await;
    send(&after, post("/", "k", json))
        .await
        .assert_problem(409, "in-flight");
    gate.open();
    let first = first.await.unwrap();
    send(&after, post("/", "k", json)).await.assert_replay_of(&first);
    // A deploy that is rolled back.
    send(&before, post("/", "k", json)).await.assert_replay_of(&first);
    assert_eq!(runs.get(), 1);
}

#[tokio::test(start_paused = true)]
async fn contract_5_9_a_store_compares_fingerprints_of_one_rule_only() {
    let store = MemoryStore::new();
    let (first, answer) = (claim(1), Response::new(Bytes::from_static(b"answer")));
    let others = [0xAB, 8].map(|byte| claim(1).print(print_under_another_rule(byte)));
    assert_eq!(store.begin(&first).await.unwrap(), ClaimOutcome::started(1));
    for other in &others {
        assert!(matches!(
            store.begin(other).await.unwrap(),
            ClaimOutcome::InFlight { .. }
        ));
    }
    assert_eq!(
        store.begin(&claim(1).print(print(8))).await.unwrap(),
        ClaimOutcome::Mismatch
    );
    let record = Record::of_response(first.fingerprint, &answer);
    let held = store.complete(&first.slot, first.token, &record, first.ttl).await;
    assert_eq!(held.unwrap(), Held::Yes);
    for other in &others {
        assert_eq!(store.begin(other).await.unwrap(), ClaimOutcome::Done(record.clone()));
    }
    assert_eq!(
        store.begin(&claim(1).print(print(8))).await.unwrap(),
        ClaimOutcome::Mismatch
    );
}

fn typed(content_type: &str, body: impl Into<Body>) -> Request<Body> {
    let headers = [("idempotency-key", "k"), ("content-type", content_type)];
    request("POST", "/", &headers, body)
}

#[tokio::test(start_paused = true)]
async fn contract_5_4_a_rebuilt_multipart_form_is_the_same_request() {
    let form = |boundary: &str, amount: &str| {
        let body = format!(
            "--{boundary}\r\nContent-Disposition: form-data; name=\"amount\"\r\n\r\n{amount}\r\n\
             --{boundary}\r\nContent-Disposition: form-data; name=\"file\"; filename=\"a.png\"\r\n\
             Content-Type: image/png\r\n\r\nPNG\r\n--{boundary}--\r\n"
        );
        typed(&format!("multipart/form-data; boundary={boundary}"), body)
    };
    for source in [
        FingerprintSource::default(),
        FingerprintSource::canonical_json(),
        FingerprintSource::json_fields(["/amount"]),
        FingerprintSource::body(),
    ] {
        let runs = Count::default();
        let service = numbered(&builder().fingerprint(source).build().unwrap(), &runs);
        let first = send(&service, form("X-BOUNDARY-1", "5")).await;
        assert_eq!(first.outcome(), "executed");
        send(&service, form("----WebKitFormBoundary2", "5"))
            .await
            .assert_replay_of(&first);
        send(&service, form("X-BOUNDARY-1", "9000"))
            .await
            .assert_problem(422, "key-reused");
        // Without the boundary in its head, only the bytes can be compared.
        let (_, body) = form("X-BOUNDARY-1", "5").into_parts();
        send(&service, typed("multipart/form-data", body))
            .await
            .assert_problem(422, "key-reused");
        assert_eq!(runs.get(), 1);
    }
}

#[tokio::test(start_paused = true)]
async fn contract_5_4_fields_that_do_not_count_can_be_named() {
    let multipart = |token: &str, amount: u32| {
        let body = format!(
            "--b\r\nContent-Disposition: form-data; name=\"csrf\"\r\n\r\n{token}\r\n\
             --b\r\nContent-Disposition: form-data; name=\"amount\"\r\n\r\n{amount}\r\n--b--\r\n"
        );
        typed("multipart/form-data; boundary=b", body)
    };
    let form = |token: &str, amount: u32| {
        let body = format!("csrf={token}&amount={amount}&sent_at={token}");
        typed("application/x-www-form-urlencoded", body)
    };
    let json = |token: &str, amount: u32| {
        let body = format!(r#"{{"csrf":"{token}","amount":{amount},"sent_at":"{token}"}}"#);
        typed("application/json", body)
    };
    type Send<'s> = &'s dyn Fn(&str, u32) -> Request<Body>;
    for source in [FingerprintSource::request(), FingerprintSource::canonical_json()] {
        let source = source.without(["/csrf", "/sent_at"]);
        for (name, of) in [
            ("multipart", &multipart as Send<'_>),
            ("form", &form as Send<'_>),
            ("json", &json as Send<'_>),
        ] {
            let runs = Count::default();
            let service = numbered(&builder().fingerprint(source.clone()).build().unwrap(), &runs);
            let first = send(&service, of("t1", 5)).await;
            assert_eq!(first.outcome(), "executed", "{name}");
            send(&service, of("t2", 5)).await.assert_replay_of(&first);
            send(&service, of("t1", 6)).await.assert_problem(422, "key-reused");
            assert_eq!(runs.get(), 1, "{name}");
        }
    }
    // Under the default they count.
    let service = numbered(&builder().build().unwrap(), &Count::default());
    send(&service, json("t1", 5)).await;
    send(&service, json("t2", 5)).await.assert_problem(422, "key-reused");
}

#[tokio::test(start_paused = true)]
async fn contract_5_4_a_body_that_cannot_be_read_counts_whole() {
    for source in [
        FingerprintSource::canonical_json(),
        FingerprintSource::json_fields(["/amount"]),
        FingerprintSource::request().without(["/csrf"]),
    ] {
        for (one, other) in [
            (r#"{"note\ud800":1,"amount":5}"#, r#"{"note\ud800":1,"amount":9000}"#),
            (r#"{"note":"\ud800","amount":5}"#, r#"{"note":"\ud800","amount":9000}"#),
            (r#"{"x":1,"x":1,"amount":5}"#, r#"{"x":1,"x":1,"amount":9000}"#),
        ] {
            let service = numbered(
                &builder().fingerprint(source.clone()).build().unwrap(),
                &Count::default(),
            );
            let first = send(&service, post("/", "k", one)).await;
            send(&service, post("/", "k", one)).await.assert_replay_of(&first);
            send(&service, post("/", "k", other))
                .await
                .assert_problem(422, "key-reused");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn contract_5_4_a_closure_that_fails_lets_the_whole_request_count() {
    let amount = |_: &http::request::Parts, body: &Bytes| {
        let amount: u32 = serde_json::from_slice(body)?;
        Ok(amount.to_le_bytes().to_vec())
    };
    let by_header = |parts: &http::request::Parts| {
        let digest = parts.headers.get("content-digest").ok_or("no digest")?;
        Ok(digest.as_bytes().to_vec())
    };
    for source in [
        FingerprintSource::from_fn(amount),
        FingerprintSource::from_head(by_header),
    ] {
        let service = numbered(&builder().fingerprint(source).build().unwrap(), &Count::default());
        let first = send(&service, post("/", "k", "not a number")).await;
        send(&service, post("/", "k", "not a number"))
            .await
            .assert_replay_of(&first);
        for other in [post("/", "k", "no number"), post("/other", "k", "not a number")] {
            send(&service, other).await.assert_problem(422, "key-reused");
        }
    }
}
