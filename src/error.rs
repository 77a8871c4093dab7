//! Configuration errors.

use std::borrow::Cow;
use std::error::Error as StdError;
use std::fmt;

/// A boxed error of any type. Stores, scope closures and bodies can return it.
pub type BoxError = Box<dyn StdError + Send + Sync>;

/// An invalid configuration, reported when the layer or the store is built.
///
/// The `Display` output names the option and says what is wrong with its value.
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

    /// Returns the name of the builder method whose value was refused.
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
