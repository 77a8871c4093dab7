//! What must not end with its client: a question to the store, and the inner service at work. Each
//! is polled in place and handed to the runtime only when its owner drops it.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};

use http::Response;
use http_body::Body;
use tokio::runtime::Handle;
use tracing::{Instrument, Span};

use crate::body::ResponseBody;
use crate::engine::{self, Admission, Gone, Question, Run};
use crate::error::StoreError;
use crate::lease::take_back;
use crate::shared::{Shared, adopt};
use crate::state::Begin;
use crate::store::Store;

/// A question to a store that does not answer at once.
pub(crate) struct Admitting<St: Store> {
    answer: Option<Question<St>>,
    gone: Gone,
    shared: Arc<Shared<St>>,
    pub(crate) begin: Begin,
    home: Option<Handle>,
}

impl<St: Store> Admitting<St> {
    pub(crate) fn new(shared: Arc<Shared<St>>, begin: Begin) -> Self {
        let gone = Arc::new(AtomicBool::new(false));
        Self {
            answer: Some(Box::pin(engine::admit(Arc::clone(&shared), begin, Arc::clone(&gone)))),
            gone,
            shared,
            begin,
            home: None,
        }
    }

    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<Admission<St>, StoreError>> {
        poll_in_place(&mut self.answer, &mut self.home, cx)
    }
}

/// Polls a boxed future and lets go of it when it is ready or panics, so that it is then not handed
/// to the runtime.
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
    /// The client left before the store had answered. The question may have been heard: its answer
    /// is awaited, and a claim is given back at once instead of blocking the key for its lease.
    fn drop(&mut self) {
        let Some(answer) = self.answer.take() else { return };
        self.gone.store(true, Ordering::Relaxed);
        let home = self.home.take();
        let (shared, begin) = (Arc::clone(&self.shared), self.begin);
        adopt(&self.shared, home.as_ref(), async move {
            match answer.await {
                Ok(Admission::Started(mut claim)) => claim.give_back().await,
                Ok(Admission::Found(_)) => {}
                Err(error) => take_back(&shared, begin, &error),
            }
        });
    }
}

/// The inner service at work.
pub(crate) struct Running<RB: Body + 'static, E: 'static, St: Store> {
    run: Option<Run<RB, E>>,
    gone: Option<Gone>,
    shared: Arc<Shared<St>>,
    span: Span,
    home: Option<Handle>,
}

impl<RB: Body + 'static, E: 'static, St: Store> Running<RB, E, St> {
    pub(crate) fn new(run: Run<RB, E>, gone: Option<Gone>, shared: Arc<Shared<St>>) -> Self {
        Self {
            run: Some(run),
            gone,
            shared,
            span: Span::current(),
            home: None,
        }
    }

    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<Response<ResponseBody<RB>>, E>> {
        match ready!(poll_in_place(&mut self.run, &mut self.home, cx)) {
            Some(result) => Poll::Ready(result),
            // Cancelled, which only dropping this can ask for.
            None => Poll::Pending,
        }
    }
}

impl<RB: Body + 'static, E: 'static, St: Store> Drop for Running<RB, E, St> {
    fn drop(&mut self) {
        let Some(run) = self.run.take() else { return };
        if let Some(gone) = &self.gone {
            gone.store(true, Ordering::Relaxed);
        } else {
            tracing::debug!(target: "tower_idempotency", parent: &self.span, "the client left; its operation goes on");
        }
        let rest = Rest(run).instrument(std::mem::replace(&mut self.span, Span::none()));
        adopt(&self.shared, self.home.as_ref(), rest);
    }
}

/// A run whose response nobody waits for.
struct Rest<RB: Body + 'static, E: 'static>(Run<RB, E>);

impl<RB: Body + 'static, E: 'static> Future for Rest<RB, E> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        self.0.as_mut().poll(cx).map(drop)
    }
}
