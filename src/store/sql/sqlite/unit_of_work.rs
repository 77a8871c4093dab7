//! What the atomic mode asks of SQLite.

use std::time::Duration;

use sqlx::{Sqlite, SqliteConnection, SqlitePool};

use super::error::{self, failed};
use super::guarded::Hooks;
use super::{BEGIN, SqliteStore};
use crate::store::StoreError;
use crate::store::sql::claim::ClaimId;
use crate::store::sql::unit_of_work::{AtomicStore, Completed};
use crate::store::sql::value::signed;

impl AtomicStore for SqliteStore {
    type Db = Sqlite;

    const NAME: &'static str = error::NAME;

    fn pool(&self) -> &SqlitePool {
        &self.pool
    }

    async fn complete_in(
        &self,
        connection: &mut SqliteConnection,
        hooks: &Hooks,
        claim: &ClaimId,
        record: &[u8],
        ttl: Duration,
    ) -> Result<Completed, sqlx::Error> {
        let query = self.completion(&claim.slot, claim.token, record, ttl);
        let completed = query.execute(connection).await;
        if hooks.saw_the_end() {
            // Outside of the transaction the statement has failed.
            return Ok(Completed::NotOpen);
        }
        Ok(match completed?.rows_affected() {
            0 => Completed::Lost,
            _ => Completed::Yes,
        })
    }

    async fn is_done(&self, claim: &ClaimId) -> Result<bool, StoreError> {
        let ask = async {
            // The writer's lock waits for a transaction that may still commit.
            let mut transaction = self.pool.begin_with(BEGIN).await?;
            let done: Option<bool> = sqlx::query_scalar(self.sql.is_done.text())
                .bind(signed(claim.token))
                .bind(claim.slot.as_bytes().as_slice())
                .fetch_optional(&mut *transaction)
                .await?;
            transaction.rollback().await?;
            Ok(done == Some(true))
        };
        ask.await.map_err(|error| failed("read back", error))
    }

    fn error(operation: &'static str, error: sqlx::Error) -> StoreError {
        failed(operation, error)
    }

    fn leaves_in_doubt(error: &sqlx::Error) -> bool {
        error::leaves_in_doubt(error)
    }
}
