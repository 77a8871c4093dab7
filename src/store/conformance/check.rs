//! One rule that can be run by itself.

use std::fmt;
use std::future::Future;
use std::pin::Pin;

use super::harness::Harness;

/// One rule of the suite, under its name.
pub struct Check<H> {
    pub(super) name: &'static str,
    pub(super) run: for<'a> fn(&'a H) -> Pin<Box<dyn Future<Output = ()> + Send + 'a>>,
}

impl<H: Harness> Check<H> {
    /// The rule, as an identifier: `the_first_begin_starts_attempt_1`.
    #[must_use]
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// Runs it.
    ///
    /// # Panics
    ///
    /// When the store breaks the rule, or fails.
    pub async fn run(&self, harness: &H) {
        (self.run)(harness).await;
    }
}

impl<H> fmt::Debug for Check<H> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Check").field(&self.name).finish()
    }
}
