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
    let sweeper = store.sweep_every(Duration::from_millis(20));
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
