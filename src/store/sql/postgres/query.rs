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
        Self::ask_on(Asking::acquire(&self.pool).await?, query).await
    }

    /// Like [`ask_pool`](Self::ask_pool), on a connection that has already been acquired.
    pub(super) async fn ask_on<'q, T>(
        mut connection: Asking<Postgres>,
        query: impl Execute<'q, Postgres> + 'q,
    ) -> Result<T, sqlx::Error>
    where
        T: for<'r> FromRow<'r, PgRow>,
    {
        let rows = connection.fetch_all(query).await;
        connection.answered();
        T::from_row(rows?.first().ok_or(sqlx::Error::RowNotFound)?)
    }
}
