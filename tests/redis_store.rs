//! The Redis store on real servers.

#[path = "servers/redis.rs"]
mod redis_server;

use redis_server::Redis;
use tower_idempotency::store::RedisStore;
use tower_idempotency::store::conformance::{self, Harness};

struct Handles(Vec<RedisStore>, std::sync::atomic::AtomicUsize);

impl Handles {
    async fn to(server: &Redis) -> &'static Self {
        let mut handles = Vec::new();
        for _ in 0..4 {
            handles.push(RedisStore::connect(&server.url()).await.unwrap());
        }
        Box::leak(Box::new(Self(handles, Default::default())))
    }
}

impl Harness for Handles {
    type Store = RedisStore;

    fn store(&self) -> RedisStore {
        let turn = self.1.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        self.0[turn % self.0.len()].clone()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_store_conforms() {
    let Some(server) = Redis::start() else { return };
    let harness = Handles::to(&server).await;
    let mut running = tokio::task::JoinSet::new();
    for check in conformance::checks() {
        running.spawn(async move { check.run(harness).await });
    }
    while let Some(joined) = running.join_next().await {
        joined.unwrap();
    }
}
