//! The outbox in SQLite.

use std::time::Duration;

use sqlx::SqliteConnection;

use super::super::super::events::{Claimed, Outgoing};
use super::super::DataError;
use super::super::sql::signed;
use super::super::sqlite::SqliteData;
use super::{claimed, millis, rows};

/// The current time in milliseconds since 1970.
macro_rules! now {
    () => {
        "CAST(round(unixepoch('subsec') * 1000) AS INTEGER)"
    };
}

/// To send a failed event again: `UPDATE idv_outbox SET failed_at = NULL, refused_since = NULL
/// WHERE event_id = 'evt_…'`.
pub(in super::super) const LAYOUT: &str = "
CREATE TABLE IF NOT EXISTS idv_outbox (
    number        INTEGER PRIMARY KEY AUTOINCREMENT,
    event_id      TEXT    NOT NULL UNIQUE,
    body          TEXT    NOT NULL,
    attempts      INTEGER NOT NULL DEFAULT 0,
    due_at        INTEGER NOT NULL,
    refused_since INTEGER,
    failed_at     INTEGER
);
CREATE INDEX IF NOT EXISTS idv_outbox_due ON idv_outbox (due_at) WHERE failed_at IS NULL;";

pub(in super::super) async fn append(connection: &mut SqliteConnection, event: &Outgoing) -> Result<(), DataError> {
    sqlx::query(concat!(
        "INSERT INTO idv_outbox (event_id, body, due_at) VALUES (?1, ?2, ",
        now!(),
        ")"
    ))
    .bind(&event.id)
    .bind(str::from_utf8(&event.body)?)
    .execute(connection)
    .await?;
    Ok(())
}

impl SqliteData {
    pub(super) async fn claim_events(&self, limit: usize, lease: Duration) -> Result<Vec<Claimed>, DataError> {
        // An update takes the writer's lock even if there is nothing to do, and this method is
        // called often.
        let some_are_due: bool = sqlx::query_scalar(concat!(
            "SELECT EXISTS (SELECT 1 FROM idv_outbox WHERE failed_at IS NULL AND due_at <= ",
            now!(),
            ")"
        ))
        .fetch_one(&self.pool)
        .await?;
        if !some_are_due {
            return Ok(Vec::new());
        }
        let claims = sqlx::query_as(concat!(
            "UPDATE idv_outbox SET attempts = attempts + 1, due_at = ",
            now!(),
            " + ?2 WHERE number IN (SELECT number FROM idv_outbox WHERE failed_at IS NULL AND due_at <= ",
            now!(),
            " ORDER BY due_at LIMIT ?1) RETURNING event_id, body, attempts, ",
            now!(),
            " - refused_since"
        ))
        .bind(rows(limit))
        .bind(millis(lease))
        .fetch_all(&self.pool)
        .await?;
        Ok(claims.into_iter().map(claimed).collect())
    }

    pub(super) async fn event_delivered(&self, id: &str) -> Result<(), DataError> {
        sqlx::query("DELETE FROM idv_outbox WHERE event_id = ?1")
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
        sqlx::query(concat!(
            "UPDATE idv_outbox SET due_at = ",
            now!(),
            " + ?3, refused_since = CASE WHEN ?4 THEN coalesce(refused_since, ",
            now!(),
            ") END WHERE event_id = ?1 AND attempts = ?2 AND failed_at IS NULL"
        ))
        .bind(&claimed.event.id)
        .bind(signed(claimed.attempt))
        .bind(millis(delay))
        .bind(refused)
        .execute(&self.pool)
        .await?;
        Ok(())
    }

    pub(super) async fn give_up_event(&self, claimed: &Claimed) -> Result<(), DataError> {
        sqlx::query(concat!(
            "UPDATE idv_outbox SET failed_at = ",
            now!(),
            " WHERE event_id = ?1 AND attempts = ?2 AND failed_at IS NULL"
        ))
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
