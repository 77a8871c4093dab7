//! Building a store: its connections, its key prefix, and how it waits for replicas.

use std::sync::Arc;
use std::time::Duration;

use redis::Client;
use redis::aio::ConnectionLike;

use super::connect::{self, Origin};
use super::link::Link;
use super::replicas::{Replicas, Wait};
use super::{RedisSentinel, RedisStore};
use crate::error::ConfigError;
use crate::store::StoreError;

const DEFAULT_PREFIX: &str = "idempotency:";
const LONGEST_PREFIX: usize = 64;
/// The maximum time that a request can wait for replicas.
const LONGEST_WAIT: Duration = Duration::from_secs(60);

impl RedisStore {
    /// Connects to `redis://[user:password@]host[:port][/database]` or `redis+unix://…`. With a TLS
    /// feature of the `redis` crate, this function also accepts `rediss://…`.
    ///
    /// Each attempt to connect can take up to 2 s. The store makes up to 6 attempts, with pauses of
    /// 25 to 500 ms, but makes no further attempt after about 3 s. It does so both in this function
    /// and whenever it replaces the connection. Requests wait for the connection for as long as the
    /// layer's `store_timeout` allows.
    ///
    /// # Errors
    ///
    /// The URL is not valid, no server responds at its address, or the server rejects the
    /// connection. No message contains the URL.
    pub async fn connect(url: &str) -> Result<Self, StoreError> {
        Self::with_client(connect::client(url)?).await
    }

    /// Like [`connect`](Self::connect), but takes a client, which can have settings that a URL
    /// cannot express, such as certificates.
    ///
    /// # Errors
    ///
    /// No server responds at the address, or the server rejects the connection.
    pub async fn with_client(client: Client) -> Result<Self, StoreError> {
        Self::with_origin(Origin::Client(client)).await
    }

    /// Like [`connect`](Self::connect), but connects to the primary that Sentinel reports. The
    /// store follows a failover: it queries Sentinel before it opens each connection, and replaces
    /// any connection that breaks, is silent for too long, or leads to the wrong server.
    ///
    /// # Errors
    ///
    /// No Sentinel responds, no Sentinel recognizes the service, or the server rejects the
    /// connection.
    pub async fn connect_sentinel(sentinel: RedisSentinel) -> Result<Self, StoreError> {
        Self::with_origin(Origin::Sentinel(Arc::new(sentinel))).await
    }

    async fn with_origin(origin: Origin) -> Result<Self, StoreError> {
        Ok(Self {
            link: Arc::new(connect::proven(&origin).await?),
            large: Arc::new(connect::link(&origin, connect::SILENCE_WITH_LARGE)),
            prefix: DEFAULT_PREFIX.into(),
            origin: Some(origin),
            replicas: None,
        })
    }

    /// Sets how many replicas (`count`) must have a claim in memory before the handler runs. The
    /// store waits in the same way after it stores a record. Each wait takes up to `within`. By
    /// default, the store does not wait for replicas.
    ///
    /// If too few replicas have the claim in time, the store undoes the claim, the handler does not
    /// run, and the request gets `503`. If too few replicas have the record in time, the store logs
    /// a warning. The operation has completed by then, so the response is still sent. The store
    /// does not wait after renewals and releases. [Failover](Self#failover) describes the losses
    /// that this option does not prevent.
    ///
    /// This option costs no extra round trip, but `WAIT` blocks its connection on the server. The
    /// store therefore opens eight more connections, which claims and records use in turn. While
    /// replicas are unavailable, each claim, including a replay's claim, can take as long as
    /// `within`. Claims that are queued behind it on the same connection wait even longer. Keep
    /// `within` well below the layer's `store_timeout`, and below a third of the layer's `lease`.
    ///
    /// ```no_run
    /// use std::time::Duration;
    /// use tower_idempotency::store::RedisStore;
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let store = RedisStore::connect("redis://127.0.0.1/")
    ///     .await?
    ///     .wait_for_replicas(1, Duration::from_millis(500))?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// `count` is 0, `within` is not between 1 ms and 60 s, or the store was created with
    /// [`new`](Self::new) and therefore cannot open connections.
    pub fn wait_for_replicas(self, count: u32, within: Duration) -> Result<Self, ConfigError> {
        let refused = |reason: String| Err(ConfigError::new("wait_for_replicas", reason));
        let Some(origin) = &self.origin else {
            return refused(
                "a store created with `new` cannot open connections; use `connect` or `with_client` instead".into(),
            );
        };
        if count == 0 {
            return refused("the count is 0, which is already the default; set 1 or more".into());
        }
        if within < Duration::from_millis(1) || within > LONGEST_WAIT {
            return refused(format!("{within:?} is not between 1 ms and {LONGEST_WAIT:?}"));
        }
        let replicas = Replicas::new(origin, Wait { count, within });
        Ok(Self {
            replicas: Some(Arc::new(replicas)),
            ..self
        })
    }
}

impl<C> RedisStore<C>
where
    C: ConnectionLike + Clone + Send + Sync + 'static,
{
    /// Creates a store that uses a connection that you opened. The connection must be cheap to
    /// clone, and all clones must share one underlying connection, like the clones of
    /// `ConnectionManager`, `MultiplexedConnection` and `ClusterConnection`.
    ///
    /// Make sure that the connection has a response timeout and reconnects if it breaks. A
    /// `MultiplexedConnection` does not reconnect, and none of these types disconnects from a
    /// server that has become a read-only replica. A store from [`connect`](Self::connect)
    /// reconnects, and also disconnects from such a server.
    #[must_use]
    pub fn new(connection: C) -> Self {
        let link = Arc::new(Link::given(connection));
        Self {
            large: Arc::clone(&link),
            link,
            prefix: DEFAULT_PREFIX.into(),
            origin: None,
            replicas: None,
        }
    }

    /// Sets the connection for records above 16 KiB, so that no small request waits behind a large
    /// record. By default, a store that opens its own connections opens a separate connection for
    /// large records. A store from [`new`](Self::new) sends everything over its only connection.
    #[must_use]
    pub fn large_records_over(self, connection: C) -> Self {
        Self {
            large: Arc::new(Link::given(connection)),
            ..self
        }
    }

    /// Sets the prefix of the store's keys. Default: `idempotency:`. Stores with different prefixes
    /// do not see each other's keys.
    ///
    /// A hash tag, `{…}`, puts all keys on one cluster node. No operation requires a hash tag.
    ///
    /// # Errors
    ///
    /// The prefix is empty, is longer than 64 bytes, or contains a control character or a space.
    pub fn prefix(self, prefix: &str) -> Result<Self, ConfigError> {
        let refused = |reason: String| Err(ConfigError::new("prefix", reason));
        if prefix.is_empty() {
            return refused(
                "the prefix is empty; set one such as `payments:`, so that the store's keys are separate from others"
                    .into(),
            );
        }
        if prefix.len() > LONGEST_PREFIX {
            return refused(format!(
                "the prefix has {} bytes; use at most {LONGEST_PREFIX}",
                prefix.len()
            ));
        }
        if prefix.chars().any(|c| c.is_control() || c.is_whitespace()) {
            return refused(format!("{prefix:?} contains a control character or a space; remove it"));
        }
        Ok(Self {
            prefix: prefix.into(),
            ..self
        })
    }
}
