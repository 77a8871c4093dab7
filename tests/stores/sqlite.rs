//! The SQLite store.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::Response;
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions};
use tower_idempotency::Store;
use tower_idempotency::store::sql::SqliteStore;
use tower_idempotency::store::{
    ClaimOutcome, Held, Inspect, OnLapse, Phase, Record, StoreError, StoreErrorKind, Token,
};

use crate::support::claim::{Claim, HOUR, PRINT, claim};
use crate::support::directory::Directory;
use crate::support::eventually;
use crate::support::wait::{PATIENCE, watched};

async fn open(directory: &Directory) -> SqliteStore {
    let store = SqliteStore::open(directory.path("keys.db")).await.unwrap();
    store.migrate().await.unwrap();
    store
}

#[cfg(feature = "conformance")]
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

#[tokio::test]
async fn what_cannot_be_opened_is_told() {
    use StoreErrorKind::{Corrupt, Unavailable};
    let directory = Directory::new();
    let error = SqliteStore::open(directory.path("no/such/directory.db"))
        .await
        .unwrap_err();
    assert_told(&error, Unavailable, &["open", "cannot be opened", "path"]);
    std::fs::write(
        directory.path("text"),
        "no database, but a text that is long enough".repeat(100),
    )
    .unwrap();
    let error = SqliteStore::open(directory.path("text")).await.unwrap_err();
    assert_told(&error, Corrupt, &["open", "no SQLite database"]);
    let error = SqliteStore::open(directory.path("")).await.unwrap_err();
    assert_told(&error, Unavailable, &["open"]);
}

#[tokio::test]
async fn contract_6_5_a_fingerprint_of_the_wrong_length_is_corrupt() {
    let directory = Directory::new();
    let store = open(&directory).await;
    for slot in [1, 2] {
        store.begin(&claim(slot).token(1)).await.unwrap();
    }
    let held = store.complete(&claim(2).slot, Token(1), &record(), HOUR).await;
    assert_eq!(held.unwrap(), Held::Yes);
    for bad in ["x''", "x'ab'", "x'abab'"] {
        sqlx::query(sqlx::AssertSqlSafe(format!(
            "UPDATE idempotency_keys SET fingerprint = {bad}"
        )))
        .execute(store.pool())
        .await
        .unwrap();
        for slot in [1, 2] {
            let error = store.begin(&claim(slot).token(2)).await.unwrap_err();
            assert_eq!(error.kind(), StoreErrorKind::Corrupt, "{error}");
            assert!(error.to_string().contains("wrong length"), "{error}");
        }
    }
}

#[tokio::test]
async fn what_could_not_be_committed_is_an_error() {
    let directory = Directory::new();
    open(&directory).await;
    let pool = SqlitePoolOptions::new().max_connections(1);
    let store = SqliteStore::new(pool.connect_with(options(&directory)).await.unwrap());
    let commits = Arc::new(AtomicBool::new(true));
    let mut connection = store.pool().acquire().await.unwrap();
    let hook = Arc::clone(&commits);
    let mut handle = connection.lock_handle().await.unwrap();
    handle.set_commit_hook(move || hook.load(Ordering::Relaxed));
    drop(handle);
    drop(connection);

    commits.store(false, Ordering::Relaxed);
    store
        .begin(&claim(1).token(1))
        .await
        .expect_err("a claim that is not there");
    commits.store(true, Ordering::Relaxed);
    assert_eq!(
        store.begin(&claim(1).token(2)).await.unwrap(),
        ClaimOutcome::started(1),
        "nothing was left of it"
    );
    let slot = claim(1).slot;
    commits.store(false, Ordering::Relaxed);
    store.renew(&slot, Token(2), HOUR).await.expect_err("not renewed");
    store
        .complete(&slot, Token(2), &record(), HOUR)
        .await
        .expect_err("not recorded");
    store.release(&slot, Token(2)).await.expect_err("not released");
    store.forget(&slot).await.expect_err("not forgotten");
    commits.store(true, Ordering::Relaxed);
    assert!(matches!(
        store.begin(&claim(1).token(3)).await.unwrap(),
        ClaimOutcome::InFlight { .. }
    ));
}

/// The index that the sweeper reads is written by claims alone: what became of a row since is not in it.
#[tokio::test]
async fn what_lives_longer_than_its_claim_said_is_put_off_and_swept_in_its_time() {
    let directory = Directory::new();
    let store = open(&directory).await;
    for (slot, ttl) in [(1, HOUR), (2, Duration::ZERO), (3, Duration::ZERO)] {
        let claim = claim(slot).token(1);
        store.begin(&claim).await.unwrap();
        let held = store.complete(&claim.slot, Token(1), &record(), ttl).await.unwrap();
        assert_eq!(held, Held::Yes);
    }
    sqlx::query("UPDATE idempotency_keys SET sweep_at = 0")
        .execute(store.pool())
        .await
        .unwrap();
    let mut swept = Vec::new();
    for _ in 0..3 {
        swept.push(store.sweep(1).await.unwrap());
    }
    assert_eq!(swept, [1, 1, 0], "what has expired, one by one");
    let due: i64 = sqlx::query_scalar("SELECT count(*) FROM idempotency_keys WHERE sweep_at < forget_at")
        .fetch_one(store.pool())
        .await
        .unwrap();
    assert_eq!(due, 0, "the sweeper does not look at the one that lives each time");
    assert_eq!(
        store.begin(&claim(1).token(2)).await.unwrap(),
        ClaimOutcome::Done(record())
    );
    assert_eq!(store.sweep(10).await.unwrap(), 0);
}

