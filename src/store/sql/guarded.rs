//! Transactions that neither the handler's statements nor `sqlx` can end unnoticed.
//!
//! `sqlx` counts a connection's nested transactions, but it does not check the handler's
//! statements. For example, it does not notice if the handler itself sends `COMMIT`. If the future
//! of a nested `begin` is dropped while it is waiting, `sqlx` rolls back the outer transaction, and
//! later statements run outside any transaction. So each database guards its transactions in two
//! ways: statements outside a transaction fail, and the database can prove whether a transaction is
//! still open.

use std::future::Future;

use sqlx::Database;

/// A database that supports atomic mode: `sqlx::Postgres` and `sqlx::Sqlite`.
///
/// The trait is sealed. Use it as a bound if your own code is generic over the database.
pub trait AtomicDatabase: Guarded {}

/// A database that can guard a transaction.
pub trait Guarded: Database {
    /// A value that distinguishes a transaction from every other transaction on the same
    /// connection.
    type Guard: Send + Sync + 'static;

    /// Whether a connection is unchanged after a failed attempt to begin a transaction on it.
    const CLEAN_IF_NOT_BEGUN: bool;

    /// Begins a transaction on a connection that has no transaction. From then on, statements
    /// outside the new transaction cannot write.
    fn begin(connection: &mut Self::Connection) -> impl Future<Output = Result<Self::Guard, sqlx::Error>> + Send;

    /// Returns the number of nested transactions that `sqlx` counts on the connection. 1 means that
    /// the transaction has no savepoint.
    fn depth(connection: &Self::Connection) -> usize;

    /// Returns whether the transaction is still open. If it is, committing it also makes the
    /// connection ready for other work.
    fn is_open(
        connection: &mut Self::Connection,
        guard: &Self::Guard,
    ) -> impl Future<Output = Result<bool, sqlx::Error>> + Send;

    /// Commits the transaction. Check that it is open immediately before the call.
    fn commit(
        connection: &mut Self::Connection,
        guard: &Self::Guard,
    ) -> impl Future<Output = Result<(), sqlx::Error>> + Send;

    /// Returns whether a commit that failed with this error may have taken effect anyway.
    fn leaves_in_doubt(error: &sqlx::Error) -> bool;

    /// Rolls back any open transaction, and reports whether the transaction had already been
    /// committed.
    fn roll_back(
        connection: &mut Self::Connection,
        guard: &Self::Guard,
    ) -> impl Future<Output = Result<RolledBack, sqlx::Error>> + Send;
}

/// The state of a connection after a rollback.
#[derive(Debug, Clone, Copy)]
pub struct RolledBack {
    /// Whether something other than this crate had already committed the transaction.
    pub(super) was_committed: bool,
    /// Whether the connection is in the same state as before the transaction. If not, the
    /// connection must be closed.
    pub(super) is_clean: bool,
}
