//! The suite's access to a store.

use std::future::Future;
use std::time::Duration;

use crate::store::Store;

/// Gives the suite access to a store.
pub trait Harness: Sync {
    /// The store under test. A store that is not `Clone` can be passed as an
    /// [`Arc`](std::sync::Arc).
    type Store: Store;

    /// Returns a handle to the store. All handles from a harness access the same data. The suite
    /// calls this method at least 100 times. If a handle is a connection or a pool, open a few
    /// handles in advance, as different hosts would, and return their clones in turn.
    fn store(&self) -> Self::Store;

    /// Returns the suite's unit of time. Default: 300 ms. Every call must take well under one unit,
    /// and [`pass`](Self::pass) must overshoot by well under one unit. If a store rounds its times,
    /// the unit must be much longer than the rounding error.
    fn unit(&self) -> Duration {
        Duration::from_millis(300)
    }

    /// Lets the given amount of the store's time pass. The default implementation sleeps on tokio's
    /// clock.
    fn pass(&self, time: Duration) -> impl Future<Output = ()> + Send {
        tokio::time::sleep(time)
    }
}
