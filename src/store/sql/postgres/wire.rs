//! The store's own connection, and how statements are sent on it.

use std::sync::Arc;
use std::time::Duration;

use sqlx::postgres::PgArguments;
use sqlx::{PgConnection, Postgres};

use super::statements::Statements;
use crate::store::sql::value::millis;

pub(super) type Query<'q> = sqlx::query::Query<'q, Postgres, PgArguments>;

/// A connection, and the statements for the table that was found on it.
pub(super) struct Wire {
    pub(super) connection: PgConnection,
    pub(super) sql: Arc<Statements>,
}

/// Returns milliseconds as the factor of an interval.
#[allow(clippy::cast_precision_loss, reason = "exact up to three hundred thousand years")]
pub(super) fn as_float(duration: Duration) -> f64 {
    millis(duration) as f64
}
