//! Inspects the table.

use super::SqliteStore;
use super::error::failed;
use super::job::{Single, Write, Written};
use super::read::{Found, Read};
use super::sweep::MOST_ROWS;
use crate::store::sql::inspect::{census, entry};
use crate::store::{Census, Entry, Inspect, ScopeTag, Slot, StoreError};

impl Inspect for SqliteStore {
    async fn look_up(&self, slot: &Slot) -> Result<Option<Entry>, StoreError> {
        match self.read("look up", Read::Entry(*slot)).await? {
            Found::Entry(row) => row.map(entry).transpose(),
            _ => Ok(None),
        }
    }

    async fn forget(&self, slot: &Slot) -> Result<bool, StoreError> {
        let forgotten = self.write("forget", Write::Single(Single::Forget(*slot))).await?;
        Ok(matches!(forgotten, Written::Is(true)))
    }

    /// Removes only a few rows each time the store takes the lock.
    async fn forget_scope(&self, scope: &ScopeTag) -> Result<u64, StoreError> {
        let mut forgotten = 0;
        loop {
            let write = Write::Single(Single::ForgetScope(*scope, MOST_ROWS as u32));
            match self.write("forget a scope", write).await? {
                Written::Forgotten { rows: 1.., counted } => forgotten += counted,
                _ => return Ok(forgotten),
            }
        }
    }

    /// Counts the rows on a connection from the pool, because counting reads the whole table, and
    /// claims must not wait for it.
    async fn count(&self) -> Result<Census, StoreError> {
        let counted = sqlx::query_as(self.sql.count.text()).fetch_one(self.pool()).await;
        counted.map(census).map_err(|error| failed("count", error))
    }
}
