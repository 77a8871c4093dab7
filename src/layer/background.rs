//! The work that goes on without its client.

/// Work that goes on without its client: handlers whose client has left, and outcomes that are
/// being stored again after the store failed.
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
/// // … serve until the signal to stop, and let open connections finish; then:
/// if tokio::time::timeout(Duration::from_secs(10), background.wait()).await.is_err() {
///     eprintln!("{} operations are abandoned", background.len());
/// }
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct Background(pub(super) tokio_util::task::TaskTracker);

impl Background {
    /// How many pieces of work there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns when there is none. Stop taking requests first.
    pub async fn wait(&self) {
        self.0.close();
        self.0.wait().await;
    }
}
