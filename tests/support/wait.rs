//! Waiting for facts: gates, counts, polls by hand, and [`eventually`].

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::Poll;
use std::time::{Duration, Instant};

use tokio::sync::Semaphore;

/// What is waited for comes within this time, on however busy a machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(120);

/// What [`eventually`] can ask for: that something is so, or a value.
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

/// Asks until the answer is `true` or `Some`, and returns what was found. Panics after [`PATIENCE`] by
/// the clock of the machine.
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

/// What never comes fails a test instead of hanging it. The bound is far beyond what any test needs, on
/// a clock that is paused or not.
pub(crate) async fn watched<T>(bound: Duration, wait: impl Future<Output = T>) -> T {
    let output = tokio::time::timeout(bound, wait).await;
    output.unwrap_or_else(|_| panic!("what was waited for did not come in {bound:?}"))
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

/// Polls that many times; `None` if it is not ready by then.
pub(crate) async fn poll_times<F: Future + ?Sized>(mut future: Pin<&mut F>, times: usize) -> Option<F::Output> {
    for _ in 0..times {
        if let Poll::Ready(output) = poll_once(future.as_mut()).await {
            return Some(output);
        }
    }
    None
}

/// Pending that many times, woken at once each time.
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

/// Counts.
#[derive(Clone, Debug, Default)]
pub(crate) struct Count(Arc<AtomicUsize>);

impl Count {
    /// Counts one more and returns how many there are now.
    pub(crate) fn up(&self) -> usize {
        self.0.fetch_add(1, Ordering::SeqCst) + 1
    }

    pub(crate) fn get(&self) -> usize {
        self.0.load(Ordering::SeqCst)
    }
}

/// A place where handlers stop until a test lets them go on.
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
    /// For the handler: says that it is here, and waits.
    pub(crate) async fn pass(&self) {
        self.arrived.add_permits(1);
        self.open.acquire().await.expect("never closed").forget();
    }

    /// For the test: waits until one more is here.
    pub(crate) async fn arrival(&self) {
        let arrival = watched(Duration::from_secs(120), self.arrived.acquire()).await;
        arrival.expect("never closed").forget();
    }

    /// Lets one go on.
    pub(crate) fn open_once(&self) {
        self.open.add_permits(1);
    }

    /// Lets all go on, now and later.
    pub(crate) fn open(&self) {
        self.open.add_permits(1 << 20);
    }
}
