//! The builder for a layer's configuration.

mod answers;
mod limits;
mod profiles;
mod requests;
mod resolve;

use std::fmt;
use std::sync::Arc;

use resolve::Chosen;

use super::IdempotencyLayer;
use crate::error::ConfigError;
use crate::run::config::Config;
use crate::run::guard::Guard;
use crate::store::{MemoryStore, Store};

/// Configures an [`IdempotencyLayer`].
///
/// ```
/// use std::time::Duration;
/// use tower_idempotency::{IdempotencyLayer, KeyFormat, MemoryStore, Policy};
///
/// let layer = IdempotencyLayer::builder(MemoryStore::new())
///     .require_key(true)
///     .key_format(KeyFormat::Uuid)
///     .wait(Duration::from_secs(2))
///     .policy(Policy::everything())
///     .build()?;
/// # let _ = layer;
/// # Ok::<(), tower_idempotency::ConfigError>(())
/// ```
#[must_use = "a builder does nothing until `build` is called"]
pub struct IdempotencyLayerBuilder<St = MemoryStore> {
    store: St,
    config: Config,
    /// The profile, and the explicitly set options that override it.
    chosen: Chosen,
    /// The first value that could not be parsed.
    error: Option<ConfigError>,
}

impl<St> fmt::Debug for IdempotencyLayerBuilder<St> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IdempotencyLayerBuilder")
            .field("config", &self.config)
            .finish_non_exhaustive()
    }
}

impl<St: Store> IdempotencyLayer<St> {
    /// Creates a builder for a layer that uses `store`.
    pub fn builder(store: St) -> IdempotencyLayerBuilder<St> {
        IdempotencyLayerBuilder {
            store,
            config: Config::default(),
            chosen: Chosen::default(),
            error: None,
        }
    }
}

impl<St: Store> IdempotencyLayerBuilder<St> {
    /// Builds the layer.
    ///
    /// # Errors
    ///
    /// Returns an error for the first option whose value is invalid. [`ConfigError::option`] names
    /// the option.
    pub fn build(self) -> Result<IdempotencyLayer<St>, ConfigError> {
        if let Some(error) = self.error {
            return Err(error);
        }
        let config = self.chosen.resolve(self.config)?;
        config.validate()?;
        Ok(IdempotencyLayer {
            guard: Arc::new(Guard::new(self.store, config)),
        })
    }

    /// Keeps the first error, which `build` returns.
    fn fail(&mut self, error: ConfigError) {
        self.error.get_or_insert(error);
    }
}
