//! The store that the two servers share, with a proxy of each before it.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use sqlx::{AssertSqlSafe, Connection, PgConnection, SqliteConnection};

use crate::support::eventually;
use crate::support::servers::postgres::Postgres;
use crate::support::servers::process::{self, Watchdog};
use crate::support::servers::proxy::Proxy;
use crate::support::servers::redis::Redis;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Engine {
    Sqlite,
    Postgres,
    Redis,
}

impl Engine {
    pub fn name(self) -> &'static str {
        match self {
            Self::Sqlite => "sqlite",
            Self::Postgres => "postgres",
            Self::Redis => "redis",
        }
    }

    /// Short, since a round waits for it. A server may take a third of it to claim a key, and must have
    /// made a new connection by then, which on a busy machine takes PostgreSQL a while.
    pub fn lease(self) -> Duration {
        match self {
            Self::Postgres => Duration::from_secs(3),
            Self::Sqlite | Self::Redis => Duration::from_millis(1500),
        }
    }

    /// Whether effect and record are committed in one transaction.
    pub fn atomic(self) -> bool {
        self != Self::Redis
    }
}

/// Where databases come from: an engine that runs, or that needs no server.
#[derive(Clone)]
pub enum Engines {
    Sqlite,
    Postgres(Arc<Postgres>),
    Redis,
}

impl Engines {
    /// None, and a word about it, if the engine is not installed.
    pub fn start(engine: Engine) -> Option<Self> {
        Some(match engine {
            Engine::Sqlite => Self::Sqlite,
            Engine::Postgres => Self::Postgres(Arc::new(trusting(Postgres::start()?))),
            Engine::Redis => {
                Redis::start()?;
                Self::Redis
            }
        })
    }

    pub fn engine(&self) -> Engine {
        match self {
            Self::Sqlite => Engine::Sqlite,
            Self::Postgres(_) => Engine::Postgres,
            Self::Redis => Engine::Redis,
        }
    }
}

/// Without a password. To derive what proves it takes an unoptimized server longer on a busy machine
/// than the patience that goes with a short lease: it would not get a connection, however often it tried.
fn trusting(postgres: Postgres) -> Postgres {
    let rules = postgres.directory().join("data/pg_hba.conf");
    let text = std::fs::read_to_string(&rules).unwrap();
    // Written over, and so still its user's.
    std::fs::write(rules, text.replace("scram-sha-256", "trust")).unwrap();
    postgres.reload();
    postgres
}

/// An empty database.
pub struct Store {
    pub proxies: Option<[Proxy; 2]>,
    pub urls: [String; 2],
    server: Server,
}

enum Server {
    Sqlite { _removed_at_the_end: Watchdog },
    Postgres(Mutex<Pair<Arc<Postgres>>>),
    Redis(Box<Mutex<Pair<Redis>>>),
}

/// The server that is used, and the one that can take over from it.
struct Pair<S> {
    primary: S,
    standby: Option<S>,
}

/// Of Redis: what it has answered for it keeps.
const DURABLE: [&str; 4] = ["--appendonly", "yes", "--appendfsync", "always"];

impl Store {
    /// Blocks the thread, as all that is done to the server does.
    pub async fn create(engines: &Engines) -> Self {
        Self::create_with(engines, false).await
    }

