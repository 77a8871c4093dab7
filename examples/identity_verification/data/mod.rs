//! The application's own data: sessions, documents, charges, users and events. They are kept where the
//! idempotency keys are, one file for each kind of store.

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

/// How long closing may take.
const CLOSE_WITHIN: Duration = Duration::from_secs(2);

/// The application's data. Clones share it.
///
/// Each method is one transaction; but as an extractor in a handler, on a database that has the
/// atomic mode, what it writes is in the transaction of the handler's operation: it is committed
/// together with the record of the response, or not at all.
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
        // A request without an idempotency key is no operation and has no transaction.
        let operation = &parts.extensions;
        Ok(match state.data.clone() {
            Self::Sqlite(data) => Self::Sqlite(data.within(operation.get().cloned())),
            Self::Postgres(data) => Self::Postgres(data.within(operation.get().cloned())),
            other => other,
        })
    }
}

/// Does the same with whichever data it is.
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

    /// The account's sessions, oldest first.
    pub(crate) async fn sessions(&self, account: Account) -> Result<Vec<Session>, DataError> {
        Ok(each!(self, data => data.sessions(account).await))
    }

    /// Adds a document together with its charge.
    pub(crate) async fn add_document(
        &self,
        account: Account,
        document: &Document,
        charge: &Charge,
    ) -> Result<(), DataError> {
        each!(self, data => data.add_document(account, document, charge).await);
        Ok(())
    }

    /// The session's documents, oldest first.
    pub(crate) async fn documents(&self, account: Account, session_id: &str) -> Result<Vec<Document>, DataError> {
        Ok(each!(self, data => data.documents(account, session_id).await))
    }

    /// Whether there is such a document, whosever it is.
    pub(crate) async fn has_document(&self, id: &str) -> Result<bool, DataError> {
        Ok(each!(self, data => data.has_document(id).await))
    }

    pub(crate) async fn add_charge(&self, account: Account, charge: &Charge) -> Result<(), DataError> {
        each!(self, data => data.add_charge(account, charge).await);
        Ok(())
    }

    /// The account's charges, oldest first.
    pub(crate) async fn charges(&self, account: Account) -> Result<Vec<Charge>, DataError> {
        Ok(each!(self, data => data.charges(account).await))
    }

    /// Sets a user's status; each call makes a new version. The event, if there is one, is in the
    /// outbox with the same write.
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

    /// Whether the user has not been through the workflow yet. From now on, it has, whatever
    /// becomes of the operation: this is never in its transaction.
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

    /// The events in the order in which they were processed.
    pub(crate) async fn events(&self) -> Result<Vec<Event>, DataError> {
        Ok(each!(self, data => data.events().await))
    }

    /// Closes the database's connections, which the idempotency layers use as well.
    pub(crate) async fn close(&self) {
        let closed = timeout(CLOSE_WITHIN, async {
            match self {
                Self::Sqlite(data) => data.close().await,
                Self::Postgres(data) => data.close().await,
                // Nothing to close, and nothing that a lost connection would leave behind.
                Self::Memory(_) | Self::Redis(_) => {}
            }
        });
        if closed.await.is_err() {
            tracing::warn!("the database's connections are still in use and are not closed");
        }
    }
}

/// The data could not be read or written. The client gets a `503`, the log the cause.
#[derive(Debug)]
pub(crate) struct DataError(Box<dyn Error + Send + Sync>);

impl<E: Into<Box<dyn Error + Send + Sync>>> From<E> for DataError {
    fn from(cause: E) -> Self {
        Self(cause.into())
    }
}

/// All its causes, for the log.
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
