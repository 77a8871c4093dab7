//! The layer commits the transaction that it began, or nothing: what a handler or `sqlx` ends is noticed, and what
//! runs outside of the transaction cannot write.

use super::*;
use crate::support::capture;

on_both![
    contract_4_12_a_savepoint_that_is_cut_off_leaves_nothing,
    contract_4_12_a_savepoint_that_is_left_open_leaves_nothing,
    contract_4_11_a_handler_that_rolls_back_by_itself_is_no_success,
    contract_4_11_a_handler_that_commits_by_itself_is_not_charged_twice,
    contract_4_11_a_handler_that_commits_and_panics_is_not_charged_twice,
    a_commit_in_front_of_a_stored_failure_is_noticed,
    work_between_two_transactions_cannot_write,
    connections_are_clean_after_every_end,
];

/// The reason in the last error that was logged on this thread.
fn logged() -> String {
    let events = capture::take();
    let reason = events.iter().rev().find(|event| {
        event.target == "tower_idempotency" && event.level <= tracing::Level::WARN && event.field("error").is_some()
    });
    reason
        .and_then(|event| event.field("error"))
        .unwrap_or_default()
        .to_owned()
}

async fn contract_4_12_a_savepoint_that_is_cut_off_leaves_nothing<B: Base>(base: B) {
    capture::install();
    for status in [200, 402, 502] {
        let shop = shop_of::<B, _>(
            base.store(),
            |builder| builder,
            move |transaction, key| {
                Box::pin(async move {
                    let mut work = transaction.begin().await.unwrap();
                    B::charge(&mut work, &key).await.unwrap();
                    B::cut(&mut work).await;
                    // The outer transaction is gone, so these would be on their own.
                    let charged = B::charge(&mut work, &key).await;
                    assert!(charged.is_err(), "what is written outside of the transaction fails");
                    if status != 200 {
                        B::charge_nested(&mut work, &key, true).await.unwrap_err();
                    }
                    status
                })
            },
        );
        let key = format!("cut-{status}");
        capture::take();
        let answer = shop.send("/cut", &key).await;
        if status == 200 {
            answer.assert_problem(503, "store-unavailable");
            assert!(answer.header("retry-after").is_some());
            assert!(logged().contains("a savepoint was cut off"));
        } else {
            assert_eq!((answer.status.as_u16(), answer.outcome()), (status, "released"));
        }
        // A retry charges once.
        assert_undone(&base, &shop, &key).await;
    }
    eventually("no connection is kept", async || base.busy() == 0).await;
    base.assert_clean().await;
}

async fn contract_4_12_a_savepoint_that_is_left_open_leaves_nothing<B: Base>(base: B) {
    capture::install();
    let shop = shop_of::<B, _>(
        base.store(),
        |builder| builder,
        |transaction, key| {
            Box::pin(async move {
                let mut work = transaction.begin().await.unwrap();
                B::leave(&mut work).await;
                B::charge(&mut work, &key).await.unwrap();
                200
            })
        },
    );
    capture::take();
    let answer = shop.send("/leave", "k").await;
    answer.assert_problem(503, "store-unavailable");
    assert!(logged().contains("a savepoint was left open"));
    assert_undone(&base, &shop, "k").await;
    eventually("no connection is kept", async || base.busy() == 0).await;
    base.assert_clean().await;
}

async fn contract_4_11_a_handler_that_rolls_back_by_itself_is_no_success<B: Base>(base: B) {
    capture::install();
    let shop = shop_of::<B, _>(
        base.store(),
        |builder| builder,
        |transaction, key| {
            Box::pin(async move {
                let mut work = transaction.begin().await.unwrap();
                B::charge(&mut work, &key).await.unwrap();
                B::run(&mut work, "ROLLBACK").await.unwrap();
                200
            })
        },
    );
    capture::take();
    let answer = shop.send("/roll-back", "k").await;
    answer.assert_problem(500, "outcome-unknown");
    assert_eq!(answer.outcome(), "outcome-unknown");
    assert!(logged().contains("Transaction::abort"));
    assert_eq!(base.charges("k").await, 0);
    let again = shop.send("/roll-back", "k").await;
    again.assert_problem(409, "outcome-unknown");
    assert_eq!(shop.runs.get(), 1);
    eventually("no connection is kept", async || base.busy() == 0).await;
    base.assert_clean().await;
}

/// How often a handler's own `COMMIT` charges: SQLite refuses it.
fn kept<B: Base>() -> i64 {
    i64::from(!std::any::type_name::<B>().ends_with("Lite"))
}

