//! Creates the table, and checks its layout.

use sqlx::{AssertSqlSafe, Connection, PgConnection};

use super::PostgresStore;
use super::driver::PostgresDriver;
use super::error::failed;
use super::guarded::Mark;
use super::job::{Change, Job, What};
use super::run::{change_one, claim_one, read, take_over};
use super::wire::Wire;
use crate::store::sql::claim::{ClaimId, trial};
use crate::store::sql::lane::Driver;
use crate::store::sql::table::DEFAULT;
use crate::store::sql::unit_of_work::AtomicStore;
use crate::store::{StoreError, Token};

/// The SQL that [`PostgresStore::migrate`] runs.
const LAYOUT: &str = include_str!("table.sql");
/// The first column of each index. The store finds an index by its table and column rather than by
/// its name, because a renamed table keeps its index names.
const INDEXED: [&str; 2] = ["sweep_at", "scope"];
/// The query that returns whether a table has an index that begins with a given column.
const HAS_INDEX: &str = "SELECT EXISTS (SELECT FROM pg_catalog.pg_index AS found \
     JOIN pg_catalog.pg_attribute AS col ON col.attrelid = found.indrelid AND col.attnum = found.indkey[0] \
     WHERE found.indrelid = pg_catalog.to_regclass($1) AND found.indisvalid AND col.attname = $2)";
/// The advisory lock that makes concurrent migrations take turns: "idempkey" in ASCII.
const MIGRATION_LOCK: i64 = 0x6964_656d_706b_6579;

impl PostgresStore {
    /// Creates the table and its indexes if they are missing, and checks the layout. Many processes
    /// can safely call this method at the same time, because they take turns. The same SQL is in
    /// `src/store/sql/postgres/table.sql`. The method uses a separate connection.
    ///
    /// # Errors
    ///
    /// Returns an error if the database cannot be reached, the role is not allowed to create
    /// tables, or a table with this name has a different layout.
    pub async fn migrate(&self) -> Result<(), StoreError> {
        let failed = |error| failed("migrate", error);
        let driver = self.lanes.driver();
        let within = self.pool.options().get_acquire_timeout();
        let mut connection = driver.connector.connect(within).await.map_err(failed)?;
        self.migrate_in_turn(&mut connection).await.map_err(failed)?;
        let sql = self.pin.find(&mut connection).await.map_err(failed)?;
        let mut wire = Wire { connection, sql };
        // Detects missing permissions, and a table that has this name but a different purpose.
        self.try_out(&mut wire).await.map_err(failed)?;
        PostgresDriver::close(wire).await;
        Ok(())
    }

    async fn migrate_in_turn(&self, connection: &mut PgConnection) -> Result<(), sqlx::Error> {
        let mut transaction = connection.begin().await?;
        // Waiting for other migrations may take a while.
        sqlx::raw_sql("SET LOCAL lock_timeout = 0")
            .execute(&mut *transaction)
            .await?;
        sqlx::query("SELECT pg_advisory_xact_lock($1)")
            .bind(MIGRATION_LOCK)
            .execute(&mut *transaction)
            .await?;
        if let Some(schema) = &self.table.schema {
            // `IF NOT EXISTS` would require the permission to create a schema even if the schema
            // exists.
            let there: bool = sqlx::query_scalar("SELECT to_regnamespace($1) IS NOT NULL")
                .bind(format!("\"{schema}\""))
                .fetch_one(&mut *transaction)
                .await?;
            if !there {
                let create = format!("CREATE SCHEMA \"{schema}\"");
                sqlx::raw_sql(AssertSqlSafe(create)).execute(&mut *transaction).await?;
            }
        }
        // A role without the permission to create tables can still migrate an existing table.
        let table = self.table.sql(DEFAULT);
        let there: bool = sqlx::query_scalar("SELECT to_regclass($1) IS NOT NULL")
            .bind(table.as_ref())
            .fetch_one(&mut *transaction)
            .await?;
        if !there {
            let layout = self.table.sql(LAYOUT);
            sqlx::raw_sql(AssertSqlSafe(layout)).execute(&mut *transaction).await?;
        }
        for column in INDEXED {
            let has_index: bool = sqlx::query_scalar(HAS_INDEX)
                .bind(table.as_ref())
                .bind(column)
                .fetch_one(&mut *transaction)
                .await?;
            if !has_index {
                let create = format!("CREATE INDEX ON {table} ({column})");
                sqlx::raw_sql(AssertSqlSafe(create)).execute(&mut *transaction).await?;
            }
        }
        transaction.commit().await
    }

    /// Runs a trial claim through its whole life cycle, and then undoes it.
    async fn try_out(&self, wire: &mut Wire) -> Result<(), sqlx::Error> {
        let begin = trial();
        sqlx::raw_sql("BEGIN").execute(&mut wire.connection).await?;
        claim_one(wire, &begin).await?;
        let renew = Change::new(&begin.slot, begin.token, What::Renew(begin.lease));
        change_one(wire, &renew).await?;
        let claim = ClaimId::of(&begin);
        let mark = Mark::new();
        sqlx::query("SELECT set_config('tower_idempotency.open', $1, true)")
            .bind(mark.as_str())
            .execute(&mut wire.connection)
            .await?;
        self.complete_in(&mut wire.connection, &mark, &claim, b"trial", begin.ttl)
            .await?;
        let retry = begin.with_token(Token::random());
        let kept = claim_one(wire, &retry).await?.seen.and_then(|seen| seen.record);
        if kept.as_deref() != Some(b"trial") {
            return Err(sqlx::Error::Decode("the trial record could not be read back".into()));
        }
        take_over(wire, &[&retry]).await?;
        for job in [Job::LookUp(begin.slot), Job::Forget(begin.slot)] {
            read(wire, &job).await?;
        }
        sqlx::raw_sql("ROLLBACK").execute(&mut wire.connection).await?;
        Ok(())
    }
}
