//! Writes on the store's own connection, in turns with handlers' transactions.

use std::sync::Arc;
use std::time::Duration;

use sqlx::{Connection, SqliteConnection};
use tokio::time::Instant;

use super::blame::{blame, is_busy};
use super::execute::{claim, complete, execute, of_rows, roll_back, rows};
use super::file::{BEGIN, File};
use super::read::read;
use super::statements::Statements;
use crate::store::sql::begin::Seen;
use crate::store::sql::lane::{Blame, Driver};
use crate::store::sql::turns::{Turn, Turns};
use crate::store::sql::value::{millis, signed};
use crate::store::{ClaimRequest, ScopeTag, Slot, Token};

/// The maximum size of the records in one transaction, in bytes, so that the transaction stays
/// short.
const MOST_BYTES: usize = 1024 * 1024;

/// Writes on a connection of the store's own.
pub(super) struct Writing {
    pub(super) file: Arc<File>,
    pub(super) sql: Arc<Statements>,
}

/// A call that changes something.
#[derive(Clone)]
pub(super) enum Write {
    Claim(ClaimRequest),
    Renew(Slot, Token, Duration),
    Complete {
        slot: Slot,
        token: Token,
        record: Arc<Vec<u8>>,
        ttl: Duration,
        /// Whether the record may already have been written.
        again: bool,
    },
    Release {
        slot: Slot,
        token: Token,
        /// Whether the claim may already have been released.
        again: bool,
    },
    Forget(Slot),
    /// Whether a transaction that may still be open has written the record.
    IsDone(Slot, Token),
    /// Looks at rows that are due. Forgotten rows are removed, and the others are put off.
    Sweep {
        forgotten: Vec<i64>,
        others: Vec<i64>,
    },
    ForgetScope(ScopeTag, u32),
}

pub(super) enum Written {
    /// The attempt, if the slot was claimed.
    Claimed(i32),
    /// The slot was not claimed. This is its content.
    Taken(Option<Seen>),
    /// The number of rows that were changed.
    Rows(u64),
    Is(bool),
    /// The number of rows that were removed, and how many of them had not expired.
    Forgotten {
        rows: usize,
        counted: u64,
    },
    Swept {
        rows: u64,
        took: Duration,
    },
}

/// The result of a job. An error of one job that does not affect the others is that job's answer.
pub(super) type Answer = Result<Written, Arc<sqlx::Error>>;

/// The connection that writes.
pub(super) struct Writer {
    connection: SqliteConnection,
    /// Held while a statement may be running. If the call is dropped, the turn stays with the
    /// connection and ends when the connection is closed.
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

    /// A transaction for many jobs is short: it has few bytes to write, and few rows to remove. A
    /// sweep that shares a transaction needs no commit of its own.
    fn joins(job: &Write, batch: &[Write]) -> bool {
        let is_alone = |job: &Write| matches!(job, Write::ForgetScope(..));
        let sweeps = |job: &Write| matches!(job, Write::Sweep { .. });
        let bytes = |job: &Write| match job {
            Write::Complete { record, .. } => record.len(),
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
            // Another process is writing. It blocks all jobs alike, so trying them one by one is no
            // use.
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
        if let Write::Complete { again, .. } | Write::Release { again, .. } = job {
            *again = true;
        }
    }

    async fn close(writer: Writer) {
        // Running statements end first.
        let _ = writer.connection.close().await;
        drop(writer.turn);
    }
}

impl Writing {
    /// A single job needs no transaction around it: usually it is one statement.
    async fn write(&self, connection: &mut SqliteConnection, jobs: &[Write]) -> Result<Vec<Answer>, sqlx::Error> {
        // `IsDone` does: the lock that `BEGIN` takes waits for a transaction that may still commit.
        if let [job] = jobs
            && !matches!(job, Write::IsDone(..))
        {
            return Ok(vec![Ok(self.one(connection, job).await?)]);
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

    /// Runs all jobs in an open transaction. Jobs of those who hold a claim come first: a renewal
    /// must not come after the claim that takes over.
    async fn all(&self, connection: &mut SqliteConnection, jobs: &[Write]) -> Result<Vec<Answer>, sqlx::Error> {
        let mut answers: Vec<Option<Answer>> = jobs.iter().map(|_| None).collect();
        for claims in [false, true] {
            for (job, answer) in jobs.iter().zip(&mut answers) {
                if matches!(job, Write::Claim(_)) == claims {
                    *answer = Some(Ok(self.one(connection, job).await?));
                }
            }
        }
        Ok(answers.into_iter().flatten().collect())
    }

    async fn one(&self, connection: &mut SqliteConnection, job: &Write) -> Result<Written, sqlx::Error> {
        Ok(match job {
            Write::Claim(begin) => match claim(connection, &self.sql, begin).await? {
                Some(attempt) => Written::Claimed(attempt),
                None => Written::Taken(read(connection, &self.sql, &begin.slot, &begin.fingerprint).await?),
            },
            Write::Renew(slot, token, lease) => {
                let renew = sqlx::query(self.sql.renew.text())
                    .bind(millis(*lease))
                    .bind(millis(*lease))
                    .bind(slot.as_bytes().as_slice())
                    .bind(signed(*token));
                Written::Rows(rows(connection, renew).await?)
            }
            Write::Complete {
                slot,
                token,
                record,
                ttl,
                again,
            } => {
                let written = rows(connection, complete(&self.sql, slot, *token, record, *ttl)).await?;
                let is_done = written == 0 && *again && self.is_done(connection, slot, *token).await?;
                Written::Rows(if is_done { 1 } else { written })
            }
            Write::Release { slot, token, again } => {
                let release = sqlx::query(self.sql.release.text())
                    .bind(slot.as_bytes().as_slice())
                    .bind(signed(*token));
                let written = rows(connection, release).await?;
                // If the claim is not held, it was released, by the first attempt or by another
                // claim's takeover.
                Written::Rows(if *again { 1 } else { written })
            }
            Write::Forget(slot) => {
                // All rows are fetched, as in `claim`.
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
    use super::*;

    #[test]
    fn what_shares_a_transaction_keeps_it_short() {
        let slot = Slot::from_bytes([1; Slot::LEN]);
        let renew = Write::Renew(slot, Token(1), Duration::ZERO);
        let complete = |bytes| Write::Complete {
            slot,
            token: Token(1),
            record: Arc::new(vec![0; bytes]),
            ttl: Duration::ZERO,
            again: false,
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
            // A record that is too large on its own is written alone.
            (&renew, vec![complete(2 * MOST_BYTES)], false),
        ] {
            assert_eq!(Writing::joins(job, &batch), joins);
        }
    }
}
