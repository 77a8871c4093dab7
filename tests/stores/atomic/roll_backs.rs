//! What rolls back: failures, clients that leave, and transactions that are not ended.

use super::*;

on_both![
    every_failure_rolls_back_and_frees_the_key,
    a_client_that_leaves,
    a_constraint_that_fails_at_the_commit,
    work_in_use_and_over,
    leaked_work_is_answered_and_rolled_back,
    work_that_ends_late_is_waited_for,
    work_in_a_live_body,
    a_runtime_that_is_dropped,
];

async fn every_failure_rolls_back_and_frees_the_key<B: Base>(base: B) {
    let shop = shop::<B>(&base);
    for status in [302, 400, 402, 404, 409, 422, 500, 503] {
        let path = format!("/status/{status}");
        let key = format!("s{status}");
        let answer = shop.send(&path, &key).await;
        assert_eq!((answer.status.as_u16(), answer.text()), (status, "refused"));
        assert_eq!(answer.outcome(), "released");
        assert_undone(&base, &shop, &key).await;
    }
    let error = shop.bank.clone().oneshot(post("/error", "error", "{}")).await;
    error.expect_err("the service's own");
    assert_undone(&base, &shop, "error").await;
    let panicking = shop.bank.clone().oneshot(post("/panic", "panic", "{}"));
    assert!(tokio::spawn(panicking).await.unwrap_err().is_panic());
    assert_undone(&base, &shop, "panic").await;
    eventually("no connection is kept", async || base.busy() == 0).await;
}

async fn a_client_that_leaves<B: Base>(base: B) {
    // The handler goes on, and commits.
    let shop = shop::<B>(&base);
    let asked = spawn(&shop.bank, post("/open", "goes-on", "{}"));
    shop.gate.arrival().await;
    asked.abort();
    asked.await.unwrap_err();
    shop.gate.open_once();
    drain(&shop.layer).await;
    assert_eq!(base.charges("goes-on").await, 1);
    assert!(shop.send("/open", "goes-on").await.is_replay());

    for (fate, key) in [(Fate::Release, "released"), (Fate::Seal, "sealed")] {
        let shop = shop_with::<B, _>(base.store(), |builder| builder.cancel_on_disconnect(fate));
        let asked = spawn(&shop.bank, post("/open", key, "{}"));
        shop.gate.arrival().await;
        asked.abort();
        asked.await.unwrap_err();
        drain(&shop.layer).await;
        assert_eq!(base.charges(key).await, 0, "{fate:?}");
        if fate == Fate::Seal {
            shop.send("/open", key).await.assert_problem(409, "outcome-unknown");
        } else {
            let other = shop_with::<B, _>(base.store(), |builder| builder);
            assert_undone(&base, &other, key).await;
        }
    }
    eventually("no connection is kept", async || base.busy() == 0).await;
}

async fn a_constraint_that_fails_at_the_commit<B: Base>(base: B) {
    let shop = shop::<B>(&base);
    let answer = shop.send("/refer", "k").await;
    answer.assert_problem(503, "store-unavailable");
    assert!(answer.header("retry-after").is_some());
    assert_eq!(answer.outcome(), "store-unavailable");
    assert_undone(&base, &shop, "k").await;
    assert_eq!(counted(&shop.layer, "store-unavailable"), 1);
    eventually("no connection is kept", async || base.busy() == 0).await;
}

async fn work_in_use_and_over<B: Base>(base: B) {
    let shop = shop::<B>(&base);
    assert_eq!(shop.send("/in-use", "k").await.status, 200);
    assert_eq!(base.charges("k").await, 1);
    assert_eq!(shop.send("/hand-on", "h").await.status, 200);
    let left = shop.left.lock().unwrap().pop().unwrap();
    let transaction = left.downcast::<Transaction<B::Db>>().unwrap();
    let error = transaction.begin().await.unwrap_err();
    assert_eq!(error.kind(), TransactionErrorKind::Over);
    assert_eq!(base.charges("h").await, 1);
}

async fn leaked_work_is_answered_and_rolled_back<B: Base>(base: B) {
    let shop = shop_with::<B, _>(base.store(), |builder| builder.store_timeout(Duration::from_secs(1)));
    let answer = shop.send("/leak", "k").await;
    answer.assert_problem(503, "store-unavailable");
    assert_eq!(base.charges("k").await, 0);
    let left = shop.left.lock().unwrap().pop().unwrap();
    let (work, transaction) = *left.downcast::<(Work<B::Db>, Transaction<B::Db>)>().unwrap();
    drop(work);
    // Too late to go on.
    let error = transaction.begin().await.map(drop).unwrap_err();
    assert_eq!(error.kind(), TransactionErrorKind::Over);
    // The transaction has ended although its handle is kept.
    let again = shop.retry_anew("k").await;
    assert_eq!((again.status.as_u16(), again.text()), (200, "charged in attempt 1"));
    assert_eq!(base.charges("k").await, 1);
    drop(transaction);
    eventually("no connection is kept", async || base.busy() == 0).await;
}

async fn work_that_ends_late_is_waited_for<B: Base>(base: B) {
    let shop = shop::<B>(&base);
    let asked = spawn(&shop.bank, post("/late", "k", "{}"));
    shop.gate.arrival().await;
    shop.gate.open_once();
    assert_eq!(asked.await.unwrap().text(), "late");
    assert_eq!(base.charges("k").await, 2);
}

async fn work_in_a_live_body<B: Base>(base: B) {
    let shop = shop_with::<B, _>(base.store(), |builder| builder.store_timeout(Duration::from_secs(1)));
    let response = respond(&shop.bank, post("/live", "k", "{}")).await;
    assert_eq!(response.status(), 503);
    drop(response);
    assert_eq!(base.charges("k").await, 0);
    shop.left.lock().unwrap().clear();
    let again = shop.retry_anew("k").await;
    assert_eq!(again.text(), "charged in attempt 1");
}

async fn a_runtime_that_is_dropped<B: Base>(base: B) {
    // It has to lapse, and a claim may take a third of it.
    const LEASE: Duration = Duration::from_secs(3);
    // Its own pool: connections belong to the runtime that made them.
    let elsewhere = base.clone();
    let (shop, asked) = tokio::task::spawn_blocking(move || {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let (shop, asked) = runtime.block_on(async {
            let shop = shop_with::<B, _>(elsewhere.elsewhere().await, |builder| builder.lease(LEASE));
            let asked = spawn(&shop.bank, post("/open", "k", "{}"));
            shop.gate.arrival().await;
            (shop, asked)
        });
        drop(runtime);
        (shop, asked)
    })
    .await
    .unwrap();
    assert!(asked.await.unwrap_err().is_cancelled());
    assert_eq!(base.charges("k").await, 0);
    drop(shop);
    let here = shop_with::<B, _>(base.store(), |builder| builder.lease(LEASE));
    here.gate.open();
    let again = here.retry("/open", "k").await;
    assert_eq!(again.text(), "charged in attempt 2");
    assert_eq!(base.charges("k").await, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failed_statement_that_the_handler_swallowed_is_no_success() {
    let Some(base) = Big::new().await else { return };
    let shop = shop::<Big>(&base);
    shop.send("/swallow", "k")
        .await
        .assert_problem(503, "store-unavailable");
    assert_undone(&base, &shop, "k").await;
}
