//! The conformance suite, on one server, on a numbered database, and on a cluster.

use redis::cluster::ClusterClient;
use tower_idempotency::store::conformance;

use super::*;
use crate::support::conformance::{Handles, all_checks, conforms};

/// A call has to take less than a third of it, and other tests share the machine.
const UNIT: Duration = Duration::from_millis(600);

async fn handles(url: &str) -> Handles<RedisStore> {
    let mut handles = Vec::new();
    for _ in 0..4 {
        handles.push(RedisStore::connect(url).await.unwrap());
    }
    Handles::new(handles, UNIT)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_store_conforms() {
    let Some(server) = Redis::start() else { return };
    conforms(handles(&server.url()).await, all_checks(), []).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_store_conforms_on_resp3_and_a_numbered_database() {
    let Some(server) = Redis::start() else { return };
    let harness = handles(&format!("{}/3?protocol=resp3", server.url())).await;
    conforms(harness, conformance::checks(), []).await;
    let mut connection = raw(&server.url()).await;
    let keyspace: String = query(&mut connection, "INFO keyspace").await;
    assert!(keyspace.contains("db3:") && !keyspace.contains("db0:"), "{keyspace}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn histories_follow_the_machine() {
    let Some(server) = Redis::start() else { return };
    let random = Token::random().0;
    println!("the random seeds begin at {random:#x}");
    let seeds = (0..8).chain(random..random.saturating_add(8));
    conforms(handles(&server.url()).await, vec![], seeds).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_store_conforms_on_a_cluster() {
    let mut nodes = Vec::new();
    for _ in 0..3 {
        let Some(node) = Redis::start_with(&["--cluster-enabled", "yes"]) else {
            return;
        };
        nodes.push(node);
    }
    for (node, range) in nodes.iter().zip(["0 5000", "5001 11000", "11001 16383"]) {
        let mut raw = raw(&node.url()).await;
        let () = query(&mut raw, &format!("CLUSTER ADDSLOTSRANGE {range}")).await;
        for other in &nodes {
            let () = query(&mut raw, &format!("CLUSTER MEET 127.0.0.1 {}", other.port())).await;
        }
    }
    for node in &nodes {
        let mut raw = raw(&node.url()).await;
        eventually("the cluster is up", async || {
            let info: String = query(&mut raw, "CLUSTER INFO").await;
            info.contains("cluster_state:ok") && info.contains("cluster_known_nodes:3")
        })
        .await;
    }
    let client = ClusterClient::new(nodes.iter().map(Redis::url)).unwrap();
    let store = RedisStore::new(client.get_async_connection().await.unwrap());
    let harness = Handles::new([store.clone()], UNIT);
    conforms(harness, conformance::checks(), []).await;
    for node in &nodes {
        let keys: u32 = query(&mut raw(&node.url()).await, "DBSIZE").await;
        assert!(keys > 0, "every node was used");
    }
    store.begin(&claim(1)).await.unwrap();
    assert!(store.look_up(&slot(1)).await.unwrap().is_some());
    assert!(store.forget(&slot(1)).await.unwrap());
    assert_fails(store.count().await, StoreErrorKind::Unavailable, "each primary");
    let forgotten = store.forget_scope(&ScopeTag::default()).await;
    assert_fails(forgotten, StoreErrorKind::Unavailable, "each primary");
}
