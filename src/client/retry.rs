//! The policy: what is tried again, and when.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use http::{Extensions, HeaderMap, HeaderName, Method, Request, Response, StatusCode};
use tokio::time::{Instant, Sleep, sleep};
use tower::retry::Policy;
use tower::retry::budget::Budget;

use super::backoff::Backoff;
use super::key::KeyHeader;
use super::operation::{Operation, Stopped, is_replay};
use super::replay::ReplayableBody;
use super::retry_after::retry_after;

/// What is tried again, and when: exponential backoff with full jitter, within bounds.
///
/// It is the policy of [`ClientLayer`](super::ClientLayer), and one for [`tower::retry`] as it is;
/// [`IdempotencyKeyLayer`](super::IdempotencyKeyLayer) then stands outside the retries. The
/// [module](super) says which results are tried again.
///
/// A server's `Retry-After` (seconds or a date) is waited out, and the jittered pause on top of it,
/// so that clients sent away together do not return together. If it is longer than what is left of
/// the total time, there is no further attempt and no waiting.
///
/// Clones share one budget. Clone the policy, or the client that has it, rather than making another.
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
    /// Of the call that this clone is for; [`tower::retry`] makes one for each.
    call: Call,
}

pub(super) struct Rules {
    pub(super) attempts: u32,
    pub(super) total_time: Duration,
    pub(super) backoff: Backoff,
    pub(super) budget: Option<Arc<dyn Budget + Send + Sync>>,
    pub(super) key_header: HeaderName,
    pub(super) key_lifetime: Duration,
    pub(super) every_conflict: bool,
    pub(super) response: Option<Arc<RetryResponse>>,
}

type RetryResponse = dyn Fn(StatusCode, &HeaderMap) -> Option<bool> + Send + Sync;

/// How far a call has come.
#[derive(Debug, Clone, Copy)]
pub(super) struct Call {
    started: Instant,
    /// Attempts that have ended.
    ended: u32,
}

/// What an attempt came to.
#[derive(Debug, Clone, Copy)]
pub(super) enum Seen<'a> {
    Response(StatusCode, &'a HeaderMap),
    /// A response without its body. `transient` says whether that may be had the next time.
    HeadAlone {
        status: StatusCode,
        headers: &'a HeaderMap,
        transient: bool,
    },
    /// No response. `transient` says whether another attempt may end otherwise.
    Error {
        transient: bool,
    },
}

/// What follows from it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Next {
    /// Nothing: the result is the call's.
    Final,
    /// Another attempt, after that pause.
    Retry(Duration),
    /// Nothing, although the result calls for another attempt.
    Stop(Stopped),
}

/// Whether a request may be repeated without asking what its first attempt did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Repeatable {
    ByKey,
    ByMethod,
    No(Stopped),
}

/// Which errors of a client are worth another attempt. See [`RetryPolicyBuilder::retry_if`](super::RetryPolicyBuilder::retry_if).
pub trait Transient<E> {
    /// Whether another attempt may end otherwise.
    fn is_transient(&self, error: &E) -> bool;
}

/// Every error is worth another attempt: with a key it is safe, and it is bounded.
#[derive(Debug, Clone, Copy, Default)]
pub struct EveryError;

impl<E> Transient<E> for EveryError {
    fn is_transient(&self, _: &E) -> bool {
        true
    }
}

impl<E, F: Fn(&E) -> bool> Transient<E> for F {
    fn is_transient(&self, error: &E) -> bool {
        self(error)
    }
}

impl<C> RetryPolicy<C> {
    pub(super) fn by(rules: Rules, transient: C) -> Self {
        Self {
            rules: Arc::new(rules),
            transient,
            call: Call::new(),
        }
    }

    pub(super) fn total_time(&self) -> Duration {
        self.rules.total_time
    }

    pub(super) fn is_transient<E>(&self, error: &E) -> bool
    where
        C: Transient<E>,
    {
        self.transient.is_transient(error)
    }

