//! The store on a Redis server, and on what speaks its protocol.

mod answer;
mod connect;
mod failure;
mod inspect;
mod link;
mod replicas;
mod scripts;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use redis::aio::{ConnectionLike, ConnectionManager};
use redis::{Client, RedisError, RedisResult, Value};

use super::{Begin, Begun, Held, OnLapse, Record, Slot, Store, StoreError, Token};
use crate::error::ConfigError;
use crate::store::StoreErrorKind;
use failure::{Op, failed};
use link::Link;
use replicas::{Acknowledged, Replicas};
use scripts::{Call, Script, decimal, hex, millis};

const DEFAULT_PREFIX: &str = "idempotency:";
const LONGEST_PREFIX: usize = 64;
/// As long as anyone should keep a request waiting for replicas.
const LONGEST_WAIT: Duration = Duration::from_secs(60);

/// Keeps claims and records in Redis 5 or later, Valkey, or what speaks their protocol and runs
/// their Lua. All processes with the same server, database and prefix share them. Clones are cheap
/// and share the connection.
///
/// ```no_run
/// use tower_idempotency::IdempotencyLayer;
/// use tower_idempotency::store::RedisStore;
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let store = RedisStore::connect("redis://127.0.0.1/").await?.prefix("payments:")?;
/// let layer = IdempotencyLayer::new(store);
/// # Ok(())
/// # }
/// ```
///
/// **Round trips.** Each operation is one script and one round trip: a replay or a refusal costs 1,
/// a first request 2. A server that does not have the script yet, as after its restart, costs 1 more.
///
/// **Time** is the server's alone. A key's expiry is the end of its claim's lease and memory, or of
/// its record's `ttl`; nothing is swept by this crate. Times beyond 3000 years are 3000 years.
///
/// **Connections.** [`connect`](Self::connect) makes one connection that all requests share and that
/// comes back when it broke. A [`new`](Self::new) store takes any connection of the `redis` crate,
/// such as a cluster's or Sentinel's; each operation has exactly one key, so that a cluster can
/// route it, whatever the prefix. A claim, a renewal or a look-up whose connection broke is asked
/// once more, since it is safe to; what timed out is not.
///
/// **The server's settings matter.** With a `maxmemory-policy` other than `noeviction` the server
/// may evict a claim or a record, and its operation runs twice; [`connect`](Self::connect) warns of
/// it in the log. With `noeviction` a full server refuses new keys (`503`), and still replays.
/// Without `appendonly yes` a restart forgets what was written since the last snapshot, and with
/// `appendfsync everysec`, the default, up to a second.
///
/// # Failover
///
/// Replication is asynchronous: when a replica is promoted, the last writes may be missing. A claim
/// that is missing lets a duplicate run beside its original; a record that is missing lets a retry
/// run again; a renewal that is missing lets a claim lapse early.
///
/// [`wait_for_replicas`](Self::wait_for_replicas) narrows that: a handler runs only when its claim
/// is in the memory of so many replicas. **It is no consensus.** It loses still if a replica is
/// promoted that is not among those that acknowledged, if that one restarts without its data, or if
/// a primary that was cut off goes on serving (`min-replicas-to-write` bounds that).
/// Where no loss is acceptable take a store that commits with consensus, or the database of the
/// handler's own effects.
pub struct RedisStore<C = ConnectionManager> {
    link: Arc<Link<C>>,
    prefix: Arc<str>,
    /// What further connections are made with.
    client: Option<Client>,
    replicas: Option<Arc<Replicas>>,
}

impl RedisStore {
    /// Connects to `redis://[user:password@]host[:port][/database]`, or `redis+unix://…`, and
    /// `rediss://…` with a TLS feature of the `redis` crate.
    ///
    /// Connecting may take 2 s and is tried 6 times within some 1.3 s of pauses, now and whenever
    /// the connection broke; requests wait for that as long as the layer's `store_timeout` lets
    /// them. An answer may take 3 s. For other times make a
    /// [`ConnectionManager`] and give it to [`new`](Self::new).
    ///
    /// # Errors
    ///
    /// The URL is not valid, nothing answers there, or it refuses. No message holds the URL.
    pub async fn connect(url: &str) -> Result<Self, StoreError> {
        Self::with_client(connect::client(url)?).await
    }

