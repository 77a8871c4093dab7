//! Expired rows.

use super::*;

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
    let sweeper = store.sweep_every(Duration::from_millis(20)).unwrap();
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

/// The lock is held for a few rows at a time, however many are removed.
#[tokio::test]
async fn expired_rows_are_removed_in_short_transactions() {
    let directory = Directory::new();
    drop(open(&directory).await);
    let database = directory.path("keys.db");
    let store = with(options(&directory).pragma("wal_autocheckpoint", "0")).await;
    let fill = |rows: u32, bytes: u32| {
        format!(
            "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {rows}) \
             INSERT INTO idempotency_keys SELECT randomblob(32), x'01', x'', 0, 1, 0, 0, 0, zeroblob({bytes}) FROM n"
        )
    };
    execute(&store, fill(1000, 10)).await;
    let before = commits(&database);
    assert_eq!(store.sweep(640).await.unwrap(), 640);
    assert_eq!(commits(&database) - before, 10);
    assert_eq!(store.sweep(1000).await.unwrap(), 360);
    // Large records count by their bytes, and the largest go alone.
    for (bytes, transactions) in [(100_000, 4), (600_000, 20)] {
        execute(&store, fill(20, bytes)).await;
        let before = commits(&database);
        assert_eq!(store.sweep(1000).await.unwrap(), 20);
        assert_eq!(commits(&database) - before, transactions);
    }
}

#[tokio::test]
async fn a_sweeper_outside_a_runtime_is_an_error_value() {
    let directory = Directory::new();
    let store = open(&directory).await;
    let outside = std::thread::spawn(move || store.sweep_every(Duration::from_secs(60)).map(drop));
    let error = outside.join().unwrap().unwrap_err();
    assert_eq!(error.option(), "sweep_every");
    assert!(error.to_string().contains("async code"), "{error}");
}
