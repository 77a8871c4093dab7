//! A check that you can run on its own.

use std::fmt;
use std::future::Future;
use std::pin::Pin;

use super::harness::Harness;

/// A named check of one of the suite's rules.
pub struct Check<H> {
    pub(super) name: &'static str,
    pub(super) run: for<'a> fn(&'a H) -> Pin<Box<dyn Future<Output = ()> + Send + 'a>>,
}

impl<H: Harness> Check<H> {
    /// Returns the rule's name as an identifier, such as `the_first_begin_starts_attempt_1`.
    #[must_use]
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// Runs the check.
    ///
    /// # Panics
    ///
    /// Panics if the store breaks the rule, or fails.
    pub async fn run(&self, harness: &H) {
        (self.run)(harness).await;
    }
}

impl<H> fmt::Debug for Check<H> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Check").field(&self.name).finish()
    }
}
