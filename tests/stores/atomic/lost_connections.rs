//! PostgreSQL alone: the connection breaks before, at and after the commit.

use tower_idempotency::MemoryStore;

use super::shop::Shop;
use super::*;

/// Cuts the connection at each request that a charge makes, before and after it is heard.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_cut_anywhere_leaves_effect_and_record_or_neither() {
    let Some(base) = Big::with(1).await else { return };
    let shop = shop_with::<Big, _>(base.store(), |builder| builder.store_timeout(Duration::from_secs(10)));
    let requests = requests_of(&base, &shop, "/ok").await;
    // Claim, BEGIN, INSERT, record, COMMIT, check at release.
    assert_eq!(requests, 6, "one round trip each");
    let commit = requests - 1;
    let [answers_before, answers_after] = cut_at_each(&base, &shop, "/ok", requests).await;
    let commit = commit as usize - 1;
    assert_eq!(
        answers_before[commit],
        (503, 0),
        "COMMIT was not heard: {answers_before:?}"
    );
    assert_eq!(answers_after[commit], (200, 1), "COMMIT was heard: {answers_after:?}");
}

/// The same with a savepoint, whose handler answers 503 if a statement fails.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_cut_anywhere_in_a_savepoint_leaves_all_or_nothing() {
    let Some(base) = Big::with(1).await else { return };
    let shop = shop_of::<Big, _>(
        base.store(),
        |builder| builder.store_timeout(Duration::from_secs(10)),
        |transaction, key| {
            Box::pin(async move {
                let charged = async {
                    let mut work = transaction.begin().await?;
                    Big::charge(&mut work, &key).await?;
                    Big::charge_nested(&mut work, &inside(&key), true).await?;
                    Ok::<_, Box<dyn std::error::Error + Send + Sync>>(())
                };
                if charged.await.is_ok() { 200 } else { 503 }
            })
        },
    );
    let requests = requests_of(&base, &shop, "/savepoint").await;
    // SAVEPOINT, INSERT and RELEASE beside the six.
    assert_eq!(requests, 9, "one round trip each");
    let [answers_before, answers_after] = cut_at_each(&base, &shop, "/savepoint", requests).await;
    let within = 3..7;
    for answers in [&answers_before, &answers_after] {
        assert!(
            answers[within.clone()].iter().all(|answer| *answer == (503, 0)),
            "{answers:?}"
        );
    }
}

/// The key of a charge that is made in a savepoint.
fn inside(key: &str) -> String {
    format!("{key}-inside")
}

/// How many requests an operation makes of the database once all its statements are prepared.
async fn requests_of(base: &Big, shop: &Shop<PostgresStore>, path: &str) -> u64 {
    for key in ["warm", "warmer"] {
        assert_eq!(shop.send(path, key).await.status, 200);
        base.quiet().await;
    }
    let before = base.proxy.round_trips();
    assert_eq!(shop.send(path, "counted").await.status, 200);
    base.quiet().await;
    base.proxy.round_trips() - before
}

/// Cuts the connection before and after each of so many requests. Returns for both what the status was and how
/// often was charged.
async fn cut_at_each(base: &Big, shop: &Shop<PostgresStore>, path: &str, requests: u64) -> [Vec<(u16, i64)>; 2] {
    let mut answers = [Vec::new(), Vec::new()];
    let charged_inside = base.charges(&inside("counted")).await;
    for n in 1..=requests {
        for (heard, answers) in [false, true].into_iter().zip(&mut answers) {
            let key = format!("{n}-{heard}");
            if heard {
                base.proxy.cut_after_requests(n);
            } else {
                base.proxy.cut_before_request(n);
            }
            let first = shop.send(path, &key).await;
            base.proxy.heal().await;
            drain(&shop.layer).await;
            let charged = base.charges(&key).await;
            assert_eq!(base.charges(&inside(&key)).await, charged * charged_inside, "{key}");
            let entry = base.store().look_up(&shop.slot(&key)).await.unwrap();
            let done = entry.is_some_and(|entry| matches!(entry.phase, Phase::Done { .. }));
            assert_eq!(
                charged == 1,
                done,
                "{key}: effect and record are one: {entry:?}, {first:?}"
            );
            if first.status == 200 {
                assert_eq!(charged, 1, "{key}: the answer is true");
            }
            answers.push((first.status.as_u16(), charged));
            let again = shop.retry(path, &key).await;
            assert_eq!(again.status, 200, "{key}");
            assert_eq!(again.is_replay(), charged == 1, "{key}");
            assert_eq!(base.charges(&key).await, 1, "{key}");
            assert_eq!(base.charges(&inside(&key)).await, charged_inside, "{key}");
            // All statements are prepared again on the new connection.
            for key in 0..2 {
                let key = format!("warm-{n}-{heard}-{key}");
                assert_eq!(shop.retry(path, &key).await.status, 200);
                base.quiet().await;
            }
        }
    }
    answers
}

