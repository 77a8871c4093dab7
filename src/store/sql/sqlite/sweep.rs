//! Removing expired rows.

use std::time::Duration;

use super::SqliteStore;
use super::error::NAME;
use super::read::{DueRow, Found, Read};
use super::write::{Write, Written};
use crate::store::sql::sweeper::{Sweepable, Sweeper};
use crate::store::{ScopeTag, StoreError};

/// Rows that are removed in one transaction at most.
const MOST_ROWS: usize = 64;
/// Bytes of the records that are removed in one transaction, unless one record alone is larger.
const MOST_BYTES: i64 = 512 * 1024;

impl SqliteStore {
    /// Removes at most `batch` expired rows, and says how many. It is for those who sweep on their own
    /// schedule; otherwise see [`sweep_every`](Self::sweep_every).
    ///
    /// # Errors
    ///
    /// The database failed.
    pub async fn sweep(&self, batch: u32) -> Result<u64, StoreError> {
        self.sweep_some(batch).await
    }

    /// Starts removing expired rows in the background, in batches of 500, one round each `every`.
    /// Must be called on a Tokio runtime.
    pub fn sweep_every(&self, every: Duration) -> Sweeper {
        Sweeper::start(self.clone(), every)
    }

    /// Removes the claims and records of a scope, and says how many. The lock is held for a few at a time.
    #[cfg_attr(not(test), expect(dead_code, reason = "for forgetting a scope"))]
    pub(crate) async fn delete_scope(&self, scope: &ScopeTag) -> Result<u64, StoreError> {
        let mut removed = 0;
        loop {
            let delete = Write::DeleteScope(*scope, MOST_ROWS as u32);
            match self.write("forget a scope", delete).await? {
                Written::Rows(rows @ 1..) => removed += rows,
                _ => return Ok(removed),
            }
        }
    }
}

impl Sweepable for SqliteStore {
    const NAME: &'static str = NAME;

    async fn sweep_some(&self, batch: u32) -> Result<u64, StoreError> {
        let mut removed = 0;
        loop {
            let left = batch.saturating_sub(u32::try_from(removed).unwrap_or(u32::MAX));
            let Found::Due(due) = self.read("sweep", Read::Due(left)).await? else {
                return Ok(removed);
            };
            for part in parts(&due) {
                let (forgotten, others): (Vec<_>, Vec<_>) = part.iter().partition(|(_, is_forgotten, _)| *is_forgotten);
                let handles = |rows: Vec<&DueRow>| rows.iter().map(|(handle, ..)| *handle).collect();
                let sweep = Write::Sweep {
                    forgotten: handles(forgotten),
                    others: handles(others),
                };
                if let Written::Rows(rows) = self.write("sweep", sweep).await? {
                    removed += rows;
                }
            }
            if due.len() < left as usize || removed >= u64::from(batch) {
                return Ok(removed);
            }
        }
    }
}

/// Divides rows into parts that are removed in a few milliseconds each.
fn parts(due: &[DueRow]) -> impl Iterator<Item = &[DueRow]> {
    let mut rest = due;
    std::iter::from_fn(move || {
        let mut bytes = 0;
        let fits = |(_, _, length): &&DueRow| {
            bytes += length;
            bytes <= MOST_BYTES
        };
        // One at least, however large.
        let count = rest.iter().take(MOST_ROWS).take_while(fits).count().max(1);
        let (part, others) = rest.split_at_checked(count)?;
        rest = others;
        Some(part)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::request::{Fingerprint, Slot};
    use crate::store::{ClaimRequest, Inspect, Store};

    #[tokio::test]
    async fn a_scope_is_deleted_and_the_others_stay() {
        let path = std::env::temp_dir().join(format!("tower-idempotency-{}.db", uuid::Uuid::new_v4()));
        let store = SqliteStore::open(&path).await.unwrap();
        store.migrate().await.unwrap();
        for number in 0..200_u8 {
            let claim = ClaimRequest::new(Slot::from_bytes([number; 32]), Fingerprint::from_bytes([1; 16]));
            let claim = claim.with_scope(ScopeTag::new(u32::from(number % 2)));
            store.begin(&claim).await.unwrap();
        }
        assert_eq!(store.delete_scope(&ScopeTag::new(0)).await.unwrap(), 100);
        assert_eq!(store.delete_scope(&ScopeTag::new(0)).await.unwrap(), 0);
        assert_eq!(store.count().await.unwrap().running, 100);
        for number in 0..200_u8 {
            let entry = store.look_up(&Slot::from_bytes([number; 32])).await.unwrap();
            assert_eq!(entry.is_some(), number % 2 == 1, "{number}");
        }
        store.pool().close().await;
        for suffix in ["", "-wal", "-shm"] {
            let _ = std::fs::remove_file(format!("{}{suffix}", path.display()));
        }
    }

    #[test]
    fn parts_have_few_rows_and_few_bytes() {
        let lengths = |parts: Vec<&[DueRow]>| parts.iter().map(|part| part.len()).collect::<Vec<_>>();
        let due = |rows: usize, bytes: i64| vec![(0, true, bytes); rows];
        assert_eq!(lengths(parts(&due(150, 0)).collect()), [64, 64, 22]);
        assert_eq!(lengths(parts(&due(7, MOST_BYTES / 3)).collect()), [3, 3, 1]);
        assert_eq!(lengths(parts(&due(3, 2 * MOST_BYTES)).collect()), [1, 1, 1]);
        assert!(lengths(parts(&[]).collect()).is_empty());
    }
}
