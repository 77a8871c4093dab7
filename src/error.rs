//! The errors of this crate: a configuration that cannot work, and a store that failed.

use std::borrow::Cow;
use std::error::Error as StdError;
use std::fmt;

/// Any error, boxed: what stores, scope closures and bodies may fail with.
pub type BoxError = Box<dyn StdError + Send + Sync>;

/// A configuration that cannot work, found when the layer or the store is built.
///
/// Its `Display` names the option, the value and what would be accepted.
///
/// ```
/// use std::time::Duration;
/// use tower_idempotency::{IdempotencyLayer, MemoryStore};
///
/// let error = IdempotencyLayer::builder(MemoryStore::new())
///     .ttl(Duration::ZERO)
///     .build()
///     .unwrap_err();
/// assert_eq!(error.option(), "ttl");
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigError {
    option: &'static str,
    reason: Cow<'static, str>,
}

impl ConfigError {
    pub(crate) fn new(option: &'static str, reason: impl Into<Cow<'static, str>>) -> Self {
        Self {
            option,
            reason: reason.into(),
        }
    }

    /// The name of the builder method whose value was refused.
    #[must_use]
    pub fn option(&self) -> &'static str {
        self.option
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "idempotency option `{}`: {}", self.option, self.reason)
    }
}

impl StdError for ConfigError {}

/// Why a store could not do what it was asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum StoreErrorKind {
    /// The store cannot be reached, or refused the operation.
    Unavailable,
    /// The store did not answer within `store_timeout`.
    Timeout,
    /// The store has no room for a new key, and its policy is to refuse.
    Full,
    /// The store answered, but what it holds cannot be decoded: a newer version wrote it, or it is
    /// corrupt.
    Corrupt,
}

/// A store failed. Clients see it as contract rows 6.3 to 6.5.
///
/// Messages say which store, what it tried and what to do; they never hold keys, credentials,
/// bodies or connection URLs with credentials. An author of a store keeps to that, too.
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
    source: Option<BoxError>,
}

impl StoreError {
    /// An error of that kind; `message` says which store, what it tried, and what to do.
    #[must_use]
    pub fn new(kind: StoreErrorKind, message: impl Into<Cow<'static, str>>) -> Self {
        Self {
            kind,
            message: message.into(),
            source: None,
        }
    }

    /// Keeps the error that caused this one.
    #[must_use]
    pub fn with_source(mut self, source: impl Into<BoxError>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// What sort of failure it is.
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
