//! A claim that is held: its lease is renewed while the work runs, and it ends exactly once.

use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::Poll;
use std::time::Duration;

use tokio::runtime::Handle;

use crate::config::Config;
use crate::error::{StoreError, StoreErrorKind};
use crate::record::Record;
use crate::scope::Slot;
use crate::shared::{Shared, adopt, bounded, warn_of};
use crate::state::{Begin, Begun, Held, Token};
use crate::store::Store;

/// How a claim ends.
#[derive(Clone)]
pub(crate) enum Settlement {
    Complete(Record),
    Release,
    /// Back to what it was before it was taken over from a holder that died: lapsed, and remembered
    /// with its fingerprint and attempts.
    Lapse,
}

/// What came of ending a claim.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Settled {
    Yes,
    /// The lease lapsed and another took over: fenced off.
    Lost,
    /// The store failed; it is tried again in the background.
    Later,
}

/// A claim on a slot. It must be settled; one that is dropped unsettled lapses with its lease, and
/// that is logged.
pub(crate) struct Claim<St: Store> {
    pub(crate) shared: Arc<Shared<St>>,
    pub(crate) slot: Slot,
    pub(crate) attempt: u32,
    token: Token,
    settled: bool,
}

impl<St: Store> Claim<St> {
    pub(crate) fn new(shared: Arc<Shared<St>>, slot: Slot, token: Token, attempt: u32) -> Self {
        Self {
            shared,
            slot,
            attempt,
            token,
            settled: false,
        }
    }

    /// Does the work; while it is pending, renews the lease.
    pub(crate) async fn while_renewing<F: Future>(&self, mut work: Pin<&mut F>) -> F::Output {
        // Work that is ready at once needs no timer.
        let mut renewing = None;
        poll_fn(|cx| {
            if let Poll::Ready(output) = work.as_mut().poll(cx) {
                return Poll::Ready(output);
            }
            let renewing = renewing.get_or_insert_with(|| Box::pin(self.renew_forever()));
            let Poll::Pending = renewing.as_mut().poll(cx);
            Poll::Pending
        })
        .await
    }

    async fn renew_forever(&self) -> std::convert::Infallible {
        let Config {
            lease, store_timeout, ..
        } = self.shared.config;
        let third = (lease / 3).max(Duration::from_millis(1));
        let mut pause = third;
        loop {
            tokio::time::sleep(pause).await;
            let renewal = pin!(self.shared.store.renew(&self.slot, self.token, lease));
            pause = match bounded("renew", store_timeout.min(lease), renewal).await {
                Ok(Held::Yes) => third,
                Ok(Held::Lost) => {
                    tracing::warn!(
                        target: "tower_idempotency",
                        slot = %self.slot,
                        attempt = self.attempt,
                        "the claim was lost while its handler runs; its outcome will not be stored"
                    );
                    std::future::pending().await
                }
                Err(error) => {
                    warn_of(&error, &self.slot, "the lease could not be renewed; trying again");
                    third / 4
                }
            };
        }
    }

    /// Ends the claim of an operation that was not begun: the slot is as it was before.
    pub(crate) async fn give_back(&mut self) {
        let settlement = if self.attempt == 1 {
            Settlement::Release
        } else {
            Settlement::Lapse
        };
        self.settle(settlement).await;
    }

    /// Ends the claim. If the store fails it is tried again in the background, within
    /// `settle_within`; meanwhile the lease keeps a retry from running.
    pub(crate) async fn settle(&mut self, settlement: Settlement) -> Settled {
        self.settled = true;
        match apply(&self.shared, &self.slot, self.token, &settlement).await {
            Ok(Held::Yes) => Settled::Yes,
            Ok(Held::Lost) => {
                tracing::warn!(
                    target: "tower_idempotency",
                    slot = %self.slot,
                    "the claim was lost before its outcome was stored: its lease lapsed and another took over"
                );
                Settled::Lost
            }
            Err(error) => {
                warn_of(
                    &error,
                    &self.slot,
                    "the outcome could not be stored; trying again in the background",
                );
                let claim = Self {
                    shared: Arc::clone(&self.shared),
                    settled: false,
                    ..*self
                };
                adopt(&self.shared, None, settle_later(claim, settlement));
                Settled::Later
            }
        }
    }
}

