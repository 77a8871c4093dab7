//! A claim that is held: its lease is renewed while the work runs, and it ends exactly once.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::task::AbortHandle;
use tokio::time::Instant;

use crate::config::Config;
use crate::error::{StoreError, StoreErrorKind};
use crate::record::Record;
use crate::scope::Slot;
use crate::shared::{Shared, Watch, adopt, at_once, bounded, warn_of, within};
use crate::state::{Begin, Begun, Held, Token};
use crate::store::{Commit, Store, UnitOfWork};

/// How a claim ends.
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
    /// The operation's transaction is rolled back, or may be.
    Undone(Undone),
}

/// Why an operation in atomic mode has no effect, although its handler answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Undone {
    /// Another took the claim over.
    Lost,
    /// The store refused the commit, or failed before it.
    Failed,
    /// Whether it is committed is found out in the background.
    Unknown,
}

/// A claim on a slot. It must be settled; one that is dropped unsettled lapses, and that is logged.
pub(crate) struct Claim<St: Store> {
    pub(crate) shared: Arc<Shared<St>>,
    pub(crate) slot: Slot,
    pub(crate) attempt: u32,
    /// The transaction that the handler may work in, if the store has such.
    pub(crate) unit: Option<Box<dyn UnitOfWork>>,
    token: Token,
    settled: bool,
    renewal: Option<Renewal>,
}

/// The task that renews a claim's lease.
///
/// A task of its own, so that a handler which blocks its thread does not stop it. A store in this
/// process needs none: its claims hold until they are dropped.
struct Renewal {
    task: AbortHandle,
    /// Raised when the claim is being settled: that it is gone then is no surprise.
    settling: Arc<AtomicBool>,
}

impl Drop for Renewal {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl<St: Store> Claim<St> {
    pub(crate) fn new(shared: Arc<Shared<St>>, slot: Slot, token: Token, attempt: u32) -> Self {
        Self {
            shared,
            slot,
            attempt,
            unit: None,
            token,
            settled: false,
            renewal: None,
        }
    }

    /// Renews the lease from now on, counted from when the store was asked.
    pub(crate) async fn hold(&mut self, since: Instant) {
        if St::IN_PROCESS {
            return;
        }
        let Ok(runtime) = Handle::try_current() else {
            tracing::error!(
                target: "tower_idempotency",
                slot = %self.slot,
                "there is no runtime to renew the lease on; a handler longer than its lease may run twice"
            );
            return;
        };
        let settling = Arc::new(AtomicBool::new(false));
        let (shared, slot, token) = (Arc::clone(&self.shared), self.slot, self.token);
        let task = runtime.spawn(renew(shared, slot, token, since, Arc::clone(&settling)));
        self.renewal = Some(Renewal {
            task: task.abort_handle(),
            settling,
        });
        // A task that was just spawned cannot be taken by another worker: it gets its turn before
        // the handler, which may block this one.
        tokio::task::yield_now().await;
    }

    /// Ends the claim of an operation that was not begun: the slot is as it was before. Tried once,
    /// since little is lost: the claim then lapses.
    pub(crate) async fn give_back(&mut self) {
        let settlement = if self.attempt == 1 {
            Settlement::Release
        } else {
            Settlement::Lapse
        };
        self.settled = true;
        // A reconciler may have begun to work.
        self.roll_back().await;
        if let Err(error) = apply(&self.shared, &self.slot, self.token, &settlement).await {
            warn_of(&error, &self.slot, "a claim could not be given back; it will lapse");
        }
    }

    /// Ends the claim of an operation whose answer is known. In atomic mode, and if the handler
    /// worked in the transaction, effect and record are committed together.
    pub(crate) async fn complete(&mut self, record: Record) -> Settled {
        match self.unit.take().filter(|unit| unit.is_begun()) {
            // Boxed, so that a commit takes no place in the futures of requests that need none.
            Some(unit) => Box::pin(self.commit(unit, record)).await,
            None => self.settle(Settlement::Complete(record)).await,
        }
    }

