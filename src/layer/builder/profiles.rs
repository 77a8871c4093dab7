//! Profiles: sets of options under one name.

use std::time::Duration;

use super::IdempotencyLayerBuilder;
use super::resolve::Profile;
use crate::request::KeySource;
use crate::store::Store;

impl<St: Store> IdempotencyLayerBuilder<St> {
    /// Sets the options for inbound webhooks from one sender. The key is the event's id, combined
    /// with the endpoint's method and path. The body is not compared, because the sender may change
    /// the body when it delivers the event again. An event that is sent to two endpoints is
    /// processed by both. An event without an id is refused with `400` problem `missing-key`.
    ///
    /// If several senders share a store, set a different `sender` for each, because different
    /// senders may use the same ids. [`fingerprint`](Self::fingerprint) and
    /// [`require_key`](Self::require_key) take precedence, whether you call them before or after
    /// this method. If you also call [`key`](Self::key) or [`scope`](Self::scope), `build` returns
    /// an error.
    ///
    /// Verify signatures in a layer outside this one. Otherwise, anyone can block an event by
    /// sending its id first.
    ///
    /// ```
    /// use tower_idempotency::{IdempotencyLayer, KeySource, MemoryStore};
    ///
    /// let standard_webhooks = IdempotencyLayer::builder(MemoryStore::new())
    ///     .webhooks("acme", KeySource::webhook_id())
    ///     .build()?;
    /// # let _ = standard_webhooks;
    /// # Ok::<(), tower_idempotency::ConfigError>(())
    /// ```
    pub fn webhooks(mut self, sender: &str, event_id: KeySource) -> Self {
        self.chosen.profiles.push(Profile::Webhooks {
            sender: sender.into(),
            event_id,
        });
        self
    }

    /// Makes the layer respond as Stripe does ("Idempotent requests" and "Errors" in Stripe's API
    /// reference):
    ///
    /// - Responses with a status of `2xx`, `402` or any `5xx` except `503` are stored: a result is
    ///   stored once the endpoint has begun to execute. If the handler panics or fails, the key is
    ///   sealed. In atomic mode, the effect of a failure is rolled back, and only the failure's
    ///   record is stored.
    /// - The value of `Stripe-Account` is part of the scope, in addition to `Authorization`.
    /// - The header that marks a replay is `Idempotent-Replayed`. A different request with the same
    ///   key gets `400` with the type `idempotency_error`. A request whose key is in flight gets
    ///   `409` with the type `invalid_request_error` and the code `idempotency_key_in_use`. Both
    ///   responses have Stripe's error body.
    ///
    /// [`policy`](Self::policy), [`scope`](Self::scope), [`replay_header`](Self::replay_header) and
    /// [`problem_response`](Self::problem_response) take precedence, whether you call them before
    /// or after this method.
    pub fn stripe(mut self) -> Self {
        self.chosen.profiles.push(Profile::Stripe);
        self
    }

    /// Sets the options for a gRPC server, such as tonic's (feature `tonic`).
    ///
    /// - The key is the metadata entry `idempotency-key`. A call without this entry passes through
    ///   untouched.
    /// - Only responses that end with `grpc-status: 0` are stored, with their metadata and
    ///   trailers.
    /// - Refusals are gRPC statuses with a `grpc-message`. `grpc-retry-pushback-ms` specifies when
    ///   to retry. Its value is -1 if a retry makes no sense. `idempotency-problem` contains the
    ///   problem's slug.
    ///
    /// # Streaming calls
    ///
    /// A server cannot tell from a call whether its method streams. A streaming call *without* a
    /// key passes through untouched. A call *with* a key never runs without protection, whether or
    /// not it streams:
    ///
    /// - The layer reads the request to its end before the method runs. A call that streams its
    ///   request is guarded if the client ends the request within 5 seconds of its first message
    ///   ([`grpc_request_within`](Self::grpc_request_within)). Otherwise, for example because the
    ///   client waits for a response first, the call is refused with `INVALID_ARGUMENT` and the
    ///   method does not run.
    /// - The layer holds the response until it has ended, for up to 5 seconds
    ///   ([`response_body_within`](Self::response_body_within)). A response that ends in time is
    ///   stored with all its messages. A response that takes longer is sent live and leaves a
    ///   tombstone if it ends with `grpc-status: 0`. A retry then gets `ALREADY_EXISTS`.
    ///
    /// If your clients send a key with every call, select the streaming methods with
    /// [`pass_when`](Self::pass_when). Calls to these methods then pass through untouched and
    /// without protection.
    ///
    /// [`policy`](Self::policy), [`problem_response`](Self::problem_response) and
    /// `response_body_within` take precedence, whether you call them before or after this method.
    ///
    /// ```
    /// use tower_idempotency::{IdempotencyLayer, MemoryStore};
    ///
    /// let idempotency = IdempotencyLayer::builder(MemoryStore::new()).grpc().build()?;
    /// # #[cfg(feature = "tonic")]
    /// let mut server = tonic::transport::Server::builder().layer(idempotency);
    /// // server.add_service(PaymentsServer::new(payments)).serve(address).await
    /// # Ok::<(), tower_idempotency::ConfigError>(())
    /// ```
    pub fn grpc(mut self) -> Self {
        self.chosen.profiles.push(Profile::Grpc);
        self
    }

    /// Sets how long the request of a gRPC call with a key can continue after its first message. A
    /// call whose request continues for longer than this is treated as a streaming call, which
    /// cannot be guarded: it is refused with `INVALID_ARGUMENT`, and its method does not run. The
    /// time that the first message takes does not count, but a call that sends nothing for this
    /// long is refused as well. Default: 5 seconds. Range: 1 ms to 24 hours.
    ///
    /// This option requires the [`grpc`](Self::grpc) profile. Without it, `build` returns an error.
    pub fn grpc_request_within(mut self, duration: Duration) -> Self {
        self.chosen.grpc_request_within = Some(duration);
        self
    }
}
