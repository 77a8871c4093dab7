//! The layer among others: in axum's routers, under Tower's middleware, with bodies of all kinds.

use std::convert::Infallible;
use std::future::{Ready, ready};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, BodyStream, Empty, Full, StreamBody};
use tower::buffer::BufferLayer;
use tower::limit::{ConcurrencyLimit, ConcurrencyLimitLayer};
use tower::load_shed::LoadShedLayer;
use tower::timeout::TimeoutLayer;
use tower::{Layer, Service, ServiceBuilder, ServiceExt, service_fn};
use tower_idempotency::store::{DynStore, OnLapse};
use tower_idempotency::{
    IdempotencyKey, IdempotencyLayer, IdempotencyLayerBuilder, IdempotencyService, MemoryStore, Outcome, Policy,
    RequestBody, ResponseBody, ResponseFuture, ScopeSource, Store,
};

use crate::support::store::{Act, Op, Scripted, Through};
use crate::support::{
    Count, Gate, Inner, ScriptedBody, Step, counted, drain, inner, ok, poll_once, post, read, send, settle, spawn,
};

fn layer() -> IdempotencyLayer {
    IdempotencyLayer::new(MemoryStore::new())
}

/// What is asserted of types, when this is compiled.
mod types {
    use super::*;

    fn send_sync<T: Send + Sync + 'static>() {}
    fn clone<T: Clone>() {}
    fn is_send<T: Send + 'static>() {}
    fn debug<T: std::fmt::Debug>() {}

    /// As a user has it in the state of an application.
    #[derive(Clone, Debug)]
    struct Application<S = MemoryStore> {
        idempotency: IdempotencyLayer<S>,
        chosen_at_run_time: IdempotencyLayer<DynStore>,
    }

    #[test]
    fn the_public_types_are_send_sync_clone_and_debug() {
        send_sync::<IdempotencyLayer>();
        send_sync::<IdempotencyLayer<DynStore>>();
        send_sync::<IdempotencyLayerBuilder>();
        send_sync::<IdempotencyService<Inner>>();
        is_send::<ResponseBody<Body>>();
        send_sync::<ResponseBody<ScriptedBody>>();
        send_sync::<RequestBody<hyper::body::Incoming>>();
        send_sync::<IdempotencyKey>();
        send_sync::<tower_idempotency::ConfigError>();
        send_sync::<tower_idempotency::store::StoreError>();
        is_send::<ResponseFuture<Inner, Body, MemoryStore>>();
        clone::<IdempotencyLayer>();
        clone::<IdempotencyLayer<DynStore>>();
        clone::<IdempotencyService<Inner>>();
        clone::<IdempotencyKey>();
        clone::<tower_idempotency::Policy>();
        clone::<ScopeSource>();
        debug::<IdempotencyLayer>();
        debug::<ResponseFuture<Inner, Body, MemoryStore>>();
        debug::<ResponseBody<Body>>();
        debug::<RequestBody<Body>>();
    }

    #[tokio::test(start_paused = true)]
    async fn a_layer_can_be_named_in_a_struct_and_its_store_need_not_be_clone() {
        let application = Application {
            idempotency: IdempotencyLayer::new(Through::<_, false>(MemoryStore::new())),
            chosen_at_run_time: IdempotencyLayer::new(DynStore::new(MemoryStore::new())),
        };
        let application = Application {
            idempotency: application.idempotency.clone(),
            chosen_at_run_time: application.chosen_at_run_time.clone(),
        };
        let runs = Count::default();
        let counting = |runs: &Count| {
            let runs = runs.clone();
            inner(move |_| ready(ok(format!("run {}", runs.up()))))
        };
        let service = application.idempotency.layer(counting(&runs));
        let erased = application.chosen_at_run_time.layer(counting(&runs));
        for _ in 0..3 {
            assert_eq!(send(&service, post("/", "k", "")).await.text(), "run 1");
        }
        for _ in 0..3 {
            assert_eq!(send(&erased, post("/", "k", "")).await.text(), "run 2");
        }
    }
}

mod routers {
    use super::*;
    use axum::extract::{Extension, State};
    use axum::http::{HeaderValue, StatusCode};
    use axum::middleware::{self, Next};
    use axum::response::IntoResponse;
    use axum::routing::{get, post as on_post};
    use axum::{Json, Router};

    async fn count(State(runs): State<Count>) -> String {
        format!("run {}", runs.up())
    }

