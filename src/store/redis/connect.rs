//! Connections to one server, found by its address or through Sentinel.

use std::sync::Arc;
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{Client, Value};

use super::connecting::Make;
use super::dial::{address, once};
use super::failure::{Op, failed};
use super::link::Link;
use super::sentinel::RedisSentinel;
use crate::store::StoreError;

/// How long a connection may be silent after a request. A server that is merely slow still replies
/// to other requests within this time.
const SILENCE: Duration = Duration::from_secs(1);
/// The same limit for connections that carry large records. Nothing arrives on such a connection
/// until a record is complete.
pub(super) const SILENCE_WITH_LARGE: Duration = Duration::from_secs(10);

/// The target of new connections. For each connection, the store looks up the host name or queries
/// Sentinel.
#[derive(Clone)]
pub(super) enum Origin {
    Client(Client),
    Sentinel(Arc<RedisSentinel>),
}

pub(super) fn client(url: &str) -> Result<Client, StoreError> {
    address(url)
        .and_then(Client::open)
        .map_err(|error| failed(Op::Connect, error))
}

fn make(origin: &Origin) -> Make<MultiplexedConnection> {
    match origin.clone() {
        Origin::Client(client) => Arc::new(move || {
            let client = client.clone();
            Box::pin(async move { once(&client).await })
        }),
        Origin::Sentinel(sentinel) => Arc::new(move || {
            let sentinel = Arc::clone(&sentinel);
            Box::pin(async move { sentinel.connect().await })
        }),
    }
}

/// Returns a connection that is opened when it is first used, and replaced after the given period
/// of silence.
pub(super) fn link(origin: &Origin, silence: Duration) -> Link<MultiplexedConnection> {
    Link::made(make(origin), silence)
}

/// Returns a connection on which the server has already replied.
pub(super) async fn proven(origin: &Origin) -> Result<Link<MultiplexedConnection>, StoreError> {
    let link = link(origin, SILENCE);
    // A server that requires a password reports this requirement only when it receives the first
    // request.
    let _: Value = link
        .put(&redis::cmd("PING"))
        .await
        .map_err(|unanswered| failed(Op::Connect, unanswered.into()))?;
    warn_of_eviction(&link).await;
    Ok(link)
}

/// Logs a warning if the server may evict keys: if a claim or a record is evicted, its operation
/// can run twice. Without permission for `INFO`, the check is skipped.
async fn warn_of_eviction(link: &Link<MultiplexedConnection>) {
    let mut command = redis::cmd("INFO");
    command.arg("memory");
    let Ok(info) = link.put(&command).await else { return };
    let Ok(info) = redis::from_redis_value::<String>(info) else {
        return;
    };
    let setting = |name: &str| {
        info.lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
            .map(str::trim)
    };
    if let (Some(limit), Some(policy)) = (setting("maxmemory"), setting("maxmemory_policy"))
        && limit != "0"
        && policy != "noeviction"
    {
        tracing::warn!(
            target: "tower_idempotency",
            policy,
            "the Redis server may evict claims and records, and their operations would then run twice; \
             set its maxmemory-policy to noeviction"
        );
    }
}
