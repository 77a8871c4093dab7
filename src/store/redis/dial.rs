//! Opening a connection to one server.

use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::io::tcp::socket2::TcpKeepalive;
use redis::{AsyncConnectionConfig, Client, ConnectionInfo, IntoConnectionInfo, RedisResult};

const CONNECT_WITHIN: Duration = Duration::from_secs(2);
/// The period of silence after which the store notices that a peer vanished without closing the
/// connection.
const KEEPALIVE: Duration = Duration::from_secs(10);
/// The number of commands that can wait to be written. It is large so that many concurrent callers
/// do not wait for each other.
const QUEUE: usize = 1024;

/// Returns an address whose connections use keep-alive probes.
pub(super) fn address(url: impl IntoConnectionInfo) -> RedisResult<ConnectionInfo> {
    let info = url.into_connection_info()?;
    let keepalive = TcpKeepalive::new().with_time(KEEPALIVE).with_interval(KEEPALIVE / 4);
    let tcp = info.tcp_settings().clone().set_keepalive(keepalive);
    Ok(info.set_tcp_settings(tcp))
}

/// Makes one attempt to connect to a server.
pub(super) async fn once(client: &Client) -> RedisResult<MultiplexedConnection> {
    let config = AsyncConnectionConfig::new()
        .set_connection_timeout(Some(CONNECT_WITHIN))
        .set_response_timeout(None)
        .set_pipeline_buffer_size(QUEUE);
    client.get_multiplexed_async_connection_with_config(&config).await
}
