//! A transaction that neither the handler's statements nor `sqlx` can leave unnoticed.
//!
//! `sqlx` counts how deep a connection is in transactions, and trusts the handler's statements. It
//! does not notice a handler that sends `COMMIT` itself. If a nested `begin` is dropped while it
//! waits, `sqlx` rolls back the outer transaction, and later statements run outside any
//! transaction. So each database guards its transactions in two ways: statements outside them fail,
//! and it can be proved whether they are still open.

use std::future::Future;

use sqlx::Database;

/// A database that supports the atomic mode: `sqlx::Postgres` and `sqlx::Sqlite`.
///
/// The trait is sealed. Use it as a bound if your own code is generic over the database.
pub trait AtomicDatabase: Guarded {}

/// How a database guards a transaction.
pub trait Guarded: Database {
    /// Distinguishes a transaction from any other on its connection.
    type Guard: Send + Sync + 'static;

    /// Whether the connection is unchanged if a transaction could not begin.
    const CLEAN_IF_NOT_BEGUN: bool;

    /// Begins a transaction on a connection that has none. From now on, statements outside that
    /// transaction cannot write.
    fn begin(connection: &mut Self::Connection) -> impl Future<Output = Result<Self::Guard, sqlx::Error>> + Send;

    /// Returns how deep in transactions `sqlx` believes the connection to be: 1 means no savepoint.
    fn depth(connection: &Self::Connection) -> usize;

    /// Returns whether the transaction is still open. If so, the connection is ready for other work
    /// as soon as the transaction is committed.
    fn is_open(
        connection: &mut Self::Connection,
        guard: &Self::Guard,
    ) -> impl Future<Output = Result<bool, sqlx::Error>> + Send;

    /// Commits the transaction, which was just found to be open.
    fn commit(
        connection: &mut Self::Connection,
        guard: &Self::Guard,
    ) -> impl Future<Output = Result<(), sqlx::Error>> + Send;

    /// Rolls back whatever is open, and finds out what had become of the transaction.
    fn roll_back(
        connection: &mut Self::Connection,
        guard: &Self::Guard,
    ) -> impl Future<Output = Result<RolledBack, sqlx::Error>> + Send;
}

/// The state of a connection after a rollback.
#[derive(Debug, Clone, Copy)]
pub struct RolledBack {
    /// Whether the transaction had already been committed, and not by us.
    pub(super) was_committed: bool,
    /// Whether the connection is as it was before the transaction. If not, it must be closed.
    pub(super) is_clean: bool,
}