    async fn commit(&mut self, unit: Box<dyn UnitOfWork>, record: Record) -> Settled {
        self.is_being_settled();
        let Config { ttl, store_timeout, .. } = *self.shared.config;
        let watch = Watch::start("commit");
        let committed = within(store_timeout, pin!(unit.commit(&record, ttl))).await;
        let committed = committed.unwrap_or_else(|elapsed| {
            let message = format!("the store did not answer `commit` within {store_timeout:?}");
            Commit::Unknown(StoreError::new(StoreErrorKind::Timeout, message).with_source(elapsed))
        });
        watch.stop(matches!(committed, Commit::Done | Commit::Lost));
        let error = match committed {
            Commit::Done => {
                self.settled = true;
                return Settled::Yes;
            }
            Commit::Lost => {
                self.settled = true;
                self.warn_of_loss();
                return Settled::Undone(Undone::Lost);
            }
            Commit::Failed(error) => {
                warn_of(
                    &error,
                    &self.slot,
                    "the operation could not be committed and is rolled back",
                );
                self.settle(Settlement::Release).await;
                return Settled::Undone(Undone::Failed);
            }
            Commit::Unknown(error) => error,
        };
        warn_of(
            &error,
            &self.slot,
            "the outcome of a commit is unknown; reading it back",
        );
        let known = bounded("read back", store_timeout, pin!(unit.was_committed())).await;
        match known {
            Ok(true) => {
                self.settled = true;
                Settled::Yes
            }
            Ok(false) => {
                self.settle(Settlement::Release).await;
                Settled::Undone(Undone::Failed)
            }
            Err(error) => {
                warn_of(
                    &error,
                    &self.slot,
                    "the outcome of a commit is still unknown; trying again in the background",
                );
                let claim = self.hand_on();
                adopt(&self.shared, None, read_back_later(claim, unit));
                Settled::Undone(Undone::Unknown)
            }
        }
    }

    async fn roll_back(&mut self) {
        if let Some(unit) = self.unit.take().filter(|unit| unit.is_begun()) {
            // In time or not: dropped, it is rolled back as well.
            let _ = within(self.shared.config.store_timeout, pin!(unit.roll_back())).await;
        }
    }

    fn is_being_settled(&self) {
        if let Some(renewal) = &self.renewal {
            renewal.settling.store(true, Ordering::Relaxed);
        }
    }

    fn warn_of_loss(&self) {
        tracing::warn!(
            target: "tower_idempotency",
            slot = %self.slot,
            "the claim was lost before its outcome was stored: its lease lapsed and another took over"
        );
    }

    /// The same claim for the background; this one counts as settled.
    fn hand_on(&mut self) -> Self {
        self.settled = true;
        Self {
            shared: Arc::clone(&self.shared),
            settled: false,
            renewal: self.renewal.take(),
            unit: None,
            slot: self.slot,
            attempt: self.attempt,
            token: self.token,
        }
    }

