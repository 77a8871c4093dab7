//! The atomic mode on both databases: effect and record are one, or neither is there.

macro_rules! on_both {
    ($($name:ident),* $(,)?) => {
        mod sqlite {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                super::$name(super::Lite::new().await).await;
            })*
        }
        mod postgres {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                if let Some(base) = super::Big::new().await {
                    super::$name(base).await;
                }
            })*
        }
    };
}

mod after_commit;
mod base;
mod claims;
mod commits;
mod extractors;
mod lost_connections;
mod proofs;
mod roll_backs;
mod shop;
mod uploads;

use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::body::Body;
use http::{Request, Response, StatusCode};
use sqlx::postgres::{PgPool, PgPoolOptions};
use tower::util::BoxCloneSyncService;
use tower::{Layer, ServiceExt, service_fn};
use tower_idempotency::store::sql::{
    PostgresStore, SqliteStore, Transaction, TransactionError, TransactionErrorKind, Work,
};
use tower_idempotency::store::{DynStore, Inspect, Phase};
use tower_idempotency::{Fate, IdempotencyKey, IdempotencyLayer, IdempotencyLayerBuilder, Policy, Store, Verdict};

use crate::support::{
    Answer, Count, Gate, ScriptedBody, Step, counted, drain, eventually, poll_once, post, respond, send, spawn,
};

use base::{BUSY_TIMEOUT, Base, Big, Lite};
use shop::{assert_undone, shop, shop_of, shop_with};
