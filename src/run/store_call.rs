//! Store calls with a time limit. Their latency is measured and their failures are logged.

use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use tokio::time::error::Elapsed;

use crate::request::Slot;
use crate::store::{StoreError, StoreErrorKind};

/// Runs work that can take at most `limit`. Work that is ready immediately does not need a timer.
///
/// Here and below, futures are passed pinned in place. If they were passed by value, they would
/// take space twice in the future of the whole request, which is allocated and moved.
#[allow(
    clippy::manual_async_fn,
    reason = "the arguments of an `async fn` take their space twice"
)]
pub(crate) fn within<F: Future>(
    limit: Duration,
    mut work: Pin<&mut F>,
) -> impl Future<Output = Result<F::Output, Elapsed>> {
    async move {
        match poll_fn(|cx| Poll::Ready(work.as_mut().poll(cx))).await {
            Poll::Ready(output) => Ok(output),
            // The timer is boxed, so that it takes no space in the futures of work that does not
            // need a timer.
            Poll::Pending => Box::pin(tokio::time::timeout(limit, work)).await,
        }
    }
}

/// Polls a future from an in-process store once. Such a future is ready at its first poll.
pub(crate) fn at_once<F: Future>(future: F) -> Poll<F::Output> {
    pin!(future).poll(&mut Context::from_waker(Waker::noop()))
}

/// Runs a store call that can take at most `limit`.
#[allow(
    clippy::manual_async_fn,
    reason = "the arguments of an `async fn` take their space twice"
)]
pub(crate) fn bounded<T>(
    operation: &'static str,
    limit: Duration,
    call: Pin<&mut impl Future<Output = Result<T, StoreError>>>,
) -> impl Future<Output = Result<T, StoreError>> {
    async move {
        let watch = Watch::start(operation);
        let answer = within(limit, call).await.unwrap_or_else(|elapsed| {
            let message = format!("the store did not answer `{operation}` within {limit:?}");
            Err(StoreError::new(StoreErrorKind::Timeout, message).with_source(elapsed))
        });
        watch.stop(answer.is_ok());
        answer
    }
}

/// Measures the latency of a store call, with the `metrics` feature.
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

pub(crate) fn warn_of(error: &StoreError, slot: &Slot, message: &'static str) {
    tracing::warn!(
        target: "tower_idempotency",
        %slot,
        error = error as &(dyn std::error::Error + 'static),
        "{message}"
    );
}
