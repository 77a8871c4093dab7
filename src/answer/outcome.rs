//! The outcome of a request, as a response extension.

use std::fmt;

use super::problem::ProblemKind;

/// How a guarded request ended. It is in the extensions of every response of a guarded request, so
/// that outer layers can log or count it.
///
/// ```
/// use tower_idempotency::Outcome;
///
/// fn log<B>(response: &http::Response<B>) {
///     if let Some(outcome) = response.extensions().get::<Outcome>() {
///         println!("idempotency: {outcome}");
///     }
/// }
/// # log(&http::Response::new(()));
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Outcome {
    /// It ran, and its response is stored.
    Executed,
    /// It ran, and nothing is stored: the key is free.
    Released,
    /// It ran, and a tombstone is stored.
    Sealed,
    /// It ran, and nothing is stored. The same request may run again, as the next attempt.
    Reopened,
    /// It did not run: the stored response was sent.
    Replayed,
    /// It did not run: a tombstone says that the operation is done, or must not run again.
    NotRetained,
    /// The store failed, and the layer fails open: it ran without protection.
    Unprotected,
    /// It did not run.
    Refused(ProblemKind),
}

impl Outcome {
    /// The name under which the outcome is logged and counted.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Executed => "executed",
            Self::Released => "released",
            Self::Sealed => "sealed",
            Self::Reopened => "reopened",
            Self::Replayed => "replayed",
            Self::NotRetained => "not-retained",
            Self::Unprotected => "unprotected",
            Self::Refused(kind) => kind.slug(),
        }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
