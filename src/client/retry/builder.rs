//! The settings of a [`RetryPolicy`].

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, HeaderName, StatusCode};
use tower::retry::budget::{Budget, TpsBudget};

use super::backoff::Backoff;
use super::policy::RetryPolicy;
use super::rules::Rules;
use super::transient::EveryError;
use crate::client::lifetime;
use crate::error::ConfigError;
use crate::request::key::IDEMPOTENCY_KEY;

impl RetryPolicy {
    /// The policy with all defaults.
    #[must_use]
    pub fn new() -> Self {
        RetryPolicyBuilder::new().finish()
    }

    /// Starts the configuration of a policy.
    pub fn builder() -> RetryPolicyBuilder {
        RetryPolicyBuilder::new()
    }
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self::new()
    }
}

/// Configures a [`RetryPolicy`]. A setting that cannot work is an error of [`build`](Self::build).
#[must_use]
pub struct RetryPolicyBuilder<C = EveryError> {
    rules: Rules,
    transient: C,
}

impl RetryPolicyBuilder {
    pub(super) fn new() -> Self {
        Self {
            rules: Rules {
                attempts: 16,
                total_time: Duration::from_secs(60),
                backoff: Backoff {
                    base: Duration::from_millis(200),
                    cap: Duration::from_secs(10),
                },
                // Ten retries a second, and one for each five calls, over the last ten seconds.
                budget: Some(Arc::new(TpsBudget::default())),
                key_header: IDEMPOTENCY_KEY,
                key_lifetime: lifetime::DEFAULT,
                every_conflict: false,
                response: None,
            },
            transient: EveryError,
        }
    }
}

impl<C> RetryPolicyBuilder<C> {
    /// Sets how often a request is sent at most in one call, including the first time. Default: 16. With 1 there
    /// is no retry; 0 is an error.
    pub fn attempts(mut self, attempts: u32) -> Self {
        self.rules.attempts = attempts;
        self
    }

    /// Sets how long a call may take in total, including pauses. Default: 60 s. Zero is an error.
    ///
    /// Take more than the server's lease (30 s by this crate's default): after a crash of the server the key
    /// is `409` until the lease has lapsed. [`ClientLayer`](crate::client::ClientLayer) also ends an attempt
    /// that runs into the total time. With [`tower::retry`] itself, only no attempt begins after it.
    pub fn total_time(mut self, total_time: Duration) -> Self {
        self.rules.total_time = total_time;
        self
    }

    /// Sets the upper bounds of the first pause (`base`) and of every pause (`cap`). The bound doubles with each
    /// attempt until it reaches `cap`. The pause is drawn evenly between zero and the bound ("full jitter").
    /// Default: 200 ms and 10 s. A `base` of zero, or above `cap`, is an error.
    pub fn backoff(mut self, base: Duration, cap: Duration) -> Self {
        self.rules.backoff = Backoff { base, cap };
        self
    }

