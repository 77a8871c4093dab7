//! The statements for a table whose schema is known, and the role that the statements need.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use sqlx::{AssertSqlSafe, PgConnection};

use super::statements::Statements;
use crate::store::sql::table::{DEFAULT, Table};

/// The query that returns the table's schema, the role, and whether the session's user can set a
/// different role. A superuser or a member of any role can.
const FOUND: &str = "\
SELECT nspname::text, current_setting('role'), EXISTS (
    SELECT FROM pg_catalog.pg_roles AS own
    WHERE own.rolname = session_user
      AND (own.rolsuper OR EXISTS (SELECT FROM pg_catalog.pg_auth_members AS is_in WHERE is_in.member = own.oid)))
FROM pg_catalog.pg_class AS found
     JOIN pg_catalog.pg_namespace AS named ON named.oid = found.relnamespace
WHERE found.oid = pg_catalog.to_regclass($1)";

/// The statements for the table, whose schema is determined only once, on a connection that nothing
/// else has used. The schema is then part of every statement, so every statement uses the same
/// table, whatever settings a handler changes on a connection.
pub(super) struct Pin {
    /// The table with the name that the application set.
    table: Table,
    unpinned: Arc<Statements>,
    pinned: Mutex<Option<Pinned>>,
    /// Whether a handler can set a role that differs from the session's role.
    roles_vary: AtomicBool,
}

struct Pinned {
    statements: Arc<Statements>,
    /// The setting `role` of the store's own connections: usually `none`.
    role: Arc<str>,
}

impl Pin {
    pub(super) fn new(table: Table) -> Self {
        let unpinned = Arc::new(Statements::new(&table));
        Self {
            table,
            unpinned,
            pinned: Mutex::default(),
            roles_vary: AtomicBool::new(false),
        }
    }

    fn pinned(&self) -> MutexGuard<'_, Option<Pinned>> {
        self.pinned.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the statements for the table that was found or, before that, for the table in the
    /// search path.
    pub(super) fn statements(&self) -> Arc<Statements> {
        let pinned = self.pinned();
        Arc::clone(pinned.as_ref().map_or(&self.unpinned, |pinned| &pinned.statements))
    }

    /// Returns the role that the statements need, if a handler may have set a different role.
    pub(super) fn role(&self) -> Option<Arc<str>> {
        if !self.roles_vary.load(Ordering::Relaxed) {
            return None;
        }
        self.pinned().as_ref().map(|pinned| Arc::clone(&pinned.role))
    }

    /// Notes that a handler may have set a different role. This method is also called after an
    /// error about a missing permission, because the user may have become a member of other roles
    /// in the meantime.
    pub(super) fn doubt_role(&self) {
        self.roles_vary.store(true, Ordering::Relaxed);
    }

    /// Looks up the table in the connection's search path, unless it has already been found.
    pub(super) async fn find(&self, connection: &mut PgConnection) -> Result<Arc<Statements>, sqlx::Error> {
        if let Some(pinned) = &*self.pinned() {
            return Ok(Arc::clone(&pinned.statements));
        }
        let table = self.table.sql(DEFAULT);
        let found: Option<(String, String, bool)> = sqlx::query_as(FOUND)
            .bind(table.as_ref())
            .fetch_optional(&mut *connection)
            .await?;
        let Some((schema, role, roles_vary)) = found else {
            // This probe fails with the database's own error.
            let probe = format!("SELECT FROM {table} LIMIT 0");
            sqlx::raw_sql(AssertSqlSafe(probe)).execute(connection).await?;
            return Err(sqlx::Error::RowNotFound);
        };
        let statements = Arc::new(Statements::new(&self.table.pinned_to(&schema)));
        let role = role.into();
        if roles_vary {
            self.doubt_role();
        }
        // The first caller's result is kept.
        let mut pinned = self.pinned();
        let pinned = pinned.get_or_insert(Pinned { statements, role });
        Ok(Arc::clone(&pinned.statements))
    }

    /// Forgets the table that was found, and returns whether a table had been found.
    pub(super) fn forget(&self) -> bool {
        self.pinned().take().is_some()
    }
}
