//! Atomic mode in SQLite.

use std::time::Duration;

use sqlx::{Sqlite, SqliteConnection, SqlitePool};

use super::SqliteStore;
use super::error::{self, failed};
use super::execute::complete;
use super::guarded::Hooks;
use super::job::{Single, Write, Written};
use crate::store::StoreError;
use crate::store::sql::claim::ClaimId;
use crate::store::sql::turns::Turns;
use crate::store::sql::unit_of_work::{AtomicStore, Completed};

impl AtomicStore for SqliteStore {
    type Db = Sqlite;

    const NAME: &'static str = error::NAME;

    fn pool(&self) -> &SqlitePool {
        self.own.file.pool()
    }

    fn turns(&self) -> Option<Turns> {
        self.own.file.turns().cloned()
    }

    async fn complete_in(
        &self,
        connection: &mut SqliteConnection,
        hooks: &Hooks,
        claim: &ClaimId,
        record: &[u8],
        ttl: Duration,
    ) -> Result<Completed, sqlx::Error> {
        // The connection belongs to the pool, where the table may be in an attached database.
        let query = complete(&self.sql, &claim.slot, claim.token, record, ttl);
        let completed = query.execute(connection).await;
        if hooks.saw_the_end() {
            // The statement failed because it ran outside the transaction.
            return Ok(Completed::NotOpen);
        }
        Ok(match completed?.rows_affected() {
            0 => Completed::Lost,
            _ => Completed::Yes,
        })
    }

    async fn is_done(&self, claim: &ClaimId) -> Result<bool, StoreError> {
        // This statement takes the writer's lock, so it waits for any transaction that may still be
        // committed.
        let done = self
            .write("read back", Write::Single(Single::IsDone(claim.slot, claim.token)))
            .await?;
        Ok(matches!(done, Written::Is(true)))
    }

    fn error(operation: &'static str, error: sqlx::Error) -> StoreError {
        failed(operation, error)
    }
}
