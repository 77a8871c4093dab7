//! Guards transactions in SQLite.
//!
//! The guard uses two hooks on the connection. The commit hook turns each commit that this crate
//! did not send into a rollback, even the commit of a single statement outside a transaction. The
//! rollback hook records that the transaction is over.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use sqlx::{Database, SqlSafeStr, Sqlite, SqliteConnection};
use sqlx_core::transaction::TransactionManager;

use super::statements::BEGIN;
use crate::store::sql::guarded::{AtomicDatabase, Guarded, RolledBack};

type Manager = <Sqlite as Database>::TransactionManager;

/// The state of the hooks. The hooks remain on the connection until the next transaction replaces
/// them.
#[derive(Debug, Clone)]
pub struct Hooks(Arc<Watch>);

#[derive(Debug)]
struct Watch {
    /// Whether commits are refused.
    refuses: AtomicBool,
    /// Whether a rollback occurred while commits were refused.
    is_over: AtomicBool,
}

impl Hooks {
    async fn set(connection: &mut SqliteConnection) -> Result<Self, sqlx::Error> {
        let watch = Arc::new(Watch {
            refuses: AtomicBool::new(true),
            is_over: AtomicBool::new(false),
        });
        let mut handle = connection.lock_handle().await?;
        let asked = Arc::clone(&watch);
        handle.set_commit_hook(move || !asked.refuses.load(Ordering::Acquire));
        let told = Arc::clone(&watch);
        handle.set_rollback_hook(move || {
            if told.refuses.load(Ordering::Acquire) {
                told.is_over.store(true, Ordering::Release);
            }
        });
        Ok(Self(watch))
    }

    /// Stops refusing commits. From now on, the connection behaves like any other.
    fn let_go(&self) {
        self.0.refuses.store(false, Ordering::Release);
    }

    pub(super) fn saw_the_end(&self) -> bool {
        self.0.is_over.load(Ordering::Acquire)
    }
}

impl AtomicDatabase for Sqlite {}

impl Guarded for Sqlite {
    type Guard = Hooks;

    const CLEAN_IF_NOT_BEGUN: bool = true;

    async fn begin(connection: &mut SqliteConnection) -> Result<Hooks, sqlx::Error> {
        let hooks = Hooks::set(connection).await?;
        let begun = Manager::begin(connection, Some(BEGIN.into_sql_str())).await;
        if begun.is_err() {
            hooks.let_go();
        }
        begun.map(|()| hooks)
    }

    fn depth(connection: &SqliteConnection) -> usize {
        Manager::get_transaction_depth(connection)
    }

    async fn is_open(connection: &mut SqliteConnection, hooks: &Hooks) -> Result<bool, sqlx::Error> {
        // The ping is answered only after the connection has finished all work that dropped futures
        // have left in its queue.
        sqlx::Connection::ping(connection).await?;
        Ok(Self::depth(connection) == 1 && !hooks.saw_the_end())
    }

    async fn commit(connection: &mut SqliteConnection, hooks: &Hooks) -> Result<(), sqlx::Error> {
        hooks.let_go();
        Manager::commit(connection).await
    }

    fn leaves_in_doubt(error: &sqlx::Error) -> bool {
        // If SQLite itself reports the error, the commit did not take effect. If the worker thread
        // reports the error, the commit may have taken effect.
        !matches!(error, sqlx::Error::Database(_))
    }

    async fn roll_back(connection: &mut SqliteConnection, hooks: &Hooks) -> Result<RolledBack, sqlx::Error> {
        sqlx::Connection::ping(connection).await?;
        if hooks.saw_the_end() {
            // The connection's queue may still contain statements, and the hooks must not let these
            // statements commit.
            return Ok(RolledBack {
                was_committed: false,
                is_clean: false,
            });
        }
        for _ in 0..Self::depth(connection) {
            Manager::rollback(connection).await?;
        }
        hooks.let_go();
        Ok(RolledBack {
            was_committed: false,
            is_clean: Self::depth(connection) == 0,
        })
    }
}
