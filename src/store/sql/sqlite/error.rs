//! Explains SQLite's errors.

use sqlx::error::DatabaseError;

use crate::store::sql::error::{lane_error, store_error};
use crate::store::sql::lane::Failure;
use crate::store::{StoreError, StoreErrorKind};

/// The store's name in messages.
pub(super) const NAME: &str = "sqlite";

pub(super) fn failed(operation: &'static str, error: sqlx::Error) -> StoreError {
    unsuitable(operation, &error).unwrap_or_else(|| store_error(NAME, operation, error, advice))
}

/// Returns the error for a job that got no answer.
pub(super) fn unanswered(operation: &'static str, failure: Failure) -> StoreError {
    let unsuitable = match &failure {
        Failure::Database(error) => unsuitable(operation, error),
        _ => None,
    };
    unsuitable.unwrap_or_else(|| lane_error(NAME, operation, failure, advice))
}

/// Returns the error for a database that the store cannot use. The error includes the reason.
fn unsuitable(operation: &'static str, error: &sqlx::Error) -> Option<StoreError> {
    match error {
        sqlx::Error::Configuration(why) => {
            let message = format!("{NAME}: {operation}: {why}");
            Some(StoreError::new(StoreErrorKind::Unavailable, message))
        }
        _ => None,
    }
}

fn advice(error: &dyn DatabaseError) -> Option<(StoreErrorKind, &'static str)> {
    use StoreErrorKind::{Corrupt, Full, Unavailable};
    // The primary code is the low byte of the extended code.
    let code: i32 = error.code()?.parse().ok()?;
    Some(match code & 0xff {
        1 if error.message().contains("no such table") => (
            Unavailable,
            "the table is missing; run `SqliteStore::migrate` or the SQL file, and check the table name",
        ),
        1 if ["column", "ON CONFLICT"]
            .iter()
            .any(|word| error.message().contains(word)) =>
        {
            (
                Unavailable,
                "the table's layout is not the one that this release expects; compare it with the store's SQL file",
            )
        }
        // The table has a required column that this release does not recognize.
        19 if code == 1299 => (
            Unavailable,
            "the table's layout is not the one that this release expects; compare it with the store's SQL file",
        ),
        3 | 23 => (Unavailable, "access to the database file is denied"),
        5 | 6 => (
            Unavailable,
            "another writer held the database for longer than the busy timeout; begin transactions later and end them sooner",
        ),
        8 => (
            Unavailable,
            "the database is read-only; check the permissions of the file and its directory",
        ),
        10 => (
            Unavailable,
            "the disk failed, or the file system does not support what SQLite needs",
        ),
        11 | 26 => (Corrupt, "the file is damaged, or is not an SQLite database"),
        13 => (Full, "the disk is full, or the database has reached its size limit"),
        14 => (
            Unavailable,
            "the database file cannot be opened; check its path and permissions",
        ),
        19 => (Unavailable, "a constraint was violated when the transaction committed"),
        _ => return None,
    })
}
