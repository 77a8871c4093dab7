//! Claims and records.

use std::time::Duration;

use super::PostgresStore;
use super::error::{NAME, unanswered};
use super::job::{Answer, Change, Claim, Job, What};
use crate::store::sql::begin::{BUSY, ROUNDS};
use crate::store::sql::claim::ClaimId;
use crate::store::sql::unit_of_work::Unit;
use crate::store::sql::value::attempts;
use crate::store::{
    ClaimOutcome, ClaimRequest, Held, Record, Slot, Store, StoreError, StoreErrorKind, Token, UnitOfWork,
};

impl Store for PostgresStore {
    async fn begin(&self, begin: &ClaimRequest) -> Result<ClaimOutcome, StoreError> {
        for _ in 0..ROUNDS {
            let found = match self.ask("begin", Job::Claim(Claim::new(*begin))).await? {
                Answer::Found(found) => found,
                Answer::Locked => return Ok(BUSY),
                _ => return Err(unexpected("begin")),
            };
            if let Some(attempt) = found.started {
                return Ok(ClaimOutcome::Started {
                    attempt: attempts(attempt),
                });
            }
            if let Some(seen) = found.seen
                && let Some(begun) = seen.decide(begin)?
            {
                return Ok(begun);
            }
            match self.ask("begin", Job::TakeOver(*begin)).await? {
                Answer::TakenOver(None) => {}
                Answer::TakenOver(Some(attempt)) => {
                    return Ok(ClaimOutcome::Started {
                        attempt: attempts(attempt),
                    });
                }
                Answer::Locked => return Ok(BUSY),
                _ => return Err(unexpected("begin")),
            }
        }
        Ok(BUSY)
    }

    async fn renew(&self, slot: &Slot, token: Token, lease: Duration) -> Result<Held, StoreError> {
        self.change("renew", slot, token, What::Renew(lease)).await
    }

    async fn complete(&self, slot: &Slot, token: Token, record: &Record, ttl: Duration) -> Result<Held, StoreError> {
        let what = What::Complete(record.to_bytes().into(), ttl);
        self.change("complete", slot, token, what).await
    }

    async fn release(&self, slot: &Slot, token: Token) -> Result<Held, StoreError> {
        self.change("release", slot, token, What::Release).await
    }

    fn unit_of_work(&self, begin: &ClaimRequest) -> Option<Box<dyn UnitOfWork>> {
        Some(Box::new(Unit::new(self.clone(), ClaimId::of(begin))))
    }
}

/// The pause before the first retry for a locked row. Each further pause is twice as long as the
/// one before, up to [`LONGEST_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_millis(10);
const LONGEST_PAUSE: Duration = Duration::from_millis(320);

impl PostgresStore {
    /// Sends a job on one of the store's own connections.
    pub(super) async fn ask(&self, operation: &'static str, job: Job) -> Result<Answer, StoreError> {
        if self.pool.is_closed() {
            self.lanes.close();
            return Err(unanswered(operation, sqlx::Error::PoolClosed.into()));
        }
        let answer = self.lanes.ask(job).await;
        answer.map_err(|failure| unanswered(operation, failure))
    }

    /// Like [`ask`](Self::ask), but retries as long as another transaction keeps the row locked.
    /// The caller limits the total time. Only the first attempt waits for the lock while it
    /// occupies the connection, and only briefly, because other calls need the connection.
    pub(super) async fn ask_until_unlocked(&self, operation: &'static str, mut job: Job) -> Result<Answer, StoreError> {
        let mut pause = FIRST_PAUSE;
        loop {
            match self.ask(operation, job.clone()).await? {
                Answer::Locked => {
                    job.met_lock();
                    tokio::time::sleep(pause).await;
                }
                answer => return Ok(answer),
            }
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    async fn change(&self, operation: &'static str, slot: &Slot, token: Token, what: What) -> Result<Held, StoreError> {
        let job = Job::Change(Change::new(slot, token, what));
        match self.ask_until_unlocked(operation, job).await? {
            Answer::Changed(held) => Ok(held),
            _ => Err(unexpected(operation)),
        }
    }
}

/// Returns the error for an answer that does not match its job.
pub(super) fn unexpected(operation: &'static str) -> StoreError {
    let message =
        format!("{NAME}: {operation}: the answer does not match the request; this is a bug in tower-idempotency");
    StoreError::new(StoreErrorKind::Unavailable, message)
}
