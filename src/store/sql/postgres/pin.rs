//! The statements of a table whose schema is known.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use sqlx::{AssertSqlSafe, PgConnection};

use super::statements::Statements;
use crate::store::sql::table::{DEFAULT, Table};

/// The statements once the schema is known. It is found once, on a connection that nobody else has
/// used, and then written into every statement: whatever a handler sets on a connection, it is the same
/// table.
pub(super) struct Pin {
    /// As the application named it.
    table: Table,
    unpinned: Arc<Statements>,
    pinned: Mutex<Option<Arc<Statements>>>,
}

impl Pin {
    pub(super) fn new(table: Table) -> Self {
        let unpinned = Arc::new(Statements::new(&table));
        Self {
            table,
            unpinned,
            pinned: Mutex::default(),
        }
    }

    fn pinned(&self) -> MutexGuard<'_, Option<Arc<Statements>>> {
        self.pinned.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The statements: for the table that was found, or by the search path as long as none was.
    pub(super) fn statements(&self) -> Arc<Statements> {
        self.pinned().clone().unwrap_or_else(|| Arc::clone(&self.unpinned))
    }

    /// Finds the table by the connection's search path, unless it was found before.
    pub(super) async fn find(&self, connection: &mut PgConnection) -> Result<Arc<Statements>, sqlx::Error> {
        if let Some(statements) = &*self.pinned() {
            return Ok(Arc::clone(statements));
        }
        const SCHEMA: &str = "SELECT nspname::text FROM pg_catalog.pg_class AS found \
             JOIN pg_catalog.pg_namespace AS named ON named.oid = found.relnamespace \
             WHERE found.oid = pg_catalog.to_regclass($1)";
        let table = self.table.sql(DEFAULT);
        let schema: Option<String> = sqlx::query_scalar(SCHEMA)
            .bind(table.as_ref())
            .fetch_optional(&mut *connection)
            .await?;
        let Some(schema) = schema else {
            // The database's own error.
            let probe = format!("SELECT FROM {table} LIMIT 0");
            sqlx::raw_sql(AssertSqlSafe(probe)).execute(connection).await?;
            return Err(sqlx::Error::RowNotFound);
        };
        let statements = Arc::new(Statements::new(&self.table.pinned_to(&schema)));
        // Whoever was first decides.
        Ok(Arc::clone(self.pinned().get_or_insert(statements)))
    }

    /// Forgets what was found, and says whether there was anything to forget.
    pub(super) fn forget(&self) -> bool {
        self.pinned().take().is_some()
    }
}
