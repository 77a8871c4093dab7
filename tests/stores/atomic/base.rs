//! The databases.

use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions};
use sqlx::{AssertSqlSafe, Connection, Pool};
use tower_idempotency::store::sql::AtomicDatabase;

use super::*;
use crate::support::directory::Directory;
use crate::support::servers::postgres::{PASSWORD, Postgres};
use crate::support::servers::proxy::Proxy;

/// How long SQLite waits for a lock; what PostgreSQL waits for takes longer here.
pub(super) const BUSY_TIMEOUT: Duration = Duration::from_secs(15);

/// One of the databases, empty, with a pool of two connections.
pub(super) trait Base: Clone + Send + Sync + 'static {
    type Store: Inspect + Clone;
    type Db: AtomicDatabase;

    fn store(&self) -> Self::Store;
    /// The same database through another pool, as another process has.
    fn elsewhere(&self) -> impl Future<Output = Self::Store> + Send;
    fn charge(work: &mut Work<Self::Db>, id: &str) -> impl Future<Output = Result<(), sqlx::Error>> + Send;
    /// As `charge`, in a savepoint, which is rolled back or released.
    fn charge_nested(
        work: &mut Work<Self::Db>,
        id: &str,
        keep: bool,
    ) -> impl Future<Output = Result<(), sqlx::Error>> + Send;
    /// Refers to a row that is not there, which is found at the commit.
    fn refer(work: &mut Work<Self::Db>) -> impl Future<Output = Result<(), sqlx::Error>> + Send;
    fn fail(work: &mut Work<Self::Db>) -> impl Future<Output = ()> + Send;
    /// One statement, as it is.
    fn run(work: &mut Work<Self::Db>, sql: &str) -> impl Future<Output = Result<(), sqlx::Error>> + Send;
    /// Drops the `begin` of a savepoint while it waits.
    fn cut(work: &mut Work<Self::Db>) -> impl Future<Output = ()> + Send;
    /// Forgets a savepoint.
    fn leave(work: &mut Work<Self::Db>) -> impl Future<Output = ()> + Send;
    /// Asserts that a connection which was used for a transaction has nothing left of it.
    fn assert_clean(&self) -> impl Future<Output = ()> + Send;
    fn pool(&self) -> Pool<Self::Db>;
    fn execute(&self, sql: &'static str) -> impl Future<Output = u64> + Send;
    fn charges(&self, id: &str) -> impl Future<Output = i64> + Send;
    /// Connections that are in use.
    fn busy(&self) -> usize;
}

/// The pool counts its connections and its idle ones one after the other, so that for a moment, more
/// can be idle than there are.
fn in_use<DB: AtomicDatabase>(pool: &Pool<DB>) -> usize {
    loop {
        if let Some(in_use) = (pool.size() as usize).checked_sub(pool.num_idle()) {
            return in_use;
        }
        std::thread::yield_now();
    }
}

#[derive(Clone)]
pub(super) struct Lite(SqliteStore, Arc<Directory>);

pub(super) fn lite(directory: &Directory) -> SqliteConnectOptions {
    SqliteConnectOptions::new()
        .filename(directory.path("app.db"))
        .create_if_missing(true)
        .journal_mode(SqliteJournalMode::Wal)
        .busy_timeout(BUSY_TIMEOUT)
}

impl Lite {
    pub(super) async fn new() -> Self {
        let directory = Arc::new(Directory::new());
        let store = Self::open(&directory).await;
        store.migrate().await.unwrap();
        for sql in [
            "CREATE TABLE charges (id TEXT NOT NULL)",
            "CREATE TABLE parents (id INTEGER PRIMARY KEY)",
            "CREATE TABLE children (parent INTEGER REFERENCES parents DEFERRABLE INITIALLY DEFERRED)",
        ] {
            sqlx::query(sql).execute(store.pool()).await.unwrap();
        }
        Self(store, directory)
    }

    /// A pool that waits for no lock.
    pub(super) async fn impatient(&self) -> sqlx::SqlitePool {
        let options = lite(&self.1).busy_timeout(Duration::ZERO);
        SqlitePoolOptions::new().connect_with(options).await.unwrap()
    }

    pub(super) async fn open(directory: &Directory) -> SqliteStore {
        let pool = SqlitePoolOptions::new().max_connections(2).test_before_acquire(false);
        SqliteStore::new(pool.connect_with(lite(directory)).await.unwrap())
    }
}

