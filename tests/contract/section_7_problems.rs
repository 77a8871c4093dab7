//! Section 7 of the contract: what a refusal looks like, and how requests are counted and logged.

use std::collections::BTreeMap;
use std::future::ready;
use std::pin::pin;
use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use tower::{Layer, ServiceExt, service_fn};
use tower_idempotency::{
    Fate, IdempotencyLayer, IdempotencyLayerBuilder, IdempotencyService, MemoryStore, Outcome, Policy, ProblemKind,
    ScopeSource, Store,
};

use crate::support::store::{Act, Op, Scripted};
use crate::support::{
    Answer, BrokenBody, Count, Gate, Inner, ScriptedBody, Step, capture, counted, drain, inner, ok, poll_once, post,
    read, request, send, settle,
};

type Configure = fn(IdempotencyLayerBuilder<Scripted>) -> IdempotencyLayerBuilder<Scripted>;

/// `POST /` with that key and body, in the scope that every request of these tests has.
fn keyed(key: &str, body: impl Into<Body>) -> Request<Body> {
    let headers = [("idempotency-key", key), ("x-scope", "s")];
    request("POST", "/", &headers, body)
}

/// Answers at once; the path says how. `/wait` waits at the gate.
fn service<St: Store>(layer: &IdempotencyLayer<St>, gate: &Gate) -> IdempotencyService<Inner, St> {
    let gate = gate.clone();
    layer.layer(inner(move |request: Request<Body>| {
        let gate = gate.clone();
        async move {
            match request.uri().path() {
                "/wait" => gate.pass().await,
                "/panic" => panic!("as the test wants"),
                "/large" => return ok(vec![b'x'; 100]),
                _ => {}
            }
            ok("done")
        }
    }))
}

fn layer_of_refusals(store: &Scripted, configure: Configure) -> IdempotencyLayer<Scripted> {
    let scope = ScopeSource::from_head(|parts| match parts.headers.get("x-scope") {
        Some(scope) => Ok(scope.to_str()?.to_owned()),
        None => Err("no scope".into()),
    });
    let builder = IdempotencyLayer::builder(store.clone())
        .require_key(true)
        .scope(scope)
        .max_request_body(20)
        .max_response_body(20)
        .max_detached(1)
        .policy(Policy::success().on_panic(Fate::Seal));
    configure(builder).build().unwrap()
}

/// One answer of every kind of refusal, through real requests.
async fn refusals(configure: Configure) -> BTreeMap<&'static str, Answer> {
    let store = Scripted::default();
    let layer = layer_of_refusals(&store, configure);
    let gate = Gate::default();
    let service = service(&layer, &gate);
    let to = |path: &str, key: &str| {
        let headers = [("idempotency-key", key), ("x-scope", "s")];
        request("POST", path, &headers, "b")
    };
    let mut refusals = BTreeMap::new();

    let missing = send(&service, request("POST", "/", &[], "")).await;
    refusals.insert("missing-key", missing);
    refusals.insert("invalid-key", send(&service, keyed("", "b")).await);
    refusals.insert("scope-unavailable", send(&service, post("/", "k", "b")).await);
    let large = send(&service, keyed("k", "more than the twenty bytes that are allowed")).await;
    refusals.insert("body-too-large", large);
    let broken = Body::new(ScriptedBody::new([Step::Fail]).map_err(|BrokenBody| axum::Error::new(BrokenBody)));
    refusals.insert("body-unreadable", send(&service, keyed("k", broken)).await);
    let mut damaged = keyed("k", "b");
    let digest = http::HeaderValue::from_static("sha-256=:AAAA:");
    damaged.headers_mut().insert("content-digest", digest);
    refusals.insert("digest-mismatch", send(&service, damaged).await);
    store.once(Op::Begin, Act::Fail);
    refusals.insert("store-unavailable", send(&service, keyed("k", "b")).await);
    send(&service, keyed("k", "b")).await;
    refusals.insert("key-reused", send(&service, keyed("k", "other")).await);
    send(&service, to("/large", "large")).await;
    let not_retained = send(&service, to("/large", "large")).await;
    refusals.insert("response-not-retained", not_retained);
    let panics = service.clone().oneshot(to("/panic", "panic"));
    assert!(tokio::spawn(panics).await.unwrap_err().is_panic());
    refusals.insert("outcome-unknown", send(&service, to("/panic", "panic")).await);
    {
        let mut leaving = pin!(service.clone().oneshot(to("/wait", "wait")));
        while gate_is_empty(&gate).await {
            assert!(poll_once(leaving.as_mut()).await.is_pending());
        }
    }
    refusals.insert("in-flight", send(&service, to("/wait", "wait")).await);
    refusals.insert("overloaded", send(&service, keyed("another", "b")).await);
    gate.open();
    drain(&layer).await;
    refusals.insert("misconfigured", without_a_timer(configure));
    refusals
}

