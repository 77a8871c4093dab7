//! Section 1 of the contract: which requests are guarded, and the order of the checks.

use std::convert::Infallible;
use std::future::ready;
use std::pin::pin;
use std::time::Duration;

use http::{Method, Request, Response};
use http_body_util::BodyExt;
use tower::{Layer, service_fn};
use tower_idempotency::{
    FingerprintSource, IdempotencyKey, IdempotencyLayer, IdempotencyLayerBuilder, MemoryStore, Outcome, ScopeSource,
};

use crate::support::store::{Op, Scripted};
use crate::support::{Count, Gate, ScriptedBody, Step, counted, inner, ok, post, request, respond, send, spawn};

fn builder() -> IdempotencyLayerBuilder {
    IdempotencyLayer::builder(MemoryStore::new())
}

#[tokio::test(start_paused = true)]
async fn contract_1_1_a_method_outside_the_set_passes_through_and_its_key_is_ignored() {
    for method in ["GET", "HEAD", "PUT", "DELETE", "OPTIONS", "TRACE", "PURGE", "post"] {
        let store = Scripted::default();
        let layer = IdempotencyLayer::builder(store.clone())
            .require_key(true)
            .build()
            .unwrap();
        let runs = Count::default();
        let counter = runs.clone();
        let service = layer.layer(inner(move |request: Request<_>| {
            assert!(request.extensions().get::<IdempotencyKey>().is_none());
            assert_eq!(request.headers()["idempotency-key"], "k", "the request is untouched");
            ready(ok(format!("run {}", counter.up())))
        }));
        for run in 1..=3 {
            let answer = send(&service, request(method, "/", &[("idempotency-key", "k")], "b")).await;
            assert_eq!(answer.text(), format!("run {run}"), "{method}");
            assert!(answer.headers.is_empty(), "{method}: {answer:?}");
            assert_eq!(answer.outcome(), "none", "{method}");
        }
        // An invalid key is ignored too.
        let invalid = [("idempotency-key", "k"), ("idempotency-key", "k")];
        assert_eq!(
            send(&service, request(method, "/", &invalid, "b")).await.text(),
            "run 4"
        );
        assert_eq!((store.calls(Op::Begin), counted(&layer, "unguarded")), (0, 4));
    }
}

#[tokio::test(start_paused = true)]
async fn contract_1_1_post_and_patch_are_guarded_by_default() {
    for method in ["POST", "PATCH"] {
        let runs = Count::default();
        let counter = runs.clone();
        let service =
            IdempotencyLayer::new(MemoryStore::new()).layer(inner(move |_| ready(ok(format!("run {}", counter.up())))));
        let keyed = || request(method, "/", &[("idempotency-key", "k")], "b");
        let first = send(&service, keyed()).await;
        send(&service, keyed()).await.assert_replay_of(&first);
        assert_eq!(runs.get(), 1);
    }
}

#[tokio::test(start_paused = true)]
async fn contract_1_1_the_set_of_methods_can_be_changed() {
    let custom = Method::from_bytes(b"CHARGE").unwrap();
    let layer = builder().methods([Method::PUT, custom]).build().unwrap();
    let runs = Count::default();
    let counter = runs.clone();
    let service = layer.layer(inner(move |_| ready(ok(format!("run {}", counter.up())))));
    for (method, guarded) in [("PUT", true), ("CHARGE", true), ("POST", false), ("PATCH", false)] {
        let keyed = || request(method, "/", &[("idempotency-key", method)], "b");
        send(&service, keyed()).await;
        assert_eq!(send(&service, keyed()).await.is_replay(), guarded, "{method}");
    }
}

/// Answers at once and echoes the request's body as it comes.
async fn streams_both_ways(layer: &IdempotencyLayer, head: http::request::Builder) {
    let service = layer.layer(service_fn(|request: Request<ScriptedBody>| async {
        Ok::<_, Infallible>(Response::new(request.into_body()))
    }));
    let gate = Gate::default();
    let body = ScriptedBody::new([
        Step::Data("first".into()),
        Step::Stop(gate.clone()),
        Step::Data("second".into()),
    ]);
    let response = respond(&service, head.body(body).unwrap()).await;
    assert!(response.headers().is_empty());
    assert_eq!(response.extensions().get::<Outcome>(), None);
    let mut body = pin!(response.into_body());
    // The first part is here while the second was not even sent.
    assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), "first");
    gate.open();
    assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), "second");
    assert!(body.frame().await.is_none());
}

#[tokio::test(start_paused = true)]
async fn contract_1_1_bodies_of_unguarded_methods_stream() {
    // Under limits that a single byte would break.
    let layer = builder().max_request_body(0).max_response_body(0).build().unwrap();
    streams_both_ways(&layer, Request::put("/").header("idempotency-key", "k")).await;
}

#[tokio::test(start_paused = true)]
async fn contract_1_2_without_a_key_the_request_passes_and_the_limits_do_not_apply() {
    let layer = builder().max_request_body(0).max_response_body(0).build().unwrap();
    streams_both_ways(&layer, Request::post("/")).await;
    assert_eq!(counted(&layer, "unguarded"), 1);

    let runs = Count::default();
    let counter = runs.clone();
    let service = layer.layer(inner(move |request: Request<_>| {
        assert!(request.extensions().get::<IdempotencyKey>().is_none());
        ready(ok(format!("run {}", counter.up())))
    }));
    for run in 1..=3 {
        let answer = send(&service, request("POST", "/", &[], "b")).await;
        assert_eq!((answer.text(), answer.headers.len()), (&*format!("run {run}"), 0));
    }
}

