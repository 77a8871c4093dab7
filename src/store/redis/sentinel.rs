//! Which server is the primary, as Sentinel says.

use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{Client, ConnectionAddr, ConnectionInfo, ErrorKind, RedisError, RedisResult, Value};

use super::dial;
use crate::error::ConfigError;

/// A Sentinel that does not answer within this time is passed over.
const SENTINEL_WITHIN: Duration = Duration::from_millis(500);

const INVALID: &str = "a URL is not valid; expected redis://[user:password@]host[:port][/database]";

/// The Sentinels that know which server is the primary, for
/// [`RedisStore::connect_sentinel`](super::RedisStore::connect_sentinel).
///
/// They are asked for every connection that is made: after a failover the store finds the new
/// primary by itself. One that does not answer within 500 ms is passed over, and the one that
/// answered last is asked first.
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
    /// How the primary is greeted. Its address is what Sentinel says.
    primary: ConnectionInfo,
    /// The one to ask first.
    first: AtomicUsize,
}

impl RedisSentinel {
    /// The Sentinels' URLs, with user and password if the Sentinels ask for them, and the name of the
    /// service that they watch. By default the primary is greeted without a password, and its
    /// database 0 is used.
    ///
    /// # Errors
    ///
    /// There is no URL, one is not valid, or the name is empty.
    pub fn new<U: AsRef<str>>(sentinels: impl IntoIterator<Item = U>, service: &str) -> Result<Self, ConfigError> {
        let refused = |option, reason: &str| ConfigError::new(option, reason.to_owned());
        let sentinels = sentinels
            .into_iter()
            .map(|url| dial::address(url.as_ref()).and_then(Client::open))
            .collect::<RedisResult<Vec<_>>>()
            .map_err(|_| refused("sentinels", INVALID))?;
        if sentinels.is_empty() {
            return Err(refused("sentinels", "there is none; give the URL of each"));
        }
        if service.is_empty() {
            return Err(refused(
                "service",
                "it is empty; give the name under which Sentinel watches the primary, such as `mymaster`",
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

    /// How the primary is greeted: a URL of which user, password, database and parameters count, and
    /// whether it is `rediss`. Host and port do not count: Sentinel knows them.
    ///
    /// # Errors
    ///
    /// The URL is not valid, or names a socket of this host.
    pub fn primary(self, url: &str) -> Result<Self, ConfigError> {
        let refused = |reason: &str| ConfigError::new("primary", reason.to_owned());
        let primary = dial::address(url).map_err(|_| refused(INVALID))?;
        if matches!(primary.addr(), ConnectionAddr::Unix(_)) {
            return Err(refused(
                "it names a socket of this host; Sentinel names hosts and ports",
            ));
        }
        Ok(Self { primary, ..self })
    }

    /// A connection to the server that is the primary now, and that says so itself.
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
        // Sentinel may not know yet that it was demoted.
        let role = redis::cmd("ROLE");
        match tokio::time::timeout(SENTINEL_WITHIN, role.query_async(&mut connection)).await {
            Ok(Ok(Value::Array(parts))) if is_replica(&parts) => Err(unavailable("READONLY is what Sentinel names")),
            // Some do not allow the question.
            Ok(_) => Ok(connection),
            Err(_) => Err(silent()),
        }
    }

    /// The primary's address, from the first Sentinel that knows it.
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
                // It answered: the name is wrong, or this one was not told of it.
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

/// Never an address, which may have a password.
impl fmt::Debug for RedisSentinel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisSentinel")
            .field("sentinels", &self.sentinels.len())
            .field("service", &self.service)
            .finish_non_exhaustive()
    }
}
