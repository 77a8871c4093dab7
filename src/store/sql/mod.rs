//! Stores in an SQL database that the application already has, and the atomic mode on them.
//!
//! Each slot is one row. The tables differ only in their column types: see `table.sql` in each
//! database's folder. Every decision is one statement that uses the database's clock and checks the
//! row itself. So neither the processes' clocks nor changes since an earlier statement matter. The
//! stores send their statements on connections of their own (`lane`). A `begin` may take several
//! statements: SQLite reads before it claims, and PostgreSQL takes over a row with a separate
//! statement, which skips a row that a transaction is writing.

#[cfg(feature = "postgres")]
mod asking;
mod begin;
mod claim;
mod error;
mod guarded;
mod inspect;
mod lane;
mod pool;
mod statements;
mod sweeper;
mod table;
mod transaction;
#[cfg_attr(not(feature = "_sqlite"), allow(dead_code, reason = "only SQLite has one writer"))]
mod turns;
mod unit_of_work;
mod value;

#[cfg(feature = "postgres")]
mod postgres;
#[cfg(feature = "_sqlite")]
mod sqlite;

pub use guarded::AtomicDatabase;
#[cfg(feature = "postgres")]
pub use postgres::PostgresStore;
#[cfg(feature = "_sqlite")]
pub use sqlite::SqliteStore;
pub use sweeper::Sweeper;
#[cfg(feature = "axum")]
pub use transaction::TransactionOrOwn;
pub use transaction::{Transaction, TransactionError, TransactionErrorKind, Work};
