//! The store on a Redis server, and on what speaks its protocol.

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
/// **Round trips.** A replay or a refusal costs 1, a first request 2. The claim is one command (`SET …
/// NX GET`, Redis 7 or later and Valkey); where it finds another claim, a script looks at what is left of
/// its lease, which costs 1 more. Recording the outcome is a script. Servers that do not know the
/// command are asked by the script alone. So is, once more, each connection's first claim, as a proof
/// that the server means the same. A server that does not have a script yet costs 1 more.
///
/// **Large records**, above 16 KiB, are kept in a hash and not in a string. The claim's command is then
/// told at once that something is there, and the record is fetched over a connection of its own: 2
/// round trips, behind which nothing small waits.
///
/// **Time** is the server's alone. A key's expiry is the end of its claim's lease and memory, or of
/// its record's `ttl`. This crate does not sweep; Redis expires keys itself. Times beyond 3000 years
/// are 3000 years.
///
/// **Connections.** [`connect`](Self::connect) makes one connection that all requests share, and one for
/// large records. Each is replaced at once when it broke, when nothing was heard of it for a second
/// after it was asked (10 s where large records go), and when the server answers that it is a replica, is loading, or is not the one
/// to ask (`READONLY`, `MASTERDOWN`, `LOADING`, `CLUSTERDOWN`). The name is looked up anew each time, and
/// [Sentinel](Self::connect_sentinel) asked. What was not answered is then asked again, up to twice:
/// all but a release is safe to repeat. A [`new`](Self::new) store takes any connection of the `redis`
/// crate, such as a cluster's. Each operation has exactly one key, so a cluster can route it, whatever
/// the prefix.
///
/// **The server's settings matter.** With a `maxmemory-policy` other than `noeviction` the server
/// may evict a claim or a record, and its operation runs twice; [`connect`](Self::connect) warns of
/// it in the log. With `noeviction` a full server refuses new keys (`503`), and still replays. If it
/// has no room for the record of an operation that is done, the claim is kept until the record's `ttl`
/// ends: storing is retried, and retries of the request get `409` problem `outcome-unknown`.
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
/// is in the memory of so many replicas. **It is not consensus.** Claims are still lost if the
/// promoted replica is not among those that acknowledged, if that one restarts without its data, or
/// if a primary that was cut off goes on serving (`min-replicas-to-write` bounds that). If no loss is
/// acceptable, take a store that commits with consensus, or the database of the handler's own
/// effects.
pub struct RedisStore<C = MultiplexedConnection> {
    link: Arc<Link<C>>,
    /// For large records. The same where there is one connection only.
    large: Arc<Link<C>>,
    prefix: Arc<str>,
    /// What further connections are made with.
    origin: Option<Origin>,
    replicas: Option<Arc<Replicas>>,
}

impl<C> RedisStore<C> {
    /// The key that a slot is kept under: the prefix, and the slot in hexadecimal.
    #[must_use]
    pub fn key(&self, slot: &Slot) -> String {
        format!("{}{}", self.prefix, slot.to_hex())
    }

    /// [`key`](Self::key), as it is sent. Each call needs it, so it is made by one allocation.
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

/// Never the connection or the client, which have credentials.
impl<C> fmt::Debug for RedisStore<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisStore")
            .field("prefix", &self.prefix)
            .field("replicas", &self.replicas.as_ref().map(|replicas| replicas.wait.count))
            .finish_non_exhaustive()
    }
}
