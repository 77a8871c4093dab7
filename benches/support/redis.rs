//! Redis next to the bare commands, which share one `ConnectionManager` as an application's do.

use std::time::{Duration, Instant};

use bytes::Bytes;
use http::Response;
use redis::aio::ConnectionManager;
use tower_idempotency::Store;
use tower_idempotency::store::{ClaimOutcome, Record, RedisStore, Token};

use super::{ANSWER, CLAIM, Case, Redis, begin, both, cases, compare, fresh, median, throughput};

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
    println!("\n| Redis: a claim, with this many concurrent replays of 1 MiB | 0 | 1 | 4 |\n|---|---|---|---|");
    beside_large_records("large records over a separate connection", store).await;
    beside_large_records("all over one connection", RedisStore::new(connection)).await;
}

/// How long a claim takes, by how many large records are fetched at once.
async fn beside_large_records<S: Store + Clone>(name: &str, store: S) {
    const MEASURED: Duration = Duration::from_secs(2);
    let large = begin(fresh());
    store.begin(&large).await.expect("a claim");
    let record = Record::of_response(large.fingerprint, &Response::new(Bytes::from(vec![b'x'; 1 << 20])));
    store
        .complete(&large.slot, large.token, &record, large.ttl)
        .await
        .expect("a record");
    print!("| {name} |");
    for replays in [0, 1, 4] {
        let until = Instant::now() + MEASURED;
        let replaying: Vec<_> = (0..replays)
            .map(|_| {
                let store = store.clone();
                tokio::spawn(async move {
                    while Instant::now() < until {
                        let again = large.with_token(Token::random());
                        assert!(matches!(store.begin(&again).await, Ok(ClaimOutcome::Done(_))));
                    }
                })
            })
            .collect();
        let mut micros = Vec::new();
        while Instant::now() < until {
            let start = Instant::now();
            store.begin(&begin(fresh())).await.expect("a claim");
            micros.push(start.elapsed().as_secs_f64() * 1e6);
        }
        for task in replaying {
            task.await.expect("no replay fails");
        }
        let half = median(&mut micros);
        let most = micros[micros.len() * 99 / 100];
        print!(" {half:.0} µs, p99 {most:.0} µs |");
    }
    println!();
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