    /// As [`connect`](Self::connect), with a client that was made with more than a URL says, as
    /// with certificates.
    ///
    /// # Errors
    ///
    /// Nothing answers there, or it refuses.
    pub async fn with_client(client: Client) -> Result<Self, StoreError> {
        let connection = connect::proven(client.clone()).await?;
        Ok(Self {
            link: Arc::new(connect::link(connection, &client, Duration::ZERO)),
            prefix: DEFAULT_PREFIX.into(),
            client: Some(client),
            replicas: None,
        })
    }

    /// Lets a handler run only when `count` replicas have its claim in memory, and waits for them
    /// with its record, too, for `within` at most. By default no replica is waited for.
    ///
    /// Too few in time: the claim is given back and the request answered `503`, its handler not
    /// having run. A record that too few have is a warning in the log: the operation is done, and
    /// the answer is sent. Renewals and releases are not waited for. What this does not give is
    /// told at [Failover](Self#failover).
    ///
    /// It costs no further round trip, but `WAIT` blocks its connection at the server; eight more
    /// connections are made for it, which claims and records take in turn. While replicas are away
    /// each claim, that of a replay included, may take `within`, and those behind it wait longer: keep
    /// `within` well below the layer's `store_timeout`, and below a third of its `lease`.
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
            return refused(format!(
                "{within:?} is no time to wait for; give 1 ms to {LONGEST_WAIT:?}"
            ));
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
    /// A store on a connection made elsewhere. Clones of the connection are to be cheap and share
    /// it, as those of [`ConnectionManager`], `MultiplexedConnection` and `ClusterConnection` do.
    ///
    /// See to it that it has a response timeout and comes back when it broke; a
    /// `MultiplexedConnection` does not.
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
    /// A hash tag, `{…}`, puts all keys on one node of a cluster; no operation needs that.
    ///
    /// # Errors
    ///
    /// Empty, longer than 64 bytes, or with a control character or a space.
    pub fn prefix(self, prefix: &str) -> Result<Self, ConfigError> {
        let refused = |reason: String| Err(ConfigError::new("prefix", reason));
        if prefix.is_empty() {
            return refused(
                "it is empty, so that nothing would tell the keys of others; give one as `payments:`".into(),
            );
        }
        if prefix.len() > LONGEST_PREFIX {
            return refused(format!(
                "{} bytes, and {LONGEST_PREFIX} at most are accepted",
                prefix.len()
            ));
        }
        if prefix.chars().any(|c| c.is_control() || c.is_whitespace()) {
            return refused(format!("{prefix:?} has a control character or a space"));
        }
        Ok(Self {
            prefix: prefix.into(),
            ..self
        })
    }

    /// The key that a slot is kept under: the prefix, and the slot in hexadecimal.
    #[must_use]
    pub fn key(&self, slot: &Slot) -> String {
        format!("{}{}", self.prefix, slot.to_hex())
    }

    /// Calls a script; once more if the connection broke and `op` may be repeated.
    async fn ask(&self, op: Op, script: &Script, slot: &Slot, args: &[&[u8]]) -> Result<Value, StoreError> {
        let key = self.key(slot);
        let call = Call {
            script,
            keys: &[key.as_bytes()],
            args,
        };
        let mut answer = self.send(&call).await;
        if may_repeat(op, &answer) {
            answer = self.send(&call).await;
        }
        answer.map_err(|error| failed(op, error))
    }

    async fn send(&self, call: &Call<'_>) -> RedisResult<Value> {
        let (which, mut connection) = self.link.get();
        let answer = call.send(&mut connection).await;
        self.link.learn(which, &answer);
        answer
    }

    /// As `ask`, and says whether enough replicas have it, if they are to.
    async fn ask_all(
        &self,
        op: Op,
        script: &Script,
        slot: &Slot,
        args: &[&[u8]],
    ) -> Result<(Value, Acknowledged), StoreError> {
        let Some(replicas) = &self.replicas else {
            return Ok((self.ask(op, script, slot, args).await?, Acknowledged::Enough));
        };
        let key = self.key(slot);
        let call = Call {
            script,
            keys: &[key.as_bytes()],
            args,
        };
        let mut answer = replicas.send(&call).await;
        if may_repeat(op, &answer) {
            answer = replicas.send(&call).await;
        }
        answer.map_err(|error| failed(op, error))
    }

