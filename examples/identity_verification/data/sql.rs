//! Code that the SQL databases share: how rows are read, and which transaction a write uses.

use std::ops::{Deref, DerefMut};

use serde_json::value::RawValue;
use sqlx::Pool;
use tower_idempotency::store::sql::{AtomicDatabase, Transaction, Work};

use super::super::billing::Charge;
use super::super::documents::{Document, Kind};
use super::super::sessions::Session;
use super::super::webhooks::Event;
use super::DataError;

/// A transaction to write in.
pub(super) enum Writing<DB: AtomicDatabase> {
    /// The operation's transaction, which the idempotency layer commits together with the record of
    /// the response.
    Operation(Work<DB>, Transaction<DB>),
    /// A separate transaction, because the request has no key.
    Own(sqlx::Transaction<'static, DB>),
}

impl<DB: AtomicDatabase> Writing<DB> {
    /// `begin` is the statement that begins a separate transaction.
    pub(super) async fn begin(
        pool: &Pool<DB>,
        begin: &'static str,
        operation: Option<&Transaction<DB>>,
    ) -> Result<Self, DataError> {
        Ok(match operation {
            Some(operation) => Self::Operation(operation.begin().await?, operation.clone()),
            // Begin the transaction in a separate task. If the client disconnects, its handler is
            // dropped. If the future of `begin_with` is dropped before it completes, `sqlx` 0.9
            // leaves the transaction open on a pooled connection. The writes of the connection's
            // next user, perhaps a claim, would then be in a transaction that nobody commits.
            None => {
                let pool = pool.clone();
                Self::Own(tokio::spawn(async move { pool.begin_with(begin).await }).await??)
            }
        })
    }

    /// Finishes the writes. Commits a separate transaction, which is rolled back without this call.
    pub(super) async fn done(self) -> Result<(), DataError> {
        match self {
            // Do not commit here. The layer commits.
            Self::Operation(..) => Ok(()),
            Self::Own(transaction) => Ok(transaction.commit().await?),
        }
    }

    /// Like [`done`](Self::done), but also runs `committed` after the commit. `committed` is
    /// dropped if nothing is committed, or if the result is unknown.
    ///
    /// A separate transaction is committed even if the client disconnects in the meantime, because
    /// the commit may already have been sent.
    pub(super) async fn done_and_then(
        self,
        committed: impl Future<Output = ()> + Send + 'static,
    ) -> Result<(), DataError> {
        match self {
            Self::Operation(_, operation) => operation.on_commit(committed),
            Self::Own(transaction) => {
                let commit = tokio::spawn(async move {
                    transaction.commit().await?;
                    committed.await;
                    Ok::<_, sqlx::Error>(())
                });
                commit.await??;
            }
        }
        Ok(())
    }
}

impl<DB: AtomicDatabase> Deref for Writing<DB> {
    type Target = DB::Connection;

    fn deref(&self) -> &DB::Connection {
        match self {
            Self::Operation(work, _) => work,
            Self::Own(transaction) => transaction,
        }
    }
}

impl<DB: AtomicDatabase> DerefMut for Writing<DB> {
    fn deref_mut(&mut self) -> &mut DB::Connection {
        match self {
            Self::Operation(work, _) => work,
            Self::Own(transaction) => transaction,
        }
    }
}

/// `session_id, user_id, workflow_id, status, attempt, created_at`
pub(super) type SessionRow = (String, String, String, String, i64, String);

pub(super) fn session((session_id, user_id, workflow_id, status, attempt, created_at): SessionRow) -> Session {
    Session {
        session_id,
        user_id,
        workflow_id,
        status: status.into(),
        attempt: u32::try_from(attempt).unwrap_or(u32::MAX),
        created_at,
    }
}

/// `operation, reference, amount_cents`
pub(super) type ChargeRow = (String, String, i64);

pub(super) fn charge((operation, reference, amount_cents): ChargeRow) -> Charge {
    Charge {
        operation: operation.into(),
        reference,
        amount_cents: amount_cents.unsigned_abs(),
    }
}

/// `document_id, session_id, kind, file_name, bytes, sha256`
pub(super) type DocumentRow = (String, String, String, Option<String>, i64, String);

pub(super) fn document(
    (document_id, session_id, kind, file_name, bytes, sha256): DocumentRow,
) -> Result<Document, DataError> {
    let kind = Kind::parse(&kind).ok_or("a document's kind is unknown")?;
    Ok(Document {
        document_id,
        session_id,
        kind,
        file_name,
        bytes: bytes.unsigned_abs(),
        sha256,
    })
}

/// `event_id` as JSON, `type`
pub(super) type EventRow = (String, String);

pub(super) fn event((event_id, r#type): EventRow) -> Result<Event, DataError> {
    Ok(Event {
        event_id: super::super::webhooks::EventId(RawValue::from_string(event_id)?),
        r#type,
    })
}

/// Converts a number for a database column, because columns are signed.
pub(super) fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}
