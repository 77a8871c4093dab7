//! An active claim. Its lease is renewed while the work runs, and the claim ends exactly once.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::time::Instant;

use super::guard::Guard;
use super::pauses::Pauses;
use super::renewal::Renewal;
use super::settlement::{Settled, Settlement, Undone, apply};
use super::store_call::{at_once, warn_of, within};
use super::upload::Upload;
use crate::answer::{Fate, Outcome};
use crate::request::{Fingerprint, Slot};
use crate::store::{ClaimRequest, Held, Record, RollBack, Store, StoreError, Token, UnitOfWork};

/// A claim on a slot, which must be settled. A claim that is dropped unsettled lapses, and the
/// lapse is logged.
pub(crate) struct Claim<St: Store> {
    pub(crate) guard: Arc<Guard<St>>,
    pub(crate) slot: Slot,
    pub(crate) attempt: u32,
    pub(crate) fingerprint: Fingerprint,
    /// The transaction that the handler can use, if the store supports transactions.
    pub(crate) unit: Option<Box<dyn UnitOfWork>>,
    /// The request body, if it is streamed.
    pub(crate) upload: Option<Arc<dyn Upload>>,
    token: Token,
    pub(super) settled: bool,
    /// Whether a panic has already handed the claim to the background. If the runtime is shut down,
    /// the background drops the claim at once.
    is_after_panic: bool,
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
            upload: None,
            token: begin.token,
            settled: false,
            is_after_panic: false,
            renewal: None,
        }
    }

    pub(crate) fn token(&self) -> Token {
        self.token
    }

    /// Starts renewing the lease. The lease began at `since`, when the store was called.
    pub(crate) async fn hold(&mut self, since: Instant) {
        if St::IN_PROCESS {
            return;
        }
        self.renewal = Renewal::start(&self.guard, self.slot, self.token, since);
        // Other workers cannot take the renewal task right after it has been spawned. Yielding lets
        // this task run before the handler, which may block this worker.
        tokio::task::yield_now().await;
    }

    /// Ends the claim of an operation that has not begun, and restores the slot to its earlier
    /// state. If the store fails, a first attempt's claim is given back in the background, because
    /// a claim that lapses is taken for an operation that died.
    pub(crate) async fn give_back(&mut self) {
        let settlement = if self.attempt == 1 {
            Settlement::Release
        } else {
            Settlement::Lapse
        };
        self.settled = true;
        // A reconciler may have begun a transaction.
        if let Err(error) = self.roll_back().await {
            Box::pin(self.seal_broken(error)).await;
            return;
        }
        self.stop_renewing_for(&settlement).await;
        match apply(&self.guard, &self.slot, self.token, &settlement).await {
            Ok(_) => {}
            Err(error) if self.attempt == 1 => {
                warn_of(
                    &error,
                    &self.slot,
                    "a claim could not be given back; trying again in the background",
                );
                let claim = self.hand_on();
                self.guard.adopt(None, settle_later(claim, settlement));
            }
            Err(error) => warn_of(&error, &self.slot, "a claim could not be given back; it will lapse"),
        }
    }

    /// Returns the settlement of this claim for the given fate, and the outcome to report.
    pub(crate) fn settlement_of(
        &self,
        fate: Fate,
        tombstone: impl FnOnce(Fingerprint) -> Record,
    ) -> (Settlement, Outcome) {
        match fate {
            Fate::Release => (Settlement::Release, Outcome::Released),
            Fate::Reopen => (Settlement::Lapse, Outcome::Reopened),
            Fate::Seal => {
                let record = self.knowing_body(tombstone(self.fingerprint));
                let ttl = self.guard.config.ttl;
                (Settlement::Complete { record, ttl }, Outcome::Sealed)
            }
        }
    }

    /// Adds the digest of the streamed body to the record, if the body has ended.
    pub(crate) fn knowing_body(&self, record: Record) -> Record {
        let print = self.upload.as_ref().and_then(|upload| upload.print());
        print.map_or_else(|| record.clone(), |print| record.with_body(&print))
    }

    /// Whether the handler has begun a transaction that must be committed with the record.
    pub(crate) fn has_begun_work(&self) -> bool {
        let unit = self.unit.as_ref();
        unit.is_some_and(|unit| unit.is_begun() && !unit.is_aborted())
    }

    /// Rolls back the handler's transaction. Returns an error if the handler itself has committed
    /// the transaction.
    async fn roll_back(&mut self) -> Result<(), StoreError> {
        let Some(unit) = self.unit.take().filter(|unit| unit.is_begun()) else {
            return Ok(());
        };
        let within_time = self.guard.config.store_timeout;
        // This future is boxed, like the commit.
        Box::pin(async move {
            // If the rollback takes too long, the transaction is dropped, which also rolls the
            // transaction back.
            match within(within_time, pin!(unit.roll_back())).await {
                Ok(RollBack::Broken(error)) => Err(error),
                _ => Ok(()),
            }
        })
        .await
    }

    pub(super) fn is_being_settled(&self) {
        if let Some(renewal) = &self.renewal {
            renewal.expect_the_end();
        }
    }

    pub(super) fn warn_of_loss(&self) {
        tracing::warn!(
            target: "tower_idempotency",
            slot = %self.slot,
            "the claim was lost before its outcome was stored: its lease lapsed and another attempt took over"
        );
    }

    /// Ends the claim in the background, or in this call if the store answers immediately.
    ///
    /// `home` is the request's runtime, for callers that may be outside a runtime.
    pub(crate) fn settle_detached(mut self, settlement: Settlement, home: Option<&Handle>) {
        let guard = Arc::clone(&self.guard);
        let mut settled = Box::pin(async move {
            self.settle(&settlement).await;
        });
        if !St::IN_PROCESS || at_once(settled.as_mut()).is_pending() {
            guard.adopt(home, settled);
        }
    }

    /// Settles the claim after a panic that was not caught where claims are settled, for example in
    /// a destructor or in one of the application's `Clone` implementations.
    fn settle_after_panic(&mut self) {
        let fate = self.guard.config.policy.on_panic;
        let (settlement, outcome) = self.settlement_of(fate, Record::outcome_unknown);
        let tally = &self.guard.tally;
        tally.report(outcome, Some(&self.slot), Some(self.attempt), None);
        let mut claim = self.hand_on();
        claim.is_after_panic = true;
        claim.settle_detached(settlement, None);
    }

    /// Moves the claim to a new value for the background, and marks this value as settled.
    pub(crate) fn hand_on(&mut self) -> Self {
        self.settled = true;
        Self {
            guard: Arc::clone(&self.guard),
            settled: false,
            is_after_panic: self.is_after_panic,
            renewal: self.renewal.take(),
            unit: None,
            upload: self.upload.take(),
            slot: self.slot,
            attempt: self.attempt,
            fingerprint: self.fingerprint,
            token: self.token,
        }
    }

    /// Ends the claim and rolls back the handler's transaction. If the store fails, the layer tries
    /// again in the background for up to `settle_within`. Meanwhile, the lease prevents a retry
    /// from running.
    pub(crate) async fn settle(&mut self, settlement: &Settlement) -> Settled {
        self.is_being_settled();
        if let Err(error) = self.roll_back().await {
            return Box::pin(self.seal_broken(error)).await;
        }
        self.store(settlement).await
    }

    /// Seals the key of an operation whose handler itself ended the transaction. It is not known
    /// which part of the effect exists, and a retry might add to it.
    pub(super) async fn seal_broken(&mut self, error: StoreError) -> Settled {
        tracing::error!(
            target: "tower_idempotency",
            slot = %self.slot,
            error = &error as &(dyn std::error::Error + 'static),
            "a handler ended the operation's transaction; the outcome is unknown, and the key is sealed"
        );
        let (settlement, _) = self.settlement_of(Fate::Seal, Record::outcome_unknown);
        self.store(&settlement).await;
        Settled::Undone(Undone::Broken)
    }

    /// Stops renewing a lease that must lapse. If the store fails now, the lease lapses on its own.
    async fn stop_renewing_for(&mut self, settlement: &Settlement) {
        if matches!(settlement, Settlement::Lapse)
            && let Some(renewal) = self.renewal.take()
        {
            renewal.stop().await;
        }
    }

    /// Ends the claim in the store. Does not touch the transaction.
    async fn store(&mut self, settlement: &Settlement) -> Settled {
        self.stop_renewing_for(settlement).await;
        let applied = apply(&self.guard, &self.slot, self.token, settlement).await;
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
                self.guard.adopt(None, settle_later(claim, settlement.clone()));
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
        if std::thread::panicking() && !self.is_after_panic {
            return self.settle_after_panic();
        }
        tracing::error!(
            target: "tower_idempotency",
            slot = %self.slot,
            attempt = self.attempt,
            "a claim was dropped before its outcome was known, for example because the runtime shut down; the claim \
             lapses"
        );
        if St::IN_PROCESS {
            let _ = at_once(self.guard.store.renew(&self.slot, self.token, Duration::ZERO));
        }
    }
}

/// Settles a claim in the background. Meanwhile, the lease is kept, so that no retry runs.
pub(super) async fn settle_later<St: Store>(mut claim: Claim<St>, settlement: Settlement) {
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
                    // The store also returns this result if an earlier call took effect but its
                    // answer was lost.
                    tracing::warn!(target: "tower_idempotency", %slot, "the claim ended before its outcome was stored");
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
            "gave up storing an outcome; after its lease has lapsed, a retry runs the operation again as the next \
             attempt"
        );
    }
}
