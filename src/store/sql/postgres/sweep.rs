//! Removing expired rows.

use std::time::Duration;

use super::PostgresStore;
use super::error::{NAME, failed};
use crate::store::StoreError;
use crate::store::sql::statements::Statement;
use crate::store::sql::sweeper::{Sweepable, Sweeper};

impl PostgresStore {
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

impl Sweepable for PostgresStore {
    const NAME: &'static str = NAME;

    async fn sweep_some(&self, batch: u32) -> Result<u64, StoreError> {
        let run = async |statement: &Statement| {
            let query = sqlx::query(statement.text()).bind(i64::from(batch));
            self.execute(query).await.map_err(|error| failed("sweep", error))
        };
        run(&self.sql.put_off).await?;
        run(&self.sql.sweep).await
    }
}