impl<St: Store> Drop for Claim<St> {
    fn drop(&mut self) {
        if !self.settled {
            tracing::error!(
                target: "tower_idempotency",
                slot = %self.slot,
                attempt = self.attempt,
                "a claim was dropped before its outcome was known, as when the runtime shuts down; its lease will lapse"
            );
        }
    }
}

async fn apply<St: Store>(
    shared: &Shared<St>,
    slot: &Slot,
    token: Token,
    settlement: &Settlement,
) -> Result<Held, StoreError> {
    let Config { ttl, store_timeout, .. } = shared.config;
    match settlement {
        Settlement::Complete(record) => {
            let call = pin!(shared.store.complete(slot, token, record, ttl));
            bounded("complete", store_timeout, call).await
        }
        Settlement::Release => {
            let call = pin!(shared.store.release(slot, token));
            bounded("release", store_timeout, call).await
        }
        Settlement::Lapse => {
            let call = pin!(shared.store.renew(slot, token, Duration::ZERO));
            bounded("renew", store_timeout, call).await
        }
    }
}

/// Settles a claim in the background, and holds its lease meanwhile, so that no retry runs.
async fn settle_later<St: Store>(mut claim: Claim<St>, settlement: Settlement) {
    try_to_settle(&claim, settlement).await;
    claim.settled = true;
}

async fn try_to_settle<St: Store>(claim: &Claim<St>, settlement: Settlement) {
    let (shared, slot) = (&claim.shared, &claim.slot);
    let mut attempts = pin!(async {
        let mut pause = FIRST_PAUSE;
        loop {
            tokio::time::sleep(pause).await;
            match apply(shared, slot, claim.token, &settlement).await {
                Ok(Held::Yes) => return,
                Ok(Held::Lost) => {
                    // Also the answer when an earlier attempt was applied and its answer was lost.
                    tracing::warn!(target: "tower_idempotency", %slot, "the claim has ended before its outcome was stored");
                    return;
                }
                Err(error) => warn_of(&error, slot, "the outcome could not be stored; trying again"),
            }
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    });
    let renewed = pin!(claim.while_renewing(attempts.as_mut()));
    if tokio::time::timeout(shared.config.settle_within, renewed)
        .await
        .is_err()
    {
        tracing::error!(
            target: "tower_idempotency",
            %slot,
            "gave up storing an outcome; when its lease has lapsed, a retry runs again as the next attempt"
        );
    }
}

/// The first pause between tries of a failing store in the background, doubled each time.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// After a `begin` whose answer was lost: finds out in the background whether it took effect, and
/// gives the claim back, which would otherwise block the key for its lease.
///
/// Asking again under the same token is safe, whatever became of the first question. It is not
/// waited for at shutdown, since a claim that stays behind lapses.
pub(crate) fn take_back<St: Store>(shared: &Arc<Shared<St>>, begin: Begin, error: &StoreError) {
    let lost = matches!(error.kind(), StoreErrorKind::Timeout | StoreErrorKind::Unavailable);
    let Config {
        lease,
        store_timeout,
        max_detached,
        ..
    } = shared.config;
    // An outage must not pile up work; the claims of those beyond the bound lapse.
    if !lost || shared.asking_again.load(Ordering::Relaxed) >= max_detached {
        return;
    }
    let Ok(runtime) = Handle::try_current() else { return };
    shared.asking_again.fetch_add(1, Ordering::Relaxed);
    let owner = Arc::clone(shared);
    let asking = async move {
        let mut pause = FIRST_PAUSE;
        loop {
            tokio::time::sleep(pause).await;
            match bounded("begin", store_timeout, pin!(owner.store.begin(&begin))).await {
                Ok(Begun::Started { attempt }) => {
                    let mut claim = Claim::new(Arc::clone(&owner), begin.slot, begin.token, attempt);
                    return claim.give_back().await;
                }
                Ok(_) => return,
                Err(_) => pause = (pause * 2).min(LONGEST_PAUSE),
            }
        }
    };
    let shared = Arc::clone(shared);
    runtime.spawn(async move {
        // By then a claim has lapsed by itself.
        let _ = tokio::time::timeout(lease, asking).await;
        shared.asking_again.fetch_sub(1, Ordering::Relaxed);
    });
}
