//! Servers and connections that go away and come back.

use super::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_was_restarted_is_found_again_at_once() {
    let Some(server) = blocking(Postgres::start).await else {
        return;
    };
    let server = Arc::new(server);
    let url = server.url("postgres");
    let store = open(&url, 6).await;
    // Six connections, all idle.
    let held = futures_of(6, || store.pool().acquire()).await;
    drop(held);
    idle(&store).await;
    assert_eq!(store.pool().size(), 6);
    store.begin(&claim(1).token(1)).await.unwrap();
    idle(&store).await;
    let restarting = Arc::clone(&server);
    blocking(move || restarting.restart()).await;
    // All six are dead, and the first claim gets through.
    assert_eq!(store.begin(&claim(2).token(1)).await.unwrap(), ClaimOutcome::started(1));
    assert!(matches!(
        store.begin(&claim(1).token(2)).await.unwrap(),
        ClaimOutcome::InFlight { .. }
    ));

    let layer = IdempotencyLayer::builder(store.clone())
        .store_timeout(Duration::from_secs(5))
        .build()
        .unwrap();
    let service = layer.layer(inner(|_| async { ok("ran") }));
    assert_eq!(send(&service, post("/", "before", "{}")).await.text(), "ran");
    let killing = Arc::clone(&server);
    blocking(move || killing.kill()).await;
    send(&service, post("/", "k", "{}"))
        .await
        .assert_problem(503, "store-unavailable");
    let _server = blocking(move || {
        server.restart();
        server
    })
    .await;
    eventually("it is back", async || {
        send(&service, post("/", "before", "{}")).await.is_replay()
    })
    .await;
}

async fn futures_of<T, E: std::fmt::Debug>(n: usize, make: impl Fn() -> T) -> Vec<T::Output>
where
    T: std::future::Future<Output = Result<sqlx::pool::PoolConnection<sqlx::Postgres>, E>>,
{
    let mut held = Vec::new();
    for _ in 0..n {
        held.push(make().await);
    }
    held
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_does_not_answer_costs_no_connection() {
    const STORE_TIMEOUT: Duration = Duration::from_secs(3);
    let Some(server) = blocking(Postgres::start).await else {
        return;
    };
    let server = Arc::new(server);
    let store = open(&server.url("postgres"), 2).await;
    let layer = IdempotencyLayer::builder(store.clone())
        .store_timeout(STORE_TIMEOUT)
        .build()
        .unwrap();
    let service = layer.layer(inner(|_| async { ok("ran") }));
    assert_eq!(send(&service, post("/", "before", "{}")).await.text(), "ran");
    let pausing = Arc::clone(&server);
    blocking(move || pausing.pause()).await;
    for round in 0..3 {
        let started = Instant::now();
        let asked: Vec<_> = (0..4)
            .map(|i| spawn(&service, post("/", &format!("k{round}{i}"), "{}")))
            .collect();
        for asked in asked {
            asked.await.unwrap().assert_problem(503, "store-unavailable");
        }
        // Four at once over two connections, and none of them waits for another's timeout.
        assert!(started.elapsed() < 2 * STORE_TIMEOUT, "{:?}", started.elapsed());
    }
    // What looks into the store is given up by its caller.
    for _ in 0..2 {
        let slot = layer.slot(None, "before").unwrap();
        let _ = tokio::time::timeout(Duration::from_millis(200), store.look_up(&slot)).await;
        let _ = tokio::time::timeout(Duration::from_millis(200), store.count()).await;
    }
    let _server = blocking(move || {
        server.resume();
        server
    })
    .await;
    eventually("it is back", async || {
        send(&service, post("/", "before", "{}")).await.is_replay()
    })
    .await;
    // Keys of claims that may have been heard are free again.
    for round in 0..3 {
        for i in 0..4 {
            let key = format!("k{round}{i}");
            eventually("the key is free", async || {
                send(&service, post("/", &key, "{}")).await.text() == "ran"
            })
            .await;
        }
    }
    eventually("no connection is kept", async || {
        store.pool().num_idle() == store.pool().size() as usize
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_that_nobody_answers_on_leave_the_pool() {
    let Some((server, url)) = database().await else { return };
    let proxy = Proxy::start(server.port()).await;
    let store = open(&server.url_through(proxy.port(), url.rsplit_once('/').unwrap().1), 3).await;
    let held = futures_of(3, || store.pool().acquire()).await;
    drop(held);
    idle(&store).await;
    assert_eq!(store.pool().size(), 3);
    proxy.black_hole(true);
    let soon = Duration::from_millis(200);
    let (a, b, c) = tokio::join!(
        tokio::time::timeout(soon, store.count()),
        tokio::time::timeout(soon, store.sweep(2)),
        tokio::time::timeout(soon, store.sweep(1)),
    );
    assert!(a.is_err() && b.is_err() && c.is_err());
    // The network is never healed.
    eventually("their places are free", async || store.pool().size() == 0).await;
}

/// A lease of a second and a half lets a claim take half a second. Making a connection may take longer.
#[tokio::test]
async fn a_connection_is_made_although_no_caller_waits_for_it() {
    let Some((server, url)) = database().await else { return };
    let proxy = Proxy::start(server.port()).await;
    let name = url.rsplit('/').next().unwrap();
    let store = open(&server.url_through(proxy.port(), name), 2).await;
    let store = store.connections(1).unwrap();
    // A round trip takes 100 ms: making a connection some 500.
    proxy.delay(Duration::from_millis(50));
    proxy.cut_all().await;
    let before = proxy.counts().connections;
    eventually("a connection is begun", async || {
        let claimed = tokio::time::timeout(Duration::from_millis(350), store.begin(&claim(1).token(1))).await;
        claimed.expect_err("it takes longer");
        proxy.counts().connections > before
    })
    .await;
    let begun = proxy.counts().connections;
    let claimed = store.begin(&claim(1).token(1)).await.unwrap();
    assert!(
        matches!(claimed, ClaimOutcome::Started { attempt: 1, .. }),
        "{claimed:?}"
    );
    assert_eq!(
        proxy.counts().connections,
        begun,
        "on the connection that nobody waited for"
    );
}

/// A connection falls silent in the middle of being made: in its greeting, or as the store asks first on it.
/// Its place is given to another one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_that_falls_silent_as_it_is_made_does_not_keep_its_place() {
    let Some((server, url)) = database().await else { return };
    open(&url, 1).await;
    let name = url.rsplit_once('/').unwrap().1;
    let made: Vec<_> = (1..=5)
        .map(|request| {
            let through = |port| server.url_through(port, name);
            async move {
                let proxy = Proxy::start(server.port()).await;
                let options = PgPoolOptions::new();
                let pool = options.connect_lazy(&through(proxy.port())).unwrap();
                let store = PostgresStore::new(pool).connections(1).unwrap();
                proxy.black_hole_after_requests(request);
                let asking = tokio::spawn(async move { store.begin(&claim(request).token(1)).await });
                eventually("it is silent", async || proxy.round_trips() >= request).await;
                proxy.mute_all();
                proxy.heal().await;
                let begun = tokio::time::timeout(Duration::from_secs(100), asking).await;
                let begun = begun.unwrap_or_else(|_| panic!("silent after request {request}"));
                assert_eq!(begun.unwrap().unwrap(), ClaimOutcome::started(1));
            }
        })
        .collect();
    futures_util::future::join_all(made).await;
}