#[tokio::test(start_paused = true)]
async fn contract_1_2_with_require_key_a_missing_key_is_400() {
    let layer = builder().require_key(true).build().unwrap();
    let runs = Count::default();
    let counter = runs.clone();
    let service = layer.layer(inner(move |_| ready(ok(format!("run {}", counter.up())))));
    for method in ["POST", "PATCH"] {
        let answer = send(&service, request(method, "/", &[], "b")).await;
        answer.assert_problem(400, "missing-key");
        assert_eq!(answer.outcome(), "missing-key");
    }
    assert_eq!((runs.get(), counted(&layer, "missing-key")), (0, 2));
    assert_eq!(send(&service, request("GET", "/", &[], "")).await.text(), "run 1");
    assert_eq!(send(&service, post("/", "k", "b")).await.text(), "run 2");
}

#[tokio::test(start_paused = true)]
async fn contract_1_3_a_valid_key_guards_the_request() {
    let runs = Count::default();
    let counter = runs.clone();
    let service = IdempotencyLayer::new(MemoryStore::new()).layer(inner(move |request: Request<_>| {
        let key: &IdempotencyKey = request.extensions().get().unwrap();
        assert_eq!((key.as_str(), key.attempt()), ("k", 1));
        ready(ok(format!("run {}", counter.up())))
    }));
    let first = send(&service, post("/", "k", "b")).await;
    assert_eq!(first.outcome(), "executed");
    send(&service, post("/", "k", "b")).await.assert_replay_of(&first);
}

#[tokio::test(start_paused = true)]
async fn contract_1_4_an_invalid_key_is_400_and_its_detail_says_why() {
    let runs = Count::default();
    let counter = runs.clone();
    let layer = IdempotencyLayer::new(MemoryStore::new());
    let service = layer.layer(inner(move |_| ready(ok(format!("run {}", counter.up())))));
    let long = "k".repeat(256);
    for (key, why) in [
        ("", "empty"),
        ("\"\"", "empty"),
        ("a b", "ASCII"),
        ("a,b", "comma"),
        ("a\"b", "quotation mark"),
        ("\"a", "structured-field"),
        (long.as_str(), "256"),
    ] {
        let answer = send(&service, post("/", key, "b")).await;
        answer.assert_problem(400, "invalid-key");
        let detail = answer.json()["detail"].as_str().unwrap().to_owned();
        assert!(detail.contains(why), "{key}: {detail}");
        assert_eq!(answer.outcome(), "invalid-key");
    }
    assert_eq!((runs.get(), counted(&layer, "invalid-key")), (0, 7));
}

/// Each request has every fault from its own on.
#[tokio::test(start_paused = true)]
async fn contract_1_the_checks_come_in_their_order() {
    let (gate, runs) = (Gate::default(), Count::default());
    let layer = builder()
        .max_request_body(8)
        .wait(Duration::ZERO)
        .scope(ScopeSource::from_head(|parts| match parts.headers.get("x-scope") {
            Some(scope) => Ok(scope.to_str()?.to_owned()),
            None => Err("no scope".into()),
        }))
        .fingerprint(FingerprintSource::body())
        .build()
        .unwrap();
    let (stop, counter) = (gate.clone(), runs.clone());
    let service = layer.layer(inner(move |_| {
        let (stop, run) = (stop.clone(), counter.up());
        async move {
            stop.pass().await;
            ok(format!("run {run}"))
        }
    }));
    let to = |key, scope: Option<&str>, body: &'static str| {
        let mut headers = vec![("idempotency-key", key)];
        headers.extend(scope.map(|scope| ("x-scope", scope)));
        request("POST", "/", &headers, body)
    };
    let first = spawn(&service, to("k", Some("s"), "first"));
    gate.arrival().await;
    let large = "more than eight bytes";
    for (request, status, slug) in [
        (to("a,b", None, large), 400, "invalid-key"),
        (to("k", None, large), 500, "scope-unavailable"),
        (to("k", Some("s"), large), 413, "body-too-large"),
        (to("k", Some("s"), "second"), 422, "key-reused"),
        (to("k", Some("s"), "first"), 409, "in-flight"),
    ] {
        send(&service, request).await.assert_problem(status, slug);
    }
    gate.open();
    assert_eq!(first.await.unwrap().text(), "run 1");
    assert_eq!(runs.get(), 1);
}

#[tokio::test(start_paused = true)]
async fn contract_1_an_invalid_key_is_refused_before_the_body_is_read() {
    let service = IdempotencyLayer::new(MemoryStore::new()).layer(service_fn(|_: Request<ScriptedBody>| {
        ready(Ok::<_, Infallible>(ok("ran")))
    }));
    let polled = Count::default();
    let body = ScriptedBody::new([Step::Hang]).counting(&polled);
    let request = Request::post("/").header("idempotency-key", "").body(body).unwrap();
    send(&service, request).await.assert_problem(400, "invalid-key");
    assert_eq!(polled.get(), 0);
}
