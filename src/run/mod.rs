//! One operation, from its claim until the claim is settled.
//!
//! ```text
//! called          key in the head (400), scope (500)                      Exchange::identify
//! body_read       the whole body (413, 400), key in the body → claim      Exchange::claim
//! store_answered  claimed  → run the handler                              handler, keep
//!                 found    → replay, or refuse (409, 422)                 Exchange::answer
//!                 failed   → refuse (503), or run unprotected
//! handler::run    reconcile → inner service → policy → read the body → settle the claim → respond
//! ```
//!
//! Decisions are pure functions of the floors below; what has an effect is here.

mod admit;
mod breaker;
mod claim;
mod commit;
pub(crate) mod config;
mod detach;
mod ended;
pub(crate) mod exchange;
mod grpc;
pub(crate) mod guard;
mod handler;
mod keep;
mod pauses;
mod read_response;
mod reconcile;
mod renewal;
mod settlement;
pub(crate) mod stage;
mod store_call;
mod stream;
mod timer;

use std::pin::Pin;
use std::sync::Arc;

use bytes::Bytes;
use http::Request;

use admit::{Admission, admit_now};
use detach::{Admitting, Running};
use ended::Disconnected;
use exchange::Exchange;
use guard::Guard;
use handler::{Run, refuse_overload, run, run_unprotected};
use stage::Stage;

use crate::answer::Problem;
use crate::answer::problem::ProblemKind;
use crate::body::{Collected, declares_more_than, drain};
use crate::bounds::{GuardedBody, GuardedService};
use crate::error::BoxError;
use crate::request::key::KeyText;
use crate::store::{ClaimRequest, Store, StoreError, StoreErrorKind};

/// A request has arrived; `inner` is ready for it.
pub(crate) fn called<S, B, St>(guard: &Arc<Guard<St>>, inner: &mut S, request: Request<B>) -> Stage<S, B, St>
where
    S: GuardedService<B>,
    B: GuardedBody,
    St: Store,
{
    let config = &guard.config;
    if !config.guards(request.method()) {
        return through(guard, inner, request);
    }
    if let Some(passes) = &config.pass_when {
        let (parts, body) = request.into_parts();
        let passes = (passes.0)(&parts);
        let request = Request::from_parts(parts, body);
        return if passes {
            through(guard, inner, request)
        } else {
            guarded(guard, inner, request)
        };
    }
    guarded(guard, inner, request)
}

/// Sends a request on untouched.
fn through<S, B, St>(guard: &Guard<St>, inner: &mut S, request: Request<B>) -> Stage<S, B, St>
where
    S: GuardedService<B>,
    B: GuardedBody,
    St: Store,
{
    guard.tally.report_unguarded();
    Stage::Through {
        future: inner.call(request),
    }
}

/// A request of a guarded method has arrived.
fn guarded<S, B, St>(guard: &Arc<Guard<St>>, inner: &mut S, request: Request<B>) -> Stage<S, B, St>
where
    S: GuardedService<B>,
    B: GuardedBody,
    St: Store,
{
    let config = &guard.config;
    let mut request = request;
    let found = if config.key.source.is_of_head() {
        let (parts, body) = request.into_parts();
        let found = config.key.in_head(&parts);
        request = Request::from_parts(parts, body);
        found
    } else {
        config.key.in_headers(request.headers())
    };
    let key = match found {
        Ok(Some(key)) => Ok(Some(KeyText::from(&*key))),
        Ok(None) if config.key.source.needs_body() => Ok(None),
        Ok(None) if !config.require_key => return through(guard, inner, request),
        Ok(None) => Err(Problem::missing_key()),
        Err(invalid) => Err(Problem::invalid_key(invalid)),
    };
    let key = if guard.timer.is_there() {
        key
    } else {
        Err(Problem::misconfigured())
    };
    // The service that was found ready goes along; its clone is for the next call.
    let clone = inner.clone();
    let ready = std::mem::replace(inner, clone);
    let (parts, body) = request.into_parts();
    let mut exchange = Box::new(Exchange {
        guard: Arc::clone(guard),
        inner: ready,
        parts,
        identity: None,
    });
    let identified = match key {
        Ok(Some(key)) => exchange.identify(key),
        Ok(None) => Ok(()),
        Err(problem) => Err(problem),
    };
    // A body that declares a length above the limit is not read.
    let limit = config.max_request_body;
    let identified = match identified {
        Ok(()) if declares_more_than(&body, limit) => Err(Problem::body_too_large(limit)),
        identified => identified,
    };
    match identified {
        Ok(()) => Stage::reading(exchange, body),
        Err(problem) => {
            // Draining takes a timer, as all work in the background does.
            if problem.kind() != ProblemKind::Misconfigured {
                drain(body);
            }
            Stage::answered(exchange.refuse(problem))
        }
    }
}

