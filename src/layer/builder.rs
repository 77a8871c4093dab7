//! The builder of a layer's configuration.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::request::Parts;
use http::{Method, Response};

use super::IdempotencyLayer;
use super::profile::{Chosen, Profile};
use crate::answer::{Fate, Policy, Problem, Rendering};
use crate::error::ConfigError;
use crate::request::{FingerprintSource, KeyFormat, KeySource, ScopeSource, header_name};
use crate::run::config::{BreakerConfig, Config, Predicate, ReplayHook};
use crate::run::guard::Guard;
use crate::store::{MemoryStore, Store};

/// Configures an [`IdempotencyLayer`].
///
/// ```
/// use std::time::Duration;
/// use tower_idempotency::{IdempotencyLayer, KeyFormat, MemoryStore, Policy};
///
/// let layer = IdempotencyLayer::builder(MemoryStore::new())
///     .require_key(true)
///     .key_format(KeyFormat::Uuid)
///     .wait(Duration::from_secs(2))
///     .policy(Policy::everything())
///     .build()?;
/// # let _ = layer;
/// # Ok::<(), tower_idempotency::ConfigError>(())
/// ```
#[must_use = "a builder does nothing until `build` is called"]
pub struct IdempotencyLayerBuilder<St = MemoryStore> {
    store: St,
    config: Config,
    /// What a profile would otherwise decide.
    chosen: Chosen,
    /// The first value that could not be parsed.
    error: Option<ConfigError>,
}

impl<St> fmt::Debug for IdempotencyLayerBuilder<St> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IdempotencyLayerBuilder")
            .field("config", &self.config)
            .finish_non_exhaustive()
    }
}

impl<St: Store> IdempotencyLayer<St> {
    /// Starts the configuration of a layer over `store`.
    pub fn builder(store: St) -> IdempotencyLayerBuilder<St> {
        IdempotencyLayerBuilder {
            store,
            config: Config::default(),
            chosen: Chosen::default(),
            error: None,
        }
    }
}

impl<St: Store> IdempotencyLayerBuilder<St> {
    /// The guarded methods. Default: `POST` and `PATCH`. Requests of other methods pass through.
    pub fn methods(mut self, methods: impl IntoIterator<Item = Method>) -> Self {
        self.config.methods = methods.into_iter().collect();
        self
    }

    /// Where the key comes from. Default: the header `Idempotency-Key`.
    pub fn key(mut self, source: KeySource) -> Self {
        self.chosen.key = Some(source);
        self
    }

    /// Which spellings of a key are accepted. Default: [`KeyFormat::Any`].
    pub fn key_format(mut self, format: KeyFormat) -> Self {
        self.config.key.format = format;
        self
    }

    /// Bytes of a key at most, after unquoting. Default: 255.
    pub fn max_key_length(mut self, bytes: usize) -> Self {
        self.config.key.max_length = bytes;
        self
    }

    /// Whether a request of a guarded method without a key is refused with `400` problem
    /// `missing-key`. Default: no, it passes through. For [`webhooks`](Self::webhooks): yes.
    pub fn require_key(mut self, required: bool) -> Self {
        self.chosen.require_key = Some(required);
        self
    }

    /// Whose key it is. Default: the value of `Authorization`.
    pub fn scope(mut self, scope: ScopeSource) -> Self {
        self.chosen.scope = Some(scope);
        self
    }

    /// The application's name, as a part of every slot. Default: none.
    ///
    /// Two services, or a gateway and the service behind it, can then share one store and receive
    /// the same key from the same caller without interfering. Changing the name makes the store's
    /// operations unknown to the layer. An empty name is an error when the layer is built.
    ///
    /// ```
    /// use tower_idempotency::{IdempotencyLayer, MemoryStore};
    ///
    /// let store = MemoryStore::new();
    /// let billing = IdempotencyLayer::builder(store.clone()).namespace("billing").build()?;
    /// let shipping = IdempotencyLayer::builder(store).namespace("shipping").build()?;
    /// # let _ = (billing, shipping);
    /// # Ok::<(), tower_idempotency::ConfigError>(())
    /// ```
    pub fn namespace(mut self, application: &str) -> Self {
        self.config.scope.namespace = Some(application.into());
        self
    }

    /// What makes two requests with one key the same. Default: method, path, query and body.
    pub fn fingerprint(mut self, fingerprint: FingerprintSource) -> Self {
        self.chosen.fingerprint = Some(fingerprint);
        self
    }

    /// What is kept of what the handler did. Default: responses with a status of 2xx.
    pub fn policy(mut self, policy: Policy) -> Self {
        self.chosen.policy = Some(policy);
        self
    }

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

    /// Whether the layer guards anything. Default: yes. With `false` every request passes through: for a
    /// switch in your configuration, where `tower::util::option_layer` does not fit because the type of
    /// the response's body differs.
    pub fn enabled(mut self, enabled: bool) -> Self {
        self.config.enabled = enabled;
        self
    }

    /// Requests for which the closure returns `true` pass through untouched, as if they had no key. It
    /// sees the head of the request. Default: none pass.
    ///
    /// ```
    /// use tower_idempotency::{IdempotencyLayer, MemoryStore};
    ///
    /// let layer = IdempotencyLayer::builder(MemoryStore::new())
    ///     .grpc()
    ///     .pass_when(|head| head.uri.path() == "/orders.Orders/Watch")
    ///     .build()?;
    /// # let _ = layer;
    /// # Ok::<(), tower_idempotency::ConfigError>(())
    /// ```
    pub fn pass_when<F>(mut self, passes: F) -> Self
    where
        F: Fn(&Parts) -> bool + Send + Sync + 'static,
    {
        self.config.pass_when = Some(Predicate(Arc::new(passes)));
        self
    }

