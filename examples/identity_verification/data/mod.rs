//! The application's own data: sessions, charges, users and events. The data is in the same store
//! as the idempotency keys. Each kind of store has its own file here.

mod memory;
mod outbox;
mod postgres;
mod redis;
mod sql;
mod sqlite;

use std::convert::Infallible;
use std::error::Error;
use std::fmt;
use std::time::Duration;

use axum::extract::FromRequestParts;
use axum::http::StatusCode;
use axum::http::request::Parts;
use axum::response::{IntoResponse, Response};
use tokio::time::timeout;

use super::accounts::Account;
use super::app::AppState;
use super::billing::Charge;
use super::documents::Document;
use super::error::ApiError;
use super::events::Draft;
use super::sessions::Session;
use super::users::{User, UserStatus};
use super::webhooks::Event;

pub(crate) use self::memory::MemoryData;
pub(crate) use self::postgres::PostgresData;
pub(crate) use self::redis::RedisData;
pub(crate) use self::sqlite::SqliteData;

/// How long closing the connections may take.
const CLOSE_WITHIN: Duration = Duration::from_secs(2);

/// The application's data. Clones share it.
///
/// Each method is one transaction, with one exception. If a handler extracts `Data` on a database
/// with atomic mode, its writes are in the transaction of the handler's operation. They are
/// committed together with the record of the response, or not at all.
#[derive(Clone)]
pub(crate) enum Data {
    Memory(MemoryData),
    Sqlite(SqliteData),
    Postgres(PostgresData),
    Redis(RedisData),
}

impl FromRequestParts<AppState> for Data {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, state: &AppState) -> Result<Self, Infallible> {
        // A request without an idempotency key is not an operation and has no transaction.
        let operation = &parts.extensions;
        Ok(match state.data.clone() {
            Self::Sqlite(data) => Self::Sqlite(data.within(operation.get().cloned())),
            Self::Postgres(data) => Self::Postgres(data.within(operation.get().cloned())),
            other => other,
        })
    }
}

/// Evaluates the same expression for each kind of data.
macro_rules! each {
    ($data:expr, $name:ident => $does:expr) => {
        match $data {
            Data::Memory($name) => $does,
            Data::Sqlite($name) => $does?,
            Data::Postgres($name) => $does?,
            Data::Redis($name) => $does?,
        }
    };
}
use each;

impl Data {
    /// Adds a session together with its charge.
    pub(crate) async fn add_session(
        &self,
        account: Account,
        session: &Session,
        charge: &Charge,
    ) -> Result<(), DataError> {
        each!(self, data => data.add_session(account, session, charge).await);
        Ok(())
    }

    pub(crate) async fn session(&self, account: Account, id: &str) -> Result<Option<Session>, DataError> {
        Ok(each!(self, data => data.session(account, id).await))
    }

    /// Returns the account's sessions, oldest first.
    pub(crate) async fn sessions(&self, account: Account) -> Result<Vec<Session>, DataError> {
        Ok(each!(self, data => data.sessions(account).await))
    }

    pub(crate) async fn add_charge(&self, account: Account, charge: &Charge) -> Result<(), DataError> {
        each!(self, data => data.add_charge(account, charge).await);
        Ok(())
    }

    /// Returns the account's charges, oldest first.
    pub(crate) async fn charges(&self, account: Account) -> Result<Vec<Charge>, DataError> {
        Ok(each!(self, data => data.charges(account).await))
    }

    /// Adds a document together with its charge, and runs `committed` once both are committed.
    /// `committed` is dropped if they are not committed, or if the result is unknown.
    pub(crate) async fn add_document(
        &self,
        account: Account,
        document: &Document,
        charge: &Charge,
        committed: impl Future<Output = ()> + Send + 'static,
    ) -> Result<(), DataError> {
        each!(self, data => data.add_document(account, document, charge, committed).await);
        Ok(())
    }

    /// Returns the documents of a session, oldest first.
    pub(crate) async fn documents(&self, account: Account, session_id: &str) -> Result<Vec<Document>, DataError> {
        Ok(each!(self, data => data.documents(account, session_id).await))
    }

    /// Returns whether a document with this id exists, in any account. Waits for a transaction that
    /// may still commit the document.
    pub(crate) async fn has_document(&self, document_id: &str) -> Result<bool, DataError> {
        Ok(each!(self, data => data.has_document(document_id).await))
    }

    /// Sets a user's status. Each call creates a new version. The same write adds the event, if
    /// there is one, to the outbox.
    pub(crate) async fn set_user_status(
        &self,
        account: Account,
        user_id: String,
        status: UserStatus,
        event: Option<Draft>,
    ) -> Result<User, DataError> {
        let event = event.as_ref();
        let version = each!(self, data => data.set_user_status(account, &user_id, status, event).await);
        Ok(User {
            user_id,
            status,
            version,
        })
    }

    /// Returns whether this is the user's first time in the workflow, and records it. The record
    /// stays whatever happens to the operation, because it is never in the operation's transaction.
    pub(crate) async fn is_first_time(
        &self,
        account: Account,
        workflow: &'static str,
        user_id: &str,
    ) -> Result<bool, DataError> {
        Ok(each!(self, data => data.is_first_time(account, workflow, user_id).await))
    }

    pub(crate) async fn add_event(&self, event: &Event) -> Result<(), DataError> {
        each!(self, data => data.add_event(event).await);
        Ok(())
    }

    /// Returns the events in the order in which they were processed.
    pub(crate) async fn events(&self) -> Result<Vec<Event>, DataError> {
        Ok(each!(self, data => data.events().await))
    }

    /// Closes the database's connections, which the idempotency layers also use.
    pub(crate) async fn close(&self) {
        let closed = timeout(CLOSE_WITHIN, async {
            match self {
                Self::Sqlite(data) => data.close().await,
                Self::Postgres(data) => data.close().await,
                // There is nothing to close, and a lost connection would leave nothing behind.
                Self::Memory(_) | Self::Redis(_) => {}
            }
        });
        if closed.await.is_err() {
            tracing::warn!("the database's connections are still in use and are not closed");
        }
    }
}

/// The data could not be read or written. The client gets a `503`, and the cause is logged.
#[derive(Debug)]
pub(crate) struct DataError(Box<dyn Error + Send + Sync>);

impl<E: Into<Box<dyn Error + Send + Sync>>> From<E> for DataError {
    fn from(cause: E) -> Self {
        Self(cause.into())
    }
}

/// Shows all causes, for the log.
impl fmt::Display for DataError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Causes(&*self.0).fmt(f)
    }
}

impl From<DataError> for ApiError {
    fn from(error: DataError) -> Self {
        tracing::error!(%error, "the application's data cannot be reached");
        Self::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "the database is unavailable; try again with the same key",
        )
    }
}

impl IntoResponse for DataError {
    fn into_response(self) -> Response {
        ApiError::from(self).into_response()
    }
}

/// An error with all its causes on one line.
pub(crate) struct Causes<'a>(pub(crate) &'a (dyn Error + 'static));

impl fmt::Display for Causes<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut said = self.0.to_string();
        f.write_str(&said)?;
        let mut cause = self.0.source();
        while let Some(error) = cause {
            let says = error.to_string();
            // Some errors repeat their cause.
            if !said.contains(&says) {
                write!(f, ": {says}")?;
            }
            said = says;
            cause = error.source();
        }
        Ok(())
    }
}
