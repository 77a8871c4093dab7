//! Atomic mode: an operation's effect and its record are committed together, or rolled back.

use std::pin::pin;
use std::time::Duration;

use super::claim::{Claim, settle_later};
use super::config::Config;
use super::pauses::Pauses;
use super::settlement::{Settled, Settlement, Undone};
use super::store_call::{Watch, bounded, warn_of, within};
use crate::store::{Commit, Record, Store, StoreError, StoreErrorKind, UnitOfWork};

impl<St: Store> Claim<St> {
    /// Ends the claim. In atomic mode, if the operation succeeded and the handler used the
    /// transaction, the effect and the record are committed together.
    pub(crate) async fn end(&mut self, settlement: &Settlement, has_succeeded: bool) -> Settled {
        if let Settlement::Complete { record, ttl } = settlement
            && has_succeeded
            && self.has_begun_work()
            && let Some(unit) = self.unit.take()
        {
            // The commit is boxed, so that it takes no space in the futures of requests without a
            // commit.
            return Box::pin(self.commit(unit, record, *ttl)).await;
        }
        self.settle(settlement).await
    }

    async fn commit(&mut self, unit: Box<dyn UnitOfWork>, record: &Record, ttl: Duration) -> Settled {
        self.is_being_settled();
        let store_timeout = self.guard.config.store_timeout;
        let watch = Watch::start("commit");
        let committed = within(store_timeout, pin!(unit.commit(record, ttl))).await;
        let committed = committed.unwrap_or_else(|elapsed| {
            let message = format!("the store did not answer `commit` within {store_timeout:?}");
            Commit::Unknown(StoreError::new(StoreErrorKind::Timeout, message).with_source(elapsed))
        });
        watch.stop(matches!(committed, Commit::Done | Commit::Lost));
        let error = match committed {
            Commit::Done => return self.is_committed(&*unit),
            Commit::Lost => {
                self.settled = true;
                self.warn_of_loss();
                return Settled::Undone(Undone::Lost);
            }
            Commit::Failed(error) => {
                warn_of(
                    &error,
                    &self.slot,
                    "the operation could not be committed and was rolled back",
                );
                self.settle(&Settlement::Release).await;
                return Settled::Undone(Undone::Failed);
            }
            Commit::Broken(error) => return self.seal_broken(error).await,
            Commit::Unknown(error) => error,
        };
        warn_of(
            &error,
            &self.slot,
            "the outcome of a commit is unknown; reading it back",
        );
        let known = bounded("read back", store_timeout, pin!(unit.was_committed())).await;
        match known {
            Ok(true) => self.is_committed(&*unit),
            Ok(false) => {
                self.settle(&Settlement::Release).await;
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

    /// Called when the effect and the record have been committed.
    fn is_committed(&mut self, unit: &dyn UnitOfWork) -> Settled {
        self.settled = true;
        for work in unit.after_commit() {
            self.guard.adopt(None, work);
        }
        Settled::Yes
    }
}

/// Finds out in the background whether a commit succeeded. Until the result is known, the lease is
/// kept, so that no retry runs.
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
        Ok(true) => {
            claim.is_committed(&*unit);
        }
        Ok(false) => return settle_later(claim, Settlement::Release).await,
        Err(_elapsed) => tracing::error!(
            target: "tower_idempotency",
            slot = %claim.slot,
            "gave up finding out whether a commit succeeded; if it failed, a retry runs after the lease has lapsed"
        ),
    }
    claim.settled = true;
}
