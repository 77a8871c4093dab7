//! `Transaction::abort` and `Transaction::on_commit`.

use super::*;

on_both![
    contract_4_13_an_aborted_operation_has_no_effect_and_its_answer_is_stored,
    an_aborted_failure_is_judged_as_any_other,
    what_follows_a_commit_runs_once_and_after_it,
    what_follows_a_commit_survives_the_client,
    what_follows_a_commit_does_not_run_after_a_roll_back,
    what_waits_for_a_commit_in_vain_keeps_nothing,
];

async fn contract_4_13_an_aborted_operation_has_no_effect_and_its_answer_is_stored<B: Base>(base: B) {
    let shop = shop_of::<B, _>(
        base.store(),
        |builder| builder,
        |transaction, key| {
            Box::pin(async move {
                let mut work = transaction.begin().await.unwrap();
                B::charge(&mut work, &key).await.unwrap();
                transaction.abort();
                drop(work);
                let error = transaction.begin().await.unwrap_err();
                assert_eq!(error.kind(), TransactionErrorKind::Aborted);
                200
            })
        },
    );
    let first = shop.send("/abort", "k").await;
    assert_eq!((first.status.as_u16(), first.outcome()), (200, "executed"));
    assert_eq!(base.charges("k").await, 0);
    shop.send("/abort", "k").await.assert_replay_of(&first);
    assert_eq!(shop.runs.get(), 1);
    eventually("no connection is kept", async || base.busy() == 0).await;
    base.assert_clean().await;
}

async fn an_aborted_failure_is_judged_as_any_other<B: Base>(base: B) {
    for begun in [false, true] {
        let shop = shop_of::<B, _>(
            base.store(),
            |builder| builder,
            move |transaction, key| {
                Box::pin(async move {
                    if begun {
                        let mut work = transaction.begin().await.unwrap();
                        B::charge(&mut work, &key).await.unwrap();
                    }
                    transaction.abort();
                    404
                })
            },
        );
        let key = format!("begun-{begun}");
        let first = shop.send("/abort", &key).await;
        assert_eq!((first.status.as_u16(), first.outcome()), (404, "released"));
        assert_undone(&base, &shop, &key).await;
    }
}

async fn what_follows_a_commit_runs_once_and_after_it<B: Base>(base: B) {
    let seen = Arc::new(std::sync::Mutex::new(Vec::new()));
    let (saw, elsewhere) = (Arc::clone(&seen), base.clone());
    let shop = shop_of::<B, _>(
        base.store(),
        |builder| builder,
        move |transaction, key| {
            let (saw, base) = (Arc::clone(&saw), elsewhere.clone());
            Box::pin(async move {
                let mut work = transaction.begin().await.unwrap();
                B::charge(&mut work, &key).await.unwrap();
                transaction.on_commit(async move {
                    let charges = base.charges(&key).await;
                    saw.lock().unwrap().push(charges);
                });
                200
            })
        },
    );
    let first = shop.send("/follow", "k").await;
    assert_eq!(first.status, 200);
    drain(&shop.layer).await;
    assert_eq!(*seen.lock().unwrap(), [1]);
    shop.send("/follow", "k").await.assert_replay_of(&first);
    drain(&shop.layer).await;
    assert_eq!(*seen.lock().unwrap(), [1], "a replay is followed by nothing");
}

async fn what_follows_a_commit_survives_the_client<B: Base>(base: B) {
    let (gate, ran) = (Gate::default(), Count::default());
    let (stop, up) = (gate.clone(), ran.clone());
    let shop = shop_of::<B, _>(
        base.store(),
        |builder| builder,
        move |transaction, key| {
            let (stop, up) = (stop.clone(), up.clone());
            Box::pin(async move {
                let mut work = transaction.begin().await.unwrap();
                B::charge(&mut work, &key).await.unwrap();
                transaction.on_commit(async move {
                    up.up();
                });
                stop.pass().await;
                200
            })
        },
    );
    let asked = spawn(&shop.bank, post("/follow", "k", "{}"));
    gate.arrival().await;
    asked.abort();
    asked.await.unwrap_err();
    gate.open();
    drain(&shop.layer).await;
    assert_eq!((ran.get(), base.charges("k").await), (1, 1));
}

