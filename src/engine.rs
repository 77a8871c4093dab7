//! The story of a guarded request: name it, claim it, run it or answer it from the store.
//!
//! ```text
//! Exchange::identify     key (400), scope (500) → slot
//! Exchange::claim        what the request is
//! admit                  the store decides; waits for another's outcome if told to
//! run                    inner service → policy → keep the body → settle the claim → respond
//! Exchange::answer       everything that is not a first run: replay or refuse
//! ```
//!
//! Decisions are pure functions elsewhere; what has an effect is here.

use std::future::{Future, poll_fn};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use http::request::Parts;
use http::{Request, Response, response};
use http_body::Body;
use tokio::time::Instant;
use tower::Service;
use tower::util::Oneshot;

use crate::body::ResponseBody;
use crate::collect::{Collect, Collected, declares_more_than};
use crate::config::Config;
use crate::error::StoreError;
use crate::exchange::{Exchange, outcome_unknown};
use crate::fingerprint::Fingerprint;
use crate::lease::{Claim, Settled, Settlement, Undone};
use crate::operation::IdempotencyKey;
use crate::outcome::Outcome;
use crate::policy::{Fate, Lapsed, Policy, Reconciled, Reconciler, Verdict};
use crate::problem::{Problem, ProblemKind};
use crate::record::Record;
use crate::shared::{Shared, Watch, at_once, bounded, within};
use crate::state::{Begin, Begun};
use crate::store::Store;

/// The inner service at work, or a claim being given back: what must not end with its client.
/// `None` if it was cancelled, when nobody waits for it.
pub(crate) type Run<RB, E> = Pin<Box<dyn Future<Output = Option<Result<Response<ResponseBody<RB>>, E>>> + Send>>;

/// What the store decided.
pub(crate) enum Admission<St: Store> {
    /// The handler is to run.
    Started(Claim<St>),
    /// It is not.
    Found(Begun),
}

/// A question to the store.
pub(crate) type Question<St> = Pin<Box<dyn Future<Output = Result<Admission<St>, StoreError>> + Send>>;

/// A flag that a future's owner raises when it is dropped.
pub(crate) type Gone = Arc<AtomicBool>;

fn admission<St: Store>(shared: &Arc<Shared<St>>, begin: &Begin, begun: Begun) -> Admission<St> {
    match begun {
        Begun::Started { attempt } => {
            Admission::Started(Claim::new(Arc::clone(shared), begin.slot, begin.token, attempt))
        }
        begun => Admission::Found(begun),
    }
}

/// Asks a store that answers at once, without a box for the wait.
pub(crate) fn admit_now<St: Store>(
    shared: &Arc<Shared<St>>,
    begin: &Begin,
) -> Option<Result<Admission<St>, StoreError>> {
    if !St::IN_PROCESS {
        return None;
    }
    let watch = Watch::start("begin");
    let Poll::Ready(answer) = at_once(shared.store.begin(begin)) else {
        return None;
    };
    watch.stop(answer.is_ok());
    match answer {
        // The wait needs its box.
        Ok(Begun::InFlight { .. }) if !shared.config.wait.is_zero() => None,
        answer => Some(answer.map(|begun| admission(shared, begin, begun))),
    }
}

/// Asks the store; if it is told to wait, until the other's outcome is there or the wait is over.
pub(crate) async fn admit<St: Store>(
    shared: Arc<Shared<St>>,
    begin: Begin,
    gone: Gone,
) -> Result<Admission<St>, StoreError> {
    let config = &shared.config;
    let mut deadline = None;
    for round in 0.. {
        let asked = Instant::now();
        let begun = bounded("begin", config.claim_timeout(), pin!(shared.store.begin(&begin))).await?;
        let nobody_waits = gone.load(Ordering::Relaxed);
        let lease_left = match admission(&shared, &begin, begun) {
            Admission::Started(mut claim) if !nobody_waits => {
                claim.hold(asked).await;
                return Ok(Admission::Started(claim));
            }
            Admission::Found(Begun::InFlight { lease_left }) if !nobody_waits => lease_left,
            admission => return Ok(admission),
        };
        let left = deadline
            .get_or_insert_with(|| Instant::now() + config.wait)
            .saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(Admission::Found(Begun::InFlight { lease_left }));
        }
        let nap = left.min(lease_left).max(Duration::from_millis(1));
        let mut changed = pin!(tokio::time::timeout(nap, shared.store.changed(&begin.slot, round)));
        poll_fn(|cx| match gone.load(Ordering::Relaxed) {
            // Nobody waits any more; the last look is for a claim that must be given back.
            true => Poll::Ready(()),
            false => changed.as_mut().poll(cx).map(drop),
        })
        .await;
    }
    unreachable!("the rounds do not end")
}

