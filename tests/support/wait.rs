//! Waiting for conditions: gates, counts, polls by hand, and [`eventually`].

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::Poll;
use std::time::{Duration, Instant};

use tokio::sync::Semaphore;

/// Whatever a test waits for happens within this time, however busy the machine is.
pub(crate) const PATIENCE: Duration = Duration::from_secs(120);

/// The answer that [`eventually`] waits for: a condition that is true, or a value.
pub(crate) trait Awaited {
    type Found;

    fn found(self) -> Option<Self::Found>;
}

impl Awaited for bool {
    type Found = ();

    fn found(self) -> Option<()> {
        self.then_some(())
    }
}

impl<T> Awaited for Option<T> {
    type Found = T;

    fn found(self) -> Self {
        self
    }
}

/// Asks until the answer is `true` or `Some`, and returns the value. Panics after [`PATIENCE`] on
/// the machine's clock.
pub(crate) async fn eventually<A: Awaited>(what: &str, mut ask: impl AsyncFnMut() -> A) -> A::Found {
    let began = Instant::now();
    loop {
        if let Some(found) = ask().await.found() {
            return found;
        }
        assert!(began.elapsed() < PATIENCE, "waited in vain: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Fails a test that waits for something that never comes, instead of letting it hang. The bound is
/// far beyond the needs of any test, whether the clock is paused or not.
pub(crate) async fn watched<T>(bound: Duration, wait: impl Future<Output = T>) -> T {
    let output = tokio::time::timeout(bound, wait).await;
    output.unwrap_or_else(|_| panic!("the awaited result did not come within {bound:?}"))
}

/// Lets every task of a current-thread runtime go as far as it can without time passing.
pub(crate) async fn settle() {
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
}

/// Polls once, whatever woke it.
pub(crate) async fn poll_once<F: Future + ?Sized>(mut future: Pin<&mut F>) -> Poll<F::Output> {
    poll_fn(|cx| Poll::Ready(future.as_mut().poll(cx))).await
}

/// Polls this many times. Returns `None` if the future is not ready by then.
pub(crate) async fn poll_times<F: Future + ?Sized>(mut future: Pin<&mut F>, times: usize) -> Option<F::Output> {
    for _ in 0..times {
        if let Poll::Ready(output) = poll_once(future.as_mut()).await {
            return Some(output);
        }
    }
    None
}

/// Stays pending this many times, and is woken at once each time.
pub(crate) async fn yields(times: usize) {
    let mut left = times;
    poll_fn(|cx| {
        if left == 0 {
            return Poll::Ready(());
        }
        left -= 1;
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

/// A counter.
#[derive(Clone, Debug, Default)]
pub(crate) struct Count(Arc<AtomicUsize>);

impl Count {
    /// Adds one, and returns the new count.
    pub(crate) fn up(&self) -> usize {
        self.0.fetch_add(1, Ordering::SeqCst) + 1
    }

    pub(crate) fn get(&self) -> usize {
        self.0.load(Ordering::SeqCst)
    }
}

/// A place where handlers stop until a test lets them continue.
#[derive(Clone, Debug)]
pub(crate) struct Gate {
    arrived: Arc<Semaphore>,
    open: Arc<Semaphore>,
}

impl Default for Gate {
    fn default() -> Self {
        Self {
            arrived: Arc::new(Semaphore::new(0)),
            open: Arc::new(Semaphore::new(0)),
        }
    }
}

impl Gate {
    /// For the handler: reports its arrival, and waits.
    pub(crate) async fn pass(&self) {
        self.arrived.add_permits(1);
        self.open.acquire().await.expect("never closed").forget();
    }

    /// For the test: waits until one more handler has arrived.
    pub(crate) async fn arrival(&self) {
        let arrival = watched(Duration::from_secs(120), self.arrived.acquire()).await;
        arrival.expect("never closed").forget();
    }

    /// Lets one handler continue.
    pub(crate) fn open_once(&self) {
        self.open.add_permits(1);
    }

    /// Lets all handlers continue, now and later.
    pub(crate) fn open(&self) {
        self.open.add_permits(1 << 20);
    }
}
