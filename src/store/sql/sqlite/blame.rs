//! Determines what is to blame for an SQLite error.

use crate::store::sql::lane::Blame;

/// Returns SQLite's extended result code. The low byte is the primary code.
pub(super) fn code(error: &sqlx::Error) -> Option<i32> {
    error.as_database_error()?.code()?.parse().ok()
}

/// Returns whether another connection holds the lock that the statement waited for.
pub(super) fn is_busy(error: &sqlx::Error) -> bool {
    matches!(code(error).map(|code| code & 0xff), Some(5 | 6))
}

pub(super) fn blame(error: &sqlx::Error) -> Blame {
    use sqlx::Error::{Io, Protocol, WorkerCrashed};
    const CANTOPEN: i32 = 14;
    const IOERR: i32 = 10;
    const MISUSE: i32 = 21;
    /// The file was moved or replaced while the connection was open.
    const READONLY_DBMOVED: i32 = 1032;
    match code(error) {
        Some(READONLY_DBMOVED) => Blame::Connection,
        Some(code) if matches!(code & 0xff, IOERR | CANTOPEN | MISUSE) => Blame::Connection,
        Some(_) => Blame::Job,
        None if matches!(error, Io(_) | Protocol(_) | WorkerCrashed) => Blame::Connection,
        None => Blame::Job,
    }
}
