//! The story of a guarded request: name it, claim it, run it or answer it from the store.
//!
//! ```text
//! Exchange::identify     key (400), scope (500) → slot
//! Exchange::fingerprint  what the request is
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
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use http::header::HeaderValue;
use http::request::Parts;
use http::{Request, Response};
use http_body::Body;
use tokio::time::Instant;
use tower::Service;
use tower::util::Oneshot;

use crate::body::ResponseBody;
use crate::collect::{Collect, Collected};
use crate::error::StoreError;
use crate::fingerprint::Fingerprint;
use crate::key::InvalidKey;
use crate::lease::{Claim, Settled, Settlement, Shared, Watch, bounded, warn_of};
use crate::operation::{IdempotencyKey, KeyText};
use crate::outcome::Outcome;
use crate::policy::{Fate, Verdict};
use crate::problem::{Problem, ProblemKind};
use crate::record::{Opened, Record};
use crate::scope::{Scoped, Slot};
use crate::state::{Begin, Begun};
use crate::store::Store;

/// A guarded request on its way to a decision.
pub(crate) struct Exchange<S, St> {
    pub(crate) shared: Arc<Shared<St>>,
    /// It has said that it is ready, or is asked before it is called.
    pub(crate) inner: S,
    pub(crate) parts: Parts,
    pub(crate) identity: Option<Identity>,
}

/// Whose key it is, and which.
pub(crate) struct Identity {
    key: KeyText,
    slot: Slot,
}

/// The inner service at work, or a claim being given back: what must not end with its client.
/// `None` if it was cancelled, when nobody waits for it.
pub(crate) type Run<RB, E> = Pin<Box<dyn Future<Output = Option<Result<Response<ResponseBody<RB>>, E>>> + Send>>;

/// A question to the store.
pub(crate) type Question = Pin<Box<dyn Future<Output = Result<Begun, StoreError>> + Send>>;

/// A flag that a future's owner raises when it is dropped.
pub(crate) type Gone = Arc<AtomicBool>;

impl<S, St: Store> Exchange<S, St> {
    /// Finds the key in the body, if that is where keys are. `None`: the request has none, and may
    /// pass.
    pub(crate) fn key_in(&self, body: &Bytes) -> Result<Option<KeyText>, Problem> {
        let config = &self.shared.config;
        match config.key.in_body(&self.parts, body).map_err(invalid_key)? {
            Some(key) => Ok(Some(KeyText::from(&*key))),
            None if config.require_key => Err(missing_key()),
            None => Ok(None),
        }
    }

