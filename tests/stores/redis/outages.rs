//! Servers and connections that go away and come back.

use std::future::ready;

use super::*;
use crate::support::wait::{PATIENCE, watched};

#[tokio::test]
async fn answers_that_are_lost_with_their_connection() {
    let Some(server) = Redis::start() else { return };
    let (url, tally) = proxy(&server).await;
    let (store, plain) = (RedisStore::connect(&url).await.unwrap(), store(&server).await);
    // The scripts are known, so that the answer that is lost is that of the operation.
    let known = claim(9);
    plain.begin(&known).await.unwrap();
    plain.renew(&slot(9), known.token, HOUR).await.unwrap();
    plain.complete(&slot(9), known.token, &record(b""), HOUR).await.unwrap();

    let begin = claim(1);
    let lose = || tally.proxy.cut_after_requests(1);
    lose();
    assert_eq!(
        store.begin(&begin).await.unwrap(),
        STARTED,
        "asked again, with its token"
    );
    lose();
    assert_eq!(store.renew(&slot(1), begin.token, HOUR).await.unwrap(), Held::Yes);
    lose();
    let answer = store.complete(&slot(1), begin.token, &record(b"answer"), HOUR).await;
    assert_eq!(answer.unwrap(), Held::Yes, "it finds its own record");
    assert_eq!(
        store.begin(&claim(1)).await.unwrap(),
        ClaimOutcome::Done(record(b"answer"))
    );

    // Another's record is another's, and without a doubt the same again is lost.
    let again = store.complete(&slot(1), begin.token, &record(b"answer"), HOUR).await;
    assert_eq!(again.unwrap(), Held::Lost);
    tally.proxy.cut_before_request(1);
    let other = store.complete(&slot(1), begin.token, &record(b"other"), HOUR).await;
    assert_eq!(other.unwrap(), Held::Lost);

    // What was to be kept for no time is gone when it is looked for.
    let brief = claim(3);
    store.begin(&brief).await.unwrap();
    lose();
    let gone = store
        .complete(&slot(3), brief.token, &record(b"brief"), Duration::ZERO)
        .await;
    assert_eq!(gone.unwrap(), Held::Lost);
    assert_eq!(store.begin(&claim(3)).await.unwrap(), STARTED);

    // A release would be told that its claim is lost.
    let released = claim(2);
    store.begin(&released).await.unwrap();
    plain.release(&slot(9), Token(0)).await.unwrap();
    lose();
    let answer = store.release(&slot(2), released.token).await;
    assert_fails(answer, StoreErrorKind::Unavailable, "connection failed or broke");
    assert_eq!(store.look_up(&slot(2)).await.unwrap(), None);
}

#[tokio::test]
async fn scripts_that_the_server_forgets_are_sent_again() {
    let Some(server) = Redis::start() else { return };
    let (store, mut raw) = (store(&server).await, raw(&server.url()).await);
    let begin = claim(1);
    for round in 0..3 {
        assert_eq!(store.begin(&begin).await.unwrap(), STARTED, "round {round}");
        let () = query(&mut raw, "SCRIPT FLUSH").await;
        assert_eq!(store.renew(&slot(1), begin.token, HOUR).await.unwrap(), Held::Yes);
        let () = query(&mut raw, "SCRIPT FLUSH").await;
        assert!(store.look_up(&slot(1)).await.unwrap().is_some());
        let () = query(&mut raw, "SCRIPT FLUSH").await;
        assert_eq!(store.count().await.unwrap(), Census::new(1, 0, 0));
        let () = query(&mut raw, "SCRIPT FLUSH").await;
    }
    assert_eq!(
        store.complete(&slot(1), begin.token, &record(b""), HOUR).await.unwrap(),
        Held::Yes
    );
    let () = query(&mut raw, "SCRIPT FLUSH").await;
    assert_eq!(store.release(&slot(1), begin.token).await.unwrap(), Held::Lost);
}

