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
    /// Creates a policy with the default settings.
    #[must_use]
    pub fn new() -> Self {
        RetryPolicyBuilder::new().finish()
    }

    /// Returns a builder for a policy.
    pub fn builder() -> RetryPolicyBuilder {
        RetryPolicyBuilder::new()
    }
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self::new()
    }
}

/// Configures a [`RetryPolicy`]. [`build`](Self::build) returns an error if a setting is invalid.
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
                // Ten retries per second, and one retry for every five calls, over the last ten
                // seconds.
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
    /// Sets the maximum number of times that a request is sent in one call, including the first
    /// time. Default: 16. With 1, requests are never retried. 0 is an error.
    pub fn attempts(mut self, attempts: u32) -> Self {
        self.rules.attempts = attempts;
        self
    }

    /// Sets how long a call can take in total, including pauses. Default: 60 s. Zero is an error.
    ///
    /// Use a time that is longer than the server's lease (30 s by this crate's default). After a
    /// server crash, requests with the key get `409` until the lease has lapsed.
    /// [`ClientLayer`](crate::client::ClientLayer) also cancels a running attempt when the total
    /// time has elapsed. If you use [`tower::retry`] directly, no attempt begins after the total
    /// time, but a running attempt is not cancelled.
    pub fn total_time(mut self, total_time: Duration) -> Self {
        self.rules.total_time = total_time;
        self
    }

    /// Sets the upper bounds for the first pause (`base`) and for every pause (`cap`). The bound
    /// doubles with each attempt until it reaches `cap`. The pause is drawn uniformly between zero
    /// and the bound ("full jitter"). Default: 200 ms and 10 s. A `base` that is zero, or longer
    /// than `cap`, is an error.
    pub fn backoff(mut self, base: Duration, cap: Duration) -> Self {
        self.rules.backoff = Backoff { base, cap };
        self
    }

    /// Sets the shared retry budget for all calls, so that retries do not make an outage worse.
    /// Each call adds to the budget, and each retry withdraws from it. Default:
    /// [`TpsBudget::default`], which allows retries for 20 % of the calls in the last ten seconds,
    /// plus ten retries per second. Several policies can share one budget.
    pub fn budget<B: Budget + Send + Sync + 'static>(mut self, budget: Arc<B>) -> Self {
        self.rules.budget = Some(budget);
        self
    }

    /// Removes the budget. **In an outage, every request is then sent as often as
    /// [`attempts`](Self::attempts) allows.** Use this setting for batch jobs and tests.
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

    /// Sets how long an operation's key can be sent, counted from the beginning of the operation.
    /// After that time, calls end with [`Stopped::KeyExpired`](crate::client::Stopped::KeyExpired).
    /// Default: 23 hours. Zero is an error.
    ///
    /// Choose a lifetime that is shorter than the time for which the server keeps keys, because an
    /// attempt after that time would run the operation again.
    /// [`Operation::with_lifetime`](crate::client::Operation::with_lifetime) sets the lifetime for
    /// one operation. If you use [`tower::retry`] directly, the first attempt of a call is always
    /// sent, even after the lifetime. Only [`ClientLayer`](crate::client::ClientLayer) and the
    /// middleware check the lifetime before the first attempt.
    pub fn key_lifetime(mut self, lifetime: Duration) -> Self {
        self.rules.key_lifetime = lifetime;
        self
    }

    /// Retries every `409`, for servers that send neither `Retry-After` nor `x-should-retry` while
    /// an operation is in flight. By default, only a `409` with one of these headers is retried,
    /// because waiting does not resolve an application's own conflicts.
    pub fn retry_every_conflict(mut self) -> Self {
        self.rules.every_conflict = true;
        self
    }

    /// Sets a closure that decides which responses are retried, instead of the status,
    /// `Retry-After` and `x-should-retry`. If the closure returns `None`, the status and these
    /// headers decide. Successes, redirects, `422` and replays are final, and the closure is not
    /// called for them.
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

    /// Sets a closure that decides which errors are retried. Default: all errors. Exclude permanent
    /// errors, such as an untrusted certificate.
    ///
    /// [`ClientLayer`](crate::client::ClientLayer) does not call the closure if an attempt times out
    /// or if the body of a success breaks off. It always retries these attempts.
    ///
    /// The closure receives the inner service's error. Annotate its parameter with the error's
    /// type:
    ///
    /// ```
    /// use hyper_util::client::legacy::Error;
    /// use tower_idempotency::client::RetryPolicy;
    ///
    /// // Retry only if the request cannot have arrived. With a key, this is not necessary.
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
    /// Returns a [`ConfigError`] that names the invalid setting.
    pub fn build(self) -> Result<RetryPolicy<C>, ConfigError> {
        let Rules {
            attempts,
            total_time,
            key_lifetime,
            backoff: Backoff { base, cap },
            ..
        } = self.rules;
        if attempts == 0 {
            return Err(ConfigError::new("attempts", "must be at least 1 (1 means no retry)"));
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
                format!("the base ({base:?}) must be longer than zero and no longer than the cap ({cap:?})"),
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
