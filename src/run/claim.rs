//! A claim that is held: its lease is renewed while the work runs, and it ends exactly once.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::config::Config;
use super::guard::Guard;
use super::pauses::Pauses;
use super::renewal::Renewal;
use super::settlement::{Settled, Settlement, Undone, apply};
use super::store_call::{Watch, at_once, bounded, warn_of, within};
use crate::answer::{Fate, Outcome};
use crate::request::{Fingerprint, Slot};
use crate::store::{ClaimRequest, Commit, Held, Record, Store, StoreError, StoreErrorKind, Token, UnitOfWork};

/// A claim on a slot. It must be settled; one that is dropped unsettled lapses, and that is logged.
pub(crate) struct Claim<St: Store> {
    pub(crate) guard: Arc<Guard<St>>,
    pub(crate) slot: Slot,
    pub(crate) attempt: u32,
    pub(crate) fingerprint: Fingerprint,
    /// The transaction that the handler may work in, if the store has such.
    pub(crate) unit: Option<Box<dyn UnitOfWork>>,
    token: Token,
    settled: bool,
    renewal: Option<Renewal>,
}

impl<St: Store> Claim<St> {
    pub(crate) fn new(guard: Arc<Guard<St>>, begin: &ClaimRequest, attempt: u32) -> Self {
        Self {
            guard,
            slot: begin.slot,
            attempt,
            fingerprint: begin.fingerprint,
            unit: None,
            token: begin.token,
            settled: false,
            renewal: None,
        }
    }

    pub(crate) fn token(&self) -> Token {
        self.token
    }

    /// Renews the lease from now on, counted from when the store was asked.
    pub(crate) async fn hold(&mut self, since: Instant) {
        if St::IN_PROCESS {
            return;
        }
        self.renewal = Renewal::start(&self.guard, self.slot, self.token, since);
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
        if let Err(error) = apply(&self.guard, &self.slot, self.token, &settlement).await {
            warn_of(&error, &self.slot, "a claim could not be given back; it will lapse");
        }
    }

    /// What a fate means for this claim, and the outcome it is counted as.
    pub(crate) fn settlement_of(
        &self,
        fate: Fate,
        tombstone: impl FnOnce(Fingerprint) -> Record,
    ) -> (Settlement, Outcome) {
        match fate {
            Fate::Release => (Settlement::Release, Outcome::Released),
            Fate::Reopen => (Settlement::Lapse, Outcome::Reopened),
            Fate::Seal => {
                let (record, ttl) = (tombstone(self.fingerprint), self.guard.config.ttl);
                (Settlement::Complete { record, ttl }, Outcome::Sealed)
            }
        }
    }

    /// Whether the handler has begun a transaction that is to be committed with the record.
    pub(crate) fn has_begun_work(&self) -> bool {
        self.unit.as_ref().is_some_and(|unit| unit.is_begun())
    }

    /// Ends the claim of an operation that succeeded. In atomic mode, and if the handler worked in the
    /// transaction, effect and record are committed together.
    pub(crate) async fn succeed(&mut self, settlement: Settlement) -> Settled {
        if let Settlement::Complete { record, ttl } = settlement {
            return match self.unit.take().filter(|unit| unit.is_begun()) {
                // Boxed, so that a commit takes no space in the futures of requests that need none.
                Some(unit) => Box::pin(self.commit(unit, record, ttl)).await,
                None => self.settle(Settlement::Complete { record, ttl }).await,
            };
        }
        self.settle(settlement).await
    }

    async fn commit(&mut self, unit: Box<dyn UnitOfWork>, record: Record, ttl: Duration) -> Settled {
        self.is_being_settled();
        let store_timeout = self.guard.config.store_timeout;
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
                self.guard.adopt(None, read_back_later(claim, unit));
                Settled::Undone(Undone::Unknown)
            }
        }
    }

    async fn roll_back(&mut self) {
        if let Some(unit) = self.unit.take().filter(|unit| unit.is_begun()) {
            // In time or not: dropped, it is rolled back as well.
            let _ = within(self.guard.config.store_timeout, pin!(unit.roll_back())).await;
        }
    }

    fn is_being_settled(&self) {
        if let Some(renewal) = &self.renewal {
            renewal.expect_the_end();
        }
    }

    fn warn_of_loss(&self) {
        tracing::warn!(
            target: "tower_idempotency",
            slot = %self.slot,
            "the claim was lost before its outcome was stored: its lease lapsed and another took over"
        );
    }

    /// Ends the claim in the background, or at once in a store that answers at once.
    pub(crate) fn settle_detached(mut self, settlement: Settlement) {
        let guard = Arc::clone(&self.guard);
        let mut settled = Box::pin(async move {
            self.settle(settlement).await;
        });
        if !St::IN_PROCESS || at_once(settled.as_mut()).is_pending() {
            guard.adopt(None, settled);
        }
    }

    /// A panic has passed by the places that settle: one in a destructor, say, or in a `Clone` of the
    /// application's.
    fn settle_after_panic(&mut self) {
        let fate = self.guard.config.policy.on_panic;
        let (settlement, outcome) = self.settlement_of(fate, Record::outcome_unknown);
        let tally = &self.guard.tally;
        tally.report(outcome, Some(&self.slot), Some(self.attempt), None);
        self.hand_on().settle_detached(settlement);
    }

    /// The same claim for the background; this one counts as settled.
    pub(crate) fn hand_on(&mut self) -> Self {
        self.settled = true;
        Self {
            guard: Arc::clone(&self.guard),
            settled: false,
            renewal: self.renewal.take(),
            unit: None,
            slot: self.slot,
            attempt: self.attempt,
            fingerprint: self.fingerprint,
            token: self.token,
        }
    }

    /// Ends the claim; what the handler did in the transaction is rolled back. If the store fails
    /// it is tried again in the background, within `settle_within`; meanwhile the lease keeps a
    /// retry from running.
    pub(crate) async fn settle(&mut self, settlement: Settlement) -> Settled {
        self.is_being_settled();
        self.roll_back().await;
        let applied = apply(&self.guard, &self.slot, self.token, &settlement).await;
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
                self.guard.adopt(None, settle_later(claim, settlement));
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
        if std::thread::panicking() {
            return self.settle_after_panic();
        }
        tracing::error!(
            target: "tower_idempotency",
            slot = %self.slot,
            attempt = self.attempt,
            "a claim was dropped before its outcome was known, as when the runtime shuts down; it lapses"
        );
        if St::IN_PROCESS {
            let _ = at_once(self.guard.store.renew(&self.slot, self.token, Duration::ZERO));
        }
    }
}

/// Settles a claim in the background, and holds its lease meanwhile, so that no retry runs.
async fn settle_later<St: Store>(mut claim: Claim<St>, settlement: Settlement) {
    try_to_settle(&claim, settlement).await;
    claim.settled = true;
}

async fn try_to_settle<St: Store>(claim: &Claim<St>, settlement: Settlement) {
    let (guard, slot) = (&claim.guard, &claim.slot);
    let attempts = async {
        let mut pauses = Pauses::default();
        loop {
            pauses.wait().await;
            match apply(guard, slot, claim.token, &settlement).await {
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
    if tokio::time::timeout(guard.config.settle_within, attempts)
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
    } = *claim.guard.config;
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