/// The answer on a runtime that has no timer.
fn without_a_timer(configure: Configure) -> Answer {
    let service = service(&layer_of_refusals(&Scripted::default(), configure), &Gate::default());
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let answer = std::thread::spawn(move || {
        runtime.block_on(async { read(service.oneshot(keyed("k", "b")).await.unwrap()).await })
    });
    answer.join().unwrap()
}

/// Whether nobody has come to the gate yet.
async fn gate_is_empty(gate: &Gate) -> bool {
    poll_once(pin!(gate.arrival())).await.is_pending()
}

#[tokio::test(start_paused = true)]
async fn contract_7_every_refusal_is_a_problem_with_its_members() {
    let refusals = refusals(|builder| builder).await;
    let slugs: Vec<_> = refusals.keys().copied().collect();
    let mut all: Vec<_> = ProblemKind::ALL.iter().map(|kind| kind.slug()).collect();
    all.sort_unstable();
    assert_eq!(slugs, all, "every kind was seen");
    let mut instances = std::collections::BTreeSet::new();
    for (slug, answer) in &refusals {
        let kind = ProblemKind::ALL.iter().find(|kind| kind.slug() == *slug).unwrap();
        answer.assert_problem(kind.status().as_u16(), slug);
        let problem = answer.json();
        assert_eq!(problem["title"], kind.title());
        let members = problem.as_object().unwrap().len();
        assert_eq!(
            members,
            if *slug == "response-not-retained" { 8 } else { 7 },
            "{problem}"
        );
        assert!(!answer.text().contains("null"), "{problem}");
        let retryable = matches!(
            *slug,
            "in-flight" | "overloaded" | "store-unavailable" | "body-unreadable"
        );
        assert_eq!(problem["retryable"], retryable, "{problem}");
        let instance = problem["instance"].as_str().unwrap();
        assert!(instance.starts_with("urn:uuid:"), "{instance}");
        assert!(instances.insert(instance.to_owned()), "{instance} twice");
    }
}

#[tokio::test(start_paused = true)]
async fn contract_7_the_type_is_the_crates_own_documentation_by_default() {
    for (slug, answer) in refusals(|builder| builder).await {
        let url = answer.json()["type"].as_str().unwrap().to_owned();
        assert!(url.starts_with("https://docs.rs/tower-idempotency/"), "{url}");
        assert!(url.ends_with(&format!("#{slug}")), "{url}");
        assert_eq!(answer.header("link"), None, "{slug}");
    }
}

#[tokio::test(start_paused = true)]
async fn contract_7_once_a_documentation_url_is_set_it_is_the_type_and_linked() {
    let refusals = refusals(|builder| builder.problem_documentation("https://api.example.com/docs/idempotency")).await;
    for (slug, answer) in refusals {
        let url = format!("https://api.example.com/docs/idempotency#{slug}");
        assert_eq!(answer.json()["type"], url);
        let link = r#"<https://api.example.com/docs/idempotency>; rel="describedby"; type="text/html""#;
        assert_eq!(answer.header("link"), Some(link), "{slug}");
    }
}

