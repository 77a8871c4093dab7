//! The future of [`IdempotencyService`](crate::IdempotencyService), its states named.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::{Request, Response};
use http_body::Body;
use pin_project_lite::pin_project;
use tokio::runtime::Handle;
use tower::Service;
use tower::util::Oneshot;
use tracing::{Instrument, Span};

use crate::body::ResponseBody;
use crate::collect::{Collect, Collected, Unread, drain};
use crate::engine::{self, Exchange, Gone, Question, Run};
use crate::error::StoreError;
use crate::lease::{Claim, Shared, adopt, take_back};
use crate::state::{Begin, Begun};
use crate::store::Store;

pin_project! {
    /// The future of a response of [`IdempotencyService`](crate::IdempotencyService).
    ///
    /// Dropping it while the handler runs does not cancel the handler: the rest is handed to the
    /// runtime, unless `cancel_on_disconnect` says otherwise.
    ///
    /// # Panics
    ///
    /// If it is polled again after it was ready, as futures may. A panic of the inner service goes
    /// through.
    pub struct ResponseFuture<S, B, RB, St>
    where
        S: Service<Request<B>>,
        S::Error: 'static,
        RB: Body,
        RB: 'static,
        St: Store,
    {
        #[pin]
        state: State<S, B, RB, St, S::Future, S::Error>,
    }
}

