//! Connections to one server, by its address or as Sentinel names it.

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

/// How long nothing may be heard of a connection that was asked something. A server that is only
/// slow answers others meanwhile.
const SILENCE: Duration = Duration::from_secs(1);
/// The same where large records are on their way, which are heard of when they are whole.
pub(super) const SILENCE_WITH_LARGE: Duration = Duration::from_secs(10);

/// Where connections lead. The name is looked up, or Sentinel asked, for each of them.
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

/// A connection that is made when it is first used, and replaced after that much silence.
pub(super) fn link(origin: &Origin, silence: Duration) -> Link<MultiplexedConnection> {
    Link::made(make(origin), silence)
}

/// A connection on which the server has answered.
pub(super) async fn proven(origin: &Origin) -> Result<Link<MultiplexedConnection>, StoreError> {
    let link = link(origin, SILENCE);
    // A server that wants a password says so only now.
    let _: Value = link
        .put(&redis::cmd("PING"))
        .await
        .map_err(|unanswered| failed(Op::Connect, unanswered.into()))?;
    warn_of_eviction(&link).await;
    Ok(link)
}

/// A claim or a record that is evicted is an operation that runs twice. Whoever may not ask for
/// `INFO` is not told.
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
            "the Redis server may evict claims and records, whose operations would then run twice; \
             set its maxmemory-policy to noeviction"
        );
    }
}
