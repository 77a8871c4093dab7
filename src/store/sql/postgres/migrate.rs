//! Making the table, and checking its layout.

use sqlx::{AssertSqlSafe, Row};

use super::error::failed;
use super::guarded::Mark;
use super::{BEGIN, PostgresStore};
use crate::store::sql::claim::{ClaimId, trial};
use crate::store::sql::open::Open;
use crate::store::sql::table::DEFAULT;
use crate::store::sql::unit_of_work::AtomicStore;
use crate::store::{StoreError, Token};

/// The SQL that [`PostgresStore::migrate`] runs.
const LAYOUT: &str = include_str!("table.sql");
/// The advisory lock by which those who migrate at once take turns: "idempkey" in ASCII.
const MIGRATION_LOCK: i64 = 0x6964_656d_706b_6579;

impl PostgresStore {
    /// Makes the table if it is missing, and checks its layout. Safe to call from many processes at
    /// once: they take turns. The same SQL is in `src/store/sql/postgres/table.sql`.
    ///
    /// # Errors
    ///
    /// The database cannot be reached, the role may not create tables, or a table of that name has
    /// another layout.
    pub async fn migrate(&self) -> Result<(), StoreError> {
        self.migrate_in_turn().await.map_err(|error| failed("migrate", error))?;
        // Finds a table of that name that belongs to something else, and rights that are missing.
        self.try_out().await.map_err(|error| failed("migrate", error))
    }

    async fn migrate_in_turn(&self) -> Result<(), sqlx::Error> {
        let mut transaction = Open::begin(&self.pool, BEGIN).await?;
        sqlx::query("SELECT pg_advisory_xact_lock($1)")
            .bind(MIGRATION_LOCK)
            .execute(&mut *transaction)
            .await?;
        if let Some(schema) = &self.table.schema {
            // Not `IF NOT EXISTS`, which asks for the right to create a schema even if it is there.
            let there: bool = sqlx::query_scalar("SELECT to_regnamespace($1) IS NOT NULL")
                .bind(format!("\"{schema}\""))
                .fetch_one(&mut *transaction)
                .await?;
            if !there {
                let create = format!("CREATE SCHEMA \"{schema}\"");
                sqlx::raw_sql(AssertSqlSafe(create)).execute(&mut *transaction).await?;
            }
        }
        // A role that may not create anything can migrate what is there.
        let there: bool = sqlx::query_scalar("SELECT to_regclass($1) IS NOT NULL")
            .bind(self.table.sql(DEFAULT).as_ref())
            .fetch_one(&mut *transaction)
            .await?;
        if !there {
            let layout = self.table.sql(LAYOUT);
            sqlx::raw_sql(AssertSqlSafe(layout)).execute(&mut *transaction).await?;
        }
        transaction.commit().await
    }

    /// Goes through the life of a claim, and undoes it.
    async fn try_out(&self) -> Result<(), sqlx::Error> {
        let begin = trial();
        let claim = ClaimId::of(&begin);
        let mut transaction = Open::begin(&self.pool, BEGIN).await?;
        self.claim(&begin).fetch_one(&mut *transaction).await?;
        let mark = Mark::new();
        sqlx::query("SELECT set_config('tower_idempotency.open', $1, true)")
            .bind(mark.as_str())
            .execute(&mut *transaction)
            .await?;
        self.complete_in(&mut transaction, &mark, &claim, b"trial", begin.ttl)
            .await?;
        let retry = begin.with_token(Token::random());
        let row = self.claim(&retry).fetch_one(&mut *transaction).await?;
        let kept: Option<Vec<u8>> = row.try_get("record")?;
        if kept.as_deref() != Some(b"trial") {
            return Err(sqlx::Error::Decode("the record did not come back".into()));
        }
        self.take_over(&retry).execute(&mut *transaction).await?;
        for statement in [&self.sql.look_up, &self.sql.forget] {
            sqlx::query(statement.text())
                .bind(begin.slot.as_bytes().as_slice())
                .execute(&mut *transaction)
                .await?;
        }
        transaction.rollback().await
    }
}
