//! The ways in which work ends: it returns, panics or is cancelled.

use std::future::{Future, poll_fn};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Poll;

/// A flag that is set when the client disconnects.
pub(crate) type Disconnected = Arc<AtomicBool>;

/// The payload of a panic.
pub(crate) type Panic = Box<dyn std::any::Any + Send>;

/// The way in which the inner service ended.
pub(crate) enum Ended<T> {
    Returned(T),
    Panicked(Panic),
    Cancelled,
}

/// Polls the inner service. Catches a panic, and stops when the flag is set.
pub(crate) async fn to_its_end<F: Future + ?Sized>(
    mut work: Pin<&mut F>,
    cancelled: Option<&Disconnected>,
) -> Ended<F::Output> {
    poll_fn(|cx| {
        if cancelled.is_some_and(|client| client.load(Ordering::Relaxed)) {
            return Poll::Ready(Ended::Cancelled);
        }
        // Asserting unwind safety is valid, because the future is not polled again after a panic,
        // and all shared state belongs to the handler.
        match catch_unwind(AssertUnwindSafe(|| work.as_mut().poll(cx))) {
            Ok(poll) => poll.map(Ended::Returned),
            Err(panic) => Poll::Ready(Ended::Panicked(panic)),
        }
    })
    .await
}