#[tokio::test]
async fn a_read_only_database_is_told_and_still_replays() {
    let directory = Directory::new();
    let store = open(&directory).await;
    store.begin(&claim(1).token(1)).await.unwrap();
    store.complete(&claim(1).slot, Token(1), &record(), HOUR).await.unwrap();
    let read_only = with(options(&directory).read_only(true)).await;
    assert_eq!(
        read_only.begin(&claim(1).token(2)).await.unwrap(),
        ClaimOutcome::Done(record())
    );
    let error = read_only.begin(&claim(2).token(1)).await.unwrap_err();
    assert_told(
        &error,
        StoreErrorKind::Unavailable,
        &["begin", "read-only", "permissions"],
    );
    let error = read_only.migrate().await.unwrap_err();
    assert_told(&error, StoreErrorKind::Unavailable, &["migrate", "read-only"]);
}

#[tokio::test]
async fn a_full_disk_is_told() {
    let directory = Directory::new();
    drop(open(&directory).await);
    let full = with(options(&directory).pragma("max_page_count", "8")).await;
    full.begin(&claim(1).token(1)).await.unwrap();
    let body = Bytes::from(vec![b'x'; 100_000]);
    full.renew(&claim(1).slot, Token(1), Duration::ZERO).await.unwrap();
    let error = full
        .settle(&claim(1).slot, &Response::new(body), HOUR)
        .await
        .unwrap_err();
    assert_told(&error, StoreErrorKind::Full, &["complete", "full"]);
    // What fits is done still.
    assert!(full.forget(&claim(1).slot).await.unwrap());
    assert_eq!(full.begin(&claim(1).token(2)).await.unwrap(), ClaimOutcome::started(1));
}

