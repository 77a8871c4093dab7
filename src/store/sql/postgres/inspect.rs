//! Looking into the table.

use super::PostgresStore;
use super::error::failed;
use super::job::{Answer, Job};
use super::store::unexpected;
use crate::store::sql::inspect::{census, entry};
use crate::store::{Census, Entry, Inspect, Slot, StoreError};

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
