//! Runs the inner service, under a claim or unprotected, and says how it ended.

use std::future::{Future, poll_fn};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::pin::{Pin, pin};
use std::sync::Arc;

use bytes::Bytes;
use http::{Request, Response};
use http_body::Body;
use tower::Service;
use tower::util::Oneshot;

use super::claim::Claim;
use super::ended::{Disconnected, Ended, to_its_end};
use super::exchange::Exchange;
use super::keep::keep;
use super::reconcile::reconcile;
use super::settlement::Settlement;
use crate::answer::{Fate, Outcome, Policy, Problem, Verdict};
use crate::body::ResponseBody;
use crate::bounds::{GuardedBody, GuardedService};
use crate::request::Fingerprint;
use crate::store::{Begin, Record, Store, StoreError};

/// What a run ends with. `None` if it was cancelled, when nobody waits for it.
type Ending<RB, E> = Option<Result<Response<ResponseBody<RB>>, E>>;

/// What the run of a service ends with.
type EndingOf<S, B> = Ending<<S as GuardedService<B>>::ResponseBody, <S as Service<Request<B>>>::Error>;

/// The inner service at work, or a claim being given back: what must not end with its client.
pub(crate) type Run<RB, E> = Pin<Box<dyn Future<Output = Ending<RB, E>> + Send>>;

/// Runs the inner service under a claim, and settles the claim before the response goes out.
pub(crate) fn run<S, B, St>(
    mut exchange: Box<Exchange<S, St>>,
    mut claim: Claim<St>,
    begin: &Begin,
    body: Bytes,
    cancelled: Option<Disconnected>,
) -> impl Future<Output = EndingOf<S, B>> + use<S, B, St>
where
    S: GuardedService<B>,
    B: GuardedBody,
    St: Store,
{
    let fingerprint = begin.fingerprint;
    exchange.tell_handler(claim.attempt);
    claim.unit = exchange.guard.store.unit_of_work(begin);
    // What a problem is rendered from, if the answer cannot be committed.
    let head = claim.unit.as_ref().map(|unit| {
        let head = Box::new(exchange.parts.clone());
        unit.offer(&mut exchange.parts.extensions);
        head
    });
    async move {
        if claim.attempt > 1
            && let Some(reconciler) = claim.guard.config.policy.reconciler.clone()
            && let Some(answer) = Box::pin(reconcile(&mut exchange, &mut claim, fingerprint, &body, &reconciler)).await
        {
            return Some(Ok(answer));
        }
        // Apart from the call: what ends here has not begun the operation.
        match ready(&mut exchange.inner, cancelled.as_ref()).await {
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
        match call(exchange, body, &claim.guard.config.policy, cancelled.as_ref()).await {
            Ended::Returned(Ok((verdict, response))) => {
                let response = keep(&mut claim, fingerprint, verdict, response, head, cancelled).await;
                Some(Ok(response))
            }
            Ended::Returned(Err(error)) => {
                let fate = claim.guard.config.policy.on_error;
                end_without_response(&mut claim, fingerprint, fate).await;
                Some(Err(error))
            }
            Ended::Panicked(panic) => {
                let fate = claim.guard.config.policy.on_panic;
                end_without_response(&mut claim, fingerprint, fate).await;
                resume_unwind(panic)
            }
            Ended::Cancelled => {
                let fate = claim.guard.config.cancel_on_disconnect.unwrap_or(Fate::Release);
                end_without_response(&mut claim, fingerprint, fate).await;
                None
            }
        }
    }
}

/// Waits until the inner service is ready.
async fn ready<S, B>(inner: &mut S, cancelled: Option<&Disconnected>) -> Ended<Result<(), S::Error>>
where
    S: Service<Request<B>>,
{
    let work = pin!(poll_fn(|cx| inner.poll_ready(cx)));
    to_its_end(work, cancelled).await
}

/// Calls the inner service, and judges its response.
async fn call<S, B, St>(
    exchange: Box<Exchange<S, St>>,
    body: Bytes,
    policy: &Policy,
    cancelled: Option<&Disconnected>,
) -> Ended<Result<(Verdict, Response<S::ResponseBody>), S::Error>>
where
    S: GuardedService<B>,
    B: GuardedBody,
    St: Store,
{
    // Pinned where it is made: as a local it would have two places in this future.
    let mut call = pin!(match catch_unwind(AssertUnwindSafe(|| exchange.call(body))) {
        Ok(call) => call,
        Err(panic) => return Ended::Panicked(panic),
    });
    // What the policy says is part of the work: its closure may panic, too.
    let work = pin!(poll_fn(|cx| call.as_mut().poll(cx).map_ok(|response| {
        let verdict = policy.verdict(response.status(), response.headers());
        (verdict, response)
    })));
    to_its_end(work, cancelled).await
}

/// Settles the claim of a handler that gave no response.
async fn end_without_response<St: Store>(claim: &mut Claim<St>, fingerprint: Fingerprint, fate: Fate) {
    let (settlement, outcome) = match fate {
        Fate::Release => (Settlement::Release, Outcome::Released),
        Fate::Seal => (
            Settlement::Complete(Record::outcome_unknown(fingerprint)),
            Outcome::Sealed,
        ),
    };
    claim.settle(settlement).await;
    claim
        .guard
        .tally
        .report(outcome, Some(&claim.slot), Some(claim.attempt), None);
}

/// Refuses because too much work goes on without its client, and gives the claim back.
pub(crate) async fn refuse_overload<S, RB, E, St>(
    exchange: Box<Exchange<S, St>>,
    claim: Option<Claim<St>>,
) -> Option<Result<Response<ResponseBody<RB>>, E>>
where
    RB: Body<Data = Bytes>,
    St: Store,
{
    if let Some(mut claim) = claim {
        claim.give_back().await;
    }
    Some(Ok(exchange.refuse(Problem::overloaded())))
}

/// Runs the inner service although the store failed, as the layer was told to.
pub(crate) async fn run_unprotected<S, B, St>(
    mut exchange: Box<Exchange<S, St>>,
    body: Bytes,
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
    exchange.tell_handler(1);
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
        response.extensions_mut().insert(Outcome::Unprotected);
        response
    }))
}
