//! Looking into the table.

use super::SqliteStore;
use super::error::failed;
use crate::store::sql::inspect::{census, entry};
use crate::store::{Census, Entry, Inspect, Slot, StoreError};

impl Inspect for SqliteStore {
    async fn look_up(&self, slot: &Slot) -> Result<Option<Entry>, StoreError> {
        let row = sqlx::query_as(self.sql.look_up.text())
            .bind(slot.as_bytes().as_slice())
            .fetch_optional(&self.pool)
            .await
            .map_err(|error| failed("look up", error))?;
        row.map(entry).transpose()
    }

    async fn forget(&self, slot: &Slot) -> Result<bool, StoreError> {
        // All rows, as in `claim`.
        let known: Vec<bool> = sqlx::query_scalar(self.sql.forget.text())
            .bind(slot.as_bytes().as_slice())
            .fetch_all(&self.pool)
            .await
            .map_err(|error| failed("forget", error))?;
        Ok(known == [true])
    }

    async fn count(&self) -> Result<Census, StoreError> {
        let counted = sqlx::query_as(self.sql.count.text()).fetch_one(&self.pool).await;
        counted.map(census).map_err(|error| failed("count", error))
    }
}
