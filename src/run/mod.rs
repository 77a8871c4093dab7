//! Runs one operation, from its claim until the claim is settled.
//!
//! ```text
//! called          key in the head (400), scope (500)                      Exchange::identify
//! body_read       the whole body (413, 400), key in the body → claim      Exchange::claim
//! claim_unread    or: a body that is not held → claim on the head         unread, upload
//! store_answered  claimed  → run the handler                              decide, handler, keep
//!                 found    → replay, or refuse (409, 422)                 Exchange::answer, compare
//!                 failed   → refuse (503), or run unprotected
//! handler::run    reconcile → inner service → policy → read the body → settle the claim → respond
//! ```
//!
//! Decisions are pure functions on the floors below. Effects happen only here.

mod admit;
mod breaker;
mod claim;
mod commit;
mod compare;
pub(crate) mod config;
mod decide;
mod detach;
mod ended;
pub(crate) mod exchange;
mod grpc;
pub(crate) mod guard;
mod handler;
mod keep;
mod pauses;
mod read_response;
mod received;
mod reconcile;
mod renewal;
mod settlement;
pub(crate) mod stage;
mod store_call;
mod stream;
mod timer;
mod unread;
mod upload;

use std::pin::Pin;
use std::sync::Arc;

use http::Request;

use admit::admit_now;
use detach::Admitting;
use exchange::Exchange;
use guard::Guard;
use received::Received;
use stage::Stage;

use crate::answer::Problem;
use crate::answer::problem::ProblemKind;
use crate::body::{Collected, drain, is_length_limit, let_go};
use crate::bounds::{GuardedBody, GuardedService};
use crate::request::Fingerprint;
use crate::request::key::KeyText;
use crate::store::Store;

/// Called when a request has arrived. `inner` is ready for the request.
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

/// Passes on a request unchanged.
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

/// Called when a request with a guarded method has arrived.
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
    // The request uses the service that is ready. The clone is kept for the next call.
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
    let unread = match identified {
        Ok(()) => exchange.to_claim_unread(&body),
        Err(problem) => Err(problem),
    };
    match unread {
        Ok(Some(unread)) => exchange.claim_unread(unread, body),
        Ok(None) => Stage::reading(exchange, body),
        Err(problem) => {
            // Like all background work, draining needs a timer.
            if problem.kind() != ProblemKind::Misconfigured {
                let_go(&exchange.parts.headers, body);
            }
            Stage::answered(exchange.refuse(problem))
        }
    }
}

impl<S, St: Store> Exchange<S, St> {
    /// Continues with the body, or with the reason why it could not be read. `rest` is the unread
    /// part of a body that was not read to its end.
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
                let problem = if is_length_limit(&*error.into()) {
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
                Ok(None) => return self.pass(Received::Whole(body)),
                Err(problem) => Err(problem),
            };
            if let Err(problem) = identified {
                return Stage::answered(self.refuse(problem));
            }
        }
        if let Err(problem) = self.check_digest(&body) {
            return Stage::answered(self.refuse(problem));
        }
        let fingerprint = self.guard.config.fingerprint.of(&self.parts, &body);
        self.claim(fingerprint, Received::Whole(body))
    }

    /// Requests the claim from the store.
    fn claim<B>(mut self: Box<Self>, fingerprint: Fingerprint, body: Received<B>) -> Stage<S, B, St>
    where
        S: GuardedService<B>,
        B: GuardedBody,
    {
        let Some(begin) = self.claim_request(fingerprint) else {
            return self.pass(body);
        };
        let outer = self.claims_of_outer_layers();
        if let Some(answer) = admit_now(&self.guard, &begin, &outer) {
            return self.store_answered(&begin, answer, body);
        }
        if !self.guard.config.wait.is_zero() && outer.is_empty() {
            // A waiting request must not hold the capacity that readiness reserved, for example
            // under a concurrency limit. A request that an outer layer has claimed may continue
            // without waiting, and then needs that capacity.
            self.inner = self.inner.clone();
        }
        Stage::Admitting {
            asked: Admitting::new(Arc::clone(&self.guard), begin, outer),
            exchange: Some(self),
            body: Some(body),
        }
    }

    /// Refuses a gRPC stream. `rest` is the unread part of its body.
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
}