/// What a panic carries.
type Panic = Box<dyn std::any::Any + Send>;

/// How the inner service ended.
enum Ended<T> {
    Returned(T),
    Panicked(Panic),
    Cancelled,
}

/// Polls the inner service; a panic is caught, and a raised flag stops it.
async fn to_its_end<F: Future + ?Sized>(mut work: Pin<&mut F>, cancelled: Option<&Gone>) -> Ended<F::Output> {
    poll_fn(|cx| {
        if cancelled.is_some_and(|gone| gone.load(Ordering::Relaxed)) {
            return Poll::Ready(Ended::Cancelled);
        }
        // The future is not polled again after a panic, and what it shares is the handler's own.
        match catch_unwind(AssertUnwindSafe(|| work.as_mut().poll(cx))) {
            Ok(poll) => poll.map(Ended::Returned),
            Err(panic) => Poll::Ready(Ended::Panicked(panic)),
        }
    })
    .await
}

/// Runs the inner service under a claim, and settles the claim before the response goes out.
pub(crate) fn run<S, B, RB, St>(
    mut exchange: Box<Exchange<S, St>>,
    mut claim: Claim<St>,
    begin: &Begin,
    body: Bytes,
    cancelled: Option<Gone>,
) -> impl Future<Output = Option<Result<Response<ResponseBody<RB>>, S::Error>>> + use<S, B, RB, St>
where
    S: Service<Request<B>, Response = Response<RB>>,
    B: From<Bytes>,
    RB: Body<Data = Bytes>,
    St: Store,
{
    let fingerprint = begin.fingerprint;
    exchange.tell_handler(claim.attempt);
    claim.unit = exchange.shared.store.unit_of_work(begin);
    // What a problem is rendered from, if the answer cannot be committed.
    let head = claim.unit.as_ref().map(|unit| {
        let head = Box::new(exchange.parts.clone());
        unit.offer(&mut exchange.parts.extensions);
        head
    });
    async move {
        if claim.attempt > 1
            && let Some(reconciler) = claim.shared.config.policy.reconciler.clone()
            && let Some(answer) = Box::pin(reconcile(&mut exchange, &mut claim, fingerprint, &body, &reconciler)).await
        {
            return Some(Ok(answer));
        }
        // Apart from the call: what ends here has not begun the operation.
        match ready(&mut exchange.inner, cancelled.as_ref()).await {
            Ended::Returned(Ok(())) => {}
            ended => {
                claim.give_back().await;
                let tally = &claim.shared.tally;
                tally.report(Outcome::Released, Some(&claim.slot), Some(claim.attempt), None);
                return match ended {
                    Ended::Returned(ready) => ready.err().map(Err),
                    Ended::Panicked(panic) => resume_unwind(panic),
                    Ended::Cancelled => None,
                };
            }
        }
        match call(exchange, body, &claim.shared.config.policy, cancelled.as_ref()).await {
            Ended::Returned(Ok((verdict, response))) => {
                let response = keep(&mut claim, fingerprint, verdict, response, head, cancelled).await;
                Some(Ok(response))
            }
            Ended::Returned(Err(error)) => {
                let fate = claim.shared.config.policy.on_error;
                end_without_response(&mut claim, fingerprint, fate).await;
                Some(Err(error))
            }
            Ended::Panicked(panic) => {
                let fate = claim.shared.config.policy.on_panic;
                end_without_response(&mut claim, fingerprint, fate).await;
                resume_unwind(panic)
            }
            Ended::Cancelled => {
                let fate = claim.shared.config.cancel_on_disconnect.unwrap_or(Fate::Release);
                end_without_response(&mut claim, fingerprint, fate).await;
                None
            }
        }
    }
}

/// Waits until the inner service is ready.
async fn ready<S, B>(inner: &mut S, cancelled: Option<&Gone>) -> Ended<Result<(), S::Error>>
where
    S: Service<Request<B>>,
{
    let work = pin!(poll_fn(|cx| inner.poll_ready(cx)));
    to_its_end(work, cancelled).await
}

/// Calls the inner service, and judges its response.
async fn call<S, B, RB, St>(
    exchange: Box<Exchange<S, St>>,
    body: Bytes,
    policy: &Policy,
    cancelled: Option<&Gone>,
) -> Ended<Result<(Verdict, Response<RB>), S::Error>>
where
    S: Service<Request<B>, Response = Response<RB>>,
    B: From<Bytes>,
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

