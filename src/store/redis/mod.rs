//! The store on a Redis server, or on a server that uses the Redis protocol.

mod answer;
mod ask;
mod begin;
mod builder;
mod claim;
mod connect;
mod connecting;
mod dial;
mod doubt;
mod failure;
mod inspect;
mod link;
mod live;
mod replicas;
mod request;
mod scripts;
mod sentinel;
mod store;

use std::fmt;
use std::sync::Arc;

use redis::aio::MultiplexedConnection;

use super::Slot;
use crate::digest::push_hex;
use connect::Origin;
use link::Link;
use replicas::Replicas;
pub use sentinel::RedisSentinel;

/// Stores claims and records in Redis 5 or later, in Valkey, or in any server that supports their
/// protocol and Lua scripts. All processes that use the same server, database and prefix share the
/// claims and records. Clones are cheap and share the connection.
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
/// **Round trips.** A replay, or a refusal of a different request, costs 1 round trip, and a first
/// request costs 2 round trips. The claim is one command (`SET … NX GET`, Redis 7 or later and
/// Valkey). If the command finds another claim for the same request, a script checks that claim's
/// remaining lease, which costs 1 more round trip. A different script records the outcome. On servers that do not support
/// the command, the store always claims slots with the script. On each connection, the store also
/// repeats the first claim once with the script, to verify that the command and the script give the
/// same result. If a server does not have a script yet, sending the script costs 1 more round trip.
///
/// **Large records**, above 16 KiB, are stored in a hash instead of a string. The claim's command
/// then reports immediately that the slot is taken, and the store fetches the record over a
/// separate connection. A replay of a large record costs 2 round trips, but no small request waits
/// behind large records.
///
/// **Time** is measured only by the server. A record's key expires when its `ttl` has elapsed. A
/// claim's key expires when the lease, and then the time for which a lapsed claim is remembered,
/// have elapsed. This crate does not sweep; Redis expires keys itself. Times longer than 3000 years
/// are treated as 3000 years.
///
/// **Connections.** [`connect`](Self::connect) opens one connection that all requests share, and a
/// second connection for large records. The store replaces a connection immediately in three cases:
/// the connection broke; the connection was silent for a second after a request (10 s on the
/// connection for large records); or the server reports that it is a replica, is still loading its
/// data, or is not the right server (`READONLY`, `MASTERDOWN`, `LOADING`, `CLUSTERDOWN`,
/// `NOAUTH`). Each time, the store looks up the host name again, or queries [Sentinel](Self::connect_sentinel) for
/// the address. A call that the server refused is then repeated, up to twice. If the reply to a
/// call was lost, the call is repeated only if repeating it is safe; a release is not repeated.
/// [`new`](Self::new) accepts any connection type from the `redis` crate, such as a cluster
/// connection. Each operation uses exactly one key, so a cluster can route it, whatever the prefix.
///
/// **The server's settings matter.** With a `maxmemory-policy` other than `noeviction`, the server
/// may evict a claim or a record, and its operation can then run twice. [`connect`](Self::connect)
/// logs a warning about such a policy. With `noeviction`, a full server rejects new keys (`503`),
/// but known keys are still replayed. If the server has no room for a completed operation's record,
/// the claim is kept until the record's `ttl` would have elapsed. The layer tries again to store
/// the record, and retries of the request get a `409` problem `outcome-unknown`. Without
/// `appendonly yes`, a restart loses all writes since the last snapshot. With `appendonly yes` and
/// the default `appendfsync everysec`, a restart loses up to a second of writes.
///
/// # Failover
///
/// Replication is asynchronous: when a replica is promoted, the last writes may be missing. If a
/// claim is missing, a duplicate can run alongside its original. If a record is missing, a retry
/// can run the operation again. If a renewal is missing, a claim can lapse early.
///
/// [`wait_for_replicas`](Self::wait_for_replicas) reduces these risks: a handler runs only when its
/// claim is in the memory of the given number of replicas. **It is not consensus.** Claims are
/// still lost if the promoted replica is not among the replicas that acknowledged the claim, if
/// that replica restarts without its data, or if an isolated primary continues to accept requests
/// (`min-replicas-to-write` limits this risk). If no loss is acceptable, use a store that commits
/// with consensus, or use the database that contains the handler's own effects.
pub struct RedisStore<C = MultiplexedConnection> {
    link: Arc<Link<C>>,
    /// The connection for large records. It is the same as `link` if the store has only one
    /// connection.
    large: Arc<Link<C>>,
    prefix: Arc<str>,
    /// The source of further connections.
    origin: Option<Origin>,
    replicas: Option<Arc<Replicas>>,
}

impl<C> RedisStore<C> {
    /// Returns the key under which a slot is stored: the prefix, followed by the slot in
    /// hexadecimal.
    #[must_use]
    pub fn key(&self, slot: &Slot) -> String {
        format!("{}{}", self.prefix, slot.to_hex())
    }

    /// Returns [`key`](Self::key) as bytes. This function allocates only once, because every store
    /// call builds a key.
    fn key_bytes(&self, slot: &Slot) -> Vec<u8> {
        let mut key = Vec::with_capacity(self.prefix.len() + 2 * Slot::LEN);
        key.extend_from_slice(self.prefix.as_bytes());
        push_hex(&mut key, slot.as_bytes());
        key
    }
}

impl<C> Clone for RedisStore<C> {
    fn clone(&self) -> Self {
        Self {
            link: Arc::clone(&self.link),
            large: Arc::clone(&self.large),
            prefix: Arc::clone(&self.prefix),
            origin: self.origin.clone(),
            replicas: self.replicas.clone(),
        }
    }
}

/// Never shows the connection or the client, because they contain credentials.
impl<C> fmt::Debug for RedisStore<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisStore")
            .field("prefix", &self.prefix)
            .field("replicas", &self.replicas.as_ref().map(|replicas| replicas.wait.count))
            .finish_non_exhaustive()
    }
}
