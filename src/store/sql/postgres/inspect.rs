//! Looking into the table.

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

    /// On a connection of the pool: it may take a while.
    async fn count(&self) -> Result<Census, StoreError> {
        let counted = self.ask_pool(sqlx::query(self.statements().count.text())).await;
        counted.map(census).map_err(|error| failed("count", error))
    }
}

impl PostgresStore {
    /// Removes all that is of one scope, such as a tenant's or a person's records, and says how many rows.
    /// Operations of that scope that run are fenced off, as after [`forget`](Inspect::forget).
    ///
    /// It removes a thousand rows at a time, on a connection of the pool, and waits for rows that another
    /// transaction is writing.
    ///
    /// # Errors
    ///
    /// The database failed. Some of the rows may be gone; call it again.
    pub async fn forget_scope(&self, scope: &ScopeTag) -> Result<u64, StoreError> {
        let mut removed_in_all = 0;
        loop {
            let query = sqlx::query(self.statements().forget_scope.text()).bind(scope.as_bytes().as_slice());
            let counts: Result<(i64, i64), _> = self.ask_pool(query).await;
            let (found, removed) = counts.map_err(|error| failed("forget scope", error))?;
            removed_in_all += removed.unsigned_abs();
            if found == 0 {
                return Ok(removed_in_all);
            }
        }
    }
}