async fn what_follows_a_commit_does_not_run_after_a_roll_back<B: Base>(base: B) {
    let ran = Count::default();
    let up = ran.clone();
    let shop = shop_of::<B, _>(
        base.store(),
        |builder| builder,
        move |transaction, key| {
            let up = up.clone();
            Box::pin(async move {
                let mut work = transaction.begin().await.unwrap();
                B::charge(&mut work, &key).await.unwrap();
                transaction.on_commit(async move {
                    up.up();
                });
                match key.as_str() {
                    "failed" => 500,
                    "aborted" => {
                        transaction.abort();
                        200
                    }
                    "broken" => {
                        let _ = B::run(&mut work, "ROLLBACK").await;
                        200
                    }
                    _ => {
                        B::refer(&mut work).await.unwrap();
                        200
                    }
                }
            })
        },
    );
    for key in ["failed", "aborted", "broken", "refused at the commit"] {
        shop.send("/follow", key).await;
        drain(&shop.layer).await;
        assert_eq!((ran.get(), base.charges(key).await), (0, 0), "{key}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_follows_a_commit_runs_when_an_unknown_commit_is_known() {
    let Some(base) = Big::with(1).await else { return };
    let ran = Count::default();
    let up = ran.clone();
    let shop = shop_of::<Big, _>(
        base.store(),
        |builder| builder,
        move |transaction, key| {
            let up = up.clone();
            Box::pin(async move {
                let mut work = transaction.begin().await.unwrap();
                Big::charge(&mut work, &key).await.unwrap();
                transaction.on_commit(async move {
                    up.up();
                });
                200
            })
        },
    );
    let mut requests = 0;
    for key in ["warm", "warmer", "counted"] {
        let before = base.proxy.round_trips();
        assert_eq!(shop.send("/follow", key).await.status, 200);
        base.quiet().await;
        requests = base.proxy.round_trips() - before;
    }
    drain(&shop.layer).await;
    assert_eq!(ran.get(), 3);
    // The last is the check at release, and the one before it is COMMIT.
    base.proxy.cut_after_requests(requests - 1);
    assert_eq!(shop.send("/follow", "k").await.status, 200);
    assert_eq!(base.proxy.counts().cuts, 1);
    drain(&shop.layer).await;
    assert_eq!((ran.get(), base.charges("k").await), (4, 1));
}

/// Stores that wrap another pass on what the handler asked for.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stores_that_wrap_others_abort_and_follow_as_well() {
    use tower_idempotency::store::{KeyRing, Sealed, Tiered};

    let base = Lite::new().await;
    let (ran, store) = (Count::default(), Tiered::new(base.store()));
    let up = ran.clone();
    let shop = shop_of::<Lite, _>(
        Sealed::new(store, KeyRing::new([7; 32])).unwrap(),
        |builder| builder,
        move |transaction, key| {
            let up = up.clone();
            Box::pin(async move {
                let mut work = transaction.begin().await.unwrap();
                Lite::charge(&mut work, &key).await.unwrap();
                transaction.on_commit(async move {
                    up.up();
                });
                match key.as_str() {
                    "aborted" => transaction.abort(),
                    "ended" => Lite::run(&mut work, "ROLLBACK").await.unwrap(),
                    _ => {}
                }
                200
            })
        },
    );
    assert_eq!(shop.send("/abort", "aborted").await.outcome(), "executed");
    shop.send("/end", "ended").await.assert_problem(500, "outcome-unknown");
    drain(&shop.layer).await;
    assert_eq!(
        (base.charges("aborted").await, base.charges("ended").await, ran.get()),
        (0, 0, 0)
    );
    assert_eq!(shop.send("/follow", "k").await.outcome(), "executed");
    drain(&shop.layer).await;
    assert_eq!((base.charges("k").await, ran.get()), (1, 1));
}

/// What waits holds the transaction, which holds what waits.
async fn what_waits_for_a_commit_in_vain_keeps_nothing<B: Base>(base: B) {
    let kept = Arc::new(());
    for (status, begins) in [(404, true), (200, false), (500, false)] {
        let held = Arc::clone(&kept);
        let shop = shop_of::<B, _>(
            base.store(),
            |builder| builder,
            move |transaction, key| {
                let held = Arc::clone(&held);
                Box::pin(async move {
                    if begins {
                        let mut work = transaction.begin().await.unwrap();
                        B::charge(&mut work, &key).await.unwrap();
                    }
                    let mine = transaction.clone();
                    transaction.on_commit(async move {
                        mine.abort();
                        drop(held);
                    });
                    status
                })
            },
        );
        let key = format!("{status}-{begins}");
        assert_eq!(shop.send("/vain", &key).await.status, status);
        drop(shop);
        eventually("nothing is kept", async || Arc::strong_count(&kept) == 1).await;
    }
}
