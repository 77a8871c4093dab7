//! Section 4 of the contract, what decides: a handler's verdict, the policy, the default; and what is never
//! stored.

use std::future::ready;
use std::time::Duration;

use axum::Router;
use axum::response::{IntoResponse, Redirect};
use axum::routing::post as on_post;
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode};
use http_body_util::Full;
use tower::{Layer, ServiceBuilder};
use tower_http::timeout::TimeoutLayer;
use tower_idempotency::store::{OnLapse, Store};
use tower_idempotency::{
    Fate, IdempotencyKey, IdempotencyLayer, IdempotencyLayerBuilder, IdempotencyService, MemoryStore, Policy, Verdict,
};

use crate::support::store::{Act, Op, Scripted};
use crate::support::{
    Answer, Count, Gate, Inner, ScriptedBody, Step, counted, drain, inner, post, request, send, settle, spawn,
};

fn with(policy: Policy) -> IdempotencyLayer {
    builder().policy(policy).build().unwrap()
}

fn builder() -> IdempotencyLayerBuilder {
    IdempotencyLayer::builder(MemoryStore::new())
}

/// Answers with the attempt, under that status and verdict.
fn judging<St: Store>(
    layer: &IdempotencyLayer<St>,
    status: u16,
    verdict: Option<Verdict>,
) -> IdempotencyService<Inner, St> {
    layer.layer(inner(move |request| {
        let key = request.extensions().get::<IdempotencyKey>().expect("a key");
        let mut response = Response::new(Full::<Bytes>::from(format!("attempt {}", key.attempt())));
        *response.status_mut() = StatusCode::from_u16(status).unwrap();
        response
            .extensions_mut()
            .extend(verdict.map(extension).unwrap_or_default());
        ready(response)
    }))
}

fn extension(verdict: Verdict) -> http::Extensions {
    let mut extensions = http::Extensions::new();
    extensions.insert(verdict);
    extensions
}

async fn twice<St: Store>(service: &IdempotencyService<Inner, St>) -> (Answer, Answer) {
    let first = send(service, post("/", "k", "b")).await;
    (first, send(service, post("/", "k", "b")).await)
}

#[tokio::test(start_paused = true)]
async fn contract_4_2_the_verdict_of_the_handler_comes_before_the_policy() {
    for policy in [Policy::success(), Policy::everything(), Policy::cautious()] {
        let (first, second) = twice(&judging(&with(policy.clone()), 500, Some(Verdict::Store))).await;
        second.assert_replay_of(&first);
        let (_, second) = twice(&judging(&with(policy.clone()), 200, Some(Verdict::Release))).await;
        assert_eq!((second.text(), second.is_replay()), ("attempt 1", false));
        let (_, second) = twice(&judging(&with(policy.clone()), 200, Some(Verdict::Reopen))).await;
        assert_eq!((second.text(), second.is_replay()), ("attempt 2", false));
        let (_, second) = twice(&judging(&with(policy.clone()), 200, Some(Verdict::Seal))).await;
        second.assert_problem(409, "response-not-retained");
        let (_, second) = twice(&judging(&with(policy), 500, Some(Verdict::Seal))).await;
        second.assert_problem(409, "outcome-unknown");
    }
}

#[tokio::test]
async fn contract_4_2_an_axum_handler_puts_its_verdict_before_its_response() {
    async fn estimated() -> impl IntoResponse {
        (Verdict::Release, "estimated")
    }
    let app: Router = Router::new()
        .route("/", on_post(estimated))
        .layer(IdempotencyLayer::new(MemoryStore::new()));
    for _ in 0..2 {
        let answer = send(&app, post("/", "k", "b")).await;
        assert_eq!((answer.text(), answer.outcome()), ("estimated", "released"));
    }
}

