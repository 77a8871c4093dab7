//! Removing expired rows.

use std::time::Duration;

use super::SqliteStore;
use super::error::{NAME, failed};
use crate::store::StoreError;
use crate::store::sql::statements::Statement;
use crate::store::sql::sweeper::{Mark, Sweepable, Sweeper, Window, sweep_once};

impl SqliteStore {
    /// Removes at most `batch` expired rows, and says how many. It is for those who sweep on their own
    /// schedule; otherwise see [`sweep_every`](Self::sweep_every).
    ///
    /// # Errors
    ///
    /// The database failed.
    pub async fn sweep(&self, batch: u32) -> Result<u64, StoreError> {
        sweep_once(self, batch).await
    }

    /// Starts removing expired rows in the background, in batches of 500, one round each `every`.
    /// Must be called on a Tokio runtime.
    pub fn sweep_every(&self, every: Duration) -> Sweeper {
        Sweeper::start(self.clone(), every)
    }
}

impl Sweepable for SqliteStore {
    const NAME: &'static str = NAME;

    async fn sweep_window(&self, _: Option<Mark>, rows: u32) -> Result<Window, StoreError> {
        let run = async |statement: &Statement| {
            let query = sqlx::query(statement.text()).bind(i64::from(rows));
            let result = query.execute(&self.pool).await;
            result.map_err(|error| failed("sweep", error))
        };
        run(&self.sql.put_off).await?;
        let removed = run(&self.sql.sweep).await?.rows_affected();
        Ok(Window {
            removed,
            seen: removed,
            last: None,
            lag: Duration::ZERO,
        })
    }
}
