//! The Redis store on real servers.

mod conformance;
mod connections;
mod damage;
mod dialects;
mod failover;
mod full;
mod inspection;
mod large;
mod outages;
mod refusals;
mod replicas;
mod round_trips;
mod rules;
mod sentinel;

use std::cell::Cell;
use std::error::Error as _;
use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use http::{Request, Response, StatusCode};
use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, Client, Cmd, FromRedisValue, cmd};
use tower::Layer;
use tower_idempotency::IdempotencyLayer;
use tower_idempotency::store::{
    Census, ClaimOutcome, ClaimRequest, Entry, Held, Inspect, OnLapse, Phase, Record, RedisStore, ScopeTag, Slot,
    Store, StoreError, StoreErrorKind, Token,
};

use crate::support::claim::{Claim, HOUR, PRINT, claim, print, slot};
use crate::support::servers::process::free_port;
use crate::support::servers::proxy::{Counts, Proxy};
use crate::support::servers::redis::Redis;
use crate::support::{Count, capture, eventually, inner, ok, post, send};

const PASSWORD: &str = "HUSH-password";

fn record(body: &'static [u8]) -> Record {
    Record::of_response(PRINT, &Response::new(Bytes::from_static(body)))
}

const STARTED: ClaimOutcome = ClaimOutcome::started(1);

async fn store(server: &Redis) -> RedisStore {
    RedisStore::connect(&server.url()).await.unwrap()
}

/// A primary and a replica of it.
struct Pair {
    primary: Redis,
    replica: Redis,
}

impl Pair {
    async fn start() -> Option<Self> {
        let primary = Redis::start_with(&["--repl-diskless-sync-delay", "0"])?;
        let port = primary.port().to_string();
        let replica = Redis::start_with(&["--replicaof", "127.0.0.1", &port])?;
        let mut raw = raw(&primary.url()).await;
        eventually("the replica is online", async || {
            let info: String = query(&mut raw, "INFO replication").await;
            info.contains("state=online")
        })
        .await;
        Some(Self { primary, replica })
    }
}

/// A connection of the test's own.
async fn raw(url: &str) -> MultiplexedConnection {
    let config = AsyncConnectionConfig::new().set_response_timeout(None);
    let client = Client::open(url).unwrap();
    client
        .get_multiplexed_async_connection_with_config(&config)
        .await
        .unwrap()
}

async fn query<T: FromRedisValue>(connection: &mut MultiplexedConnection, command: &str) -> T {
    command_of(command).query_async(connection).await.unwrap()
}

fn command_of(text: &str) -> Cmd {
    let mut words = text.split(' ');
    let mut command = cmd(words.next().unwrap());
    for word in words {
        command.arg(word);
    }
    command
}

/// The error with all its sources, in both spellings.
fn chain(error: &StoreError) -> String {
    let mut text = format!("{error:?} {error}");
    let mut source = error.source();
    while let Some(error) = source {
        text += &format!(" | {error:?} {error}");
        source = error.source();
    }
    text
}

#[track_caller]
fn assert_fails<T: std::fmt::Debug>(result: Result<T, StoreError>, kind: StoreErrorKind, words: &str) {
    let error = result.unwrap_err();
    assert_eq!(error.kind(), kind, "{}", chain(&error));
    assert!(error.to_string().starts_with("redis: "), "{error}");
    assert!(error.to_string().contains(words), "{error} does not say {words:?}");
    assert!(!chain(&error).contains("HUSH"), "{}", chain(&error));
}

/// What went through a proxy since it was asked last.
struct Tally {
    proxy: Proxy,
    before: Cell<Counts>,
}

impl Tally {
    /// Round trips, and bytes back.
    fn take(&self) -> (u64, u64) {
        let now = self.proxy.counts();
        let before = self.before.replace(now);
        (now.requests - before.requests, now.bytes_down - before.bytes_down)
    }
}

/// A proxy before the server: its URL, and what goes through it.
async fn proxy(server: &Redis) -> (String, Tally) {
    let proxy = Proxy::start(server.port()).await;
    let url = format!("redis://127.0.0.1:{}", proxy.port());
    let before = Cell::default();
    (url, Tally { proxy, before })
}
