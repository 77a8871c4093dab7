//! One call: its attempts, its pauses and its result. Both clients use this module.

use std::fmt;
use std::time::Duration;

use bytes::Bytes;
use http::Response;
use http_body::Body;
use http_body_util::Full;
use tokio::time::sleep;

use super::attempt::{AttemptError, BodyError, whole};
use super::error::CallError;
use super::last::Last;
use super::operation::Operation;
use super::retry::{Next, Repeatable, RetryPolicy, Seen};
use super::stopped::Stopped;
use crate::error::{BoxError, ConfigError};

/// The limits that apply to a call.
#[derive(Clone)]
pub(super) struct Limits<C> {
    pub(super) policy: RetryPolicy<C>,
    /// The time limit for each attempt, up to the last byte of its response.
    pub(super) attempt_time: Duration,
    pub(super) max_response_body: usize,
}

impl<C> Limits<C> {
    pub(super) fn new(policy: RetryPolicy<C>) -> Self {
        Self {
            policy,
            attempt_time: Duration::from_secs(20),
            max_response_body: 2 * 1024 * 1024,
        }
    }

    pub(super) fn validated(self) -> Result<Self, ConfigError> {
        if self.attempt_time.is_zero() {
            return Err(ConfigError::new("attempt_time", "must be longer than zero"));
        }
        Ok(self)
    }
}

/// Sends the request until its result is final or the call reaches a limit.
///
/// `replay` returns a copy of the request. `is_transient` returns whether another attempt may avoid
/// the error. `send` sends a request.
pub(super) async fn call<Req, C, B, E, F>(
    limits: &Limits<C>,
    operation: &Operation,
    repeatable: Repeatable,
    request: Req,
    replay: impl Fn(&Req) -> Option<Req>,
    is_transient: impl Fn(&E) -> bool,
    mut send: impl FnMut(Req) -> F,
) -> Result<Response<Full<Bytes>>, CallError>
where
    B: Body<Error: Into<BoxError>>,
    E: Into<BoxError>,
    F: Future<Output = Result<Response<B>, E>>,
{
    let mut call = limits.policy.begin();
    operation.stop(None);
    let mut last = Last::default();
    let mut failure = None;
    let mut request = request;
    loop {
        let left = limits.policy.total_time().saturating_sub(call.elapsed());
        // The pause took longer than planned, or the key was too old from the start.
        let stopped = if limits.policy.key_left(call, repeatable, Some(operation)).is_zero() {
            Some(Stopped::KeyExpired)
        } else if left.is_zero() {
            // A request that is sent now would time out immediately.
            Some(Stopped::TotalTime)
        } else {
            None
        };
        if stopped.is_some() {
            operation.stop(stopped);
            return Err(CallError::new(operation, call, stopped, last, failure));
        }
        let again = replay(&request);
        let repeatable = match again {
            Some(_) => repeatable,
            None => Repeatable::No(Stopped::BodyNotReplayable),
        };
        operation.attempt_begins();
        let time = limits.attempt_time.min(left);
        let mut result = whole(send(request), time, limits.max_response_body).await;

        match &mut result {
            Ok(response) => {
                operation.answered(response.headers());
                response.extensions_mut().insert(operation.clone());
            }
            Err(AttemptError::Body(head, _)) => operation.answered(head.headers()),
            Err(_) => operation.unanswered(),
        }
        let seen = seen(&result, &is_transient);
        let next = limits.policy.judge(&mut call, repeatable, Some(operation), seen);
        next.observe(Some(operation), call);
        let stopped = match (next, again) {
            (Next::Retry(pause), Some(again)) => {
                failure = last.keep(result);
                sleep(pause).await;
                request = again;
                continue;
            }
            (Next::Stop(reason), _) => Some(reason),
            (Next::Final | Next::Retry(_), _) => None,
        };
        return match result {
            Ok(response) if stopped.is_none() => Ok(response),
            result => {
                let error = last.keep(result);
                Err(CallError::new(operation, call, stopped, last, error))
            }
        };
    }
}

fn seen<'r, E>(
    result: &'r Result<Response<Full<Bytes>>, AttemptError<E>>,
    is_transient: impl Fn(&E) -> bool,
) -> Seen<'r> {
    match result {
        Ok(response) => Seen::Response(response.status(), response.headers()),
        Err(AttemptError::Client(error)) => Seen::Error {
            transient: is_transient(error),
        },
        Err(AttemptError::NoResponse(_)) => Seen::Error { transient: true },
        Err(AttemptError::Body(head, error)) => Seen::HeadAlone {
            status: head.status(),
            headers: head.headers(),
            // The body would be just as large in the next attempt.
            transient: !matches!(error, BodyError::TooLarge(_)),
        },
    }
}

impl<C> fmt::Debug for Limits<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Limits")
            .field("policy", &self.policy)
            .field("attempt_time", &self.attempt_time)
            .field("max_response_body", &self.max_response_body)
            .finish()
    }
}
