//! How a store is made: its connections, its prefix, and which replicas it waits for.

use std::sync::Arc;
use std::time::Duration;

use redis::Client;
use redis::aio::ConnectionLike;

use super::link::Link;
use super::replicas::Replicas;
use super::{RedisStore, connect};
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
    /// Connecting may take 2 s and is tried 6 times, with pauses of about 1.3 s in all, now and
    /// whenever the connection broke. Requests wait for that as long as the layer's `store_timeout`
    /// lets them. An answer may take 3 s. For other times make a [`ConnectionManager`](redis::aio::ConnectionManager) and give it to
    /// [`new`](Self::new).
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
        let connection = connect::proven(client.clone()).await?;
        Ok(Self {
            link: Arc::new(connect::link(connection, &client, Duration::ZERO)),
            prefix: DEFAULT_PREFIX.into(),
            client: Some(client),
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
    /// [`new`](Self::new) and has no client to make connections with.
    pub fn wait_for_replicas(self, count: u32, within: Duration) -> Result<Self, ConfigError> {
        let refused = |reason: String| Err(ConfigError::new("wait_for_replicas", reason));
        let Some(client) = &self.client else {
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
        let replicas = Replicas::new(client, count, within)
            .map_err(|error| ConfigError::new("wait_for_replicas", error.to_string()))?;
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
    /// those of [`ConnectionManager`](redis::aio::ConnectionManager), `MultiplexedConnection` and
    /// `ClusterConnection` do.
    ///
    /// Make sure that the connection has a response timeout and reconnects if it broke. A
    /// `MultiplexedConnection` does not reconnect.
    #[must_use]
    pub fn new(connection: C) -> Self {
        Self {
            link: Arc::new(Link::fixed(connection)),
            prefix: DEFAULT_PREFIX.into(),
            client: None,
            replicas: None,
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
