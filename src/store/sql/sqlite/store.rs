//! Claims and records.

use std::time::Duration;

use sqlx::sqlite::SqliteArguments;
use sqlx::{Row, Sqlite, SqliteExecutor};

use super::SqliteStore;
use super::error::failed;
use crate::store::sql::begin::{BUSY, ROUNDS, Seen};
use crate::store::sql::claim::ClaimId;
use crate::store::sql::unit_of_work::Unit;
use crate::store::sql::value::{attempts, held, millis, signed};
use crate::store::{ClaimOutcome, ClaimRequest, Held, OnLapse, Record, Slot, Store, StoreError, Token, UnitOfWork};

type Query<'q> = sqlx::query::Query<'q, Sqlite, SqliteArguments>;

impl Store for SqliteStore {
    /// Reads first: replays and refusals need no lock. What is free is decided by the statement
    /// that claims it.
    async fn begin(&self, begin: &ClaimRequest) -> Result<ClaimOutcome, StoreError> {
        let failed = |error| failed("begin", error);
        for _ in 0..ROUNDS {
            if let Some(seen) = self.read(begin).await.map_err(failed)?
                && let Some(begun) = seen.decide(begin)?
            {
                return Ok(begun);
            }
            if let Some(attempt) = self.claim(begin, &self.pool).await.map_err(failed)? {
                return Ok(ClaimOutcome::Started {
                    attempt: attempts(attempt),
                });
            }
        }
        Ok(BUSY)
    }

    async fn renew(&self, slot: &Slot, token: Token, lease: Duration) -> Result<Held, StoreError> {
        let query = sqlx::query(self.sql.renew.text())
            .bind(millis(lease))
            .bind(millis(lease))
            .bind(slot.as_bytes().as_slice())
            .bind(signed(token));
        self.change("renew", query).await
    }

    async fn complete(&self, slot: &Slot, token: Token, record: &Record, ttl: Duration) -> Result<Held, StoreError> {
        let record = record.to_bytes();
        self.change("complete", self.completion(slot, token, &record, ttl))
            .await
    }

    async fn release(&self, slot: &Slot, token: Token) -> Result<Held, StoreError> {
        let query = sqlx::query(self.sql.release.text())
            .bind(slot.as_bytes().as_slice())
            .bind(signed(token));
        self.change("release", query).await
    }

    fn unit_of_work(&self, begin: &ClaimRequest) -> Option<Box<dyn UnitOfWork>> {
        Some(Box::new(Unit::new(self.clone(), ClaimId::of(begin))))
    }
}

impl SqliteStore {
    async fn read(&self, begin: &ClaimRequest) -> Result<Option<Seen>, sqlx::Error> {
        let row = sqlx::query(self.sql.read.text())
            .bind(begin.slot.as_bytes().as_slice())
            .bind(begin.fingerprint.as_bytes().as_slice())
            .fetch_optional(&self.pool)
            .await?;
        row.map(|row| {
            Ok(Seen {
                fingerprint: row.try_get("fingerprint")?,
                token: row.try_get("token")?,
                attempt: row.try_get("attempt")?,
                lease_left: row.try_get("lease_left")?,
                done: row.try_get("done")?,
                record: row.try_get("record")?,
            })
        })
        .transpose()
    }

    /// The attempt, if it claimed the slot.
    pub(super) async fn claim(
        &self,
        begin: &ClaimRequest,
        connection: impl SqliteExecutor<'_>,
    ) -> Result<Option<i32>, sqlx::Error> {
        // All rows, although there is at most one: `fetch_optional` ends at the first, and would not
        // tell that the commit after it failed.
        let rows: Vec<i32> = sqlx::query_scalar(self.sql.claim.text())
            .bind(begin.slot.as_bytes().as_slice())
            .bind(begin.fingerprint.as_bytes().as_slice())
            .bind(signed(begin.token))
            .bind(millis(begin.lease))
            .bind(millis(begin.ttl))
            .bind(begin.on_lapse == OnLapse::Refuse)
            .fetch_all(connection)
            .await?;
        Ok(rows.first().copied())
    }

    pub(super) fn completion<'q>(&self, slot: &'q Slot, token: Token, record: &'q [u8], ttl: Duration) -> Query<'q> {
        sqlx::query(self.sql.complete.text())
            .bind(record)
            .bind(millis(ttl))
            .bind(slot.as_bytes().as_slice())
            .bind(signed(token))
    }

    /// Runs a statement that changes a claim, and says whether it did.
    async fn change(&self, operation: &'static str, query: Query<'_>) -> Result<Held, StoreError> {
        let changed = query.execute(&self.pool).await;
        let changed = changed.map_err(|error| failed(operation, error))?;
        Ok(held(changed.rows_affected()))
    }
}
