//! Checks of `changed`, through which waiting requests notice an outcome.

use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;

use super::harness::Harness;
use super::probe::Probe;
use crate::store::Record;
use crate::store::Store;
use crate::store::{ClaimOutcome, ClaimRequest, Held};

/// The time within which a waiting request should notice that a claim ended.
const PATIENCE: Duration = Duration::from_secs(10);
/// If `changed` returns this many times while the claim is still running, it is considered not to
/// wait.
const ROUNDS: u32 = 1000;
const WAITERS: usize = 8;

pub(super) async fn changed_returns_when_the_claim_has_ended<H: Harness>(slot: Probe<'_, H>) {
    returns(&slot, "of a slot that was never claimed").await;

    let claim = slot.claim();
    slot.begin("the first claim", &claim, &ClaimOutcome::Started { attempt: 1 })
        .await;
    let early = slot.store.changed(&slot.slot, 0);
    slot.release("by the holder", claim.token, Held::Yes).await;
    if tokio::time::timeout(PATIENCE, early).await.is_err() {
        missed(&slot, "called before the release and awaited after it");
    }
    returns(&slot, "after the release").await;

    let claim = slot.claim();
    slot.begin("after the release", &claim, &ClaimOutcome::Started { attempt: 1 })
        .await;
    let record = slot.response(b"answer");
    let early = slot.store.changed(&slot.slot, 0);
    slot.complete("by the holder", claim.token, &record, slot.long, Held::Yes)
        .await;
    if tokio::time::timeout(PATIENCE, early).await.is_err() {
        missed(&slot, "called before the completion and awaited after it");
    }
    returns(&slot, "after the completion").await;
}

async fn returns<H: Harness>(slot: &Probe<'_, H>, when: &str) {
    for round in [0, 1, 7, u32::MAX] {
        if tokio::time::timeout(PATIENCE, slot.store.changed(&slot.slot, round))
            .await
            .is_err()
        {
            missed(slot, when);
        }
    }
}

fn missed<H: Harness>(slot: &Probe<'_, H>, when: &str) -> ! {
    slot.broken(
        &format!("changed, {when}"),
        format_args!("it did not return within {PATIENCE:?}"),
    )
}

pub(super) async fn waiters_learn_of_completion<H: Harness>(slot: Probe<'_, H>) {
    let claim = slot.claim();
    slot.begin("the first claim", &claim, &ClaimOutcome::Started { attempt: 1 })
        .await;
    let record = slot.response(b"the holder's");
    let waiters = gather(&slot, slot.response(b"a waiter's"));
    slot.pass(1).await;
    slot.complete("by the holder", claim.token, &record, slot.long, Held::Yes)
        .await;
    for waited in all(&slot, waiters, "the completion").await {
        if waited.started {
            slot.broken("begin, by a waiter", "the waiter started although the holder completed");
        }
        slot.expect_begun(
            "begin, by a waiter",
            Ok(waited.begun),
            &ClaimOutcome::Done(record.clone()),
        );
    }
}

pub(super) async fn waiters_learn_of_release<H: Harness>(slot: Probe<'_, H>) {
    let claim = slot.claim();
    slot.begin("the first claim", &claim, &ClaimOutcome::Started { attempt: 1 })
        .await;
    let record = slot.response(b"a waiter's");
    let waiters = gather(&slot, record.clone());
    slot.pass(1).await;
    slot.release("by the holder", claim.token, Held::Yes).await;
    let waited = all(&slot, waiters, "the release").await;
    let started = waited.iter().filter(|waited| waited.started).count();
    if started != 1 {
        slot.broken(
            "begin, by the requests that waited for the release",
            format_args!("{started} of {WAITERS} waiters started, expected exactly 1"),
        );
    }
    for waited in waited {
        slot.expect_begun(
            "begin, by a waiter",
            Ok(waited.begun),
            &ClaimOutcome::Done(record.clone()),
        );
    }
}

struct Waited {
    /// Whether this waiter was the next to run.
    started: bool,
    begun: ClaimOutcome,
}

type Waiters = JoinSet<Result<Waited, String>>;

/// Starts tasks that wait for the slot in the same way as the layer. A task that starts the
/// operation also completes it.
fn gather<H: Harness>(slot: &Probe<'_, H>, record: Record) -> Waiters {
    let mut waiters = JoinSet::new();
    for _ in 0..WAITERS {
        waiters.spawn(wait(Arc::new(slot.harness.store()), slot.claim(), record.clone()));
    }
    waiters
}

async fn wait<S: Store>(store: Arc<S>, begin: ClaimRequest, record: Record) -> Result<Waited, String> {
    let mut started = false;
    for round in 0..ROUNDS {
        match store.begin(&begin).await {
            Ok(ClaimOutcome::InFlight { .. }) => store.changed(&begin.slot, round).await,
            Ok(ClaimOutcome::Started { .. }) => {
                started = true;
                // The other tasks now have time to find the operation running, or to wait again.
                tokio::task::yield_now().await;
                if let Err(error) = store.complete(&begin.slot, begin.token, &record, begin.ttl).await {
                    return Err(format!("the store failed: {error}"));
                }
            }
            Ok(begun) => return Ok(Waited { started, begun }),
            Err(error) => return Err(format!("the store failed: {error}")),
        }
    }
    Err(format!(
        "it returned {ROUNDS} times while the claim ran, so waiting is a busy loop"
    ))
}

async fn all<H: Harness>(slot: &Probe<'_, H>, mut waiters: Waiters, what: &str) -> Vec<Waited> {
    let mut done = Vec::new();
    let everyone = async {
        while let Some(joined) = waiters.join_next().await {
            match joined {
                Ok(Ok(waited)) => done.push(waited),
                Ok(Err(error)) => slot.broken("changed, while waiting", error),
                Err(error) => slot.broken("a task of the suite", error),
            }
        }
    };
    let late = tokio::time::timeout(PATIENCE, everyone).await.is_err();
    if late {
        slot.broken(
            "changed, while waiting",
            format_args!(
                "{} of {WAITERS} waiters did not learn of {what} within {PATIENCE:?}",
                WAITERS - done.len()
            ),
        );
    }
    done
}
