//! Work that must not be cancelled when its client disconnects: a call to the store, and the
//! running inner service. Each future is polled in place, and moves to the runtime only when its
//! owner drops the future.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, ready};

use http::Response;
use http_body::Body;
use tokio::runtime::Handle;
use tracing::{Instrument, Span};

use super::admit::{Admission, OuterClaims, Question, admit};
use super::ended::Disconnected;
use super::guard::Guard;
use super::handler::Run;
use crate::body::ResponseBody;
use crate::store::{ClaimRequest, Store, StoreError};

/// A call to a store that does not answer immediately.
pub(crate) struct Admitting<St: Store> {
    answer: Option<Question<St>>,
    disconnected: Disconnected,
    guard: Arc<Guard<St>>,
    pub(crate) begin: ClaimRequest,
    home: Option<Handle>,
}

impl<St: Store> Admitting<St> {
    pub(crate) fn new(guard: Arc<Guard<St>>, begin: ClaimRequest, outer: OuterClaims) -> Self {
        let disconnected = Disconnected::default();
        Self {
            answer: Some(Box::pin(admit(
                Arc::clone(&guard),
                begin,
                outer,
                Arc::clone(&disconnected),
            ))),
            disconnected,
            guard,
            begin,
            home: None,
        }
    }

    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<Admission<St>, StoreError>> {
        poll_in_place(&mut self.answer, &mut self.home, cx)
    }
}

/// Polls a boxed future, and drops the future when it completes or panics, so that a finished
/// future is not moved to the runtime.
fn poll_in_place<T>(
    place: &mut Option<Pin<Box<dyn Future<Output = T> + Send>>>,
    home: &mut Option<Handle>,
    cx: &mut Context<'_>,
) -> Poll<T> {
    let Some(mut future) = place.take() else {
        return Poll::Pending;
    };
    let poll = future.as_mut().poll(cx);
    if poll.is_pending() {
        *place = Some(future);
        if home.is_none() {
            *home = Handle::try_current().ok();
        }
    }
    poll
}

impl<St: Store> Drop for Admitting<St> {
    /// The client disconnected before the store answered. The store may have granted the claim, so
    /// the layer waits for the answer. If the claim was granted, the layer gives it back
    /// immediately, so that the claim does not block the key until its lease expires.
    fn drop(&mut self) {
        let Some(answer) = self.answer.take() else { return };
        self.disconnected.store(true, Ordering::Relaxed);
        self.guard.adopt(self.home.as_ref(), async move {
            if let Ok(Admission::Started(mut claim)) = answer.await {
                claim.give_back().await;
            }
        });
    }
}

/// The running inner service.
pub(crate) struct Running<RB: Body + 'static, E: 'static, St: Store> {
    run: Option<Run<RB, E>>,
    /// With `cancel_on_disconnect`, setting this flag cancels the run.
    cancel: Option<Disconnected>,
    guard: Arc<Guard<St>>,
    span: Span,
    home: Option<Handle>,
}

impl<RB: Body + 'static, E: 'static, St: Store> Running<RB, E, St> {
    pub(crate) fn new(run: Run<RB, E>, cancel: Option<Disconnected>, guard: Arc<Guard<St>>) -> Self {
        Self {
            run: Some(run),
            cancel,
            guard,
            span: Span::current(),
            home: None,
        }
    }

    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<Response<ResponseBody<RB>>, E>> {
        match ready!(poll_in_place(&mut self.run, &mut self.home, cx)) {
            Some(result) => Poll::Ready(result),
            // The run was cancelled, which happens only after this value is dropped.
            None => Poll::Pending,
        }
    }
}

impl<RB: Body + 'static, E: 'static, St: Store> Drop for Running<RB, E, St> {
    fn drop(&mut self) {
        let Some(run) = self.run.take() else { return };
        if let Some(cancel) = &self.cancel {
            cancel.store(true, Ordering::Relaxed);
        } else {
            tracing::debug!(
                target: "tower_idempotency",
                parent: &self.span,
                "the client disconnected; its operation continues"
            );
        }
        let rest = Rest(run).instrument(std::mem::replace(&mut self.span, Span::none()));
        self.guard.adopt(self.home.as_ref(), rest);
    }
}

/// A run whose client has disconnected.
struct Rest<RB: Body + 'static, E: 'static>(Run<RB, E>);

impl<RB: Body + 'static, E: 'static> Future for Rest<RB, E> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        self.0.as_mut().poll(cx).map(drop)
    }
}
