//! The future of [`IdempotencyService`](crate::IdempotencyService), its states named.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::{Request, Response};
use http_body::Body;
use pin_project_lite::pin_project;
use tower::Service;

use crate::body::ResponseBody;
use crate::collect::{Collect, Collected, Unread, drain};
use crate::detach::{Admitting, Running};
use crate::engine::{self, Admission, Gone, Run};
use crate::error::StoreError;
use crate::exchange::{Exchange, body_too_large, body_unreadable};
use crate::lease::take_back;
use crate::state::Begin;
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
        E: 'static,
        RB: Body,
        RB: 'static,
        St: Store,
    {
        // Not guarded, or buffered to look for the key and not guarded after all: the inner
        // service's own future.
        Through { #[pin] future: F },
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
            return refuse(exchange, body_too_large(limit));
        }
        Collected::Failed { .. } => return refuse(exchange, body_unreadable()),
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
    State::Through {
        future: exchange.call(body),
    }
}

/// The store has decided, or failed.
fn after_asking<S, B, RB, St>(
    exchange: Box<Exchange<S, St>>,
    begin: &Begin,
    answer: Result<Admission<St>, StoreError>,
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
    let error = match answer {
        Ok(Admission::Started(claim)) => {
            let run: Run<RB, S::Error> = if overloaded() {
                Box::pin(engine::refuse_overload(exchange, Some(claim)))
            } else {
                Box::pin(engine::run(exchange, claim, begin, body, gone.clone()))
            };
            return State::Running {
                running: Running::new(run, gone, shared),
            };
        }
        Ok(Admission::Found(begun)) => match exchange.answer(begun) {
            Ok(response) => {
                return State::Answered {
                    response: Some(response),
                };
            }
            Err(error) => error,
        },
        Err(error) => {
            take_back(&shared, *begin, &error);
            error
        }
    };
    // The store failed before the handler ran.
    if !config.fail_open {
        return State::Answered {
            response: Some(exchange.refuse_for_store(&error)),
        };
    }
    let run: Run<RB, S::Error> = if overloaded() {
        Box::pin(engine::refuse_overload(exchange, None))
    } else {
        Box::pin(engine::run_unprotected(exchange, body, error, gone.clone()))
    };
    State::Running {
        running: Running::new(run, gone, shared),
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
            State::Through { .. } => "ResponseFuture(through)",
            State::Reading { .. } => "ResponseFuture(reading)",
            State::Admitting { .. } => "ResponseFuture(admitting)",
            State::Running { .. } => "ResponseFuture(running)",
            State::Answered { .. } => "ResponseFuture(answered)",
        })
    }
}
