//! The store that the two servers share, with a proxy of each before it.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

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

/// Without a password. To derive what proves it takes an unoptimised server longer on a busy machine
/// than the patience that goes with a short lease: it would not get a connection, however often it tried.
fn trusting(postgres: Postgres) -> Postgres {
    let rules = postgres.directory().join("data/pg_hba.conf");
    let text = std::fs::read_to_string(&rules).unwrap();
    // Written over, and so still its user's.
    std::fs::write(rules, text.replace("scram-sha-256", "trust")).unwrap();
    postgres.sql("postgres", "SELECT pg_reload_conf()");
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
    Postgres(Arc<Postgres>),
    Redis(Mutex<Redis>),
}

impl Store {
    /// Blocks the thread, as all that is done to the server does.
    pub async fn create(engines: &Engines) -> Self {
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
                let url = postgres.create_database();
                let (_, database) = url.rsplit_once('/').unwrap();
                let proxies = [Proxy::start(postgres.port()).await, Proxy::start(postgres.port()).await];
                Self {
                    urls: [0, 1].map(|server: usize| postgres.url_through(proxies[server].port(), database)),
                    proxies: Some(proxies),
                    server: Server::Postgres(postgres.clone()),
                }
            }
            Engines::Redis => {
                let redis = Redis::start_with(&["--appendonly", "yes", "--appendfsync", "always"]).unwrap();
                let proxies = [Proxy::start(redis.port()).await, Proxy::start(redis.port()).await];
                Self {
                    urls: [0, 1].map(|server: usize| format!("redis://127.0.0.1:{}", proxies[server].port())),
                    proxies: Some(proxies),
                    server: Server::Redis(Mutex::new(redis)),
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
            Server::Postgres(postgres) => {
                postgres.pause();
                std::thread::sleep(time);
                postgres.resume();
            }
            Server::Redis(redis) => {
                let redis = locked(redis);
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
            Server::Postgres(postgres) => {
                let set = |what: &str| {
                    postgres.sql("postgres", &format!("ALTER SYSTEM {what}"));
                    postgres.sql("postgres", "SELECT pg_reload_conf()");
                };
                set("SET default_transaction_read_only = on");
                std::thread::sleep(time);
                set("RESET default_transaction_read_only");
            }
            Server::Redis(redis) => {
                let redis = locked(redis);
                let mut connection = redis::Client::open(redis.url()).unwrap().get_connection().unwrap();
                let mut follow = |host: &str, port: &str| {
                    let () = redis::cmd("REPLICAOF")
                        .arg(host)
                        .arg(port)
                        .query(&mut connection)
                        .unwrap();
                };
                // Of nobody: it keeps what it has.
                follow("127.0.0.1", "1");
                std::thread::sleep(time);
                follow("NO", "ONE");
            }
        }
    }

    /// Kills the server, and starts it again with what it had kept.
    pub fn kill(&self, time: Duration) {
        match &self.server {
            Server::Sqlite { .. } => {}
            Server::Postgres(postgres) => {
                postgres.kill();
                std::thread::sleep(time);
                postgres.restart();
            }
            Server::Redis(redis) => {
                let mut redis = locked(redis);
                redis.kill();
                std::thread::sleep(time);
                redis.restart();
            }
        }
    }
}

fn locked(redis: &Mutex<Redis>) -> MutexGuard<'_, Redis> {
    redis.lock().unwrap_or_else(PoisonError::into_inner)
}
