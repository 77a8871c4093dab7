//! The SQLite store.

mod errors;
mod layout;
mod sweeping;
mod turns;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Extensions, Response};
use sqlx::Sqlite;
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions};
use tower_idempotency::Store;
use tower_idempotency::store::sql::{SqliteStore, Transaction, Work};
use tower_idempotency::store::{
    ClaimOutcome, ClaimRequest, Commit, Held, Inspect, OnLapse, Phase, Record, StoreError, StoreErrorKind, Token,
    UnitOfWork,
};

use crate::support::claim::{Claim, HOUR, PRINT, claim};
use crate::support::directory::Directory;
use crate::support::eventually;
use crate::support::wait::{PATIENCE, poll_once, watched};

async fn open(directory: &Directory) -> SqliteStore {
    let store = SqliteStore::open(directory.path("keys.db")).await.unwrap();
    store.migrate().await.unwrap();
    store
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn the_store_conforms() {
    use crate::support::conformance::{Handles, all_checks, conforms};

    let directory = Directory::new();
    // Two pools, as two processes have.
    let stores = vec![open(&directory).await, open(&directory).await];
    let harness = Handles::new(stores, Duration::from_secs(1));
    conforms(harness, all_checks(), 0..8).await;
}

fn record() -> Record {
    Record::outcome_unknown(PRINT)
}

fn options(directory: &Directory) -> SqliteConnectOptions {
    SqliteConnectOptions::new()
        .filename(directory.path("keys.db"))
        .journal_mode(SqliteJournalMode::Wal)
        .busy_timeout(Duration::from_millis(200))
}

async fn with(options: SqliteConnectOptions) -> SqliteStore {
    let pool = SqlitePoolOptions::new().max_connections(2).test_before_acquire(false);
    SqliteStore::new(pool.connect_with(options).await.unwrap())
}

#[track_caller]
fn assert_told(error: &StoreError, kind: StoreErrorKind, parts: &[&str]) {
    assert_eq!(error.kind(), kind, "{error:?}");
    let told = error.to_string();
    assert!(told.starts_with("sqlite: "), "{told}");
    for part in parts {
        assert!(told.contains(part), "{part:?} in {told}: {error:?}");
    }
}

/// Runs a statement on the application's pool.
async fn execute(store: &SqliteStore, sql: impl Into<String>) -> u64 {
    let query = sqlx::query(sqlx::AssertSqlSafe(sql.into()));
    query.execute(store.pool()).await.unwrap().rows_affected()
}

/// What a handler works in, and how it begins.
struct Handler {
    unit: Box<dyn UnitOfWork>,
    transaction: Transaction<Sqlite>,
}

impl Handler {
    /// The handler of a claim, which is made.
    async fn of(store: &SqliteStore, claim: &ClaimRequest) -> Self {
        assert_eq!(store.begin(claim).await.unwrap(), ClaimOutcome::started(1));
        let unit = store.unit_of_work(claim).unwrap();
        let mut extensions = Extensions::new();
        unit.offer(&mut extensions);
        let transaction = extensions.remove().unwrap();
        Self { unit, transaction }
    }

    async fn begin(&self) -> Work<Sqlite> {
        self.transaction.begin().await.unwrap()
    }

    async fn commit(&self) -> Commit {
        self.unit.commit(&record(), HOUR).await
    }
}

/// A record under that claim.
async fn done(store: &SqliteStore, claim: &ClaimRequest) {
    assert_eq!(store.begin(claim).await.unwrap(), ClaimOutcome::started(1));
    let held = store.complete(&claim.slot, claim.token, &record(), HOUR).await;
    assert_eq!(held.unwrap(), Held::Yes);
}

/// How many transactions have been committed to the log of a database that is never checkpointed.
fn commits(database: &Path) -> usize {
    const HEADER: usize = 32;
    const FRAME_HEADER: usize = 24;
    let log = std::fs::read(database.with_extension("db-wal")).unwrap();
    let number = |at: usize| u32::from_be_bytes(log[at..at + 4].try_into().unwrap());
    let frame = FRAME_HEADER + number(8) as usize;
    let salt = &log[16..24];
    log[HEADER..]
        .chunks_exact(frame)
        .take_while(|frame| &frame[8..16] == salt)
        // The frame that ends a transaction has the size of the database.
        .filter(|frame| frame[4..8] != [0; 4])
        .count()
}