    /// A call begins; what it may cost in retries is added to the budget.
    pub(super) fn begin(&self) -> Call {
        if let Some(budget) = &self.rules.budget {
            budget.deposit();
        }
        Call::new()
    }

    /// By its key or its method.
    pub(super) fn repeatable(&self, method: &Method, headers: &HeaderMap, extensions: &Extensions) -> Repeatable {
        if self.has_key(headers, extensions) {
            Repeatable::ByKey
        } else if method.is_idempotent() {
            Repeatable::ByMethod
        } else {
            Repeatable::No(Stopped::NoKey)
        }
    }

    /// What is on the wire counts, not what was meant to be.
    fn has_key(&self, headers: &HeaderMap, extensions: &Extensions) -> bool {
        let has = |name: &HeaderName| {
            headers
                .get(name)
                .is_some_and(|key| !key.as_bytes().trim_ascii().is_empty())
        };
        let layers = extensions.get::<KeyHeader>();
        has(&self.rules.key_header) || layers.is_some_and(|KeyHeader(name)| has(name))
    }

    /// How long the request's key may be sent, if it has one. Without an operation the key is as old as
    /// the call.
    pub(super) fn key_left(&self, call: Call, repeatable: Repeatable, operation: Option<&Operation>) -> Duration {
        let lifetime = self.rules.key_lifetime;
        match (repeatable, operation) {
            (Repeatable::ByMethod | Repeatable::No(Stopped::NoKey), _) => Duration::MAX,
            (_, Some(operation)) => operation.lifetime_left(lifetime),
            (_, None) => lifetime.saturating_sub(call.elapsed()),
        }
    }

    /// The decision. Counts the attempt as ended, and takes a retry from the budget.
    pub(super) fn judge(
        &self,
        call: &mut Call,
        repeatable: Repeatable,
        operation: Option<&Operation>,
        seen: Seen<'_>,
    ) -> Next {
        call.ended = call.ended.saturating_add(1);
        let asked = match seen {
            Seen::Error { transient: false } => return Next::Final,
            Seen::Error { transient: true } => None,
            Seen::Response(status, headers) | Seen::HeadAlone { status, headers, .. }
                if self.rules.calls_for_retry(status, headers) =>
            {
                retry_after(headers)
            }
            // What was done, for want of the answer; a refusal needs none.
            Seen::HeadAlone {
                status,
                transient: true,
                ..
            } if status.is_success() => None,
            Seen::Response(..) | Seen::HeadAlone { .. } => return Next::Final,
        };
        if let Repeatable::No(reason) = repeatable {
            return Next::Stop(reason);
        }
        if call.ended >= self.rules.attempts {
            return Next::Stop(Stopped::Attempts);
        }
        let pause = asked
            .unwrap_or_default()
            .saturating_add(self.rules.backoff.pause(call.ended));
        let left = self.rules.total_time.saturating_sub(call.started.elapsed());
        let key_left = self.key_left(*call, repeatable, operation);
        // Of two bounds the nearer one is said.
        if pause >= key_left && key_left < left {
            return Next::Stop(Stopped::KeyExpired);
        }
        if let Some(wait) = asked
            && wait >= left
        {
            return Next::Stop(Stopped::RetryAfter(wait));
        }
        if pause >= left {
            return Next::Stop(Stopped::TotalTime);
        }
        // Last, so that nothing is taken for a retry that will not be.
        match &self.rules.budget {
            Some(budget) if !budget.withdraw() => Next::Stop(Stopped::Budget),
            _ => Next::Retry(pause),
        }
    }
}

