//! The inputs and results of a decision about an attempt.

use std::time::Duration;

use http::{HeaderMap, StatusCode};
use tokio::time::Instant;

use crate::client::operation::Operation;
use crate::client::stopped::Stopped;

/// The progress of a call.
#[derive(Debug, Clone, Copy)]
pub(in crate::client) struct Call {
    started: Instant,
    /// The number of attempts that have ended.
    ended: u32,
}

impl Call {
    pub(in crate::client) fn new() -> Self {
        Self {
            started: Instant::now(),
            ended: 0,
        }
    }

    pub(super) fn attempt_ends(&mut self) {
        self.ended = self.ended.saturating_add(1);
    }

    pub(in crate::client) fn ended(&self) -> u32 {
        self.ended
    }

    pub(in crate::client) fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }
}

/// Whether a request can be repeated without checking what its first attempt did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::client) enum Repeatable {
    ByKey,
    ByMethod,
    No(Stopped),
}

/// The result of an attempt, as far as the policy needs it.
#[derive(Debug, Clone, Copy)]
pub(in crate::client) enum Seen<'a> {
    Response(StatusCode, &'a HeaderMap),
    /// A response without its body. `transient` is `true` if the next attempt may receive the body.
    HeadAlone {
        status: StatusCode,
        headers: &'a HeaderMap,
        transient: bool,
    },
    /// No response. `transient` is `true` if the next attempt may receive a response.
    Error {
        transient: bool,
    },
}

/// The next step after an attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::client) enum Next {
    /// Return the attempt's result as the result of the call.
    Final,
    /// Send another attempt after this pause.
    Retry(Duration),
    /// Send no further attempt, although the result could be retried.
    Stop(Stopped),
}

impl Next {
    /// Logs the decision, and records it in the operation.
    pub(in crate::client) fn observe(self, operation: Option<&Operation>, call: Call) {
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
                tracing::debug!(target: "tower_idempotency", attempt = call.ended, ?pause, "retrying");
            }
            Self::Stop(reason) => {
                tracing::debug!(target: "tower_idempotency", attempts = call.ended, %reason, "not retried");
            }
        }
    }
}
