//! Claims beside a transaction: duplicates, and holders that are overtaken.

use super::*;

on_both![
    a_slow_call_before_the_transaction_holds_nothing,
    duplicates_are_answered_at_once_while_a_transaction_is_open,
    a_holder_that_lost_its_claim_is_rolled_back,
    a_lapsed_claim_that_nobody_took_commits,
    a_reconciler_may_use_the_transaction,
];

async fn a_slow_call_before_the_transaction_holds_nothing<B: Base>(base: B) {
    let shop = shop::<B>(&base);
    let keys: Vec<String> = (0..12).map(|i| format!("slow{i}")).collect();
    let asked: Vec<_> = keys
        .iter()
        .map(|key| spawn(&shop.bank, post("/slow", key, "{}")))
        .collect();
    for _ in &keys {
        shop.gate.arrival().await;
    }
    // Twelve handlers at work over a pool of two.
    eventually("no connection is in use", async || base.busy() == 0).await;
    assert_eq!(shop.send("/ok", "quick").await.status, 200);
    // No lock either: another connection writes.
    base.execute("INSERT INTO charges VALUES ('outside')").await;
    shop.gate.open();
    for asked in asked {
        let answer = asked.await.unwrap();
        assert_eq!((answer.status.as_u16(), answer.outcome()), (200, "executed"));
    }
    for key in &keys {
        assert_eq!(base.charges(key).await, 1);
    }
}

async fn duplicates_are_answered_at_once_while_a_transaction_is_open<B: Base>(base: B) {
    let shop = shop::<B>(&base);
    let other = shop_with::<B, _>(base.elsewhere().await, |builder| builder);
    let waiting = shop_with::<B, _>(base.elsewhere().await, |builder| builder.wait(Duration::from_secs(60)));
    let first = spawn(&shop.bank, post("/open", "k", "{}"));
    shop.gate.arrival().await;
    let waiters: Vec<_> = (0..10)
        .map(|_| spawn(&waiting.bank, post("/open", "k", "{}")))
        .collect();
    let duplicates: Vec<_> = (0..20)
        .map(|i| {
            spawn(
                if i % 2 == 0 { &shop.bank } else { &other.bank },
                post("/open", "k", "{}"),
            )
        })
        .collect();
    for duplicate in duplicates {
        duplicate.await.unwrap().assert_problem(409, "in-flight");
    }
    send(&shop.bank, post("/open", "k", "{\"other\":1}"))
        .await
        .assert_problem(422, "key-reused");
    shop.gate.open();
    let first = first.await.unwrap();
    assert_eq!(first.status, 200);
    for waiter in waiters {
        waiter.await.unwrap().assert_replay_of(&first);
    }
    assert_eq!(base.charges("k").await, 1);
    assert_eq!(shop.runs.get() + other.runs.get() + waiting.runs.get(), 1);
}

async fn a_holder_that_lost_its_claim_is_rolled_back<B: Base>(base: B) {
    // Forgotten, and nobody has it.
    let shop = shop::<B>(&base);
    // SQLite has one writer: what takes the claim away must come before the transaction.
    for (key, takeover) in [("forgotten", false), ("taken", true)] {
        let first = spawn(&shop.bank, post("/slow", key, "{}"));
        shop.gate.arrival().await;
        assert!(base.store().forget(&shop.slot(key)).await.unwrap());
        let second = takeover.then(|| spawn(&shop.bank, post("/slow", key, "{}")));
        if takeover {
            shop.gate.arrival().await;
        }
        shop.gate.open_once();
        let answer = first.await.unwrap();
        answer.assert_problem(409, "in-flight");
        assert!(answer.header("retry-after").is_some());
        assert_eq!(base.charges(key).await, 0, "{key}");
        if let Some(second) = second {
            shop.gate.open_once();
            assert_eq!(second.await.unwrap().status, 200);
            assert_eq!(base.charges(key).await, 1);
        } else {
            assert_undone(&base, &shop, key).await;
        }
    }
    assert_eq!(counted(&shop.layer, "in-flight"), 2);
    // The token alone.
    let first = spawn(&shop.bank, post("/slow", "token", "{}"));
    shop.gate.arrival().await;
    base.execute("UPDATE idempotency_keys SET token = token / 2 WHERE record IS NULL")
        .await;
    shop.gate.open_once();
    first.await.unwrap().assert_problem(409, "in-flight");
    assert_eq!(base.charges("token").await, 0);
    eventually("no connection is kept", async || base.busy() == 0).await;
}

