//! Looking into the table.

use super::SqliteStore;
use super::error::failed;
use super::read::{Found, Read};
use super::write::{Write, Written};
use crate::store::sql::inspect::{census, entry};
use crate::store::{Census, Entry, Inspect, Slot, StoreError};

impl Inspect for SqliteStore {
    async fn look_up(&self, slot: &Slot) -> Result<Option<Entry>, StoreError> {
        match self.read("look up", Read::Entry(*slot)).await? {
            Found::Entry(row) => row.map(entry).transpose(),
            _ => Ok(None),
        }
    }

    async fn forget(&self, slot: &Slot) -> Result<bool, StoreError> {
        let forgotten = self.write("forget", Write::Forget(*slot)).await?;
        Ok(matches!(forgotten, Written::Is(true)))
    }

    /// On the pool: it reads the whole table, and claims must not wait for it.
    async fn count(&self) -> Result<Census, StoreError> {
        let counted = sqlx::query_as(self.sql.count.text()).fetch_one(self.pool()).await;
        counted.map(census).map_err(|error| failed("count", error))
    }
}
