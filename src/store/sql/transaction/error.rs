//! Why a handler's transaction could not begin, or failed.

use std::error::Error as StdError;
use std::fmt;

use sqlx::error::DatabaseError;

/// Why a [`Transaction`](super::Transaction) could not begin or commit, or a statement in it failed.
///
/// In Axum it is a response, whose text says nothing of the database: the log does. A
/// [transient](Self::is_transient) error is `503` with `Retry-After: 1`, every other is `500`. With
/// either status the transaction is rolled back, and by default the key is free.
///
/// A statement that failed is [`as_database_error`](Self::as_database_error), so that a handler can give
/// an answer of its own:
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

/// What sort of failure a [`TransactionError`] is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum TransactionErrorKind {
    /// The database failed, or refused the statement.
    Database,
    /// The [`Work`](super::Work) of an earlier [`Transaction::begin`](super::Transaction::begin) is
    /// still there.
    InUse,
    /// The response has been given already, or the transaction was committed.
    Over,
    /// [`Transaction::abort`](super::Transaction::abort) was called.
    Aborted,
    /// At the commit the transaction was not open any more: a statement of the handler ended it, or a
    /// savepoint was cut off.
    Ended,
}

impl TransactionError {
    pub(super) fn of(kind: TransactionErrorKind) -> Self {
        Self { kind, source: None }
    }

    /// What sort of failure it is.
    #[must_use]
    pub fn kind(&self) -> TransactionErrorKind {
        self.kind
    }

    /// The error of `sqlx`, if the kind is [`Database`](TransactionErrorKind::Database).
    #[must_use]
    pub fn as_sqlx_error(&self) -> Option<&sqlx::Error> {
        self.source.as_ref()
    }

    /// The error that the database itself gave, as for a unique constraint that was violated.
    #[must_use]
    pub fn as_database_error(&self) -> Option<&(dyn DatabaseError + 'static)> {
        self.source.as_ref()?.as_database_error()
    }

    /// Whether the same work may succeed if it is tried again: the database could not be reached, is
    /// shutting down, read-only or out of resources, or a concurrent transaction was in the way.
    ///
    /// Everything else is permanent: a constraint that was violated, a statement that is wrong, a value that
    /// cannot be decoded, or a mistake in how the transaction was used.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        use sqlx::Error as E;
        match &self.source {
            Some(E::Database(error)) => is_transient(&**error),
            Some(E::Io(_) | E::Tls(_) | E::Protocol(_) | E::PoolTimedOut | E::PoolClosed | E::WorkerCrashed) => true,
            _ => false,
        }
    }
}

#[cfg_attr(
    not(all(feature = "postgres", feature = "_sqlite")),
    allow(clippy::needless_bool, reason = "one of the two is left out")
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

/// By PostgreSQL's SQLSTATE ("PostgreSQL Error Codes", appendix A of its manual).
#[cfg(feature = "postgres")]
fn is_transient_state(state: &str) -> bool {
    // Connection exceptions, insufficient resources, errors of the system around the database, shutdowns.
    ["08", "53", "58", "57P0"].iter().any(|class| state.starts_with(class))
        || matches!(
            state,
            // Read-only, idle for too long, serialization failure, deadlock, cancelled or timed out, lock not available.
            "25006" | "25P03" | "40001" | "40P01" | "57014" | "55P03"
        )
}

/// By SQLite's extended result code, whose low byte is the primary code.
#[cfg(feature = "_sqlite")]
fn is_transient_code(code: u32) -> bool {
    const COMMIT_HOOK: u32 = 531;
    // Busy, locked, interrupted, a disk that failed, full, cannot open, a protocol of locks that failed; and
    // what runs after a savepoint was cut off.
    matches!(code & 0xff, 5 | 6 | 9 | 10 | 13 | 14 | 15) || code == COMMIT_HOOK
}

/// For `?` on statements in a handler.
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
            TransactionErrorKind::Database => "the database failed in the operation's transaction",
            TransactionErrorKind::InUse => {
                "the operation's transaction is in use: drop the `Work` of the earlier `begin`, or hand it on"
            }
            TransactionErrorKind::Over => {
                "the operation's transaction is over: it was committed, or the response was given, before this work began"
            }
            TransactionErrorKind::Aborted => "the operation's transaction was aborted: begin no work after `abort`",
            TransactionErrorKind::Ended => {
                "the operation's transaction was ended before its commit: send no `COMMIT` or `ROLLBACK`, and do not drop \
                 the future of a savepoint"
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
    fn what_may_pass_is_told_from_what_stays() {
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
        // Busy, a snapshot that is too old, locked, interrupted, a failed write, full, cannot open, a refused commit.
        for code in [5, 517, 6, 9, 778, 13, 14, 531] {
            assert!(is_transient_code(code), "{code}");
        }
        // A wrong statement, and the constraints: unique, primary key, not null, foreign key.
        for code in [1, 19, 2067, 1555, 1299, 787] {
            assert!(!is_transient_code(code), "{code}");
        }
    }

    #[test]
    fn errors_of_the_connection_may_pass_and_mistakes_stay() {
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
