//! Several idempotency layers around one request (contract, row 5.7).

use std::future::ready;

use axum::Router;
use axum::body::Body;
use axum::routing::post as on_post;
use http::{Request, StatusCode};
use tower::Layer;
use tower_idempotency::store::{Inspect, Phase, Store};
use tower_idempotency::{
    FingerprintSource, IdempotencyKey, IdempotencyLayer, IdempotencyService, MemoryStore, Policy, ScopeSource,
};

use crate::support::store::{Act, Op, Scripted};
use crate::support::{Count, Gate, Inner, inner, ok, post, send, spawn};

fn numbered<St: Store>(layer: &IdempotencyLayer<St>, runs: &Count) -> IdempotencyService<Inner, St> {
    let runs = runs.clone();
    layer.layer(inner(move |_| ready(ok(format!("run {}", runs.up())))))
}

#[tokio::test(start_paused = true)]
async fn contract_5_7_two_layers_on_two_stores_each_guard() {
    let runs = Count::default();
    let inner_store = MemoryStore::new();
    let guarded = numbered(&IdempotencyLayer::new(inner_store.clone()), &runs);
    let first = send(
        &IdempotencyLayer::new(MemoryStore::new()).layer(guarded.clone()),
        post("/", "k", "b"),
    )
    .await;
    // The outer store has lost what it had; the inner one answers, and for the outer one it is a first
    // response.
    let again = IdempotencyLayer::new(MemoryStore::new()).layer(guarded);
    let answer = send(&again, post("/", "k", "b")).await;
    assert_eq!((first.text(), answer.text()), ("run 1", "run 1"));
    assert!(!answer.is_replay(), "the marker is the inner layer's");
    assert_eq!(answer.outcome(), "executed");
    assert!(send(&again, post("/", "k", "b")).await.is_replay());
    assert_eq!(runs.get(), 1);
}

#[tokio::test(start_paused = true)]
async fn contract_5_7_an_outer_layer_that_fails_open_does_not_weaken_the_inner_one() {
    let (runs, away) = (Count::default(), Scripted::default());
    away.always(Op::Begin, Act::Fail);
    let outer = IdempotencyLayer::builder(away)
        .run_unprotected_when_store_fails()
        .build()
        .unwrap();
    let service = outer.layer(numbered(&IdempotencyLayer::new(MemoryStore::new()), &runs));
    for _ in 0..3 {
        assert_eq!(send(&service, post("/", "k", "b")).await.text(), "run 1");
    }
    assert_eq!(runs.get(), 1);
}

#[tokio::test(start_paused = true)]
async fn contract_5_7_on_one_store_and_slot_the_inner_layer_steps_aside() {
    for (outer, inner) in [
        (FingerprintSource::request(), FingerprintSource::request()),
        (FingerprintSource::request(), FingerprintSource::none()),
        (FingerprintSource::body(), FingerprintSource::request()),
    ] {
        let (runs, store) = (Count::default(), MemoryStore::new());
        let with = |fingerprint| {
            let builder = IdempotencyLayer::builder(store.clone()).fingerprint(fingerprint);
            builder.wait(std::time::Duration::from_secs(5)).build().unwrap()
        };
        let service = with(outer).layer(numbered(&with(inner), &runs));
        let first = send(&service, post("/", "k", "b")).await;
        assert_eq!(first.text(), "run 1");
        send(&service, post("/", "k", "b")).await.assert_replay_of(&first);
        assert_eq!(runs.get(), 1);
    }
}

#[tokio::test(start_paused = true)]
async fn contract_5_7_on_one_store_that_answers_late_the_inner_layer_steps_aside_as_well() {
    let (runs, store) = (Count::default(), Scripted::default());
    for op in [Op::Begin, Op::Renew, Op::Complete] {
        store.always(op, Act::Late(2));
    }
    let layer = IdempotencyLayer::new(store);
    let service = layer.layer(numbered(&layer, &runs));
    let first = send(&service, post("/", "k", "b")).await;
    assert_eq!(first.text(), "run 1");
    send(&service, post("/", "k", "b")).await.assert_replay_of(&first);
    assert_eq!(runs.get(), 1);
}

