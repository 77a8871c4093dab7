//! The error for a handler's transaction that could not begin, or that failed.

use std::error::Error as StdError;
use std::fmt;

use sqlx::error::DatabaseError;

use crate::store::sql::guarded::Guarded;

/// The error from a [`Transaction`](super::Transaction) that could not begin or commit, or from a
/// failed statement in a transaction.
///
/// In Axum, a handler can return the error as its response. The response text does not contain the
/// database's error, but the log does. A [transient](Self::is_transient) error becomes a `503` with
/// `Retry-After: 1`. Every other error becomes a `500`. With either status, the transaction is
/// rolled back and, by default, the key is released. The exception is an error after which the
/// handler's own transaction [may have been committed](Self::may_be_committed). This error becomes
/// a `500` with [`Verdict::Reopen`](crate::Verdict::Reopen), so a retry is the operation's next
/// attempt.
///
/// If a statement failed, [`as_database_error`](Self::as_database_error) returns the database's
/// error, so that a handler can return its own response:
///
/// ```
/// # #[cfg(all(feature = "axum", feature = "postgres"))]
/// # mod example {
/// use axum::http::StatusCode;
/// use sqlx::Postgres;
/// use tower_idempotency::store::sql::{Transaction, TransactionError};
///
/// async fn register(transaction: Transaction<Postgres>) -> Result<StatusCode, TransactionError> {
///     let inserted = async {
///         let mut work = transaction.begin().await?;
///         let insert = sqlx::query("INSERT INTO users (email) VALUES ('jane@example.com')");
///         insert.execute(&mut *work).await?;
///         Ok::<_, TransactionError>(())
///     };
///     match inserted.await {
///         Ok(()) => Ok(StatusCode::CREATED),
///         Err(error) if error.as_database_error().is_some_and(|error| error.is_unique_violation()) => {
///             Ok(StatusCode::CONFLICT)
///         }
///         Err(error) => Err(error),
///     }
/// }
/// # }
/// ```
#[derive(Debug)]
pub struct TransactionError {
    kind: TransactionErrorKind,
    source: Option<sqlx::Error>,
}

/// The kind of a [`TransactionError`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum TransactionErrorKind {
    /// The database failed, or refused the statement.
    Database,
    /// [`Transaction::commit`](super::Transaction::commit) sent `COMMIT`, but the connection was
    /// lost before the answer arrived. Either everything or nothing was committed.
    OutcomeUnknown,
    /// The [`Work`](super::Work) from an earlier [`Transaction::begin`](super::Transaction::begin)
    /// still exists.
    InUse,
    /// The handler has already returned its response, or the transaction was committed.
    Over,
    /// [`Transaction::abort`](super::Transaction::abort) was called.
    Aborted,
    /// At commit, the transaction was no longer open: one of the handler's statements ended it, or
    /// a savepoint's future was dropped while it was waiting.
    Ended,
}

impl TransactionError {
    pub(super) fn of(kind: TransactionErrorKind) -> Self {
        Self { kind, source: None }
    }

    /// The error of a failed `COMMIT`.
    pub(super) fn of_commit<DB: Guarded>(error: sqlx::Error) -> Self {
        let kind = if DB::leaves_in_doubt(&error) {
            TransactionErrorKind::OutcomeUnknown
        } else {
            TransactionErrorKind::Database
        };
        Self {
            kind,
            source: Some(error),
        }
    }

    /// Returns the kind of the error.
    #[must_use]
    pub fn kind(&self) -> TransactionErrorKind {
        self.kind
    }

    /// Returns the `sqlx` error if the kind is [`Database`](TransactionErrorKind::Database) or
    /// [`OutcomeUnknown`](TransactionErrorKind::OutcomeUnknown).
    #[must_use]
    pub fn as_sqlx_error(&self) -> Option<&sqlx::Error> {
        self.source.as_ref()
    }

    /// Returns the error that the database itself reported, such as a violated unique constraint.
    #[must_use]
    pub fn as_database_error(&self) -> Option<&(dyn DatabaseError + 'static)> {
        self.source.as_ref()?.as_database_error()
    }

    /// Returns whether the handler's [`own`](super::Transaction::own) transaction may have been
    /// committed even so: the connection was lost during the commit, or the transaction had already
    /// ended.
    ///
    /// Check what the database contains before you run the work again.
    #[must_use]
    pub fn may_be_committed(&self) -> bool {
        use TransactionErrorKind::{Aborted, Database, Ended, InUse, OutcomeUnknown, Over};
        match self.kind {
            OutcomeUnknown | Ended | Over => true,
            Database | InUse | Aborted => false,
        }
    }

    /// Returns whether the same work may succeed on a retry. It may if the database could not be
    /// reached, is shutting down, is read-only or is out of resources, or if a concurrent
    /// transaction conflicted with this one.
    ///
    /// Every other error is permanent: a violated constraint, an invalid statement, a value that
    /// cannot be decoded, or a mistake in how the transaction was used. An error after which the
    /// work [may have been committed](Self::may_be_committed) is not transient either.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        use sqlx::Error as E;
        if self.may_be_committed() {
            return false;
        }
        match &self.source {
            Some(E::Database(error)) => is_transient(&**error),
            Some(E::Io(_) | E::Tls(_) | E::Protocol(_) | E::PoolTimedOut | E::PoolClosed | E::WorkerCrashed) => true,
            _ => false,
        }
    }
}

