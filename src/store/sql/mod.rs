//! Stores in an SQL database that the application already uses, and atomic mode for these stores.
//!
//! Each slot is one row. The tables differ only in their column types: see `table.sql` in each
//! database's folder. A single statement makes each decision. The statement uses the database's
//! clock and checks the row itself, so differences between the processes' clocks do not matter, and
//! neither do changes since an earlier statement. The stores send these statements on their own
//! connections (`lane`), not on the application's pool. `begin` may need several statements: the
//! SQLite store reads the slot before it claims it, and the PostgreSQL store takes over a row with
//! a separate statement. The takeover statement skips rows that a transaction is writing.

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