impl Base for Lite {
    type Store = SqliteStore;
    type Db = sqlx::Sqlite;

    fn store(&self) -> SqliteStore {
        self.0.clone()
    }
    async fn elsewhere(&self) -> SqliteStore {
        Self::open(&self.1).await
    }
    async fn charge(work: &mut Work<sqlx::Sqlite>, id: &str) -> Result<(), sqlx::Error> {
        let insert = sqlx::query("INSERT INTO charges VALUES (?1)").bind(id.to_owned());
        insert.execute(&mut **work).await.map(drop)
    }
    async fn charge_nested(work: &mut Work<sqlx::Sqlite>, id: &str, keep: bool) -> Result<(), sqlx::Error> {
        let mut nested = work.begin().await?;
        let insert = sqlx::query("INSERT INTO charges VALUES (?1)").bind(id.to_owned());
        insert.execute(&mut *nested).await?;
        if keep { nested.commit().await } else { Ok(()) }
    }
    async fn refer(work: &mut Work<sqlx::Sqlite>) -> Result<(), sqlx::Error> {
        let insert = sqlx::query("INSERT INTO children VALUES (77)");
        insert.execute(&mut **work).await.map(drop)
    }
    async fn run(work: &mut Work<sqlx::Sqlite>, sql: &str) -> Result<(), sqlx::Error> {
        let sql = AssertSqlSafe(sql.to_owned());
        sqlx::raw_sql(sql).execute(&mut **work).await.map(drop)
    }
    async fn cut(work: &mut Work<sqlx::Sqlite>) {
        loop {
            let mut begin = Box::pin(work.begin());
            if poll_once(begin.as_mut()).await.is_pending() {
                return;
            }
        }
    }
    async fn leave(work: &mut Work<sqlx::Sqlite>) {
        std::mem::forget(work.begin().await.unwrap());
    }
    async fn assert_clean(&self) {
        for _ in 0..2 {
            let mut connection = self.pool().acquire().await.unwrap();
            assert!(!connection.is_in_transaction());
            // Kept, since no hook is in the way.
            let write = sqlx::query("INSERT INTO charges VALUES ('clean')");
            write.execute(&mut *connection).await.unwrap();
        }
    }
    fn pool(&self) -> Pool<sqlx::Sqlite> {
        self.0.pool().clone()
    }
    async fn fail(work: &mut Work<sqlx::Sqlite>) {
        let failing = sqlx::query("INSERT INTO nowhere VALUES (1)");
        failing.execute(&mut **work).await.unwrap_err();
    }
    async fn execute(&self, sql: &'static str) -> u64 {
        sqlx::query(sql).execute(self.0.pool()).await.unwrap().rows_affected()
    }
    async fn charges(&self, id: &str) -> i64 {
        let count = sqlx::query_scalar("SELECT count(*) FROM charges WHERE id = ?1").bind(id.to_owned());
        count.fetch_one(self.0.pool()).await.unwrap()
    }
    fn busy(&self) -> usize {
        in_use(self.0.pool())
    }
}

#[derive(Clone)]
pub(super) struct Big {
    pub(super) store: PostgresStore,
    /// Around the proxy.
    pub(super) direct: PgPool,
    pub(super) url: String,
    pub(super) proxy: Proxy,
}

impl Big {
    pub(super) async fn new() -> Option<Self> {
        Self::with(2).await
    }

    pub(super) async fn with(connections: u32) -> Option<Self> {
        let server = tokio::task::spawn_blocking(Postgres::shared).await.unwrap()?;
        let url = tokio::task::spawn_blocking(|| server.create_database()).await.unwrap();
        let direct = PgPoolOptions::new().max_connections(2).connect(&url).await.unwrap();
        for sql in [
            "CREATE TABLE charges (id TEXT NOT NULL)",
            "CREATE TABLE parents (id INTEGER PRIMARY KEY)",
            "CREATE TABLE children (parent INTEGER REFERENCES parents DEFERRABLE INITIALLY DEFERRED)",
        ] {
            sqlx::query(sql).execute(&direct).await.unwrap();
        }
        let proxy = Proxy::start(server.port()).await;
        let database = url.rsplit_once('/').unwrap().1;
        // As applications have it: a role that cannot become another one.
        let role = format!("app_{database}");
        let create = format!(
            "CREATE ROLE {role} LOGIN PASSWORD '{PASSWORD}'; GRANT ALL ON SCHEMA public TO {role};
             GRANT ALL ON ALL TABLES IN SCHEMA public TO {role};
             ALTER DEFAULT PRIVILEGES IN SCHEMA public GRANT ALL ON TABLES TO {role}"
        );
        sqlx::raw_sql(AssertSqlSafe(create)).execute(&direct).await.unwrap();
        let url = format!("postgres://{role}:{PASSWORD}@127.0.0.1:{}/{database}", proxy.port());
        let store = Self::open(&url, connections).await;
        store.migrate().await.unwrap();
        Some(Self {
            store,
            direct,
            url,
            proxy,
        })
    }

