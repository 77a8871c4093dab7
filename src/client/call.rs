//! The story of one call: attempts, pauses, and the one result. Both clients tell it.

use std::time::Duration;

use bytes::Bytes;
use http::Response;
use http_body::Body;
use http_body_util::Full;
use tokio::time::sleep;

use super::attempt::{AttemptError, whole};
use super::error::CallError;
use super::operation::{Operation, Stopped};
use super::retry::{Next, Repeatable, RetryPolicy, Seen, Transient};
use crate::error::{BoxError, ConfigError};

/// What bounds a call.
#[derive(Debug, Clone)]
pub(super) struct Limits<C> {
    pub(super) policy: RetryPolicy<C>,
    /// Of each attempt, to the last byte of its response.
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
            return Err(ConfigError::new("attempt_time", "it must be longer than nothing"));
        }
        Ok(self)
    }
}

/// Sends the request until its result is final or a bound is reached.
///
/// `replay` makes the same request once more, `send` sends one.
pub(super) async fn call<Req, C, B, E, F>(
    limits: &Limits<C>,
    operation: &Operation,
    repeatable: Repeatable,
    request: Req,
    replay: impl Fn(&Req) -> Option<Req>,
    mut send: impl FnMut(Req) -> F,
) -> Result<Response<Full<Bytes>>, CallError>
where
    C: Transient<E>,
    B: Body<Error: Into<BoxError>>,
    E: Into<BoxError>,
    F: Future<Output = Result<Response<B>, E>>,
{
    let mut call = limits.policy.begin();
    let mut last_response = None;
    let mut request = request;
    loop {
        let again = replay(&request);
        let repeatable = match again {
            Some(_) => repeatable,
            None => Repeatable::No(Stopped::BodyNotReplayable),
        };
        operation.attempt_begins();
        let left = limits.policy.total_time().saturating_sub(call.elapsed());
        let time = limits.attempt_time.min(left);
        let mut result = whole(send(request), time, limits.max_response_body).await;

        if let Ok(response) = &mut result {
            operation.answered(response.headers());
            response.extensions_mut().insert(operation.clone());
        }
        let next = limits.policy.judge(&mut call, repeatable, limits.seen(&result));
        next.observe(Some(operation), call);
        let stopped = match (next, again) {
            (Next::Retry(pause), Some(again)) => {
                last_response = result.ok().or(last_response);
                sleep(pause).await;
                request = again;
                continue;
            }
            (Next::Stop(reason), _) => Some(reason),
            (Next::Final | Next::Retry(_), _) => None,
        };
        return match result {
            Ok(response) if stopped.is_none() => Ok(response),
            Ok(response) => Err(CallError::new(
                operation,
                call,
                stopped,
                Some(response),
                None::<AttemptError<E>>,
            )),
            Err(error) => Err(CallError::new(operation, call, stopped, last_response, Some(error))),
        };
    }
}

impl<C> Limits<C> {
    fn seen<'r, E>(&self, result: &'r Result<Response<Full<Bytes>>, AttemptError<E>>) -> Seen<'r>
    where
        C: Transient<E>,
    {
        let transient = match result {
            Ok(response) => return Seen::Response(response.status(), response.headers()),
            Err(AttemptError::Client(error)) => self.policy.is_transient(error),
            Err(AttemptError::NoResponse(_) | AttemptError::Endless(..) | AttemptError::BrokenOff(..)) => true,
            // The next one would be as large.
            Err(AttemptError::TooLarge(..)) => false,
        };
        Seen::Error { transient }
    }
}
