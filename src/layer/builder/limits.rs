//! Limits: leases and time-outs, sizes, work without its client, and a store that fails.

use std::time::Duration;

use super::IdempotencyLayerBuilder;
use crate::answer::Fate;
use crate::run::config::BreakerConfig;
use crate::store::Store;

impl<St: Store> IdempotencyLayerBuilder<St> {
    /// How long a claim holds without being renewed: after a crash, a key is blocked for this long.
    /// It is renewed every third of it, by a task of its own, while the handler runs; claiming or
    /// renewing may take a third of it at most. Default: 30 seconds. From 1 ms to 24 hours.
    ///
    /// A process that is frozen for longer than its lease, or whose runtime is blocked for as long,
    /// may be overtaken by a second run; its own outcome is then not stored. A store in this
    /// process's memory needs no lease: its claims last as long as their holders.
    pub fn lease(mut self, lease: Duration) -> Self {
        self.config.lease = lease;
        self
    }

    /// How long a duplicate waits for the outcome of the first request before it gets `409`
    /// problem `in-flight`. Default: zero, it does not wait. At most 24 hours.
    pub fn wait(mut self, wait: Duration) -> Self {
        self.config.wait = wait;
        self
    }

    /// How long a store call may take. Default: 5 seconds. From 1 ms to 24 hours.
    pub fn store_timeout(mut self, timeout: Duration) -> Self {
        self.config.store_timeout = timeout;
        self
    }

    /// How long it is tried again, in the background, to store an outcome when the store failed
    /// after the handler ran. Default: 5 minutes. At most 24 hours.
    pub fn settle_within(mut self, duration: Duration) -> Self {
        self.config.settle_within = duration;
        self
    }

    /// Runs requests **without any protection** while the store fails, instead of refusing them
    /// with `503` problem `store-unavailable`. Each is logged and has the outcome `unprotected`. The
    /// handler finds its key all the same, with attempt 1.
    /// A stored record that cannot be read, for example because a newer release wrote it, never lets a
    /// request run: it says that the operation was done.
    pub fn run_unprotected_when_store_fails(mut self) -> Self {
        self.config.fail_open = true;
        self
    }

    /// After so many failures of the store in a row, requests are refused at once, without asking it, for
    /// `pause`; then one request asks the store, and so on until it answers. Default: 5 failures and 1
    /// second. At least 1 failure; a pause from 1 ms to 24 hours.
    ///
    /// A store in this process's memory has no breaker.
    pub fn circuit_breaker(mut self, failures: u32, pause: Duration) -> Self {
        self.config.breaker = Some(BreakerConfig { failures, pause });
        self
    }

    /// Asks the store for every request, however often it failed.
    pub fn without_circuit_breaker(mut self) -> Self {
        self.config.breaker = None;
        self
    }

    /// Bytes of a request body at most; a larger one with a key is `413` problem `body-too-large`.
    /// Where the key is in the body, all guarded requests are read, so that it holds for all.
    /// Default: 2 MiB.
    ///
    /// It holds for bodies that the layer holds in memory. A body is not held if it is streamed
    /// ([`stream_request_bodies`](Self::stream_request_bodies)), or if the key is in the head and nothing of
    /// the body counts ([`FingerprintSource::none`](crate::FingerprintSource::none),
    /// [`FingerprintSource::from_head`](crate::FingerprintSource::from_head)).
    pub fn max_request_body(mut self, bytes: usize) -> Self {
        self.config.max_request_body = bytes;
        self
    }

    /// Streams the bodies of requests with a key to the handler, and never holds them. `limit` is how many
    /// bytes a body may have; a larger one is `413` problem `body-too-large`. Default: bodies are held, up to
    /// [`max_request_body`](Self::max_request_body).
    ///
    /// The key is claimed when the head is there. The handler reads the body as it arrives, and what counts of
    /// the body is digested on the way. So a duplicate in flight is refused before its body is read, and a later
    /// duplicate is read and compared, but not held.
    ///
    /// - If the body breaks off, is too large, or does not match its `Content-Digest` or `Repr-Digest`, the
    ///   handler's read fails and nothing is stored. The client gets the problem for it, whatever the handler
    ///   answered.
    /// - If the handler answers before it has read the body to its end, the layer reads the rest, for up to
    ///   [`response_body_within`](Self::response_body_within), and then stores the response. If the rest does
    ///   not come whole, a tombstone is stored.
    /// - JSON of up to `max_request_body` bytes is held beside the handler if the fingerprint reads it
    ///   ([`canonical_json`](crate::FingerprintSource::canonical_json),
    ///   [`json_fields`](crate::FingerprintSource::json_fields),
    ///   [`without`](crate::FingerprintSource::without)). A longer text counts by its bytes.
    /// - Routes of both kinds can share a store and a scope: a request is compared with one of the other kind once
    ///   that is done. A streamed duplicate is then held, up to `max_request_body`.
    ///
    /// The service's request body must be one that can be made from a stream; see
    /// [`GuardedBody::from_streamed`](crate::GuardedBody::from_streamed). A limit of 0, a key in the body, a
    /// fingerprint closure over the body ([`from_fn`](crate::FingerprintSource::from_fn)), or the profile
    /// [`grpc`](Self::grpc) are errors when the layer is built.
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

    /// Bytes of a response body that are kept at most; a larger one is delivered and leaves a
    /// tombstone. Default: 1 MiB.
    pub fn max_response_body(mut self, bytes: usize) -> Self {
        self.config.max_response_body = bytes;
        self
    }

    /// How long a response's body may take to be read once the handler has answered. One that takes
    /// longer is a stream: what there is of it goes out, the rest follows live, and it leaves a
    /// tombstone. Default: 30 seconds; for [`grpc`](Self::grpc) 5 seconds. From 1 ms to 24 hours.
    ///
    /// In atomic mode the handler's transaction stays open while its response is read, because the record is
    /// committed with the effect. On PostgreSQL that holds a connection of the pool and the locks of what the
    /// handler wrote. On SQLite it holds the one writer: replays go on, but first requests wait, and get `503`
    /// after [`store_timeout`](Self::store_timeout). Set a few seconds there.
    pub fn response_body_within(mut self, duration: Duration) -> Self {
        self.chosen.response_body_within = Some(duration);
        self
    }

    /// How much work may go on without its client before new first requests get `503` problem
    /// `overloaded`. Default: 1024. It is bounded in number, not in time: a handler that may hang
    /// wants a time-out of its own, inside this layer.
    pub fn max_detached(mut self, most: usize) -> Self {
        self.config.max_detached = most;
        self
    }

    /// **Cancels the handler when its client leaves**, wherever it is, as Axum alone does. `fate`
    /// says what becomes of the key; after [`Fate::Release`] a retry repeats whatever the handler
    /// had done before it was cancelled.
    pub fn cancel_on_disconnect(mut self, fate: Fate) -> Self {
        self.config.cancel_on_disconnect = Some(fate);
        self
    }
}
