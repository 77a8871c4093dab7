//! Making the table, and checking its layout.

use sqlx::AssertSqlSafe;

use super::error::failed;
use super::{BEGIN, SqliteStore};
use crate::store::StoreError;
use crate::store::sql::claim::trial;

/// The SQL that [`SqliteStore::migrate`] runs.
const LAYOUT: &str = include_str!("table.sql");

impl SqliteStore {
    /// Makes the table if it is missing, and checks its layout. Safe to call from many processes at
    /// once. The same SQL is in `src/store/sql/sqlite/table.sql`.
    ///
    /// # Errors
    ///
    /// The database cannot be opened or written, or a table of that name has another layout.
    pub async fn migrate(&self) -> Result<(), StoreError> {
        let migrate = async {
            // The writer's lock from the start, so that those who migrate at once take turns.
            let mut transaction = self.pool.begin_with(BEGIN).await?;
            let layout = self.table.sql(LAYOUT);
            sqlx::raw_sql(AssertSqlSafe(layout)).execute(&mut *transaction).await?;
            transaction.commit().await
        };
        migrate.await.map_err(|error| failed("migrate", error))?;
        // Finds a table of that name that belongs to something else.
        self.try_out().await.map_err(|error| failed("migrate", error))
    }

    /// Goes through the life of a claim, and undoes it.
    async fn try_out(&self) -> Result<(), sqlx::Error> {
        let begin = trial();
        let mut transaction = self.pool.begin_with(BEGIN).await?;
        self.claim(&begin, &mut *transaction).await?;
        self.completion(&begin.slot, begin.token, &[], begin.ttl)
            .execute(&mut *transaction)
            .await?;
        for statement in [&self.sql.look_up, &self.sql.forget] {
            sqlx::query(statement.text())
                .bind(begin.slot.as_bytes().as_slice())
                .execute(&mut *transaction)
                .await?;
        }
        transaction.rollback().await
    }
}