    /// With a `standby`, another server that has all that was committed and can take over.
    pub async fn create_with(engines: &Engines, standby: bool) -> Self {
        match engines {
            Engines::Sqlite => {
                let directory: PathBuf = process::scratch(&process::on_disk(), "idempotency-chaos", None);
                let url = format!("sqlite:{}", directory.join("database").display());
                Self {
                    proxies: None,
                    urls: [url.clone(), url],
                    server: Server::Sqlite {
                        _removed_at_the_end: Watchdog::new(&directory, "KILL"),
                    },
                }
            }
            Engines::Postgres(postgres) => {
                let pair = if standby {
                    let replicated = trusting(Postgres::start_replicated().unwrap());
                    let standby = Arc::new(replicated.standby());
                    Pair {
                        primary: Arc::new(replicated),
                        standby: Some(standby),
                    }
                } else {
                    Pair {
                        primary: postgres.clone(),
                        standby: None,
                    }
                };
                let postgres = &pair.primary;
                let url = postgres.create_database();
                let (_, database) = url.rsplit_once('/').unwrap();
                let proxies = [Proxy::start(postgres.port()).await, Proxy::start(postgres.port()).await];
                Self {
                    urls: [0, 1].map(|server: usize| postgres.url_through(proxies[server].port(), database)),
                    proxies: Some(proxies),
                    server: Server::Postgres(Mutex::new(pair)),
                }
            }
            Engines::Redis => {
                let redis = Redis::start_with(&DURABLE).unwrap();
                let standby = standby.then(|| Redis::start_with(&DURABLE).unwrap());
                if let Some(standby) = &standby {
                    standby.follow(&redis);
                }
                let proxies = [Proxy::start(redis.port()).await, Proxy::start(redis.port()).await];
                Self {
                    urls: [0, 1].map(|server: usize| format!("redis://127.0.0.1:{}", proxies[server].port())),
                    proxies: Some(proxies),
                    server: Server::Redis(Box::new(Mutex::new(Pair {
                        primary: redis,
                        standby,
                    }))),
                }
            }
        }
    }

    pub fn proxy(&self, server: usize) -> &Proxy {
        &self.proxies.as_ref().expect("a store with a network before it")[server]
    }

    pub async fn heal(&self) {
        for proxy in self.proxies.iter().flatten() {
            proxy.heal().await;
        }
    }

    /// Halts the server for a time.
    pub fn halt(&self, time: Duration) {
        match &self.server {
            Server::Sqlite { .. } => {}
            Server::Postgres(pair) => {
                let postgres = &locked(pair).primary;
                postgres.pause();
                std::thread::sleep(time);
                postgres.resume();
            }
            Server::Redis(pair) => {
                let redis = &locked(pair).primary;
                redis.pause();
                std::thread::sleep(time);
                redis.resume();
            }
        }
    }

    /// Takes no writes for a time, from old sessions and new ones.
    pub fn take_no_writes(&self, time: Duration) {
        match &self.server {
            Server::Sqlite { .. } => {}
            Server::Postgres(pair) => {
                let postgres = &locked(pair).primary;
                postgres.alter_system("SET default_transaction_read_only = on");
                std::thread::sleep(time);
                postgres.alter_system("RESET default_transaction_read_only");
            }
            Server::Redis(pair) => {
                let redis = &locked(pair).primary;
                // Of nobody: it keeps what it has.
                redis.command(&["REPLICAOF", "127.0.0.1", "1"]);
                std::thread::sleep(time);
                redis.command(&["REPLICAOF", "NO", "ONE"]);
            }
        }
    }

    /// Kills the server, and starts it again with what it had kept.
    pub fn kill(&self, time: Duration) {
        match &self.server {
            Server::Sqlite { .. } => {}
            Server::Postgres(pair) => {
                let postgres = &locked(pair).primary;
                postgres.kill();
                std::thread::sleep(time);
                postgres.restart();
            }
            Server::Redis(pair) => {
                let redis = &mut locked(pair).primary;
                redis.kill();
                std::thread::sleep(time);
                redis.restart();
            }
        }
    }

    /// Lets the other server take over, and new connections lead to it. The old ones live on for a time.
    pub fn fail_over(&self, time: Duration) {
        match &self.server {
            Server::Sqlite { .. } => {}
            Server::Postgres(pair) => self.switch(pair, time, |primary, standby| {
                // It hears nothing any more, and acknowledges nothing.
                primary.pause();
                standby.promote();
                standby.port()
            }),
            Server::Redis(pair) => self.switch(pair, time, |primary, standby| {
                // It hands over all it has, and becomes a replica, which takes no writes.
                primary.hand_over_to(standby);
                standby.port()
            }),
        }
    }

    /// `take_over` makes the standby the primary, and returns its port.
    fn switch<S>(&self, pair: &Mutex<Pair<S>>, time: Duration, take_over: impl FnOnce(&S, &S) -> u16) {
        let mut pair = locked(pair);
        let standby = pair.standby.take().expect("a store with a standby");
        let port = take_over(&pair.primary, &standby);
        for proxy in self.proxies.iter().flatten() {
            proxy.lead_to(port);
        }
        let old = std::mem::replace(&mut pair.primary, standby);
        std::thread::sleep(time);
        drop(old);
    }

