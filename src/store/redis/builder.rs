//! How a store is made: its connections, its prefix, and which replicas it waits for.

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
/// As long as anyone should keep a request waiting for replicas.
const LONGEST_WAIT: Duration = Duration::from_secs(60);

impl RedisStore {
    /// Connects to `redis://[user:password@]host[:port][/database]`, or `redis+unix://…`, and
    /// `rediss://…` with a TLS feature of the `redis` crate.
    ///
    /// Connecting may take 2 s, and is tried again for about 4 s, with pauses of 25 to 500 ms, now and
    /// whenever the connection is replaced. Requests wait for that as long as the layer's
    /// `store_timeout` lets them.
    ///
    /// # Errors
    ///
    /// The URL is not valid, nothing answers there, or the server refuses. No message has the URL.
    pub async fn connect(url: &str) -> Result<Self, StoreError> {
        Self::with_client(connect::client(url)?).await
    }

    /// As [`connect`](Self::connect), with a client that has more than a URL can say, such as
    /// certificates.
    ///
    /// # Errors
    ///
    /// Nothing answers there, or the server refuses.
    pub async fn with_client(client: Client) -> Result<Self, StoreError> {
        Self::with_origin(Origin::Client(client)).await
    }

    /// As [`connect`](Self::connect), to the server that Sentinel names. Sentinel is asked for each
    /// connection, and a connection is replaced on any doubt, so that a failover is followed.
    ///
    /// # Errors
    ///
    /// No Sentinel answers, none knows the service, or the server refuses.
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

    /// Lets a handler run only when `count` replicas have its claim in memory. Its record is waited
    /// for in the same way. Each wait takes at most `within`. By default the store waits for no
    /// replica.
    ///
    /// If too few replicas have the claim in time, it is given back; the handler does not run, and the
    /// request is answered `503`. If too few have the record, the log warns: the operation is done, and
    /// the answer is sent. Renewals and releases are not waited for. [Failover](Self#failover) says
    /// what this does not protect from.
    ///
    /// It costs no further round trip, but `WAIT` blocks its connection at the server. The store makes
    /// eight more connections for it, which claims and records take in turn. While replicas are
    /// away, each claim, that of a replay included, may take `within`, and those behind it wait longer.
    /// Keep `within` well below the layer's `store_timeout`, and below a third of its `lease`.
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
    /// `count` is 0, `within` is not between 1 ms and 60 s, or the store was made with
    /// [`new`](Self::new) and cannot make connections.
    pub fn wait_for_replicas(self, count: u32, within: Duration) -> Result<Self, ConfigError> {
        let refused = |reason: String| Err(ConfigError::new("wait_for_replicas", reason));
        let Some(origin) = &self.origin else {
            return refused(
                "a store made with `new` cannot make connections; make it with `connect` or `with_client`".into(),
            );
        };
        if count == 0 {
            return refused("0 replicas are waited for without this option; give 1 or more".into());
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
    /// A store on a connection that you made. Clones of the connection must be cheap and share it, as
    /// those of `ConnectionManager`, `MultiplexedConnection` and `ClusterConnection` do.
    ///
    /// Make sure that the connection has a response timeout and reconnects if it broke. A
    /// `MultiplexedConnection` does not reconnect, and none of them leaves a server that became a
    /// read-only replica; [`connect`](Self::connect) does.
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

    /// The connection for records above 16 KiB, so that nothing small waits behind them. By default a
    /// store that connects by itself makes one, and a [`new`](Self::new) store sends all over its only
    /// connection.
    #[must_use]
    pub fn large_records_over(self, connection: C) -> Self {
        Self {
            large: Arc::new(Link::given(connection)),
            ..self
        }
    }

    /// What the keys begin with. Default `idempotency:`. Stores with different prefixes do not see
    /// each other's keys.
    ///
    /// A hash tag, `{…}`, puts all keys on one node of a cluster. No operation needs that.
    ///
    /// # Errors
    ///
    /// The prefix is empty, has more than 64 bytes, or has a control character or a space.
    pub fn prefix(self, prefix: &str) -> Result<Self, ConfigError> {
        let refused = |reason: String| Err(ConfigError::new("prefix", reason));
        if prefix.is_empty() {
            return refused(
                "it is empty; give one such as `payments:`, which separates the store's keys from others'".into(),
            );
        }
        if prefix.len() > LONGEST_PREFIX {
            return refused(format!(
                "it has {} bytes; at most {LONGEST_PREFIX} are accepted",
                prefix.len()
            ));
        }
        if prefix.chars().any(|c| c.is_control() || c.is_whitespace()) {
            return refused(format!("{prefix:?} has a control character or a space; leave that out"));
        }
        Ok(Self {
            prefix: prefix.into(),
            ..self
        })
    }
}