    /// Undoes a claim that too few replicas have.
    async fn give_back(&self, begin: &Begin, attempt: u32, cause: Option<RedisError>) -> StoreError {
        // One that was taken over stays remembered.
        let undone = match attempt {
            1 => self.release(&begin.slot, begin.token).await,
            _ => self.renew(&begin.slot, begin.token, Duration::ZERO).await,
        };
        if let Err(error) = undone {
            tracing::warn!(
                target: "tower_idempotency",
                slot = %begin.slot,
                %error,
                "a claim that too few replicas have could not be given back; it will lapse"
            );
        }
        let error = failure::error(
            Op::Begin,
            StoreErrorKind::Unavailable,
            &format!(
                "{}, so that the claim was given back and nothing ran; are they connected (`INFO replication`)?",
                self.too_few()
            ),
        );
        match cause {
            Some(cause) => error.with_source(cause),
            None => error,
        }
    }

    fn too_few(&self) -> String {
        let (count, within) = self
            .replicas
            .as_ref()
            .map_or((0, Duration::ZERO), |replicas| (replicas.count, replicas.within));
        format!("fewer than {count} replicas acknowledged within {within:?}")
    }
}

/// Whether the connection broke, and the operation, if it was done, answers the same again. A
/// `complete` would be told that its claim is lost.
fn may_repeat<T>(op: Op, answer: &RedisResult<T>) -> bool {
    matches!(op, Op::Begin | Op::Renew | Op::LookUp)
        && answer
            .as_ref()
            .is_err_and(|error| error.is_connection_dropped() && !error.is_connection_refusal())
}

impl<C> Store for RedisStore<C>
where
    C: ConnectionLike + Clone + Send + Sync + 'static,
{
    async fn begin(&self, begin: &Begin) -> Result<Begun, StoreError> {
        let (lease, memory) = (millis(begin.lease), millis(begin.ttl));
        let refuse: &[u8] = match begin.on_lapse {
            OnLapse::Refuse => b"1",
            OnLapse::RunAgain => b"0",
        };
        let args: &[&[u8]] = &[
            &hex(&begin.token.0.to_be_bytes()),
            &hex(begin.fingerprint.as_bytes()),
            &decimal(lease + memory),
            &decimal(memory),
            refuse,
        ];
        let (answer, acknowledged) = self.ask_all(Op::Begin, &scripts::BEGIN, &begin.slot, args).await?;
        let begun = answer::begun(&answer, begin.fingerprint)?;
        match (&begun, acknowledged) {
            (&Begun::Started { attempt }, Acknowledged::TooFew(cause)) => {
                Err(self.give_back(begin, attempt, cause).await)
            }
            _ => Ok(begun),
        }
    }

    async fn renew(&self, slot: &Slot, token: Token, lease: Duration) -> Result<Held, StoreError> {
        let args: &[&[u8]] = &[&hex(&token.0.to_be_bytes()), &decimal(millis(lease))];
        let answer = self.ask(Op::Renew, &scripts::RENEW, slot, args).await?;
        answer::held(Op::Renew, &answer)
    }

    async fn complete(&self, slot: &Slot, token: Token, record: &Record, ttl: Duration) -> Result<Held, StoreError> {
        let args: &[&[u8]] = &[&hex(&token.0.to_be_bytes()), &record.to_bytes(), &decimal(millis(ttl))];
        let (answer, acknowledged) = self.ask_all(Op::Complete, &scripts::COMPLETE, slot, args).await?;
        let held = answer::held(Op::Complete, &answer)?;
        if let (Held::Yes, Acknowledged::TooFew(_)) = (held, acknowledged) {
            tracing::warn!(
                target: "tower_idempotency",
                %slot,
                "{} of an outcome; a failover now may lose it, and a retry would then run again",
                self.too_few()
            );
        }
        Ok(held)
    }

    async fn release(&self, slot: &Slot, token: Token) -> Result<Held, StoreError> {
        let args: &[&[u8]] = &[&hex(&token.0.to_be_bytes())];
        let answer = self.ask(Op::Release, &scripts::RELEASE, slot, args).await?;
        answer::held(Op::Release, &answer)
    }
}

impl<C> Clone for RedisStore<C> {
    fn clone(&self) -> Self {
        Self {
            link: Arc::clone(&self.link),
            prefix: Arc::clone(&self.prefix),
            client: self.client.clone(),
            replicas: self.replicas.clone(),
        }
    }
}

/// Never the connection or the client, which have credentials.
impl<C> fmt::Debug for RedisStore<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisStore")
            .field("prefix", &self.prefix)
            .field("replicas", &self.replicas.as_ref().map(|replicas| replicas.count))
            .finish_non_exhaustive()
    }
}
