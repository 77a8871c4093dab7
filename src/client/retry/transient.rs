//! The client errors that are worth another attempt.

/// Decides which client errors are worth another attempt. See
/// [`RetryPolicyBuilder::retry_if`](super::RetryPolicyBuilder::retry_if).
pub trait Transient<E> {
    /// Returns whether another attempt may succeed.
    fn is_transient(&self, error: &E) -> bool;
}

/// Treats every error as worth another attempt. With a key, another attempt is safe, and the number
/// of attempts is limited.
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
