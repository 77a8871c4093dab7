//! Statements that may take a while, on a connection of the application's pool.

use std::time::Duration;

use sqlx::postgres::{PgArguments, PgRow};
use sqlx::{Execute, Executor, FromRow, Postgres};

use super::PostgresStore;
use crate::store::sql::asking::Asking;
use crate::store::sql::value::millis;

pub(super) type Query<'q> = sqlx::query::Query<'q, Postgres, PgArguments>;

impl PostgresStore {
    /// Runs a statement that answers with one row.
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

/// Milliseconds as a factor of an interval.
#[allow(clippy::cast_precision_loss, reason = "exact up to three hundred thousand years")]
pub(super) fn as_float(duration: Duration) -> f64 {
    millis(duration) as f64
}
