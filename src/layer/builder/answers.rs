//! Options for responses: which responses are stored, how long they are kept, and the form in which
//! clients receive them.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::Response;
use http::request::Parts;

use super::IdempotencyLayerBuilder;
use crate::answer::{Policy, Problem, Rendering};
use crate::request::header_name;
use crate::run::config::ReplayHook;
use crate::store::Store;

impl<St: Store> IdempotencyLayerBuilder<St> {
    /// Sets which responses are stored. Default: responses with a status of 2xx or 303.
    pub fn policy(mut self, policy: Policy) -> Self {
        self.chosen.policy = Some(policy);
        self
    }

    /// Sets how long an outcome is kept after the operation completes. Default: 24 hours. Range: 1
    /// ms to 10 years. A handler can choose a different TTL for one response
    /// ([`Verdict::StoreFor`](crate::Verdict::StoreFor)).
    pub fn ttl(mut self, ttl: Duration) -> Self {
        self.config.ttl = ttl;
        self
    }

    /// Sets the name of the header that marks a replay. The header's value is `true`. Default:
    /// `Idempotency-Replayed`.
    pub fn replay_header(mut self, name: &str) -> Self {
        match header_name::parse("replay_header", name) {
            Ok(name) => self.chosen.replay_header = Some(name),
            Err(error) => self.fail(error),
        }
        self
    }

    /// Sets the response headers that are not stored, in addition to the connection headers (RFC
    /// 9110, section 7.6.1). Default: `Date` and `Set-Cookie`.
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

    /// Sets the name of a response header that contains the time at which the stored response
    /// expires, for example `Idempotency-Expires`. The value is an HTTP date (RFC 9110, section
    /// 5.6.7). Default: none.
    pub fn lifetime_header(mut self, name: &str) -> Self {
        match header_name::parse("lifetime_header", name) {
            Ok(name) => self.config.lifetime_header = Some(name),
            Err(error) => self.fail(error),
        }
        self
    }

    /// Sets a closure that changes each replay before it is sent. Default: no closure.
    ///
    /// A record contains the status, headers and body. It does not contain the first response's
    /// extensions, which outer layers may need. The closure can restore the extensions from the
    /// head of the retry.
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

    /// Reads a stream to its end even if its client disconnects, so the layer can record that the
    /// operation completed. By default, the stream is dropped when its client disconnects, and a
    /// retry gets `409` problem `outcome-unknown`. A stream that is read without its client counts
    /// toward [`max_detached`](Self::max_detached). This option cannot be combined with
    /// [`cancel_on_disconnect`](Self::cancel_on_disconnect).
    pub fn drain_streams(mut self, drain: bool) -> Self {
        self.config.drain_streams = drain;
        self
    }

    /// Sets the URL at which you publish your idempotency policy, as section 2.2 of the draft
    /// requires. The `type` of each problem begins with this URL, and refusals link to it. The URL
    /// must be an absolute http or https URL without a fragment. Default: this crate's
    /// documentation.
    ///
    /// This option applies only to the standard problems. If you combine it with
    /// [`stripe`](Self::stripe), [`grpc`](Self::grpc) or
    /// [`problem_response`](Self::problem_response), `build` returns an error.
    pub fn problem_documentation(mut self, url: &str) -> Self {
        match Rendering::documented(url) {
            Ok(rendering) => self.chosen.documentation = Some(rendering),
            Err(error) => self.fail(error),
        }
        self
    }

    /// Renders refusals in a different format, such as your API's own error format.
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
}