#[tokio::test]
async fn a_missing_table_and_a_wrong_layout_are_told() {
    let directory = Directory::new();
    let bare = with(options(&directory).create_if_missing(true)).await;
    let slot = claim(1).slot;
    for error in [
        bare.begin(&claim(1).token(1)).await.unwrap_err(),
        bare.renew(&slot, Token(1), HOUR).await.unwrap_err(),
        bare.complete(&slot, Token(1), &record(), HOUR).await.unwrap_err(),
        bare.release(&slot, Token(1)).await.unwrap_err(),
        bare.look_up(&slot).await.unwrap_err(),
        bare.forget(&slot).await.unwrap_err(),
        bare.count().await.unwrap_err(),
        bare.sweep(1).await.unwrap_err(),
    ] {
        assert_told(
            &error,
            StoreErrorKind::Unavailable,
            &["the table is missing", "migrate"],
        );
    }
    let full = "slot BLOB PRIMARY KEY, fingerprint BLOB, token INTEGER, attempt INTEGER, lease_until INTEGER, \
                forget_at INTEGER, sweep_at INTEGER, record BLOB";
    for (what, columns) in [
        ("another's", "id INTEGER".to_owned()),
        ("no sweep_at", full.replace("sweep_at INTEGER, ", "")),
        ("no token", full.replace("token INTEGER, ", "")),
        ("no record", full.replace(", record BLOB", "")),
        ("no primary key", full.replace("PRIMARY KEY", "NOT NULL")),
        (
            "a column more that must be given",
            format!("{full}, more INTEGER NOT NULL"),
        ),
    ] {
        for sql in [
            "DROP TABLE IF EXISTS idempotency_keys".to_owned(),
            format!("CREATE TABLE idempotency_keys ({columns})"),
        ] {
            sqlx::query(sqlx::AssertSqlSafe(sql))
                .execute(bare.pool())
                .await
                .unwrap();
        }
        let error = bare.migrate().await.expect_err(what);
        assert_told(&error, StoreErrorKind::Unavailable, &["migrate", "layout"]);
    }
    for sql in [
        "DROP TABLE idempotency_keys".to_owned(),
        format!("CREATE TABLE idempotency_keys ({full}, note TEXT)"),
    ] {
        sqlx::query(sqlx::AssertSqlSafe(sql))
            .execute(bare.pool())
            .await
            .unwrap();
    }
    bare.migrate().await.expect("a column more does no harm");
    assert_eq!(
        bare.count().await.unwrap(),
        Default::default(),
        "and leaves nothing behind"
    );
    for bad in ["", "a b", "a\"b", "1a"] {
        assert!(bare.clone().table(bad).is_err());
    }
    let other = bare.clone().table("Other").unwrap();
    other.migrate().await.unwrap();
    assert_eq!(other.begin(&claim(1).token(1)).await.unwrap(), ClaimOutcome::started(1));
    assert_eq!(bare.count().await.unwrap().running, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_writer_that_holds_on_is_told_and_readers_do_not_wait() {
    let directory = Directory::new();
    let store = open(&directory).await;
    let slot = claim(1).slot;
    store.begin(&claim(1).token(1)).await.unwrap();
    let impatient = with(options(&directory)).await;
    let lock = store.pool().begin_with("BEGIN IMMEDIATE").await.unwrap();
    let error = impatient.begin(&claim(2).token(1)).await.unwrap_err();
    assert_told(&error, StoreErrorKind::Unavailable, &["begin", "busy timeout"]);
    let error = impatient.renew(&slot, Token(1), HOUR).await.unwrap_err();
    assert_told(&error, StoreErrorKind::Unavailable, &["renew", "busy timeout"]);
    // It would wait for the writer longer than this test may take.
    let patient = with(options(&directory).busy_timeout(10 * PATIENCE)).await;
    let asked = claim(1).token(2);
    let begun = watched(PATIENCE, patient.begin(&asked)).await;
    assert!(matches!(begun.unwrap(), ClaimOutcome::InFlight { .. }));
    // Dropped while they wait, they leave the pool whole.
    for _ in 0..4 {
        let short = Duration::from_millis(20);
        let asked = claim(3).token(1);
        assert!(tokio::time::timeout(short, patient.begin(&asked)).await.is_err());
    }
    lock.rollback().await.unwrap();
    eventually("the pool is whole", async || {
        patient.pool().size() as usize == patient.pool().num_idle()
    })
    .await;
    assert_eq!(
        patient.begin(&claim(4).token(1)).await.unwrap(),
        ClaimOutcome::started(1)
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_migrate_at_once() {
    let directory = Arc::new(Directory::new());
    let tasks: Vec<_> = (0..16)
        .map(|_| {
            let directory = Arc::clone(&directory);
            tokio::spawn(async move { open(&directory).await.begin(&claim(1).token(1)).await.unwrap() })
        })
        .collect();
    for task in tasks {
        assert_eq!(task.await.unwrap(), ClaimOutcome::started(1));
    }
}

#[tokio::test]
async fn what_is_in_a_slot_is_told_settled_and_swept() {
    let directory = Directory::new();
    let store = open(&directory).await;
    let slot = claim(1).slot;
    assert_eq!(store.look_up(&slot).await.unwrap(), None);
    assert!(!store.forget(&slot).await.unwrap());
    store.begin(&claim(1).token(1)).await.unwrap();
    let entry = store.look_up(&slot).await.unwrap().unwrap();
    let Phase::Running { attempt: 1, lease_left } = entry.phase else {
        panic!("{entry}")
    };
    assert!(lease_left <= HOUR && lease_left > HOUR / 2, "{entry}");
    let answer = Response::builder().status(201).body(Bytes::from("by hand")).unwrap();
    assert!(!store.settle(&slot, &answer, HOUR).await.unwrap(), "it runs");
    store.renew(&slot, Token(1), Duration::ZERO).await.unwrap();
    let refuse = claim(1).token(2).on_lapse(OnLapse::Refuse);
    assert_eq!(store.begin(&refuse).await.unwrap(), ClaimOutcome::OutcomeUnknown);
    assert!(store.settle(&slot, &answer, HOUR).await.unwrap());
    assert!(matches!(store.begin(&refuse).await.unwrap(), ClaimOutcome::Done(_)));
    assert_eq!(store.release(&slot, Token(1)).await.unwrap(), Held::Lost);
    store.begin(&claim(2).token(1)).await.unwrap();
    for slot in 10..30 {
        let brief = claim(slot).token(1).lease(Duration::ZERO).ttl(Duration::ZERO);
        store.begin(&brief).await.unwrap();
    }
    let census = store.count().await.unwrap();
    assert_eq!((census.running, census.lapsed, census.done), (1, 0, 1));
    assert!(
        !store.forget(&claim(10).slot).await.unwrap(),
        "it was forgotten already"
    );
    assert_eq!(store.sweep(7).await.unwrap(), 7);
    let sweeper = store.sweep_every(Duration::from_millis(20));
    eventually("all is swept", async || sweeper.removed() == 12).await;
    assert_eq!(sweeper.errors(), 0);
    sqlx::query("DROP TABLE idempotency_keys")
        .execute(store.pool())
        .await
        .unwrap();
    eventually("errors are counted", async || sweeper.errors() >= 2).await;
    store.migrate().await.unwrap();
    let brief = claim(1).token(1).lease(Duration::ZERO).ttl(Duration::ZERO);
    store.begin(&brief).await.unwrap();
    eventually("it goes on", async || sweeper.removed() == 13).await;
}
