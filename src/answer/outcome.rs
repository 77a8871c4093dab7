//! The outcome of a request, as a response extension.

use std::fmt;

use super::problem::ProblemKind;

/// The outcome of a guarded request. The layer inserts the outcome into the extensions of every
/// response to a guarded request, so outer layers can log or count it.
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
    /// The operation ran, and its response is stored.
    Executed,
    /// The operation ran, and nothing is stored. The key is free.
    Released,
    /// The operation ran, and a tombstone is stored.
    Sealed,
    /// The operation ran, and nothing is stored. The same request can run again, as the next
    /// attempt.
    Reopened,
    /// The operation did not run. The stored response was sent.
    Replayed,
    /// The operation did not run. A tombstone shows that the operation completed or must not run
    /// again.
    NotRetained,
    /// The operation ran without protection, because the store failed and the layer fails open.
    Unprotected,
    /// The operation did not run. The request was refused.
    Refused(ProblemKind),
}

impl Outcome {
    /// The name of the outcome in the log and in the counters.
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
