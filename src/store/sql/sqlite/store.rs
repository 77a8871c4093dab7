//! Claims and records.

use std::sync::Arc;
use std::time::Duration;

use super::SqliteStore;
use super::error::{failed, unanswered};
use super::job::{Completion, Single, Write, Written};
use super::read::{Found, Read};
use crate::store::sql::begin::{BUSY, ROUNDS};
use crate::store::sql::claim::ClaimId;
use crate::store::sql::lane::Failure;
use crate::store::sql::unit_of_work::Unit;
use crate::store::sql::value::{attempts, held};
use crate::store::{ClaimOutcome, ClaimRequest, Held, Record, Slot, Store, StoreError, Token, UnitOfWork};

impl Store for SqliteStore {
    /// Reads first, so that replays and refusals do not wait for writers. If the slot is free, the
    /// claiming statement determines the outcome.
    async fn begin(&self, begin: &ClaimRequest) -> Result<ClaimOutcome, StoreError> {
        const BEGIN: &str = "begin";
        for _ in 0..ROUNDS {
            let read = Read::Seen(begin.slot, begin.fingerprint);
            if let Found::Seen(Some(seen)) = self.read(BEGIN, read).await?
                && let Some(begun) = seen.decide(begin)?
            {
                return Ok(begun);
            }
            match self.write(BEGIN, Write::Claim(*begin)).await? {
                Written::Claimed(attempt) => {
                    return Ok(ClaimOutcome::Started {
                        attempt: attempts(attempt),
                    });
                }
                Written::Taken(Some(seen)) => {
                    if let Some(begun) = seen.decide(begin)? {
                        return Ok(begun);
                    }
                }
                _ => {}
            }
        }
        Ok(BUSY)
    }

    async fn renew(&self, slot: &Slot, token: Token, lease: Duration) -> Result<Held, StoreError> {
        self.change("renew", Write::Single(Single::Renew(*slot, token, lease)))
            .await
    }

    async fn complete(&self, slot: &Slot, token: Token, record: &Record, ttl: Duration) -> Result<Held, StoreError> {
        let complete = Write::Complete(Completion {
            slot: *slot,
            token,
            record: Arc::new(record.to_bytes()),
            ttl,
            again: false,
        });
        self.change("complete", complete).await
    }

    async fn release(&self, slot: &Slot, token: Token) -> Result<Held, StoreError> {
        let release = Write::Single(Single::Release {
            slot: *slot,
            token,
            again: false,
        });
        self.change("release", release).await
    }

    fn unit_of_work(&self, begin: &ClaimRequest) -> Option<Box<dyn UnitOfWork>> {
        Some(Box::new(Unit::new(self.clone(), ClaimId::of(begin))))
    }
}

impl SqliteStore {
    pub(super) async fn read(&self, operation: &'static str, question: Read) -> Result<Found, StoreError> {
        self.check_pool(operation)?;
        let found = self.own.reading.ask(question).await;
        found.map_err(|failure| unanswered(operation, failure))
    }

    pub(super) async fn write(&self, operation: &'static str, change: Write) -> Result<Written, StoreError> {
        self.check_pool(operation)?;
        let written = self.own.writing.ask(change).await;
        let written = written.map_err(|failure| unanswered(operation, failure))?;
        written.map_err(|error| unanswered(operation, Failure::Database(error)))
    }

    /// Returns an error if the application has closed the pool. In that case, the store also closes
    /// its own connections, to release the file.
    fn check_pool(&self, operation: &'static str) -> Result<(), StoreError> {
        if self.pool().is_closed() {
            self.own.reading.close();
            self.own.writing.close();
            return Err(failed(operation, sqlx::Error::PoolClosed));
        }
        Ok(())
    }

    /// Changes a claim, and returns whether the claim was held.
    async fn change(&self, operation: &'static str, change: Write) -> Result<Held, StoreError> {
        match self.write(operation, change).await? {
            Written::Rows(rows) => Ok(held(rows)),
            _ => Ok(Held::Lost),
        }
    }
}