#[tokio::test]
async fn a_restart_with_kept_data_is_not_noticed() {
    let options = ["--appendonly", "yes", "--appendfsync", "always"];
    let Some(mut server) = Redis::start_with(&options) else {
        return;
    };
    let store = store(&server).await;
    let (done, running) = (claim(1), claim(2));
    store.begin(&done).await.unwrap();
    store
        .complete(&slot(1), done.token, &record(b"answer"), HOUR)
        .await
        .unwrap();
    store.begin(&running).await.unwrap();
    server.restart();
    assert_eq!(
        store.begin(&claim(1)).await.unwrap(),
        ClaimOutcome::Done(record(b"answer"))
    );
    assert!(matches!(
        store.begin(&claim(2)).await.unwrap(),
        ClaimOutcome::InFlight { .. }
    ));
    server.restart();
    assert_eq!(store.renew(&slot(2), running.token, HOUR).await.unwrap(), Held::Yes);
    let held = store.complete(&slot(2), running.token, &record(b"late"), HOUR).await;
    assert_eq!(held.unwrap(), Held::Yes);
}

#[tokio::test]
async fn a_server_that_is_gone_and_comes_back() {
    let Some(mut server) = Redis::start() else { return };
    let store = store(&server).await;
    let begin = claim(1);
    store.begin(&begin).await.unwrap();
    server.kill();
    assert_fails(
        store.begin(&begin).await,
        StoreErrorKind::Unavailable,
        "nothing listens",
    );
    assert_fails(
        store.complete(&slot(1), begin.token, &record(b""), HOUR).await,
        StoreErrorKind::Unavailable,
        "redis: complete: ",
    );
    server.restart();
    eventually("the store is back", async || store.begin(&begin).await.is_ok()).await;
}

#[tokio::test]
async fn a_server_that_is_paused() {
    let Some(server) = Redis::start() else { return };
    let store = store(&server).await;
    let begin = claim(1);
    server.pause();
    let answer = watched(PATIENCE, store.begin(&begin)).await;
    server.resume();
    assert_fails(answer, StoreErrorKind::Timeout, "did not answer in time");
    // Whether the first was done does not matter.
    assert_eq!(store.begin(&begin).await.unwrap(), STARTED);
    assert!(matches!(
        store.begin(&claim(1)).await.unwrap(),
        ClaimOutcome::InFlight { .. }
    ));
}

#[tokio::test]
async fn a_password_that_was_changed_for_a_while() {
    let Some(server) = Redis::start_with(&["--requirepass", PASSWORD]) else {
        return;
    };
    let url = format!("redis://:{PASSWORD}@127.0.0.1:{}", server.port());
    let store = RedisStore::connect(&url).await.unwrap();
    let mut raw = raw(&url).await;
    let () = query(&mut raw, "CONFIG SET requirepass HUSH-other").await;
    let () = query(&mut raw, "CLIENT KILL SKIPME yes TYPE normal").await;
    assert_fails(store.begin(&claim(1)).await, StoreErrorKind::Unavailable, "password");
    let () = query(&mut raw, &format!("CONFIG SET requirepass {PASSWORD}")).await;
    eventually("the store is let in again", async || {
        store.begin(&claim(1)).await.is_ok()
    })
    .await;
}

#[tokio::test]
async fn contract_6_3_while_the_server_is_frozen_requests_are_refused_without_asking_it() {
    let Some(server) = Redis::start() else { return };
    capture::install();
    let layer = IdempotencyLayer::builder(store(&server).await)
        .store_timeout(Duration::from_millis(500))
        .circuit_breaker(3, Duration::from_millis(200))
        .build()
        .unwrap();
    let runs = Count::default();
    let counter = runs.clone();
    let service = layer.layer(inner(move |_| ready(ok(format!("run {}", counter.up())))));
    assert_eq!(send(&service, post("/", "before", "b")).await.text(), "run 1");
    server.pause();
    capture::take();
    // However many there are: each probe is logged as a failure of the store, and the others are not.
    for n in 0..1000 {
        send(&service, post("/", &n.to_string(), "b"))
            .await
            .assert_problem(503, "store-unavailable");
    }
    let events = capture::take();
    let asked = events
        .iter()
        .filter(|event| event.message().contains("the request is refused"));
    let asked = asked.count();
    assert!((3..500).contains(&asked), "the store was asked {asked} times in 1000");
    let opened = events
        .iter()
        .filter(|event| event.message().starts_with("the store is failing"));
    assert_eq!(opened.count(), 1, "said once");
    assert_eq!(layer.background().len(), 0, "nothing piles up");
    server.resume();
    eventually("a probe has found the store", async || {
        send(&service, post("/", "after", "b")).await.status == 200
    })
    .await;
    assert_eq!(runs.get(), 2);
    assert!(send(&service, post("/", "before", "b")).await.is_replay());
}
