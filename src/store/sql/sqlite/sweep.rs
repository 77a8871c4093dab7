//! Removing expired rows.

use std::time::Duration;

use super::SqliteStore;
use super::error::NAME;
use super::read::{DueRow, Found, Read};
use super::write::{Write, Written};
use crate::store::StoreError;
use crate::store::sql::sweeper::{Sweepable, Sweeper};

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
