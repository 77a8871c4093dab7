//! Inspects the table.

use super::PostgresStore;
use super::error::failed;
use super::job::{Answer, Job};
use super::store::unexpected;
use crate::store::sql::inspect::{census, entry};
use crate::store::{Census, Entry, Inspect, ScopeTag, Slot, StoreError};

impl Inspect for PostgresStore {
    async fn look_up(&self, slot: &Slot) -> Result<Option<Entry>, StoreError> {
        match self.ask("look up", Job::LookUp(*slot)).await? {
            Answer::LookedUp(row) => row.map(entry).transpose(),
            _ => Err(unexpected("look up")),
        }
    }

    async fn forget(&self, slot: &Slot) -> Result<bool, StoreError> {
        match self.ask_until_unlocked("forget", Job::Forget(*slot)).await? {
            Answer::Forgotten(counted) => Ok(counted),
            _ => Err(unexpected("forget")),
        }
    }

    /// Removes a thousand rows at a time, on a connection from the pool.
    async fn forget_scope(&self, scope: &ScopeTag) -> Result<u64, StoreError> {
        let mut forgotten = 0;
        loop {
            let query = sqlx::query(self.statements().forget_scope.text()).bind(scope.as_bytes().as_slice());
            let counts: Result<(i64, i64), _> = self.ask_pool(query).await;
            let (found, counted) = counts.map_err(|error| failed("forget scope", error))?;
            forgotten += counted.unsigned_abs();
            if found == 0 {
                return Ok(forgotten);
            }
        }
    }

    /// Counts the rows on a connection from the pool, because this may take a while.
    async fn count(&self) -> Result<Census, StoreError> {
        let counted = self.ask_pool(sqlx::query(self.statements().count.text())).await;
        counted.map(census).map_err(|error| failed("count", error))
    }
}
