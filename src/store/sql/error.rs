//! What a database's errors mean to the person on call.

use crate::store::{StoreError, StoreErrorKind};

/// What both databases have in common. `advice` is for the errors that the database itself gave.
pub(super) fn store_error(
    store: &'static str,
    operation: &'static str,
    error: sqlx::Error,
    advice: impl FnOnce(&dyn sqlx::error::DatabaseError) -> Option<(StoreErrorKind, &'static str)>,
) -> StoreError {
    use StoreErrorKind::{Corrupt, Unavailable};
    let (kind, what) = match &error {
        sqlx::Error::Database(database) => {
            advice(&**database).unwrap_or((Unavailable, "the database refused the statement"))
        }
        sqlx::Error::Io(_) | sqlx::Error::Protocol(_) => (
            Unavailable,
            "the connection to the database was lost; it is made again with the next request",
        ),
        sqlx::Error::PoolTimedOut => (
            Unavailable,
            "no connection of the pool became free in time; raise `max_connections`, or look for transactions that are held too long",
        ),
        sqlx::Error::PoolClosed => (
            Unavailable,
            "the pool is closed; the store needs it for as long as the layer lives",
        ),
        sqlx::Error::Tls(_) => (Unavailable, "TLS with the database failed"),
        sqlx::Error::ColumnNotFound(_) | sqlx::Error::ColumnDecode { .. } | sqlx::Error::Decode(_) => (
            Corrupt,
            "the table has another layout than this release knows; compare it with the SQL file of the store",
        ),
        _ => (Unavailable, "the database could not be asked"),
    };
    StoreError::new(kind, format!("{store}: {operation}: {what}")).with_source(error)
}
