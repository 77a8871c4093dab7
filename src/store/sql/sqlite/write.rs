//! Writes on the store's own connection, in turns with handlers' transactions.

use std::sync::Arc;

use sqlx::{Connection, SqliteConnection};
use tokio::time::Instant;

use super::blame::{blame, is_busy};
use super::execute::{claims, completions, execute, of_rows, roll_back, rows};
use super::file::{BEGIN, File};
use super::job::{Answer, Completion, Write, Written};
use super::read::read;
use super::statements::Statements;
use crate::store::sql::lane::{Blame, Driver};
use crate::store::sql::turns::{Turn, Turns};
use crate::store::sql::value::{millis, signed};
use crate::store::{Slot, Token};

/// The maximum total size of the records in one transaction, in bytes. The limit keeps the
/// transaction short.
const MOST_BYTES: usize = 1024 * 1024;

/// The driver that writes on the store's own connection.
pub(super) struct Writing {
    pub(super) file: Arc<File>,
    pub(super) sql: Arc<Statements>,
}

/// The connection that writes.
pub(super) struct Writer {
    connection: SqliteConnection,
    /// The turn, which is kept while a statement may be running. If the call is dropped, the turn
    /// stays with the connection and ends when the connection closes.
    turn: Option<Turn>,
}

impl Driver for Writing {
    type Connection = Writer;
    type Job = Write;
    type Answer = Answer;

    const NAME: &'static str = "sqlite-write";

    async fn connect(&self) -> Result<Writer, sqlx::Error> {
        let connection = self.file.connect().await?;
        Ok(Writer { connection, turn: None })
    }

    /// A transaction for many jobs stays short, because it writes few bytes and removes few rows. A
    /// sweep that shares a transaction does not need a separate commit.
    fn joins(job: &Write, batch: &[Write]) -> bool {
        let is_alone = |job: &Write| matches!(job, Write::ForgetScope(..));
        let sweeps = |job: &Write| matches!(job, Write::Sweep { .. });
        let bytes = |job: &Write| match job {
            Write::Complete(completion) => completion.record.len(),
            _ => 0,
        };
        let takes_long = is_alone(job) || batch.iter().any(is_alone) || (sweeps(job) && batch.iter().any(sweeps));
        !takes_long && bytes(job) + batch.iter().map(bytes).sum::<usize>() <= MOST_BYTES
    }

    async fn ready(&self, writer: &mut Writer) {
        if writer.turn.is_none()
            && let Some(turns) = self.file.turns()
        {
            writer.turn = Some(turns.next().await);
        }
    }

    fn is_ready(&self, writer: &mut Writer) -> bool {
        if writer.turn.is_none() {
            writer.turn = self.file.turns().and_then(Turns::at_once);
        }
        writer.turn.is_some()
    }

    fn rest(writer: &mut Writer) {
        writer.turn = None;
    }

    async fn run(&self, writer: &mut Writer, jobs: &[Write]) -> Result<Vec<Answer>, sqlx::Error> {
        self.ready(writer).await;
        let answers = self.write(&mut writer.connection, jobs).await;
        writer.turn = None;
        match answers {
            // Another process is writing. That process blocks all jobs alike, so retrying the jobs
            // one by one would not help.
            Err(error) if is_busy(&error) => {
                let error = Arc::new(error);
                Ok(jobs.iter().map(|_| Err(Arc::clone(&error))).collect())
            }
            answers => answers,
        }
    }

    fn blame(&self, error: &sqlx::Error) -> Blame {
        blame(error)
    }

    fn repeat(job: &mut Write) {
        if let Write::Complete(Completion { again, .. }) | Write::Release { again, .. } = job {
            *again = true;
        }
    }

    async fn close(writer: Writer) {
        // Running statements finish first.
        let _ = writer.connection.close().await;
        drop(writer.turn);
    }
}

impl Writing {
    /// Runs the jobs. A single job does not need a transaction, because it is usually one
    /// statement.
    async fn write(&self, connection: &mut SqliteConnection, jobs: &[Write]) -> Result<Vec<Answer>, sqlx::Error> {
        // `IsDone` needs a transaction, because `BEGIN` takes the writer's lock and so waits for
        // any transaction that may still be committed.
        if let [job] = jobs
            && !matches!(job, Write::IsDone(..))
        {
            return self.all(connection, jobs).await;
        }
        execute(connection, BEGIN).await?;
        let answers = match self.all(connection, jobs).await {
            Ok(answers) => execute(connection, "COMMIT").await.map(|()| answers),
            Err(error) => Err(error),
        };
        if answers.is_err() {
            roll_back(connection).await?;
        }
        answers
    }

    /// Runs the jobs on the connection. Jobs from claim holders run first, because a renewal must
    /// not run after another claim has taken over the slot, nor after the claim's own record.
    async fn all(&self, connection: &mut SqliteConnection, jobs: &[Write]) -> Result<Vec<Answer>, sqlx::Error> {
        let mut written = Vec::with_capacity(jobs.len());
        for job in jobs {
            written.push(self.one(connection, job).await?);
        }
        let mut completed = self.completions(connection, jobs).await?.into_iter();
        let mut claimed = self.claims(connection, jobs).await?.into_iter();
        let answers = jobs.iter().zip(written).filter_map(|(job, written)| match job {
            Write::Claim(_) => claimed.next(),
            Write::Complete(_) => completed.next(),
            _ => written,
        });
        Ok(answers.map(Ok).collect())
    }

