//! The reason why a call ended, although its result could have been retried.

use std::fmt;
use std::time::Duration;

/// The reason why no further attempt was made, although the result of the last attempt could have
/// been retried.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Stopped {
    /// All attempts that [`RetryPolicyBuilder::attempts`](super::RetryPolicyBuilder::attempts)
    /// allows are used up.
    Attempts,
    /// The next attempt would have begun after
    /// [`RetryPolicyBuilder::total_time`](super::RetryPolicyBuilder::total_time), or the last
    /// attempt was still running at that time.
    TotalTime,
    /// The server's `Retry-After` is longer than the remaining total time.
    RetryAfter(Duration),
    /// The retry budget is used up: too many of this client's requests are already retries.
    Budget,
    /// The operation's lifetime has elapsed. The server may have forgotten the key, and would then
    /// run another attempt as a new operation. Find out whether the operation has completed before
    /// you begin a new operation.
    KeyExpired,
    /// The request has no key, and its method is not idempotent.
    NoKey,
    /// The request body can be sent only once. If you use [`tower::retry`] directly, this reason is
    /// set from the start, whatever the result.
    BodyNotReplayable,
}

impl fmt::Display for Stopped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Attempts => f.write_str("all attempts are used up"),
            Self::TotalTime => f.write_str("the total time is used up"),
            Self::RetryAfter(wait) => write!(
                f,
                "the server asked the client to wait {} s, which is longer than the rest of the total time",
                wait.as_secs()
            ),
            Self::Budget => f.write_str("the retry budget is used up"),
            Self::KeyExpired => f.write_str(
                "the key's lifetime is over, and another attempt could run the operation a second time; \
                 find out whether the operation was done before you begin a new one",
            ),
            Self::NoKey => f.write_str("a request with this method must not be repeated without a key"),
            Self::BodyNotReplayable => f.write_str("the request body can be sent only once"),
        }
    }
}
