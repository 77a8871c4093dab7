//! The statements of a table whose schema is known, and the role that they are for.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use sqlx::{AssertSqlSafe, PgConnection};

use super::statements::Statements;
use crate::store::sql::table::{DEFAULT, Table};

/// The schema of a table, the role, and whether the session's user can set another one: a superuser can, and
/// so can a member of any role.
const FOUND: &str = "\
SELECT nspname::text, current_setting('role'), EXISTS (
    SELECT FROM pg_catalog.pg_roles AS own
    WHERE own.rolname = session_user
      AND (own.rolsuper OR EXISTS (SELECT FROM pg_catalog.pg_auth_members AS is_in WHERE is_in.member = own.oid)))
FROM pg_catalog.pg_class AS found
     JOIN pg_catalog.pg_namespace AS named ON named.oid = found.relnamespace
WHERE found.oid = pg_catalog.to_regclass($1)";

/// The statements once the schema is known. It is found once, on a connection that nobody else has
/// used, and then written into every statement: whatever a handler sets on a connection, it is the same
/// table.
pub(super) struct Pin {
    /// As the application named it.
    table: Table,
    unpinned: Arc<Statements>,
    pinned: Mutex<Option<Pinned>>,
    /// Whether a handler may set another role than the session's.
    roles_vary: AtomicBool,
}

struct Pinned {
    statements: Arc<Statements>,
    /// The setting `role` of the store's own connections: mostly `none`.
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

    /// The statements: for the table that was found, or by the search path as long as none was.
    pub(super) fn statements(&self) -> Arc<Statements> {
        let pinned = self.pinned();
        Arc::clone(pinned.as_ref().map_or(&self.unpinned, |pinned| &pinned.statements))
    }

    /// The role that the statements need, if a handler may have set another one.
    pub(super) fn role(&self) -> Option<Arc<str>> {
        if !self.roles_vary.load(Ordering::Relaxed) {
            return None;
        }
        self.pinned().as_ref().map(|pinned| Arc::clone(&pinned.role))
    }

    /// A permission was missing. Perhaps the session has become a member of other roles meanwhile.
    pub(super) fn doubt_role(&self) {
        self.roles_vary.store(true, Ordering::Relaxed);
    }

    /// Finds the table by the connection's search path, unless it was found before.
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
            // The database's own error.
            let probe = format!("SELECT FROM {table} LIMIT 0");
            sqlx::raw_sql(AssertSqlSafe(probe)).execute(connection).await?;
            return Err(sqlx::Error::RowNotFound);
        };
        let statements = Arc::new(Statements::new(&self.table.pinned_to(&schema)));
        let role = role.into();
        if roles_vary {
            self.doubt_role();
        }
        // Whoever was first decides.
        let mut pinned = self.pinned();
        let pinned = pinned.get_or_insert(Pinned { statements, role });
        Ok(Arc::clone(&pinned.statements))
    }

    /// Forgets what was found, and says whether there was anything to forget.
    pub(super) fn forget(&self) -> bool {
        self.pinned().take().is_some()
    }
}
