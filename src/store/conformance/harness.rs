//! How the suite reaches a store.

use std::future::Future;
use std::time::Duration;

use crate::store::Store;

/// How the suite reaches a store.
pub trait Harness: Sync {
    /// The store under test. One that is not `Clone` can be given as [`Arc`](std::sync::Arc).
    type Store: Store;

    /// A handle to the store. All handles of a harness are to the same data. It is called a
    /// hundred times or more: where a handle is a connection or a pool, make a few beforehand,
    /// as different hosts would, and hand out clones of them in turn.
    fn store(&self) -> Self::Store;

    /// The suite's unit of time: 300 ms unless you say otherwise. Any call, and the time that
    /// [`pass`](Self::pass) takes too long, have to be well below it; a store that rounds its
    /// times needs a unit that is coarse against the rounding.
    fn unit(&self) -> Duration {
        Duration::from_millis(300)
    }

    /// Lets that much of the store's time pass. By default it sleeps on tokio's clock.
    fn pass(&self, time: Duration) -> impl Future<Output = ()> + Send {
        tokio::time::sleep(time)
    }
}
