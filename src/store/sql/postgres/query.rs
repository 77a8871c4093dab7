//! Uses a connection from the application's pool to run statements that may take a while.

use sqlx::postgres::PgRow;
use sqlx::{Execute, Executor, FromRow, Postgres};

use super::PostgresStore;
use crate::store::sql::asking::Asking;

impl PostgresStore {
    /// Runs a statement that returns one row.
    pub(super) async fn ask_pool<'q, T>(&self, query: impl Execute<'q, Postgres> + 'q) -> Result<T, sqlx::Error>
    where
        T: for<'r> FromRow<'r, PgRow>,
    {
        let mut connection = Asking::acquire(&self.pool).await?;
        let rows = connection.fetch_all(query).await;
        connection.answered();
        T::from_row(rows?.first().ok_or(sqlx::Error::RowNotFound)?)
    }
}