/// As above, with the database out of reach for a while after the commit.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unknown_commit_is_resolved_when_the_database_is_back() {
    for heard in [false, true] {
        // One connection, so that all statements are prepared on it: to prepare one is a request too.
        let Some(base) = Big::with(1).await else { return };
        let shop = shop_with::<Big, _>(base.store(), |builder| builder.store_timeout(Duration::from_secs(3)));
        for key in ["warm", "warmer", "warmest"] {
            assert_eq!(shop.send("/ok", key).await.status, 200);
            base.quiet().await;
        }
        let asked = spawn(&shop.bank, post("/open", "k", "{}"));
        shop.gate.arrival().await;
        base.quiet_but(1).await;
        base.proxy.refuse(true).await;
        // The record, then COMMIT.
        if heard {
            base.proxy.cut_after_requests(2);
        } else {
            base.proxy.cut_before_request(2);
        }
        // No other connection is left to read back on.
        shop.gate.open_once();
        eventually("the commit met with the cut", async || base.proxy.counts().cuts == 1).await;
        base.proxy.cut_all().await;
        let answer = asked.await.unwrap();
        if answer.status != 200 {
            answer.assert_problem(503, "store-unavailable");
        }
        base.proxy.heal().await;
        eventually("it is resolved", async || shop.layer.background().is_empty()).await;
        assert_eq!(base.charges("k").await, i64::from(heard));
        shop.gate.open();
        let again = shop.retry("/open", "k").await;
        assert_eq!((again.text(), again.is_replay()), ("charged in attempt 1", heard));
        assert_eq!(base.charges("k").await, 1);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_black_hole_before_the_record_is_resolved() {
    // One connection: a second one would be idle meanwhile, and nobody would notice that it is silent.
    let Some(base) = Big::with(1).await else { return };
    let shop = shop_with::<Big, _>(base.store(), |builder| {
        builder
            .store_timeout(Duration::from_secs(2))
            .lease(Duration::from_secs(6))
            .settle_within(Duration::from_secs(1))
    });
    for key in ["warm", "warmer", "warmest"] {
        assert_eq!(shop.send("/ok", key).await.status, 200);
        base.quiet().await;
    }
    let asked = spawn(&shop.bank, post("/open", "k", "{}"));
    shop.gate.arrival().await;
    base.quiet_but(1).await;
    base.proxy.black_hole(true);
    shop.gate.open();
    asked.await.unwrap().assert_problem(503, "store-unavailable");
    // Connections that nobody answers on do not keep their places in the pool, once nobody tries.
    eventually("it is given up", async || shop.layer.background().is_empty()).await;
    eventually("the pool has let go of them", async || base.store.pool().size() == 0).await;
    base.proxy.heal().await;
    let again = shop.retry("/open", "k").await;
    assert!(again.text().starts_with("charged in attempt"), "{again:?}");
    assert!(!again.is_replay());
    assert_eq!(base.charges("k").await, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_black_hole_after_the_commit_is_resolved() {
    let Some(base) = Big::with(1).await else { return };
    let shop = shop_with::<Big, _>(base.store(), |builder| builder.store_timeout(Duration::from_secs(3)));
    for key in ["warm", "warmer", "warmest"] {
        assert_eq!(shop.send("/ok", key).await.status, 200);
        base.quiet().await;
    }
    let asked = spawn(&shop.bank, post("/open", "k", "{}"));
    shop.gate.arrival().await;
    base.quiet_but(1).await;
    // The record, then COMMIT, which is heard.
    base.proxy.black_hole_after_requests(2);
    shop.gate.open_once();
    eventually("COMMIT is done", async || base.charges("k").await == 1).await;
    asked.await.unwrap().assert_problem(503, "store-unavailable");
    eventually("the pool has let go of them", async || base.store.pool().size() == 0).await;
    base.proxy.heal().await;
    let again = shop.retry("/open", "k").await;
    assert!(again.is_replay(), "{again:?}");
    assert_eq!(again.text(), "charged in attempt 1");
    assert_eq!(base.charges("k").await, 1);
}

/// The connection is lost while the server is at work on COMMIT: reading back waits until it is
/// decided.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_commit_that_is_still_being_made_is_waited_for() {
    let Some(base) = Big::new().await else { return };
    for sql in [
        "INSERT INTO parents VALUES (77)",
        "CREATE FUNCTION dawdle() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN PERFORM pg_sleep(1.5); RETURN NULL; END'",
        "CREATE CONSTRAINT TRIGGER dawdles AFTER INSERT ON children DEFERRABLE INITIALLY DEFERRED \
         FOR EACH ROW EXECUTE FUNCTION dawdle()",
    ] {
        base.execute(sql).await;
    }
    let shop = shop_with::<Big, _>(base.store(), |builder| builder.store_timeout(Duration::from_secs(20)));
    let asked = spawn(&shop.bank, post("/refer", "k", "{}"));
    let committing = "SELECT count(*) FROM pg_stat_activity \
                      WHERE datname = current_database() AND query = 'COMMIT' AND state = 'active'";
    eventually("COMMIT is heard", async || {
        let count: i64 = sqlx::query_scalar(committing).fetch_one(&base.direct).await.unwrap();
        count == 1
    })
    .await;
    base.proxy.cut_all().await;
    let first = asked.await.unwrap();
    assert_eq!((first.status.as_u16(), first.outcome()), (200, "executed"), "{first:?}");
    assert_eq!(base.charges("k").await, 1);
    shop.send("/refer", "k").await.assert_replay_of(&first);
}

/// A transaction of the handler's own, under a layer whose store is not this database.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_commit_of_ones_own_that_is_cut_off_is_not_called_rolled_back() {
    let Some(base) = Big::with(1).await else { return };
    let pool = base.pool();
    let charge = async move |key: IdempotencyKey| {
        let transaction = Transaction::own(pool.clone());
        let mut work = transaction.begin().await?;
        let id = format!("{}-{}", key.as_str(), key.attempt());
        Big::charge(&mut work, &id).await?;
        drop(work);
        transaction.commit().await?;
        Ok::<_, TransactionError>(StatusCode::CREATED)
    };
    let app = axum::Router::new()
        .route("/charge", axum::routing::post(charge))
        .layer(IdempotencyLayer::new(MemoryStore::new()));
    let call = async |key: &str| {
        let answer = send(&app, post("/charge", key, "")).await;
        base.quiet().await;
        answer
    };
    for key in ["warm", "warmer"] {
        assert_eq!(call(key).await.status, 201);
    }
    let before = base.proxy.round_trips();
    assert_eq!(call("counted").await.status, 201);
    // After COMMIT, the pool checks the connection.
    let commit = base.proxy.round_trips() - before - 1;
    for (key, heard) in [("unheard", false), ("heard", true)] {
        if heard {
            base.proxy.cut_after_requests(commit);
        } else {
            base.proxy.cut_before_request(commit);
        }
        let answer = call(key).await;
        base.proxy.heal().await;
        assert_eq!((answer.status.as_u16(), answer.outcome()), (500, "reopened"), "{key}");
        assert_eq!(answer.header("retry-after"), None, "{key}");
        assert_eq!(answer.text(), "The outcome of the operation is unknown.", "{key}");
        assert_eq!(base.charges(&format!("{key}-1")).await, i64::from(heard), "{key}");
        assert_eq!(call(key).await.status, 201);
        assert_eq!(
            base.charges(&format!("{key}-2")).await,
            1,
            "the handler sees its attempt"
        );
        // All statements are prepared again on the new connection.
        assert_eq!(call(&format!("{key}-warm")).await.status, 201);
    }
    // Before COMMIT is sent, nothing can be committed.
    base.proxy.cut_before_request(commit - 1);
    let answer = call("before").await;
    base.proxy.heal().await;
    assert_eq!((answer.status.as_u16(), answer.outcome()), (503, "released"));
    assert_eq!(base.charges("before-1").await, 0);
}
