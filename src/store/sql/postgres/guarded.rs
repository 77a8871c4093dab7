//! Guards transactions in PostgreSQL.
//!
//! The guard uses three session settings. `default_transaction_read_only` is on as long as the
//! transaction is open, so statements outside the transaction cannot write. The transaction itself
//! is `READ WRITE`. `tower_idempotency.open` is local to the transaction, so it is empty once the
//! transaction is over. `tower_idempotency.kept` is set in the transaction and persists if the
//! transaction is committed, so it distinguishes a commit from a rollback.

use sqlx::postgres::PgConnection;
use sqlx::{AssertSqlSafe, Connection, Database, Postgres, Row, SqlSafeStr, raw_sql};
use sqlx_core::transaction::TransactionManager;

use crate::store::Token;
use crate::store::sql::guarded::{AtomicDatabase, Guarded, RolledBack};

type Manager = <Postgres as Database>::TransactionManager;

/// The value that identifies a transaction in the settings `tower_idempotency.open` and
/// `tower_idempotency.kept`.
#[derive(Debug)]
pub struct Mark(String);

impl Mark {
    pub(super) fn new() -> Self {
        let Token(number) = Token::random();
        Self(format!("{number:016x}"))
    }

    pub(super) fn as_str(&self) -> &str {
        &self.0
    }

    /// Returns the script that begins the transaction. The script takes one round trip, so all of
    /// it runs on one connection even behind a pooler.
    fn begin(&self) -> String {
        let mark = &self.0;
        format!(
            "BEGIN; SET default_transaction_read_only = on; COMMIT; \
             BEGIN READ WRITE; SET tower_idempotency.kept = '{mark}'; SET LOCAL tower_idempotency.open = '{mark}'"
        )
    }

    /// Returns the statement that checks whether the transaction is open. The statement also resets
    /// the session's settings. The reset takes effect at commit.
    fn is_open(&self) -> String {
        let mark = &self.0;
        format!(
            "SELECT coalesce(current_setting('tower_idempotency.open', true) = '{mark}', false), \
             set_config('default_transaction_read_only', NULL, false)"
        )
    }

    /// Returns the statement that checks whether the transaction was committed. The statement also
    /// resets the session's settings.
    fn was_committed(&self) -> String {
        let mark = &self.0;
        format!(
            "SELECT coalesce(current_setting('tower_idempotency.kept', true) = '{mark}', false), \
             set_config('default_transaction_read_only', NULL, false)"
        )
    }
}

impl AtomicDatabase for Postgres {}

impl Guarded for Postgres {
    type Guard = Mark;

    // If the script fails partway, a transaction or a setting may remain on the connection.
    const CLEAN_IF_NOT_BEGUN: bool = false;

    async fn begin(connection: &mut PgConnection) -> Result<Mark, sqlx::Error> {
        let mark = Mark::new();
        let script = AssertSqlSafe(mark.begin()).into_sql_str();
        Manager::begin(connection, Some(script)).await.map(|()| mark)
    }

    fn depth(connection: &PgConnection) -> usize {
        Manager::get_transaction_depth(connection)
    }

    async fn is_open(connection: &mut PgConnection, mark: &Mark) -> Result<bool, sqlx::Error> {
        if Self::depth(connection) != 1 {
            return Ok(false);
        }
        yes(connection, mark.is_open()).await
    }

    async fn commit(connection: &mut PgConnection, _: &Mark) -> Result<(), sqlx::Error> {
        Manager::commit(connection).await
    }

    fn leaves_in_doubt(error: &sqlx::Error) -> bool {
        match error {
            // A shutdown, a broken connection or the error "statement completion unknown" can
            // follow a commit that took effect.
            sqlx::Error::Database(database) => database
                .code()
                .is_none_or(|code| code.starts_with("57P") || code.starts_with("08") || code == "40003"),
            _ => true,
        }
    }

    async fn roll_back(connection: &mut PgConnection, mark: &Mark) -> Result<RolledBack, sqlx::Error> {
        let ask = mark.was_committed();
        if Self::depth(connection) == 1 {
            // The second transaction prevents a pooler from assigning a different connection before
            // the session is reset. `sqlx` takes this transaction for the one that it began.
            let was_committed = yes(connection, format!("ROLLBACK; BEGIN; {ask}")).await?;
            Manager::commit(connection).await?;
            return Ok(RolledBack {
                was_committed,
                is_clean: true,
            });
        }
        // `sqlx` has already rolled back, or still tracks savepoints that no longer exist.
        let script = if connection.is_in_transaction() {
            format!("ROLLBACK; {ask}")
        } else {
            ask
        };
        Ok(RolledBack {
            was_committed: yes(connection, script).await?,
            is_clean: false,
        })
    }
}

/// Runs a script, and returns the first column of its only row. The only variable part of the
/// script is a mark that this crate generates.
async fn yes(connection: &mut PgConnection, script: String) -> Result<bool, sqlx::Error> {
    let rows = raw_sql(AssertSqlSafe(script)).fetch_all(connection).await?;
    rows.first().ok_or(sqlx::Error::RowNotFound)?.try_get(0)
}
