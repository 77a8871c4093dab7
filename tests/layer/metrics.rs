//! The `metrics` feature: what a recorder sees.

use std::collections::HashMap;

use axum::Router;
use axum::body::Body;
use axum::routing::post;
use http::Request;
use metrics_util::MetricKind;
use metrics_util::debugging::{DebugValue, DebuggingRecorder};
use tower::ServiceExt;
use tower_idempotency::{IdempotencyLayer, MemoryStore, Store};

/// Each metric as `name{label=value}`.
fn seen(recorder: &DebuggingRecorder) -> HashMap<(MetricKind, String), DebugValue> {
    let snapshot = recorder.snapshotter().snapshot().into_vec();
    snapshot
        .into_iter()
        .map(|(key, _, _, value)| {
            let labels: Vec<_> = key
                .key()
                .labels()
                .map(|label| format!("{}={}", label.key(), label.value()))
                .collect();
            (
                (key.kind(), format!("{}{{{}}}", key.key().name(), labels.join(","))),
                value,
            )
        })
        .collect()
}

/// What a recorder sees of that work.
fn recorded(work: impl Future<Output = ()>) -> HashMap<(MetricKind, String), DebugValue> {
    let recorder = DebuggingRecorder::new();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    metrics::with_local_recorder(&recorder, || runtime.block_on(work));
    seen(&recorder)
}

fn post_with(key: Option<&str>) -> Request<Body> {
    let mut request = Request::post("/");
    if let Some(key) = key {
        request = request.header("idempotency-key", key);
    }
    request.body(Body::from("{}")).expect("a request")
}

#[test]
fn contract_7_a_recorder_sees_outcomes_latencies_and_what_the_store_holds() {
    let seen = recorded(async {
        let app = Router::new()
            .route("/", post(|| async { "done" }))
            .layer(IdempotencyLayer::new(MemoryStore::new()));
        for key in [Some("a"), Some("a"), Some("b"), Some("\"bad"), None] {
            let _ = app.clone().oneshot(post_with(key)).await;
        }
    });
    let counter = |name: &str| seen.get(&(MetricKind::Counter, name.to_owned()));
    assert_eq!(
        counter("idempotency_requests_total{outcome=executed}"),
        Some(&DebugValue::Counter(2))
    );
    assert_eq!(
        counter("idempotency_requests_total{outcome=replayed}"),
        Some(&DebugValue::Counter(1))
    );
    assert_eq!(
        counter("idempotency_requests_total{outcome=invalid-key}"),
        Some(&DebugValue::Counter(1))
    );
    assert_eq!(
        counter("idempotency_requests_total{outcome=unguarded}"),
        Some(&DebugValue::Counter(1))
    );
    let gauge = |name: &str| match seen.get(&(MetricKind::Gauge, name.to_owned())) {
        Some(DebugValue::Gauge(value)) => value.into_inner(),
        other => panic!("{name}: {other:?}"),
    };
    assert!((gauge("idempotency_store_entries{store=memory}") - 2.0).abs() < f64::EPSILON);
    assert!(gauge("idempotency_store_bytes{store=memory}") > 0.0);
    let times = |operation: &str| match seen.get(&(
        MetricKind::Histogram,
        format!("idempotency_store_seconds{{operation={operation}}}"),
    )) {
        Some(DebugValue::Histogram(values)) => values.len(),
        other => panic!("{operation}: {other:?}"),
    };
    assert_eq!((times("begin"), times("complete")), (3, 2));
}

/// A hundred callers ask at once; the first is asked alone, and those who wait meanwhile together.
#[test]
fn a_recorder_sees_how_many_calls_a_sql_store_asks_together() {
    use sqlx::sqlite::{SqliteConnectOptions, SqlitePoolOptions};
    use tower_idempotency::store::sql::SqliteStore;

    use crate::support::claim::claim;
    use crate::support::directory::Directory;

    const CALLS: u64 = 100;
    let directory = Directory::new();
    let seen = recorded(async {
        let options = SqliteConnectOptions::new()
            .filename(directory.path("keys.db"))
            .create_if_missing(true);
        let store = SqliteStore::new(SqlitePoolOptions::new().connect_with(options).await.unwrap());
        store.migrate().await.unwrap();
        let claims: Vec<_> = (0..CALLS).map(claim).collect();
        let begun = claims.iter().map(|claim| store.begin(claim));
        for begun in futures_util::future::join_all(begun).await {
            begun.unwrap();
        }
    });
    let name = "idempotency_store_batch_size{lane=sqlite-write}".to_owned();
    let Some(DebugValue::Histogram(batches)) = seen.get(&(MetricKind::Histogram, name)) else {
        panic!("{:?}", seen.keys());
    };
    let sizes: Vec<f64> = batches.iter().map(|size| size.into_inner()).collect();
    assert!(
        (sizes.iter().sum::<f64>() - CALLS as f64).abs() < f64::EPSILON,
        "{sizes:?}"
    );
    assert!(sizes.iter().any(|size| *size > 1.0), "{sizes:?}");
}