    /// How long an outcome is kept, from its completion. Default: 24 hours. From 1 ms to 10 years. A
    /// handler can choose another TTL for one response ([`Verdict::StoreFor`](crate::Verdict::StoreFor)).
    pub fn ttl(mut self, ttl: Duration) -> Self {
        self.config.ttl = ttl;
        self
    }

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
    /// handler finds its key all the same, with attempt 1. That a stored record cannot be read, as
    /// when a newer release wrote it, is a failure of the store, too.
    pub fn run_unprotected_when_store_fails(mut self) -> Self {
        self.config.fail_open = true;
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

    /// Reads a stream to its end although its client disconnected, so that the operation is then known
    /// to be done. Default: the stream is dropped, and a retry gets `409` problem `outcome-unknown`. A
    /// stream that is read without its client counts towards [`max_detached`](Self::max_detached).
    pub fn drain_streams(mut self, drain: bool) -> Self {
        self.config.drain_streams = drain;
        self
    }

    /// The header that marks a replay, with the value `true`. Default: `Idempotency-Replayed`.
    pub fn replay_header(mut self, name: &str) -> Self {
        match header_name::parse("replay_header", name) {
            Ok(name) => self.chosen.replay_header = Some(name),
            Err(error) => self.fail(error),
        }
        self
    }

    /// Tells the client in this header until when a retry gets the stored response, as an HTTP date (RFC
    /// 9110, section 5.6.7), for example `Idempotency-Expires`. Default: none.
    pub fn lifetime_header(mut self, name: &str) -> Self {
        match header_name::parse("lifetime_header", name) {
            Ok(name) => self.config.lifetime_header = Some(name),
            Err(error) => self.fail(error),
        }
        self
    }

    /// Changes each replay before it is sent. Default: nothing is changed.
    ///
    /// A record keeps status, headers and body. The extensions of the first response, which outer layers
    /// may look for, are not kept: the closure can put them back from the head of the retry.
    ///
    /// ```
    /// use tower_idempotency::{IdempotencyLayer, MemoryStore};
    ///
    /// #[derive(Clone)]
    /// struct Route(String);
    ///
    /// let layer = IdempotencyLayer::builder(MemoryStore::new())
    ///     .on_replay(|request, response| {
    ///         response.extensions.insert(Route(request.uri.path().to_owned()));
    ///     })
    ///     .build()?;
    /// # let _ = layer;
    /// # Ok::<(), tower_idempotency::ConfigError>(())
    /// ```
    pub fn on_replay<F>(mut self, change: F) -> Self
    where
        F: Fn(&Parts, &mut http::response::Parts) + Send + Sync + 'static,
    {
        self.config.on_replay = Some(ReplayHook(Arc::new(change)));
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

    /// The response headers that are not kept, beside those of the connection (RFC 9110, section
    /// 7.6.1). Default: `Date` and `Set-Cookie`.
    pub fn unreplayed_headers<I>(mut self, names: I) -> Self
    where
        I: IntoIterator,
        I::Item: AsRef<str>,
    {
        self.config.unreplayed.clear();
        for name in names {
            match header_name::parse("unreplayed_headers", name.as_ref()) {
                Ok(name) => self.config.unreplayed.push(name),
                Err(error) => self.fail(error),
            }
        }
        self
    }

    /// Where you publish your idempotency policy, as the draft's section 2.2 demands: the `type` of
    /// each problem is under this URL, and refusals link it. An absolute http or https URL without
    /// a fragment. Default: this crate's documentation.
    ///
    /// It applies to the standard problems only: together with [`stripe`](Self::stripe),
    /// [`grpc`](Self::grpc) or [`problem_response`](Self::problem_response) it is an error of `build`.
    pub fn problem_documentation(mut self, url: &str) -> Self {
        match Rendering::documented(url) {
            Ok(rendering) => self.chosen.documentation = Some(rendering),
            Err(error) => self.fail(error),
        }
        self
    }

    /// Renders refusals in another format: an API's own errors, or gRPC statuses.
    ///
    /// ```
    /// use tower_idempotency::{IdempotencyLayer, MemoryStore};
    ///
    /// let layer = IdempotencyLayer::builder(MemoryStore::new())
    ///     .problem_response(|problem, _request| {
    ///         let body = format!("{}: {}", problem.kind().slug(), problem.detail());
    ///         let mut response = http::Response::new(body.into());
    ///         *response.status_mut() = problem.kind().status();
    ///         response
    ///     })
    ///     .build()?;
    /// # let _ = layer;
    /// # Ok::<(), tower_idempotency::ConfigError>(())
    /// ```
    pub fn problem_response<F>(mut self, render: F) -> Self
    where
        F: Fn(&Problem, &Parts) -> Response<Bytes> + Send + Sync + 'static,
    {
        self.chosen.rendering = Some(Rendering::Closure(Arc::new(render)));
        self
    }

    /// Builds the layer.
    ///
    /// # Errors
    ///
    /// The first option whose value cannot work; [`ConfigError::option`] names it.
    pub fn build(self) -> Result<IdempotencyLayer<St>, ConfigError> {
        if let Some(error) = self.error {
            return Err(error);
        }
        let config = self.chosen.resolve(self.config)?;
        config.validate()?;
        Ok(IdempotencyLayer {
            guard: Arc::new(Guard::new(self.store, config)),
        })
    }

    /// Keeps the first error for `build`.
    fn fail(&mut self, error: ConfigError) {
        self.error.get_or_insert(error);
    }
}
