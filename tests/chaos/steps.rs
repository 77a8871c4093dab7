//! The connection to the store breaks at each step of an operation, before the store hears it and
//! after.

use std::time::Duration;

use super::check::{Promise, violations};
use super::operation::{Account, Kind, Operation};
use super::rng::Rng;
use super::round::{SETTLES, World};
use super::rounds::left_out;
use super::store::{Engine, Engines, Store};

use crate::support::eventually;
use crate::support::servers::proxy::Proxy;

/// Short, as a run may have to wait for it, and long enough not to lapse by itself.
const LEASE: Duration = Duration::from_millis(800);

const PATIENCE: Duration = Duration::from_secs(15);

#[derive(Clone, Copy, Debug)]
enum Cut {
    NeverHeard,
    AnswerLost,
}

struct Steps {
    world: std::sync::Arc<World>,
    operations: Vec<Operation>,
    harms: Vec<(Duration, Duration)>,
    rng: Rng,
}

impl Steps {
    fn proxy(&self) -> &Proxy {
        self.world.store.proxy(0)
    }

    /// A new operation, as often as it takes, on the server whose connections break.
    async fn operate(&mut self, kind: Kind, harmed: bool) {
        let number = self.operations.len();
        let (key, subject) = (format!("key-{number}"), format!("subject_{number}"));
        self.operations.push(Operation::new(Account::Acme, key, kind, subject));
        let began = self.world.now();
        for _ in 0..400 {
            let outcome = self
                .world
                .attempt(&self.operations, number, 0, PATIENCE, &mut self.rng)
                .await;
            if let super::client::Outcome::Answer(answer) = outcome
                && answer.status == self.operations[number].success()
            {
                if harmed {
                    self.harms.push((began, self.world.now()));
                }
                return;
            }
            tokio::time::sleep(Duration::from_millis(25)).await;
        }
        panic!("operation {number} does not succeed");
    }

    /// How many requests an operation makes of the store, with new connections or without.
    async fn requests(&mut self, kind: Kind, anew: bool) -> u64 {
        if anew {
            self.proxy().cut_all().await;
        }
        let before = self.proxy().round_trips();
        self.operate(kind, anew).await;
        self.proxy().round_trips() - before
    }

    /// One operation for each step.
    async fn each(&mut self, kind: Kind, anew: bool) -> u64 {
        self.operate(kind, false).await;
        let steps = self.requests(kind, anew).await;
        for cut in [Cut::NeverHeard, Cut::AnswerLost] {
            for step in 1..=steps {
                if anew {
                    self.proxy().cut_all().await;
                }
                let cuts = self.proxy().counts().cuts;
                match cut {
                    Cut::NeverHeard => self.proxy().cut_before_request(step),
                    Cut::AnswerLost => self.proxy().cut_after_requests(step),
                }
                self.operate(kind, true).await;
                // The operation may have gone on over another connection, before the server answered on this one.
                eventually("the connection is cut", async || !self.proxy().cut_is_due()).await;
                let cuts = self.proxy().counts().cuts - cuts;
                self.world.store.heal().await;
                // The last steps may be the background's, and come later.
                assert!(cuts == 1 || step > 2, "{kind:?}, {cut:?} at step {step} of {steps}");
            }
        }
        steps
    }
}

async fn cut_at_each_step(engine: Engine) {
    if left_out(engine) {
        return;
    }
    let Some(engines) = Engines::start(engine) else { return };
    let mut steps = Steps {
        world: World::start(Store::create(&engines).await, LEASE, [&[], &[]]).await,
        operations: Vec::new(),
        harms: Vec::new(),
        rng: Rng::new(0),
    };
    let session = Kind::Session {
        workflow: "wkf_kyc_full",
    };
    for (kind, anew) in [(session, true), (session, false), (Kind::Status, false)] {
        let count = steps.each(kind, anew).await;
        eprintln!("{}, {kind:?}, new connections {anew}: {count} steps", engine.name());
    }
    let healed = steps.world.heal().await;
    let observed = steps.world.take_stock(&steps.operations, steps.harms, healed).await;
    let promise = Promise {
        atomic: engine.atomic(),
        settles: SETTLES,
    };
    let wrong = violations(&observed, promise);
    if !wrong.is_empty() {
        let traces = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("chaos-steps-{}", engine.name()));
        steps.world.leave(&traces, "", &observed);
        panic!("{}\ntraces: {}", wrong.join("\n"), traces.display());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn postgres_cut_at_each_step() {
    cut_at_each_step(Engine::Postgres).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn redis_cut_at_each_step() {
    cut_at_each_step(Engine::Redis).await;
}
