//! The sweeper.

use super::*;

/// The index that the sweeper reads is written by claims alone: what became of a row since is not in it.
#[tokio::test]
async fn what_lives_longer_than_its_claim_said_is_put_off_and_swept_in_its_time() {
    let Some((_, url)) = database().await else { return };
    let store = open(&url, 2).await;
    for (slot, ttl) in [(1, HOUR), (2, Duration::ZERO), (3, Duration::ZERO)] {
        let claim = claim(slot).token(1);
        store.begin(&claim).await.unwrap();
        let held = store.complete(&claim.slot, Token(1), &record(), ttl).await.unwrap();
        assert_eq!(held, Held::Yes);
    }
    sqlx::query("UPDATE idempotency_keys SET sweep_at = now() - interval '1 hour'")
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
async fn the_sweeper_removes_in_batches_and_survives() {
    let Some((_, url)) = database().await else { return };
    let store = open(&url, 2).await;
    let fill = "INSERT INTO idempotency_keys SELECT sha256(i::text::bytea), '', '', 1, 1, now(), now() - interval '1 s', now() \
                FROM generate_series(1, 1200) AS i";
    let rows = async || -> i64 {
        sqlx::query_scalar("SELECT count(*) FROM idempotency_keys")
            .fetch_one(store.pool())
            .await
            .unwrap()
    };
    sqlx::query(fill).execute(store.pool()).await.unwrap();
    store.begin(&claim(1).token(1)).await.unwrap();
    assert_eq!(store.sweep(7).await.unwrap(), 7);
    let sweeper = store.sweep_every(Duration::from_millis(20)).unwrap();
    eventually("all is swept", async || sweeper.removed() == 1193).await;
    assert_eq!((rows().await, sweeper.errors()), (1, 0));
    sqlx::query("DROP TABLE idempotency_keys")
        .execute(store.pool())
        .await
        .unwrap();
    eventually("errors are counted", async || sweeper.errors() >= 2).await;
    store.migrate().await.unwrap();
    sqlx::query(fill).execute(store.pool()).await.unwrap();
    eventually("it goes on", async || sweeper.removed() == 2393).await;
    assert_eq!(rows().await, 0);
    drop(sweeper);
    sqlx::query(fill).execute(store.pool()).await.unwrap();
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(rows().await, 1200, "it stops when it is dropped");
}

/// What a row costs does not depend on how many there are. Rows of the index that were read tell: they are
/// those that were due, and the dead ones beside them.
#[tokio::test]
async fn the_cost_of_a_row_does_not_grow_with_the_backlog() {
    const ROWS: i64 = 20_000;
    let Some((_, url)) = database().await else { return };
    let store = open(&url, 2).await;
    // One of a hundred lives on.
    let fill = "INSERT INTO idempotency_keys SELECT sha256(i::text::bytea), '', '', 1, 1, now(), \
                now() + CASE WHEN i % 100 = 0 THEN interval '1 h' ELSE interval '-1 s' END, \
                now() - interval '2 h' + i * interval '1 ms' FROM generate_series(1, 20000) AS i";
    sqlx::query(fill).execute(store.pool()).await.unwrap();
    let sweeper = store.sweep_every(Duration::from_millis(20)).unwrap();
    eventually("all is swept", async || sweeper.removed() == 19_800).await;
    eventually("it has caught up", async || sweeper.lag() == Duration::ZERO).await;
    drop(sweeper);
    let counted = eventually("the counts are there", async || {
        let counts: (i64, i64, i64) = sqlx::query_as(
            "SELECT n_tup_del, seq_tup_read, (SELECT idx_tup_read FROM pg_stat_user_indexes \
             WHERE relname = 'idempotency_keys' AND indexrelname LIKE '%sweep_at%') \
             FROM pg_stat_user_tables WHERE relname = 'idempotency_keys'",
        )
        .fetch_one(store.pool())
        .await
        .unwrap();
        (counts.0 >= ROWS - 200).then_some(counts)
    })
    .await;
    let (_, without_index, by_index) = counted;
    assert_eq!(without_index, 0, "rows are found by the index");
    assert!(
        by_index < 3 * ROWS,
        "{by_index} rows of the index were read for {ROWS} rows"
    );
}

#[tokio::test]
async fn how_far_the_sweeper_is_behind_is_told() {
    let Some((_, url)) = database().await else { return };
    let store = open(&url, 2).await;
    let fill = "INSERT INTO idempotency_keys SELECT sha256(i::text::bytea), '', '', 1, 1, now(), now() - interval '1 s', \
                now() - interval '1 day' FROM generate_series(1, 5000) AS i";
    sqlx::query(fill).execute(store.pool()).await.unwrap();
    let sweeper = store.sweep_every(Duration::from_secs(3600)).unwrap();
    let lag = eventually("it is behind", async || {
        let lag = sweeper.lag();
        (lag > Duration::ZERO).then_some(lag)
    })
    .await;
    let day = Duration::from_secs(24 * 3600);
    assert!(lag >= day && lag < day + HOUR, "{lag:?}");
    eventually("it has caught up", async || sweeper.lag() == Duration::ZERO).await;
    assert_eq!(sweeper.removed(), 5000);
}
