//! What the clones of a layer and its services share, and how they ask the store.

use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use crossbeam_utils::CachePadded;
use tokio::runtime::Handle;
use tokio::time::error::Elapsed;
use tokio_util::task::TaskTracker;

use crate::config::Config;
use crate::error::{StoreError, StoreErrorKind};
use crate::outcome::Tally;
use crate::scope::Slot;
use crate::state::Token;

/// What all clones of a layer and its services share.
pub(crate) struct Shared<St> {
    // What every request reads, what every request writes, and the count of references each have
    // cache lines of their own: workers would otherwise wait for each other's.
    pub(crate) store: CachePadded<St>,
    pub(crate) config: CachePadded<Config>,
    /// Work without a client: handlers whose client left, and outcomes being stored again.
    pub(crate) tasks: TaskTracker,
    pub(crate) tally: CachePadded<Tally>,
    pub(crate) warned_of_cookie: AtomicBool,
    /// Questions whose answers were lost and that are asked again.
    pub(crate) asking_again: AtomicUsize,
    next_token: CachePadded<AtomicU64>,
}

impl<St> Shared<St> {
    pub(crate) fn new(store: St, config: Config) -> Self {
        // A random start makes tokens unique among processes; counting, within this one.
        let (start, _) = uuid::Uuid::new_v4().as_u64_pair();
        Self {
            store: CachePadded::new(store),
            config: CachePadded::new(config),
            tasks: TaskTracker::new(),
            tally: CachePadded::default(),
            warned_of_cookie: AtomicBool::new(false),
            asking_again: AtomicUsize::new(0),
            next_token: CachePadded::new(AtomicU64::new(start)),
        }
    }

    pub(crate) fn token(&self) -> Token {
        Token(self.next_token.fetch_add(1, Ordering::Relaxed))
    }
}

/// The output of work that may take `limit` at most. Work that is ready at once needs no timer.
///
/// Here and below, futures are passed pinned in place: passed by value they would stand twice in
/// the future of the whole request, which is allocated and moved.
pub(crate) async fn within<F: Future>(limit: Duration, mut work: Pin<&mut F>) -> Result<F::Output, Elapsed> {
    match poll_fn(|cx| Poll::Ready(work.as_mut().poll(cx))).await {
        Poll::Ready(output) => Ok(output),
        // Boxed, so that the timer takes no place in the futures of work that needs none.
        Poll::Pending => Box::pin(tokio::time::timeout(limit, work)).await,
    }
}

/// What a future of a store in this process says at its first poll.
pub(crate) fn at_once<F: Future>(future: F) -> Poll<F::Output> {
    pin!(future).poll(&mut Context::from_waker(Waker::noop()))
}

/// The answer of a store call that may take `limit` at most.
pub(crate) async fn bounded<T>(
    operation: &'static str,
    limit: Duration,
    call: Pin<&mut impl Future<Output = Result<T, StoreError>>>,
) -> Result<T, StoreError> {
    let watch = Watch::start(operation);
    let answer = within(limit, call).await.unwrap_or_else(|elapsed| {
        let message = format!("the store did not answer `{operation}` within {limit:?}");
        Err(StoreError::new(StoreErrorKind::Timeout, message).with_source(elapsed))
    });
    watch.stop(answer.is_ok());
    answer
}

/// Measures store latency, if somebody asks for it.
pub(crate) struct Watch {
    #[cfg(feature = "metrics")]
    started: (&'static str, std::time::Instant),
}

impl Watch {
    #[cfg(feature = "metrics")]
    pub(crate) fn start(operation: &'static str) -> Self {
        let started = (operation, std::time::Instant::now());
        Self { started }
    }

    #[cfg(feature = "metrics")]
    pub(crate) fn stop(self, answered: bool) {
        let (operation, at) = self.started;
        metrics::histogram!("idempotency_store_seconds", "operation" => operation).record(at.elapsed());
        if !answered {
            metrics::counter!("idempotency_store_errors_total", "operation" => operation).increment(1);
        }
    }

    #[cfg(not(feature = "metrics"))]
    pub(crate) fn start(_: &'static str) -> Self {
        Self {}
    }

    #[cfg(not(feature = "metrics"))]
    pub(crate) fn stop(self, _: bool) {}
}

/// Runs a future that must not be lost although its owner is being dropped.
///
/// `home` is the runtime that the future was polled on, for owners that are dropped outside one.
pub(crate) fn adopt<St>(shared: &Shared<St>, home: Option<&Handle>, future: impl Future<Output = ()> + Send + 'static) {
    let current = Handle::try_current().ok();
    match home.or(current.as_ref()) {
        Some(handle) => drop(shared.tasks.spawn_on(future, handle)),
        // Dropping the future logs each claim that it held.
        None => tracing::error!(
            target: "tower_idempotency",
            "a request was dropped where there is no runtime, so that its handler cannot run to its end"
        ),
    }
}

pub(crate) fn warn_of(error: &StoreError, slot: &Slot, message: &'static str) {
    tracing::warn!(
        target: "tower_idempotency",
        %slot,
        error = error as &(dyn std::error::Error + 'static),
        "{message}"
    );
}