#[tokio::test(start_paused = true)]
async fn contract_4_2_a_verdict_sets_the_ttl_of_its_response() {
    let layer = builder().ttl(Duration::from_secs(10)).build().unwrap();
    let service = judging(&layer, 200, Some(Verdict::StoreFor(Duration::from_secs(100))));
    let first = send(&service, post("/", "k", "b")).await;
    tokio::time::sleep(Duration::from_secs(99)).await;
    send(&service, post("/", "k", "b")).await.assert_replay_of(&first);
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert!(!send(&service, post("/", "k", "b")).await.is_replay());
    // Nothing is kept forever, and nothing for no time.
    for ttl in [Duration::ZERO, Duration::MAX] {
        let service = judging(&layer, 200, Some(Verdict::StoreFor(ttl)));
        assert_eq!(
            send(&service, post("/", &format!("{ttl:?}"), "b")).await.outcome(),
            "executed"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn contract_4_2_a_policy_that_asks_for_it_sees_body_and_trailers() {
    let policy = Policy::from_response(|response| {
        let checked = response.trailers.is_some_and(|trailers| trailers["x-checked"] == "yes");
        match &response.body[..] {
            b"good" if checked => Verdict::Store,
            b"unsure" => Verdict::Reopen,
            b"done" => Verdict::Seal,
            _ => Verdict::Release,
        }
    });
    let service = with(policy).layer(inner(|request| {
        let path = request.uri().path().trim_start_matches('/').to_owned();
        let checked = HeaderMap::from_iter([("x-checked".parse().unwrap(), HeaderValue::from_static("yes"))]);
        let body = ScriptedBody::new([Step::Data(path.into()), Step::Yield, Step::Trailers(checked)]);
        ready(Response::new(body))
    }));
    for (path, outcome) in [
        ("/good", "executed"),
        ("/bad", "released"),
        ("/unsure", "reopened"),
        ("/done", "sealed"),
    ] {
        let answer = send(&service, post(path, path, "b")).await;
        assert_eq!((answer.text(), answer.outcome()), (&path[1..], outcome));
        assert_eq!(answer.trailers.unwrap()["x-checked"], "yes");
    }
    assert!(send(&service, post("/good", "/good", "b")).await.is_replay());
    send(&service, post("/done", "/done", "b"))
        .await
        .assert_problem(409, "response-not-retained");
}

#[tokio::test(start_paused = true)]
async fn contract_4_2_a_policy_does_not_see_what_is_not_buffered() {
    let policy = Policy::from_response(|_| Verdict::Release);
    let layer = builder().policy(policy).max_response_body(10).build().unwrap();
    let service = layer.layer(inner(|_| {
        ready(Response::new(Full::<Bytes>::from("more than ten bytes")))
    }));
    let first = send(&service, post("/", "k", "b")).await;
    assert_eq!((first.text(), first.outcome()), ("more than ten bytes", "sealed"));
}

#[tokio::test(start_paused = true)]
async fn contract_4_10_and_7_3_failures_with_status_200_are_not_stored() {
    let trailers = |status| HeaderMap::from_iter([("grpc-status".parse().unwrap(), HeaderValue::from_static(status))]);
    let json = |body: &'static str| {
        let response = Response::builder().header("content-type", "application/json");
        response.body(ScriptedBody::from(body)).unwrap()
    };
    let ended_with = move |status| {
        let body = ScriptedBody::new([Step::Data("m".into()), Step::Trailers(trailers(status))]);
        Response::new(body)
    };
    let failed_at_once = || {
        let response = Response::builder().header("grpc-status", "14");
        response.body(ScriptedBody::from("")).unwrap()
    };
    type Answering = Box<dyn Fn() -> Response<ScriptedBody> + Send + Sync>;
    let encoded = || {
        let response = Response::builder()
            .header("content-type", "application/json")
            .header("content-encoding", "gzip");
        response.body(ScriptedBody::from("compressed")).unwrap()
    };
    let cases: [(Policy, Answering, bool); 8] = [
        // A success that cannot be read must not run again.
        (Policy::graphql(), Box::new(encoded), true),
        (
            Policy::graphql(),
            Box::new(move || json(r#"[{"data":{}},{"errors":[{"message":"no"}]}]"#)),
            true,
        ),
        (
            Policy::graphql(),
            Box::new(move || json(r#"[{"errors":[{"message":"no"}]}]"#)),
            false,
        ),
        (
            Policy::graphql(),
            Box::new(move || json(r#"{"errors":[{"message":"no"}]}"#)),
            false,
        ),
        (Policy::graphql(), Box::new(move || json(r#"{"data":{}}"#)), true),
        (Policy::grpc(), Box::new(move || ended_with("14")), false),
        (Policy::grpc(), Box::new(failed_at_once), false),
        (Policy::grpc(), Box::new(move || ended_with("0")), true),
    ];
    for (at, (policy, answering, stored)) in cases.into_iter().enumerate() {
        let answering = std::sync::Arc::new(answering);
        let service = with(policy).layer(inner(move |_| ready(answering())));
        send(&service, post("/", "k", "b")).await;
        assert_eq!(
            send(&service, post("/", "k", "b")).await.is_replay(),
            stored,
            "case {at}"
        );
    }
}

#[tokio::test]
async fn contract_4_1_a_form_that_creates_and_redirects_is_sent_twice_and_creates_once() {
    let runs = Count::default();
    let counter = runs.clone();
    let create = move || {
        let number = counter.up();
        async move { Redirect::to(&format!("/orders/{number}")) }
    };
    let app: Router = Router::new()
        .route("/orders", on_post(create))
        .layer(IdempotencyLayer::new(MemoryStore::new()));
    let first = send(&app, post("/orders", "k", "b")).await;
    assert_eq!(
        (first.status.as_u16(), first.header("location")),
        (303, Some("/orders/1"))
    );
    send(&app, post("/orders", "k", "b")).await.assert_replay_of(&first);
    assert_eq!(runs.get(), 1);
}

#[tokio::test(start_paused = true)]
async fn contract_4_1_an_interim_response_is_never_stored() {
    for verdict in [None, Some(Verdict::Store), Some(Verdict::Seal)] {
        let service = judging(&with(Policy::everything()), 101, verdict);
        let (first, second) = twice(&service).await;
        assert_eq!((first.outcome(), second.outcome()), ("released", "released"));
        assert!(!second.is_replay());
    }
}

#[tokio::test(start_paused = true)]
async fn contract_4_9_a_reopened_key_stays_bound_to_its_request() {
    for fate in [Fate::Release, Fate::Reopen] {
        let layer = with(Policy::success().on_error(fate));
        let service = judging(&layer, 504, Some(Verdict::Reopen));
        assert_eq!(send(&service, post("/", "k", "b")).await.outcome(), "reopened");
        send(&service, post("/", "k", "another body"))
            .await
            .assert_problem(422, "key-reused");
        assert_eq!(send(&service, post("/", "k", "b")).await.text(), "attempt 2");
        assert_eq!(
            send(&judging(&layer, 200, None), post("/", "k", "b")).await.text(),
            "attempt 3"
        );
        assert_eq!(counted(&layer, "reopened"), 2);
    }
}

#[tokio::test(start_paused = true)]
async fn contract_4_9_a_renewal_on_its_way_does_not_delay_the_next_attempt() {
    const LEASE: Duration = Duration::from_secs(30);
    let (store, responds) = (Scripted::default(), Gate::default());
    let layer = IdempotencyLayer::builder(store.clone()).lease(LEASE).build().unwrap();
    let gate = responds.clone();
    let service = layer.layer(inner(move |request: Request<_>| {
        let attempt = request.extensions().get().map_or(0, IdempotencyKey::attempt);
        let gate = gate.clone();
        async move {
            let mut response = Response::new(Full::<Bytes>::from(format!("attempt {attempt}")));
            if attempt == 1 {
                gate.pass().await;
                response.extensions_mut().insert(Verdict::Reopen);
            }
            response
        }
    }));
    // The renewal takes effect after the handler has responded, and before the claim is reopened.
    let (renewal, reopening) = (Gate::default(), Gate::default());
    store.once(Op::Renew, Act::Stop(renewal.clone()));
    store.once(Op::Renew, Act::StopAfterEffect(reopening.clone()));
    let first = spawn(&service, post("/", "k", "b"));
    responds.arrival().await;
    renewal.arrival().await;
    responds.open();
    settle().await;
    renewal.open();
    reopening.arrival().await;
    settle().await;
    reopening.open();
    assert_eq!(first.await.unwrap().outcome(), "reopened");
    assert_eq!(send(&service, post("/", "k", "b")).await.text(), "attempt 2");
}

#[tokio::test(start_paused = true)]
async fn contract_4_9_a_reopened_key_that_must_not_run_again_is_refused() {
    let layer = with(Policy::cautious().on_lapse(OnLapse::Refuse));
    let service = judging(&layer, 502, None);
    send(&service, post("/", "k", "b")).await;
    send(&service, post("/", "k", "b"))
        .await
        .assert_problem(409, "outcome-unknown");
}

#[tokio::test(start_paused = true)]
async fn contract_4_9_a_time_out_inside_the_layer_leads_to_attempt_2() {
    async fn slow(key: IdempotencyKey) -> String {
        if key.attempt() == 1 {
            std::future::pending::<()>().await;
        }
        format!("attempt {}", key.attempt())
    }
    let time_out = TimeoutLayer::with_status_code(StatusCode::GATEWAY_TIMEOUT, Duration::from_secs(1));
    let app: Router = Router::new()
        .route("/", on_post(slow))
        .layer(ServiceBuilder::new().layer(with(Policy::cautious())).layer(time_out));
    let first = send(&app, post("/", "k", "b")).await;
    assert_eq!((first.status.as_u16(), first.outcome()), (504, "reopened"));
    let second = send(&app, post("/", "k", "b")).await;
    assert_eq!((second.text(), second.outcome()), ("attempt 2", "executed"));
}

#[tokio::test(start_paused = true)]
async fn contract_4_5_at_the_bound_running_operations_go_on_and_no_new_one_begins() {
    const MOST: usize = 10;
    const RUNNING: usize = 300;
    let layer = builder().max_detached(MOST).build().unwrap();
    let (gate, runs) = (Gate::default(), Count::default());
    let (stops, counter) = (gate.clone(), runs.clone());
    let service = layer.layer(inner(move |_| {
        let stops = stops.clone();
        counter.up();
        async move {
            stops.pass().await;
            Response::new(Full::<Bytes>::from("done"))
        }
    }));
    // All are admitted while their clients are there, and then all clients disconnect at once.
    let clients: Vec<_> = (0..RUNNING)
        .map(|n| spawn(&service, post("/", &n.to_string(), "b")))
        .collect();
    for _ in 0..RUNNING {
        gate.arrival().await;
    }
    clients.iter().for_each(|client| client.abort());
    for client in clients {
        assert!(client.await.unwrap_err().is_cancelled());
    }
    assert_eq!(layer.background().len(), RUNNING);
    send(&service, post("/", "new", "b"))
        .await
        .assert_problem(503, "overloaded");
    assert_eq!(runs.get(), RUNNING);
    // A concurrency limit outside the layer bounds those that run with their clients, and so the sum.
    gate.open();
    drain(&layer).await;
    assert!(send(&service, post("/", "0", "b")).await.is_replay());
}

#[tokio::test(start_paused = true)]
async fn contract_4_5_a_concurrency_limit_outside_bounds_the_sum() {
    const MOST: usize = 4;
    const LIMIT: usize = 3;
    let layer = builder().max_detached(MOST).build().unwrap();
    let (gate, runs) = (Gate::default(), Count::default());
    let (stops, counter) = (gate.clone(), runs.clone());
    let guarded = layer.layer(inner(move |_| {
        let stops = stops.clone();
        counter.up();
        async move {
            stops.pass().await;
            Response::new(Full::<Bytes>::from("done"))
        }
    }));
    let service = ServiceBuilder::new().concurrency_limit(LIMIT).service(guarded);
    for wave in 0..10 {
        let clients: Vec<_> = (0..LIMIT)
            .map(|n| spawn(&service, post("/", &format!("{wave}-{n}"), "b")))
            .collect();
        crate::support::settle().await;
        clients.iter().for_each(|client| client.abort());
        crate::support::settle().await;
    }
    assert!(layer.background().len() < MOST + LIMIT, "{}", layer.background().len());
    assert!(runs.get() < MOST + LIMIT, "{}", runs.get());
    gate.open();
    drain(&layer).await;
}

#[tokio::test(start_paused = true)]
async fn contract_4_7_the_409_of_a_response_too_large_says_where_the_resource_is() {
    for store in [Scripted::default(), Scripted::default()] {
        let layer = IdempotencyLayer::builder(store).max_response_body(10).build().unwrap();
        let service = layer.layer(inner(|_| {
            let response = Response::builder()
                .status(201)
                .header("location", "/reports/17")
                .header("content-location", "/reports/17.json")
                .header("x-secret", "not kept");
            ready(response.body(Full::<Bytes>::from("more than ten bytes")).unwrap())
        }));
        send(&service, post("/", "k", "b")).await;
        let retry = send(&service, post("/", "k", "b")).await;
        retry.assert_problem(409, "response-not-retained");
        assert_eq!(retry.header("location"), Some("/reports/17"));
        assert_eq!(retry.header("content-location"), Some("/reports/17.json"));
        assert_eq!(retry.header("x-secret"), None);
        let problem = retry.json();
        assert_eq!(
            (&problem["original_status"], &problem["original_location"]),
            (&201.into(), &"/reports/17".into())
        );
    }
}

#[tokio::test(start_paused = true)]
async fn contract_5_1_a_first_response_never_carries_the_marker() {
    for (builder, marker) in [
        (builder(), "idempotency-replayed"),
        (builder().stripe(), "idempotent-replayed"),
        (builder().replay_header("x-again"), "x-again"),
    ] {
        let service = builder.build().unwrap().layer(inner(move |_| {
            let response = Response::builder().header(marker, "true");
            ready(response.body(Full::<Bytes>::from("from an upstream")).unwrap())
        }));
        let first = send(&service, post("/", "k", "b")).await;
        assert_eq!(first.header(marker), None);
        let again = send(&service, post("/", "k", "b")).await;
        assert_eq!(again.headers.get_all(marker).iter().count(), 1);
    }
}

#[tokio::test(start_paused = true)]
async fn contract_5_8_the_replay_of_a_head_has_the_first_content_length() {
    let layer = builder().methods([http::Method::HEAD]).build().unwrap();
    let service = layer.layer(inner(|_| {
        let response = Response::builder().header("content-length", "12345");
        ready(response.body(Full::<Bytes>::default()).unwrap())
    }));
    let head = || request("HEAD", "/", &[("idempotency-key", "k")], "");
    let first = send(&service, head()).await;
    let replay = send(&service, head()).await;
    replay.assert_replay_of(&first);
    assert_eq!(replay.header("content-length"), Some("12345"));
}

#[tokio::test(start_paused = true)]
async fn the_client_is_told_until_when_a_retry_gets_the_response() {
    let layer = builder().lifetime_header("Idempotency-Expires").build().unwrap();
    let service = judging(&layer, 200, None);
    let (first, second) = twice(&service).await;
    second.assert_replay_of(&first);
    let expires = httpdate::parse_http_date(first.header("idempotency-expires").unwrap()).unwrap();
    let day = Duration::from_secs(24 * 60 * 60);
    let now = std::time::SystemTime::now();
    let minute = Duration::from_secs(60);
    assert!(
        expires > now + day - minute && expires < now + day + minute,
        "{expires:?}"
    );
    let failed = judging(&layer, 500, None);
    assert_eq!(
        send(&failed, post("/", "other", "b"))
            .await
            .header("idempotency-expires"),
        None
    );
    // A response that turns out to be too large is not stored.
    let tiny = builder().lifetime_header("Idempotency-Expires").max_response_body(0);
    let (first, second) = twice(&judging(&tiny.build().unwrap(), 200, None)).await;
    assert_eq!(
        (first.status.as_u16(), first.header("idempotency-expires")),
        (200, None)
    );
    second.assert_problem(409, "response-not-retained");
    let by_default = judging(&builder().build().unwrap(), 200, None);
    assert_eq!(
        send(&by_default, post("/", "k", "b"))
            .await
            .header("idempotency-expires"),
        None
    );
}

#[tokio::test(start_paused = true)]
async fn a_hook_puts_back_what_a_record_does_not_keep() {
    #[derive(Clone, Debug, PartialEq)]
    struct Route(String);
    let layer = builder()
        .on_replay(|request, response| {
            response.extensions.insert(Route(request.uri.path().to_owned()));
            response
                .headers
                .insert("x-served-by", HeaderValue::from_static("a replay"));
        })
        .build()
        .unwrap();
    let service = judging(&layer, 200, None);
    assert_eq!(send(&service, post("/pay", "k", "b")).await.header("x-served-by"), None);
    let replay = crate::support::respond(&service, post("/pay", "k", "b")).await;
    assert_eq!(replay.extensions().get(), Some(&Route("/pay".to_owned())));
    assert_eq!(replay.headers()["x-served-by"], "a replay");
}

#[tokio::test(start_paused = true)]
async fn contract_4_2_the_ttl_of_a_verdict_is_also_that_of_a_tombstone() {
    let short = Duration::from_secs(60);
    for content_type in ["text/event-stream", "text/plain"] {
        let layer = builder().max_response_body(4).build().unwrap();
        let service = layer.layer(inner(move |_| {
            let response = Response::builder()
                .header("content-type", content_type)
                .extension(Verdict::StoreFor(short));
            ready(response.body(Full::<Bytes>::from("longer than four")).unwrap())
        }));
        send(&service, post("/", "k", "b")).await;
        send(&service, post("/", "k", "b"))
            .await
            .assert_problem(409, "response-not-retained");
        tokio::time::sleep(short + Duration::from_secs(1)).await;
        assert_eq!(
            send(&service, post("/", "k", "b")).await.outcome(),
            "sealed",
            "{content_type}"
        );
    }
}
