//! The conformance suite, through several pools.

use super::*;
use crate::support::conformance::{Handles, all_checks, conforms};

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn the_store_conforms() {
    let Some((_, url)) = database().await else { return };
    let mut pools = Vec::new();
    for _ in 0..3 {
        pools.push(open(&url, 8).await);
    }
    let harness = Handles::new(pools, Duration::from_millis(500));
    conforms(harness, all_checks(), []).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn histories_are_answered_as_by_the_machine() {
    let Some((_, url)) = database().await else { return };
    let pools = vec![open(&url, 4).await, open(&url, 4).await];
    // Many histories at once, and the other tests besides: a unit that allows for a busy machine.
    let harness = Handles::new(pools, Duration::from_secs(1));
    conforms(harness, vec![], 0..6).await;
}
