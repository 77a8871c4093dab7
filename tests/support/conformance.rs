//! The conformance suite for any store.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::task::JoinSet;
use tower_idempotency::Store;
use tower_idempotency::store::Inspect;
use tower_idempotency::store::conformance::{self, Check, Harness};

/// Handles to the same data, in turn: a single one, or as many as there are hosts.
pub(crate) struct Handles<S> {
    handles: Vec<S>,
    next: AtomicUsize,
    unit: Duration,
}

impl<S> Handles<S> {
    /// With paused time, in which no call takes long.
    pub(crate) fn to(store: S) -> Self {
        Self::new([store], Duration::from_millis(300))
    }

    pub(crate) fn new(handles: impl Into<Vec<S>>, unit: Duration) -> Self {
        Self {
            handles: handles.into(),
            next: AtomicUsize::new(0),
            unit,
        }
    }
}

impl<S: Store + Clone> Harness for Handles<S> {
    type Store = S;

    fn store(&self) -> S {
        let next = self.next.fetch_add(1, Ordering::Relaxed);
        self.handles[next % self.handles.len()].clone()
    }

    fn unit(&self) -> Duration {
        self.unit
    }
}

/// The checks of the store, and the checks of inspecting it.
pub(crate) fn all_checks<H: Harness<Store: Inspect>>() -> Vec<Check<H>> {
    let mut checks = conformance::checks();
    checks.extend(conformance::inspection_checks());
    checks
}

/// Runs checks, and histories with these seeds, all at once.
pub(crate) async fn conforms<H>(harness: H, checks: Vec<Check<H>>, seeds: impl IntoIterator<Item = u64>)
where
    H: Harness + Send + 'static,
{
    let harness = Arc::new(harness);
    let mut running = JoinSet::new();
    for check in checks {
        let harness = Arc::clone(&harness);
        running.spawn(async move { check.run(&*harness).await });
    }
    for seed in seeds {
        let harness = Arc::clone(&harness);
        running.spawn(async move { conformance::check_history(&*harness, seed).await });
    }
    while let Some(joined) = running.join_next().await {
        joined.unwrap();
    }
}
