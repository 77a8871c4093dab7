//! Which errors of a client are worth another attempt.

/// Which errors of a client are worth another attempt. See [`RetryPolicyBuilder::retry_if`](super::RetryPolicyBuilder::retry_if).
pub trait Transient<E> {
    /// Whether another attempt may succeed.
    fn is_transient(&self, error: &E) -> bool;
}

/// Every error is worth another attempt: with a key it is safe, and it is bounded.
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
