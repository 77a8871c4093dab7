//! Panics in odd places (contract, rows 4.3 and 4.4): each is handled as `on_panic` says, is counted, and
//! leaves no claim behind.

use std::convert::Infallible;
use std::future::{Future, Ready, ready};
use std::pin::Pin;
use std::task::{Context, Poll};

use axum::body::Body;
use bytes::Bytes;
use http::{Request, Response};
use http_body::{Body as _, Frame, SizeHint};
use http_body_util::{BodyExt, Full};
use tower::{Layer, Service, ServiceExt};
use tower_idempotency::store::Store;
use tower_idempotency::{Fate, IdempotencyLayer, MemoryStore, Policy, Verdict};

use crate::support::store::Scripted;
use crate::support::{Count, Gate, ScriptedBody, Step, counted, drain, inner, ok, post, send};

/// Where the panic is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    FutureDrop,
    BodyPoll,
    BodySizeHint,
    BodyDrop,
    Call,
    Policy,
}

const PLACES: [Place; 6] = [
    Place::FutureDrop,
    Place::BodyPoll,
    Place::BodySizeHint,
    Place::BodyDrop,
    Place::Call,
    Place::Policy,
];

fn panics_at(here: Place, there: Place) {
    if here == there && !std::thread::panicking() {
        panic!("{here:?} panics, as the test wants");
    }
}

struct OddBody(Place, Option<Bytes>);

impl http_body::Body for OddBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        panics_at(Place::BodyPoll, self.0);
        Poll::Ready(self.1.take().map(|data| Ok(Frame::data(data))))
    }

    fn size_hint(&self) -> SizeHint {
        panics_at(Place::BodySizeHint, self.0);
        SizeHint::default()
    }
}

impl Drop for OddBody {
    fn drop(&mut self) {
        panics_at(Place::BodyDrop, self.0);
    }
}

struct OddFuture(Place, Ready<Result<Response<OddBody>, Infallible>>);

impl Future for OddFuture {
    type Output = Result<Response<OddBody>, Infallible>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.1).poll(cx)
    }
}

impl Drop for OddFuture {
    fn drop(&mut self) {
        panics_at(Place::FutureDrop, self.0);
    }
}

#[derive(Clone)]
struct OddService(Place, Count);

impl Service<Request<Body>> for OddService {
    type Response = Response<OddBody>;
    type Error = Infallible;
    type Future = OddFuture;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Request<Body>) -> OddFuture {
        self.1.up();
        panics_at(Place::Call, self.0);
        let response = Response::new(OddBody(self.0, Some("done".into())));
        OddFuture(self.0, ready(Ok(response)))
    }
}

async fn panics_everywhere<St: Store>(store: impl Fn() -> St, fate: Fate) {
    for place in PLACES {
        let runs = Count::default();
        let layer = IdempotencyLayer::builder(store())
            .policy(
                Policy::from_fn(move |_, _| {
                    panics_at(Place::Policy, place);
                    Verdict::Store
                })
                .on_panic(fate),
            )
            .build()
            .unwrap();
        let service = layer.layer(OddService(place, runs.clone()));
        let first = tokio::spawn(async move {
            let response = service.oneshot(post("/", "k", "b")).await.expect("no error");
            let _ = response.into_body().is_end_stream();
        });
        assert!(first.await.unwrap_err().is_panic(), "{place:?}");
        drain(&layer).await;
        let outcome = match fate {
            Fate::Seal => "sealed",
            Fate::Reopen => "reopened",
            _ => "released",
        };
        assert_eq!(counted(&layer, outcome), 1, "{place:?}");
        let fine = layer.layer(tower::service_fn(|request: Request<Body>| {
            let key = request.extensions().get::<tower_idempotency::IdempotencyKey>();
            let attempt = key.expect("a key").attempt().to_string();
            ready(Ok::<_, Infallible>(Response::new(Full::<Bytes>::from(attempt))))
        }));
        if place == Place::Policy {
            continue;
        }
        let retry = send(&fine, post("/", "k", "b")).await;
        match fate {
            Fate::Seal => retry.assert_problem(409, "outcome-unknown"),
            Fate::Reopen => assert_eq!(retry.text(), "2", "{place:?}"),
            _ => assert_eq!(retry.text(), "1", "{place:?}"),
        }
        assert_eq!(runs.get(), 1);
    }
}

