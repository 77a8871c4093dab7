//! The PostgreSQL store, on servers of the tests' own.

mod calls;
mod conformance;
mod lanes;
mod layout;
mod outages;
mod pooler;
mod sweeping;

use std::error::Error as _;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::Response;
use sqlx::postgres::PgPoolOptions;
use tower::Layer;
use tower_idempotency::store::sql::PostgresStore;
use tower_idempotency::store::{
    ClaimOutcome, Held, Inspect, OnLapse, Phase, Record, ScopeTag, StoreError, StoreErrorKind, Token,
};
use tower_idempotency::{IdempotencyLayer, Store};

use crate::support::claim::{Claim, HOUR, PRINT, claim, print, print_under_another_rule};
use crate::support::servers::postgres::{PASSWORD, Postgres};
use crate::support::servers::proxy::Proxy;
use crate::support::{eventually, inner, ok, post, send, spawn};

/// A new database on the shared server.
async fn database() -> Option<(&'static Postgres, String)> {
    tokio::task::spawn_blocking(|| {
        let server = Postgres::shared()?;
        Some((server, server.create_database()))
    })
    .await
    .unwrap()
}

async fn pool(url: &str, connections: u32) -> sqlx::PgPool {
    let options = PgPoolOptions::new()
        .max_connections(connections)
        .test_before_acquire(false);
    options.connect(url).await.unwrap()
}

async fn open(url: &str, connections: u32) -> PostgresStore {
    let store = PostgresStore::new(pool(url, connections).await);
    store.migrate().await.unwrap();
    store
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(work).await.unwrap()
}

async fn idle(store: &PostgresStore) {
    let pool = store.pool();
    eventually("all connections are idle", async || {
        pool.num_idle() == pool.size() as usize
    })
    .await;
}

fn record() -> Record {
    Record::outcome_unknown(PRINT)
}

/// An error, whole: each of its causes, as shown and as debugged. No credentials are in it.
#[track_caller]
fn told(error: &StoreError) -> String {
    let mut told = format!("{error} / {error:?}");
    let mut source = error.source();
    while let Some(cause) = source {
        told += &format!(" / {cause} / {cause:?}");
        source = cause.source();
    }
    assert!(!told.contains(PASSWORD), "{told}");
    assert!(!told.contains("wrong-pa55"), "{told}");
    assert!(!told.contains("postgres://"), "{told}");
    assert!(error.to_string().starts_with("postgres: "), "{told}");
    told
}

#[track_caller]
fn assert_told(error: &StoreError, kind: StoreErrorKind, parts: &[&str]) {
    let whole = told(error);
    assert_eq!(error.kind(), kind, "{whole}");
    for part in parts {
        assert!(error.to_string().contains(part), "{part:?} in {error}");
    }
}
