//! What PostgreSQL's errors mean.

use sqlx::error::DatabaseError;

use crate::store::sql::error::store_error;
use crate::store::{StoreError, StoreErrorKind};

/// The store's name in messages.
pub(super) const NAME: &str = "postgres";

pub(super) fn failed(operation: &'static str, error: sqlx::Error) -> StoreError {
    store_error(NAME, operation, error, advice)
}

/// Whether the error is one of the connection, so that another connection may do better.
pub(super) fn is_broken(error: &sqlx::Error) -> bool {
    match error {
        sqlx::Error::Io(_) | sqlx::Error::Protocol(_) => true,
        // Administrator or crash shutdown, cannot connect now.
        sqlx::Error::Database(database) => database.code().is_some_and(|code| code.starts_with("57P0")),
        _ => false,
    }
}

/// Whether a commit that failed with this error may have taken effect all the same.
pub(super) fn leaves_in_doubt(error: &sqlx::Error) -> bool {
    match error {
        // Shutdowns and broken connections may come after the commit was made. So may
        // "statement completion unknown".
        sqlx::Error::Database(database) => database
            .code()
            .is_none_or(|code| code.starts_with("57P") || code.starts_with("08") || code == "40003"),
        _ => true,
    }
}

fn advice(error: &dyn DatabaseError) -> Option<(StoreErrorKind, &'static str)> {
    use StoreErrorKind::{Full, Unavailable};
    Some(match error.code()?.as_ref() {
        "42P01" | "3F000" => (
            Unavailable,
            "the table is missing; run `PostgresStore::migrate` or the SQL file, and check schema and table name",
        ),
        "42703" | "42804" | "42883" | "42P10" | "42809" | "23502" => (
            Unavailable,
            "the table has another layout than this release knows; compare it with the SQL file of the store",
        ),
        "42501" => (
            Unavailable,
            "the role lacks a permission: it needs SELECT, INSERT, UPDATE and DELETE on the table, and CREATE on the schema to migrate",
        ),
        "53100" => (Full, "the database's disk is full"),
        "53200" => (Full, "the database is out of memory"),
        "53300" => (
            Unavailable,
            "the database has no connection left; lower `max_connections` of the pools",
        ),
        "25006" => (
            Unavailable,
            "the database is read-only: a replica, or one that is being failed over; the store needs the primary",
        ),
        "28P01" | "28000" => (Unavailable, "the database refused the role or its password"),
        "3D000" => (Unavailable, "there is no such database"),
        "40001" | "40P01" => (Unavailable, "a concurrent transaction was in the way"),
        "25P02" => (
            Unavailable,
            "a statement of the handler had failed in the transaction, so that it can only be rolled back",
        ),
        "25P03" => (
            Unavailable,
            "the transaction was idle for too long, and the database ended it",
        ),
        "57014" => (
            Unavailable,
            "the statement was cancelled, or took longer than `statement_timeout`",
        ),
        code if code.starts_with("57P") => (Unavailable, "the database is starting or shutting down"),
        code if code.starts_with("23") => (Unavailable, "a constraint was violated as the transaction committed"),
        _ => return None,
    })
}