/// Keeps of a response what the policy says, and settles the claim.
fn keep<RB, St>(
    claim: &mut Claim<St>,
    fingerprint: Fingerprint,
    verdict: Verdict,
    response: Response<RB>,
    request: Option<Box<Parts>>,
    cancelled: Option<Gone>,
) -> impl Future<Output = Response<ResponseBody<RB>>>
where
    RB: Body<Data = Bytes>,
    St: Store,
{
    let (mut head, body) = response.into_parts();
    async move {
        let config = &claim.shared.config;
        let cancelled = cancelled.as_ref();
        let (settlement, body, panicked) = read_to_keep(config, fingerprint, verdict, &head, body, cancelled).await;
        let outcome = match &settlement {
            Settlement::Release | Settlement::Lapse => Outcome::Released,
            Settlement::Complete(record) if record.is_response() => Outcome::Executed,
            Settlement::Complete(_) => Outcome::Sealed,
        };
        let settled = match settlement {
            Settlement::Complete(record) => claim.complete(record).await,
            settlement => claim.settle(settlement).await,
        };
        let outcome = match settled {
            Settled::Yes | Settled::Later => outcome,
            Settled::Lost => Outcome::Released,
            Settled::Undone(why) => return refuse_undone(claim, why, request),
        };
        let tally = &claim.shared.tally;
        tally.report(outcome, Some(&claim.slot), Some(claim.attempt), Some(head.status));
        if let Some(panic) = panicked {
            resume_unwind(panic);
        }
        head.extensions.insert(outcome);
        Response::from_parts(head, body)
    }
}

/// Reads a response's body as far as it is to be kept: how the claim ends, the body to send, and the
/// panic of a body that panicked.
async fn read_to_keep<RB>(
    config: &Config,
    fingerprint: Fingerprint,
    verdict: Verdict,
    head: &response::Parts,
    body: RB,
    cancelled: Option<&Gone>,
) -> (Settlement, ResponseBody<RB>, Option<Panic>)
where
    RB: Body<Data = Bytes>,
{
    let tombstone = || Settlement::Complete(Record::response_not_retained(fingerprint, head.status));
    let settle_as = |fate| match fate {
        Fate::Seal => tombstone(),
        Fate::Release => Settlement::Release,
    };
    let lost = || settle_as(config.policy.on_lost_body);
    match verdict {
        Verdict::Release => return (Settlement::Release, ResponseBody::live(body), None),
        Verdict::Seal => return (tombstone(), ResponseBody::live(body), None),
        Verdict::Store => {}
    }
    if declares_more_than(&body, config.max_response_body) {
        let body = ResponseBody::overflowed([Bytes::new(), Bytes::new()], Box::pin(body));
        return (lost(), body, None);
    }
    // Boxed, so that the rest can be handed on after it was polled.
    let mut collect = Collect::new(Box::pin(body), config.max_response_body);
    let collected = {
        let work = pin!(to_its_end(Pin::new(&mut collect), cancelled));
        within(config.response_body_within, work).await
    };
    let (settlement, body) = match collected {
        Ok(Ended::Returned(Collected::Whole { data, trailers })) => {
            let skip = config.skips(&head.headers, trailers.is_some());
            let record = Record::response(
                fingerprint,
                head.status,
                &head.headers,
                skip,
                &data,
                trailers.as_deref(),
            );
            (Settlement::Complete(record), ResponseBody::kept(data, trailers))
        }
        Ok(Ended::Returned(Collected::TooLarge { data, next })) => {
            (lost(), ResponseBody::overflowed([data, next], collect.into_parts().1))
        }
        Ok(Ended::Returned(Collected::Failed { data, error })) => (lost(), ResponseBody::failed(data, error)),
        Ok(Ended::Panicked(panic)) => {
            return (lost(), ResponseBody::kept(Bytes::new(), None), Some(panic));
        }
        Err(_late) => {
            let (data, rest) = collect.into_parts();
            (lost(), ResponseBody::overflowed([data, Bytes::new()], rest))
        }
        Ok(Ended::Cancelled) => {
            let fate = config.cancel_on_disconnect.unwrap_or(Fate::Seal);
            (settle_as(fate), ResponseBody::kept(Bytes::new(), None))
        }
    };
    (settlement, body, None)
}

