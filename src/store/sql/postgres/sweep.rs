//! Removes expired rows.

use std::time::Duration;

use tokio::time::Instant;

use super::PostgresStore;
use super::error::{NAME, failed};
use crate::error::ConfigError;
use crate::store::StoreError;
use crate::store::sql::asking::Asking;
use crate::store::sql::sweeper::{Mark, Sweepable, Sweeper, Window, sweep_once};
use crate::store::sql::value::left;

/// The result of the sweep statement: the number of rows removed, the number of due rows processed,
/// the time at which the last row became due, and how long ago that was.
type WindowRow = (i64, i64, Option<i64>, Option<i64>);

impl PostgresStore {
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

    /// Starts removing expired rows in the background, 500 at a time. After each round, the sweeper
    /// pauses for `every`, or for 100 ms if `every` is shorter. It uses one connection from the
    /// application's pool.
    ///
    /// # Errors
    ///
    /// The method was not called on a Tokio runtime.
    pub fn sweep_every(&self, every: Duration) -> Result<Sweeper, ConfigError> {
        Sweeper::start(self.clone(), every)
    }
}

impl Sweepable for PostgresStore {
    const NAME: &'static str = NAME;

    async fn sweep_window(&self, from: Option<Mark>, rows: u32) -> Result<Window, StoreError> {
        let from = match from {
            Some(Mark(micros)) => format!("timestamptz 'epoch' + {micros} * interval '1 microsecond'"),
            None => "timestamptz '-infinity'".to_owned(),
        };
        let statement = self
            .statements()
            .sweep
            .with("{rows}", &rows.to_string())
            .with("{from}", &from);
        let failed = |error| failed("sweep", error);
        let connection = Asking::acquire(&self.pool).await.map_err(failed)?;
        // The time in the pool's queue is not work.
        let began = Instant::now();
        let row: Result<WindowRow, _> = Self::ask_on(connection, sqlx::raw_sql(statement.text())).await;
        let (removed, seen, last, lag) = row.map_err(failed)?;
        Ok(Window {
            removed: removed.unsigned_abs(),
            seen: seen.unsigned_abs(),
            last: last.map(Mark),
            lag: left(lag.unwrap_or_default()),
            took: began.elapsed(),
        })
    }
}
