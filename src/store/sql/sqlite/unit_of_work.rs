//! What the atomic mode asks of SQLite.

use std::time::Duration;

use sqlx::{Sqlite, SqliteConnection, SqlitePool};

use super::error::{self, failed};
use super::{BEGIN, SqliteStore};
use crate::store::StoreError;
use crate::store::sql::claim::ClaimId;
use crate::store::sql::unit_of_work::AtomicStore;
use crate::store::sql::value::signed;

impl AtomicStore for SqliteStore {
    type Db = Sqlite;

    const NAME: &'static str = error::NAME;
    const BEGIN: &'static str = BEGIN;

    fn pool(&self) -> &SqlitePool {
        &self.pool
    }

    async fn complete_in(
        &self,
        connection: &mut SqliteConnection,
        claim: &ClaimId,
        record: &[u8],
        ttl: Duration,
    ) -> Result<bool, sqlx::Error> {
        let query = self.completion(&claim.slot, claim.token, record, ttl);
        Ok(query.execute(connection).await?.rows_affected() == 1)
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