#[tokio::test(start_paused = true)]
async fn contract_5_7_a_duplicate_is_not_taken_for_the_request_of_the_outer_layer() {
    let (store, gate) = (MemoryStore::new(), Gate::default());
    let stops = gate.clone();
    let handler = inner(move |_| {
        let stops = stops.clone();
        async move {
            stops.pass().await;
            ok("done")
        }
    });
    let inner_layer = IdempotencyLayer::new(store.clone());
    let guarded = inner_layer.layer(handler);
    // One client reaches the service through a gateway with a store of its own, another directly.
    let gateway = IdempotencyLayer::new(MemoryStore::new()).layer(guarded.clone());
    let first = spawn(&gateway, post("/", "k", "b"));
    gate.arrival().await;
    send(&guarded, post("/", "k", "b"))
        .await
        .assert_problem(409, "in-flight");
    gate.open();
    assert_eq!(first.await.unwrap().text(), "done");
}

#[tokio::test(start_paused = true)]
async fn contract_5_7_of_three_layers_the_first_and_last_on_one_store_run_once() {
    let (runs, store) = (Count::default(), MemoryStore::new());
    let last = numbered(&IdempotencyLayer::new(store.clone()), &runs);
    let middle = IdempotencyLayer::new(MemoryStore::new()).layer(last);
    let service = IdempotencyLayer::new(store).layer(middle);
    let first = send(&service, post("/", "k", "b")).await;
    assert_eq!(first.text(), "run 1");
    send(&service, post("/", "k", "b")).await.assert_replay_of(&first);
    assert_eq!(runs.get(), 1);
}

#[tokio::test(start_paused = true)]
async fn contract_5_7_under_two_scopes_on_one_store_both_guard() {
    let (runs, store) = (Count::default(), MemoryStore::new());
    let route = IdempotencyLayer::builder(store.clone())
        .scope(ScopeSource::shared_by_all("route"))
        .build()
        .unwrap();
    let service = IdempotencyLayer::new(store).layer(numbered(&route, &runs));
    let first = send(&service, post("/", "k", "b")).await;
    send(&service, post("/", "k", "b")).await.assert_replay_of(&first);
    // Another caller is the same to the inner layer.
    let mut other = post("/", "k", "b");
    other.headers_mut().insert("authorization", "Bearer x".parse().unwrap());
    let answer = send(&service, other).await;
    assert_eq!((answer.text(), answer.is_replay()), ("run 1", false));
    assert_eq!(runs.get(), 1);
}

#[tokio::test(start_paused = true)]
async fn contract_5_7_the_outer_layer_does_not_keep_what_the_inner_one_refused() {
    let (runs, inner_store) = (Count::default(), Scripted::default());
    let outer = IdempotencyLayer::builder(MemoryStore::new())
        .policy(Policy::everything())
        .build()
        .unwrap();
    let service = outer.layer(numbered(&IdempotencyLayer::new(inner_store.clone()), &runs));
    inner_store.once(Op::Begin, Act::Fail);
    send(&service, post("/", "k", "b"))
        .await
        .assert_problem(503, "store-unavailable");
    assert_eq!(send(&service, post("/", "k", "b")).await.text(), "run 1");
}

#[tokio::test]
async fn contract_5_7_a_layer_on_a_route_keeps_its_own_policy_inside_one_on_the_router() {
    let runs = Count::default();
    let counter = runs.clone();
    let declines = move |key: IdempotencyKey| async move {
        (
            StatusCode::PAYMENT_REQUIRED,
            format!("run {} of {}", counter.up(), key.as_str()),
        )
    };
    let strict = IdempotencyLayer::builder(MemoryStore::new())
        .policy(Policy::everything())
        .build()
        .unwrap();
    let app: Router = Router::new()
        .route("/charge", on_post(declines).layer(strict))
        .layer(IdempotencyLayer::new(MemoryStore::new()));
    for _ in 0..2 {
        let request: Request<Body> = post("/charge", "k", "b");
        let answer = send(&app, request).await;
        assert_eq!((answer.status.as_u16(), answer.text()), (402, "run 1 of k"));
    }
    assert_eq!(runs.get(), 1);
}