    #[tokio::test(start_paused = true)]
    async fn as_router_layer_it_guards_every_route_and_the_fallback() {
        let runs = Count::default();
        let app = Router::new()
            .route("/a", on_post(count).get(count))
            .route("/b", on_post(count))
            .fallback(count)
            .layer(layer())
            .with_state(runs.clone());
        for path in ["/a", "/b", "/none"] {
            let first = send(&app, post(path, path, "x")).await;
            send(&app, post(path, path, "x")).await.assert_replay_of(&first);
        }
        assert_eq!(runs.get(), 3);
        for _ in 0..2 {
            let answer = send(
                &app,
                crate::support::request("GET", "/a", &[("idempotency-key", "/a")], ""),
            )
            .await;
            assert!(!answer.is_replay());
        }
        assert_eq!(runs.get(), 5);
    }

    #[tokio::test(start_paused = true)]
    async fn as_route_layer_it_guards_the_routes_and_not_the_fallback() {
        let runs = Count::default();
        let app = Router::new()
            .route("/a", on_post(count))
            .fallback(count)
            .route_layer(layer())
            .with_state(runs.clone());
        send(&app, post("/a", "k", "")).await;
        assert!(send(&app, post("/a", "k", "")).await.is_replay());
        send(&app, post("/none", "k2", "")).await;
        assert!(!send(&app, post("/none", "k2", "")).await.is_replay());
        assert_eq!(runs.get(), 3);
    }

    #[tokio::test(start_paused = true)]
    async fn as_layer_of_a_method_router_it_guards_one_route() {
        let runs = Count::default();
        let app = Router::new()
            .route("/a", on_post(count).layer(layer()).get(count))
            .route("/b", on_post(count))
            .with_state(runs.clone());
        send(&app, post("/a", "k", "")).await;
        assert!(send(&app, post("/a", "k", "")).await.is_replay());
        send(&app, post("/b", "k", "")).await;
        assert!(!send(&app, post("/b", "k", "")).await.is_replay());
        assert_eq!(runs.get(), 3);
    }

