//! Claims and leases: a holder that is alive is not overtaken, a lost answer costs nothing.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::response::Response;
use axum::routing::post;
use http::{Request, StatusCode};
use tower::ServiceExt;
use tower_idempotency::store::OnLapse;
use tower_idempotency::{IdempotencyKey, IdempotencyLayer, MemoryStore, Policy};

use crate::support::eventually;
use crate::support::store::{Act, Op, Scripted};

fn pay() -> Request<Body> {
    Request::post("/")
        .header("idempotency-key", "k")
        .body(Body::from("10"))
        .unwrap()
}

async fn send(app: &Router) -> Response {
    app.clone().oneshot(pay()).await.unwrap()
}

/// A handler that takes that long, and how often it ran.
fn slow(duration: Duration) -> (Router, Arc<AtomicUsize>) {
    let runs = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&runs);
    let handler = move || async move {
        count.fetch_add(1, Ordering::SeqCst);
        tokio::time::sleep(duration).await;
        "paid"
    };
    (Router::new().route("/", post(handler)), runs)
}

/// A handler that blocks its thread until it is told to end.
fn blocking() -> (Router, mpsc::Sender<()>, Arc<AtomicUsize>) {
    let (end, ended) = mpsc::channel();
    let (ended, runs) = (Arc::new(Mutex::new(ended)), Arc::new(AtomicUsize::new(0)));
    let count = Arc::clone(&runs);
    let handler = move || async move {
        count.fetch_add(1, Ordering::SeqCst);
        ended.lock().unwrap().recv().unwrap();
        "paid"
    };
    (Router::new().route("/", post(handler)), end, runs)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn contract_4_5_in_memory_a_handler_that_blocks_its_thread_is_not_overtaken() {
    let layer = IdempotencyLayer::builder(MemoryStore::new())
        .lease(Duration::from_millis(1))
        .build()
        .unwrap();
    let (app, end, runs) = blocking();
    let app = app.layer(layer);
    let first = tokio::spawn(app.clone().oneshot(pay()));
    eventually("the handler runs", async || runs.load(Ordering::SeqCst) == 1).await;
    // Many times its lease later.
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert_eq!(send(&app).await.status(), StatusCode::CONFLICT);
    end.send(()).unwrap();
    assert_eq!(first.await.unwrap().unwrap().status(), StatusCode::OK);
    assert_eq!(send(&app).await.headers()["idempotency-replayed"], "true");
    assert_eq!(runs.load(Ordering::SeqCst), 1);
}

#[test]
fn contract_4_6_in_memory_a_claim_whose_holder_is_gone_lapses_at_once() {
    let layer = IdempotencyLayer::new(MemoryStore::new());
    let handler = |key: IdempotencyKey| async move {
        if key.attempt() == 1 {
            std::future::pending::<()>().await;
        }
        format!("attempt {}", key.attempt())
    };
    let app = Router::new().route("/", post(handler)).layer(layer);
    let runtime = || {
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap()
    };
    let first = runtime();
    first.block_on(async {
        tokio::spawn(app.clone().oneshot(pay()));
        tokio::task::yield_now().await;
        assert_eq!(send(&app).await.status(), StatusCode::CONFLICT);
    });
    // The runtime ends, and with it the handler, wherever it was.
    drop(first);
    runtime().block_on(async {
        use http_body_util::BodyExt;
        let answer = send(&app).await.into_body().collect().await.unwrap();
        assert_eq!(answer.to_bytes(), "attempt 2");
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn the_lease_of_a_handler_that_blocks_its_thread_is_renewed() {
    let store = Scripted::default();
    let layer = IdempotencyLayer::builder(store.clone())
        // Long enough that a busy machine does not delay a renewal by two thirds of it.
        .lease(Duration::from_millis(2400))
        .build()
        .unwrap();
    let (app, end, runs) = blocking();
    let app = app.layer(layer);
    let first = tokio::spawn(app.clone().oneshot(pay()));
    eventually("the handler runs", async || runs.load(Ordering::SeqCst) == 1).await;
    // Four thirds of the lease have passed.
    eventually("it was renewed", async || store.calls(Op::Renew) >= 4).await;
    assert_eq!(send(&app).await.status(), StatusCode::CONFLICT);
    end.send(()).unwrap();
    assert_eq!(first.await.unwrap().unwrap().status(), StatusCode::OK);
    assert_eq!(runs.load(Ordering::SeqCst), 1);
}

#[tokio::test(start_paused = true)]
async fn a_renewal_that_hangs_does_not_cost_the_claim() {
    for lease in [3, 6, 30] {
        let store = Scripted::default();
        store.once(Op::Renew, Act::Hang);
        let layer = IdempotencyLayer::builder(store)
            .lease(Duration::from_secs(lease))
            .build()
            .unwrap();
        let (app, runs) = slow(Duration::from_secs(60));
        let app = app.layer(layer);
        let first = tokio::spawn(app.clone().oneshot(pay()));
        for _ in 0..100 {
            tokio::time::sleep(Duration::from_millis(500)).await;
            assert_eq!(send(&app).await.status(), StatusCode::CONFLICT, "lease of {lease} s");
        }
        assert_eq!(first.await.unwrap().unwrap().status(), StatusCode::OK);
        assert_eq!(runs.load(Ordering::SeqCst), 1, "lease of {lease} s");
    }
}

#[tokio::test(start_paused = true)]
async fn a_claim_whose_answer_took_most_of_its_lease_is_not_used() {
    let store = Scripted::default();
    for _ in 0..40 {
        store.once(Op::Begin, Act::SlowAnswer(Duration::from_millis(4500)));
    }
    let layer = IdempotencyLayer::builder(store)
        .lease(Duration::from_secs(6))
        .build()
        .unwrap();
    let (app, runs) = slow(Duration::from_secs(20));
    let app = app.layer(layer);
    for _ in 0..120 {
        tokio::spawn(app.clone().oneshot(pay()));
        tokio::time::sleep(Duration::from_millis(250)).await;
    }
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(runs.load(Ordering::SeqCst), 1);
}

#[tokio::test(start_paused = true)]
async fn contract_6_3_an_operation_that_never_ran_is_not_taken_for_one_that_died() {
    let store = Scripted::default();
    store.once(Op::Begin, Act::FailAfterEffect);
    let layer = IdempotencyLayer::builder(store.clone())
        .policy(Policy::success().on_lapse(OnLapse::Refuse))
        .build()
        .unwrap();
    let (app, runs) = slow(Duration::ZERO);
    let app = app.layer(layer);
    assert_eq!(send(&app).await.status(), StatusCode::SERVICE_UNAVAILABLE);
    store.down(true);
    tokio::time::sleep(Duration::from_secs(45)).await;
    store.down(false);
    tokio::time::sleep(Duration::from_secs(10)).await;
    assert_eq!(send(&app).await.status(), StatusCode::OK);
    assert_eq!(runs.load(Ordering::SeqCst), 1);
}

#[tokio::test(start_paused = true)]
async fn contract_6_3_only_a_claim_that_may_exist_is_looked_for() {
    for (act, begins) in [(Act::FailAfterEffect, 2), (Act::Fail, 2), (Act::Refuse, 1)] {
        let store = Scripted::default();
        store.once(Op::Begin, act.clone());
        let (app, _) = slow(Duration::ZERO);
        let app = app.layer(IdempotencyLayer::new(store.clone()));
        assert_eq!(send(&app).await.status(), StatusCode::SERVICE_UNAVAILABLE);
        tokio::time::sleep(Duration::from_secs(10)).await;
        assert_eq!(store.calls(Op::Begin), begins, "{act:?}");
        assert_eq!(send(&app).await.status(), StatusCode::OK, "{act:?}");
    }
}

#[tokio::test]
async fn contract_6_3_failing_open_a_handler_still_finds_its_key() {
    let store = Scripted::default();
    store.down(true);
    let layer = IdempotencyLayer::builder(store)
        .run_unprotected_when_store_fails()
        .build()
        .unwrap();
    let handler = |key: IdempotencyKey| async move { format!("{} {}", key.attempt(), key.derive("charge")) };
    let app = Router::new().route("/", post(handler)).layer(layer);
    assert_eq!(send(&app).await.status(), StatusCode::OK);
}

#[tokio::test(start_paused = true)]
async fn contract_4_7_a_body_that_does_not_end_in_time_goes_out_live_and_leaves_a_tombstone() {
    use http_body_util::BodyExt;
    let layer = IdempotencyLayer::builder(MemoryStore::new())
        .max_detached(1)
        .build()
        .unwrap();
    let background = layer.background();
    let handler = || async { Response::new(Body::new(Drip(3, None))) };
    let app = Router::new().route("/", post(handler)).layer(layer);
    let started = tokio::time::Instant::now();
    let first = send(&app).await;
    assert_eq!(started.elapsed(), Duration::from_secs(30), "then it goes out");
    assert_eq!(first.into_body().collect().await.unwrap().to_bytes(), "dripdripdrip");
    assert_eq!(send(&app).await.status(), StatusCode::CONFLICT);
    // A client that leaves meanwhile does not leave work forever.
    let other = Request::post("/")
        .header("idempotency-key", "other")
        .body(Body::empty())
        .unwrap();
    let left = tokio::time::timeout(Duration::from_secs(1), app.clone().oneshot(other)).await;
    assert!(left.is_err());
    assert_eq!(background.len(), 1);
    background.wait().await;
}

/// A body of that many frames, twenty seconds apart.
struct Drip(u32, Option<std::pin::Pin<Box<tokio::time::Sleep>>>);

impl http_body::Body for Drip {
    type Data = bytes::Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<http_body::Frame<bytes::Bytes>, Self::Error>>> {
        if self.0 == 0 {
            return std::task::Poll::Ready(None);
        }
        let pause = || Box::pin(tokio::time::sleep(Duration::from_secs(20)));
        std::task::ready!(self.1.get_or_insert_with(pause).as_mut().poll(cx));
        self.1 = None;
        self.0 -= 1;
        std::task::Poll::Ready(Some(Ok(http_body::Frame::data("drip".into()))))
    }
}

#[tokio::test]
async fn contract_2_5_events_of_two_senders_with_one_id_are_two_events() {
    use tower_idempotency::KeySource;
    let store = MemoryStore::new();
    let of = |sender: &'static str| {
        let layer = IdempotencyLayer::builder(store.clone()).webhooks(sender, KeySource::json_pointer("/id"));
        Router::new()
            .route("/", post(move || async move { sender }))
            .layer(layer.build().unwrap())
    };
    let event = || Request::post("/").body(Body::from(r#"{"id":17}"#)).unwrap();
    for (sender, replayed) in [("stripe", false), ("github", false), ("stripe", true)] {
        let answer = of(sender).oneshot(event()).await.unwrap();
        assert_eq!(
            answer.headers().contains_key("idempotency-replayed"),
            replayed,
            "{sender}"
        );
    }
}
