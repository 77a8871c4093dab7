//! The data in the Redis server that has the keys.
//!
//! There is no atomic mode. An operation's writes and the record of its response are two separate
//! steps. A process that dies between them leaves only the writes. Each write is one `MULTI` or one
//! script.

use redis::aio::{ConnectionManager, ConnectionManagerConfig};
use redis::{AsyncCommands, Client, IntoConnectionInfo, Pipeline, ProtocolVersion, RedisError};
use std::time::Duration;

use super::super::accounts::Account;
use super::super::billing::Charge;
use super::super::documents::Document;
use super::super::events::Draft;
use super::super::sessions::Session;
use super::super::users::UserStatus;
use super::super::webhooks::Event;
use super::DataError;

const EVENTS: &str = "idv:events";
/// The ids of all documents.
const DOCUMENTS: &str = "idv:documents";
const ANSWER_WITHIN: Duration = Duration::from_secs(3);

#[derive(Clone)]
pub(crate) struct RedisData {
    /// One connection that all requests share, and that reconnects when it breaks.
    pub(super) connection: ConnectionManager,
}

/// Returns a key of the account, so that lookups never cross accounts.
pub(super) fn key(account: Account, what: &str) -> String {
    format!("idv:{}:{what}", account.id())
}

impl RedisData {
    pub(crate) async fn open(url: &str) -> Result<Self, RedisError> {
        let config = ConnectionManagerConfig::new()
            .set_response_timeout(Some(ANSWER_WITHIN))
            .set_connection_timeout(Some(ANSWER_WITHIN));
        // With RESP3, the connection notices if it is closed while it is idle, for example by the
        // server's `timeout`. It then reconnects before it is needed. Failed writes are not
        // repeated, because it is unknown whether they were done. RESP3 needs Redis 6 or later.
        let info = url.into_connection_info()?;
        let settings = info.redis_settings().clone().set_protocol(ProtocolVersion::RESP3);
        let client = Client::open(info.set_redis_settings(settings))?;
        let connection = ConnectionManager::new_with_config(client, config).await?;
        Ok(Self { connection })
    }

    pub(super) async fn add_session(
        &self,
        account: Account,
        session: &Session,
        charge: &Charge,
    ) -> Result<(), DataError> {
        let json = serde_json::to_string(session)?;
        let mut write = redis::pipe();
        write
            .atomic()
            .rpush(key(account, "sessions"), &session.session_id)
            .hset(key(account, "session"), &session.session_id, json);
        push_charge(&mut write, account, charge)?;
        Ok(write.exec_async(&mut self.connection.clone()).await?)
    }

    pub(super) async fn session(&self, account: Account, id: &str) -> Result<Option<Session>, DataError> {
        let json: Option<String> = self.connection.clone().hget(key(account, "session"), id).await?;
        Ok(json.map(|json| serde_json::from_str(&json)).transpose()?)
    }

    pub(super) async fn sessions(&self, account: Account) -> Result<Vec<Session>, DataError> {
        let mut connection = self.connection.clone();
        let ids: Vec<String> = connection.lrange(key(account, "sessions"), 0, -1).await?;
        if ids.is_empty() {
            return Ok(Vec::new());
        }
        // Sessions do not change.
        let sessions: Vec<String> = connection.hmget(key(account, "session"), ids).await?;
        parse(&sessions)
    }

    pub(super) async fn add_charge(&self, account: Account, charge: &Charge) -> Result<(), DataError> {
        let mut write = redis::pipe();
        push_charge(&mut write, account, charge)?;
        Ok(write.exec_async(&mut self.connection.clone()).await?)
    }

    pub(super) async fn charges(&self, account: Account) -> Result<Vec<Charge>, DataError> {
        let charges: Vec<String> = self.connection.clone().lrange(key(account, "charges"), 0, -1).await?;
        parse(&charges)
    }

    pub(super) async fn add_document(
        &self,
        account: Account,
        document: &Document,
        charge: &Charge,
        committed: impl Future<Output = ()>,
    ) -> Result<(), DataError> {
        let json = serde_json::to_string(document)?;
        let mut write = redis::pipe();
        write
            .atomic()
            .rpush(documents_of(account, &document.session_id), json)
            .sadd(DOCUMENTS, &document.document_id);
        push_charge(&mut write, account, charge)?;
        write.exec_async(&mut self.connection.clone()).await?;
        committed.await;
        Ok(())
    }

    pub(super) async fn documents(&self, account: Account, session_id: &str) -> Result<Vec<Document>, DataError> {
        let key = documents_of(account, session_id);
        let documents: Vec<String> = self.connection.clone().lrange(key, 0, -1).await?;
        parse(&documents)
    }

    pub(super) async fn has_document(&self, document_id: &str) -> Result<bool, DataError> {
        Ok(self.connection.clone().sismember(DOCUMENTS, document_id).await?)
    }

    pub(super) async fn set_user_status(
        &self,
        account: Account,
        user_id: &str,
        status: UserStatus,
        event: Option<&Draft>,
    ) -> Result<u64, DataError> {
        if let Some(event) = event {
            return self.decide(account, user_id, status, event).await;
        }
        let (version,) = redis::pipe()
            .atomic()
            .hset(key(account, "user_status"), user_id, status.as_str())
            .ignore()
            .hincr(key(account, "user_version"), user_id, 1)
            .query_async(&mut self.connection.clone())
            .await?;
        Ok(version)
    }

    pub(super) async fn is_first_time(
        &self,
        account: Account,
        workflow: &'static str,
        user_id: &str,
    ) -> Result<bool, DataError> {
        let been_through = key(account, &format!("been_through:{workflow}"));
        let added: u64 = self.connection.clone().sadd(been_through, user_id).await?;
        Ok(added == 1)
    }

    pub(super) async fn add_event(&self, event: &Event) -> Result<(), DataError> {
        let json = serde_json::to_string(event)?;
        Ok(self.connection.clone().rpush(EVENTS, json).await?)
    }

    pub(super) async fn events(&self) -> Result<Vec<Event>, DataError> {
        let events: Vec<String> = self.connection.clone().lrange(EVENTS, 0, -1).await?;
        parse(&events)
    }
}

fn documents_of(account: Account, session_id: &str) -> String {
    key(account, &format!("documents:{session_id}"))
}

fn push_charge(write: &mut Pipeline, account: Account, charge: &Charge) -> Result<(), DataError> {
    write.rpush(key(account, "charges"), serde_json::to_string(charge)?);
    Ok(())
}

fn parse<T: serde::de::DeserializeOwned>(rows: &[String]) -> Result<Vec<T>, DataError> {
    Ok(rows
        .iter()
        .map(|json| serde_json::from_str(json))
        .collect::<Result<_, _>>()?)
}
