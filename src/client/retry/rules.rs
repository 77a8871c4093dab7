//! The rules of a policy, and the decisions that follow from them.

use std::sync::Arc;
use std::time::Duration;

use http::{Extensions, HeaderMap, HeaderName, Method, StatusCode};
use tower::retry::budget::Budget;

use super::backoff::Backoff;
use super::decision::{Call, Next, Repeatable, Seen};
use super::retry_after::retry_after;
use crate::client::key::KeyHeader;
use crate::client::operation::{Operation, is_replay};
use crate::client::stopped::Stopped;

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

impl Rules {
    /// Begins a call, and makes its deposit in the budget.
    pub(super) fn begin(&self) -> Call {
        if let Some(budget) = &self.budget {
            budget.deposit();
        }
        Call::new()
    }

    /// Returns whether a request can be repeated: it has a key, or its method is idempotent.
    pub(super) fn repeatable(&self, method: &Method, headers: &HeaderMap, extensions: &Extensions) -> Repeatable {
        if self.has_key(headers, extensions) {
            Repeatable::ByKey
        } else if method.is_idempotent() {
            Repeatable::ByMethod
        } else {
            Repeatable::No(Stopped::NoKey)
        }
    }

    /// Returns whether the request has a key. Only the headers that were sent matter, not the
    /// intended key.
    fn has_key(&self, headers: &HeaderMap, extensions: &Extensions) -> bool {
        let has = |name: &HeaderName| {
            headers
                .get(name)
                .is_some_and(|key| !key.as_bytes().trim_ascii().is_empty())
        };
        let layers = extensions.get::<KeyHeader>();
        has(&self.key_header) || layers.is_some_and(|KeyHeader(name)| has(name))
    }

    /// Returns how long the request's key can still be sent, if the request has a key. Without an
    /// operation, the key is as old as the call.
    pub(super) fn key_left(&self, call: Call, repeatable: Repeatable, operation: Option<&Operation>) -> Duration {
        let lifetime = self.key_lifetime;
        match (repeatable, operation) {
            (Repeatable::ByMethod | Repeatable::No(Stopped::NoKey), _) => Duration::MAX,
            (_, Some(operation)) => operation.lifetime_left(lifetime),
            (_, None) => lifetime.saturating_sub(call.elapsed()),
        }
    }

    /// Decides the next step after an attempt, and records that the attempt has ended. If the
    /// request is retried, withdraws the retry from the budget.
    pub(super) fn judge(
        &self,
        call: &mut Call,
        repeatable: Repeatable,
        operation: Option<&Operation>,
        seen: Seen<'_>,
    ) -> Next {
        call.attempt_ends();
        let asked = match seen {
            Seen::Error { transient: false } => return Next::Final,
            Seen::Error { transient: true } => None,
            Seen::Response(status, headers) | Seen::HeadAlone { status, headers, .. }
                if self.calls_for_retry(status, headers) =>
            {
                retry_after(headers)
            }
            // The operation has completed, but the body of its response is missing. For a refusal,
            // the head is enough.
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
        if call.ended() >= self.attempts {
            return Next::Stop(Stopped::Attempts);
        }
        let pause = asked
            .unwrap_or_default()
            .saturating_add(self.backoff.pause(call.ended()));
        let left = self.total_time.saturating_sub(call.elapsed());
        let key_left = self.key_left(*call, repeatable, operation);
        // If both limits apply, report the one that is reached first.
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
        // Check the budget last, so that nothing is withdrawn for a retry that does not happen.
        match &self.budget {
            Some(budget) if !budget.withdraw() => Next::Stop(Stopped::Budget),
            _ => Next::Retry(pause),
        }
    }

    fn calls_for_retry(&self, status: StatusCode, headers: &HeaderMap) -> bool {
        if status == StatusCode::UNPROCESSABLE_ENTITY || !(status.is_client_error() || status.is_server_error()) {
            return false;
        }
        // The next response would be the same: this server also stores failures.
        if is_replay(headers) {
            return false;
        }
        let own = self.response.as_ref().and_then(|retry| retry(status, headers));
        own.or_else(|| should_retry(headers)).unwrap_or(match status {
            StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_EARLY | StatusCode::TOO_MANY_REQUESTS => true,
            // Waiting does not help with an application's own conflict or with a tombstone. If the
            // response contains `Retry-After`, the conflict is temporary.
            StatusCode::CONFLICT => self.every_conflict || headers.contains_key(http::header::RETRY_AFTER),
            other => other.is_server_error() && !is_permanent(other),
        })
    }
}

/// Returns `true` if another attempt cannot help: the server cannot handle the request, or a person
/// must act first. Unknown statuses are treated as 500 (RFC 9110, section 15), which may be
/// temporary.
fn is_permanent(status: StatusCode) -> bool {
    matches!(
        status,
        // No resource on the server supports the method (RFC 9110, section 15.6.2).
        StatusCode::NOT_IMPLEMENTED
            // The server does not support the HTTP version (RFC 9110, section 15.6.6).
            | StatusCode::HTTP_VERSION_NOT_SUPPORTED
            // The server's configuration is wrong (RFC 2295, section 8.1).
            | StatusCode::VARIANT_ALSO_NEGOTIATES
            // "MUST NOT be repeated until it is requested by a separate user action" (RFC 4918,
            // section 11.5).
            | StatusCode::INSUFFICIENT_STORAGE
            // The resources refer to each other endlessly (RFC 5842, section 7.2).
            | StatusCode::LOOP_DETECTED
            // The request lacks an extension that the resource needs (RFC 2774, section 7).
            | StatusCode::NOT_EXTENDED
            // The response comes from the network, which requires a login (RFC 6585, section 6).
            | StatusCode::NETWORK_AUTHENTICATION_REQUIRED
    )
}

/// Returns the server's own decision, from Stripe's header or from the header that
/// Stainless-generated SDKs use.
fn should_retry(headers: &HeaderMap) -> Option<bool> {
    let said = |name| match headers.get(name)?.as_bytes() {
        b"true" => Some(true),
        b"false" => Some(false),
        _ => None,
    };
    said("x-should-retry").or_else(|| said("stripe-should-retry"))
}
