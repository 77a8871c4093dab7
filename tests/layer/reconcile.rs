//! The reconciler: what becomes of an operation whose process died.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use tower::{Layer, ServiceExt};
use tower_idempotency::store::{Inspect, Phase, Token};
use tower_idempotency::{
    IdempotencyKey, IdempotencyLayer, IdempotencyService, Lapsed, MemoryStore, Policy, Reconciled, Store,
};

use crate::support::capture;
use crate::support::store::{Act, Op, Scripted};
use crate::support::{Count, Gate, counted, drain, inner, ok, post, send, spawn};

#[derive(Clone, Copy, Debug)]
enum Say {
    Done,
    Run,
    Fail,
    Panic,
    PanicAtOnce,
}

struct Desk {
    store: Scripted,
    layer: IdempotencyLayer<Scripted>,
    service: IdempotencyService<crate::support::Inner, Scripted>,
    runs: Count,
    asked: Count,
    gate: Gate,
    say: Arc<Mutex<Say>>,
}

fn desk() -> Desk {
    desk_with(Policy::success())
}

fn desk_with(policy: Policy) -> Desk {
    let (store, runs, asked, gate) = (Scripted::default(), Count::default(), Count::default(), Gate::default());
    let say = Arc::new(Mutex::new(Say::Run));
    let (asking, stop, saying) = (asked.clone(), gate.clone(), Arc::clone(&say));
    let policy = policy.reconcile(move |lapsed: Lapsed| {
        asking.up();
        assert_eq!(lapsed.request.uri.path(), "/pay");
        assert_eq!(&lapsed.body[..], b"{}");
        assert!(lapsed.key.attempt() > 1);
        let say = *saying.lock().unwrap();
        assert!(!matches!(say, Say::PanicAtOnce), "as the test wants");
        let stop = stop.clone();
        async move {
            stop.pass().await;
            match say {
                Say::Done => Ok(Reconciled::Done(
                    Response::builder()
                        .status(201)
                        .header("x-charge", "ch_1")
                        .header("connection", "close")
                        .body(Bytes::from("it was done"))
                        .unwrap(),
                )),
                Say::Run => Ok(Reconciled::Run),
                Say::Fail => Err("cannot tell".into()),
                Say::Panic | Say::PanicAtOnce => panic!("as the test wants"),
            }
        }
    });
    let builder = IdempotencyLayer::builder(store.clone()).policy(policy);
    let layer = builder.lifetime_header("idempotency-expires").build().unwrap();
    let running = runs.clone();
    let service = layer.layer(inner(move |request: Request<Body>| {
        let runs = running.up();
        let attempt = request.extensions().get::<IdempotencyKey>().unwrap().attempt();
        async move {
            match runs {
                // The first is only there to tell the store what the request is.
                1 => Response::builder().status(500).body(Full::default()).unwrap(),
                _ => ok(format!("attempt {attempt}")),
            }
        }
    }));
    Desk {
        store,
        layer,
        service,
        runs,
        asked,
        gate,
        say,
    }
}

impl Desk {
    /// A claim of a process that died, and whose lease has lapsed.
    async fn lapse(&self) {
        assert_eq!(send(&self.service, post("/pay", "k", "{}")).await.status, 500);
        self.store.claim_and_die().await;
        let dead = Token(self.store.begins().last().unwrap().token.0 ^ u64::MAX);
        let memory = self.store.memory();
        let slot = self.layer.slot(None, "k").unwrap();
        memory.renew(&slot, dead, Duration::ZERO).await.unwrap();
    }
    fn say(&self, say: Say) {
        *self.say.lock().unwrap() = say;
    }
}