#[cfg_attr(
    not(all(feature = "postgres", feature = "_sqlite")),
    allow(clippy::needless_bool, reason = "one of the two databases is left out")
)]
fn is_transient(error: &dyn DatabaseError) -> bool {
    #[cfg(feature = "postgres")]
    if let Some(error) = error.try_downcast_ref::<sqlx::postgres::PgDatabaseError>() {
        return is_transient_state(error.code());
    }
    #[cfg(feature = "_sqlite")]
    if let Some(error) = error.try_downcast_ref::<sqlx::sqlite::SqliteError>() {
        return error
            .code()
            .and_then(|code| code.parse().ok())
            .is_some_and(is_transient_code);
    }
    let _ = error;
    false
}

/// Returns whether a PostgreSQL SQLSTATE denotes a transient error ("PostgreSQL Error Codes",
/// appendix A of the PostgreSQL manual).
#[cfg(feature = "postgres")]
fn is_transient_state(state: &str) -> bool {
    // Connection exceptions, insufficient resources, system errors outside the database, shutdowns.
    ["08", "53", "58", "57P0"].iter().any(|class| state.starts_with(class))
        || matches!(
            state,
            // Read-only, idle for too long, serialization failure, deadlock, cancelled or timed
            // out, lock not available.
            "25006" | "25P03" | "40001" | "40P01" | "57014" | "55P03"
        )
}

/// Returns whether an extended result code of SQLite denotes a transient error. Its low byte is the
/// primary code.
#[cfg(feature = "_sqlite")]
fn is_transient_code(code: u32) -> bool {
    const COMMIT_HOOK: u32 = 531;
    // Busy, locked, interrupted, disk failure, full, cannot open, lock protocol failure, and
    // statements that run after a savepoint's future was dropped.
    matches!(code & 0xff, 5 | 6 | 9 | 10 | 13 | 14 | 15) || code == COMMIT_HOOK
}

/// Lets a handler use `?` on the results of statements.
impl From<sqlx::Error> for TransactionError {
    fn from(error: sqlx::Error) -> Self {
        Self {
            kind: TransactionErrorKind::Database,
            source: Some(error),
        }
    }
}

impl fmt::Display for TransactionError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.kind {
            TransactionErrorKind::Database => "a database error occurred in the operation's transaction",
            TransactionErrorKind::OutcomeUnknown => {
                "the connection was lost during the transaction's commit, so the writes may have been committed; check \
                 the database before you run the operation again"
            }
            TransactionErrorKind::InUse => {
                "the operation's transaction is in use; drop the `Work` from the earlier `begin`, or pass it on"
            }
            TransactionErrorKind::Over => {
                "the operation's transaction is over; it was committed, or the response was returned, before this work \
                 began"
            }
            TransactionErrorKind::Aborted => {
                "the operation's transaction was aborted; do not call `begin` after `abort`"
            }
            TransactionErrorKind::Ended => {
                "the operation's transaction ended before its commit; do not send `COMMIT` or `ROLLBACK`, and do not \
                 drop the future of a savepoint"
            }
        })
    }
}

impl StdError for TransactionError {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.source.as_ref().map(|source| source as _)
    }
}

#[cfg(all(test, feature = "postgres", feature = "_sqlite"))]
mod tests {
    use super::*;

    #[test]
    fn transient_codes_are_told_from_permanent_ones() {
        for state in [
            "08006", "53100", "58030", "57P01", "57P03", "25006", "25P03", "40001", "40P01", "57014", "55P03",
        ] {
            assert!(is_transient_state(state), "{state}");
        }
        for state in [
            "23505", "23503", "22001", "42601", "42P01", "25P02", "40002", "P0001", "0A000",
        ] {
            assert!(!is_transient_state(state), "{state}");
        }
        // Busy, outdated snapshot, locked, interrupted, failed write, full, cannot open, refused
        // commit.
        for code in [5, 517, 6, 9, 778, 13, 14, 531] {
            assert!(is_transient_code(code), "{code}");
        }
        // An invalid statement, and the constraints: unique, primary key, not null, foreign key.
        for code in [1, 19, 2067, 1555, 1299, 787] {
            assert!(!is_transient_code(code), "{code}");
        }
    }

    #[test]
    fn connection_errors_are_transient_and_mistakes_are_permanent() {
        for error in [
            sqlx::Error::PoolTimedOut,
            sqlx::Error::PoolClosed,
            sqlx::Error::WorkerCrashed,
        ] {
            assert!(TransactionError::from(error).is_transient());
        }
        for error in [sqlx::Error::RowNotFound, sqlx::Error::ColumnNotFound("cents".into())] {
            assert!(!TransactionError::from(error).is_transient());
        }
        assert!(!TransactionError::of(TransactionErrorKind::InUse).is_transient());
    }
}
