//! What goes wrong with a file, and how it is told.

use super::*;

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
    assert_told(&error, Corrupt, &["open", "not an SQLite database"]);
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

/// Lets each commit fail that changes a row of a claim with that token: something else is then missing.
async fn refuse_commits(store: &SqliteStore, token: u64) {
    execute(store, "CREATE TABLE IF NOT EXISTS parents (id INTEGER PRIMARY KEY)").await;
    execute(
        store,
        "CREATE TABLE IF NOT EXISTS children (parent INTEGER REFERENCES parents DEFERRABLE INITIALLY DEFERRED)",
    )
    .await;
    for (change, row) in [("INSERT", "NEW"), ("UPDATE", "NEW"), ("DELETE", "OLD")] {
        execute(
            store,
            format!(
                "CREATE TRIGGER refuse_{change} AFTER {change} ON idempotency_keys WHEN {row}.token = {token} \
                 BEGIN INSERT INTO children VALUES (77); END"
            ),
        )
        .await;
    }
}

async fn accept_commits(store: &SqliteStore) {
    for change in ["INSERT", "UPDATE", "DELETE"] {
        execute(store, format!("DROP TRIGGER refuse_{change}")).await;
    }
}

#[tokio::test]
async fn what_could_not_be_committed_is_an_error() {
    let directory = Directory::new();
    let store = open(&directory).await;
    refuse_commits(&store, 1).await;
    store
        .begin(&claim(1).token(1))
        .await
        .expect_err("a claim that is not there");
    assert_eq!(
        store.begin(&claim(1).token(2)).await.unwrap(),
        ClaimOutcome::started(1),
        "nothing was left of it"
    );
    accept_commits(&store).await;
    let slot = claim(1).slot;
    refuse_commits(&store, 2).await;
    store.renew(&slot, Token(2), HOUR).await.expect_err("not renewed");
    store
        .complete(&slot, Token(2), &record(), HOUR)
        .await
        .expect_err("not recorded");
    store.release(&slot, Token(2)).await.expect_err("not released");
    store.forget(&slot).await.expect_err("not forgotten");
    accept_commits(&store).await;
    assert!(matches!(
        store.begin(&claim(1).token(3)).await.unwrap(),
        ClaimOutcome::InFlight { .. }
    ));
    assert_eq!(
        store.complete(&slot, Token(2), &record(), HOUR).await.unwrap(),
        Held::Yes
    );
}

#[tokio::test]
async fn what_cannot_be_committed_does_not_fail_what_is_written_with_it() {
    let directory = Directory::new();
    let store = open(&directory).await;
    refuse_commits(&store, 7).await;
    let handler = Handler::of(&store, &claim(100)).await;
    let work = handler.begin().await;
    // All wait for the handler, and are written together.
    let mut claims: Vec<_> = (1..=12)
        .map(|number| {
            let store = store.clone();
            Box::pin(async move { store.begin(&claim(number).token(number)).await })
        })
        .collect();
    for _ in 0..20 {
        for claim in &mut claims {
            assert!(poll_once(claim.as_mut()).await.is_pending());
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    drop(work);
    drop(handler);
    let claims: Vec<_> = claims.into_iter().map(tokio::spawn).collect();
    for (claim, number) in claims.into_iter().zip(1..) {
        let claim = claim.await.unwrap();
        match number {
            7 => assert_told(
                &claim.unwrap_err(),
                StoreErrorKind::Unavailable,
                &["begin", "constraint"],
            ),
            _ => assert_eq!(claim.unwrap(), ClaimOutcome::started(1)),
        }
    }
    assert_eq!(store.look_up(&claim(7).slot).await.unwrap(), None);
    assert_eq!(store.count().await.unwrap().running, 12);
}

#[tokio::test]
async fn a_row_that_cannot_be_read_fails_its_own_claim_and_no_other() {
    let directory = Directory::new();
    let store = open(&directory).await;
    assert_eq!(
        store.begin(&claim(20).token(20)).await.unwrap(),
        ClaimOutcome::started(1)
    );
    let handler = Handler::of(&store, &claim(100)).await;
    let mut work = handler.begin().await;
    // All of these find their slots empty, and wait for the handler. One of the rows appears meanwhile.
    let claims: Vec<_> = (1..=5)
        .map(|number| {
            let store = store.clone();
            tokio::spawn(async move { store.begin(&claim(number).token(number)).await })
        })
        .collect();
    let recording = store.clone();
    let record = tokio::spawn(async move { recording.complete(&claim(20).slot, Token(20), &record(), HOUR).await });
    tokio::time::sleep(Duration::from_millis(200)).await;
    sqlx::query(
        "INSERT INTO idempotency_keys SELECT ?1, scope, fingerprint, token, 'no number', lease_until, forget_at, \
         sweep_at, record FROM idempotency_keys WHERE slot = ?2",
    )
    .bind(claim(3).slot.as_bytes().as_slice())
    .bind(claim(20).slot.as_bytes().as_slice())
    .execute(&mut *work)
    .await
    .unwrap();
    drop(work);
    assert!(matches!(handler.commit().await, Commit::Done));
    for (call, number) in claims.into_iter().zip(1..) {
        let outcome = call.await.unwrap();
        match number {
            3 => assert_told(&outcome.unwrap_err(), StoreErrorKind::Corrupt, &["begin", "layout"]),
            _ => assert_eq!(outcome.unwrap(), ClaimOutcome::started(1), "{number}"),
        }
    }
    assert_eq!(record.await.unwrap().unwrap(), Held::Yes);
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
