//! A server is halted amid an operation until another has done it; then it goes on as if nothing
//! had happened.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::sleep;

use super::check::{Promise, violations};
use super::client::Outcome;
use super::operation::{Account, Kind, Operation};
use super::rng::Rng;
use super::round::{SETTLES, World};
use super::rounds::left_out;
use super::store::{Engine, Engines, Store};
use crate::support::eventually;

const PATIENCE: Duration = Duration::from_secs(15);

async fn overtaken(engine: Engine) {
    if left_out(engine) {
        return;
    }
    let Some(engines) = Engines::start(engine) else { return };
    let world = World::start(Store::create(&engines).await, engine.lease(), [&[], &[]]).await;
    // Two seconds.
    let kind = Kind::Session { workflow: "wkf_slow" };
    let operation = Operation::new(Account::Acme, "key".to_owned(), kind, "subject".to_owned());
    let operations: Arc<[Operation]> = Arc::new([operation]);
    let began = world.now();
    let first = tokio::spawn({
        let (world, operations) = (world.clone(), operations.clone());
        async move { world.attempt(&operations, 0, 0, PATIENCE, &mut Rng::new(0)).await }
    });
    eventually("its holder is at work", async || world.provider_calls(0).await == 1).await;
    world.servers[0].halt();
    let overtaker = loop {
        let outcome = world.attempt(&operations, 0, 1, PATIENCE, &mut Rng::new(1)).await;
        match outcome {
            Outcome::Answer(answer) if answer.status == 201 => break answer,
            _ => sleep(Duration::from_millis(50)).await,
        }
        assert!(world.now() - began < SETTLES, "it is not taken over");
    };
    assert!(!overtaker.replayed);
    assert_eq!(overtaker.json()["attempt"], 2);
    world.servers[0].resume();
    let healed = world.heal().await;
    first.await.unwrap();
    let observed = world.take_stock(&operations, vec![(began, healed)], healed).await;
    let promise = Promise {
        atomic: engine.atomic(),
        settles: SETTLES,
    };
    let mut wrong = violations(&observed, promise);
    // Its second attempt is known to have been recorded, whatever the first one did.
    let replays = observed.attempts.iter().filter_map(|attempt| match &attempt.outcome {
        Outcome::Answer(answer) if answer.replayed => Some(&answer.body),
        _ => None,
    });
    for body in replays.filter(|body| **body != overtaker.body) {
        wrong.push(format!("the holder that was overtaken recorded its outcome: {body}"));
    }
    if !wrong.is_empty() {
        let traces = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("chaos-halts-{}", engine.name()));
        world.leave(&traces, "", &observed);
        panic!("{}\ntraces: {}", wrong.join("\n"), traces.display());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_halted_holder_is_overtaken_on_sqlite() {
    overtaken(Engine::Sqlite).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_halted_holder_is_overtaken_on_postgres() {
    overtaken(Engine::Postgres).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_halted_holder_is_overtaken_on_redis() {
    overtaken(Engine::Redis).await;
}
