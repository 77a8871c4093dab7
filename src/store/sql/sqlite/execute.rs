//! The statements that write, with their parameters.

use std::time::Duration;

use futures_util::TryStreamExt;
use sqlx::sqlite::{SqliteArguments, SqliteRow};
use sqlx::{Either, Executor, Row, Sqlite, SqliteConnection};

use super::job::Completion;
use super::statements::{Ends, Repeated, Statements};
use crate::store::sql::statements::Statement;
use crate::store::sql::value::{millis, signed};
use crate::store::{ClaimRequest, OnLapse, Slot, Token};

type Query<'q> = sqlx::query::Query<'q, Sqlite, SqliteArguments>;

/// Claims each slot, and returns the attempt number for each claim that succeeds.
pub(super) async fn claims(
    connection: &mut SqliteConnection,
    sql: &Statements,
    begins: &[&ClaimRequest],
    ends: Ends,
) -> Result<Vec<Option<i32>>, sqlx::Error> {
    let results = each(connection, &sql.claim, begins, ends, |query, begin| {
        let (lease, ttl) = (millis(begin.lease), millis(begin.ttl));
        query
            .bind(begin.slot.as_bytes().as_slice())
            .bind(begin.scope.as_bytes().as_slice())
            .bind(begin.fingerprint.as_bytes().as_slice())
            .bind(signed(begin.token))
            .bind(lease)
            .bind(lease + ttl)
            .bind(lease + ttl)
            .bind(begin.on_lapse == OnLapse::Refuse)
    });
    let attempt = |(row, _): (Option<SqliteRow>, u64)| row.map(|row| row.try_get(0)).transpose();
    results.await?.into_iter().map(attempt).collect()
}

/// Writes the record of each held claim, and returns the number of rows that changed for each
/// claim.
pub(super) async fn completions(
    connection: &mut SqliteConnection,
    sql: &Statements,
    completions: &[&Completion],
    ends: Ends,
) -> Result<Vec<u64>, sqlx::Error> {
    let results = each(connection, &sql.complete, completions, ends, |query, completion| {
        let Completion { slot, token, ttl, .. } = completion;
        bind_complete(query, slot, *token, &completion.record, *ttl)
    });
    Ok(results.await?.into_iter().map(|(_, written)| written).collect())
}

/// Runs a statement for each job, in groups. Returns the row, if any, and the number of changed
/// rows for each job.
///
/// All rows are fetched. A call that stopped at the first row would not report a failure of the
/// commit that follows.
async fn each<'j, T>(
    connection: &mut SqliteConnection,
    statement: &Repeated,
    jobs: &'j [&T],
    ends: Ends,
    bind: impl Fn(Query<'j>, &'j T) -> Query<'j>,
) -> Result<Vec<(Option<SqliteRow>, u64)>, sqlx::Error> {
    let mut results = Vec::with_capacity(jobs.len());
    for group in statement.groups(jobs, ends) {
        let query = group
            .jobs
            .iter()
            .fold(sqlx::query(group.text), |query, job| bind(query, job));
        let mut steps = connection.fetch_many(query);
        let (mut row, mut of_group) = (None, Vec::with_capacity(group.jobs.len() + 2));
        while let Some(step) = steps.try_next().await? {
            match step {
                Either::Right(found) => row = Some(found),
                Either::Left(result) => of_group.push((row.take(), result.rows_affected())),
            }
        }
        let Ends { begins, commits } = group.ends;
        if of_group.len() != group.jobs.len() + usize::from(begins) + usize::from(commits) {
            // The results cannot be matched to the jobs.
            return Err(sqlx::Error::Protocol(
                "the number of results does not match the number of statements".into(),
            ));
        }
        results.extend(of_group.into_iter().skip(usize::from(begins)).take(group.jobs.len()));
    }
    Ok(results)
}

/// Returns the query that writes the record of a held claim.
pub(super) fn complete<'q>(
    sql: &Statements,
    slot: &'q Slot,
    token: Token,
    record: &'q [u8],
    ttl: Duration,
) -> Query<'q> {
    bind_complete(sqlx::query(sql.complete.once().text()), slot, token, record, ttl)
}

fn bind_complete<'q>(query: Query<'q>, slot: &'q Slot, token: Token, record: &'q [u8], ttl: Duration) -> Query<'q> {
    query
        .bind(record)
        .bind(millis(ttl))
        .bind(slot.as_bytes().as_slice())
        .bind(signed(token))
}

/// Returns the query that runs a statement on the rows with the given handles.
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

/// Rolls back a failed transaction. After some errors, such as a full disk, SQLite has already
/// rolled back the transaction itself.
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
