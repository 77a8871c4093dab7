//! Claims and records.

use std::time::Duration;

use sqlx::postgres::PgRow;
use sqlx::{FromRow, Row};

use super::PostgresStore;
use super::error::{failed, is_broken};
use super::query::{Query, as_float, one};
use crate::store::sql::begin::{BUSY, ROUNDS, Seen};
use crate::store::sql::claim::ClaimId;
use crate::store::sql::statements::Statement;
use crate::store::sql::unit_of_work::Unit;
use crate::store::sql::value::{attempts, signed};
use crate::store::{ClaimOutcome, ClaimRequest, Held, OnLapse, Record, Slot, Store, StoreError, Token, UnitOfWork};

impl Store for PostgresStore {
    async fn begin(&self, begin: &ClaimRequest) -> Result<ClaimOutcome, StoreError> {
        let failed = |error| failed("begin", error);
        // All of the pool's connections may be older than the server. The token makes it safe to ask
        // again.
        let mut dead = None;
        for _ in 0..ROUNDS {
            let found: Found = loop {
                let left = dead.get_or_insert_with(|| self.pool.size() + 1);
                match self.ask(self.claim(begin)).await {
                    Err(error) if is_broken(&error) && *left > 0 => *left -= 1,
                    found => break found.and_then(one).map_err(failed)?,
                }
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
            let taken_over = self.ask(self.take_over(begin)).await.map_err(failed)?;
            if let Some((attempt,)) = taken_over {
                return Ok(ClaimOutcome::Started {
                    attempt: attempts(attempt),
                });
            }
        }
        Ok(BUSY)
    }

    async fn renew(&self, slot: &Slot, token: Token, lease: Duration) -> Result<Held, StoreError> {
        let query = sqlx::query(self.sql.renew.text())
            .bind(as_float(lease))
            .bind(as_float(lease))
            .bind(slot.as_bytes().as_slice())
            .bind(signed(token));
        self.change("renew", query).await
    }

    async fn complete(&self, slot: &Slot, token: Token, record: &Record, ttl: Duration) -> Result<Held, StoreError> {
        let query = sqlx::query(self.sql.complete.text())
            .bind(record.to_bytes())
            .bind(as_float(ttl))
            .bind(slot.as_bytes().as_slice())
            .bind(signed(token));
        self.change("complete", query).await
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

impl PostgresStore {
    pub(super) fn claim<'q>(&self, begin: &'q ClaimRequest) -> Query<'q> {
        claiming(&self.sql.begin, begin)
    }

    pub(super) fn take_over<'q>(&self, begin: &'q ClaimRequest) -> Query<'q> {
        claiming(&self.sql.take_over, begin).bind(begin.on_lapse == OnLapse::Refuse)
    }
}

fn claiming<'q>(statement: &Statement, begin: &'q ClaimRequest) -> Query<'q> {
    sqlx::query(statement.text())
        .bind(begin.slot.as_bytes().as_slice())
        .bind(begin.fingerprint.as_bytes().as_slice())
        .bind(signed(begin.token))
        .bind(as_float(begin.lease))
        .bind(as_float(begin.ttl))
}

/// What the statement `BEGIN` answers.
struct Found {
    /// The attempt, if it claimed the slot.
    started: Option<i32>,
    seen: Option<Seen>,
}

impl FromRow<'_, PgRow> for Found {
    fn from_row(row: &PgRow) -> Result<Self, sqlx::Error> {
        let seen = match row.try_get("fingerprint")? {
            Some(fingerprint) => Some(Seen {
                fingerprint,
                token: row.try_get("token")?,
                attempt: row.try_get("attempt")?,
                lease_left: row.try_get("lease_left")?,
                done: row.try_get("done")?,
                record: row.try_get("record")?,
            }),
            None => None,
        };
        let started = row.try_get("started")?;
        Ok(Self { started, seen })
    }
}
