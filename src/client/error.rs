//! The error of a call without a final response.

use std::error::Error as StdError;
use std::fmt;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Response, StatusCode};
use http_body_util::Full;

use super::attempt::{AttemptError, BodyError};
use super::last::Last;
use super::operation::Operation;
use super::retry::Call;
use super::stopped::Stopped;
use crate::error::BoxError;

/// The error of a call that ended without a final response.
///
/// This error reports how the last attempt ended and why no further attempt was made. It also
/// contains the last response. The operation may still have taken effect. To find out, repeat the
/// call with the same [`operation`](Self::operation), later or from a different process. If you use
/// a new operation, the effect could happen twice.
///
/// ```
/// use tower_idempotency::client::{CallError, Stopped};
///
/// fn report(error: &CallError) -> String {
///     match (error.stopped(), error.last_response()) {
///         (Some(Stopped::RetryAfter(wait)), _) => format!("try again in {wait:?}"),
///         (_, Some(response)) => format!("the server says {}", response.status()),
///         (_, None) => error.to_string(),
///     }
/// }
/// # let _ = report;
/// ```
#[derive(Debug)]
pub struct CallError(Box<Inner>);

struct Inner {
    operation: Operation,
    attempts: u32,
    elapsed: Duration,
    stopped: Option<Stopped>,
    last: Last,
    /// The failure of the last attempt. `None` if the attempt received a response.
    failure: Option<String>,
    timed_out: bool,
    source: Option<BoxError>,
}

impl CallError {
    pub(super) fn new<E: Into<BoxError>>(
        operation: &Operation,
        call: Call,
        stopped: Option<Stopped>,
        last: Last,
        cause: Option<AttemptError<E>>,
    ) -> Self {
        let failure = cause.as_ref().map(ToString::to_string);
        let timed_out = matches!(
            cause,
            Some(AttemptError::NoResponse(_) | AttemptError::Body(_, BodyError::Endless(_)))
        );
        let source = match cause {
            Some(AttemptError::Client(error)) => Some(error.into()),
            Some(AttemptError::Body(_, BodyError::BrokenOff(error))) => Some(error),
            _ => None,
        };
        Self(Box::new(Inner {
            operation: operation.clone(),
            attempts: call.ended(),
            elapsed: call.elapsed(),
            stopped,
            last,
            failure,
            timed_out,
            source,
        }))
    }

    /// Creates the error for a client that was not ready for a call.
    pub(super) fn not_ready(error: impl Into<BoxError>) -> Self {
        let cause = AttemptError::Client(error);
        Self::new(&Operation::new(), Call::new(), None, Last::default(), Some(cause))
    }

    /// This call's operation. To retry the call, use the operation's key.
    #[must_use]
    pub fn operation(&self) -> &Operation {
        &self.0.operation
    }

    /// The number of times that the request was sent in this call.
    #[must_use]
    pub fn attempts(&self) -> u32 {
        self.0.attempts
    }

    /// The time that the call took, including pauses.
    #[must_use]
    pub fn elapsed(&self) -> Duration {
        self.0.elapsed
    }

    /// The reason why no further attempt was made. `None` if another attempt could not have helped:
    /// the response was too large, or the error was not transient.
    #[must_use]
    pub fn stopped(&self) -> Option<Stopped> {
        self.0.stopped
    }

    /// Whether the last attempt timed out.
    #[must_use]
    pub fn is_timeout(&self) -> bool {
        self.0.timed_out
    }

    /// The last complete response from any attempt.
    #[must_use]
    pub fn last_response(&self) -> Option<&Response<Full<Bytes>>> {
        self.0.last.response.as_ref()
    }

    /// Converts this error into the last complete response, if any.
    #[must_use]
    pub fn into_last_response(self) -> Option<Response<Full<Bytes>>> {
        self.0.last.response
    }

    /// The last response status that arrived. The body of that response may have ended early, taken
    /// too long to arrive, or been too large. If the status indicates success, the operation
    /// has completed, but its full response is unknown.
    #[must_use]
    pub fn last_status(&self) -> Option<StatusCode> {
        self.last_headers_and_status().map(|(status, _)| status)
    }

    /// The headers that arrived with [`last_status`](Self::last_status), such as `Location`.
    #[must_use]
    pub fn last_headers(&self) -> Option<&HeaderMap> {
        self.last_headers_and_status().map(|(_, headers)| headers)
    }

    fn last_headers_and_status(&self) -> Option<(StatusCode, &HeaderMap)> {
        let Last { response, head } = &self.0.last;
        match (head, response) {
            (Some(head), _) => Some((head.status(), head.headers())),
            (None, Some(response)) => Some((response.status(), response.headers())),
            (None, None) => None,
        }
    }
}

impl fmt::Display for CallError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Inner {
            attempts,
            elapsed,
            stopped,
            last,
            failure,
            ..
        } = &*self.0;
        let attempts_word = if *attempts == 1 { "attempt" } else { "attempts" };
        write!(
            f,
            "no final answer after {attempts} {attempts_word} in {:.1} s",
            elapsed.as_secs_f64()
        )?;
        if let Some(stopped) = stopped {
            write!(f, ": {stopped}")?;
        }
        if let Some(failure) = failure {
            write!(f, "; last attempt: {failure}")?;
        }
        if let Some(response) = &last.response {
            write!(f, "; last response: {}", response.status())?;
        }
        Ok(())
    }
}

impl StdError for CallError {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.0.source.as_deref().map(|source| source as _)
    }
}

impl fmt::Debug for Inner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The response is left out because its body and headers may contain data that must not be
        // logged.
        f.debug_struct("Inner")
            .field("operation", &self.operation)
            .field("attempts", &self.attempts)
            .field("elapsed", &self.elapsed)
            .field("stopped", &self.stopped)
            .field("last_status", &self.last.response.as_ref().map(Response::status))
            .field("failure", &self.failure)
            .field("source", &self.source)
            .finish_non_exhaustive()
    }
}