#[tokio::test(start_paused = true)]
async fn what_was_done_is_stored_and_replayed() {
    let desk = desk();
    desk.lapse().await;
    desk.say(Say::Done);
    desk.gate.open();
    let slot = desk.layer.slot(None, "k").unwrap().to_string();
    capture::install();
    for _ in 0..2 {
        capture::take();
        let answer = send(&desk.service, post("/pay", "k", "{}")).await;
        assert_eq!((answer.status.as_u16(), answer.text()), (201, "it was done"));
        assert!(answer.is_replay());
        assert_eq!(answer.header("x-charge"), Some("ch_1"));
        assert!(answer.header("idempotency-expires").is_some());
        assert_eq!(answer.header("connection"), None);
        assert_eq!(answer.outcome(), "replayed");
        let events = capture::take_outcomes();
        assert!(
            events.iter().any(|event| event.field("slot") == Some(&slot)),
            "{events:?}"
        );
    }
    assert_eq!((desk.runs.get(), desk.asked.get()), (1, 1));
    send(&desk.service, post("/pay", "k", "{ }"))
        .await
        .assert_problem(422, "key-reused");
}

/// An outer layer that has never seen the key takes it for the first response.
#[tokio::test(start_paused = true)]
async fn contract_5_7_what_was_done_is_not_marked_inside_another_layer() {
    let desk = desk();
    desk.lapse().await;
    desk.say(Say::Done);
    desk.gate.open();
    let outer = IdempotencyLayer::builder(MemoryStore::new())
        .replay_header("x-outer-replayed")
        .build()
        .unwrap()
        .layer(desk.service.clone());
    let answer = send(&outer, post("/pay", "k", "{}")).await;
    assert_eq!((answer.text(), answer.outcome()), ("it was done", "executed"));
    assert_eq!(answer.header("idempotency-replayed"), None);
}

/// A claim that ends between the two calls of `settle` leaves a free slot, which must stay free.
#[tokio::test(start_paused = true)]
async fn settling_an_operation_that_has_ended_meanwhile_changes_nothing() {
    let desk = desk();
    desk.lapse().await;
    let slot = desk.layer.slot(None, "k").unwrap();
    let looked = Gate::default();
    desk.store.once(Op::LookUp, Act::StopAfterEffect(looked.clone()));
    let (store, response) = (desk.store.clone(), Response::new(Bytes::from_static(b"by hand")));
    let settling = tokio::spawn(async move { store.settle(&slot, &response, Duration::from_secs(60)).await });
    looked.arrival().await;
    assert!(desk.store.memory().forget(&slot).await.unwrap());
    looked.open();
    assert!(!settling.await.unwrap().unwrap());
    assert_eq!(desk.store.look_up(&slot).await.unwrap(), None);
}

#[tokio::test(start_paused = true)]
async fn what_was_not_done_runs_as_the_next_attempt() {
    let desk = desk();
    desk.lapse().await;
    desk.gate.open();
    let answer = send(&desk.service, post("/pay", "k", "{}")).await;
    assert_eq!((answer.text(), answer.outcome()), ("attempt 2", "executed"));
    send(&desk.service, post("/pay", "k", "{}"))
        .await
        .assert_replay_of(&answer);
    assert_eq!((desk.runs.get(), desk.asked.get()), (2, 1));
}

