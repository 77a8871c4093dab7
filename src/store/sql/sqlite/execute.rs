//! The statements that write, with their parameters.

use std::time::Duration;

use futures_util::TryStreamExt;
use sqlx::sqlite::{SqliteArguments, SqliteQueryResult, SqliteRow};
use sqlx::{Either, Executor, Row, Sqlite, SqliteConnection};

use super::statements::Statements;
use crate::store::sql::statements::Statement;
use crate::store::sql::value::{millis, signed};
use crate::store::{ClaimRequest, OnLapse, Slot, Token};

type Query<'q> = sqlx::query::Query<'q, Sqlite, SqliteArguments>;

/// Claims the slot, and returns the attempt number if the claim succeeds.
pub(super) async fn claim(
    connection: &mut SqliteConnection,
    sql: &Statements,
    begin: &ClaimRequest,
) -> Result<Option<i32>, sqlx::Error> {
    // All rows are fetched, although the result has at most one row. `fetch_optional` stops at the
    // first row, and would not report a failure of the commit that follows.
    let query = bind_claim(sqlx::query(sql.claim.once().text()), begin);
    let rows = query.fetch_all(connection).await?;
    rows.first().map(|row| row.try_get(0)).transpose()
}

/// Claims each slot, and returns the attempt number for each claim that succeeds.
pub(super) async fn claims(
    connection: &mut SqliteConnection,
    sql: &Statements,
    begins: &[&ClaimRequest],
) -> Result<Vec<Option<i32>>, sqlx::Error> {
    let mut attempts = Vec::with_capacity(begins.len());
    for (text, begins) in sql.claim.groups(begins) {
        let query = begins
            .iter()
            .fold(sqlx::query(text.text()), |query, begin| bind_claim(query, begin));
        let mut attempt = None;
        each(connection, query, |step| match step {
            Either::Right(row) => row.try_get(0).map(|number| attempt = Some(number)),
            Either::Left(_) => {
                attempts.push(attempt.take());
                Ok(())
            }
        })
        .await?;
    }
    all_of(attempts, begins.len())
}

fn bind_claim<'q>(query: Query<'q>, begin: &'q ClaimRequest) -> Query<'q> {
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
}

/// A record to write for a claim.
pub(super) struct Completion<'j> {
    pub(super) slot: &'j Slot,
    pub(super) token: Token,
    pub(super) record: &'j [u8],
    pub(super) ttl: Duration,
}

/// Writes the record of each held claim, and returns the number of rows that changed for each
/// claim.
pub(super) async fn completions(
    connection: &mut SqliteConnection,
    sql: &Statements,
    all: &[Completion<'_>],
) -> Result<Vec<u64>, sqlx::Error> {
    let mut written = Vec::with_capacity(all.len());
    for (text, group) in sql.complete.groups(all) {
        let query = group.iter().fold(sqlx::query(text.text()), bind_completion);
        each(connection, query, |step| {
            if let Either::Left(result) = step {
                written.push(result.rows_affected());
            }
            Ok(())
        })
        .await?;
    }
    all_of(written, all.len())
}

fn bind_completion<'q>(query: Query<'q>, completion: &Completion<'q>) -> Query<'q> {
    query
        .bind(completion.record)
        .bind(millis(completion.ttl))
        .bind(completion.slot.as_bytes().as_slice())
        .bind(signed(completion.token))
}

/// Runs a text that consists of several statements. For each statement, passes its rows and then
/// its result to `take`.
async fn each(
    connection: &mut SqliteConnection,
    query: Query<'_>,
    mut take: impl FnMut(Either<SqliteQueryResult, SqliteRow>) -> Result<(), sqlx::Error>,
) -> Result<(), sqlx::Error> {
    let mut steps = connection.fetch_many(query);
    while let Some(step) = steps.try_next().await? {
        take(step)?;
    }
    Ok(())
}

/// Returns the answers if each job has an answer. Otherwise, returns an error, because the answers
/// cannot be matched to the jobs.
fn all_of<T>(answers: Vec<T>, jobs: usize) -> Result<Vec<T>, sqlx::Error> {
    match answers.len() == jobs {
        true => Ok(answers),
        false => Err(sqlx::Error::Protocol(
            "the number of results does not match the number of statements".into(),
        )),
    }
}

/// Returns the query that writes the record of a held claim.
pub(super) fn complete<'q>(
    sql: &Statements,
    slot: &'q Slot,
    token: Token,
    record: &'q [u8],
    ttl: Duration,
) -> Query<'q> {
    let completion = Completion {
        slot,
        token,
        record,
        ttl,
    };
    bind_completion(sqlx::query(sql.complete.once().text()), &completion)
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
