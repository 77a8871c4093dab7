//! The clock of one server is an hour ahead, the other's an hour behind.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::sleep;

use super::check::{Promise, violations};
use super::client::Outcome;
use super::faketime::Faketime;
use super::operation::{ACCOUNTS, Kind, Operation};
use super::rng::Rng;
use super::round::{SETTLES, World};
use super::rounds::left_out;
use super::store::{Engine, Engines, Store};

const PATIENCE: Duration = Duration::from_secs(15);

/// Several clients for each operation, at both servers; halfway, one server is killed if `kill`.
async fn an_hour_off(engine: Engine, kill: bool) {
    if left_out(engine) {
        return;
    }
    let (Some(clock), Some(engines)) = (Faketime::installed(), Engines::start(engine)) else {
        return;
    };
    let world = World::start(
        Store::create(&engines).await,
        engine.lease(),
        [&clock.shifted("+1h"), &clock.shifted("-1h")],
    )
    .await;
    let operations: Arc<[Operation]> = (0..12)
        .map(|number| {
            let kind = match number % 4 {
                0 | 1 => Kind::Session {
                    workflow: "wkf_kyc_full",
                },
                2 => Kind::Screening,
                _ => Kind::Status,
            };
            let (key, subject) = (format!("key-{number}"), format!("subject_{number}"));
            Operation::new(ACCOUNTS[number % 2], key, kind, subject)
        })
        .collect();
    let mut clients = JoinSet::new();
    for client in 0..operations.len() * 4 {
        let (world, operations) = (world.clone(), operations.clone());
        clients.spawn(async move {
            let mut rng = Rng::new(client as u64);
            let number = client / 4;
            sleep(Duration::from_millis(60 * number as u64) + rng.millis(0, 40)).await;
            loop {
                let server = (client + rng.index(2)) % 2;
                let outcome = world.attempt(&operations, number, server, PATIENCE, &mut rng).await;
                if matches!(outcome, Outcome::Answer(answer) if answer.status == operations[number].success()) {
                    break;
                }
                sleep(rng.millis(10, 50)).await;
            }
        });
    }
    let mut harms = Vec::new();
    if kill {
        sleep(Duration::from_millis(400)).await;
        world.servers[0].kill();
        harms.push((Duration::ZERO, Duration::MAX));
    }
    let healed = world.heal().await;
    while let Some(ended) = clients.join_next().await {
        ended.unwrap();
    }
    let observed = world.take_stock(&operations, harms, healed).await;
    assert_shifted(&observed.attempts);
    let promise = Promise {
        atomic: engine.atomic(),
        settles: SETTLES,
    };
    let wrong = violations(&observed, promise);
    if !wrong.is_empty() {
        let traces = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("chaos-clocks-{}", engine.name()));
        world.leave(&traces, "", &observed);
        panic!("{}\ntraces: {}", wrong.join("\n"), traces.display());
    }
}

/// Answers have the time of the server that ran the operation: it must have been wrong.
fn assert_shifted(attempts: &[super::check::Attempt]) {
    let hour = |time: &str| time.get(11..13).and_then(|hour| hour.parse::<u64>().ok());
    let now = std::time::SystemTime::now();
    let now = now.duration_since(std::time::UNIX_EPOCH).unwrap().as_secs() / 3600 % 24;
    let mut seen = 0;
    for attempt in attempts {
        if let Outcome::Answer(answer) = &attempt.outcome
            && !answer.replayed
            && let Some(hour) = answer.json()["created_at"].as_str().and_then(hour)
        {
            assert_ne!(hour, now, "libfaketime has no effect on server {}", attempt.server);
            seen += 1;
        }
    }
    assert!(seen > 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clocks_an_hour_off_on_postgres() {
    an_hour_off(Engine::Postgres, true).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clocks_an_hour_off_on_redis() {
    an_hour_off(Engine::Redis, false).await;
}

/// SQLite has no clock but its users'. A claim of the server behind is lapsed in the eyes of the one
/// ahead, which takes it over; the first one's effect is then rolled back. A claim that the server
/// ahead died with would last an hour longer for the other: nobody is killed here.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clocks_an_hour_off_on_sqlite() {
    an_hour_off(Engine::Sqlite, false).await;
}
