//! Waiting for replicas.

use super::*;

const WITHIN: Duration = Duration::from_millis(300);

#[tokio::test]
async fn a_replica_is_read_only() {
    let Some(pair) = Pair::start().await else { return };
    let store = store(&pair.replica).await;
    assert_fails(store.begin(&claim(1)).await, StoreErrorKind::Unavailable, "primary");
}

#[tokio::test]
async fn claims_and_records_that_a_replica_has() {
    let Some(pair) = Pair::start().await else { return };
    let (url, tally) = proxy(&pair.primary).await;
    let store = RedisStore::connect(&url).await.unwrap();
    let store = store.wait_for_replicas(1, Duration::from_secs(10)).unwrap();
    let mut replica = raw(&pair.replica.url()).await;
    // Enough that each connection is made, and that a flush is met on all of them.
    for n in 0..24 {
        if n == 12 {
            let () = query(&mut raw(&pair.primary.url()).await, "SCRIPT FLUSH").await;
        }
        let begin = claim(n);
        tally.take();
        assert_eq!(store.begin(&begin).await.unwrap(), STARTED);
        if n > 16 {
            assert_eq!(tally.take().0, 1, "one round trip");
        }
        let key = store.key(&slot(n));
        let held: String = query(&mut replica, &format!("GET {key}")).await;
        assert!(held.starts_with("claim "), "{held}");
        assert_eq!(
            store
                .complete(&slot(n), begin.token, &record(b"answer"), HOUR)
                .await
                .unwrap(),
            Held::Yes
        );
        if n > 16 {
            assert_eq!(tally.take().0, 1, "one round trip");
        }
        let held: Vec<u8> = query(&mut replica, &format!("GET {key}")).await;
        assert!(held.starts_with(&record(b"answer").to_bytes()));
        assert_eq!(
            store.begin(&claim(n)).await.unwrap(),
            ClaimOutcome::Done(record(b"answer"))
        );
    }
}

#[tokio::test]
async fn a_claim_that_too_few_replicas_have_is_given_back() {
    let Some(pair) = Pair::start().await else { return };
    let plain = store(&pair.primary).await;
    let store = plain.clone();
    let store = store.wait_for_replicas(1, WITHIN).unwrap();
    // With time enough on a busy machine.
    let patient = plain.clone().wait_for_replicas(1, Duration::from_secs(20)).unwrap();
    let (mid, again) = (claim(2), claim(3));
    assert_eq!(patient.begin(&mid).await.unwrap(), STARTED);
    plain.begin(&again).await.unwrap();
    plain.renew(&slot(3), again.token, Duration::ZERO).await.unwrap();

    pair.replica.pause();
    let begun = store.begin(&claim(1)).await;
    assert!(begun.as_ref().is_err_and(|error| error.had_no_effect()), "{begun:?}");
    assert_fails(begun, StoreErrorKind::Unavailable, "fewer than 1 replicas");
    assert_eq!(plain.look_up(&slot(1)).await.unwrap(), None, "given back");
    // A takeover stays remembered, with its attempt.
    assert_fails(store.begin(&claim(3)).await, StoreErrorKind::Unavailable, "did not run");
    let phase = plain.look_up(&slot(3)).await.unwrap().unwrap().phase;
    assert_eq!(
        phase,
        Phase::Running {
            attempt: 2,
            lease_left: Duration::ZERO
        }
    );

    capture::install();
    capture::take();
    let held = store.complete(&slot(2), mid.token, &record(b"answer"), HOUR).await;
    assert_eq!(held.unwrap(), Held::Yes, "the operation is done");
    let events = capture::take();
    assert!(
        events
            .iter()
            .any(|event| event.message().contains("fewer than 1 replicas")
                && event.target == "tower_idempotency"
                && event.level == tracing::Level::WARN),
        "{events:?}"
    );
    assert_eq!(
        store.begin(&claim(2)).await.unwrap(),
        ClaimOutcome::Done(record(b"answer"))
    );

    // More are waited for than there are.
    pair.replica.resume();
    let two = plain.clone().wait_for_replicas(2, WITHIN).unwrap();
    assert_fails(
        two.begin(&claim(4)).await,
        StoreErrorKind::Unavailable,
        "fewer than 2 replicas",
    );
    assert_eq!(patient.begin(&claim(5)).await.unwrap(), STARTED);
}

#[tokio::test]
async fn a_claim_whose_answer_was_lost_is_waited_for_again() {
    let Some(pair) = Pair::start().await else { return };
    let (url, tally) = proxy(&pair.primary).await;
    let store = RedisStore::connect(&url).await.unwrap();
    // With time enough on a busy machine.
    let store = store.wait_for_replicas(1, Duration::from_secs(3)).unwrap();
    // Each connection is made, so that the next request is the claim, and knows how its server claims.
    for n in 0..8 {
        store.begin(&claim(n)).await.unwrap();
    }
    pair.replica.pause();
    tally.proxy.cut_after_requests(1);
    assert_fails(
        store.begin(&claim(100)).await,
        StoreErrorKind::Unavailable,
        "fewer than 1 replicas",
    );
}

/// `WAIT` is about the last write of its own connection, which a repeated claim need not share with the
/// first.
#[tokio::test]
async fn a_repeated_claim_is_written_again_for_the_replicas() {
    let Some(pair) = Pair::start().await else { return };
    let store = store(&pair.primary).await;
    let mut primary = raw(&pair.primary.url()).await;
    let mut written = async || -> u64 {
        let info: String = query(&mut primary, "INFO replication").await;
        let offset = info.lines().find_map(|line| line.strip_prefix("master_repl_offset:"));
        offset.unwrap().trim().parse().unwrap()
    };
    for by in [claim(1), claim(2).lease(Duration::ZERO).ttl(HOUR)] {
        assert_eq!(store.begin(&by).await.unwrap(), STARTED);
        let before = written().await;
        assert_eq!(store.begin(&by).await.unwrap(), STARTED);
        assert!(written().await > before);
    }
}

#[tokio::test]
async fn waiting_for_replicas_holds_nobody_else_up() {
    let Some(pair) = Pair::start().await else { return };
    let plain = store(&pair.primary).await;
    let store = plain.clone().wait_for_replicas(1, Duration::from_secs(10)).unwrap();
    let running = claim(1);
    plain.begin(&running).await.unwrap();
    pair.replica.pause();
    let waiter = store.clone();
    let waiting = tokio::spawn(async move { waiter.begin(&claim(2)).await });
    eventually("the claim waits", async || {
        plain.look_up(&slot(2)).await.unwrap().is_some()
    })
    .await;
    assert_eq!(store.renew(&slot(1), running.token, HOUR).await.unwrap(), Held::Yes);
    assert!(!waiting.is_finished());
    pair.replica.resume();
    assert_eq!(waiting.await.unwrap().unwrap(), STARTED);
}

#[tokio::test]
async fn waits_that_make_no_sense() {
    let Some(server) = Redis::start() else { return };
    let plain = store(&server).await;
    for (count, within) in [(0, WITHIN), (1, Duration::ZERO), (1, HOUR)] {
        let error = plain.clone().wait_for_replicas(count, within).unwrap_err();
        assert_eq!(error.option(), "wait_for_replicas");
    }
    let given = raw(&server.url()).await;
    let error = RedisStore::new(given).wait_for_replicas(1, WITHIN).unwrap_err();
    assert!(error.to_string().contains("with_client"), "{error}");
}