/// Asks the application what became of an operation whose earlier attempt died. `None`: it is to
/// run.
async fn reconcile<S, RB, St>(
    // Mutable, since a shared borrow across an await would ask for a `Sync` service.
    exchange: &mut Exchange<S, St>,
    claim: &mut Claim<St>,
    fingerprint: Fingerprint,
    body: &Bytes,
    reconciler: &Reconciler,
) -> Option<Response<ResponseBody<RB>>>
where
    RB: Body<Data = Bytes>,
    St: Store,
{
    let key = exchange.parts.extensions.get::<IdempotencyKey>()?.clone();
    let lapsed = Lapsed {
        key,
        request: exchange.parts.clone(),
        body: body.clone(),
    };
    let asked = match catch_unwind(AssertUnwindSafe(|| reconciler.ask(lapsed))) {
        // It goes on without its client, as a handler does.
        Ok(mut asking) => to_its_end(Pin::new(&mut asking), None).await,
        Err(panic) => Ended::Panicked(panic),
    };
    let response = match asked {
        Ended::Returned(Ok(Reconciled::Run)) => return None,
        Ended::Returned(Ok(Reconciled::Done(response))) => response,
        Ended::Returned(Err(error)) => {
            tracing::warn!(
                target: "tower_idempotency",
                slot = %claim.slot,
                error = &*error as &(dyn std::error::Error + 'static),
                "the reconciler could not find out what became of an operation; the next retry asks again"
            );
            claim.give_back().await;
            return Some(exchange.refuse(outcome_unknown()));
        }
        Ended::Panicked(panic) => {
            claim.give_back().await;
            resume_unwind(panic)
        }
        Ended::Cancelled => return None,
    };
    let config = &claim.shared.config;
    let (head, body) = response.into_parts();
    let skip = config.skips(&head.headers, false);
    let record = Record::response(fingerprint, head.status, &head.headers, skip, &body, None);
    claim.settle(Settlement::Complete(record.clone())).await;
    Some(
        exchange
            .answer(Begun::Done(record))
            .unwrap_or_else(|error| exchange.refuse_for_store(&error)),
    )
}

/// Takes the place of a response that would be a lie: what it speaks of is not there.
fn refuse_undone<RB, St>(claim: &Claim<St>, why: Undone, request: Option<Box<Parts>>) -> Response<ResponseBody<RB>>
where
    RB: Body<Data = Bytes>,
    St: Store,
{
    let shared = &claim.shared;
    let problem = undone(why);
    let request = request.map_or_else(|| Request::new(()).into_parts().0, |request| *request);
    let rendered = shared.config.rendering.render(&problem, &request);
    let outcome = Outcome::Refused(problem.kind());
    let (slot, attempt) = (Some(&claim.slot), Some(claim.attempt));
    shared.tally.report(outcome, slot, attempt, Some(rendered.status()));
    let mut response = rendered.map(|body| ResponseBody::kept(body, None));
    response.extensions_mut().insert(outcome);
    response
}

fn undone(why: Undone) -> Problem {
    match why {
        Undone::Lost => Problem::new(
            ProblemKind::InFlight,
            "Another attempt has taken this operation over, so what this one did is rolled back. Retry later.",
        ),
        Undone::Failed => Problem::new(
            ProblemKind::StoreUnavailable,
            "The operation could not be committed and is rolled back. Retry with the same key.",
        ),
        Undone::Unknown => Problem::new(
            ProblemKind::StoreUnavailable,
            "The server lost its database while it committed the operation. Retry with the same key to learn its outcome.",
        ),
    }
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
        .shared
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
    Some(Ok(exchange.refuse(Problem::new(
        ProblemKind::Overloaded,
        "Too much work goes on whose clients have left, so the operation did not run.",
    ))))
}

/// Runs the inner service although the store failed, as the layer was told to.
pub(crate) async fn run_unprotected<S, B, RB, St>(
    mut exchange: Box<Exchange<S, St>>,
    body: Bytes,
    error: StoreError,
    cancelled: Option<Gone>,
) -> Option<Result<Response<ResponseBody<RB>>, S::Error>>
where
    S: Service<Request<B>, Response = Response<RB>>,
    B: From<Bytes>,
    RB: Body<Data = Bytes>,
    St: Store,
{
    exchange.warn_of(&error, "the store failed; the request runs unprotected");
    let shared = Arc::clone(&exchange.shared);
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
    shared.tally.report(Outcome::Unprotected, slot.as_ref(), None, status);
    let result = result.unwrap_or_else(|panic| resume_unwind(panic))?;
    Some(result.map(|response| {
        let mut response = response.map(ResponseBody::live);
        response.extensions_mut().insert(Outcome::Unprotected);
        response
    }))
}
