//! Renews the lease of a claim while its handler runs.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::runtime::Handle;
use tokio::sync::Mutex;
use tokio::task::AbortHandle;
use tokio::time::Instant;

use super::guard::Guard;
use super::store_call::{bounded, warn_of};
use crate::request::Slot;
use crate::store::{Held, Store, Token};

/// The task that renews a claim's lease.
///
/// The renewal is a separate task, so that a handler that blocks its thread does not stop the
/// renewal. A store in this process does not need renewals: its claims last until they are dropped.
pub(crate) struct Renewal {
    task: AbortHandle,
    shared: Arc<Shared>,
}

/// The state that the task shares with its claim.
#[derive(Default)]
struct Shared {
    /// Set when the claim is being settled. From then on, the end of the claim is expected.
    is_settling: AtomicBool,
    /// Locked while the store is being asked to renew the lease.
    asking: Mutex<()>,
}

impl Renewal {
    /// Starts to renew the lease. `since` is the time at which the lease began. Returns `None` if
    /// there is no runtime.
    pub(crate) fn start<St: Store>(guard: &Arc<Guard<St>>, slot: Slot, token: Token, since: Instant) -> Option<Self> {
        let Ok(runtime) = Handle::try_current() else {
            tracing::error!(
                target: "tower_idempotency",
                %slot,
                "there is no Tokio runtime to renew the lease; a handler that takes longer than its lease may run twice"
            );
            return None;
        };
        let shared = Arc::<Shared>::default();
        let task = runtime.spawn(renew(Arc::clone(guard), slot, token, since, Arc::clone(&shared)));
        Some(Self {
            task: task.abort_handle(),
            shared,
        })
    }

    /// Marks the claim as being settled.
    pub(crate) fn expect_the_end(&self) {
        self.shared.is_settling.store(true, Ordering::Relaxed);
    }

    /// Stops renewing the lease. Waits for a renewal that is on its way to the store, because it
    /// would give a new lease to a claim that has lapsed in the meantime.
    pub(crate) async fn stop(self) {
        let _asking = self.shared.asking.lock().await;
        self.task.abort();
    }
}

impl Drop for Renewal {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Renews a lease each time a third of its duration has elapsed, until the claim is lost.
async fn renew<St: Store>(guard: Arc<Guard<St>>, slot: Slot, token: Token, since: Instant, shared: Arc<Shared>) {
    let lease = guard.config.lease;
    let third = guard.config.third_of_lease();
    let mut next = since + third;
    loop {
        tokio::time::sleep_until(next).await;
        let asking = shared.asking.lock().await;
        let asked = Instant::now();
        let renewal = pin!(guard.store.renew(&slot, token, lease));
        next = match bounded("renew", guard.config.claim_timeout(), renewal).await {
            Ok(Held::Yes) => asked + third,
            Ok(Held::Lost) => {
                if !shared.is_settling.load(Ordering::Relaxed) {
                    tracing::warn!(
                        target: "tower_idempotency",
                        %slot,
                        "the claim was lost while its handler was running; its outcome will not be stored"
                    );
                }
                return;
            }
            Err(error) => {
                warn_of(&error, &slot, "the lease could not be renewed; trying again");
                Instant::now() + third / 4
            }
        };
        drop(asking);
    }
}