async fn a_lapsed_claim_that_nobody_took_commits<B: Base>(base: B) {
    let shop = shop::<B>(&base);
    let first = spawn(&shop.bank, post("/slow", "k", "{}"));
    shop.gate.arrival().await;
    base.execute("UPDATE idempotency_keys SET lease_until = lease_until - (forget_at - lease_until)")
        .await;
    shop.gate.open_once();
    assert_eq!(first.await.unwrap().status, 200);
    assert_eq!(base.charges("k").await, 1);
}

async fn a_reconciler_may_use_the_transaction<B: Base>(base: B) {
    let answer = Arc::new(std::sync::Mutex::new("fail"));
    let say = Arc::clone(&answer);
    let shop = shop_with::<B, _>(base.store(), |builder| {
        builder.policy(Policy::success().reconcile(move |lapsed| {
            let say = Arc::clone(&say);
            async move {
                let transaction = lapsed.request.extensions.get::<Transaction<B::Db>>().unwrap().clone();
                let mut work = transaction.begin().await?;
                B::charge(&mut work, "reconciler").await?;
                drop(work);
                let say = *say.lock().unwrap();
                match say {
                    "run" => Ok(tower_idempotency::Reconciled::Run),
                    "done" => Ok(tower_idempotency::Reconciled::Done(Response::new("was done".into()))),
                    _ => Err("cannot tell".into()),
                }
            }
        }))
    });
    let lapse = async |key: &str| {
        let asked = spawn(&shop.bank, post("/slow", key, "{}"));
        shop.gate.arrival().await;
        asked.abort();
        asked.await.unwrap_err();
        // The claim of a process that died: another token, lapsed.
        base.execute("UPDATE idempotency_keys SET token = token / 2, lease_until = lease_until - (forget_at - lease_until) WHERE record IS NULL").await;
        shop.gate.open_once();
        drain(&shop.layer).await;
    };
    lapse("k").await;
    let started = Instant::now();
    shop.send("/slow", "k").await.assert_problem(409, "outcome-unknown");
    assert!(started.elapsed() < BUSY_TIMEOUT, "it waited for its own lock");
    assert_eq!(base.charges("reconciler").await, 0);
    // It asks again, and gives the answer.
    *answer.lock().unwrap() = "done";
    let done = shop.send("/slow", "k").await;
    assert_eq!(
        (done.status.as_u16(), done.text(), done.is_replay()),
        (200, "was done", true)
    );
    assert_eq!(base.charges("k").await, 0);
    *answer.lock().unwrap() = "run";
    lapse("r").await;
    shop.gate.open_once();
    let ran = shop.send("/slow", "r").await;
    assert_eq!((ran.status.as_u16(), ran.text()), (200, "charged in attempt 2"));
    assert_eq!(base.charges("r").await, 1);
    eventually("no connection is kept", async || base.busy() == 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_claim_taken_while_the_transaction_is_open_rolls_it_back() {
    let Some(base) = Big::new().await else { return };
    let shop = shop_with::<Big, _>(base.store(), |builder| builder.lease(Duration::from_secs(3)));
    let first = spawn(&shop.bank, post("/open", "k", "{}"));
    shop.gate.arrival().await;
    base.store().forget(&shop.slot("k")).await.unwrap();
    let other = shop_with::<Big, _>(base.elsewhere().await, |builder| builder);
    let second = other.send("/ok", "k").await;
    assert_eq!(second.text(), "charged in attempt 1");
    shop.gate.open_once();
    first.await.unwrap().assert_problem(409, "in-flight");
    assert_eq!(base.charges("k").await, 1);
    shop.send("/ok", "k").await;
    assert_eq!(base.charges("k").await, 1);
}
