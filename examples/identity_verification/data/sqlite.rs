//! The data in the SQLite database that has the keys.

use sqlx::{Sqlite, SqlitePool};
use tower_idempotency::store::sql::Transaction;

use super::super::accounts::Account;
use super::super::billing::Charge;
use super::super::documents::Document;
use super::super::events::Draft;
use super::super::sessions::Session;
use super::super::users::UserStatus;
use super::super::webhooks::Event;
use super::DataError;
use super::outbox::sqlite as outbox;
use super::sql::{self, Writing, signed};

/// Every transaction that writes takes the writer's lock from the start, and waits for it.
const BEGIN: &str = "BEGIN IMMEDIATE";

const LAYOUT: &str = "
CREATE TABLE IF NOT EXISTS idv_sessions (
    number      INTEGER PRIMARY KEY AUTOINCREMENT,
    account     TEXT    NOT NULL,
    session_id  TEXT    NOT NULL UNIQUE,
    user_id     TEXT    NOT NULL,
    workflow_id TEXT    NOT NULL,
    status      TEXT    NOT NULL,
    attempt     INTEGER NOT NULL,
    created_at  TEXT    NOT NULL
);
CREATE INDEX IF NOT EXISTS idv_sessions_account ON idv_sessions (account, number);
CREATE TABLE IF NOT EXISTS idv_charges (
    number       INTEGER PRIMARY KEY AUTOINCREMENT,
    account      TEXT    NOT NULL,
    operation    TEXT    NOT NULL,
    reference    TEXT    NOT NULL UNIQUE,
    amount_cents INTEGER NOT NULL
);
CREATE INDEX IF NOT EXISTS idv_charges_account ON idv_charges (account, number);
CREATE TABLE IF NOT EXISTS idv_documents (
    number      INTEGER PRIMARY KEY AUTOINCREMENT,
    account     TEXT    NOT NULL,
    document_id TEXT    NOT NULL UNIQUE,
    session_id  TEXT    NOT NULL,
    kind        TEXT    NOT NULL,
    file_name   TEXT,
    bytes       INTEGER NOT NULL,
    sha256      TEXT    NOT NULL
);
CREATE INDEX IF NOT EXISTS idv_documents_session ON idv_documents (account, session_id, number);
CREATE TABLE IF NOT EXISTS idv_users (
    account TEXT    NOT NULL,
    user_id TEXT    NOT NULL,
    status  TEXT    NOT NULL,
    version INTEGER NOT NULL,
    PRIMARY KEY (account, user_id)
);
CREATE TABLE IF NOT EXISTS idv_been_through (
    account  TEXT NOT NULL,
    workflow TEXT NOT NULL,
    user_id  TEXT NOT NULL,
    PRIMARY KEY (account, workflow, user_id)
);
CREATE TABLE IF NOT EXISTS idv_events (
    number   INTEGER PRIMARY KEY AUTOINCREMENT,
    event_id TEXT    NOT NULL,
    type     TEXT    NOT NULL
);";

#[derive(Clone)]
pub(crate) struct SqliteData {
    pub(super) pool: SqlitePool,
    operation: Option<Transaction<Sqlite>>,
}

impl SqliteData {
    /// Creates the tables that are missing. Many processes can call this at the same time.
    pub(crate) async fn open(pool: SqlitePool) -> Result<Self, sqlx::Error> {
        let mut transaction = pool.begin_with(BEGIN).await?;
        sqlx::raw_sql(LAYOUT).execute(&mut *transaction).await?;
        sqlx::raw_sql(outbox::LAYOUT).execute(&mut *transaction).await?;
        transaction.commit().await?;
        Ok(Self { pool, operation: None })
    }

    /// Returns the same data, with its writes in the operation's transaction if there is one.
    pub(super) fn within(self, operation: Option<Transaction<Sqlite>>) -> Self {
        Self { operation, ..self }
    }

    async fn write(&self) -> Result<Writing<Sqlite>, DataError> {
        Writing::begin(&self.pool, BEGIN, self.operation.as_ref()).await
    }

    pub(super) async fn close(&self) {
        self.pool.close().await;
    }

    pub(super) async fn add_session(
        &self,
        account: Account,
        session: &Session,
        charge: &Charge,
    ) -> Result<(), DataError> {
        let mut writing = self.write().await?;
        sqlx::query(
            "INSERT INTO idv_sessions (account, session_id, user_id, workflow_id, status, attempt, created_at) \
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
        )
        .bind(account.id())
        .bind(&session.session_id)
        .bind(&session.user_id)
        .bind(&session.workflow_id)
        .bind(session.status.as_ref())
        .bind(i64::from(session.attempt))
        .bind(&session.created_at)
        .execute(&mut *writing)
        .await?;
        insert_charge(&mut writing, account, charge).await?;
        writing.done().await
    }

    pub(super) async fn session(&self, account: Account, id: &str) -> Result<Option<Session>, DataError> {
        let row = sqlx::query_as(
            "SELECT session_id, user_id, workflow_id, status, attempt, created_at FROM idv_sessions \
             WHERE account = ?1 AND session_id = ?2",
        )
        .bind(account.id())
        .bind(id)
        .fetch_optional(&self.pool)
        .await?;
        Ok(row.map(sql::session))
    }

