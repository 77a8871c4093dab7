//! Atomic mode in PostgreSQL.

use std::time::Duration;

use sqlx::{PgConnection, PgPool, Postgres, Row};

use super::PostgresStore;
use super::error::{self, failed, is_forbidden};
use super::guarded::Mark;
use super::job::{Answer, Job};
use super::statements::TAKE_ROLE;
use super::store::unexpected;
use super::wire::as_float;
use crate::store::StoreError;
use crate::store::sql::claim::ClaimId;
use crate::store::sql::unit_of_work::{AtomicStore, Completed};
use crate::store::sql::value::{millis, signed};

impl AtomicStore for PostgresStore {
    type Db = Postgres;

    const NAME: &'static str = error::NAME;

    fn pool(&self) -> &PgPool {
        &self.pool
    }

    async fn complete_in(
        &self,
        connection: &mut PgConnection,
        mark: &Mark,
        claim: &ClaimId,
        record: &[u8],
        ttl: Duration,
    ) -> Result<Completed, sqlx::Error> {
        let own_role = self.pin.role();
        let handlers_role = match &own_role {
            Some(role) => take_role(connection, role).await?,
            None => None,
        };
        let patience = millis(claim.lease).clamp(1, i64::from(i32::MAX));
        let row = sqlx::query(self.statements().complete_in.text())
            .bind(record)
            .bind(as_float(ttl))
            .bind(claim.slot.as_bytes().as_slice())
            .bind(signed(claim.token))
            .bind(mark.as_str())
            .bind(mark.as_str())
            .bind(patience.to_string())
            .bind(&handlers_role)
            .bind(&handlers_role)
            .fetch_one(connection)
            .await;
        let row = row.inspect_err(|error| {
            if is_forbidden(error) {
                self.pin.doubt_role();
            }
        })?;
        Ok(match (row.try_get("is_open")?, row.try_get("is_completed")?) {
            (false, _) => Completed::NotOpen,
            (true, false) => Completed::Lost,
            (true, true) => Completed::Yes,
        })
    }

    async fn is_done(&self, claim: &ClaimId) -> Result<bool, StoreError> {
        // While the row is locked, the transaction whose outcome is unknown may still be committed.
        match self
            .ask_until_unlocked("read back", Job::IsDone(claim.slot, claim.token))
            .await?
        {
            Answer::Done(is_done) => Ok(is_done),
            _ => Err(unexpected("read back")),
        }
    }

    fn error(operation: &'static str, error: sqlx::Error) -> StoreError {
        failed(operation, error)
    }
}

/// Sets the store's own role in a transaction. Returns the role that the handler had set, if any.
async fn take_role(connection: &mut PgConnection, own: &str) -> Result<Option<String>, sqlx::Error> {
    let before = sqlx::query_scalar(TAKE_ROLE).bind(own);
    Ok(before.fetch_all(connection).await?.into_iter().next())
}