pin_project! {
    #[project = StateProj]
    enum State<S, B, RB, St, F, E>
    where
        S: Service<Request<B>>,
        E: 'static,
        RB: Body,
        RB: 'static,
        St: Store,
    {
        // Not guarded: the inner service's own future.
        Through { #[pin] future: F },
        // Buffered to look for the key, and not guarded after all.
        Passing { future: Pin<Box<Oneshot<S, Request<B>>>> },
        // Reading the request's body. Dropped here, nothing has happened yet.
        Reading { #[pin] body: Collect<Unread<B>>, exchange: Option<Box<Exchange<S, St>>> },
        // The store is asked, or another's outcome awaited. Dropped here, a claim is given back.
        Admitting { asked: Admitting<St>, exchange: Option<Box<Exchange<S, St>>>, body: Bytes },
        // The handler runs. Dropped here, it goes on.
        Running { running: Running<RB, E, St> },
        // Answered without running.
        Answered { response: Option<Response<ResponseBody<RB>>> },
    }
}

impl<S, B, RB, St> ResponseFuture<S, B, RB, St>
where
    S: Service<Request<B>>,
    S::Error: 'static,
    RB: Body + 'static,
    St: Store,
{
    pub(crate) fn through(future: S::Future) -> Self {
        Self {
            state: State::Through { future },
        }
    }

    pub(crate) fn reading(exchange: Box<Exchange<S, St>>, body: B) -> Self
    where
        B: Body<Data = Bytes>,
    {
        let limit = exchange.shared.config.max_request_body;
        Self {
            state: State::Reading {
                body: Collect::new(Unread::new(body), limit),
                exchange: Some(exchange),
            },
        }
    }

    pub(crate) fn answered(response: Response<ResponseBody<RB>>) -> Self {
        Self {
            state: State::Answered {
                response: Some(response),
            },
        }
    }
}

type StateOf<S, B, RB, St> = State<S, B, RB, St, <S as Service<Request<B>>>::Future, <S as Service<Request<B>>>::Error>;

impl<S, B, RB, St> Future for ResponseFuture<S, B, RB, St>
where
    S: Service<Request<B>, Response = Response<RB>> + Clone + Send + 'static,
    S::Future: Send + 'static,
    S::Error: Send + 'static,
    B: Body<Data = Bytes> + From<Bytes> + Send + 'static,
    RB: Body<Data = Bytes> + Send + 'static,
    RB::Error: Send + 'static,
    St: Store,
{
    type Output = Result<Response<ResponseBody<RB>>, S::Error>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        const TWICE: &str = "`ResponseFuture` polled after it was ready";
        let mut state = self.project().state;
        loop {
            let next = match state.as_mut().project() {
                StateProj::Through { future } => {
                    return future.poll(cx).map_ok(|response| response.map(ResponseBody::live));
                }
                StateProj::Passing { future } => {
                    return future
                        .as_mut()
                        .poll(cx)
                        .map_ok(|response| response.map(ResponseBody::live));
                }
                StateProj::Reading { mut body, exchange } => {
                    let collected = ready!(body.as_mut().poll(cx));
                    if let Collected::TooLarge { .. } = collected
                        && let Some(rest) = body.body_mut().take()
                    {
                        drain(rest);
                    }
                    after_body(exchange.take().expect(TWICE), collected)
                }
                StateProj::Admitting { asked, exchange, body } => {
                    let answer = ready!(asked.poll(cx));
                    let exchange = exchange.take().expect(TWICE);
                    after_asking(exchange, &asked.begin, answer, std::mem::take(body))
                }
                StateProj::Running { running } => return running.poll(cx),
                StateProj::Answered { response } => return Poll::Ready(Ok(response.take().expect(TWICE))),
            };
            state.set(next);
        }
    }
}

/// The body is there, or why it is not.
fn after_body<S, B, RB, St>(mut exchange: Box<Exchange<S, St>>, collected: Collected<B::Error>) -> StateOf<S, B, RB, St>
where
    S: Service<Request<B>, Response = Response<RB>> + Clone + Send + 'static,
    S::Future: Send + 'static,
    S::Error: Send + 'static,
    B: Body<Data = Bytes> + From<Bytes> + Send + 'static,
    RB: Body<Data = Bytes> + Send + 'static,
    RB::Error: Send + 'static,
    St: Store,
{
    let refuse = |exchange: Box<Exchange<S, St>>, problem| State::Answered {
        response: Some(exchange.refuse(problem)),
    };
    let body = match collected {
        Collected::Whole { data, .. } => data,
        Collected::TooLarge { .. } => {
            let limit = exchange.shared.config.max_request_body;
            return refuse(exchange, engine::body_too_large(limit));
        }
        Collected::Failed { .. } => return refuse(exchange, engine::body_unreadable()),
    };
    if exchange.identity.is_none() {
        let named = match exchange.key_in(&body) {
            Ok(Some(key)) => exchange.identify(key),
            Ok(None) => return pass(*exchange, body),
            Err(problem) => Err(problem),
        };
        if let Err(problem) = named {
            return refuse(exchange, problem);
        }
    }
    if exchange.is_claimed_outside() {
        return pass(*exchange, body);
    }
    let Some(begin) = exchange.claim(&body) else {
        return pass(*exchange, body);
    };
    match engine::admit_now(&exchange.shared, &begin) {
        Some(answer) => after_asking(exchange, &begin, answer, body),
        None => {
            if !exchange.shared.config.wait.is_zero() {
                // Waiting must not hold the place that readiness reserved, as under a concurrency limit.
                exchange.inner = exchange.inner.clone();
            }
            State::Admitting {
                asked: Admitting::new(Arc::clone(&exchange.shared), begin),
                exchange: Some(exchange),
                body,
            }
        }
    }
}

/// Sends a request whose body was buffered on as if it had not been.
fn pass<S, B, RB, St>(exchange: Exchange<S, St>, body: Bytes) -> StateOf<S, B, RB, St>
where
    S: Service<Request<B>>,
    S::Error: 'static,
    B: From<Bytes>,
    RB: Body + 'static,
    St: Store,
{
    exchange.shared.tally.report_unguarded();
    State::Passing {
        future: Box::pin(exchange.into_call(body)),
    }
}

/// The store has decided, or failed.
fn after_asking<S, B, RB, St>(
    exchange: Box<Exchange<S, St>>,
    begin: &Begin,
    answer: Result<Begun, StoreError>,
    body: Bytes,
) -> StateOf<S, B, RB, St>
where
    S: Service<Request<B>, Response = Response<RB>> + Clone + Send + 'static,
    S::Future: Send + 'static,
    S::Error: Send + 'static,
    B: Body<Data = Bytes> + From<Bytes> + Send + 'static,
    RB: Body<Data = Bytes> + Send + 'static,
    RB::Error: Send + 'static,
    St: Store,
{
    let shared = Arc::clone(&exchange.shared);
    let config = &shared.config;
    let overloaded = || shared.tasks.len() >= config.max_detached;
    let gone = config.cancel_on_disconnect.map(|_| Gone::default());
    if let Err(error) = &answer {
        take_back(&shared, *begin, error);
    }
    let run: Run<RB, S::Error> = match answer {
        Ok(Begun::Started { attempt }) => {
            let claim = Claim::new(Arc::clone(&shared), begin.slot, begin.token, attempt);
            if overloaded() {
                Box::pin(engine::refuse_overload(exchange, Some(claim)))
            } else {
                Box::pin(engine::run(exchange, claim, begin.fingerprint, body, gone.clone()))
            }
        }
        answer => match answer.and_then(|begun| exchange.answer(begun)) {
            Ok(response) => {
                return State::Answered {
                    response: Some(response),
                };
            }
            Err(error) if !config.fail_open => {
                return State::Answered {
                    response: Some(exchange.refuse_for_store(&error)),
                };
            }
            Err(_) if overloaded() => Box::pin(engine::refuse_overload(exchange, None)),
            Err(error) => Box::pin(engine::run_unprotected(exchange, body, error, gone.clone())),
        },
    };
    State::Running {
        running: Running {
            run: Some(run),
            gone,
            shared,
            span: Span::current(),
            home: None,
        },
    }
}

/// A question to a store that does not answer at once.
struct Admitting<St: Store> {
    answer: Option<Question>,
    gone: Gone,
    shared: Arc<Shared<St>>,
    begin: Begin,
    home: Option<Handle>,
}

impl<St: Store> Admitting<St> {
    fn new(shared: Arc<Shared<St>>, begin: Begin) -> Self {
        let gone = Arc::new(AtomicBool::new(false));
        Self {
            answer: Some(Box::pin(engine::admit(Arc::clone(&shared), begin, Arc::clone(&gone)))),
            gone,
            shared,
            begin,
            home: None,
        }
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<Begun, StoreError>> {
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
        let (shared, slot, token) = (Arc::clone(&self.shared), self.begin.slot, self.begin.token);
        let home = self.home.take();
        adopt(&self.shared, home.as_ref(), async move {
            if let Ok(Begun::Started { attempt }) = answer.await {
                Claim::new(shared, slot, token, attempt).give_back().await;
            }
        });
    }
}

/// The inner service at work.
struct Running<RB: Body + 'static, E: 'static, St: Store> {
    run: Option<Run<RB, E>>,
    gone: Option<Gone>,
    shared: Arc<Shared<St>>,
    span: Span,
    home: Option<Handle>,
}

impl<RB: Body + 'static, E: 'static, St: Store> Running<RB, E, St> {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<Response<ResponseBody<RB>>, E>> {
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
        }
        tracing::debug!(target: "tower_idempotency", parent: &self.span, "the client left; its operation goes on");
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

impl<S, B, RB, St> fmt::Debug for ResponseFuture<S, B, RB, St>
where
    S: Service<Request<B>>,
    S::Error: 'static,
    RB: Body + 'static,
    St: Store,
{
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.state {
            State::Through { .. } | State::Passing { .. } => "ResponseFuture(through)",
            State::Reading { .. } => "ResponseFuture(reading)",
            State::Admitting { .. } => "ResponseFuture(admitting)",
            State::Running { .. } => "ResponseFuture(running)",
            State::Answered { .. } => "ResponseFuture(answered)",
        })
    }
}
