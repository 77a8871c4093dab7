//! How often a large answer is copied on its way into each store and back.

use axum::body::Body;
use tower_idempotency::store::RedisStore;
use tower_idempotency::store::sql::{PostgresStore, SqliteStore};

use super::super::*;
use crate::support::directory::Directory;
use crate::support::servers::postgres::Postgres;
use crate::support::servers::redis::Redis;

const ANSWER: usize = 8 * MIB;

/// Asserts what a first request and its replay allocate, in multiples of the answer, once the store's
/// connections have the buffers that they keep.
async fn assert_copies<St: Store>(heap: &Heap, store: St, first: usize, replay: usize) {
    let layer = IdempotencyLayer::builder(store)
        .max_response_body(ANSWER)
        .build()
        .unwrap();
    let service = layer.layer(service_fn(|_: Request<Body>| async {
        Ok::<_, Infallible>(Response::new(Body::from(vec![b'x'; ANSWER])))
    }));
    for (key, outcome, most) in [
        ("warm", Outcome::Executed, None),
        ("warm", Outcome::Replayed, None),
        ("k", Outcome::Executed, Some(first)),
        ("k", Outcome::Replayed, Some(replay)),
    ] {
        let request = Request::post("/")
            .header("idempotency-key", key)
            .header("authorization", "me");
        let request = request.body(Body::empty()).unwrap();
        let before = heap.region.change().bytes_allocated;
        let response = service.clone().oneshot(request).await.unwrap();
        assert_eq!(response.extensions().get(), Some(&outcome));
        assert_eq!(response.into_body().collect().await.unwrap().to_bytes().len(), ANSWER);
        let allocated = heap.region.change().bytes_allocated - before;
        if let Some(most) = most {
            assert!(
                allocated >= ANSWER,
                "{outcome:?}: {allocated} bytes are less than the answer"
            );
            let copies = (allocated - MIB) / ANSWER + 1;
            assert!(
                copies <= most,
                "{outcome:?}: {copies} times the answer, instead of {most}"
            );
        }
    }
}

fn in_real_time(test: impl AsyncFnOnce(&Heap)) {
    run_alone(&mut Builder::new_current_thread(), test);
}

#[test]
fn sqlite_copies_a_large_answer_into_its_record_and_for_its_thread() {
    in_real_time(async |heap| {
        let directory = Directory::new();
        let store = SqliteStore::open(directory.path("answers.db")).await.unwrap();
        store.migrate().await.unwrap();
        assert_copies(heap, store, 3, 1).await;
    });
}

#[test]
fn postgres_copies_a_large_answer_into_its_record_and_twice_for_the_driver() {
    in_real_time(async |heap| {
        let Some(server) = Postgres::start() else { return };
        let store = PostgresStore::new(sqlx::PgPool::connect(&server.create_database()).await.unwrap());
        store.migrate().await.unwrap();
        assert_copies(heap, store, 4, 2).await;
    });
}

#[test]
fn redis_copies_a_large_answer_into_its_record_and_for_the_client() {
    in_real_time(async |heap| {
        let Some(server) = Redis::start() else { return };
        let store = RedisStore::connect(&server.url()).await.unwrap();
        assert_copies(heap, store, 5, 2).await;
    });
}