    pub(super) async fn open(url: &str, connections: u32) -> PostgresStore {
        let pool = PgPoolOptions::new()
            .max_connections(connections)
            .test_before_acquire(false);
        PostgresStore::new(pool.connect(url).await.unwrap())
    }

    /// Waits until every connection is back in the pool.
    pub(super) async fn quiet(&self) {
        eventually("all connections are idle", async || self.busy() == 0).await;
    }
}

impl Base for Big {
    type Store = PostgresStore;
    type Db = sqlx::Postgres;

    fn store(&self) -> PostgresStore {
        self.store.clone()
    }
    async fn elsewhere(&self) -> PostgresStore {
        Self::open(&self.url, 2).await
    }
    async fn charge(work: &mut Work<sqlx::Postgres>, id: &str) -> Result<(), sqlx::Error> {
        let insert = sqlx::query("INSERT INTO charges VALUES ($1)").bind(id.to_owned());
        insert.execute(&mut **work).await.map(drop)
    }
    async fn charge_nested(work: &mut Work<sqlx::Postgres>, id: &str, keep: bool) -> Result<(), sqlx::Error> {
        let mut nested = work.begin().await?;
        let insert = sqlx::query("INSERT INTO charges VALUES ($1)").bind(id.to_owned());
        insert.execute(&mut *nested).await?;
        if keep { nested.commit().await } else { Ok(()) }
    }
    async fn refer(work: &mut Work<sqlx::Postgres>) -> Result<(), sqlx::Error> {
        let insert = sqlx::query("INSERT INTO children VALUES (77)");
        insert.execute(&mut **work).await.map(drop)
    }
    async fn run(work: &mut Work<sqlx::Postgres>, sql: &str) -> Result<(), sqlx::Error> {
        let sql = AssertSqlSafe(sql.to_owned());
        sqlx::raw_sql(sql).execute(&mut **work).await.map(drop)
    }
    async fn cut(work: &mut Work<sqlx::Postgres>) {
        loop {
            let mut begin = Box::pin(work.begin());
            if poll_once(begin.as_mut()).await.is_pending() {
                return;
            }
        }
    }
    async fn leave(work: &mut Work<sqlx::Postgres>) {
        std::mem::forget(work.begin().await.unwrap());
    }
    async fn assert_clean(&self) {
        for _ in 0..2 {
            let mut connection = self.pool().acquire().await.unwrap();
            assert!(!connection.is_in_transaction());
            let read_only: String = sqlx::query_scalar("SHOW default_transaction_read_only")
                .fetch_one(&mut *connection)
                .await
                .unwrap();
            assert_eq!(read_only, "off");
        }
    }
    fn pool(&self) -> Pool<sqlx::Postgres> {
        self.store.pool().clone()
    }
    async fn fail(work: &mut Work<sqlx::Postgres>) {
        let failing = sqlx::query("INSERT INTO nowhere VALUES (1)");
        failing.execute(&mut **work).await.unwrap_err();
    }
    async fn execute(&self, sql: &'static str) -> u64 {
        sqlx::query(sql).execute(&self.direct).await.unwrap().rows_affected()
    }
    async fn charges(&self, id: &str) -> i64 {
        let count = sqlx::query_scalar("SELECT count(*) FROM charges WHERE id = $1").bind(id.to_owned());
        count.fetch_one(&self.direct).await.unwrap()
    }
    fn busy(&self) -> usize {
        in_use(self.store.pool())
    }
}

impl Big {
    pub(super) async fn quiet_but(&self, busy: usize) {
        eventually("the others are idle", async || self.busy() == busy).await;
    }
}
