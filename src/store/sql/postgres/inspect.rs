//! Looking into the table.

use super::PostgresStore;
use super::error::failed;
use super::query::one;
use crate::store::sql::inspect::{census, entry};
use crate::store::{Census, Entry, Inspect, Slot, StoreError};

impl Inspect for PostgresStore {
    async fn look_up(&self, slot: &Slot) -> Result<Option<Entry>, StoreError> {
        let query = sqlx::query(self.sql.look_up.text()).bind(slot.as_bytes().as_slice());
        let row = self.ask(query).await.map_err(|error| failed("look up", error))?;
        row.map(entry).transpose()
    }

    async fn forget(&self, slot: &Slot) -> Result<bool, StoreError> {
        let query = sqlx::query(self.sql.forget.text()).bind(slot.as_bytes().as_slice());
        let known = self.ask(query).await.map_err(|error| failed("forget", error))?;
        Ok(known == Some((true,)))
    }

    async fn count(&self) -> Result<Census, StoreError> {
        let counted = self.ask(sqlx::query(self.sql.count.text())).await.and_then(one);
        counted.map(census).map_err(|error| failed("count", error))
    }
}