    /// Says whose key it is.
    pub(crate) fn identify(&mut self, key: KeyText) -> Result<(), Problem> {
        let scoped = self.shared.config.scope.slot(&self.parts, key.as_str());
        let Scoped { slot, overlooks_cookie } = scoped.map_err(|unavailable| {
            tracing::error!(
                target: "tower_idempotency",
                error = &*unavailable.0 as &(dyn std::error::Error + 'static),
                "the scope of a request cannot be determined"
            );
            Problem::new(
                ProblemKind::ScopeUnavailable,
                "The server could not tell whose key it is.",
            )
        })?;
        if overlooks_cookie && !self.shared.warned_of_cookie.swap(true, Ordering::Relaxed) {
            tracing::warn!(
                target: "tower_idempotency",
                "a request has a Cookie and no Authorization: under the default scope such requests share their \
                 keys; set a scope that tells your sessions apart"
            );
        }
        self.identity = Some(Identity { key, slot });
        Ok(())
    }

    /// Whether another idempotency layer further out has claimed this very operation: this one
    /// would find it in flight.
    pub(crate) fn is_claimed_outside(&self) -> bool {
        let outer = self.parts.extensions.get::<IdempotencyKey>();
        outer.is_some_and(|outer| Some(outer.slot()) == self.identity.as_ref().map(|identity| &identity.slot))
    }

    /// The claim to ask for. `None` if the request was not identified.
    pub(crate) fn claim(&self, body: &Bytes) -> Option<Begin> {
        let config = &self.shared.config;
        Some(Begin {
            slot: self.identity.as_ref()?.slot,
            fingerprint: config.fingerprint.of(&self.parts, body),
            token: self.shared.token(),
            lease: config.lease,
            ttl: config.ttl,
            on_lapse: config.policy.on_lapse,
        })
    }

    /// Answers without running: from what the store found.
    pub(crate) fn answer<RB>(&self, begun: Begun) -> Result<Response<ResponseBody<RB>>, StoreError>
    where
        RB: Body<Data = Bytes>,
    {
        let record = match begun {
            Begun::Done(record) => record,
            Begun::Mismatch => return Ok(self.refuse(key_reused())),
            Begun::OutcomeUnknown => return Ok(self.refuse(outcome_unknown())),
            Begun::InFlight { .. } | Begun::Started { .. } => return Ok(self.refuse(in_flight())),
        };
        Ok(match record.open()? {
            Opened::NotRetained(status) => self.respond(Outcome::NotRetained, &Problem::not_retained(status)),
            Opened::Unknown => self.respond(Outcome::NotRetained, &outcome_unknown()),
            Opened::Response(replay) => {
                let marker = self.shared.config.replay_header.clone();
                let mut response = replay.head.map(|()| ResponseBody::kept(replay.body, replay.trailers));
                response.headers_mut().insert(marker, HeaderValue::from_static("true"));
                self.finish(Outcome::Replayed, response)
            }
        })
    }

    pub(crate) fn refuse<RB>(&self, problem: Problem) -> Response<ResponseBody<RB>>
    where
        RB: Body<Data = Bytes>,
    {
        self.respond(Outcome::Refused(problem.kind()), &problem)
    }

    fn respond<RB>(&self, outcome: Outcome, problem: &Problem) -> Response<ResponseBody<RB>>
    where
        RB: Body<Data = Bytes>,
    {
        let rendered = self.shared.config.rendering.render(problem, &self.parts);
        self.finish(outcome, rendered.map(|body| ResponseBody::kept(body, None)))
    }

    fn finish<RB: Body>(
        &self,
        outcome: Outcome,
        mut response: Response<ResponseBody<RB>>,
    ) -> Response<ResponseBody<RB>> {
        let slot = self.identity.as_ref().map(|identity| &identity.slot);
        self.shared.tally.report(outcome, slot, None, Some(response.status()));
        response.extensions_mut().insert(outcome);
        response
    }

    /// The call of the inner service.
    pub(crate) fn into_call<B>(self, body: Bytes) -> Oneshot<S, Request<B>>
    where
        S: Service<Request<B>>,
        B: From<Bytes>,
    {
        let Self { inner, parts, .. } = self;
        Oneshot::new(inner, Request::from_parts(parts, B::from(body)))
    }

    /// The store failed before the handler ran, and the layer fails closed.
    pub(crate) fn refuse_for_store<RB>(&self, error: &StoreError) -> Response<ResponseBody<RB>>
    where
        RB: Body<Data = Bytes>,
    {
        self.warn_of(error, "the store failed; the request is refused");
        self.refuse(Problem::new(
            ProblemKind::StoreUnavailable,
            "The server cannot look the key up now, so it did not run the operation.",
        ))
    }

    fn warn_of(&self, error: &StoreError, message: &'static str) {
        if let Some(identity) = &self.identity {
            warn_of(error, &identity.slot, message);
        }
    }
}

pub(crate) fn missing_key() -> Problem {
    Problem::new(
        ProblemKind::MissingKey,
        "This operation requires an idempotency key. Send one that names the operation, and the same with each retry.",
    )
}

pub(crate) fn invalid_key(invalid: InvalidKey) -> Problem {
    Problem::new(ProblemKind::InvalidKey, invalid.into_detail())
}

fn in_flight() -> Problem {
    Problem::new(
        ProblemKind::InFlight,
        "The first request with this key is still running. Retry later.",
    )
}

fn key_reused() -> Problem {
    Problem::new(
        ProblemKind::KeyReused,
        "This key was used with another request. A new operation needs a new key.",
    )
}

fn outcome_unknown() -> Problem {
    Problem::new(
        ProblemKind::OutcomeUnknown,
        "The first request with this key ended without a response that could be kept. It will not run again under \
         this key; find out whether the operation was done.",
    )
}

pub(crate) fn body_too_large(limit: usize) -> Problem {
    Problem::new(
        ProblemKind::BodyTooLarge,
        format!("The request body is larger than the {limit} bytes that are allowed with an idempotency key."),
    )
}

pub(crate) fn body_unreadable() -> Problem {
    Problem::new(
        ProblemKind::BodyUnreadable,
        "The request body broke off or could not be read. Nothing was kept.",
    )
}

/// Asks a store that answers at once, without a box for the wait.
pub(crate) fn admit_now<St: Store>(shared: &Shared<St>, begin: &Begin) -> Option<Result<Begun, StoreError>> {
    if !St::IMMEDIATE {
        return None;
    }
    let watch = Watch::start("begin");
    let Poll::Ready(answer) = pin!(shared.store.begin(begin)).poll(&mut Context::from_waker(Waker::noop())) else {
        return None;
    };
    watch.stop(answer.is_ok());
    match answer {
        // The wait needs its box.
        Ok(Begun::InFlight { .. }) if !shared.config.wait.is_zero() => None,
        answer => Some(answer),
    }
}

/// Asks the store; if it is told to wait, until the other's outcome is there or the wait is over.
pub(crate) async fn admit<St: Store>(shared: Arc<Shared<St>>, begin: Begin, gone: Gone) -> Result<Begun, StoreError> {
    let config = &shared.config;
    let mut deadline = None;
    for round in 0.. {
        let begun = bounded("begin", config.store_timeout, pin!(shared.store.begin(&begin))).await?;
        let Begun::InFlight { lease_left } = begun else {
            return Ok(begun);
        };
        if config.wait.is_zero() || gone.load(Ordering::Relaxed) {
            return Ok(begun);
        }
        let left = deadline
            .get_or_insert_with(|| Instant::now() + config.wait)
            .saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(begun);
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

/// How the inner service ended.
enum Ended<T> {
    Returned(T),
    Panicked(Box<dyn std::any::Any + Send>),
    Cancelled,
}

/// Polls the inner service; a panic is caught, and a raised flag stops it.
async fn to_its_end<F: Future>(mut work: Pin<&mut F>, cancelled: Option<&Gone>) -> Ended<F::Output> {
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
    fingerprint: Fingerprint,
    body: Bytes,
    cancelled: Option<Gone>,
) -> impl Future<Output = Option<Result<Response<ResponseBody<RB>>, S::Error>>> + use<S, B, RB, St>
where
    S: Service<Request<B>, Response = Response<RB>>,
    B: From<Bytes>,
    RB: Body<Data = Bytes>,
    St: Store,
{
    if let Some(identity) = exchange.identity.take() {
        let key = IdempotencyKey::new(identity.key, claim.slot, claim.attempt);
        exchange.parts.extensions.insert(key);
    }
    let shared = Arc::clone(&exchange.shared);
    async move {
        let policy = &shared.config.policy;
        // Apart from the call: what ends here has not begun the operation.
        let ready = {
            let work = pin!(poll_fn(|cx| exchange.inner.poll_ready(cx)));
            let work = pin!(to_its_end(work, cancelled.as_ref()));
            claim.while_renewing(work).await
        };
        if !matches!(ready, Ended::Returned(Ok(()))) {
            claim.give_back().await;
            shared
                .tally
                .report(Outcome::Released, Some(&claim.slot), Some(claim.attempt), None);
            return match ready {
                Ended::Returned(ready) => ready.err().map(Err),
                Ended::Panicked(panic) => resume_unwind(panic),
                Ended::Cancelled => None,
            };
        }
        let ended = {
            let mut call = pin!(exchange.into_call(body));
            // What the policy says is part of the work: its closure may panic, too.
            let work = pin!(poll_fn(|cx| call.as_mut().poll(cx).map_ok(|response| {
                let verdict = policy.verdict(response.status(), response.headers());
                (verdict, response)
            })));
            let work = pin!(to_its_end(work, cancelled.as_ref()));
            claim.while_renewing(work).await
        };
        match ended {
            Ended::Returned(Ok((verdict, response))) => {
                let response = keep(&mut claim, fingerprint, verdict, response, cancelled).await;
                Some(Ok(response))
            }
            Ended::Returned(Err(error)) => {
                end_without_response(&mut claim, fingerprint, policy.on_error).await;
                Some(Err(error))
            }
            Ended::Panicked(panic) => {
                end_without_response(&mut claim, fingerprint, policy.on_panic).await;
                resume_unwind(panic)
            }
            Ended::Cancelled => {
                let fate = shared.config.cancel_on_disconnect.unwrap_or(Fate::Release);
                end_without_response(&mut claim, fingerprint, fate).await;
                None
            }
        }
    }
}

/// Keeps of a response what the policy says, and settles the claim.
fn keep<RB, St>(
    claim: &mut Claim<St>,
    fingerprint: Fingerprint,
    verdict: Verdict,
    response: Response<RB>,
    cancelled: Option<Gone>,
) -> impl Future<Output = Response<ResponseBody<RB>>>
where
    RB: Body<Data = Bytes>,
    St: Store,
{
    let shared = Arc::clone(&claim.shared);
    let (mut head, body) = response.into_parts();
    async move {
        let config = &shared.config;
        let tombstone = || Settlement::Complete(Record::response_not_retained(fingerprint, head.status));
        let settle_as = |fate| match fate {
            Fate::Seal => tombstone(),
            Fate::Release => Settlement::Release,
        };
        let lost = || settle_as(config.policy.on_lost_body);
        let mut panicked = None;
        let (settlement, body) = match verdict {
            Verdict::Release => (Settlement::Release, ResponseBody::live(body)),
            Verdict::Seal => (tombstone(), ResponseBody::live(body)),
            Verdict::Store => {
                // Boxed, so that the rest can be handed on after it was polled.
                let mut collect = Collect::new(Box::pin(body), config.max_response_body);
                let collected = {
                    let work = pin!(to_its_end(Pin::new(&mut collect), cancelled.as_ref()));
                    claim.while_renewing(work).await
                };
                match collected {
                    Ended::Returned(Collected::Whole { data, trailers }) => {
                        let skip = config.skips(&head.headers, trailers.is_some());
                        let record =
                            Record::response(fingerprint, head.status, &head.headers, skip, &data, trailers.as_ref());
                        (Settlement::Complete(record), ResponseBody::kept(data, trailers))
                    }
                    Ended::Returned(Collected::TooLarge { data, next }) => {
                        (lost(), ResponseBody::overflowed([data, next], collect.into_body()))
                    }
                    Ended::Returned(Collected::Failed { data, error }) => (lost(), ResponseBody::failed(data, error)),
                    Ended::Panicked(panic) => {
                        panicked = Some(panic);
                        (lost(), ResponseBody::kept(Bytes::new(), None))
                    }
                    Ended::Cancelled => {
                        let fate = config.cancel_on_disconnect.unwrap_or(Fate::Seal);
                        (settle_as(fate), ResponseBody::kept(Bytes::new(), None))
                    }
                }
            }
        };
        let outcome = match &settlement {
            Settlement::Release | Settlement::Lapse => Outcome::Released,
            Settlement::Complete(record) if record.is_response() => Outcome::Executed,
            Settlement::Complete(_) => Outcome::Sealed,
        };
        let outcome = match claim.settle(settlement).await {
            Settled::Yes | Settled::Later => outcome,
            Settled::Lost => Outcome::Released,
        };
        shared
            .tally
            .report(outcome, Some(&claim.slot), Some(claim.attempt), Some(head.status));
        if let Some(panic) = panicked {
            resume_unwind(panic);
        }
        head.extensions.insert(outcome);
        Response::from_parts(head, body)
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
    exchange: Box<Exchange<S, St>>,
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
    let call = pin!(exchange.into_call(body));
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
