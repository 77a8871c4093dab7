//! Store errors.

use std::borrow::Cow;
use std::error::Error as StdError;
use std::fmt;

use crate::error::BoxError;

/// The reason why a store call failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum StoreErrorKind {
    /// The store was unreachable, or it refused the operation.
    Unavailable,
    /// The store did not respond within `store_timeout`.
    Timeout,
    /// The store has no room for a new key, and its policy is to refuse new keys.
    Full,
    /// The store responded, but its data cannot be decoded: a newer version wrote the data, or the
    /// data is corrupt.
    Corrupt,
}

/// The error that a store returns. Contract rows 6.3 to 6.5 specify the responses that clients
/// receive.
///
/// The error message states which store failed, what the store tried to do, and how to fix the
/// problem. The message never contains keys, credentials, bodies or connection URLs with
/// credentials. If you write a store, follow the same rules.
///
/// ```
/// use tower_idempotency::store::{StoreError, StoreErrorKind};
///
/// let refused = std::io::Error::from(std::io::ErrorKind::ConnectionRefused);
/// let error = StoreError::new(StoreErrorKind::Unavailable, "mystore: connecting").with_source(refused);
/// assert_eq!(error.kind(), StoreErrorKind::Unavailable);
/// assert!(std::error::Error::source(&error).is_some());
/// ```
#[derive(Debug)]
pub struct StoreError {
    kind: StoreErrorKind,
    message: Cow<'static, str>,
    had_no_effect: bool,
    source: Option<BoxError>,
}

impl StoreError {
    /// Creates an error of the given kind. `message` states which store failed, what the store
    /// tried to do, and how to fix the problem.
    #[must_use]
    pub fn new(kind: StoreErrorKind, message: impl Into<Cow<'static, str>>) -> Self {
        Self {
            kind,
            message: message.into(),
            had_no_effect: false,
            source: None,
        }
    }

    /// Sets the underlying cause of this error.
    #[must_use]
    pub fn with_source(mut self, source: impl Into<BoxError>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// Marks the error of a call that certainly had no effect, because the call was not sent or was
    /// undone.
    ///
    /// After any other `Timeout` or `Unavailable` error of [`Store::begin`](super::Store::begin),
    /// the layer calls `begin` again in the background, to find out whether it must give a claim
    /// back.
    #[must_use]
    pub fn without_effect(mut self) -> Self {
        self.had_no_effect = true;
        self
    }

    /// Returns whether the call certainly had no effect.
    #[must_use]
    pub fn had_no_effect(&self) -> bool {
        self.had_no_effect
    }

    /// Returns the kind of failure.
    #[must_use]
    pub fn kind(&self) -> StoreErrorKind {
        self.kind
    }
}

impl fmt::Display for StoreError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl StdError for StoreError {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.source.as_deref().map(|source| source as _)
    }
}
