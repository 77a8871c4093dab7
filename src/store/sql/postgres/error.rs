//! Explains PostgreSQL's errors.

use sqlx::error::DatabaseError;
use sqlx::postgres::PgDatabaseError;

use crate::store::sql::error::{lane_error, store_error};
use crate::store::sql::lane::{Blame, Failure};
use crate::store::{StoreError, StoreErrorKind};

/// The store's name in messages.
pub(super) const NAME: &str = "postgres";

pub(super) fn failed(operation: &'static str, error: sqlx::Error) -> StoreError {
    store_error(NAME, operation, error, advice)
}

/// The reason not to use a pooler that does not keep prepared statements.
pub(super) const NO_STATEMENTS: &str = "the connection pooler does not keep prepared statements; use PgBouncer 1.21 or later with `max_prepared_statements` above 0, or use session mode";

pub(super) fn unanswered(operation: &'static str, failure: Failure) -> StoreError {
    match &failure {
        Failure::Database(error) if let sqlx::Error::Configuration(why) = &**error => {
            StoreError::new(StoreErrorKind::Unavailable, format!("{NAME}: {operation}: {why}"))
        }
        _ => lane_error(NAME, operation, failure, advice),
    }
}

/// Returns whether the statement failed because another transaction holds a lock that the statement
/// needs.
pub(super) fn is_locked(error: &sqlx::Error) -> bool {
    matches!(error, sqlx::Error::Database(database) if database.code().is_some_and(|code| code == "55P03"))
}

/// Returns whether a claim failed because somebody holds a lock on the whole table. When a claim
/// waits for a row, PostgreSQL reports the row as the context of the error.
pub(super) fn is_table_locked(error: &sqlx::Error) -> bool {
    let sqlx::Error::Database(error) = error else {
        return false;
    };
    error
        .try_downcast_ref::<PgDatabaseError>()
        .is_some_and(|error| error.code() == "55P03" && error.r#where().is_none())
}

/// Returns whether the role lacks a permission.
pub(super) fn is_forbidden(error: &sqlx::Error) -> bool {
    matches!(error, sqlx::Error::Database(database) if database.code().is_some_and(|code| code == "42501"))
}

/// Returns what is to blame for a lane's error. `unpin` forgets the table that was found, and
/// returns whether a table had been found.
pub(super) fn blame(error: &sqlx::Error, unpin: impl Fn() -> bool) -> Blame {
    let code = match error {
        sqlx::Error::Database(database) => database.code(),
        sqlx::Error::Configuration(_)
        | sqlx::Error::PoolClosed
        | sqlx::Error::Decode(_)
        | sqlx::Error::ColumnDecode { .. }
        | sqlx::Error::ColumnNotFound(_) => return Blame::Job,
        _ => return Blame::Connection,
    };
    match code.as_deref() {
        Some("40001" | "40P01") => Blame::Timing,
        // The table was moved or recreated. The next connection searches for the table again.
        Some("42P01" | "3F000") if unpin() => Blame::Connection,
        // The job's errors: a locked row; not enough memory or disk space; a problem with the
        // value, a constraint, the statement, a permission, the role or the database; a
        // cancellation by a user or by `statement_timeout`.
        Some("55P03" | "53100" | "53200" | "57014" | "3D000") => Blame::Job,
        Some(code)
            if ["22", "23", "28", "42", "54", "3F"]
                .iter()
                .any(|class| code.starts_with(class)) =>
        {
            Blame::Job
        }
        // The connection is to blame for every other error: the server closed the connection,
        // became read-only or lost a prepared statement, or a transaction on the connection has
        // failed.
        _ => Blame::Connection,
    }
}

fn advice(error: &dyn DatabaseError) -> Option<(StoreErrorKind, &'static str)> {
    use StoreErrorKind::{Full, Unavailable};
    Some(match error.code()?.as_ref() {
        "42P01" | "3F000" => (
            Unavailable,
            "the table is missing; run `PostgresStore::migrate` or the SQL file, and check the schema and the table name",
        ),
        "42703" | "42804" | "42883" | "42P10" | "42809" | "23502" => (
            Unavailable,
            "the table's layout is not the one that this release expects; compare it with the store's SQL file",
        ),
        "42501" => (
            Unavailable,
            "the role lacks a permission; it needs SELECT, INSERT, UPDATE and DELETE on the table, and CREATE on the schema to migrate",
        ),
        "55P03" => (
            Unavailable,
            "another session has locked the table or the row; look for LOCK TABLE, ALTER TABLE, VACUUM FULL, or CREATE INDEX without CONCURRENTLY",
        ),
        "53100" => (Full, "the database's disk is full"),
        "53200" => (Full, "the database is out of memory"),
        "53300" => (
            Unavailable,
            "the database has no connections left; lower the pools' `max_connections`",
        ),
        "25006" => (
            Unavailable,
            "the database is read-only, because it is a replica or a failover is in progress; connect to the primary",
        ),
        "28P01" | "28000" => (Unavailable, "the database refused the role or its password"),
        "3D000" => (Unavailable, "there is no such database"),
        "26000" | "42P05" => (Unavailable, NO_STATEMENTS),
        "08P01" => (
            Unavailable,
            "a pooler or proxy does not accept the connection's parameters; PgBouncer needs `ignore_startup_parameters = extra_float_digits`, or `extra_float_digits(None)` in the connect options",
        ),
        "40001" | "40P01" => (Unavailable, "a concurrent transaction conflicted with this one"),
        "25P02" => (
            Unavailable,
            "an earlier statement of the handler failed, so the transaction can only be rolled back",
        ),
        "25P03" => (
            Unavailable,
            "the transaction was idle for too long, so the database ended it",
        ),
        "57014" => (
            Unavailable,
            "the statement was cancelled, or took longer than `statement_timeout`",
        ),
        code if code.starts_with("57P") => (Unavailable, "the database is starting or shutting down"),
        code if code.starts_with("23") => (Unavailable, "a constraint was violated when the transaction committed"),
        _ => return None,
    })
}
