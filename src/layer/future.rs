//! The response future of [`IdempotencyService`](crate::IdempotencyService). The future only polls
//! the current stage.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use http::Response;
use pin_project_lite::pin_project;

use crate::body::ResponseBody;
use crate::bounds::{GuardedBody, GuardedService};
use crate::run::stage::{Stage, StageProj};
use crate::store::Store;

pin_project! {
    /// The response future of [`IdempotencyService`](crate::IdempotencyService).
    ///
    /// Dropping the future while the handler runs does not cancel the handler: the runtime
    /// continues the work, unless `cancel_on_disconnect` is set.
    ///
    /// # Panics
    ///
    /// Panics if the future is polled again after it has completed. A panic in the inner service is
    /// passed on.
    pub struct ResponseFuture<S, B, St>
    where
        S: GuardedService<B>,
        B: GuardedBody,
        St: Store,
    {
        #[pin]
        stage: Stage<S, B, St>,
    }
}

impl<S, B, St> From<Stage<S, B, St>> for ResponseFuture<S, B, St>
where
    S: GuardedService<B>,
    B: GuardedBody,
    St: Store,
{
    fn from(stage: Stage<S, B, St>) -> Self {
        Self { stage }
    }
}

impl<S, B, St> Future for ResponseFuture<S, B, St>
where
    S: GuardedService<B>,
    B: GuardedBody,
    St: Store,
{
    type Output = Result<Response<ResponseBody<S::ResponseBody>>, S::Error>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        const TWICE: &str = "`ResponseFuture` polled after completion";
        let mut stage = self.project().stage;
        loop {
            let next = match stage.as_mut().project() {
                StageProj::Through { future } => {
                    return future.poll(cx).map_ok(|response| response.map(ResponseBody::live));
                }
                StageProj::Reading {
                    mut body,
                    exchange,
                    unary,
                } => match body.as_mut().poll(cx) {
                    Poll::Ready(collected) => {
                        let rest = body.body_mut().take();
                        exchange.take().expect(TWICE).body_read(collected, rest)
                    }
                    Poll::Pending => {
                        ready!(exchange.as_ref().expect(TWICE).poll_streams(cx, unary, body.read()));
                        let rest = body.body_mut().take();
                        exchange.take().expect(TWICE).refuse_stream(rest)
                    }
                },
                StageProj::Admitting { asked, exchange, body } => {
                    let answer = ready!(asked.poll(cx));
                    let exchange = exchange.take().expect(TWICE);
                    exchange.store_answered(&asked.begin, answer, body.take().expect(TWICE))
                }
                StageProj::Comparing { comparing } => {
                    return comparing.poll(cx).map(Ok);
                }
                StageProj::Running { running } => return running.poll(cx),
                StageProj::Answered { response } => return Poll::Ready(Ok(response.take().expect(TWICE))),
            };
            stage.set(next);
        }
    }
}

impl<S, B, St> fmt::Debug for ResponseFuture<S, B, St>
where
    S: GuardedService<B>,
    B: GuardedBody,
    St: Store,
{
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ResponseFuture({})", self.stage.name())
    }
}
