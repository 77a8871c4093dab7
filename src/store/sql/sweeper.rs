//! Removing expired rows, a few at a time.

use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::task::AbortHandle;

use crate::store::{StoreError, StoreErrorKind};

/// A statement removes at most so many rows, because it locks them. This many take milliseconds.
const BATCH: u32 = 500;
/// The pause between batches, so that others get their turn.
const BREATH: Duration = Duration::from_millis(20);
/// How long a batch may take: a server that vanished never answers.
const PATIENCE: Duration = Duration::from_secs(60);

/// What the sweeper needs of a store.
pub(super) trait Sweepable: Send + Sync + 'static {
    /// The name in messages.
    const NAME: &'static str;

    /// Removes at most `batch` expired rows, and says how many.
    fn sweep_some(&self, batch: u32) -> impl Future<Output = Result<u64, StoreError>> + Send;
}

/// Removes expired rows in the background until it is dropped.
///
/// Expired rows never count, swept or not; sweeping is for the disk. Several processes may sweep
/// one table: they take different rows. An error is logged at `warn` and counted, and the next
/// round tries again.
#[must_use = "the sweeper stops when it is dropped"]
pub struct Sweeper {
    task: AbortHandle,
    counts: Arc<Counts>,
}

#[derive(Default)]
struct Counts {
    removed: AtomicU64,
    errors: AtomicU64,
}

impl Sweeper {
    pub(super) fn start<S: Sweepable>(store: S, every: Duration) -> Self {
        let counts = Arc::<Counts>::default();
        let task = tokio::spawn(sweep(store, every, Arc::clone(&counts)));
        Self {
            task: task.abort_handle(),
            counts,
        }
    }

    /// Rows removed since it was started.
    #[must_use]
    pub fn removed(&self) -> u64 {
        self.counts.removed.load(Ordering::Relaxed)
    }

    /// Rounds that failed since it was started.
    #[must_use]
    pub fn errors(&self) -> u64 {
        self.counts.errors.load(Ordering::Relaxed)
    }
}

impl Drop for Sweeper {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl fmt::Debug for Sweeper {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sweeper")
            .field("removed", &self.removed())
            .field("errors", &self.errors())
            .finish_non_exhaustive()
    }
}

async fn sweep<S: Sweepable>(store: S, every: Duration, counts: Arc<Counts>) {
    loop {
        let sweeping = tokio::time::timeout(PATIENCE, store.sweep_some(BATCH));
        let swept = sweeping.await.unwrap_or_else(|elapsed| {
            let message = format!("{}: sweep: the database did not answer within {PATIENCE:?}", S::NAME);
            Err(StoreError::new(StoreErrorKind::Timeout, message).with_source(elapsed))
        });
        match swept {
            Ok(removed) => {
                counts.removed.fetch_add(removed, Ordering::Relaxed);
                let more = removed >= u64::from(BATCH);
                tokio::time::sleep(if more { BREATH } else { every }).await;
            }
            Err(error) => {
                counts.errors.fetch_add(1, Ordering::Relaxed);
                tracing::warn!(
                    target: "tower_idempotency",
                    store = S::NAME,
                    error = &error as &(dyn std::error::Error + 'static),
                    "expired rows could not be removed; trying again"
                );
                tokio::time::sleep(every).await;
            }
        }
    }
}
