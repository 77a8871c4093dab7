//! The data in the PostgreSQL database that has the keys.

use sqlx::{PgPool, Postgres};
use tower_idempotency::store::sql::Transaction;

use super::super::accounts::Account;
use super::super::billing::Charge;
use super::super::documents::Document;
use super::super::events::Draft;
use super::super::sessions::Session;
use super::super::users::UserStatus;
use super::super::webhooks::Event;
use super::DataError;
use super::outbox::postgres as outbox;
use super::sql::{self, Writing, signed};

const BEGIN: &str = "BEGIN";
/// The advisory lock for processes that create the tables at the same time: "idv_data" in ASCII.
const LAYOUT_LOCK: i64 = 0x6964_765f_6461_7461;

const LAYOUT: &str = "
CREATE TABLE IF NOT EXISTS idv_sessions (
    number      bigserial PRIMARY KEY,
    account     text   NOT NULL,
    session_id  text   NOT NULL UNIQUE,
    user_id     text   NOT NULL,
    workflow_id text   NOT NULL,
    status      text   NOT NULL,
    attempt     bigint NOT NULL,
    created_at  text   NOT NULL
);
CREATE INDEX IF NOT EXISTS idv_sessions_account ON idv_sessions (account, number);
CREATE TABLE IF NOT EXISTS idv_charges (
    number       bigserial PRIMARY KEY,
    account      text   NOT NULL,
    operation    text   NOT NULL,
    reference    text   NOT NULL UNIQUE,
    amount_cents bigint NOT NULL
);
CREATE INDEX IF NOT EXISTS idv_charges_account ON idv_charges (account, number);
CREATE TABLE IF NOT EXISTS idv_documents (
    number      bigserial PRIMARY KEY,
    account     text    NOT NULL,
    document_id text    NOT NULL UNIQUE,
    session_id  text    NOT NULL,
    kind        text    NOT NULL,
    file_name   text,
    bytes       bigint  NOT NULL,
    sha256      text    NOT NULL
);
CREATE INDEX IF NOT EXISTS idv_documents_session ON idv_documents (account, session_id, number);
CREATE TABLE IF NOT EXISTS idv_users (
    account text   NOT NULL,
    user_id text   NOT NULL,
    status  text   NOT NULL,
    version bigint NOT NULL
);
-- An index takes some 2700 bytes at most, and nobody says how long a user's id is.
CREATE UNIQUE INDEX IF NOT EXISTS idv_users_id ON idv_users (account, md5(user_id));
CREATE TABLE IF NOT EXISTS idv_been_through (
    account  text   NOT NULL,
    workflow text   NOT NULL,
    user_id  text   NOT NULL
);
CREATE UNIQUE INDEX IF NOT EXISTS idv_been_through_id ON idv_been_through (account, workflow, md5(user_id));
CREATE TABLE IF NOT EXISTS idv_events (
    number   bigserial PRIMARY KEY,
    event_id text   NOT NULL,
    type     text   NOT NULL
);";

#[derive(Clone)]
pub(crate) struct PostgresData {
    pub(super) pool: PgPool,
    operation: Option<Transaction<Postgres>>,
}

impl PostgresData {
    /// Creates the tables that are missing. Many processes can call this at the same time.
    pub(crate) async fn open(pool: PgPool) -> Result<Self, sqlx::Error> {
        let mut transaction = pool.begin_with(BEGIN).await?;
        sqlx::query("SELECT pg_advisory_xact_lock($1)")
            .bind(LAYOUT_LOCK)
            .execute(&mut *transaction)
            .await?;
        sqlx::raw_sql(LAYOUT).execute(&mut *transaction).await?;
        sqlx::raw_sql(outbox::LAYOUT).execute(&mut *transaction).await?;
        transaction.commit().await?;
        Ok(Self { pool, operation: None })
    }

    /// Returns the same data, with its writes in the operation's transaction if there is one.
    pub(super) fn within(self, operation: Option<Transaction<Postgres>>) -> Self {
        Self { operation, ..self }
    }

    async fn write(&self) -> Result<Writing<Postgres>, DataError> {
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
             VALUES ($1, $2, $3, $4, $5, $6, $7)",
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
             WHERE account = $1 AND session_id = $2",
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
             WHERE account = $1 ORDER BY number",
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
            "SELECT operation, reference, amount_cents FROM idv_charges WHERE account = $1 ORDER BY number",
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
             VALUES ($1, $2, $3, $4, $5, $6, $7)",
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
             WHERE account = $1 AND session_id = $2 ORDER BY number",
        )
        .bind(account.id())
        .bind(session_id)
        .fetch_all(&self.pool)
        .await?;
        rows.into_iter().map(sql::document).collect()
    }

    pub(super) async fn has_document(&self, document_id: &str) -> Result<bool, DataError> {
        let known = sqlx::query_scalar("SELECT EXISTS (SELECT 1 FROM idv_documents WHERE document_id = $1)");
        if known.bind(document_id).fetch_one(&self.pool).await? {
            return Ok(true);
        }
        // If a connection broke during `COMMIT`, the transaction can still be running, and its row
        // cannot be selected yet. Inserting the same id waits for the transaction.
        let mut trial = self.pool.begin_with(BEGIN).await?;
        sqlx::query("SET LOCAL lock_timeout = '5s'")
            .execute(&mut *trial)
            .await?;
        let inserted = sqlx::query(
            "INSERT INTO idv_documents (account, document_id, session_id, kind, bytes, sha256) \
             VALUES ('', $1, '', '', 0, '') ON CONFLICT (document_id) DO NOTHING",
        )
        .bind(document_id)
        .execute(&mut *trial)
        .await?;
        trial.rollback().await?;
        Ok(inserted.rows_affected() == 0)
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
            "INSERT INTO idv_users AS known (account, user_id, status, version) VALUES ($1, $2, $3, 1) \
             ON CONFLICT (account, md5(user_id)) DO UPDATE SET status = excluded.status, version = known.version + 1 \
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
            "INSERT INTO idv_been_through (account, workflow, user_id) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING",
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
        sqlx::query("INSERT INTO idv_events (event_id, type) VALUES ($1, $2)")
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

async fn insert_charge(writing: &mut Writing<Postgres>, account: Account, charge: &Charge) -> Result<(), DataError> {
    sqlx::query("INSERT INTO idv_charges (account, operation, reference, amount_cents) VALUES ($1, $2, $3, $4)")
        .bind(account.id())
        .bind(charge.operation.as_ref())
        .bind(&charge.reference)
        .bind(signed(charge.amount_cents))
        .execute(&mut **writing)
        .await?;
    Ok(())
}
