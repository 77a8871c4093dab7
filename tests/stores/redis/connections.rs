//! Other connections than one to one server.

use super::*;

#[tokio::test]
async fn any_connection_will_do() {
    let Some(server) = Redis::start() else { return };
    let store = RedisStore::new(raw(&server.url()).await).prefix("mine:").unwrap();
    assert_eq!(store.begin(&claim(1)).await.unwrap(), STARTED);
    assert_eq!(store.count().await.unwrap(), Census::new(1, 0, 0));
}

#[tokio::test]
async fn a_node_of_a_cluster() {
    let Some(server) = Redis::start_with(&["--cluster-enabled", "yes"]) else {
        return;
    };
    let mut raw = raw(&server.url()).await;
    let () = query(&mut raw, "CLUSTER ADDSLOTSRANGE 0 16383").await;
    eventually("the cluster is up", async || {
        let info: String = query(&mut raw, "CLUSTER INFO").await;
        info.contains("cluster_state:ok")
    })
    .await;
    let store = store(&server).await;
    for n in 0..20 {
        let begin = claim(n);
        assert_eq!(store.begin(&begin).await.unwrap(), STARTED);
        assert_eq!(store.renew(&slot(n), begin.token, HOUR).await.unwrap(), Held::Yes);
        assert!(store.look_up(&slot(n)).await.unwrap().is_some());
        assert_eq!(
            store.complete(&slot(n), begin.token, &record(b""), HOUR).await.unwrap(),
            Held::Yes
        );
        assert!(store.forget(&slot(n)).await.unwrap());
    }
    assert_fails(store.count().await, StoreErrorKind::Unavailable, "each primary");
    let forgotten = store.forget_scope(&ScopeTag::default()).await;
    assert_fails(forgotten, StoreErrorKind::Unavailable, "each primary");
}
