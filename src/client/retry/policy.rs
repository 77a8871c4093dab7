//! The policy, for this crate's clients and for `tower::retry`.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use http::{Extensions, HeaderMap, Method, Request, Response};
use tokio::time::{Sleep, sleep};
use tower::retry::Policy;

use super::decision::{Call, Next, Repeatable, Seen};
use super::rules::Rules;
use super::transient::{EveryError, Transient};
use crate::client::operation::Operation;
use crate::client::replay::{ReplayableBody, replay};
use crate::client::stopped::Stopped;

/// Decides which results are retried, and when. The policy uses exponential backoff with full
/// jitter, within limits.
///
/// [`ClientLayer`](crate::client::ClientLayer) uses this policy. You can also pass the policy to
/// [`tower::retry`]. In that case, put [`IdempotencyKeyLayer`](crate::client::IdempotencyKeyLayer)
/// outside the retries. The [module documentation](crate::client) lists the results that are
/// retried.
///
/// If the server sends `Retry-After` (seconds or a date), the policy waits for that time and then
/// for the jittered pause, so that clients that were refused at the same time do not retry at the
/// same time. If `Retry-After` is longer than the remaining total time, the call ends immediately.
///
/// Clones share one budget. Clone the policy, or the client that contains it, instead of building a
/// new policy.
///
/// ```
/// use std::time::Duration;
/// use tower_idempotency::client::RetryPolicy;
///
/// let policy = RetryPolicy::builder()
///     .attempts(5)
///     .total_time(Duration::from_secs(30))
///     .backoff(Duration::from_millis(100), Duration::from_secs(5))
///     .build()?;
/// # let _ = policy;
/// # Ok::<(), tower_idempotency::ConfigError>(())
/// ```
#[derive(Clone)]
pub struct RetryPolicy<C = EveryError> {
    rules: Arc<Rules>,
    transient: C,
    /// The state of the call to which this clone belongs. [`tower::retry`] clones the policy for
    /// each call.
    call: Call,
}

impl<C> RetryPolicy<C> {
    pub(super) fn by(rules: Rules, transient: C) -> Self {
        Self {
            rules: Arc::new(rules),
            transient,
            call: Call::new(),
        }
    }

    pub(in crate::client) fn total_time(&self) -> Duration {
        self.rules.total_time
    }

    pub(in crate::client) fn is_transient<E>(&self, error: &E) -> bool
    where
        C: Transient<E>,
    {
        self.transient.is_transient(error)
    }

    pub(in crate::client) fn begin(&self) -> Call {
        self.rules.begin()
    }

    pub(in crate::client) fn repeatable(
        &self,
        method: &Method,
        headers: &HeaderMap,
        extensions: &Extensions,
    ) -> Repeatable {
        self.rules.repeatable(method, headers, extensions)
    }

    pub(in crate::client) fn key_left(
        &self,
        call: Call,
        repeatable: Repeatable,
        operation: Option<&Operation>,
    ) -> Duration {
        self.rules.key_left(call, repeatable, operation)
    }

    pub(in crate::client) fn judge(
        &self,
        call: &mut Call,
        repeatable: Repeatable,
        operation: Option<&Operation>,
        seen: Seen<'_>,
    ) -> Next {
        self.rules.judge(call, repeatable, operation, seen)
    }
}

impl<C, B, R, E> Policy<Request<B>, Response<R>, E> for RetryPolicy<C>
where
    B: ReplayableBody,
    C: Transient<E>,
{
    type Future = Sleep;

    fn retry(&mut self, request: &mut Request<B>, result: &mut Result<Response<R>, E>) -> Option<Sleep> {
        let operation = request.extensions().get::<Operation>();
        let repeatable = self.repeatable(request.method(), request.headers(), request.extensions());
        let seen = match result {
            Ok(response) => {
                if let Some(operation) = operation {
                    operation.told_lifetime(response.headers());
                }
                Seen::Response(response.status(), response.headers())
            }
            Err(error) => Seen::Error {
                transient: self.transient.is_transient(error),
            },
        };
        let mut call = self.call;
        let next = self.judge(&mut call, repeatable, operation, seen);
        self.call = call;
        next.observe(operation, call);
        match next {
            Next::Retry(pause) => Some(sleep(pause)),
            Next::Final | Next::Stop(_) => None,
        }
    }

    /// `tower::retry` calls this method before each attempt. Before the first attempt, the method
    /// is called on the client's own policy, and begins the call for the clone that is created
    /// next. Before each later attempt, the method is called on that clone.
    fn clone_request(&mut self, request: &Request<B>) -> Option<Request<B>> {
        if self.call.ended() == 0 {
            self.call = self.begin();
        }
        let again = replay(request);
        if let Some(operation) = request.extensions().get::<Operation>() {
            operation.attempt_begins();
            operation.stop(again.is_none().then_some(Stopped::BodyNotReplayable));
        }
        again
    }
}

impl<C> fmt::Debug for RetryPolicy<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RetryPolicy")
            .field("attempts", &self.rules.attempts)
            .field("total_time", &self.rules.total_time)
            .field("backoff", &self.rules.backoff)
            .field("has_budget", &self.rules.budget.is_some())
            .field("key_header", &self.rules.key_header)
            .field("key_lifetime", &self.rules.key_lifetime)
            .field("every_conflict", &self.rules.every_conflict)
            .finish_non_exhaustive()
    }
}