async fn contract_4_11_a_handler_that_commits_by_itself_is_not_charged_twice<B: Base>(base: B) {
    capture::install();
    for status in [200, 502] {
        let shop = shop_of::<B, _>(
            base.store(),
            |builder| builder,
            move |transaction, key| {
                Box::pin(async move {
                    let mut work = transaction.begin().await.unwrap();
                    B::charge(&mut work, &key).await.unwrap();
                    let committed = B::run(&mut work, "COMMIT").await;
                    assert_eq!(committed.is_ok(), kept::<B>() == 1);
                    B::charge(&mut work, &key).await.unwrap_err();
                    status
                })
            },
        );
        let key = format!("commit-{status}");
        capture::take();
        let answer = shop.send("/commit", &key).await;
        assert_eq!(base.charges(&key).await, kept::<B>(), "{key}");
        if status == 502 && kept::<B>() == 0 {
            // Nothing is kept for certain.
            assert_eq!((answer.status.as_u16(), answer.outcome()), (502, "released"));
            assert_undone(&base, &shop, &key).await;
            continue;
        }
        answer.assert_problem(500, "outcome-unknown");
        let reason = logged();
        assert!(reason.contains("on its own"), "{reason}");
        let again = shop.send("/commit", &key).await;
        again.assert_problem(409, "outcome-unknown");
        assert_eq!(base.charges(&key).await, kept::<B>(), "{key}");
        assert_eq!(shop.runs.get(), 1);
    }
    eventually("no connection is kept", async || base.busy() == 0).await;
    base.assert_clean().await;
}

async fn contract_4_11_a_handler_that_commits_and_panics_is_not_charged_twice<B: Base>(base: B) {
    let shop = shop_of::<B, _>(
        base.store(),
        |builder| builder,
        |transaction, key| {
            Box::pin(async move {
                let mut work = transaction.begin().await.unwrap();
                B::charge(&mut work, &key).await.unwrap();
                let _ = B::run(&mut work, "COMMIT").await;
                panic!("as the test wants");
            })
        },
    );
    let panicking = shop.bank.clone().oneshot(post("/commit", "k", "{}"));
    assert!(tokio::spawn(panicking).await.unwrap_err().is_panic());
    assert_eq!(base.charges("k").await, kept::<B>());
    if kept::<B>() == 0 {
        return assert_undone(&base, &shop, "k").await;
    }
    shop.send("/commit", "k").await.assert_problem(409, "outcome-unknown");
    assert_eq!(base.charges("k").await, 1);
    assert_eq!(counted(&shop.layer, "sealed"), 1);
}

async fn a_commit_in_front_of_a_stored_failure_is_noticed<B: Base>(base: B) {
    let shop = shop_of::<B, _>(
        base.store(),
        |builder| builder.policy(Policy::everything()),
        |transaction, key| {
            Box::pin(async move {
                let mut work = transaction.begin().await.unwrap();
                B::charge(&mut work, &key).await.unwrap();
                let _ = B::run(&mut work, "COMMIT").await;
                402
            })
        },
    );
    let answer = shop.send("/commit", "k").await;
    assert_eq!(base.charges("k").await, kept::<B>());
    if kept::<B>() == 1 {
        answer.assert_problem(500, "outcome-unknown");
        shop.send("/commit", "k").await.assert_problem(409, "outcome-unknown");
    } else {
        assert_eq!((answer.status.as_u16(), answer.outcome()), (402, "executed"));
        shop.send("/commit", "k").await.assert_replay_of(&answer);
    }
    assert_eq!(shop.runs.get(), 1);
}

async fn work_between_two_transactions_cannot_write<B: Base>(base: B) {
    let shop = shop_of::<B, _>(
        base.store(),
        |builder| builder,
        |transaction, key| {
            Box::pin(async move {
                let mut work = transaction.begin().await.unwrap();
                B::charge(&mut work, &key).await.unwrap();
                B::run(&mut work, "ROLLBACK").await.unwrap();
                B::run(&mut work, "BEGIN").await.unwrap();
                let _ = B::charge(&mut work, &key).await;
                let _ = B::run(&mut work, "COMMIT").await;
                B::run(&mut work, "BEGIN").await.unwrap();
                let _ = B::charge(&mut work, &key).await;
                200
            })
        },
    );
    let answer = shop.send("/again", "k").await;
    assert!(answer.status.is_server_error(), "{answer:?}");
    assert_eq!(base.charges("k").await, 0);
    eventually("no connection is kept", async || base.busy() == 0).await;
    base.assert_clean().await;
}

