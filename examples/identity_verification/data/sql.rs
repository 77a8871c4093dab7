//! What the databases have in common: their rows, and whose transaction a write is in.

use std::ops::{Deref, DerefMut};

use serde_json::value::RawValue;
use sqlx::{Database, Pool};
use tower_idempotency::store::sql::{Transaction, Work};

use super::super::billing::Charge;
use super::super::documents::Document;
use super::super::sessions::Session;
use super::super::webhooks::Event;
use super::DataError;

/// A transaction to write in.
pub(super) enum Writing<DB: Database> {
    /// The operation's, which the idempotency layer commits with the record of the response.
    Operation(Work<DB>),
    /// One of its own, since the request has no key.
    Own(sqlx::Transaction<'static, DB>),
}

impl<DB: Database> Writing<DB> {
    /// `begin` is the statement that begins one of its own.
    pub(super) async fn begin(
        pool: &Pool<DB>,
        begin: &'static str,
        operation: Option<&Transaction<DB>>,
    ) -> Result<Self, DataError> {
        Ok(match operation {
            Some(operation) => Self::Operation(operation.begin().await?),
            // In a task: a client that hangs up drops its handler, and `sqlx` 0.9 leaves the transaction
            // open on a pooled connection if it is dropped while it begins one. What the pool's next
            // user writes, a claim perhaps, would then be in a transaction that nobody commits.
            None => {
                let pool = pool.clone();
                Self::Own(tokio::spawn(async move { pool.begin_with(begin).await }).await??)
            }
        })
    }

    /// Everything is written. Without this, or when it fails, nothing is.
    pub(super) async fn done(self) -> Result<(), DataError> {
        match self {
            // Not yet: it is for the layer to commit.
            Self::Operation(_) => Ok(()),
            Self::Own(transaction) => Ok(transaction.commit().await?),
        }
    }
}

impl<DB: Database> Deref for Writing<DB> {
    type Target = DB::Connection;

    fn deref(&self) -> &DB::Connection {
        match self {
            Self::Operation(work) => work,
            Self::Own(transaction) => transaction,
        }
    }
}

impl<DB: Database> DerefMut for Writing<DB> {
    fn deref_mut(&mut self) -> &mut DB::Connection {
        match self {
            Self::Operation(work) => work,
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

/// `document_id, session_id, kind, file_name, bytes, sha256`
pub(super) type DocumentRow = (String, String, String, Option<String>, i64, String);

pub(super) fn document((document_id, session_id, kind, file_name, bytes, sha256): DocumentRow) -> Document {
    Document {
        document_id,
        session_id,
        kind: kind.into(),
        file_name,
        bytes: bytes.unsigned_abs(),
        sha256,
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

/// `event_id` as JSON, `type`
pub(super) type EventRow = (String, String);

pub(super) fn event((event_id, r#type): EventRow) -> Result<Event, DataError> {
    Ok(Event {
        event_id: super::super::webhooks::EventId(RawValue::from_string(event_id)?),
        r#type,
    })
}

/// A number for a column, which has a sign.
pub(super) fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}
