//! A connection of the store, and the types that its statements need.

use std::sync::Arc;
use std::time::Duration;

use sqlx::postgres::PgArguments;
use sqlx::{PgConnection, Postgres};

use super::statements::Statements;
use crate::store::sql::value::millis;

pub(super) type Query<'q> = sqlx::query::Query<'q, Postgres, PgArguments>;

/// A connection, and the statements for the table that the store found.
pub(super) struct Wire {
    pub(super) connection: PgConnection,
    pub(super) sql: Arc<Statements>,
}

/// Converts a duration to milliseconds. The statements multiply the result by an interval of 1 ms.
#[allow(clippy::cast_precision_loss, reason = "exact up to three hundred thousand years")]
pub(super) fn as_float(duration: Duration) -> f64 {
    millis(duration) as f64
}