    /// Adds so many expired rows to the table again and again, for a time.
    pub async fn grow_a_backlog(&self, rows: u64, time: Duration) {
        let began = Instant::now();
        while began.elapsed() < time {
            self.add_expired(rows).await;
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    async fn add_expired(&self, rows: u64) {
        match &self.server {
            Server::Sqlite { .. } => {
                let insert = format!(
                    "WITH RECURSIVE numbers (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM numbers WHERE n < {rows})
                     INSERT INTO idempotency_keys
                     SELECT randomblob(32), {IN_SQLITE}, randomblob(16), 1, 1, 0, 0, 0, NULL FROM numbers"
                );
                self.execute(&insert).await;
            }
            Server::Postgres(_) => {
                let insert = format!(
                    "INSERT INTO idempotency_keys
                     SELECT sha256(uuid_send(gen_random_uuid())), {IN_POSTGRES}, uuid_send(gen_random_uuid()), 1, 1,
                            long_ago, long_ago, long_ago, NULL
                     FROM generate_series(1, {rows}), (SELECT now() - interval '1 hour' AS long_ago) AS times"
                );
                self.execute(&insert).await;
            }
            Server::Redis(_) => {}
        }
    }

    /// Waits until the sweepers have removed the backlog.
    pub async fn backlog_swept(&self) {
        let scope = match &self.server {
            Server::Sqlite { .. } => IN_SQLITE,
            Server::Postgres(_) => IN_POSTGRES,
            Server::Redis(_) => return,
        };
        let left = format!("SELECT 'left' FROM idempotency_keys WHERE scope = {scope} LIMIT 1");
        eventually("the backlog is swept", async || self.strings(&left).await.is_empty()).await;
    }

    /// A statement on a connection of the tests' own, past what harms the servers'. Not for Redis, nor for a
    /// server that is away.
    pub async fn execute(&self, sql: &str) {
        let statement = sqlx::raw_sql(AssertSqlSafe(sql.to_owned()));
        let done = match &self.server {
            Server::Postgres(_) => statement.execute(&mut self.postgres().await).await.map(drop),
            _ => statement.execute(&mut self.sqlite().await).await.map(drop),
        };
        done.unwrap_or_else(|error| panic!("{sql}: {error}"));
    }

    /// A column of text, as [`Self::execute`].
    pub async fn strings(&self, sql: &str) -> Vec<String> {
        let query = AssertSqlSafe(sql.to_owned());
        let rows = match &self.server {
            Server::Postgres(_) => {
                let mut database = self.postgres().await;
                sqlx::query_scalar(query).fetch_all(&mut database).await
            }
            _ => {
                let mut database = self.sqlite().await;
                sqlx::query_scalar(query).fetch_all(&mut database).await
            }
        };
        rows.unwrap_or_else(|error| panic!("{sql}: {error}"))
    }

    async fn sqlite(&self) -> SqliteConnection {
        let path = self.urls[0].strip_prefix("sqlite:").unwrap();
        let options = sqlx::sqlite::SqliteConnectOptions::new()
            .filename(path)
            .busy_timeout(process::PATIENCE);
        SqliteConnection::connect_with(&options).await.unwrap()
    }

    async fn postgres(&self) -> PgConnection {
        let Server::Postgres(pair) = &self.server else {
            unreachable!("asked of another store");
        };
        let (_, database) = self.urls[0].rsplit_once('/').unwrap();
        let url = locked(pair).primary.url(database);
        PgConnection::connect(&url).await.unwrap()
    }
}

/// A tag that no scope has: `backlog`.
const IN_SQLITE: &str = "x'6261636b6c6f67'";
const IN_POSTGRES: &str = r"'\x6261636b6c6f67'";

fn locked<S>(pair: &Mutex<Pair<S>>) -> MutexGuard<'_, Pair<S>> {
    pair.lock().unwrap_or_else(PoisonError::into_inner)
}
