//! The outbox in PostgreSQL.

use std::time::Duration;

use sqlx::PgConnection;

use super::super::super::events::{Claimed, Outgoing};
use super::super::DataError;
use super::super::postgres::PostgresData;
use super::super::sql::signed;
use super::{claimed, millis, rows};

/// To send a failed event again: `UPDATE idv_outbox SET failed_at = NULL, refused_since = NULL
/// WHERE event_id = 'evt_…'`.
pub(in super::super) const LAYOUT: &str = "
CREATE TABLE IF NOT EXISTS idv_outbox (
    number        bigserial   PRIMARY KEY,
    event_id      text        NOT NULL UNIQUE,
    body          text        NOT NULL,
    attempts      bigint      NOT NULL DEFAULT 0,
    due_at        timestamptz NOT NULL DEFAULT now(),
    refused_since timestamptz,
    failed_at     timestamptz
);
CREATE INDEX IF NOT EXISTS idv_outbox_due ON idv_outbox (due_at) WHERE failed_at IS NULL;";

pub(in super::super) async fn append(connection: &mut PgConnection, event: &Outgoing) -> Result<(), DataError> {
    sqlx::query("INSERT INTO idv_outbox (event_id, body) VALUES ($1, $2)")
        .bind(&event.id)
        .bind(str::from_utf8(&event.body)?)
        .execute(connection)
        .await?;
    Ok(())
}

impl PostgresData {
    pub(super) async fn claim_events(&self, limit: usize, lease: Duration) -> Result<Vec<Claimed>, DataError> {
        // Servers that check at the same time skip each other's events. MATERIALIZED is needed
        // because a query plan could run the subquery again, and then find more events than the
        // limit.
        let claims = sqlx::query_as(
            "WITH due AS MATERIALIZED (SELECT number FROM idv_outbox WHERE failed_at IS NULL AND due_at <= now() \
             ORDER BY due_at LIMIT $1 FOR UPDATE SKIP LOCKED) \
             UPDATE idv_outbox AS claimed \
             SET attempts = claimed.attempts + 1, due_at = now() + $2 * interval '1 millisecond' \
             FROM due WHERE claimed.number = due.number \
             RETURNING event_id, body, attempts, (extract(epoch FROM now() - refused_since) * 1000)::bigint",
        )
        .bind(rows(limit))
        .bind(millis(lease))
        .fetch_all(&self.pool)
        .await?;
        Ok(claims.into_iter().map(claimed).collect())
    }

    pub(super) async fn event_delivered(&self, id: &str) -> Result<(), DataError> {
        sqlx::query("DELETE FROM idv_outbox WHERE event_id = $1")
            .bind(id)
            .execute(&self.pool)
            .await?;
        Ok(())
    }

    pub(super) async fn postpone_event(
        &self,
        claimed: &Claimed,
        delay: Duration,
        refused: bool,
    ) -> Result<(), DataError> {
        sqlx::query(
            "UPDATE idv_outbox SET due_at = now() + $3 * interval '1 millisecond', \
             refused_since = CASE WHEN $4 THEN coalesce(refused_since, now()) END \
             WHERE event_id = $1 AND attempts = $2 AND failed_at IS NULL",
        )
        .bind(&claimed.event.id)
        .bind(signed(claimed.attempt))
        .bind(millis(delay))
        .bind(refused)
        .execute(&self.pool)
        .await?;
        Ok(())
    }

    pub(super) async fn give_up_event(&self, claimed: &Claimed) -> Result<(), DataError> {
        sqlx::query(
            "UPDATE idv_outbox SET failed_at = now() WHERE event_id = $1 AND attempts = $2 AND failed_at IS NULL",
        )
        .bind(&claimed.event.id)
        .bind(signed(claimed.attempt))
        .execute(&self.pool)
        .await?;
        Ok(())
    }

    pub(super) async fn pending_events(&self) -> Result<u64, DataError> {
        let pending: i64 = sqlx::query_scalar("SELECT count(*) FROM idv_outbox WHERE failed_at IS NULL")
            .fetch_one(&self.pool)
            .await?;
        Ok(pending.unsigned_abs())
    }
}
