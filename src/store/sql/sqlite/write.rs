//! Writes on the store's own connection, in turns with handlers' transactions.

use std::sync::Arc;

use sqlx::{Connection, SqliteConnection};
use tokio::time::Instant;

use super::blame::{blame, is_busy};
use super::execute::{claims, completions, execute, of_rows, roll_back, rows};
use super::file::File;
use super::job::{Answer, Completion, Single, Write, Written};
use super::read::read;
use super::statements::{BEGIN, COMMIT, Ends, Statements};
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

/// The results of a batch's statements, in the order of the jobs of each kind.
#[derive(Default)]
struct Changes {
    singles: Vec<Written>,
    /// The number of rows that each record changed.
    records: Vec<u64>,
    /// The attempt number of each claim that succeeded.
    attempts: Vec<Option<i32>>,
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
        let is_alone = |job: &Write| matches!(job, Write::Single(Single::ForgetScope(..)));
        let sweeps = |job: &Write| matches!(job, Write::Single(Single::Sweep { .. }));
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

    fn is_refused_when_full(job: &Write) -> bool {
        match job {
            Write::Claim(_) => true,
            Write::Single(Single::Forget(_) | Single::Sweep { .. } | Single::ForgetScope(..)) => true,
            Write::Complete(_) | Write::Single(Single::Renew(..) | Single::Release { .. } | Single::IsDone(..)) => {
                false
            }
        }
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
        match job {
            Write::Complete(Completion { again, .. }) | Write::Single(Single::Release { again, .. }) => *again = true,
            Write::Claim(_) | Write::Single(_) => {}
        }
    }

    async fn close(writer: Writer) {
        // Running statements finish first.
        let _ = writer.connection.close().await;
        drop(writer.turn);
    }
}

impl Writing {
    /// Runs the jobs in one transaction. A single job does not need a transaction, because it is
    /// usually one statement.
    async fn write(&self, connection: &mut SqliteConnection, jobs: &[Write]) -> Result<Vec<Answer>, sqlx::Error> {
        // `IsDone` needs a transaction, because `BEGIN` takes the writer's lock and so waits for
        // any transaction that may still be committed.
        let is_transaction = jobs.len() > 1 || matches!(jobs, [Write::Single(Single::IsDone(..))]);
        match self.change(connection, jobs, is_transaction).await {
            Ok(changes) => self.answers(connection, jobs, changes).await,
            Err(error) if is_transaction => {
                roll_back(connection).await?;
                Err(error)
            }
            Err(error) => Err(error),
        }
    }

    /// Runs what the jobs change. Jobs from claim holders run first, because a renewal must not run
    /// after another claim has taken over the slot, nor after the claim's own record.
    ///
    /// The texts of claims and records also begin and commit the transaction where they can, because
    /// each text is sent to the connection's thread on its own.
    async fn change(
        &self,
        connection: &mut SqliteConnection,
        jobs: &[Write],
        is_transaction: bool,
    ) -> Result<Changes, sqlx::Error> {
        let (mut singles, mut records, mut begins) = (Vec::new(), Vec::new(), Vec::new());
        for job in jobs {
            match job {
                Write::Complete(completion) => records.push(completion),
                Write::Claim(begin) => begins.push(begin),
                Write::Single(single) => singles.push(single),
            }
        }
        let mut changes = Changes::default();
        if is_transaction && !singles.is_empty() {
            execute(connection, BEGIN).await?;
        }
        for single in &singles {
            changes.singles.push(self.single(connection, single).await?);
        }
        let ends = Ends {
            begins: is_transaction && singles.is_empty(),
            commits: is_transaction && begins.is_empty(),
        };
        changes.records = completions(connection, &self.sql, &records, ends).await?;
        let ends = Ends {
            begins: ends.begins && records.is_empty(),
            commits: is_transaction,
        };
        changes.attempts = claims(connection, &self.sql, &begins, ends).await?;
        if is_transaction && records.is_empty() && begins.is_empty() {
            execute(connection, COMMIT).await?;
        }
        Ok(changes)
    }

    /// Returns an answer for each job, and reads what the changes left open. The changes are
    /// committed by then. So an error concerns the job that it happened to, unless the connection
    /// broke: then the lane sends the jobs again, as jobs that may already have taken effect.
    async fn answers(
        &self,
        connection: &mut SqliteConnection,
        jobs: &[Write],
        changes: Changes,
    ) -> Result<Vec<Answer>, sqlx::Error> {
        let mut singles = changes.singles.into_iter();
        let mut records = changes.records.into_iter();
        let mut attempts = changes.attempts.into_iter();
        let mut answers = Vec::with_capacity(jobs.len());
        for job in jobs {
            let answer = match job {
                Write::Single(_) => Ok(singles.next()),
                Write::Complete(Completion { slot, token, again, .. }) => match records.next() {
                    Some(0) if *again => {
                        let is_done = self.is_done(connection, slot, *token).await;
                        is_done.map(|is_done| Some(Written::Rows(u64::from(is_done))))
                    }
                    rows => Ok(rows.map(Written::Rows)),
                },
                Write::Claim(begin) => match attempts.next() {
                    Some(None) => {
                        let seen = read(connection, &self.sql, &begin.slot, &begin.fingerprint).await;
                        seen.map(|seen| Some(Written::Taken(seen)))
                    }
                    attempt => Ok(attempt.flatten().map(Written::Claimed)),
                },
            };
            match answer {
                Err(error) if blame(&error) == Blame::Connection => return Err(error),
                answer => answers.extend(answer.map_err(Arc::new).transpose()),
            }
        }
        Ok(answers)
    }

    async fn single(&self, connection: &mut SqliteConnection, single: &Single) -> Result<Written, sqlx::Error> {
        Ok(match single {
            Single::Renew(slot, token, lease) => {
                let renew = sqlx::query(self.sql.renew.text())
                    .bind(millis(*lease))
                    .bind(millis(*lease))
                    .bind(slot.as_bytes().as_slice())
                    .bind(signed(*token));
                Written::Rows(rows(connection, renew).await?)
            }
            Single::Release { slot, token, again } => {
                let release = sqlx::query(self.sql.release.text())
                    .bind(slot.as_bytes().as_slice())
                    .bind(signed(*token));
                let written = rows(connection, release).await?;
                // If the claim is not held any more, either the first attempt released the claim,
                // or another claim took over the slot.
                Written::Rows(if *again { 1 } else { written })
            }
            Single::Forget(slot) => {
                // All rows are fetched, as for a claim.
                let known: Vec<bool> = sqlx::query_scalar(self.sql.forget.text())
                    .bind(slot.as_bytes().as_slice())
                    .fetch_all(connection)
                    .await?;
                Written::Is(known == [true])
            }
            Single::IsDone(slot, token) => Written::Is(self.is_done(connection, slot, *token).await?),
            Single::Sweep { forgotten, others } => {
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
            Single::ForgetScope(scope, most) => {
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
        })
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
        let renew = Write::Single(Single::Renew(slot, Token(1), Duration::ZERO));
        let complete = |bytes| {
            Write::Complete(Completion {
                slot,
                token: Token(1),
                record: Arc::new(vec![0; bytes]),
                ttl: Duration::ZERO,
                again: false,
            })
        };
        let sweep = Write::Single(Single::Sweep {
            forgotten: vec![1],
            others: vec![2],
        });
        let scope = Write::Single(Single::ForgetScope(ScopeTag::default(), 1));
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