async fn connections_are_clean_after_every_end<B: Base>(base: B) {
    let shop = shop_with::<B, _>(base.store(), |builder| builder.policy(Policy::everything()));
    for path in ["/ok", "/status/402", "/status/500", "/refer", "/nested", "/stream"] {
        shop.send(path, path).await;
        eventually("no connection is kept", async || base.busy() == 0).await;
        base.assert_clean().await;
    }
    let free = shop_with::<B, _>(base.store(), |builder| builder);
    for path in ["/status/404", "/error", "/refer"] {
        let _ = free
            .bank
            .clone()
            .oneshot(post(path, &format!("free{path}"), "{}"))
            .await;
        eventually("no connection is kept", async || base.busy() == 0).await;
        base.assert_clean().await;
    }
}

/// The chained transaction is as writable as ours, and commits on its own.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_chain_of_transactions_is_noticed() {
    let Some(base) = Big::new().await else { return };
    for (end, charges) in [("COMMIT AND CHAIN", 1), ("ROLLBACK AND CHAIN", 0)] {
        let shop = shop_of::<Big, _>(
            base.store(),
            |builder| builder,
            move |transaction, key| {
                Box::pin(async move {
                    let mut work = transaction.begin().await.unwrap();
                    Big::charge(&mut work, &key).await.unwrap();
                    Big::run(&mut work, end).await.unwrap();
                    Big::charge(&mut work, &key).await.unwrap();
                    200
                })
            },
        );
        shop.send("/chain", end.split(' ').next().unwrap())
            .await
            .assert_problem(500, "outcome-unknown");
        assert_eq!(base.charges(end.split(' ').next().unwrap()).await, charges, "{end}");
    }
}

/// A forgotten future is not dropped: the savepoint is there, and all of the work is in the transaction.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_savepoint_that_is_forgotten_while_it_begins_commits_with_the_rest() {
    let Some(base) = Big::new().await else { return };
    base.proxy.delay(Duration::from_millis(20));
    let shop = shop_of::<Big, _>(
        base.store(),
        |builder| builder,
        |transaction, key| {
            Box::pin(async move {
                let mut work = transaction.begin().await.unwrap();
                Big::charge(&mut work, &key).await.unwrap();
                let mut begin = Box::pin(sqlx::Connection::begin(&mut *work));
                assert!(poll_once(begin.as_mut()).await.is_pending());
                std::mem::forget(begin);
                Big::charge(&mut work, &key).await.unwrap();
                200
            })
        },
    );
    let first = shop.send("/forget", "k").await;
    assert_eq!((first.status.as_u16(), first.outcome()), (200, "executed"));
    assert_eq!(base.charges("k").await, 2);
    shop.send("/forget", "k").await.assert_replay_of(&first);
}

/// The input of the first report: a timeout around a savepoint, with 20 ms of network.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_time_out_around_a_savepoint_keeps_nothing() {
    let Some(base) = Big::new().await else { return };
    let shop = shop_of::<Big, _>(
        base.store(),
        |builder| builder,
        |transaction, key| {
            Box::pin(async move {
                let mut work = transaction.begin().await.unwrap();
                Big::charge(&mut work, &key).await.unwrap();
                let nested = Big::charge_nested(&mut work, &key, true);
                let _ = tokio::time::timeout(Duration::from_millis(5), nested).await;
                let _ = Big::charge(&mut work, &key).await;
                200
            })
        },
    );
    base.proxy.delay(Duration::from_millis(20));
    let answer = shop.send("/slow", "k").await;
    answer.assert_problem(503, "store-unavailable");
    base.proxy.heal().await;
    assert_undone(&base, &shop, "k").await;
}

/// A handler may still choose its isolation: nothing has read before its first statement.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_handler_may_set_the_isolation_level() {
    let Some(base) = Big::new().await else { return };
    let shop = shop_of::<Big, _>(
        base.store(),
        |builder| builder,
        |transaction, key| {
            Box::pin(async move {
                let mut work = transaction.begin().await.unwrap();
                let set = "SET TRANSACTION ISOLATION LEVEL SERIALIZABLE";
                Big::run(&mut work, set).await.unwrap();
                Big::charge(&mut work, &key).await.unwrap();
                200
            })
        },
    );
    assert_eq!(shop.send("/serializable", "k").await.status, 200);
    assert_eq!(base.charges("k").await, 1);
}
