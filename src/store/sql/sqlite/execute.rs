//! The statements that write, with their parameters.

use std::time::Duration;

use sqlx::sqlite::SqliteArguments;
use sqlx::{Sqlite, SqliteConnection};

use super::statements::Statements;
use crate::store::sql::statements::Statement;
use crate::store::sql::value::{millis, signed};
use crate::store::{ClaimRequest, OnLapse, Slot, Token};

type Query<'q> = sqlx::query::Query<'q, Sqlite, SqliteArguments>;

/// Claims the slot, and returns the attempt if it succeeds.
pub(super) async fn claim(
    connection: &mut SqliteConnection,
    sql: &Statements,
    begin: &ClaimRequest,
) -> Result<Option<i32>, sqlx::Error> {
    let (lease, ttl) = (millis(begin.lease), millis(begin.ttl));
    // All rows are fetched, although there is at most one: `fetch_optional` ends at the first row,
    // and would not report that the commit after it failed.
    let rows: Vec<i32> = sqlx::query_scalar(sql.claim.text())
        .bind(begin.slot.as_bytes().as_slice())
        .bind(begin.scope.as_bytes().as_slice())
        .bind(begin.fingerprint.as_bytes().as_slice())
        .bind(signed(begin.token))
        .bind(lease)
        .bind(lease + ttl)
        .bind(lease + ttl)
        .bind(begin.on_lapse == OnLapse::Refuse)
        .fetch_all(connection)
        .await?;
    Ok(rows.first().copied())
}

/// Returns the query that writes the record of a held claim.
pub(super) fn complete<'q>(
    sql: &Statements,
    slot: &'q Slot,
    token: Token,
    record: &'q [u8],
    ttl: Duration,
) -> Query<'q> {
    sqlx::query(sql.complete.text())
        .bind(record)
        .bind(millis(ttl))
        .bind(slot.as_bytes().as_slice())
        .bind(signed(token))
}

/// Returns the query of a statement for rows, by their handles.
pub(super) fn of_rows<'q>(statement: &Statement, rows: &[i64]) -> Query<'q> {
    let rows: Vec<_> = rows.iter().map(i64::to_string).collect();
    sqlx::query(statement.text()).bind(format!("[{}]", rows.join(",")))
}

pub(super) async fn rows(connection: &mut SqliteConnection, query: Query<'_>) -> Result<u64, sqlx::Error> {
    Ok(query.execute(connection).await?.rows_affected())
}

pub(super) async fn execute(connection: &mut SqliteConnection, sql: &'static str) -> Result<(), sqlx::Error> {
    sqlx::query(sql).execute(connection).await.map(drop)
}

/// Rolls back a failed transaction. After some errors, such as a full disk, SQLite has already done
/// so itself.
pub(super) async fn roll_back(connection: &mut SqliteConnection) -> Result<(), sqlx::Error> {
    match execute(connection, "ROLLBACK").await {
        Err(sqlx::Error::Database(error)) if error.message().contains("no transaction is active") => Ok(()),
        // The connection cannot be used in this state.
        Err(error) => Err(sqlx::Error::Protocol(format!(
            "the transaction could not be rolled back: {error}"
        ))),
        Ok(()) => Ok(()),
    }
}
