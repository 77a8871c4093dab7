//! The SQLite store.

mod directory;

use std::sync::Arc;

use directory::Directory;
use tower_idempotency::store::conformance::{self, Harness};
use tower_idempotency::store::sql::SqliteStore;

struct Sqlite(Vec<SqliteStore>, std::sync::atomic::AtomicUsize);

impl Harness for Sqlite {
    type Store = SqliteStore;

    fn store(&self) -> SqliteStore {
        let next = self.1.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        self.0[next % self.0.len()].clone()
    }
}

async fn open(directory: &Directory) -> SqliteStore {
    let store = SqliteStore::open(directory.path("keys.db")).await.unwrap();
    store.migrate().await.unwrap();
    store
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn the_store_conforms() {
    let directory = Directory::new();
    // Two pools, as two processes have.
    let stores = vec![open(&directory).await, open(&directory).await];
    let harness = Arc::new(Sqlite(stores, Default::default()));
    let mut running = tokio::task::JoinSet::new();
    let checks = conformance::checks()
        .into_iter()
        .chain(conformance::inspection_checks());
    for check in checks {
        let harness = Arc::clone(&harness);
        running.spawn(async move { check.run(&*harness).await });
    }
    while let Some(joined) = running.join_next().await {
        joined.unwrap();
    }
}
