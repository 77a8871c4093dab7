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

    /// A policy with settings of your own.
    pub fn builder() -> RetryPolicyBuilder {
        RetryPolicyBuilder::new()
    }
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self::new()
    }
}

/// Settings of a [`RetryPolicy`]; what cannot work is an error of [`build`](Self::build).
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
    /// How often a request is sent at most in one call, the first time included. 16 by default; 1 is
    /// no retry; 0 is an error.
    pub fn attempts(mut self, attempts: u32) -> Self {
        self.rules.attempts = attempts;
        self
    }

    /// How long a call may take in all, pauses included. 60 s by default; zero is an error.
    ///
    /// After a crash a key stays `409` until the server's lease has lapsed (30 s by this crate's
    /// default): with less time than that, the call ends before.
    /// [`ClientLayer`](crate::client::ClientLayer) also ends an attempt that runs into it; with
    /// [`tower::retry`] itself, no attempt begins later.
    pub fn total_time(mut self, total_time: Duration) -> Self {
        self.rules.total_time = total_time;
        self
    }

    /// The bounds of the first pause and of every pause; between them the bound doubles with each
    /// attempt, and the pause is drawn evenly from below it ("full jitter"). 200 ms and 10 s by
    /// default. A `base` of zero, or above `cap`, is an error.
    pub fn backoff(mut self, base: Duration, cap: Duration) -> Self {
        self.rules.backoff = Backoff { base, cap };
        self
    }

    /// What limits the retries of all calls together, so that an outage is not made worse. Each call
    /// deposits, each retry withdraws. By default [`TpsBudget::default`]: 20 % of the calls of the
    /// last ten seconds, and ten a second besides. One may serve several policies.
    pub fn budget<B: Budget + Send + Sync + 'static>(mut self, budget: Arc<B>) -> Self {
        self.rules.budget = Some(budget);
        self
    }

    /// Retries whatever the share of them. **In an outage every call is then sent as often as
    /// [`attempts`](Self::attempts) allows**: for batch jobs and tests.
    pub fn without_budget(mut self) -> Self {
        self.rules.budget = None;
        self
    }

    /// The header that carries keys which were not set through an
    /// [`Operation`](crate::client::Operation) or an
    /// [`IdempotencyKeyLayer`](crate::client::IdempotencyKeyLayer). `Idempotency-Key` by default.
    pub fn key_header(mut self, name: HeaderName) -> Self {
        self.rules.key_header = name;
        self
    }

    /// How long an operation's key is sent, from the operation's beginning; afterwards calls end with
    /// [`Stopped::KeyExpired`](crate::client::Stopped::KeyExpired). 23 hours by default; zero is an error.
    ///
    /// Set it below the time for which the server keeps keys: an attempt after that would run the
    /// operation again. [`Operation::with_lifetime`](crate::client::Operation::with_lifetime) sets it for one
    /// operation. With [`tower::retry`] itself, the first attempt of a call is sent in any case: only
    /// [`ClientLayer`](crate::client::ClientLayer) and the middleware hold it back.
    pub fn key_lifetime(mut self, lifetime: Duration) -> Self {
        self.rules.key_lifetime = lifetime;
        self
    }

    /// Takes every `409` for an operation in flight, for servers that send neither `Retry-After` nor
    /// `x-should-retry` with it. By default only a `409` with one of them is tried again, since an
    /// application's own conflicts do not pass by waiting.
    pub fn retry_every_conflict(mut self) -> Self {
        self.rules.every_conflict = true;
        self
    }

    /// Which responses are worth another attempt, where you know better than their status, `Retry-After`
    /// and `x-should-retry` tell: `None` leaves it to those. Not asked for successes, redirects, `422`
    /// and replays, which are final.
    ///
    /// ```
    /// use http::StatusCode;
    /// use tower_idempotency::client::RetryPolicy;
    ///
    /// let policy = RetryPolicy::builder()
    ///     .retry_response_if(|status, _headers| match status {
    ///         StatusCode::INTERNAL_SERVER_ERROR => Some(false),
    ///         // This provider's new customers are not there at once.
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

    /// Which errors are worth another attempt: all of them by default. Narrow it for errors that
    /// cannot pass, such as a certificate that is not trusted.
    ///
    /// It is asked with the error of the service inside, so that the closure names its type:
    ///
    /// ```
    /// use hyper_util::client::legacy::Error;
    /// use tower_idempotency::client::RetryPolicy;
    ///
    /// // Only where the request cannot have arrived; with a key there is no need for that.
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

    /// The policy.
    ///
    /// # Errors
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
            return Err(ConfigError::new("attempts", "0 would send nothing; 1 is no retry"));
        }
        if total_time.is_zero() {
            return Err(ConfigError::new("total_time", "it must be longer than nothing"));
        }
        if key_lifetime.is_zero() {
            return Err(ConfigError::new("key_lifetime", "0 would send nothing; set it longer"));
        }
        if base.is_zero() || base > cap {
            return Err(ConfigError::new(
                "backoff",
                format!(
                    "the first pause's bound ({base:?}) must be longer than nothing, and not above the cap ({cap:?})"
                ),
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