    pub(super) async fn sessions(&self, account: Account) -> Result<Vec<Session>, DataError> {
        let rows = sqlx::query_as(
            "SELECT session_id, user_id, workflow_id, status, attempt, created_at FROM idv_sessions \
             WHERE account = ?1 ORDER BY number",
        )
        .bind(account.id())
        .fetch_all(&self.pool)
        .await?;
        Ok(rows.into_iter().map(sql::session).collect())
    }

    pub(super) async fn add_charge(&self, account: Account, charge: &Charge) -> Result<(), DataError> {
        let mut writing = self.write().await?;
        insert_charge(&mut writing, account, charge).await?;
        writing.done().await
    }

    pub(super) async fn charges(&self, account: Account) -> Result<Vec<Charge>, DataError> {
        let rows = sqlx::query_as(
            "SELECT operation, reference, amount_cents FROM idv_charges WHERE account = ?1 ORDER BY number",
        )
        .bind(account.id())
        .fetch_all(&self.pool)
        .await?;
        Ok(rows.into_iter().map(sql::charge).collect())
    }

    pub(super) async fn add_document(
        &self,
        account: Account,
        document: &Document,
        charge: &Charge,
        committed: impl Future<Output = ()> + Send + 'static,
    ) -> Result<(), DataError> {
        let mut writing = self.write().await?;
        sqlx::query(
            "INSERT INTO idv_documents (account, document_id, session_id, kind, file_name, bytes, sha256) \
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
        )
        .bind(account.id())
        .bind(&document.document_id)
        .bind(&document.session_id)
        .bind(document.kind.as_str())
        .bind(&document.file_name)
        .bind(signed(document.bytes))
        .bind(&document.sha256)
        .execute(&mut *writing)
        .await?;
        insert_charge(&mut writing, account, charge).await?;
        writing.done_and_then(committed).await
    }

    pub(super) async fn documents(&self, account: Account, session_id: &str) -> Result<Vec<Document>, DataError> {
        let rows = sqlx::query_as(
            "SELECT document_id, session_id, kind, file_name, bytes, sha256 FROM idv_documents \
             WHERE account = ?1 AND session_id = ?2 ORDER BY number",
        )
        .bind(account.id())
        .bind(session_id)
        .fetch_all(&self.pool)
        .await?;
        rows.into_iter().map(sql::document).collect()
    }

    pub(super) async fn has_document(&self, document_id: &str) -> Result<bool, DataError> {
        // A transaction that may still be committed holds the writer's lock, so wait for the lock.
        let mut trial = self.pool.begin_with(BEGIN).await?;
        let known = sqlx::query_scalar("SELECT EXISTS (SELECT 1 FROM idv_documents WHERE document_id = ?1)")
            .bind(document_id)
            .fetch_one(&mut *trial)
            .await?;
        trial.rollback().await?;
        Ok(known)
    }

    pub(super) async fn set_user_status(
        &self,
        account: Account,
        user_id: &str,
        status: UserStatus,
        event: Option<&Draft>,
    ) -> Result<u64, DataError> {
        let mut writing = self.write().await?;
        let version: i64 = sqlx::query_scalar(
            "INSERT INTO idv_users AS known (account, user_id, status, version) VALUES (?1, ?2, ?3, 1) \
             ON CONFLICT (account, user_id) DO UPDATE SET status = excluded.status, version = known.version + 1 \
             RETURNING version",
        )
        .bind(account.id())
        .bind(user_id)
        .bind(status.as_str())
        .fetch_one(&mut *writing)
        .await?;
        let version = version.unsigned_abs();
        if let Some(event) = event {
            outbox::append(&mut writing, &event.complete(version)).await?;
        }
        writing.done().await?;
        Ok(version)
    }

    pub(super) async fn is_first_time(
        &self,
        account: Account,
        workflow: &'static str,
        user_id: &str,
    ) -> Result<bool, DataError> {
        let inserted = sqlx::query(
            "INSERT INTO idv_been_through (account, workflow, user_id) VALUES (?1, ?2, ?3) ON CONFLICT DO NOTHING",
        )
        .bind(account.id())
        .bind(workflow)
        .bind(user_id)
        .execute(&self.pool)
        .await?;
        Ok(inserted.rows_affected() == 1)
    }

    pub(super) async fn add_event(&self, event: &Event) -> Result<(), DataError> {
        let mut writing = self.write().await?;
        sqlx::query("INSERT INTO idv_events (event_id, type) VALUES (?1, ?2)")
            .bind(event.event_id.as_json())
            .bind(&event.r#type)
            .execute(&mut *writing)
            .await?;
        writing.done().await
    }

    pub(super) async fn events(&self) -> Result<Vec<Event>, DataError> {
        let rows = sqlx::query_as("SELECT event_id, type FROM idv_events ORDER BY number")
            .fetch_all(&self.pool)
            .await?;
        rows.into_iter().map(sql::event).collect()
    }
}

async fn insert_charge(writing: &mut Writing<Sqlite>, account: Account, charge: &Charge) -> Result<(), DataError> {
    sqlx::query("INSERT INTO idv_charges (account, operation, reference, amount_cents) VALUES (?1, ?2, ?3, ?4)")
        .bind(account.id())
        .bind(charge.operation.as_ref())
        .bind(&charge.reference)
        .bind(signed(charge.amount_cents))
        .execute(&mut **writing)
        .await?;
    Ok(())
}
