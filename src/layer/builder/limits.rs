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
    /// `pause`; then one request asks again, and so on until the store answers. Default: 5 failures and 1
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
    pub fn max_request_body(mut self, bytes: usize) -> Self {
        self.config.max_request_body = bytes;
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
