//! Random rounds.

use std::hash::{BuildHasher, RandomState};
use std::path::Path;
use std::str::FromStr;
use std::time::{Duration, Instant};

use tokio::runtime::Builder;

use super::round;
use super::store::{Engine, Engines};

/// On each store. They are to find out that something broke; to look for what is rare, ask for more.
const ROUNDS: u64 = 3;

pub fn variable<T: FromStr>(name: &str) -> Option<T> {
    let value = std::env::var(name).ok()?;
    match value.parse() {
        Ok(value) => Some(value),
        Err(_) => panic!("{name}={value}"),
    }
}

/// Whether `CHAOS_STORE` asks for another.
pub fn left_out(engine: Engine) -> bool {
    variable::<String>("CHAOS_STORE").is_some_and(|store| store != engine.name())
}

/// When to stop.
enum Enough {
    Rounds(u64),
    Until(Instant),
}

impl Enough {
    fn asked_for() -> Self {
        match variable::<u64>("CHAOS_MINUTES") {
            Some(minutes) => Self::Until(Instant::now() + Duration::from_secs(minutes * 60)),
            None => Self::Rounds(variable("CHAOS_ROUNDS").unwrap_or(ROUNDS)),
        }
    }

    fn is_reached(&self, rounds: u64) -> bool {
        match *self {
            Self::Rounds(enough) => rounds >= enough,
            Self::Until(end) => Instant::now() >= end,
        }
    }
}

fn rounds_on(engine: Engine) {
    if left_out(engine) {
        return;
    }
    let Some(engines) = Engines::start(engine) else { return };
    let enough = Enough::asked_for();
    let first: u64 = variable("CHAOS_SEED").unwrap_or_else(|| RandomState::new().hash_one(()) % 1_000_000_000);
    let mut failures = Vec::new();
    let runtime = Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    let mut rounds = 0;
    while !enough.is_reached(rounds) {
        let seed = first + rounds;
        rounds += 1;
        let name = engine.name();
        // Printed before, in case this does not end.
        let again = format!("CHAOS_SEED={seed} CHAOS_ROUNDS=1 CHAOS_STORE={name} cargo test --test chaos -- rounds");
        eprint!("{again} …");
        let began = Instant::now();
        let traces = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("chaos-{name}-{seed}"));
        let (wrong, summary) = runtime.block_on(round::run(&engines, seed, &traces));
        eprintln!(" {:.1?}: {summary}", began.elapsed());
        if !wrong.is_empty() {
            let wrong = wrong.join("\n  ");
            eprintln!("  {wrong}");
            failures.push(format!("{again}\n  {wrong}\n  traces: {}", traces.display()));
        }
    }
    eprintln!("{}: {rounds} rounds, {} of them failed", engine.name(), failures.len());
    assert!(
        failures.is_empty(),
        "{} of {rounds} rounds failed\n{}",
        failures.len(),
        failures.join("\n")
    );
}

#[test]
fn rounds_on_sqlite() {
    rounds_on(Engine::Sqlite);
}

#[test]
fn rounds_on_postgres() {
    rounds_on(Engine::Postgres);
}

#[test]
fn rounds_on_redis() {
    rounds_on(Engine::Redis);
}