#[tokio::test(start_paused = true)]
async fn contract_4_3_a_panic_anywhere_after_the_claim_is_handled_and_counted() {
    for fate in [Fate::Release, Fate::Seal, Fate::Reopen] {
        panics_everywhere(MemoryStore::new, fate).await;
        panics_everywhere(Scripted::default, fate).await;
    }
}

#[tokio::test(start_paused = true)]
async fn contract_4_3_a_panic_while_a_refusal_or_a_replay_is_made_is_counted() {
    let layer = IdempotencyLayer::builder(MemoryStore::new())
        .stream_request_bodies(1024)
        .problem_response(|_, _| panic!("as the test wants"))
        .on_replay(|_, _| panic!("as the test wants"))
        .build()
        .unwrap();
    let service = layer.layer(inner(|request: Request<Body>| async {
        // The layer gives up the claim if the body breaks off, whatever is answered.
        let _ = request.into_body().collect().await;
        ok("done")
    }));
    let breaking = Body::new(ScriptedBody::new([Step::Data("half".into()), Step::Fail]));
    for (body, outcome) in [
        (breaking, "body-unreadable"),
        (Body::from("b"), "executed"),
        (Body::from("b"), "replayed"),
        (Body::from("c"), "key-reused"),
    ] {
        let sent = tokio::spawn(service.clone().oneshot(post("/", "k", body))).await;
        assert_eq!(sent.is_err(), outcome != "executed", "{outcome}");
        assert_eq!(counted(&layer, outcome), 1, "{outcome}");
    }
}

/// As when the future of `main` panics: its runtime is dropped, with the operations that still run.
#[test]
fn a_panic_that_takes_the_runtime_down_leaves_the_claims_to_lapse() {
    let (store, gate) = (Scripted::default(), Gate::default());
    let layer = IdempotencyLayer::new(store);
    let held = gate.clone();
    let service = layer.layer(inner(move |_: Request<Body>| {
        let held = held.clone();
        async move {
            held.pass().await;
            ok("done")
        }
    }));
    let main = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.unwrap().block_on(async {
            tokio::spawn(service.oneshot(post("/", "k", "b")));
            gate.arrival().await;
            panic!("as the test wants");
        });
    });
    assert!(main.join().is_err());
    assert_eq!(counted(&layer, "released"), 1);
}

/// An extension of the request that panics when it is cloned, as atomic mode does with the head.
#[derive(Debug)]
struct UnclonableInTruth;

impl Clone for UnclonableInTruth {
    fn clone(&self) -> Self {
        panic!("a clone panics, as the test wants")
    }
}

#[tokio::test(start_paused = true)]
async fn contract_4_3_a_panic_while_a_reconciler_is_being_asked_leaves_no_claim_behind() {
    let store = Scripted::default();
    let layer = IdempotencyLayer::builder(store.clone())
        .policy(
            Policy::success()
                .reconcile(|_| async { Ok(tower_idempotency::Reconciled::Run) })
                .on_panic(Fate::Seal),
        )
        .build()
        .unwrap();
    let service = layer.layer(OddService(Place::Call, Count::default()));
    // An attempt dies, and its lease lapses.
    store.once(crate::support::store::Op::Begin, crate::support::store::Act::Fail);
    send(
        &layer.layer(tower::service_fn(|_: Request<Body>| {
            ready(Ok::<_, Infallible>(Response::new(Full::<Bytes>::default())))
        })),
        post("/", "k", "b"),
    )
    .await;
    tokio::time::sleep(std::time::Duration::from_secs(600)).await;
    store.claim_and_die().await;
    tokio::time::sleep(std::time::Duration::from_secs(31)).await;
    let mut request = post("/", "k", "b");
    request.extensions_mut().insert(UnclonableInTruth);
    let attempt = tokio::spawn(service.oneshot(request));
    assert!(attempt.await.is_err_and(|error| error.is_panic()));
    drain(&layer).await;
    let fine = layer.layer(tower::service_fn(|_: Request<Body>| {
        ready(Ok::<_, Infallible>(Response::new(Full::<Bytes>::default())))
    }));
    send(&fine, post("/", "k", "b"))
        .await
        .assert_problem(409, "outcome-unknown");
}