    async fn completions(
        &self,
        connection: &mut SqliteConnection,
        jobs: &[Write],
    ) -> Result<Vec<Written>, sqlx::Error> {
        let all = jobs.iter().filter_map(|job| match job {
            Write::Complete(completion) => Some(completion),
            _ => None,
        });
        let all: Vec<_> = all.collect();
        let counts = completions(connection, &self.sql, &all).await?;
        let mut written = Vec::with_capacity(all.len());
        for (completion, rows) in all.into_iter().zip(counts) {
            let Completion { slot, token, again, .. } = completion;
            let is_done = rows == 0 && *again && self.is_done(connection, slot, *token).await?;
            written.push(Written::Rows(if is_done { 1 } else { rows }));
        }
        Ok(written)
    }

    async fn claims(&self, connection: &mut SqliteConnection, jobs: &[Write]) -> Result<Vec<Written>, sqlx::Error> {
        let begins = jobs.iter().filter_map(|job| match job {
            Write::Claim(begin) => Some(begin),
            _ => None,
        });
        let begins: Vec<_> = begins.collect();
        let attempts = claims(connection, &self.sql, &begins).await?;
        let mut written = Vec::with_capacity(begins.len());
        for (begin, attempt) in begins.into_iter().zip(attempts) {
            written.push(match attempt {
                Some(attempt) => Written::Claimed(attempt),
                None => Written::Taken(read(connection, &self.sql, &begin.slot, &begin.fingerprint).await?),
            });
        }
        Ok(written)
    }

    /// Runs a job that is sent on its own. Returns `None` for claims and records, which are sent in
    /// groups.
    async fn one(&self, connection: &mut SqliteConnection, job: &Write) -> Result<Option<Written>, sqlx::Error> {
        Ok(Some(match job {
            Write::Claim(_) | Write::Complete(_) => return Ok(None),
            Write::Renew(slot, token, lease) => {
                let renew = sqlx::query(self.sql.renew.text())
                    .bind(millis(*lease))
                    .bind(millis(*lease))
                    .bind(slot.as_bytes().as_slice())
                    .bind(signed(*token));
                Written::Rows(rows(connection, renew).await?)
            }
            Write::Release { slot, token, again } => {
                let release = sqlx::query(self.sql.release.text())
                    .bind(slot.as_bytes().as_slice())
                    .bind(signed(*token));
                let written = rows(connection, release).await?;
                // If the claim is not held any more, either the first attempt released the claim,
                // or another claim took over the slot.
                Written::Rows(if *again { 1 } else { written })
            }
            Write::Forget(slot) => {
                // All rows are fetched, as for a claim.
                let known: Vec<bool> = sqlx::query_scalar(self.sql.forget.text())
                    .bind(slot.as_bytes().as_slice())
                    .fetch_all(connection)
                    .await?;
                Written::Is(known == [true])
            }
            Write::IsDone(slot, token) => Written::Is(self.is_done(connection, slot, *token).await?),
            Write::Sweep { forgotten, others } => {
                let began = Instant::now();
                if !others.is_empty() {
                    rows(connection, of_rows(&self.sql.put_off, others)).await?;
                }
                let removed = match forgotten[..] {
                    [] => 0,
                    _ => rows(connection, of_rows(&self.sql.remove, forgotten)).await?,
                };
                Written::Swept {
                    rows: removed,
                    took: began.elapsed(),
                }
            }
            Write::ForgetScope(scope, most) => {
                let counted: Vec<bool> = sqlx::query_scalar(self.sql.forget_scope.text())
                    .bind(scope.as_bytes().as_slice())
                    .bind(most)
                    .fetch_all(connection)
                    .await?;
                Written::Forgotten {
                    rows: counted.len(),
                    counted: counted.iter().filter(|counts| **counts).count() as u64,
                }
            }
        }))
    }

    async fn is_done(&self, connection: &mut SqliteConnection, slot: &Slot, token: Token) -> Result<bool, sqlx::Error> {
        let done: Option<bool> = sqlx::query_scalar(self.sql.is_done.text())
            .bind(signed(token))
            .bind(slot.as_bytes().as_slice())
            .fetch_optional(connection)
            .await?;
        Ok(done == Some(true))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::store::ScopeTag;

    #[test]
    fn what_shares_a_transaction_keeps_it_short() {
        let slot = Slot::from_bytes([1; Slot::LEN]);
        let renew = Write::Renew(slot, Token(1), Duration::ZERO);
        let complete = |bytes| {
            Write::Complete(Completion {
                slot,
                token: Token(1),
                record: Arc::new(vec![0; bytes]),
                ttl: Duration::ZERO,
                again: false,
            })
        };
        let sweep = Write::Sweep {
            forgotten: vec![1],
            others: vec![2],
        };
        let scope = Write::ForgetScope(ScopeTag::default(), 1);
        for (job, batch, joins) in [
            (&renew, vec![renew.clone(), sweep.clone()], true),
            (&sweep, vec![renew.clone()], true),
            (&sweep, vec![renew.clone(), sweep.clone()], false),
            (&scope, vec![renew.clone()], false),
            (&renew, vec![scope.clone()], false),
            (&complete(MOST_BYTES / 2), vec![complete(MOST_BYTES / 2)], true),
            (
                &complete(1),
                vec![complete(MOST_BYTES / 2), complete(MOST_BYTES / 2)],
                false,
            ),
            // A record that exceeds the limit is written alone.
            (&renew, vec![complete(2 * MOST_BYTES)], false),
        ] {
            assert_eq!(Writing::joins(job, &batch), joins);
        }
    }
}
