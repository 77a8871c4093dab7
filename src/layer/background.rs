//! Work that continues without its client.

/// A handle to the work that continues without a client: handlers whose client has disconnected,
/// and outcomes that the layer tries to store again after a store failure.
///
/// ```
/// use std::time::Duration;
/// use tower_idempotency::{IdempotencyLayer, MemoryStore};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// let layer = IdempotencyLayer::new(MemoryStore::new());
/// let background = layer.background();
///
/// // … serve until the stop signal, and let open connections finish; then:
/// if tokio::time::timeout(Duration::from_secs(10), background.wait()).await.is_err() {
///     eprintln!("{} operations are abandoned", background.len());
/// }
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct Background(pub(super) tokio_util::task::TaskTracker);

impl Background {
    /// Returns the number of running tasks.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Returns `true` if no task is running.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Waits until no task is running. Stop accepting requests first.
    pub async fn wait(&self) {
        self.0.close();
        self.0.wait().await;
    }
}
