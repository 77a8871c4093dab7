//! Limits: leases and timeouts, sizes, work that continues without its client, and store failures.

use std::time::Duration;

use super::IdempotencyLayerBuilder;
use crate::answer::Fate;
use crate::run::config::BreakerConfig;
use crate::store::Store;

impl<St: Store> IdempotencyLayerBuilder<St> {
    /// Sets how long a claim lasts if it is not renewed. After a crash, a key is blocked for this
    /// duration. While the handler runs, a separate task renews the lease whenever a third of the
    /// lease has elapsed. Each claim or renewal can take at most a third of the lease. Default: 30
    /// seconds. Range: 1 ms to 24 hours.
    ///
    /// If a process is frozen or its runtime is blocked for longer than the lease, a second run may
    /// take over the operation. In that case, the outcome of the first run is not stored. A store
    /// in this process's memory does not need a lease: its claims last as long as their holders
    /// exist.
    pub fn lease(mut self, lease: Duration) -> Self {
        self.config.lease = lease;
        self
    }

    /// Sets how long a duplicate waits for the outcome of the first request before it gets `409`
    /// problem `in-flight`. Default: zero, so a duplicate does not wait. Maximum: 24 hours.
    pub fn wait(mut self, wait: Duration) -> Self {
        self.config.wait = wait;
        self
    }

    /// Sets how long a store call can take. Default: 5 seconds. Range: 1 ms to 24 hours.
    pub fn store_timeout(mut self, timeout: Duration) -> Self {
        self.config.store_timeout = timeout;
        self
    }

    /// Sets how long the layer tries to store an outcome in the background if the store failed
    /// after the handler ran. Default: 5 minutes. Maximum: 24 hours.
    pub fn settle_within(mut self, duration: Duration) -> Self {
        self.config.settle_within = duration;
        self
    }

    /// Runs requests **without any protection** while the store is failing, instead of refusing
    /// them with `503` problem `store-unavailable`. Each of these requests is logged and has the
    /// outcome `unprotected`. The handler still receives the key, with attempt 1. However, a
    /// request never runs if its record exists but cannot be read, for example because a newer
    /// release wrote the record. The record's existence shows that the operation completed.
    pub fn run_unprotected_when_store_fails(mut self) -> Self {
        self.config.fail_open = true;
        self
    }

    /// Configures the circuit breaker. After `failures` store failures in a row, requests are
    /// refused immediately, without calling the store, for the duration `pause`. After the pause,
    /// one request calls the store. This cycle repeats until the store responds. Default: 5
    /// failures and 1 second. `failures` must be at least 1, and `pause` must be between 1 ms and
    /// 24 hours.
    ///
    /// A store in this process's memory does not have a circuit breaker.
    pub fn circuit_breaker(mut self, failures: u32, pause: Duration) -> Self {
        self.chosen.breaker = Some(BreakerConfig { failures, pause });
        self
    }

    /// Turns off the circuit breaker: every request calls the store, no matter how often the store
    /// has failed. This option cannot be combined with [`circuit_breaker`](Self::circuit_breaker).
    pub fn without_circuit_breaker(mut self) -> Self {
        self.chosen.has_no_breaker = true;
        self
    }

    /// Sets the maximum size of a request body in bytes. A request that has a key and a larger body
    /// gets `413` problem `body-too-large`. If the key is in the body, the layer reads the bodies
    /// of all guarded requests, so the limit applies to all of them. Default: 2 MiB.
    ///
    /// The limit applies to bodies that the layer holds in memory. The layer does not hold a body
    /// that is streamed ([`stream_request_bodies`](Self::stream_request_bodies)). It also does not
    /// hold a body if the key is in the head and the fingerprint does not cover the body
    /// ([`FingerprintSource::none`](crate::FingerprintSource::none),
    /// [`FingerprintSource::from_head`](crate::FingerprintSource::from_head)).
    pub fn max_request_body(mut self, bytes: usize) -> Self {
        self.config.max_request_body = bytes;
        self
    }

