//! Connections to one server that come back when they broke.

use std::time::Duration;

use redis::aio::{ConnectionManager, ConnectionManagerConfig};
use redis::io::tcp::socket2::TcpKeepalive;
use redis::{Client, IntoConnectionInfo, RedisResult, Value};

use super::failure::{Op, failed};
use super::link::Link;
use crate::store::StoreError;

/// How long a command may take. The layer's `store_timeout` usually ends before.
const ANSWER_WITHIN: Duration = Duration::from_secs(3);
const CONNECT_WITHIN: Duration = Duration::from_secs(2);
/// Attempts to connect, about 50, 100, 200, 400 and 500 ms apart: a restart of the server, and
/// short enough for requests that wait for it.
const RETRIES: usize = 5;
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_millis(500);
/// A peer that vanished without a word is noticed after this much silence.
const KEEPALIVE: Duration = Duration::from_secs(10);

pub(super) fn client(url: &str) -> Result<Client, StoreError> {
    let open = || -> RedisResult<Client> {
        let info = url.into_connection_info()?;
        let keepalive = TcpKeepalive::new().with_time(KEEPALIVE).with_interval(KEEPALIVE / 4);
        let tcp = info.tcp_settings().clone().set_keepalive(keepalive);
        Client::open(info.set_tcp_settings(tcp))
    };
    open().map_err(|error| failed(Op::Connect, error))
}

/// A connection that is made when it is first used. `blocked` is how long its commands may block.
pub(super) fn lazy(client: Client, blocked: Duration) -> Result<ConnectionManager, StoreError> {
    let config = ConnectionManagerConfig::new()
        .set_response_timeout(Some(ANSWER_WITHIN + blocked))
        .set_connection_timeout(Some(CONNECT_WITHIN))
        .set_number_of_retries(RETRIES)
        .set_min_delay(FIRST_PAUSE)
        .set_max_delay(LONGEST_PAUSE);
    ConnectionManager::new_lazy_with_config(client, config).map_err(|error| failed(Op::Connect, error))
}

/// The connection, and more of its kind if the server refuses it.
pub(super) fn link(connection: ConnectionManager, client: &Client, blocked: Duration) -> Link<ConnectionManager> {
    let client = client.clone();
    Link::remade(connection, move || lazy(client.clone(), blocked).ok())
}

/// A connection on which the server has answered.
pub(super) async fn proven(client: Client) -> Result<ConnectionManager, StoreError> {
    let mut connection = lazy(client, Duration::ZERO)?;
    // A server that wants a password says so only now.
    let _: Value = redis::cmd("PING")
        .query_async(&mut connection)
        .await
        .map_err(|error| failed(Op::Connect, error))?;
    warn_of_eviction(&mut connection).await;
    Ok(connection)
}

/// A claim or a record that is evicted is an operation that runs twice. Whoever may not ask for
/// `INFO` is not told.
async fn warn_of_eviction(connection: &mut ConnectionManager) {
    let info: RedisResult<String> = redis::cmd("INFO").arg("memory").query_async(connection).await;
    let Ok(info) = info else { return };
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
