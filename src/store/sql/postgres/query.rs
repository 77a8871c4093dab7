//! Running statements on a connection of the pool.

use std::time::Duration;

use sqlx::postgres::{PgArguments, PgRow};
use sqlx::{FromRow, Postgres};

use super::PostgresStore;
use super::error::failed;
use crate::store::sql::asking::Asking;
use crate::store::sql::value::{held, millis};
use crate::store::{Held, StoreError};

pub(super) type Query<'q> = sqlx::query::Query<'q, Postgres, PgArguments>;

impl PostgresStore {
    /// Runs a statement that answers with at most one row.
    pub(super) async fn ask<T>(&self, query: Query<'_>) -> Result<Option<T>, sqlx::Error>
    where
        T: for<'r> FromRow<'r, PgRow>,
    {
        let mut connection = Asking::acquire(&self.pool).await?;
        let row = query.fetch_optional(&mut *connection).await;
        connection.answered();
        row?.map(|row| T::from_row(&row)).transpose()
    }

    /// Runs a statement that answers with no row, and says how many rows it changed.
    pub(super) async fn execute(&self, query: Query<'_>) -> Result<u64, sqlx::Error> {
        let mut connection = Asking::acquire(&self.pool).await?;
        let result = query.execute(&mut *connection).await;
        connection.answered();
        Ok(result?.rows_affected())
    }

    /// Runs a statement that changes a claim, and says whether it did.
    pub(super) async fn change(&self, operation: &'static str, query: Query<'_>) -> Result<Held, StoreError> {
        let changed = self.execute(query).await;
        changed.map(held).map_err(|error| failed(operation, error))
    }
}

/// The row of a statement that always answers with one.
pub(super) fn one<T>(row: Option<T>) -> Result<T, sqlx::Error> {
    row.ok_or(sqlx::Error::RowNotFound)
}

/// Milliseconds as a factor of an interval.
#[allow(clippy::cast_precision_loss, reason = "exact up to three hundred thousand years")]
pub(super) fn as_float(duration: Duration) -> f64 {
    millis(duration) as f64
}
