//! Redis beside the bare commands, which share one `ConnectionManager`, as an application's do.

use redis::aio::ConnectionManager;
use tower_idempotency::store::RedisStore;

use super::{ANSWER, CLAIM, Case, Redis, both, cases, compare, fresh, throughput};

pub(super) async fn redis(server: &Redis) {
    let client = redis::Client::open(server.url()).expect("a URL");
    let connection = ConnectionManager::new(client).await.expect("a server");
    let store = RedisStore::connect(&server.url()).await.expect("a server");
    let () = redis::cmd("SET")
        .arg("bare")
        .arg(ANSWER)
        .query_async(&mut connection.clone())
        .await
        .expect("a write");
    compare("Redis", both(bare(&connection), cases(store.clone()).await)).await;
    throughput("Redis: calls, on one connection,", &[1, 8, 64], async |_| {
        both(bare(&connection), cases(store.clone()).await)
    })
    .await;
}

fn bare(connection: &ConnectionManager) -> Vec<Case> {
    let (writer, reader) = (connection.clone(), connection.clone());
    vec![
        Case::new("bare: SET NX and SET", move |_| {
            let mut connection = writer.clone();
            async move {
                let key = fresh().to_hex();
                let mut claim = redis::cmd("SET");
                claim.arg(&key).arg(CLAIM).arg("NX").arg("PX").arg(30_000);
                let () = claim.query_async(&mut connection).await.expect("a write");
                let mut record = redis::cmd("SET");
                record.arg(&key).arg(ANSWER).arg("PX").arg(3_600_000);
                let () = record.query_async(&mut connection).await.expect("a write");
            }
        }),
        Case::new("bare: GET", move |_| {
            let mut connection = reader.clone();
            async move {
                let _: Vec<u8> = redis::cmd("GET")
                    .arg("bare")
                    .query_async(&mut connection)
                    .await
                    .expect("a read");
            }
        }),
    ]
}