    /// Sets the budget for the retries of all calls together, so that retries do not make an outage worse. Each
    /// call deposits, each retry withdraws. Default: [`TpsBudget::default`], which allows 20 % of the calls of
    /// the last ten seconds, and ten retries a second on top. Several policies may share one budget.
    pub fn budget<B: Budget + Send + Sync + 'static>(mut self, budget: Arc<B>) -> Self {
        self.rules.budget = Some(budget);
        self
    }

    /// Removes the budget. **In an outage every call is then sent as often as [`attempts`](Self::attempts)
    /// allows.** Use it for batch jobs and tests.
    pub fn without_budget(mut self) -> Self {
        self.rules.budget = None;
        self
    }

    /// Sets the header in which the policy looks for a key that was set neither by an
    /// [`Operation`](crate::client::Operation) nor by an
    /// [`IdempotencyKeyLayer`](crate::client::IdempotencyKeyLayer). Default: `Idempotency-Key`.
    pub fn key_header(mut self, name: HeaderName) -> Self {
        self.rules.key_header = name;
        self
    }

    /// Sets how long an operation's key is sent, from the operation's beginning. After that, calls end with
    /// [`Stopped::KeyExpired`](crate::client::Stopped::KeyExpired). Default: 23 hours. Zero is an error.
    ///
    /// Set it shorter than the server keeps keys: an attempt after that would run the operation again. [`Operation::with_lifetime`](crate::client::Operation::with_lifetime) sets it for one
    /// operation. With [`tower::retry`] itself, the first attempt of a call is sent in any case: only
    /// [`ClientLayer`](crate::client::ClientLayer) and the middleware hold it back.
    pub fn key_lifetime(mut self, lifetime: Duration) -> Self {
        self.rules.key_lifetime = lifetime;
        self
    }

    /// Retries every `409`, for servers that send neither `Retry-After` nor `x-should-retry` while an operation
    /// is in flight. By default only a `409` with one of these headers is retried, because waiting does not
    /// resolve an application's own conflicts.
    pub fn retry_every_conflict(mut self) -> Self {
        self.rules.every_conflict = true;
        self
    }

    /// Decides which responses are retried, if you know better than their status, `Retry-After` and
    /// `x-should-retry`. `None` leaves the decision to those. Successes, redirects, `422` and replays are final:
    /// the closure is not called for them.
    ///
    /// ```
    /// use http::StatusCode;
    /// use tower_idempotency::client::RetryPolicy;
    ///
    /// let policy = RetryPolicy::builder()
    ///     .retry_response_if(|status, _headers| match status {
    ///         StatusCode::INTERNAL_SERVER_ERROR => Some(false),
    ///         // With this provider, a new customer appears after a moment.
    ///         StatusCode::NOT_FOUND => Some(true),
    ///         _ => None,
    ///     })
    ///     .build()?;
    /// # let _ = policy;
    /// # Ok::<(), tower_idempotency::ConfigError>(())
    /// ```
    pub fn retry_response_if<F>(mut self, retry: F) -> Self
    where
        F: Fn(StatusCode, &HeaderMap) -> Option<bool> + Send + Sync + 'static,
    {
        self.rules.response = Some(Arc::new(retry));
        self
    }

    /// Decides which errors are retried. Default: all of them. Exclude errors that do not go away, such as a
    /// certificate that is not trusted.
    ///
    /// The closure gets the error of the inner service, and names its type:
    ///
    /// ```
    /// use hyper_util::client::legacy::Error;
    /// use tower_idempotency::client::RetryPolicy;
    ///
    /// // Only if the request cannot have arrived. With a key this is not necessary.
    /// let policy = RetryPolicy::builder().retry_if(|error: &Error| error.is_connect()).build()?;
    /// # let _ = policy;
    /// # Ok::<(), tower_idempotency::ConfigError>(())
    /// ```
    pub fn retry_if<E, F: Fn(&E) -> bool>(self, transient: F) -> RetryPolicyBuilder<F> {
        RetryPolicyBuilder {
            rules: self.rules,
            transient,
        }
    }

    /// Builds the policy.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] names the setting that cannot work.
    pub fn build(self) -> Result<RetryPolicy<C>, ConfigError> {
        let Rules {
            attempts,
            total_time,
            key_lifetime,
            backoff: Backoff { base, cap },
            ..
        } = self.rules;
        if attempts == 0 {
            return Err(ConfigError::new("attempts", "must be at least 1, which means no retry"));
        }
        if total_time.is_zero() {
            return Err(ConfigError::new("total_time", "must be longer than zero"));
        }
        if key_lifetime.is_zero() {
            return Err(ConfigError::new("key_lifetime", "must be longer than zero"));
        }
        if base.is_zero() || base > cap {
            return Err(ConfigError::new(
                "backoff",
                format!("the base ({base:?}) must be longer than zero and at most the cap ({cap:?})"),
            ));
        }
        Ok(self.finish())
    }

    pub(super) fn finish(self) -> RetryPolicy<C> {
        RetryPolicy::by(self.rules, self.transient)
    }
}

impl<C> fmt::Debug for RetryPolicyBuilder<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RetryPolicyBuilder").finish_non_exhaustive()
    }
}
