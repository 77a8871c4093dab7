//! A transaction that nothing leaves unnoticed: not the handler's statements, and not `sqlx`.
//!
//! `sqlx` counts how deep a connection is in transactions, and trusts the handler's statements. A
//! handler that sends `COMMIT` by itself is not noticed. A nested `begin` that is dropped while it
//! waits rolls the outer transaction back, and the statements after it run on their own. So each
//! database guards its transactions in two ways: what runs outside them fails, and whether they are
//! still open can be proved.

use std::future::Future;

use sqlx::Database;

/// A database on which the atomic mode works: `sqlx::Postgres` and `sqlx::Sqlite`.
///
/// It is sealed. Use it as a bound where your own code is generic over the database.
pub trait AtomicDatabase: Guarded {}

/// How a database guards a transaction.
pub trait Guarded: Database {
    /// What tells a transaction from any other on its connection.
    type Guard: Send + Sync + 'static;

    /// Whether the connection is as it was before if a transaction could not begin.
    const CLEAN_IF_NOT_BEGUN: bool;

    /// Begins a transaction on a connection that has none. From now on, statements outside of that
    /// transaction cannot write.
    fn begin(connection: &mut Self::Connection) -> impl Future<Output = Result<Self::Guard, sqlx::Error>> + Send;

    /// How deep in transactions `sqlx` believes the connection to be: 1 is without a savepoint.
    fn depth(connection: &Self::Connection) -> usize;

    /// Whether the transaction is still open. If so, the connection is ready for other work as soon as
    /// the transaction is committed.
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

/// What a connection is like after a roll-back.
#[derive(Debug, Clone, Copy)]
pub struct RolledBack {
    /// The transaction was committed before, and not by us.
    pub(super) was_committed: bool,
    /// The connection is as it was before the transaction. Otherwise it has to be closed.
    pub(super) is_clean: bool,
}