#[tokio::test(start_paused = true)]
async fn contract_7_the_language_is_english() {
    for (slug, answer) in refusals(|builder| builder).await {
        assert_eq!(answer.header("content-language"), Some("en"), "{slug}");
    }
}

#[tokio::test(start_paused = true)]
async fn contract_7_retry_after_stands_where_retrying_helps_and_nowhere_else() {
    for (slug, answer) in refusals(|builder| builder).await {
        let helps = ["in-flight", "store-unavailable", "overloaded"].contains(&slug);
        assert_eq!(answer.header("retry-after").is_some(), helps, "{slug}");
        let told = match slug {
            "in-flight" | "body-unreadable" => Some("true"),
            "key-reused" | "response-not-retained" | "outcome-unknown" | "scope-unavailable" | "misconfigured" => {
                Some("false")
            }
            _ => None,
        };
        assert_eq!(answer.header("x-should-retry"), told, "{slug}");
        // A client that decides by this header, and else by the status, does what the body says.
        let by_status = matches!(answer.status.as_u16(), 408 | 425 | 429 | 500..);
        let retries = told.map_or(by_status, |told| told == "true");
        assert_eq!(answer.json()["retryable"], retries, "{slug}");
    }
}

#[tokio::test(start_paused = true)]
async fn contract_7_a_hook_replaces_the_rendering() {
    let refusals = refusals(|builder| {
        builder.problem_response(|problem, request| {
            let body = format!(
                "{} {} {:?} {}",
                request.uri.path(),
                problem.kind().slug(),
                problem.original_status().map(|status| status.as_u16()),
                problem.detail().is_empty(),
            );
            let mut response = Response::new(Bytes::from(body));
            *response.status_mut() = http::StatusCode::IM_A_TEAPOT;
            let grpc = http::HeaderValue::from_static("9");
            response.headers_mut().insert("grpc-status", grpc);
            response
        })
    })
    .await;
    assert_eq!(refusals.len(), ProblemKind::ALL.len());
    for (slug, answer) in refusals {
        let path = match slug {
            "in-flight" => "/wait",
            "response-not-retained" => "/large",
            "outcome-unknown" => "/panic",
            _ => "/",
        };
        let original = (slug == "response-not-retained").then_some(200);
        assert_eq!(answer.text(), format!("{path} {slug} {original:?} false"));
        assert_eq!(answer.status.as_u16(), 418);
        assert_eq!((answer.header("grpc-status"), answer.headers.len()), (Some("9"), 1));
        let outcome = match slug {
            "response-not-retained" | "outcome-unknown" => "not-retained",
            slug => slug,
        };
        assert_eq!(answer.outcome(), outcome);
    }
}

/// Each outcome, and how a request gets it.
async fn every_outcome() -> Vec<(&'static str, Answer, u64)> {
    let gate = Gate::default();
    let mut seen = Vec::new();
    // Executed, replayed, sealed, not retained, released.
    let layer = IdempotencyLayer::builder(MemoryStore::new())
        .max_response_body(50)
        .build()
        .unwrap();
    let guarded = service(&layer, &gate);
    let mut step = |name, answer, layer: &IdempotencyLayer| seen.push((name, answer, counted(layer, name)));
    step("executed", send(&guarded, post("/", "k", "b")).await, &layer);
    step("replayed", send(&guarded, post("/", "k", "b")).await, &layer);
    step("sealed", send(&guarded, post("/large", "large", "b")).await, &layer);
    step(
        "not-retained",
        send(&guarded, post("/large", "large", "b")).await,
        &layer,
    );
    let failing = layer.layer(inner(|_| {
        ready(Response::builder().status(500).body(Full::<Bytes>::default()).unwrap())
    }));
    step("released", send(&failing, post("/", "fails", "b")).await, &layer);
    // Unprotected.
    let store = Scripted::default();
    store.always(Op::Begin, Act::Fail);
    let open = IdempotencyLayer::builder(store)
        .run_unprotected_when_store_fails()
        .build()
        .unwrap();
    let answer = send(&service(&open, &gate), post("/", "k", "b")).await;
    seen.push(("unprotected", answer, counted(&open, "unprotected")));
    seen
}

