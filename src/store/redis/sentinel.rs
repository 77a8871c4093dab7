//! Finding the primary through Sentinel.

use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{Client, ConnectionAddr, ConnectionInfo, ErrorKind, RedisError, RedisResult, Value};

use super::dial;
use crate::error::ConfigError;

/// The time limit for a Sentinel's reply. A Sentinel that does not reply in time is skipped.
const SENTINEL_WITHIN: Duration = Duration::from_millis(500);

const INVALID: &str = "a URL is not valid; expected redis://[user:password@]host[:port][/database]";

/// The Sentinels that report which server is the primary, for
/// [`RedisStore::connect_sentinel`](super::RedisStore::connect_sentinel).
///
/// The store queries the Sentinels before it opens each connection, so it finds the new primary on
/// its own after a failover. A Sentinel that does not reply within 500 ms is skipped. The Sentinel
/// that replied last time is queried first.
///
/// ```no_run
/// use tower_idempotency::store::{RedisSentinel, RedisStore};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let sentinels = ["redis://10.0.0.1:26379", "redis://10.0.0.2:26379", "redis://10.0.0.3:26379"];
/// let sentinel = RedisSentinel::new(sentinels, "mymaster")?.primary("redis://user:password@primary/0")?;
/// let store = RedisStore::connect_sentinel(sentinel).await?;
/// # Ok(())
/// # }
/// ```
pub struct RedisSentinel {
    sentinels: Vec<Client>,
    service: String,
    /// The settings for connections to the primary. Sentinel provides the primary's address.
    primary: ConnectionInfo,
    /// The index of the Sentinel to query first.
    first: AtomicUsize,
}

impl RedisSentinel {
    /// Creates a list of Sentinels. `sentinels` are their URLs, with a user and a password if the
    /// Sentinels require them. `service` is the name of the service that the Sentinels monitor. By
    /// default, the store connects to the primary without a password and uses database 0.
    ///
    /// # Errors
    ///
    /// `sentinels` is empty, a URL is not valid, or the service name is empty.
    pub fn new<U: AsRef<str>>(sentinels: impl IntoIterator<Item = U>, service: &str) -> Result<Self, ConfigError> {
        let refused = |option, reason: &str| ConfigError::new(option, reason.to_owned());
        let sentinels = sentinels
            .into_iter()
            .map(|url| dial::address(url.as_ref()).and_then(Client::open))
            .collect::<RedisResult<Vec<_>>>()
            .map_err(|_| refused("sentinels", INVALID))?;
        if sentinels.is_empty() {
            return Err(refused("sentinels", "the list is empty; pass the URL of each Sentinel"));
        }
        if service.is_empty() {
            return Err(refused(
                "service",
                "the name is empty; use the name under which Sentinel watches the primary, such as `mymaster`",
            ));
        }
        let primary = dial::address("redis://primary").map_err(|_| refused("primary", INVALID))?;
        Ok(Self {
            sentinels,
            service: service.to_owned(),
            primary,
            first: AtomicUsize::new(0),
        })
    }

    /// Sets how to connect to the primary, as a URL. The store uses the URL's scheme (such as
    /// `rediss`), user, password, database and parameters. It ignores the host and port, because
    /// Sentinel provides the address.
    ///
    /// # Errors
    ///
    /// The URL is not valid, or names a Unix socket.
    pub fn primary(self, url: &str) -> Result<Self, ConfigError> {
        let refused = |reason: &str| ConfigError::new("primary", reason.to_owned());
        let primary = dial::address(url).map_err(|_| refused(INVALID))?;
        if matches!(primary.addr(), ConnectionAddr::Unix(_)) {
            return Err(refused(
                "the URL names a Unix socket, but Sentinel reports a host and a port; use a `redis://` or `rediss://` URL",
            ));
        }
        Ok(Self { primary, ..self })
    }

    /// Returns a connection to the current primary, after that server has confirmed its role.
    pub(super) async fn connect(&self) -> RedisResult<MultiplexedConnection> {
        let (host, port) = self.ask().await?;
        let addr = match self.primary.addr().clone() {
            ConnectionAddr::TcpTls {
                insecure, tls_params, ..
            } => ConnectionAddr::TcpTls {
                host,
                port,
                insecure,
                tls_params,
            },
            _ => ConnectionAddr::Tcp(host, port),
        };
        let client = Client::open(self.primary.clone().set_addr(addr))?;
        let mut connection = dial::once(&client).await?;
        // Sentinel may not have noticed yet that the server was demoted.
        let role = redis::cmd("ROLE");
        match tokio::time::timeout(SENTINEL_WITHIN, role.query_async(&mut connection)).await {
            Ok(Ok(Value::Array(parts))) if is_replica(&parts) => Err(unavailable("Sentinel named a replica")),
            // Some servers do not allow the `ROLE` command.
            Ok(_) => Ok(connection),
            Err(_) => Err(silent()),
        }
    }

    /// Returns the primary's address from the first Sentinel that reports it.
    async fn ask(&self) -> RedisResult<(String, u16)> {
        let first = self.first.load(Ordering::Relaxed);
        let mut failure = None;
        for turn in 0..self.sentinels.len() {
            let index = (first + turn) % self.sentinels.len();
            let answer = tokio::time::timeout(SENTINEL_WITHIN, self.ask_one(&self.sentinels[index])).await;
            match answer.unwrap_or_else(|_| Err(silent())) {
                Ok(Some(address)) => {
                    self.first.store(index, Ordering::Relaxed);
                    return Ok(address);
                }
                // The Sentinel replied, so either the service name is wrong, or this Sentinel does
                // not monitor that service.
                Ok(None) => failure = Some((ErrorKind::MasterNameNotFoundBySentinel, "not known").into()),
                Err(error) => failure = failure.or(Some(error)),
            }
        }
        Err(failure.unwrap_or_else(silent))
    }

    async fn ask_one(&self, sentinel: &Client) -> RedisResult<Option<(String, u16)>> {
        let mut connection = dial::once(sentinel).await?;
        redis::cmd("SENTINEL")
            .arg("get-master-addr-by-name")
            .arg(&self.service)
            .query_async(&mut connection)
            .await
    }
}

fn is_replica(role: &[Value]) -> bool {
    role.first()
        .is_some_and(|role| matches!(role, Value::BulkString(name) if name != b"master"))
}

fn silent() -> RedisError {
    std::io::Error::from(std::io::ErrorKind::TimedOut).into()
}

fn unavailable(what: &'static str) -> RedisError {
    (ErrorKind::Client, what).into()
}

/// Never shows an address, because it may contain a password.
impl fmt::Debug for RedisSentinel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisSentinel")
            .field("sentinels", &self.sentinels.len())
            .field("service", &self.service)
            .finish_non_exhaustive()
    }
}