    #[tokio::test(start_paused = true)]
    async fn one_layer_around_many_routes_shares_its_store_and_counts() {
        let runs = Count::default();
        let shared = layer();
        let app = Router::new()
            .route("/a", on_post(count).layer(shared.clone()))
            .route("/b", on_post(count).layer(shared.clone()))
            .with_state(runs);
        send(&app, post("/a", "k", "")).await;
        send(&app, post("/b", "k", "")).await.assert_problem(422, "key-reused");
        assert_eq!(counted(&shared, "executed"), 1);
        assert_eq!(counted(&shared, "key-reused"), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn under_two_prefixes_the_original_path_tells_requests_apart() {
        let runs = Count::default();
        let shared = layer();
        let inside = |shared: &IdempotencyLayer| Router::new().route("/pay", on_post(count)).layer(shared.clone());
        let app = Router::new()
            .nest("/v1", inside(&shared))
            .nest("/v2", Router::new().nest("/deep", inside(&shared)))
            .with_state(runs.clone());
        let first = send(&app, post("/v1/pay", "k", "b")).await;
        send(&app, post("/v2/deep/pay", "k", "b"))
            .await
            .assert_problem(422, "key-reused");
        send(&app, post("/v1/pay", "k", "b")).await.assert_replay_of(&first);
        assert_eq!(runs.get(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn middleware_functions_stand_on_either_side() {
        async fn outside(request: axum::extract::Request, next: Next) -> axum::response::Response {
            let mut response = next.run(request).await;
            let outcome = response.extensions().get::<Outcome>().copied();
            let outcome = outcome.map_or("unguarded", Outcome::as_str);
            response
                .headers_mut()
                .insert("x-outcome", HeaderValue::from_static(outcome));
            response
        }
        async fn inside(request: axum::extract::Request, next: Next) -> axum::response::Response {
            let attempt = request
                .extensions()
                .get::<IdempotencyKey>()
                .map(IdempotencyKey::attempt);
            let mut response = next.run(request).await;
            if let Some(attempt) = attempt {
                response.headers_mut().insert("x-attempt", attempt.into());
            }
            response
        }
        let runs = Count::default();
        let app = Router::new()
            .route("/a", on_post(count).get(count))
            .layer(middleware::from_fn(inside))
            .layer(layer())
            .layer(middleware::from_fn(outside))
            .with_state(runs.clone());
        let first = send(&app, post("/a", "k", "b")).await;
        assert_eq!(
            (first.header("x-outcome"), first.header("x-attempt"), first.text()),
            (Some("executed"), Some("1"), "run 1")
        );
        let replay = send(&app, post("/a", "k", "b")).await;
        assert_eq!(
            (replay.header("x-outcome"), replay.header("x-attempt"), replay.text()),
            (Some("replayed"), Some("1"), "run 1")
        );
        let refused = send(&app, post("/a", "k", "other")).await;
        assert_eq!(
            (refused.header("x-outcome"), refused.header("x-attempt")),
            (Some("key-reused"), None)
        );
        let free = send(&app, crate::support::request("GET", "/a", &[], "")).await;
        assert_eq!(
            (free.header("x-outcome"), free.header("x-attempt")),
            (Some("unguarded"), None)
        );
    }

    #[tokio::test(start_paused = true)]
    async fn an_authentication_layer_outside_gives_the_scope_and_guards_replays() {
        #[derive(Clone)]
        struct Tenant(String);
        async fn authenticate(mut request: axum::extract::Request, next: Next) -> axum::response::Response {
            let token = request.headers().get("authorization").map(HeaderValue::as_bytes);
            let tenant = match token {
                Some(b"Bearer old" | b"Bearer refreshed") => "acme",
                Some(b"Bearer globex") => "globex",
                _ => return StatusCode::UNAUTHORIZED.into_response(),
            };
            request.extensions_mut().insert(Tenant(tenant.into()));
            next.run(request).await
        }
        let runs = Count::default();
        let guard = IdempotencyLayer::builder(MemoryStore::new())
            .scope(ScopeSource::extension(|tenant: &Tenant| tenant.0.clone()))
            .build()
            .unwrap();
        let app = Router::new()
            .route("/a", on_post(count))
            .layer(guard)
            .layer(middleware::from_fn(authenticate))
            .with_state(runs.clone());
        let by = |token: &'static str| {
            let headers = [("idempotency-key", "k"), ("authorization", token)];
            crate::support::request("POST", "/a", &headers, "b")
        };
        let first = send(&app, by("Bearer old")).await;
        send(&app, by("Bearer refreshed")).await.assert_replay_of(&first);
        assert_eq!(send(&app, by("Bearer globex")).await.text(), "run 2");
        assert_eq!(send(&app, by("Bearer stolen")).await.status.as_u16(), 401);
        assert_eq!(runs.get(), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn extractors_see_the_request_as_it_was_sent() {
        async fn echo(
            operation: Option<IdempotencyKey>,
            Extension(mark): Extension<&'static str>,
            Json(body): Json<serde_json::Value>,
        ) -> Json<serde_json::Value> {
            let key = operation.as_ref().map(IdempotencyKey::as_str);
            Json(serde_json::json!({ "key": key, "mark": mark, "body": body }))
        }
        let app = Router::new()
            .route("/a", on_post(echo))
            .layer(layer())
            .layer(Extension("outside"));
        let json = |headers: &[(&str, &str)]| {
            let mut request = crate::support::request("POST", "/a", headers, r#"{"amount":1}"#);
            let json = HeaderValue::from_static("application/json");
            request.headers_mut().insert("content-type", json);
            request
        };
        let answer = send(&app, json(&[("idempotency-key", "\"quoted key\"")])).await;
        let expected = serde_json::json!({ "key": "quoted key", "mark": "outside", "body": { "amount": 1 } });
        assert_eq!(answer.json(), expected);
        let answer = send(&app, json(&[])).await;
        assert_eq!(answer.json()["key"], serde_json::Value::Null);
    }

    #[tokio::test(start_paused = true)]
    async fn an_extractor_without_the_layer_is_an_error_of_the_server() {
        async fn needs(_: IdempotencyKey) {}
        let app: Router = Router::new().route("/a", on_post(needs).get(needs));
        let answer = send(&app, post("/a", "k", "")).await;
        assert_eq!(answer.status.as_u16(), 500);
        assert!(answer.text().contains("not set up"), "{}", answer.text());
        assert!(!answer.text().contains("Layer"), "no internals: {}", answer.text());
    }

    #[tokio::test(start_paused = true)]
    async fn it_can_stand_outside_the_whole_router() {
        let runs = Count::default();
        let router = Router::new()
            .nest("/v1", Router::new().route("/pay", on_post(count)))
            .with_state::<()>(runs.clone());
        let app = layer().layer(router);
        let first = send(&app, post("/v1/pay", "k", "b")).await;
        send(&app, post("/v1/pay", "k", "b")).await.assert_replay_of(&first);
        send(&app, post("/v2/pay", "k", "b"))
            .await
            .assert_problem(422, "key-reused");
        assert_eq!(runs.get(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn layered_twice_by_mistake_with_one_store_it_still_works() {
        let runs = Count::default();
        let store = MemoryStore::new();
        let (outer, inside) = (
            IdempotencyLayer::new(store.clone()),
            IdempotencyLayer::new(store.clone()),
        );
        let app = Router::new()
            .route("/a", on_post(count))
            .layer(inside.clone())
            .layer(outer.clone())
            .with_state(runs.clone());
        let first = send(&app, post("/a", "k", "b")).await;
        assert_eq!((first.status.as_u16(), first.outcome()), (200, "executed"));
        send(&app, post("/a", "k", "b")).await.assert_replay_of(&first);
        send(&app, post("/a", "k", "c")).await.assert_problem(422, "key-reused");
        assert_eq!(runs.get(), 1);

        // One and the same layer, and a wait that would outlast the test.
        let waiting = IdempotencyLayer::builder(MemoryStore::new())
            .wait(Duration::from_secs(3600))
            .build()
            .unwrap();
        let app = Router::new()
            .route("/a", on_post(count))
            .layer(waiting.clone())
            .layer(waiting)
            .with_state(runs.clone());
        let first = send(&app, post("/a", "k", "b")).await;
        assert_eq!(first.text(), "run 2");
        send(&app, post("/a", "k", "b")).await.assert_replay_of(&first);
    }

    #[tokio::test(start_paused = true)]
    async fn catch_panic_outside_answers_and_the_key_is_free() {
        async fn fails_once(State(runs): State<Count>) -> String {
            let run = runs.up();
            assert_ne!(run, 1, "panics as the test wants");
            format!("run {run}")
        }
        let runs = Count::default();
        let app = Router::new()
            .route("/a", on_post(fails_once))
            .layer(layer())
            .layer(tower_http::catch_panic::CatchPanicLayer::new())
            .with_state(runs.clone());
        assert_eq!(send(&app, post("/a", "k", "b")).await.status.as_u16(), 500);
        let second = send(&app, post("/a", "k", "b")).await;
        assert_eq!((second.status.as_u16(), second.text()), (200, "run 2"));
    }

    #[tokio::test(start_paused = true)]
    async fn a_trace_layer_stands_on_either_side() {
        let runs = Count::default();
        let app = Router::new()
            .route("/a", on_post(count).get(get_answer))
            .layer(tower_http::trace::TraceLayer::new_for_http())
            .layer(layer())
            .layer(tower_http::trace::TraceLayer::new_for_http())
            .with_state(runs.clone());
        let first = send(&app, post("/a", "k", "b")).await;
        send(&app, post("/a", "k", "b")).await.assert_replay_of(&first);
    }

    async fn get_answer() -> &'static str {
        "got"
    }

    #[tokio::test(start_paused = true)]
    async fn methods_of_the_router_that_are_not_guarded_go_through() {
        let app: Router = Router::new().route("/a", get(get_answer)).layer(layer());
        let answer = send(
            &app,
            crate::support::request("GET", "/a", &[("idempotency-key", "k")], ""),
        )
        .await;
        assert_eq!((answer.text(), answer.outcome()), ("got", "none"));
        // A `HEAD` for a `GET` route keeps the length of the body that it does not have.
        let head = send(
            &app,
            crate::support::request("HEAD", "/a", &[("idempotency-key", "k")], ""),
        )
        .await;
        assert_eq!((head.header("content-length"), head.text()), (Some("3"), ""));
    }
}

/// Panics when it is called without having been found ready, as Tower's own limits do; counts the
/// places that readiness takes and gives back.
struct Strict {
    ready: bool,
    held: Arc<AtomicUsize>,
    runs: Count,
}

impl Strict {
    fn new() -> Self {
        Self {
            ready: false,
            held: Arc::default(),
            runs: Count::default(),
        }
    }

    fn give_back(&mut self) {
        if std::mem::take(&mut self.ready) {
            self.held.fetch_sub(1, Ordering::SeqCst);
        }
    }
}

impl Clone for Strict {
    fn clone(&self) -> Self {
        Self {
            ready: false,
            held: self.held.clone(),
            runs: self.runs.clone(),
        }
    }
}

impl Drop for Strict {
    fn drop(&mut self) {
        self.give_back();
    }
}

impl Service<Request<Body>> for Strict {
    type Response = Response<Full<Bytes>>;
    type Error = Infallible;
    type Future = Ready<Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        if !std::mem::replace(&mut self.ready, true) {
            self.held.fetch_add(1, Ordering::SeqCst);
        }
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Request<Body>) -> Self::Future {
        assert!(self.ready, "called without having been found ready");
        self.give_back();
        ready(Ok(ok(format!("run {}", self.runs.up()))))
    }
}

#[tokio::test(start_paused = true)]
async fn the_inner_service_is_called_only_when_it_was_found_ready() {
    async fn check<St: Store>(layer: IdempotencyLayer<St>) {
        let strict = Strict::new();
        let held = strict.held.clone();
        let service = layer.layer(strict);
        for (key, body) in [("a", "x"), ("a", "x"), ("a", "y"), ("b", "x"), ("", "x"), ("b", "x")] {
            send(&service, post("/", key, body)).await;
            assert_eq!(held.load(Ordering::SeqCst), 0, "no place is kept");
        }
        send(&service, crate::support::request("POST", "/", &[], "")).await;
        send(&service, crate::support::request("GET", "/", &[], "")).await;
        assert_eq!(held.load(Ordering::SeqCst), 0);
        // One service for several requests in turn, as a connection has it.
        let mut service = service;
        for key in ["c", "c", "d"] {
            let request = post("/", key, "");
            drop(read(service.ready().await.unwrap().call(request).await.unwrap()).await);
        }
        drop(service);
        assert_eq!(held.load(Ordering::SeqCst), 0);
    }
    check(layer()).await;
    check(IdempotencyLayer::new(Scripted::default())).await;
    let waiting = |store| {
        IdempotencyLayer::builder(store)
            .wait(Duration::from_secs(1))
            .build()
            .unwrap()
    };
    check(waiting(Scripted::default())).await;
    let failing = Scripted::default();
    failing.always(Op::Begin, Act::Fail);
    check(IdempotencyLayer::new(failing.clone())).await;
    let open = IdempotencyLayer::builder(failing).run_unprotected_when_store_fails();
    check(open.build().unwrap()).await;
    let by_body = IdempotencyLayer::builder(MemoryStore::new()).key(tower_idempotency::KeySource::json_pointer("/k"));
    check(by_body.build().unwrap()).await;
}

#[tokio::test(start_paused = true)]
async fn a_request_that_is_dropped_gives_its_place_back() {
    let strict = Strict::new();
    let held = strict.held.clone();
    let store = Scripted::default();
    let service = IdempotencyLayer::new(store.clone()).layer(strict);
    // While the body is read.
    let hanging = Request::post("/")
        .header("idempotency-key", "k")
        .body(Body::new(ScriptedBody::new([Step::Hang]).map_err(axum::Error::new)))
        .unwrap();
    {
        let mut request = pin!(service.clone().oneshot(hanging));
        assert!(poll_once(request.as_mut()).await.is_pending());
        assert_eq!(held.load(Ordering::SeqCst), 1);
    }
    assert_eq!(held.load(Ordering::SeqCst), 0);
    // While the store is asked.
    store.once(Op::Begin, Act::Hang);
    {
        let mut request = pin!(service.clone().oneshot(post("/", "k", "")));
        assert!(poll_once(request.as_mut()).await.is_pending());
    }
    assert_eq!(held.load(Ordering::SeqCst), 0);
}

/// A concurrency limit of one inside, and a handler that waits at the gate.
fn limited<St: Store>(
    layer: &IdempotencyLayer<St>,
    gate: &Gate,
    runs: &Count,
    failing: usize,
) -> IdempotencyService<ConcurrencyLimit<Inner>, St> {
    let (gate, runs) = (gate.clone(), runs.clone());
    ServiceBuilder::new()
        .layer(layer.clone())
        .layer(ConcurrencyLimitLayer::new(1))
        .service(inner(move |_| {
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
async fn a_concurrency_limit_of_one_inside_does_not_deadlock_with_waiters() {
    async fn check<St: Store>(store: St) {
        let (gate, runs) = (Gate::default(), Count::default());
        let layer = IdempotencyLayer::builder(store)
            .wait(Duration::from_secs(60))
            .build()
            .unwrap();
        // The first of each key fails, so that waiters run too.
        let service = limited(&layer, &gate, &runs, 2);
        let requests: Vec<_> = (0..12)
            .map(|n| spawn(&service, post("/", ["a", "b"][n % 2], "x")))
            .collect();
        for _ in 0..4 {
            gate.arrival().await;
            settle().await;
            gate.open_once();
        }
        let mut fine = 0;
        for request in requests {
            fine += usize::from(request.await.unwrap().status == 200);
        }
        assert_eq!((fine, runs.get()), (10, 4));
    }
    check(MemoryStore::new()).await;
    check(Scripted::default()).await;
}

#[tokio::test(start_paused = true)]
async fn a_waiter_does_not_hold_a_place_under_a_concurrency_limit() {
    let store = Scripted::default();
    let (gate, runs) = (Gate::default(), Count::default());
    let layer = IdempotencyLayer::builder(store.clone())
        .wait(Duration::from_secs(60))
        .build()
        .unwrap();
    let service = limited(&layer, &gate, &runs, 0);
    // Another process runs the operation `a`: its waiter here must not keep `b` from running.
    store.once(Op::Begin, Act::Fail);
    send(&service, post("/", "a", "x"))
        .await
        .assert_problem(503, "store-unavailable");
    store.claim_and_die().await;
    let waiter = spawn(&service, post("/", "a", "x"));
    settle().await;
    let asked = tokio::time::Instant::now();
    let other = spawn(&service, post("/", "b", "x"));
    gate.arrival().await;
    assert!(asked.elapsed().is_zero());
    gate.open();
    assert_eq!(other.await.unwrap().text(), "run 1");
    assert_eq!(waiter.await.unwrap().text(), "run 2", "when the lease has lapsed");
}

#[tokio::test(start_paused = true)]
async fn a_handler_that_goes_on_without_its_client_keeps_its_place_until_it_ends() {
    let (gate, runs) = (Gate::default(), Count::default());
    let layer = layer();
    let service = limited(&layer, &gate, &runs, 0);
    {
        let mut request = Box::pin(service.clone().oneshot(post("/", "a", "x")));
        assert!(poll_once(request.as_mut()).await.is_pending());
        gate.arrival().await;
    }
    let mut next = Box::pin(service.clone().oneshot(post("/", "b", "x")));
    for _ in 0..10 {
        assert!(poll_once(next.as_mut()).await.is_pending());
        settle().await;
    }
    assert_eq!(runs.get(), 1);
    gate.open();
    assert_eq!(read(next.await.unwrap()).await.text(), "run 2");
    drain(&layer).await;
    assert!(send(&service, post("/", "a", "x")).await.is_replay());
}

#[tokio::test(start_paused = true)]
async fn under_timeout_limit_buffer_and_load_shed_outside() {
    let runs = Count::default();
    let counter = runs.clone();
    let service = ServiceBuilder::new()
        .layer(BufferLayer::new(8))
        .layer(LoadShedLayer::new())
        .layer(ConcurrencyLimitLayer::new(4))
        .layer(TimeoutLayer::new(Duration::from_secs(1)))
        .layer(layer())
        .service(inner(move |_| {
            let run = counter.up();
            async move {
                crate::support::yields(3).await;
                ok(format!("run {run}"))
            }
        }));
    let first = send(&service, post("/", "k", "b")).await;
    for _ in 0..20 {
        send(&service, post("/", "k", "b")).await.assert_replay_of(&first);
    }
    assert_eq!(runs.get(), 1);
}

#[tokio::test(start_paused = true)]
async fn over_timeout_limit_buffer_and_load_shed_inside() {
    async fn check<St: Store>(layer: IdempotencyLayer<St>) {
        let (gate, runs) = (Gate::default(), Count::default());
        let (stop, counter) = (gate.clone(), runs.clone());
        let service = ServiceBuilder::new()
            .layer(layer.clone())
            .layer(BufferLayer::new(8))
            .layer(LoadShedLayer::new())
            .layer(ConcurrencyLimitLayer::new(1))
            .layer(TimeoutLayer::new(Duration::from_secs(1)))
            .service(inner(move |_| {
                let (stop, run) = (stop.clone(), counter.up());
                async move {
                    stop.pass().await;
                    ok(format!("run {run}"))
                }
            }));
        // Both the timeout and the shed load are errors of the inner service: the key is free.
        let slow = tokio::spawn(service.clone().oneshot(post("/", "a", "x")));
        gate.arrival().await;
        let shed = service.clone().oneshot(post("/", "b", "x")).await.unwrap_err();
        assert!(shed.is::<tower::load_shed::error::Overloaded>(), "{shed}");
        let elapsed = slow.await.unwrap().unwrap_err();
        assert!(elapsed.is::<tower::timeout::error::Elapsed>(), "{elapsed}");
        assert_eq!(counted(&layer, "released"), 2);
        gate.open();
        for (key, text) in [("a", "run 2"), ("b", "run 3"), ("a", "run 2"), ("b", "run 3")] {
            assert_eq!(send(&service, post("/", key, "x")).await.text(), text);
        }
    }
    check(layer()).await;
    check(IdempotencyLayer::new(Scripted::default())).await;
    let waiting = IdempotencyLayer::builder(Scripted::default()).wait(Duration::from_secs(5));
    check(waiting.build().unwrap()).await;
}

#[tokio::test(start_paused = true)]
async fn replays_and_refusals_leave_a_buffer_usable() {
    // A place in the buffer is taken by readiness: 100 replays must not use it up.
    let service = ServiceBuilder::new()
        .layer(layer())
        .layer(BufferLayer::new(1))
        .service(inner(|_| ready(ok("once"))));
    for _ in 0..100 {
        assert_eq!(send(&service, post("/", "k", "b")).await.text(), "once");
        send(&service, post("/", "k", "c"))
            .await
            .assert_problem(422, "key-reused");
        send(&service, post("/", "a,b", "c"))
            .await
            .assert_problem(400, "invalid-key");
    }
}

/// Ready only when told, and never twice without being asked again; fails on demand.
#[derive(Clone)]
struct Unready {
    refuses: Arc<AtomicBool>,
    runs: Count,
}

impl Service<Request<Body>> for Unready {
    type Response = Response<Full<Bytes>>;
    type Error = &'static str;
    type Future = Ready<Result<Self::Response, &'static str>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), &'static str>> {
        match self.refuses.load(Ordering::SeqCst) {
            true => Poll::Ready(Err("not ready")),
            false => Poll::Ready(Ok(())),
        }
    }

    fn call(&mut self, _: Request<Body>) -> Self::Future {
        ready(Ok(ok(format!("run {}", self.runs.up()))))
    }
}

#[tokio::test(start_paused = true)]
async fn an_error_of_readiness_goes_on_unchanged_and_keeps_nothing() {
    let refuses = Arc::new(AtomicBool::new(true));
    let inner = Unready {
        refuses: refuses.clone(),
        runs: Count::default(),
    };
    let store = Scripted::default();
    let layer = IdempotencyLayer::builder(store.clone())
        .wait(Duration::from_secs(1))
        .build()
        .unwrap();
    let service = layer.layer(inner);
    assert_eq!(
        service.clone().oneshot(post("/", "k", "")).await.unwrap_err(),
        "not ready"
    );
    // Ready at first; refuses when it is asked again, its place having been given away for the wait.
    refuses.store(false, Ordering::SeqCst);
    let gate = Gate::default();
    store.once(Op::Begin, Act::Stop(gate.clone()));
    let request = tokio::spawn(service.clone().oneshot(post("/", "k", "")));
    gate.arrival().await;
    refuses.store(true, Ordering::SeqCst);
    gate.open();
    assert_eq!(request.await.unwrap().unwrap_err(), "not ready");
    refuses.store(false, Ordering::SeqCst);
    assert_eq!(send(&service, post("/", "k", "other body")).await.text(), "run 1");
}

#[tokio::test(start_paused = true)]
async fn a_claim_that_cannot_be_given_back_at_once_is_not_taken_for_an_operation_that_died() {
    let refuses = Arc::new(AtomicBool::new(false));
    let inner = Unready {
        refuses: refuses.clone(),
        runs: Count::default(),
    };
    let store = Scripted::default();
    let layer = IdempotencyLayer::builder(store.clone())
        .policy(Policy::success().on_lapse(OnLapse::Refuse))
        .lease(Duration::from_secs(6))
        .build()
        .unwrap();
    let service = layer.layer(inner);
    let gate = Gate::default();
    store.once(Op::Begin, Act::Stop(gate.clone()));
    for act in [Act::Fail, Act::Hang] {
        store.once(Op::Release, act);
    }
    let request = tokio::spawn(service.clone().oneshot(post("/", "k", "")));
    gate.arrival().await;
    refuses.store(true, Ordering::SeqCst);
    gate.open();
    assert_eq!(request.await.unwrap().unwrap_err(), "not ready");
    refuses.store(false, Ordering::SeqCst);
    tokio::time::sleep(Duration::from_secs(20)).await;
    drain(&layer).await;
    assert_eq!(send(&service, post("/", "k", "")).await.text(), "run 1");
}

mod bodies {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn of_plain_bytes() {
        let runs = Count::default();
        let counter = runs.clone();
        let service = layer().layer(service_fn(move |request: Request<Full<Bytes>>| {
            counter.up();
            async move { Ok::<_, Infallible>(Response::new(request.into_body())) }
        }));
        let request = || {
            let request = Request::post("/").header("idempotency-key", "k");
            request.body(Full::<Bytes>::from("echo")).unwrap()
        };
        let first = send(&service, request()).await;
        assert_eq!(first.text(), "echo");
        send(&service, request()).await.assert_replay_of(&first);
        assert_eq!(runs.get(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn of_streams_and_of_none() {
        let service = layer().layer(service_fn(|_: Request<Full<Bytes>>| async {
            let body = ScriptedBody::new([Step::Data("a".into()), Step::Yield, Step::Data("b".into())]);
            Ok::<_, Infallible>(Response::new(StreamBody::new(BodyStream::new(body))))
        }));
        let request = || {
            let request = Request::post("/").header("idempotency-key", "k");
            request.body(Full::<Bytes>::default()).unwrap()
        };
        let first = send(&service, request()).await;
        assert_eq!(first.text(), "ab");
        send(&service, request()).await.assert_replay_of(&first);

        let service = layer().layer(service_fn(|_: Request<Full<Bytes>>| async {
            Ok::<_, Infallible>(Response::new(Empty::<Bytes>::new()))
        }));
        let first = send(&service, request()).await;
        send(&service, request()).await.assert_replay_of(&first);
    }

    #[tokio::test(start_paused = true)]
    async fn that_are_not_unpin_in_both_directions() {
        let service = layer().layer(service_fn(|request: Request<ScriptedBody>| async {
            Ok::<_, Infallible>(Response::new(request.into_body()))
        }));
        let request = || {
            let body = ScriptedBody::new([
                Step::Yield,
                Step::Data("he".into()),
                Step::Yield,
                Step::Data("y".into()),
            ]);
            let request = Request::post("/").header("idempotency-key", "k");
            request.body(body).unwrap()
        };
        let first = send(&service, request()).await;
        assert_eq!(first.text(), "hey");
        send(&service, request()).await.assert_replay_of(&first);
    }

    /// Cannot be made from bytes, as hyper's own cannot.
    struct Foreign(std::pin::Pin<Box<ScriptedBody>>);

    impl http_body::Body for Foreign {
        type Data = Bytes;
        type Error = crate::support::BrokenBody;

        fn poll_frame(
            self: std::pin::Pin<&mut Self>,
            cx: &mut Context<'_>,
        ) -> Poll<Option<Result<http_body::Frame<Bytes>, crate::support::BrokenBody>>> {
            self.get_mut().0.as_mut().poll_frame(cx)
        }
    }

    #[tokio::test(start_paused = true)]
    async fn that_cannot_be_made_from_bytes_in_a_request_body() {
        let runs = Count::default();
        let counter = runs.clone();
        let service = ServiceBuilder::new()
            .map_request(|request: Request<Foreign>| request.map(RequestBody::live))
            .layer(layer())
            .service(service_fn(move |request: Request<RequestBody<Foreign>>| {
                counter.up();
                async move { Ok::<_, Infallible>(Response::new(request.into_body())) }
            }));
        let request = |key: Option<&str>| {
            let mut request = Request::post("/");
            if let Some(key) = key {
                request = request.header("idempotency-key", key);
            }
            let body = ScriptedBody::new([Step::Data("a".into()), Step::Yield, Step::Data("b".into())]);
            request.body(Foreign(Box::pin(body))).unwrap()
        };
        let first = send(&service, request(Some("k"))).await;
        assert_eq!(first.text(), "ab");
        send(&service, request(Some("k"))).await.assert_replay_of(&first);
        assert_eq!(send(&service, request(None)).await.text(), "ab");
        assert_eq!(runs.get(), 2);
    }
}

#[tokio::test(start_paused = true)]
async fn a_store_that_says_wrongly_that_it_answers_at_once_is_asked_again() {
    for act in [Act::Late(3), Act::HangAfterEffect] {
        let scripted = Scripted::default();
        scripted.once(Op::Begin, act);
        let service = IdempotencyLayer::new(Through::<_, true>(scripted)).layer(Strict::new());
        assert_eq!(send(&service, post("/", "k", "")).await.text(), "run 1");
        assert!(send(&service, post("/", "k", "")).await.is_replay());
    }
}