#[tokio::test(start_paused = true)]
async fn contract_7_every_response_of_a_guarded_request_carries_its_outcome_and_is_counted() {
    for (outcome, answer, count) in every_outcome().await {
        assert_eq!((answer.outcome(), count), (outcome, 1), "{answer:?}");
    }
    for (slug, answer) in refusals(|builder| builder).await {
        match slug {
            // Answered from a tombstone.
            "response-not-retained" | "outcome-unknown" => assert_eq!(answer.outcome(), "not-retained"),
            _ => {
                assert_eq!(answer.outcome(), slug);
                assert!(matches!(answer.outcome, Some(Outcome::Refused(kind)) if kind.slug() == slug));
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn contract_7_pass_through_is_counted_as_unguarded() {
    let layer = IdempotencyLayer::new(MemoryStore::new());
    let service = service(&layer, &Gate::default());
    send(&service, request("GET", "/", &[("idempotency-key", "k")], "")).await;
    send(&service, request("POST", "/", &[], "")).await;
    let answer = send(&service, request("PUT", "/", &[], "")).await;
    assert_eq!(answer.outcome(), "none");
    assert_eq!(counted(&layer, "unguarded"), 3);
    let total: u64 = layer.counts().map(|(_, count)| count).sum();
    assert_eq!(total, 3);
}

#[tokio::test(start_paused = true)]
async fn contract_7_every_request_is_counted_once() {
    let layer = IdempotencyLayer::new(MemoryStore::new());
    let clone = layer.clone();
    let service = service(&clone, &Gate::default());
    for n in 0..30 {
        let key = (n % 5).to_string();
        send(&service, post(if n % 7 == 0 { "/other" } else { "/" }, &key, "b")).await;
        send(&service, post("/", "", "b")).await;
    }
    let counts: BTreeMap<_, _> = layer.counts().collect();
    assert_eq!(counts.values().sum::<u64>(), 60, "{counts:?}");
    assert_eq!((counts["invalid-key"], counts["executed"]), (30, 5));
    // Every name is there from the start, so that dashboards need not guess.
    let fresh: BTreeMap<_, _> = IdempotencyLayer::new(MemoryStore::new()).counts().collect();
    assert!(fresh.values().all(|count| *count == 0));
    // An answer from a tombstone is `not-retained`; its slug is no outcome.
    for kind in ProblemKind::ALL.iter().copied() {
        let counted = kind != ProblemKind::ResponseNotRetained;
        assert_eq!(fresh.contains_key(kind.slug()), counted, "{kind:?}");
    }
    assert_eq!(fresh.len(), 7 + ProblemKind::ALL.len() - 1 + 1);
}

#[tokio::test(start_paused = true)]
async fn contract_7_panics_and_errors_are_counted_though_they_have_no_response() {
    let layer = IdempotencyLayer::new(MemoryStore::new());
    let panics = service(&layer, &Gate::default()).oneshot(post("/panic", "k", "b"));
    assert!(tokio::spawn(panics).await.unwrap_err().is_panic());
    let fails = layer.layer(service_fn(|_: Request<Body>| {
        ready(Err::<Response<Full<Bytes>>, _>(BrokenBody))
    }));
    fails.oneshot(post("/", "k2", "b")).await.unwrap_err();
    assert_eq!(counted(&layer, "released"), 2);
}

#[tokio::test(start_paused = true)]
async fn contract_7_the_tracing_target_is_tower_idempotency() {
    capture::install();
    capture::take();
    every_outcome().await;
    refusals(|builder| builder).await;
    settle().await;
    let events = capture::take();
    assert!(events.iter().any(|event| event.target == "tower_idempotency"));
    let other: Vec<_> = events
        .iter()
        .filter(|event| event.target.contains("idempotency") && event.target != "tower_idempotency")
        .collect();
    assert!(other.is_empty(), "{other:?}");
}

#[tokio::test(start_paused = true)]
async fn contract_7_the_stripe_profile_marks_replays_and_stores_every_outcome() {
    for status in [200, 402, 500] {
        let runs = Count::default();
        let counter = runs.clone();
        let layer = IdempotencyLayer::builder(MemoryStore::new()).stripe().build().unwrap();
        let service = layer.layer(inner(move |_| {
            counter.up();
            ready(
                Response::builder()
                    .status(status)
                    .body(Full::<Bytes>::from("{}"))
                    .unwrap(),
            )
        }));
        send(&service, post("/v1/charges", "k", "b")).await;
        let replay = send(&service, post("/v1/charges", "k", "b")).await;
        assert_eq!(replay.header("idempotent-replayed"), Some("true"));
        assert_eq!(replay.header("idempotency-replayed"), None);
        assert_eq!((replay.status.as_u16(), runs.get()), (status, 1));
    }
}

#[tokio::test(start_paused = true)]
async fn contract_7_the_stripe_profile_refuses_as_stripe_does() {
    let refusals = refusals(IdempotencyLayerBuilder::stripe).await;
    let error = |slug: &str| {
        let answer = &refusals[slug];
        assert_eq!(answer.header("content-type"), Some("application/json"), "{slug}");
        (answer.status.as_u16(), answer.json()["error"].clone())
    };
    let (status, body) = error("key-reused");
    assert_eq!((status, &body["type"]), (400, &"idempotency_error".into()));
    let (status, body) = error("in-flight");
    assert_eq!((status, &body["code"]), (409, &"idempotency_key_in_use".into()));
    assert!(body["message"].as_str().is_some_and(|message| !message.is_empty()));
    let (status, body) = error("missing-key");
    assert_eq!((status, &body["type"]), (400, &"invalid_request_error".into()));
    let (status, body) = error("store-unavailable");
    assert_eq!((status, &body["type"]), (503, &"api_error".into()));
    for (slug, answer) in &refusals {
        assert!(answer.json()["error"]["type"].is_string(), "{slug}");
        assert_eq!(answer.json().as_object().unwrap().len(), 1, "{slug}");
    }
}

#[tokio::test(start_paused = true)]
async fn contract_7_the_stripe_profile_does_not_run_again_what_panicked_or_failed() {
    let layer = IdempotencyLayer::builder(MemoryStore::new())
        .stripe()
        .wait(Duration::from_secs(1))
        .build()
        .unwrap();
    let service = service(&layer, &Gate::default());
    let panics = service.clone().oneshot(post("/panic", "k", "b"));
    assert!(tokio::spawn(panics).await.unwrap_err().is_panic());
    let retry = send(&service, post("/panic", "k", "b")).await;
    assert_eq!(retry.json()["error"]["type"], "idempotency_error");
    assert_eq!(retry.status.as_u16(), 409);
}

#[test]
fn contract_7_the_kinds_are_public_and_their_slugs_stable() {
    let slugs = ProblemKind::ALL.iter().map(|kind| kind.slug()).collect::<Vec<_>>();
    let expected = [
        "missing-key",
        "invalid-key",
        "scope-unavailable",
        "body-too-large",
        "body-unreadable",
        "key-reused",
        "in-flight",
        "response-not-retained",
        "outcome-unknown",
        "store-unavailable",
        "misconfigured",
        "overloaded",
        "digest-mismatch",
    ];
    assert_eq!(slugs, expected);
    let statuses = ProblemKind::ALL
        .iter()
        .map(|kind| kind.status().as_u16())
        .collect::<Vec<_>>();
    assert_eq!(
        statuses,
        [400, 400, 500, 413, 400, 422, 409, 409, 409, 503, 500, 503, 400]
    );
}
