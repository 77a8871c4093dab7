//! Streamed request bodies over each store: what is known of the body is in the record, whatever keeps it.

use axum::body::Body;
use base64::Engine;
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use sha2::{Digest, Sha256};
use tower::Layer;
use tower_idempotency::store::sql::SqliteStore;
use tower_idempotency::store::{DynStore, Inspect};
use tower_idempotency::{IdempotencyLayer, MemoryStore};

use crate::support::directory::Directory;
use crate::support::{Count, Gate, ScriptedBody, Step, inner, ok, request, send, spawn};

/// An upload's whole story: in flight, done, another body, a broken one, and a digest that answers for the body.
async fn uploads_work_over<St: Inspect + Clone>(store: St) {
    let layer = IdempotencyLayer::builder(store.clone()).stream_request_bodies(1000);
    let layer = layer.build().unwrap();
    let runs = Count::default();
    let counts = runs.clone();
    let service = layer.layer(inner(move |request: Request<Body>| {
        let run = counts.up();
        async move {
            let body = request.into_body().collect().await;
            let length = body.map_or(0, |body| body.to_bytes().len());
            let response: Response<Full<Bytes>> = ok(format!("run {run} of {length}"));
            response
        }
    }));
    let upload = |path: &str, headers: &[(&str, &str)], body: Body| {
        let headers = [&[("idempotency-key", "k")], headers].concat();
        request("POST", path, &headers, body)
    };
    let broken = Body::new(ScriptedBody::new([Step::Data("one".into()), Step::Fail]));
    send(&service, upload("/", &[], broken))
        .await
        .assert_problem(400, "body-unreadable");
    assert_eq!(store.look_up(&layer.slot(None, "k").unwrap()).await.unwrap(), None);

    let digest = base64::engine::general_purpose::STANDARD.encode(Sha256::digest("one two"));
    let digest = format!("sha-256=:{digest}:");
    let declared = [("content-digest", digest.as_str())];
    let gate = Gate::default();
    let frames = [
        Step::Data("one".into()),
        Step::Stop(gate.clone()),
        Step::Data(" two".into()),
    ];
    let first = spawn(&service, upload("/", &declared, Body::new(ScriptedBody::new(frames))));
    gate.arrival().await;
    send(&service, upload("/", &[], "one two".into()))
        .await
        .assert_problem(409, "in-flight");
    send(&service, upload("/other", &[], "one two".into()))
        .await
        .assert_problem(422, "key-reused");
    gate.open();
    let first = first.await.unwrap();
    assert_eq!((first.text(), first.outcome()), ("run 2 of 7", "executed"));

    for _ in 0..2 {
        send(&service, upload("/", &[], "one two".into()))
            .await
            .assert_replay_of(&first);
    }
    send(&service, upload("/", &[], "other".into()))
        .await
        .assert_problem(422, "key-reused");
    let unread = Body::new(ScriptedBody::new([Step::Hang]));
    let expecting = [("content-digest", digest.as_str()), ("expect", "100-continue")];
    send(&service, upload("/", &expecting, unread))
        .await
        .assert_replay_of(&first);
    assert_eq!(runs.get(), 2);
}

#[tokio::test]
async fn uploads_work_over_memory_and_over_an_erased_store() {
    uploads_work_over(MemoryStore::new()).await;
    uploads_work_over(DynStore::new(MemoryStore::new())).await;
}

#[tokio::test]
async fn uploads_work_over_sqlite() {
    let directory = Directory::new();
    let store = SqliteStore::open(directory.path("keys.db")).await.unwrap();
    store.migrate().await.unwrap();
    uploads_work_over(store).await;
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn uploads_work_over_postgres() {
    use crate::support::servers::postgres::Postgres;
    use tower_idempotency::store::sql::PostgresStore;

    let url = tokio::task::spawn_blocking(|| Some(Postgres::shared()?.create_database()));
    let Some(url) = url.await.unwrap() else { return };
    let store = PostgresStore::new(sqlx::PgPool::connect(&url).await.unwrap());
    store.migrate().await.unwrap();
    uploads_work_over(store).await;
}

#[cfg(unix)]
#[tokio::test]
async fn uploads_work_over_redis() {
    use crate::support::servers::redis::Redis;
    use tower_idempotency::store::RedisStore;

    let Some(server) = Redis::start() else { return };
    uploads_work_over(RedisStore::connect(&server.url()).await.unwrap()).await;
}

#[tokio::test]
async fn uploads_work_over_sealed_and_tiered_stores() {
    use tower_idempotency::store::{KeyRing, Sealed, Tiered};

    let sealed = || std::sync::Arc::new(Sealed::new(MemoryStore::new(), KeyRing::new([7; 32])).unwrap());
    uploads_work_over(sealed()).await;
    uploads_work_over(Tiered::new(MemoryStore::new())).await;
    uploads_work_over(std::sync::Arc::new(Tiered::new(sealed()))).await;
}
