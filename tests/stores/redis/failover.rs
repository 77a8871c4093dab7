//! The primary is another server, and the connection still leads to the old one.

use std::future::ready;

use super::*;

/// A primary and a replica behind one name, and a record that both have.
struct Behind {
    pair: Pair,
    name: Proxy,
    url: String,
}

impl Behind {
    async fn start() -> Option<Self> {
        let pair = Pair::start().await?;
        let name = Proxy::start(pair.primary.port()).await;
        let url = format!("redis://127.0.0.1:{}", name.port());
        let patient = store(&pair.primary).await;
        let patient = patient.wait_for_replicas(1, Duration::from_secs(30)).unwrap();
        let begin = claim(1);
        patient.begin(&begin).await.unwrap();
        let held = patient.complete(&slot(1), begin.token, &record(b"answer"), HOUR).await;
        assert_eq!(held.unwrap(), Held::Yes);
        Some(Self { pair, name, url })
    }

    /// The replica becomes the primary, and the name leads there.
    async fn promote(&self) {
        let mut replica = raw(&self.pair.replica.url()).await;
        let () = query(&mut replica, "REPLICAOF NO ONE").await;
        self.name.lead_to(self.pair.replica.port());
    }

    /// The old primary becomes a replica of the new one. Its connections live on.
    async fn demote(&self) {
        let mut primary = raw(&self.pair.primary.url()).await;
        let () = query(
            &mut primary,
            &format!("REPLICAOF 127.0.0.1 {}", self.pair.replica.port()),
        )
        .await;
    }
}

#[tokio::test]
async fn an_old_primary_does_not_say_what_is_lost() {
    let Some(behind) = Behind::start().await else { return };
    let store = RedisStore::connect(&behind.url).await.unwrap();
    // The connection for large records leads to the old primary.
    let large = record(&[b'x'; 64 * 1024]);
    let before = claim(2);
    assert_eq!(store.begin(&before).await.unwrap(), STARTED);
    let held = store.complete(&slot(2), before.token, &large, HOUR).await;
    assert_eq!(held.unwrap(), Held::Yes);
    behind.promote().await;
    // The old primary becomes a replica, and gets nothing of what is written from now on.
    let mut old = raw(&behind.pair.primary.url()).await;
    let () = query(&mut old, "REPLICAOF 127.0.0.1 1").await;
    let running = claim(3);
    assert_eq!(store.begin(&running).await.unwrap(), STARTED);
    let held = store.complete(&slot(3), running.token, &large, HOUR).await;
    assert_eq!(held.unwrap(), Held::Yes);
    assert_eq!(store.begin(&claim(3)).await.unwrap(), ClaimOutcome::Done(large));
}

#[tokio::test]
async fn an_old_primary_that_became_read_only_is_left_at_once() {
    let Some(behind) = Behind::start().await else { return };
    let store = RedisStore::connect(&behind.url).await.unwrap();
    let running = claim(2);
    assert_eq!(store.begin(&running).await.unwrap(), STARTED);
    let waiting = store.clone().wait_for_replicas(1, Duration::from_secs(30)).unwrap();
    assert_eq!(waiting.begin(&claim(3)).await.unwrap(), STARTED);
    behind.promote().await;
    behind.demote().await;
    // Each of them is the first of its store to notice.
    assert_eq!(
        store
            .complete(&slot(2), running.token, &record(b"two"), HOUR)
            .await
            .unwrap(),
        Held::Yes
    );
    assert_eq!(
        store.begin(&claim(1)).await.unwrap(),
        ClaimOutcome::Done(record(b"answer"))
    );
    assert_eq!(store.begin(&claim(4)).await.unwrap(), STARTED);
    eventually("the new primary has a replica", async || {
        waiting.begin(&claim(5)).await.is_ok()
    })
    .await;
}

#[tokio::test]
async fn a_primary_that_is_frozen_is_left_for_the_new_one() {
    let Some(behind) = Behind::start().await else { return };
    let store = RedisStore::connect(&behind.url).await.unwrap();
    let running = claim(2);
    store.begin(&running).await.unwrap();
    eventually("the replica has it", async || {
        raw_exists(&behind.pair.replica, &store.key(&slot(2))).await
    })
    .await;
    behind.pair.primary.pause();
    behind.promote().await;
    assert_eq!(
        store.begin(&claim(1)).await.unwrap(),
        ClaimOutcome::Done(record(b"answer"))
    );
    assert_eq!(store.renew(&slot(2), running.token, HOUR).await.unwrap(), Held::Yes);
    let held = store.complete(&slot(2), running.token, &record(b"two"), HOUR).await;
    assert_eq!(held.unwrap(), Held::Yes);
    behind.pair.primary.resume();
}

async fn raw_exists(server: &Redis, key: &str) -> bool {
    query(&mut raw(&server.url()).await, &format!("EXISTS {key}")).await
}

#[tokio::test]
async fn a_connection_that_swallows_everything_is_replaced() {
    let Some(server) = Redis::start() else { return };
    let (url, tally) = proxy(&server).await;
    let store = RedisStore::connect(&url).await.unwrap();
    let begin = claim(1);
    store.begin(&begin).await.unwrap();
    tally.proxy.mute_all();
    assert_eq!(store.begin(&begin).await.unwrap(), STARTED, "in one call");
    tally.proxy.mute_all();
    let held = store.complete(&slot(1), begin.token, &record(b"answer"), HOUR).await;
    assert_eq!(held.unwrap(), Held::Yes);
    assert_eq!(tally.proxy.counts().connections, 3);
}

/// Where the layer's patience is shorter than the store's, no call learns of the silence by itself.
#[tokio::test]
async fn calls_that_are_dropped_too_early_do_not_keep_a_silent_connection() {
    let Some(server) = Redis::start() else { return };
    let (url, tally) = proxy(&server).await;
    let layer = IdempotencyLayer::builder(RedisStore::connect(&url).await.unwrap())
        .store_timeout(Duration::from_millis(300))
        .build()
        .unwrap();
    let runs = Count::default();
    let counter = runs.clone();
    let service = layer.layer(inner(move |_| ready(ok(format!("run {}", counter.up())))));
    assert_eq!(send(&service, post("/", "before", "b")).await.text(), "run 1");
    tally.proxy.mute_all();
    eventually("a new connection is used", async || {
        send(&service, post("/", "after", "b")).await.status == 200
    })
    .await;
    assert!(send(&service, post("/", "before", "b")).await.is_replay());
    assert_eq!(runs.get(), 2);
}

#[tokio::test]
async fn a_server_that_closes_idle_connections_costs_no_request() {
    let Some(server) = Redis::start() else { return };
    let (url, tally) = proxy(&server).await;
    let store = RedisStore::connect(&url).await.unwrap();
    let begin = claim(1);
    store.begin(&begin).await.unwrap();
    let layer = IdempotencyLayer::new(store.clone());
    let service = layer.layer(inner(|_| ready(ok("answer"))));
    assert_eq!(send(&service, post("/", "one", "b")).await.status, 200);
    for _ in 0..3 {
        tally.proxy.cut_all().await;
        assert_eq!(send(&service, post("/", "two", "b")).await.status, 200);
    }
    tally.proxy.cut_all().await;
    let held = store.complete(&slot(1), begin.token, &record(b"late"), HOUR).await;
    assert_eq!(held.unwrap(), Held::Yes);
}
