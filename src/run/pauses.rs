//! The pauses between background attempts to call a failing store.

use std::time::Duration;

/// Each pause is twice as long as the previous pause, up to five seconds.
pub(crate) struct Pauses(Duration);

impl Default for Pauses {
    fn default() -> Self {
        Self(Duration::from_millis(50))
    }
}

impl Pauses {
    pub(crate) async fn wait(&mut self) {
        tokio::time::sleep(self.0).await;
        self.0 = (self.0 * 2).min(Duration::from_secs(5));
    }
}