    /// Streams the bodies of requests with a key to the handler instead of holding them in memory.
    /// `limit` is the maximum size of a body in bytes; a larger body gets `413` problem
    /// `body-too-large`. By default, bodies are held in memory, up to
    /// [`max_request_body`](Self::max_request_body).
    ///
    /// The layer claims the key as soon as the head has arrived. The handler reads the body as it
    /// arrives, and meanwhile the layer digests the parts that the fingerprint covers. As a result,
    /// a duplicate that arrives while the first request is in flight is refused before its body is
    /// read. If a duplicate arrives after the first request has completed, its body is read and
    /// compared, but not held in memory. If both requests declare the same digest, `Content-Type`
    /// and `Content-Encoding`, the body is not read.
    ///
    /// - If the body ends early, is too large, or does not match its `Content-Digest` or
    ///   `Repr-Digest`, the handler's read fails and nothing is stored. The client gets the
    ///   corresponding problem, whatever the handler returned.
    /// - If the handler returns a response before it has read the body to its end, the layer reads
    ///   the rest of the body, for up to [`response_body_within`](Self::response_body_within), and
    ///   then stores the response. If the rest of the body does not arrive completely, a tombstone
    ///   is stored.
    /// - JSON of up to `max_request_body` bytes is held in memory while the handler runs if the
    ///   fingerprint is computed from parsed JSON
    ///   ([`canonical_json`](crate::FingerprintSource::canonical_json),
    ///   [`json_fields`](crate::FingerprintSource::json_fields),
    ///   [`without`](crate::FingerprintSource::without)). Longer JSON is compared byte by byte.
    /// - Routes that stream bodies and routes that hold bodies in memory can share a store and a
    ///   scope. If a duplicate and its first request arrive on different kinds of routes, the layer
    ///   compares them after the first request has completed. If the duplicate's body is streamed,
    ///   it is then held in memory, up to `max_request_body`.
    ///
    /// The service must accept a request body type that can be created from a stream; see
    /// [`GuardedBody::from_streamed`](crate::GuardedBody::from_streamed). `build` returns an error
    /// if this option is combined with a key in the body, a fingerprint closure over the body
    /// ([`from_fn`](crate::FingerprintSource::from_fn)) or the profile [`grpc`](Self::grpc), or if
    /// the limit is 0.
    ///
    /// ```
    /// use tower_idempotency::{IdempotencyLayer, MemoryStore};
    ///
    /// let uploads = IdempotencyLayer::builder(MemoryStore::new())
    ///     .stream_request_bodies(1024 * 1024 * 1024)
    ///     .build()?;
    /// # let _ = uploads;
    /// # Ok::<(), tower_idempotency::ConfigError>(())
    /// ```
    pub fn stream_request_bodies(mut self, limit: usize) -> Self {
        self.config.stream_request_bodies = Some(limit);
        self
    }

    /// Sets the maximum size of a stored response body in bytes. A larger response is delivered and
    /// leaves a tombstone. Default: 1 MiB.
    pub fn max_response_body(mut self, bytes: usize) -> Self {
        self.config.max_response_body = bytes;
        self
    }

    /// Sets how long the layer reads a response body after the handler has returned the response. A
    /// body that takes longer is treated as a stream: the layer sends the part that it has read,
    /// then passes on the rest as it arrives, and the response leaves a tombstone. Default: 30
    /// seconds; for [`grpc`](Self::grpc), 5 seconds. Range: 1 ms to 24 hours.
    ///
    /// In atomic mode, the handler's transaction stays open while its response is read, because the
    /// record is committed with the effect. On PostgreSQL, the transaction occupies a pool
    /// connection and holds locks on the rows that the handler wrote. On SQLite, the
    /// transaction occupies the only writer: replays continue, but first requests wait, and get
    /// `503` after [`store_timeout`](Self::store_timeout). In atomic mode on SQLite, set this
    /// option to a few seconds.
    pub fn response_body_within(mut self, duration: Duration) -> Self {
        self.chosen.response_body_within = Some(duration);
        self
    }

    /// Sets how many operations can run without their clients before new first requests get `503`
    /// problem `overloaded`. Default: 1024. This option limits the number of these operations, but
    /// not their duration. If a handler might hang, add a timeout inside this layer.
    pub fn max_detached(mut self, most: usize) -> Self {
        self.config.max_detached = most;
        self
    }

    /// **Cancels the handler when its client disconnects**, at any point, as Axum does without this
    /// layer. `fate` determines what happens to the key. After [`Fate::Release`], a retry repeats
    /// everything that the handler did before it was cancelled.
    pub fn cancel_on_disconnect(mut self, fate: Fate) -> Self {
        self.config.cancel_on_disconnect = Some(fate);
        self
    }
}