impl Rules {
    fn calls_for_retry(&self, status: StatusCode, headers: &HeaderMap) -> bool {
        if status == StatusCode::UNPROCESSABLE_ENTITY || !(status.is_client_error() || status.is_server_error()) {
            return false;
        }
        // It would be the same the next time: this server keeps failures too.
        if is_replay(headers) {
            return false;
        }
        let own = self.response.as_ref().and_then(|retry| retry(status, headers));
        own.or_else(|| should_retry(headers)).unwrap_or(match status {
            StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_EARLY | StatusCode::TOO_MANY_REQUESTS => true,
            // An application's own conflicts do not pass, and nor do tombstones. Who says when to
            // come back says that it does.
            StatusCode::CONFLICT => self.every_conflict || headers.contains_key(http::header::RETRY_AFTER),
            other => other.is_server_error() && !is_permanent(other),
        })
    }
}

/// Whether another attempt cannot help: the server cannot handle the request, or a person has to act
/// first. Unknown statuses are as 500 (RFC 9110, section 15), which may pass.
fn is_permanent(status: StatusCode) -> bool {
    matches!(
        status,
        // No resource of the server supports the method (RFC 9110, section 15.6.2).
        StatusCode::NOT_IMPLEMENTED
            // The server does not support the version of HTTP (RFC 9110, section 15.6.6).
            | StatusCode::HTTP_VERSION_NOT_SUPPORTED
            // The server's configuration is wrong (RFC 2295, section 8.1).
            | StatusCode::VARIANT_ALSO_NEGOTIATES
            // "MUST NOT be repeated until it is requested by a separate user action" (RFC 4918, section 11.5).
            | StatusCode::INSUFFICIENT_STORAGE
            // The resources refer to each other endlessly (RFC 5842, section 7.2).
            | StatusCode::LOOP_DETECTED
            // The request lacks an extension that the resource needs (RFC 2774, section 7).
            | StatusCode::NOT_EXTENDED
            // The network answers, and wants a login (RFC 6585, section 6).
            | StatusCode::NETWORK_AUTHENTICATION_REQUIRED
    )
}

/// What the server says itself, in the header of SDKs made with Stainless or in Stripe's.
fn should_retry(headers: &HeaderMap) -> Option<bool> {
    let said = |name| match headers.get(name)?.as_bytes() {
        b"true" => Some(true),
        b"false" => Some(false),
        _ => None,
    };
    said("x-should-retry").or_else(|| said("stripe-should-retry"))
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

    /// Called before each attempt: by the client's own policy before the first, which begins a call
    /// of every clone that follows; by that clone from then on.
    fn clone_request(&mut self, request: &Request<B>) -> Option<Request<B>> {
        if self.call.ended == 0 {
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

/// The same request once more, if its body can be had again.
pub(super) fn replay<B: ReplayableBody>(request: &Request<B>) -> Option<Request<B>> {
    let mut again = Request::new(request.body().replay()?);
    *again.method_mut() = request.method().clone();
    *again.uri_mut() = request.uri().clone();
    *again.version_mut() = request.version();
    *again.headers_mut() = request.headers().clone();
    *again.extensions_mut() = request.extensions().clone();
    Some(again)
}

impl Next {
    /// Says it, to the log and to who holds the operation.
    pub(super) fn observe(self, operation: Option<&Operation>, call: Call) {
        let stopped = match self {
            Self::Stop(reason) => Some(reason),
            Self::Final | Self::Retry(_) => None,
        };
        if let Some(operation) = operation {
            operation.stop(stopped);
        }
        match self {
            Self::Final => {}
            Self::Retry(pause) => {
                tracing::debug!(target: "tower_idempotency", attempt = call.ended, ?pause, "trying again");
            }
            Self::Stop(reason) => {
                tracing::debug!(target: "tower_idempotency", attempts = call.ended, %reason, "not tried again");
            }
        }
    }
}

impl Call {
    pub(super) fn new() -> Self {
        Self {
            started: Instant::now(),
            ended: 0,
        }
    }

    pub(super) fn ended(&self) -> u32 {
        self.ended
    }

    pub(super) fn elapsed(&self) -> Duration {
        self.started.elapsed()
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
