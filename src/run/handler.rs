//! Runs the inner service, under a claim or unprotected, and reports how it ended.

use std::future::{Future, poll_fn};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Poll, ready};

use bytes::Bytes;
use http::{Method, Request, Response};
use http_body::Body;
use tower::Service;
use tower::util::Oneshot;

use super::claim::Claim;
use super::config::Config;
use super::ended::{Disconnected, Ended, to_its_end};
use super::exchange::Exchange;
use super::keep::{Asked, judge, keep, remove_marker};
use super::received::Received;
use super::reconcile::reconcile;
use super::settlement::{Settled, Undone};
use crate::answer::{Fate, Outcome, Problem, Verdict};
use crate::body::ResponseBody;
use crate::bounds::{GuardedBody, GuardedService};
use crate::store::{ClaimRequest, Record, Store, StoreError};

/// The result of a run. `None` if the run was cancelled, because no client is waiting for the
/// result in that case.
type Ending<RB, E> = Option<Result<Response<ResponseBody<RB>>, E>>;

/// The result of a run of a service.
type EndingOf<S, B> = Ending<<S as GuardedService<B>>::ResponseBody, <S as Service<Request<B>>>::Error>;

/// The running inner service, or the call that gives a claim back. Either must continue after its
/// client has disconnected.
pub(crate) type Run<RB, E> = Pin<Box<dyn Future<Output = Ending<RB, E>> + Send>>;

/// Runs the inner service under a claim, and settles the claim before the response is sent.
pub(crate) fn run<S, B, St>(
    mut exchange: Box<Exchange<S, St>>,
    mut claim: Claim<St>,
    begin: &ClaimRequest,
    body: Received<B>,
    cancelled: Option<Disconnected>,
) -> impl Future<Output = EndingOf<S, B>> + use<S, B, St>
where
    S: GuardedService<B>,
    B: GuardedBody,
    St: Store,
{
    exchange.tell_handler(&claim);
    // A request that waited may have its claim under another token than the one that it began with.
    let begin = begin.with_token(claim.token());
    claim.unit = exchange.guard.store.unit_of_work(&begin);
    let may_be_refused = claim.unit.is_some() || claim.upload.is_some();
    let head = may_be_refused.then(|| Box::new(exchange.parts.clone()));
    if let Some(unit) = &claim.unit {
        unit.offer(&mut exchange.parts.extensions);
    }
    let asked = Asked {
        is_head: exchange.parts.method == Method::HEAD,
        head,
    };
    async move {
        if claim.attempt > 1
            && let Some(reconciler) = claim.guard.config.policy.reconciler.clone()
            && let Some(answer) = Box::pin(reconcile(&mut exchange, &mut claim, body.held(), &reconciler)).await
        {
            body.refuse(&exchange.parts.headers);
            return Some(Ok(answer));
        }
        // This step is separate from the call, because a request that is cancelled or fails here
        // has not begun the operation.
        match until_ready(&mut exchange.inner, cancelled.as_ref()).await {
            Ended::Returned(Ok(())) => {}
            ended => {
                claim.give_back().await;
                let tally = &claim.guard.tally;
                tally.report(Outcome::Released, Some(&claim.slot), Some(claim.attempt), None);
                return match ended {
                    Ended::Returned(ready) => ready.err().map(Err),
                    Ended::Panicked(panic) => resume_unwind(panic),
                    Ended::Cancelled => None,
                };
            }
        }
        let policy = &claim.guard.config.policy;
        // `keep` is called after this match, because the matched value takes space while an arm is
        // awaited.
        let (verdict, response) = match call(exchange, body, &claim.guard.config, cancelled.as_ref()).await {
            Ended::Returned(Ok(judged)) => judged,
            ended => {
                let fate = match ended {
                    Ended::Returned(_) => policy.on_error,
                    Ended::Panicked(_) => policy.on_panic,
                    Ended::Cancelled => claim.guard.config.cancel_on_disconnect.unwrap_or(Fate::Release),
                };
                end_without_response(&mut claim, fate).await;
                return match ended {
                    Ended::Returned(result) => result.err().map(Err),
                    Ended::Panicked(panic) => resume_unwind(panic),
                    Ended::Cancelled => None,
                };
            }
        };
        Some(Ok(keep(&mut claim, asked, verdict, response, cancelled).await))
    }
}