#[tokio::test(start_paused = true)]
async fn a_reconciler_that_cannot_tell_is_asked_again() {
    let desk = desk();
    desk.lapse().await;
    desk.gate.open();
    desk.say(Say::Fail);
    for times in 1..4 {
        send(&desk.service, post("/pay", "k", "{}"))
            .await
            .assert_problem(409, "outcome-unknown");
        assert_eq!(desk.asked.get(), times);
    }
    assert_eq!(counted(&desk.layer, "outcome-unknown"), 3);
    // It is lapsed and remembered all the while.
    send(&desk.service, post("/pay", "k", "{ }"))
        .await
        .assert_problem(422, "key-reused");
    desk.say(Say::Done);
    assert!(send(&desk.service, post("/pay", "k", "{}")).await.is_replay());
    assert_eq!(desk.runs.get(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_reconciler_that_panics_is_asked_again() {
    for say in [Say::Panic, Say::PanicAtOnce] {
        let desk = desk();
        desk.lapse().await;
        desk.gate.open();
        desk.say(say);
        for times in 1..3 {
            let asking = desk.service.clone().oneshot(post("/pay", "k", "{}"));
            assert!(tokio::spawn(asking).await.unwrap_err().is_panic());
            assert_eq!(desk.asked.get(), times);
            assert_eq!(counted(&desk.layer, "reopened"), times as u64);
        }
        desk.say(Say::Run);
        let answer = send(&desk.service, post("/pay", "k", "{}")).await;
        assert!(answer.text().starts_with("attempt"), "{answer:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn only_one_asks_at_a_time() {
    let desk = desk();
    desk.lapse().await;
    desk.say(Say::Done);
    let first = spawn(&desk.service, post("/pay", "k", "{}"));
    desk.gate.arrival().await;
    for _ in 0..5 {
        send(&desk.service, post("/pay", "k", "{}"))
            .await
            .assert_problem(409, "in-flight");
    }
    // Longer than a lease: it is renewed while the reconciler asks.
    tokio::time::sleep(Duration::from_secs(300)).await;
    send(&desk.service, post("/pay", "k", "{}"))
        .await
        .assert_problem(409, "in-flight");
    assert!(desk.store.calls(Op::Renew) > 5);
    desk.gate.open();
    assert!(first.await.unwrap().is_replay());
    assert_eq!((desk.runs.get(), desk.asked.get()), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn a_reconciler_goes_on_without_its_client() {
    let desk = desk();
    desk.lapse().await;
    desk.say(Say::Done);
    let first = spawn(&desk.service, post("/pay", "k", "{}"));
    desk.gate.arrival().await;
    first.abort();
    first.await.unwrap_err();
    desk.gate.open();
    drain(&desk.layer).await;
    let slot = desk.layer.slot(None, "k").unwrap();
    let entry = desk.store.memory().look_up(&slot).await.unwrap().unwrap();
    assert!(matches!(entry.phase, Phase::Done { .. }), "{entry}");
    assert!(send(&desk.service, post("/pay", "k", "{}")).await.is_replay());
    assert_eq!(desk.asked.get(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_store_that_fails_to_keep_what_was_done_is_tried_again() {
    let desk = desk();
    desk.lapse().await;
    desk.gate.open();
    desk.say(Say::Done);
    desk.store.once(Op::Complete, crate::support::store::Act::Fail);
    assert_eq!(send(&desk.service, post("/pay", "k", "{}")).await.text(), "it was done");
    drain(&desk.layer).await;
    assert_eq!(send(&desk.service, post("/pay", "k", "{}")).await.text(), "it was done");
    assert_eq!(desk.asked.get(), 1);
}

#[tokio::test(start_paused = true)]
async fn what_lapsed_is_settled_by_hand() {
    let desk = desk_with(Policy::success());
    // Settled by hand although nobody asks.
    desk.lapse().await;
    let slot = desk.layer.slot(None, "k").unwrap();
    let memory = desk.store.memory();
    let answer = Response::builder().status(201).body(Bytes::from("by hand")).unwrap();
    assert!(memory.settle(&slot, &answer, Duration::from_secs(60)).await.unwrap());
    assert!(
        !memory.settle(&slot, &answer, Duration::from_secs(60)).await.unwrap(),
        "once"
    );
    let replay = send(&desk.service, post("/pay", "k", "{}")).await;
    assert_eq!(
        (replay.status.as_u16(), replay.text(), replay.is_replay()),
        (201, "by hand", true)
    );
    assert_eq!(desk.asked.get(), 0);
    // What runs is not settled.
    let running = IdempotencyLayer::new(desk.store.memory().clone());
    let gate = Gate::default();
    let stop = gate.clone();
    let service = running.layer(inner(move |_| {
        let stop = stop.clone();
        async move {
            stop.pass().await;
            ok("ran")
        }
    }));
    let asked = spawn(&service, post("/pay", "running", "{}"));
    gate.arrival().await;
    let slot = running.slot(None, "running").unwrap();
    assert!(!memory.settle(&slot, &answer, Duration::from_secs(60)).await.unwrap());
    gate.open();
    assert_eq!(asked.await.unwrap().text(), "ran");
    assert!(!memory.settle(&slot, &answer, Duration::from_secs(60)).await.unwrap());
}