#[tokio::test(start_paused = true)]
async fn contract_5_7_an_inner_layer_that_steps_aside_calls_a_service_that_is_ready() {
    let (runs, store) = (Count::default(), Scripted::default());
    store.always(Op::Begin, Act::Late(2));
    let with_wait = || {
        let builder = IdempotencyLayer::builder(store.clone());
        builder.wait(std::time::Duration::from_secs(5)).build().unwrap()
    };
    let counter = runs.clone();
    // Panics if it is called and did not say before that it is ready.
    let limited = tower::ServiceBuilder::new()
        .concurrency_limit(1)
        .service(inner(move |_| {
            let run = counter.up();
            async move { ok(format!("run {run}")) }
        }));
    let service = with_wait().layer(with_wait().layer(limited));
    let first = send(&service, post("/", "k", "b")).await;
    assert_eq!(first.text(), "run 1");
    send(&service, post("/", "k", "b")).await.assert_replay_of(&first);
}

#[tokio::test(start_paused = true)]
async fn contract_5_7_the_marker_of_an_inner_layer_with_another_name_does_not_leak() {
    let (runs, inner_store) = (Count::default(), MemoryStore::new());
    let guarded = numbered(&IdempotencyLayer::builder(inner_store).stripe().build().unwrap(), &runs);
    send(&guarded, post("/", "k", "b")).await;
    let service = IdempotencyLayer::new(MemoryStore::new()).layer(guarded);
    for again in [false, true] {
        let answer = send(&service, post("/", "k", "b")).await;
        assert_eq!(answer.header("idempotent-replayed"), None);
        assert_eq!(answer.is_replay(), again);
    }
    assert_eq!(runs.get(), 1);
}

#[tokio::test(start_paused = true)]
async fn contract_5_7_between_two_layers_on_one_store_one_may_fail_open() {
    let (runs, store, away) = (Count::default(), Scripted::default(), Scripted::default());
    away.always(Op::Begin, Act::Fail);
    let middle = IdempotencyLayer::builder(away).run_unprotected_when_store_fails();
    let layer = IdempotencyLayer::new(store);
    let service = layer.layer(middle.build().unwrap().layer(numbered(&layer, &runs)));
    for _ in 0..2 {
        assert_eq!(send(&service, post("/", "k", "b")).await.text(), "run 1");
    }
    assert_eq!(runs.get(), 1);
}

/// The claim is the outer layer's, and so is its lease.
#[tokio::test(start_paused = true)]
async fn contract_5_7_an_inner_layer_that_steps_aside_leaves_the_lease_of_the_outer_one() {
    let (store, gate) = (Scripted::default(), Gate::default());
    let with = |lease| {
        let builder = IdempotencyLayer::builder(store.clone()).lease(std::time::Duration::from_secs(lease));
        builder.build().unwrap()
    };
    let (outer, inside) = (with(30), with(5));
    let stop = gate.clone();
    let service = outer.layer(inside.layer(inner(move |_: Request<Body>| {
        let stop = stop.clone();
        async move {
            stop.pass().await;
            ok("done")
        }
    })));
    let first = spawn(&service, post("/", "k", "b"));
    gate.arrival().await;
    let entry = store.look_up(&outer.slot(None, "k").unwrap()).await.unwrap();
    match entry.unwrap().phase {
        Phase::Running { lease_left, .. } => assert!(lease_left.as_secs() > 20, "{lease_left:?}"),
        other => panic!("{other:?}"),
    }
    gate.open();
    assert_eq!(first.await.unwrap().text(), "done");
}
