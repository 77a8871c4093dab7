//! Removes expired rows.

use std::time::Duration;

use super::SqliteStore;
use super::error::NAME;
use super::job::{Single, Write, Written};
use super::read::{DueRow, Found, Read};
use crate::error::ConfigError;
use crate::store::StoreError;
use crate::store::sql::sweeper::{Mark, Sweepable, Sweeper, Window, sweep_once};
use crate::store::sql::value::left;

/// The maximum number of rows that are removed in one transaction.
pub(super) const MOST_ROWS: usize = 64;
/// The maximum total size, in bytes, of the records that are removed in one transaction. A single
/// record can be larger.
const MOST_BYTES: i64 = 512 * 1024;

/// The number of times that SQLite writes a removal. SQLite writes it to the log first, and copies
/// it from there to the file at a later time, which SQLite chooses.
const WRITTEN: u32 = 2;

impl SqliteStore {
    /// Removes at most `batch` expired rows and returns the number of rows removed. Use this method
    /// to sweep on your own schedule. To sweep in the background, use
    /// [`sweep_every`](Self::sweep_every) instead.
    ///
    /// # Errors
    ///
    /// Returns an error if the database fails.
    pub async fn sweep(&self, batch: u32) -> Result<u64, StoreError> {
        sweep_once(self, batch).await
    }

    /// Starts removing expired rows in the background. After each round, the sweeper pauses for
    /// `every`, or for 100 ms if `every` is shorter.
    ///
    /// # Errors
    ///
    /// The method was not called on a Tokio runtime.
    pub fn sweep_every(&self, every: Duration) -> Result<Sweeper, ConfigError> {
        Sweeper::start(self.clone(), every)
    }
}

impl Sweepable for SqliteStore {
    const NAME: &'static str = NAME;
    const ROWS: u32 = 256;

    /// Reads the rows without the lock, and then takes a separate turn for each part of the rows,
    /// so that claims can be written between two parts.
    async fn sweep_window(&self, _: Option<Mark>, rows: u32) -> Result<Window, StoreError> {
        let mut window = Window {
            removed: 0,
            seen: 0,
            last: None,
            lag: Duration::ZERO,
            took: Duration::ZERO,
        };
        let Found::Due(due) = self.read("sweep", Read::Due(rows)).await? else {
            return Ok(window);
        };
        window.seen = due.len() as u64;
        if let Some(last) = due.last() {
            window.lag = left(last.lag);
        }
        for part in parts(&due) {
            let (forgotten, others): (Vec<_>, Vec<_>) = part.iter().partition(|row| row.is_forgotten);
            let handles = |rows: Vec<&DueRow>| rows.iter().map(|row| row.handle).collect();
            let sweep = Write::Single(Single::Sweep {
                forgotten: handles(forgotten),
                others: handles(others),
            });
            if let Written::Swept { rows, took } = self.write("sweep", sweep).await? {
                window.removed += rows;
                window.took += took * WRITTEN;
            }
        }
        Ok(window)
    }
}

/// Divides rows into parts that can each be removed in a few milliseconds.
fn parts(due: &[DueRow]) -> impl Iterator<Item = &[DueRow]> {
    let mut rest = due;
    std::iter::from_fn(move || {
        let mut bytes = 0;
        let fits = |row: &&DueRow| {
            bytes += row.length;
            bytes <= MOST_BYTES
        };
        // Each part contains at least one row, however large that row is.
        let count = rest.iter().take(MOST_ROWS).take_while(fits).count().max(1);
        let (part, others) = rest.split_at_checked(count)?;
        rest = others;
        Some(part)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_have_few_rows_and_few_bytes() {
        let lengths = |parts: Vec<&[DueRow]>| parts.iter().map(|part| part.len()).collect::<Vec<_>>();
        let due = |rows: usize, length: i64| {
            let row = DueRow {
                handle: 0,
                is_forgotten: true,
                length,
                lag: 0,
            };
            vec![row; rows]
        };
        assert_eq!(lengths(parts(&due(150, 0)).collect()), [64, 64, 22]);
        assert_eq!(lengths(parts(&due(7, MOST_BYTES / 3)).collect()), [3, 3, 1]);
        assert_eq!(lengths(parts(&due(3, 2 * MOST_BYTES)).collect()), [1, 1, 1]);
        assert!(lengths(parts(&[]).collect()).is_empty());
    }
}