/// Waits until the inner service is ready.
async fn until_ready<S, B>(inner: &mut S, cancelled: Option<&Disconnected>) -> Ended<Result<(), S::Error>>
where
    S: Service<Request<B>>,
{
    let work = pin!(poll_fn(|cx| inner.poll_ready(cx)));
    to_its_end(work, cancelled).await
}

/// Calls the inner service, and judges the head of its response.
async fn call<S, B, St>(
    exchange: Box<Exchange<S, St>>,
    body: Received<B>,
    config: &Config,
    cancelled: Option<&Disconnected>,
) -> Ended<Result<(Option<Verdict>, Response<S::ResponseBody>), S::Error>>
where
    S: GuardedService<B>,
    B: GuardedBody,
    St: Store,
{
    // The call is pinned where it is created, because a local variable would take its space in this
    // future twice.
    let mut call = pin!(match catch_unwind(AssertUnwindSafe(|| exchange.call(body))) {
        Ok(call) => Some(call),
        Err(panic) => return Ended::Panicked(panic),
    });
    let work = poll_fn(|cx| {
        let Some(polled) = call.as_mut().as_pin_mut() else {
            return Poll::Pending;
        };
        let response = ready!(polled.poll(cx));
        // The future's destructor and the policy's closure are part of the work, because they may
        // panic as well.
        call.set(None);
        Poll::Ready(response.map(|response| (judge(config, &response), response)))
    });
    to_its_end(pin!(work), cancelled).await
}

/// Settles the claim of a handler that returned no response.
async fn end_without_response<St: Store>(claim: &mut Claim<St>, fate: Fate) {
    let (settlement, outcome) = claim.settlement_of(fate, Record::outcome_unknown);
    let outcome = match claim.settle(&settlement).await {
        Settled::Undone(Undone::Broken) => Outcome::Sealed,
        _ => outcome,
    };
    let tally = &claim.guard.tally;
    tally.report(outcome, Some(&claim.slot), Some(claim.attempt), None);
}

/// Refuses an operation that has not begun, and gives its claim back.
pub(crate) async fn refuse<S, RB, E, St>(
    exchange: Box<Exchange<S, St>>,
    claim: Option<Claim<St>>,
    problem: Problem,
) -> Option<Result<Response<ResponseBody<RB>>, E>>
where
    RB: Body<Data = Bytes>,
    St: Store,
{
    if let Some(mut claim) = claim {
        claim.give_back().await;
    }
    Some(Ok(exchange.refuse(problem)))
}

/// Runs the inner service although the store failed, because the layer fails open.
pub(crate) async fn run_unprotected<S, B, St>(
    mut exchange: Box<Exchange<S, St>>,
    body: Received<B>,
    error: StoreError,
    cancelled: Option<Disconnected>,
) -> EndingOf<S, B>
where
    S: GuardedService<B>,
    B: GuardedBody,
    St: Store,
{
    exchange.warn_of(&error, "the store failed; the request runs unprotected");
    let guard = Arc::clone(&exchange.guard);
    let slot = exchange.identity.as_ref().map(|identity| identity.slot);
    exchange.tell_handler_unprotected();
    let (inner, request) = exchange.into_request(body);
    let call = pin!(Oneshot::new(inner, request));
    let (result, status) = match to_its_end(call, cancelled.as_ref()).await {
        Ended::Returned(result) => {
            let status = result.as_ref().ok().map(Response::status);
            (Ok(Some(result)), status)
        }
        Ended::Panicked(panic) => (Err(panic), None),
        Ended::Cancelled => (Ok(None), None),
    };
    guard.tally.report(Outcome::Unprotected, slot.as_ref(), None, status);
    let result = result.unwrap_or_else(|panic| resume_unwind(panic))?;
    Some(result.map(|response| {
        let mut response = response.map(ResponseBody::live);
        remove_marker(response.headers_mut(), &guard.config);
        response.extensions_mut().insert(Outcome::Unprotected);
        response
    }))
}
