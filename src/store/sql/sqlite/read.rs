//! Reads on the store's own connections, which do not wait for writers.

use std::sync::Arc;

use sqlx::{Connection, Row, SqliteConnection};

use super::blame::blame;
use super::file::File;
use super::statements::Statements;
use crate::request::Fingerprint;
use crate::store::Slot;
use crate::store::sql::begin::Seen;
use crate::store::sql::inspect::EntryRow;
use crate::store::sql::lane::{Blame, Driver};

/// The driver that reads on the store's own connections.
pub(super) struct Reading {
    pub(super) file: Arc<File>,
    pub(super) sql: Arc<Statements>,
}

/// A call that changes nothing.
#[derive(Clone)]
pub(super) enum Read {
    /// Reads the slot for `begin`.
    Seen(Slot, Fingerprint),
    Entry(Slot),
    /// Reads the rows that the sweeper processes next, up to this number.
    Due(u32),
}

pub(super) enum Found {
    Seen(Option<Seen>),
    Entry(Option<EntryRow>),
    Due(Vec<DueRow>),
}

/// A row that the sweeper processes.
#[derive(Clone)]
pub(super) struct DueRow {
    pub(super) handle: i64,
    pub(super) is_forgotten: bool,
    /// The length of the row's record, in bytes.
    pub(super) length: i64,
    /// How long the row has been due, in milliseconds.
    pub(super) lag: i64,
}

impl Driver for Reading {
    type Connection = SqliteConnection;
    type Job = Read;
    type Answer = Found;

    const NAME: &'static str = "sqlite-read";

    async fn connect(&self) -> Result<SqliteConnection, sqlx::Error> {
        self.file.connect().await
    }

    /// Only small reads share a batch.
    fn joins(job: &Read, batch: &[Read]) -> bool {
        let is_small = |job: &Read| !matches!(job, Read::Due(_));
        is_small(job) && batch.iter().all(is_small)
    }

    fn is_refused_when_full(_: &Read) -> bool {
        true
    }

    async fn run(&self, connection: &mut SqliteConnection, jobs: &[Read]) -> Result<Vec<Found>, sqlx::Error> {
        let mut found = Vec::with_capacity(jobs.len());
        for job in jobs {
            found.push(match job {
                Read::Seen(slot, fingerprint) => Found::Seen(read(connection, &self.sql, slot, fingerprint).await?),
                Read::Entry(slot) => {
                    let look_up = sqlx::query_as(self.sql.look_up.text()).bind(slot.as_bytes().as_slice());
                    Found::Entry(look_up.fetch_optional(&mut *connection).await?)
                }
                Read::Due(most) => {
                    let due: Vec<(i64, bool, i64, i64)> = sqlx::query_as(self.sql.due.text())
                        .bind(most)
                        .fetch_all(&mut *connection)
                        .await?;
                    let row = |(handle, is_forgotten, length, lag)| DueRow {
                        handle,
                        is_forgotten,
                        length,
                        lag,
                    };
                    Found::Due(due.into_iter().map(row).collect())
                }
            });
        }
        Ok(found)
    }

    fn blame(&self, error: &sqlx::Error) -> Blame {
        blame(error)
    }

    /// Reading twice does no harm.
    fn repeat(_: &mut Read) {}

    async fn close(connection: SqliteConnection) {
        let _ = connection.close().await;
    }
}

/// Returns the contents of a slot for a `begin` with this fingerprint.
pub(super) async fn read(
    connection: &mut SqliteConnection,
    sql: &Statements,
    slot: &Slot,
    fingerprint: &Fingerprint,
) -> Result<Option<Seen>, sqlx::Error> {
    let row = sqlx::query(sql.read.text())
        .bind(fingerprint.as_bytes().as_slice())
        .bind(fingerprint.as_bytes().as_slice())
        .bind(slot.as_bytes().as_slice())
        .fetch_optional(connection)
        .await?;
    row.map(|row| {
        Ok(Seen {
            fingerprint: row.try_get("fingerprint")?,
            token: row.try_get("token")?,
            attempt: row.try_get("attempt")?,
            lease_left: row.try_get("lease_left")?,
            done: row.try_get("done")?,
            record: row.try_get("record")?,
        })
    })
    .transpose()
}
