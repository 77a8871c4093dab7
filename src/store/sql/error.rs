//! Explains a database's errors to the person on call.

use std::sync::Arc;

use super::lane::Failure;
use crate::error::BoxError;
use crate::store::{StoreError, StoreErrorKind};

/// Explains a database's own errors. Returns the kind of the error and advice on how to fix it.
pub(super) type Advice = fn(&dyn sqlx::error::DatabaseError) -> Option<(StoreErrorKind, &'static str)>;

/// Converts the errors that both databases have in common. `advice` explains the errors that the
/// database itself reported.
pub(super) fn store_error(
    store: &'static str,
    operation: &'static str,
    error: sqlx::Error,
    advice: Advice,
) -> StoreError {
    let (kind, what) = what_happened(&error, advice);
    told(store, operation, kind, what).with_source(error)
}

/// Returns the error for a job that got no answer.
pub(super) fn lane_error(store: &'static str, operation: &'static str, failure: Failure, advice: Advice) -> StoreError {
    use StoreErrorKind::{Timeout, Unavailable};
    let error = |kind, what: &str| told(store, operation, kind, what);
    match failure {
        Failure::Database(source) => {
            let (kind, what) = what_happened(&source, advice);
            // If no other caller shares the error, the source is the error itself.
            error(kind, what).with_source(Arc::try_unwrap(source).map_or_else(BoxError::from, BoxError::from))
        }
        Failure::QueueFull { waiting } => error(
            Unavailable,
            &format!(
                "{waiting} calls are already waiting for the store's own connections; \
                 the database is too slow for the load, or the store needs more connections"
            ),
        )
        .without_effect(),
        Failure::Silent { within } => error(Timeout, &format!("the database did not answer within {within:?}")),
        Failure::Interrupted => error(
            Unavailable,
            "the task that called the database ended early; it panicked, or its Tokio runtime was shut down",
        ),
        Failure::NoRuntime => error(Unavailable, "there is no Tokio runtime; call the store from within one"),
    }
}

fn told(store: &'static str, operation: &'static str, kind: StoreErrorKind, what: &str) -> StoreError {
    StoreError::new(kind, format!("{store}: {operation}: {what}"))
}

fn what_happened(error: &sqlx::Error, advice: Advice) -> (StoreErrorKind, &'static str) {
    use StoreErrorKind::{Corrupt, Unavailable};
    match error {
        sqlx::Error::Database(database) => {
            advice(&**database).unwrap_or((Unavailable, "the database refused the statement"))
        }
        sqlx::Error::Io(_) | sqlx::Error::Protocol(_) => (
            Unavailable,
            "the connection to the database was lost; the next request opens a new one",
        ),
        sqlx::Error::PoolTimedOut => (
            Unavailable,
            "no connection in the pool became free in time; raise `max_connections`, or look for transactions that stay open too long",
        ),
        sqlx::Error::PoolClosed => (
            Unavailable,
            "the pool is closed; keep it open for as long as the layer is in use",
        ),
        sqlx::Error::Tls(_) => (Unavailable, "the TLS connection to the database failed"),
        sqlx::Error::ColumnNotFound(_) | sqlx::Error::ColumnDecode { .. } | sqlx::Error::Decode(_) => (
            Corrupt,
            "the table's layout is not the one that this release expects; compare it with the store's SQL file",
        ),
        _ => (Unavailable, "the database could not be queried"),
    }
}
