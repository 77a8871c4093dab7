//! Profiles: several options under one name.

use std::time::Duration;

use super::IdempotencyLayerBuilder;
use super::resolve::Profile;
use crate::request::KeySource;
use crate::store::Store;

impl<St: Store> IdempotencyLayerBuilder<St> {
    /// For inbound webhooks of one sender. The key is the event's id at this endpoint: method and path
    /// count, the body does not, whatever the sender changes in it when it delivers the event again. An
    /// event that is sent to two endpoints is processed by both. An event without an id is refused with
    /// `400` problem `missing-key`.
    ///
    /// `sender` must differ from that of every other sender on the same store: their ids may be the same.
    /// [`fingerprint`](Self::fingerprint) and [`require_key`](Self::require_key) take precedence, before
    /// or after this call; together with [`key`](Self::key) or [`scope`](Self::scope) it is an error of
    /// `build`.
    ///
    /// Verify signatures in a layer outside this one. Otherwise anybody can block an event by sending its
    /// id first.
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

    /// Answers as Stripe does ("Idempotent requests" and "Errors" of its API reference):
    ///
    /// - Stored are `2xx`, `402` and every `5xx` except `503`: a result is stored once the endpoint has
    ///   begun to execute. A handler that panicked or failed is sealed. In atomic mode the effect of a
    ///   failure is rolled back, and its record stored alone.
    /// - `Stripe-Account` is a part of the scope, beside `Authorization`.
    /// - The marker of a replay is `Idempotent-Replayed`. A reused key is `400` `idempotency_error`, a key
    ///   in flight `409` `invalid_request_error` with the code `idempotency_key_in_use`, each in Stripe's
    ///   error body.
    ///
    /// [`policy`](Self::policy), [`scope`](Self::scope), [`replay_header`](Self::replay_header) and
    /// [`problem_response`](Self::problem_response) take precedence, before or after this call.
    pub fn stripe(mut self) -> Self {
        self.chosen.profiles.push(Profile::Stripe);
        self
    }

    /// For a gRPC server, such as tonic's (feature `tonic`).
    ///
    /// - The key is the metadata entry `idempotency-key`. A call without it passes through untouched.
    /// - Only a call that ended with `grpc-status: 0` is stored, with its metadata and trailers.
    /// - Refusals are gRPC statuses with `grpc-message`. `grpc-retry-pushback-ms` says when to retry; it is
    ///   -1 where a retry makes no sense. `idempotency-problem` has the problem's slug.
    ///
    /// # Streaming calls
    ///
    /// A server cannot see from a call whether its method streams. A streaming call *without* a key passes
    /// through untouched. A call *with* a key is never run without protection, whatever its kind:
    ///
    /// - Its request is read to the end before the method runs. A call that streams its request is guarded
    ///   if the client ends the request within 5 seconds of its first message
    ///   ([`grpc_request_within`](Self::grpc_request_within)). If not, for example because the client waits
    ///   for a response first, the call is refused with `INVALID_ARGUMENT` and the method does not run.
    /// - Its response is held until it has ended, for up to 5 seconds
    ///   ([`response_body_within`](Self::response_body_within)). A response that ends in time is stored with
    ///   all its messages. A longer one goes on live and leaves a tombstone when it ends with
    ///   `grpc-status: 0`; a retry then gets `ALREADY_EXISTS`.
    ///
    /// If your clients send a key with every call, name the streaming methods with
    /// [`pass_when`](Self::pass_when). They then pass through untouched, and without protection.
    ///
    /// [`policy`](Self::policy), [`problem_response`](Self::problem_response) and `response_body_within` take
    /// precedence, before or after this call.
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

    /// How long the request of a gRPC call with a key may go on after its first message. A call whose
    /// request goes on for longer is a streaming call that cannot be guarded: it is refused with
    /// `INVALID_ARGUMENT`, and its method does not run. The time that the first message takes does not
    /// count. Default: 5 seconds. From 1 ms to 24 hours.
    ///
    /// Together with any profile but [`grpc`](Self::grpc), or none, it is an error of `build`.
    pub fn grpc_request_within(mut self, duration: Duration) -> Self {
        self.chosen.grpc_request_within = Some(duration);
        self
    }
}
