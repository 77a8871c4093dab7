//! Connects to the store's database file, and refuses databases that the store cannot use.

use std::future::Future;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use sqlx::sqlite::{SqliteConnectOptions, SqlitePoolOptions};
use sqlx::{ConnectOptions, SqliteConnection, SqlitePool};
use tokio::time::Instant;

use super::statements::Repeated;
use crate::error::BoxError;
use crate::store::sql::turns::Turns;

/// How long a statement waits for a writer that is not in the queue. This value applies if the
/// store opened the pool.
pub(super) const BUSY_TIMEOUT: Duration = Duration::from_secs(5);
/// The maximum number of texts whose prepared statements each of the store's connections caches:
/// all texts of claims and records, and the other statements.
const STATEMENTS: usize = 2 * Repeated::TEXTS + 24;
/// The pause between attempts to connect to a file whose mode another connection is changing.
const PAUSE: Duration = Duration::from_millis(10);
/// The first SQLite version with `unixepoch('subsec')`, which the statements use as their clock.
const OLDEST: (u32, u32) = (3, 42);

/// The database file that contains the store's table.
pub(super) struct File {
    pool: SqlitePool,
    /// The schema name under which the pool's connections have attached the file. `None` if the
    /// file is their main database.
    schema: Option<Arc<str>>,
    /// The queue of the file's writers, which is set when the store's first connection is opened.
    turns: OnceLock<Turns>,
}

impl File {
    pub(super) fn new(pool: SqlitePool, schema: Option<Arc<str>>) -> Self {
        Self {
            pool,
            schema,
            turns: OnceLock::new(),
        }
    }

    pub(super) fn pool(&self) -> &SqlitePool {
        &self.pool
    }

    /// Returns the queue of the file's writers, or `None` before the store's first connection.
    pub(super) fn turns(&self) -> Option<&Turns> {
        self.turns.get()
    }

    /// Opens one of the store's own connections, in which the file is the main database.
    pub(super) async fn connect(&self) -> Result<SqliteConnection, sqlx::Error> {
        if self.pool.is_closed() {
            return Err(sqlx::Error::PoolClosed);
        }
        let mut options = (*self.pool.connect_options()).clone();
        if let Some(schema) = &self.schema {
            options = options.filename(self.attached(schema).await?);
        }
        let options = options
            .statement_cache_capacity(STATEMENTS)
            .optimize_on_close(false, None);
        let mut connection = while_changing_mode(|| options.connect()).await?;
        let (version, file): (String, Option<String>) =
            sqlx::query_as("SELECT sqlite_version(), file FROM pragma_database_list WHERE name = 'main'")
                .fetch_one(&mut connection)
                .await?;
        if !is_known(&version) {
            return Err(unsuitable(format!(
                "SQLite {version} is too old; link {}.{} or later, or use the feature `sqlite`, which bundles its own",
                OLDEST.0, OLDEST.1
            )));
        }
        let Some(file) = file.filter(|file| !file.is_empty()) else {
            return Err(unsuitable(
                "the database is in memory, where connections either share no data or fail while another one writes; \
                 open a file, or use `MemoryStore`",
            ));
        };
        self.turns.get_or_init(|| Turns::of(PathBuf::from(file)));
        Ok(connection)
    }

    /// Returns the file that the pool's connections have attached under this name.
    async fn attached(&self, schema: &str) -> Result<String, sqlx::Error> {
        let file: Option<Option<String>> =
            sqlx::query_scalar("SELECT file FROM pragma_database_list WHERE name = ?1 COLLATE NOCASE")
                .bind(schema)
                .fetch_optional(&self.pool)
                .await?;
        file.map(Option::unwrap_or_default).ok_or_else(|| {
            unsuitable(format!(
                "no database is attached as `{schema}`; attach it in the pool's `after_connect`"
            ))
        })
    }
}

/// Opens a pool of connections to a file, and the pool's first connection.
pub(super) async fn open(pool: SqlitePoolOptions, options: SqliteConnectOptions) -> Result<SqlitePool, sqlx::Error> {
    while_changing_mode(|| pool.clone().connect_with(options.clone())).await
}

/// Connects, and retries if the database is locked. If several connections switch a new file to WAL
/// mode at the same time, SQLite reports an error instead of waiting for the lock.
async fn while_changing_mode<T, F>(mut connect: impl FnMut() -> F) -> Result<T, sqlx::Error>
where
    F: Future<Output = Result<T, sqlx::Error>>,
{
    let began = Instant::now();
    loop {
        match connect().await {
            Err(sqlx::Error::Database(error))
                if error.message() == "database is locked" && began.elapsed() < BUSY_TIMEOUT =>
            {
                tokio::time::sleep(PAUSE).await;
            }
            connected => return connected,
        }
    }
}

fn is_known(version: &str) -> bool {
    let mut numbers = version.split('.').map(|number| number.parse().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0)) >= OLDEST
}

/// Returns the error for a database that the store cannot use.
fn unsuitable(why: impl Into<BoxError>) -> sqlx::Error {
    sqlx::Error::Configuration(why.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_before_the_oldest_are_not_known() {
        for (version, known) in [
            ("3.41.2", false),
            ("3.42.0", true),
            ("3.100.1", true),
            ("4.0", true),
            ("2.99", false),
            ("x", false),
        ] {
            assert_eq!(is_known(version), known, "{version}");
        }
    }
}