    /// Ends the claim; what the handler did in the transaction is rolled back. If the store fails
    /// it is tried again in the background, within `settle_within`; meanwhile the lease keeps a
    /// retry from running.
    pub(crate) async fn settle(&mut self, settlement: Settlement) -> Settled {
        self.is_being_settled();
        self.roll_back().await;
        let applied = apply(&self.shared, &self.slot, self.token, &settlement).await;
        self.settled = true;
        match applied {
            Ok(Held::Yes) => Settled::Yes,
            Ok(Held::Lost) => {
                self.warn_of_loss();
                Settled::Lost
            }
            Err(error) => {
                warn_of(
                    &error,
                    &self.slot,
                    "the outcome could not be stored; trying again in the background",
                );
                let claim = self.hand_on();
                adopt(&self.shared, None, settle_later(claim, settlement));
                Settled::Later
            }
        }
    }
}

impl<St: Store> Drop for Claim<St> {
    fn drop(&mut self) {
        if self.settled {
            return;
        }
        tracing::error!(
            target: "tower_idempotency",
            slot = %self.slot,
            attempt = self.attempt,
            "a claim was dropped before its outcome was known, as when the runtime shuts down; it lapses"
        );
        if St::IN_PROCESS {
            let _ = at_once(self.shared.store.renew(&self.slot, self.token, Duration::ZERO));
        }
    }
}

/// Renews a lease until it is lost, every third of it.
async fn renew<St: Store>(
    shared: Arc<Shared<St>>,
    slot: Slot,
    token: Token,
    since: Instant,
    settling: Arc<AtomicBool>,
) {
    let lease = shared.config.lease;
    let third = shared.config.third_of_lease();
    let mut next = since + third;
    loop {
        tokio::time::sleep_until(next).await;
        let asked = Instant::now();
        let renewal = pin!(shared.store.renew(&slot, token, lease));
        next = match bounded("renew", shared.config.claim_timeout(), renewal).await {
            Ok(Held::Yes) => asked + third,
            Ok(Held::Lost) => {
                if !settling.load(Ordering::Relaxed) {
                    tracing::warn!(
                        target: "tower_idempotency",
                        %slot,
                        "the claim was lost while its handler runs; its outcome will not be stored"
                    );
                }
                return;
            }
            Err(error) => {
                warn_of(&error, &slot, "the lease could not be renewed; trying again");
                Instant::now() + third / 4
            }
        };
    }
}

async fn apply<St: Store>(
    shared: &Shared<St>,
    slot: &Slot,
    token: Token,
    settlement: &Settlement,
) -> Result<Held, StoreError> {
    let Config { ttl, store_timeout, .. } = *shared.config;
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
    let attempts = async {
        let mut pauses = Pauses::default();
        loop {
            pauses.wait().await;
            match apply(shared, slot, claim.token, &settlement).await {
                Ok(Held::Yes) => return,
                Ok(Held::Lost) => {
                    // Also the answer when an earlier attempt was applied and its answer was lost.
                    tracing::warn!(target: "tower_idempotency", %slot, "the claim has ended before its outcome was stored");
                    return;
                }
                Err(error) => warn_of(&error, slot, "the outcome could not be stored; trying again"),
            }
        }
    };
    if tokio::time::timeout(shared.config.settle_within, attempts)
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

/// Finds out in the background what became of a commit. The lease is held meanwhile, so that no
/// retry runs before it is known.
async fn read_back_later<St: Store>(mut claim: Claim<St>, unit: Box<dyn UnitOfWork>) {
    let Config {
        settle_within,
        store_timeout,
        ..
    } = *claim.shared.config;
    let asking = async {
        let mut pauses = Pauses::default();
        loop {
            pauses.wait().await;
            match bounded("read back", store_timeout, pin!(unit.was_committed())).await {
                Ok(committed) => return committed,
                Err(error) => warn_of(
                    &error,
                    &claim.slot,
                    "the outcome of a commit is still unknown; trying again",
                ),
            }
        }
    };
    match tokio::time::timeout(settle_within, asking).await {
        Ok(true) => {}
        Ok(false) => return settle_later(claim, Settlement::Release).await,
        Err(_elapsed) => tracing::error!(
            target: "tower_idempotency",
            slot = %claim.slot,
            "gave up finding out what became of a commit; if it failed, a retry runs when the lease has lapsed"
        ),
    }
    claim.settled = true;
}

/// The pauses between tries of a failing store in the background: each twice as long as the last.
struct Pauses(Duration);

impl Default for Pauses {
    fn default() -> Self {
        Self(Duration::from_millis(50))
    }
}

impl Pauses {
    async fn wait(&mut self) {
        tokio::time::sleep(self.0).await;
        self.0 = (self.0 * 2).min(Duration::from_secs(5));
    }
}

/// After a `begin` whose answer was lost: finds out in the background whether it took effect, and
/// gives the claim back, which would otherwise block the key for its lease.
///
/// Asking again under the same token is safe, whatever became of the first question. It is not
/// waited for at shutdown: a claim that stays behind lapses.
pub(crate) fn take_back<St: Store>(shared: &Arc<Shared<St>>, begin: Begin, error: &StoreError) {
    let lost = matches!(error.kind(), StoreErrorKind::Timeout | StoreErrorKind::Unavailable);
    let config = &shared.config;
    // An outage must not pile up work; the claims of those beyond the bound lapse.
    if !lost || shared.asking_again.load(Ordering::Relaxed) >= config.max_detached {
        return;
    }
    let Ok(runtime) = Handle::try_current() else { return };
    shared.asking_again.fetch_add(1, Ordering::Relaxed);
    let owner = Arc::clone(shared);
    let asking = async move {
        let mut pauses = Pauses::default();
        loop {
            pauses.wait().await;
            let asked = pin!(owner.store.begin(&begin));
            match bounded("begin", owner.config.claim_timeout(), asked).await {
                Ok(Begun::Started { attempt }) => {
                    let mut claim = Claim::new(Arc::clone(&owner), begin.slot, begin.token, attempt);
                    return claim.give_back().await;
                }
                Ok(_) => return,
                Err(_) => {}
            }
        }
    };
    // Longer than the lease: also one that has lapsed would be taken for an operation that died.
    let long = config.settle_within.max(config.lease);
    let shared = Arc::clone(shared);
    runtime.spawn(async move {
        let _ = tokio::time::timeout(long, asking).await;
        shared.asking_again.fetch_sub(1, Ordering::Relaxed);
    });
}
