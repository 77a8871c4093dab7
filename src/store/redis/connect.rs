//! Connections to one server, by its address or as Sentinel names it.

use std::sync::Arc;
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::io::tcp::TcpSettings;
use redis::io::tcp::socket2::TcpKeepalive;
use redis::{AsyncConnectionConfig, Client, ConnectionInfo, IntoConnectionInfo, RedisResult, Value};

use super::connecting::Make;
use super::failure::{Op, failed};
use super::link::Link;
use super::sentinel::RedisSentinel;
use crate::store::StoreError;

/// How long nothing may be heard of a connection that was asked something. A server that is only
/// slow answers others meanwhile.
const SILENCE: Duration = Duration::from_secs(1);
/// The same where large records are on their way, which are heard of when they are whole.
pub(super) const SILENCE_WITH_LARGE: Duration = Duration::from_secs(10);
const CONNECT_WITHIN: Duration = Duration::from_secs(2);
/// A peer that vanished without a word is noticed after this much silence.
const KEEPALIVE: Duration = Duration::from_secs(10);
/// Commands that may wait to be written, so that many callers at once do not wait for each other.
const QUEUE: usize = 1024;

/// Where connections lead. The name is looked up, or Sentinel asked, for each of them.
#[derive(Clone)]
pub(super) enum Origin {
    Client(Client),
    Sentinel(Arc<RedisSentinel>),
}

/// An address with keep-alive probes.
pub(super) fn address(url: impl IntoConnectionInfo) -> RedisResult<ConnectionInfo> {
    let info = url.into_connection_info()?;
    let tcp = with_keepalive(info.tcp_settings().clone());
    Ok(info.set_tcp_settings(tcp))
}

fn with_keepalive(tcp: TcpSettings) -> TcpSettings {
    let keepalive = TcpKeepalive::new().with_time(KEEPALIVE).with_interval(KEEPALIVE / 4);
    tcp.set_keepalive(keepalive)
}

pub(super) fn client(url: &str) -> Result<Client, StoreError> {
    address(url)
        .and_then(Client::open)
        .map_err(|error| failed(Op::Connect, error))
}

/// Connects to a server, once.
pub(super) async fn once(client: &Client) -> RedisResult<MultiplexedConnection> {
    let config = AsyncConnectionConfig::new()
        .set_connection_timeout(Some(CONNECT_WITHIN))
        .set_response_timeout(None)
        .set_pipeline_buffer_size(QUEUE);
    client.get_multiplexed_async_connection_with_config(&config).await
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