/// Whether a body failed since a layer further out limits its length.
fn is_length_limit(error: BoxError) -> bool {
    let mut next: Option<&(dyn std::error::Error + 'static)> = Some(&*error);
    while let Some(error) = next {
        if error.is::<http_body_util::LengthLimitError>() {
            return true;
        }
        next = error.source();
    }
    false
}

impl<S, St: Store> Exchange<S, St> {
    /// The body is there, or why it is not. `rest` is what is left of a body that was not read to its
    /// end.
    pub(crate) fn body_read<B>(
        mut self: Box<Self>,
        collected: Collected<B::Error>,
        rest: Option<Pin<Box<B>>>,
    ) -> Stage<S, B, St>
    where
        S: GuardedService<B>,
        B: GuardedBody,
    {
        let body = match collected {
            Collected::Whole { data, .. } => data,
            Collected::TooLarge { .. } => {
                if let Some(rest) = rest {
                    drain(rest);
                }
                let limit = self.guard.config.max_request_body;
                return Stage::answered(self.refuse(Problem::body_too_large(limit)));
            }
            Collected::Failed { error, .. } => {
                let problem = if is_length_limit(error.into()) {
                    Problem::body_cut_off()
                } else {
                    Problem::body_unreadable()
                };
                return Stage::answered(self.refuse(problem));
            }
        };
        if self.identity.is_none() {
            let identified = match self.key_in(&body) {
                Ok(Some(key)) => self.identify(key),
                Ok(None) => return self.pass(body),
                Err(problem) => Err(problem),
            };
            if let Err(problem) = identified {
                return Stage::answered(self.refuse(problem));
            }
        }
        let Some(begin) = self.claim(&body) else {
            return self.pass(body);
        };
        let outer = self.tokens_of_outer_layers();
        if let Some(answer) = admit_now(&self.guard, &begin, &outer) {
            return self.store_answered(&begin, answer, body);
        }
        if !self.guard.config.wait.is_zero() && outer.is_empty() {
            // Waiting must not hold the place that readiness reserved, as under a concurrency limit. A
            // request that an outer layer has claimed may go on without waiting, and then needs it.
            self.inner = self.inner.clone();
        }
        Stage::Admitting {
            asked: Admitting::new(Arc::clone(&self.guard), begin, outer),
            exchange: Some(self),
            body,
        }
    }

    /// The request is a gRPC stream, of which this is left.
    pub(crate) fn refuse_stream<B>(&self, rest: Option<Pin<Box<B>>>) -> Stage<S, B, St>
    where
        S: GuardedService<B>,
        B: GuardedBody,
    {
        if let Some(rest) = rest {
            drain(rest);
        }
        let within = self.guard.config.grpc_request_within.unwrap_or_default();
        Stage::answered(self.refuse(Problem::key_on_a_stream(within)))
    }

    /// Sends a request whose body was buffered on as if it had not been.
    fn pass<B>(self, body: Bytes) -> Stage<S, B, St>
    where
        S: GuardedService<B>,
        B: GuardedBody,
    {
        self.guard.tally.report_unguarded();
        Stage::Through {
            future: self.call(body),
        }
    }

    /// The store has decided, or failed.
    pub(crate) fn store_answered<B>(
        self: Box<Self>,
        begin: &ClaimRequest,
        answer: Result<Admission<St>, StoreError>,
        body: Bytes,
    ) -> Stage<S, B, St>
    where
        S: GuardedService<B>,
        B: GuardedBody,
    {
        let guard = Arc::clone(&self.guard);
        let cancel = guard.config.cancel_on_disconnect.map(|_| Disconnected::default());
        let running = |run: Run<S::ResponseBody, S::Error>, cancel| Stage::Running {
            running: Running::new(run, cancel, Arc::clone(&guard)),
        };
        let error = match answer {
            Ok(Admission::Started(claim)) => {
                let run: Run<_, _> = if guard.is_overloaded() {
                    Box::pin(refuse_overload(self, Some(claim)))
                } else {
                    Box::pin(run(self, claim, begin, body, cancel.clone()))
                };
                return running(run, cancel);
            }
            Ok(Admission::HeldOutside) => return self.pass(body),
            Ok(Admission::Found(found)) => match self.answer(found) {
                Ok(response) => return Stage::answered(response),
                Err(error) => error,
            },
            Err(error) => error,
        };
        // The store failed before the handler ran. That it has a record which cannot be read says that
        // the operation was done.
        if !guard.config.fail_open || error.kind() == StoreErrorKind::Corrupt {
            return Stage::answered(self.refuse_for_store(&error));
        }
        let run: Run<_, _> = if guard.is_overloaded() {
            Box::pin(refuse_overload(self, None))
        } else {
            Box::pin(run_unprotected(self, body, error, cancel.clone()))
        };
        running(run, cancel)
    }
}
