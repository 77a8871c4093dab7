//! The conformance suite passes for the stores of this crate, and fails for stores that break a rule.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use tower_idempotency::MemoryStore;
use tower_idempotency::store::conformance::{self, Harness};
use tower_idempotency::store::{DynStore, Inspect};

use super::faults::{self, Fault, Faulty};
use crate::support::conformance::{Handles, conforms};

fn paused() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .unwrap()
}

#[tokio::test(start_paused = true)]
async fn the_memory_store_conforms() {
    conformance::check(&Handles::to(MemoryStore::new())).await;
}

#[tokio::test(start_paused = true)]
async fn every_store_in_memory_can_be_looked_into() {
    async fn check<S: Inspect + Clone>(store: S) {
        for check in conformance::inspection_checks() {
            check.run(&Handles::to(store.clone())).await;
        }
    }
    check(MemoryStore::new()).await;
    check(Arc::new(MemoryStore::new())).await;
    check(DynStore::new(MemoryStore::new())).await;
}

#[tokio::test(start_paused = true)]
async fn a_shared_store_conforms() {
    conformance::check(&Handles::to(Arc::new(MemoryStore::new()))).await;
}

#[tokio::test(start_paused = true)]
async fn an_erased_store_conforms() {
    conformance::check(&Handles::to(DynStore::new(MemoryStore::new()))).await;
}

#[tokio::test(start_paused = true)]
async fn checks_share_a_store_and_run_at_the_same_time() {
    conforms(Handles::to(MemoryStore::new()), conformance::checks(), []).await;
}

#[test]
fn a_thousand_histories_follow_the_machine() {
    paused().block_on(async {
        let harness = Handles::to(MemoryStore::new());
        for seed in 0..1000 {
            conformance::check_history(&harness, seed).await;
        }
    });
}

/// Those checks in which no time has to pass, with threads that race.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn the_memory_store_conforms_on_many_threads() {
    let harness = Handles::to(MemoryStore::new());
    let mut count = 0;
    for check in conformance::checks() {
        if ["one_of_many_begins_starts", "one_of_many_completes_counts"].contains(&check.name()) {
            for _ in 0..50 {
                check.run(&harness).await;
            }
            count += 1;
        }
    }
    assert_eq!(count, 2);
}

/// A harness whose `pass` moves a clock that is not tokio's.
struct ByHand(faults::ManualStore);

impl Harness for ByHand {
    type Store = faults::ManualStore;

    fn store(&self) -> Self::Store {
        self.0.clone()
    }

    fn unit(&self) -> Duration {
        // What the calls take is real time here, and none of the store's.
        Duration::from_secs(3600)
    }

    async fn pass(&self, time: Duration) {
        self.0.pass(time);
    }
}

#[tokio::test(start_paused = true)]
async fn a_store_with_a_clock_of_its_own_conforms() {
    let harness = ByHand(faults::ManualStore::default());
    conformance::check(&harness).await;
    for seed in 0..100 {
        conformance::check_history(&harness, seed).await;
    }
}

#[test]
fn rules_have_distinct_names() {
    let checks = conformance::checks::<Handles<MemoryStore>>();
    let names: std::collections::HashSet<_> = checks.iter().map(|check| check.name()).collect();
    assert_eq!(names.len(), checks.len());
}

/// The rules that a store breaks, with what each check said.
fn broken_rules(fault: Fault) -> Vec<(&'static str, String)> {
    conformance::checks::<Handles<Faulty>>()
        .into_iter()
        .filter_map(|check| {
            let run = || paused().block_on(async { check.run(&Handles::to(Faulty::new(fault))).await });
            let panic = catch_unwind(AssertUnwindSafe(run)).err()?;
            let message = panic
                .downcast_ref::<String>()
                .map(String::as_str)
                .or_else(|| panic.downcast_ref::<&str>().copied())
                .unwrap_or("a panic without a message");
            Some((check.name(), message.to_owned()))
        })
        .collect()
}

#[test]
fn a_wrapper_without_a_fault_conforms() {
    assert_eq!(broken_rules(Fault::Nothing), []);
}

#[test]
fn every_fault_is_found_and_every_rule_finds_one() {
    let mut idle: Vec<_> = conformance::checks::<Handles<Faulty>>()
        .iter()
        .map(|check| check.name())
        .collect();
    let mut unfound = String::new();
    for (fault, rule) in faults::ALL {
        let broken = broken_rules(fault);
        for (name, message) in &broken {
            let heading = format!("store conformance: the rule `{name}` is broken. ");
            assert!(message.starts_with(&heading), "{fault:?}: {message}");
        }
        if !broken.iter().any(|(name, _)| *name == rule) {
            unfound += &format!("\n{fault:?} does not break {rule}, but {broken:#?}");
        }
        idle.retain(|name| !broken.iter().any(|(found, _)| found == name));
    }
    assert!(unfound.is_empty(), "{unfound}");
    assert_eq!(idle, [""; 0], "no fault is known that these rules would find");
}

#[test]
fn a_message_says_what_was_expected_and_what_came() {
    let (_, message) = broken_rules(Fault::AttemptIsAlways1)
        .into_iter()
        .find(|(name, _)| *name == "a_lapsed_claim_is_taken_over_as_the_next_attempt")
        .unwrap();
    assert!(
        message.contains("begin, after attempt 1 lapsed: expected Started { attempt: 2 }, got Started { attempt: 1 }"),
        "{message}"
    );
    let (_, message) = broken_rules(Fault::CutsRecords)
        .into_iter()
        .find(|(name, _)| *name == "a_large_record_comes_back_whole")
        .unwrap();
    assert!(message.contains("the first difference is at byte 60000"), "{message}");
    let failing = broken_rules(Fault::FailsOnLongTimes);
    assert!(
        failing[0].1.contains("the store failed (Unavailable): too long for me"),
        "{failing:?}"
    );
}
