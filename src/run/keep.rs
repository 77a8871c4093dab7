//! What is kept of a response: its body is read, the claim is settled, and the response goes out.

use std::future::Future;
use std::panic::resume_unwind;
use std::pin::{Pin, pin};

use bytes::Bytes;
use http::request::Parts;
use http::{Request, Response, response};
use http_body::Body;

use super::claim::Claim;
use super::config::Config;
use super::ended::{Disconnected, Ended, Panic, to_its_end};
use super::settlement::{Settled, Settlement, Undone};
use super::store_call::within;
use crate::answer::{Fate, Outcome, Problem, Verdict};
use crate::body::{Collect, Collected, ResponseBody, declares_more_than};
use crate::request::Fingerprint;
use crate::store::{Record, Store};

/// Keeps of a response what the policy says, and settles the claim.
pub(crate) fn keep<RB, St>(
    claim: &mut Claim<St>,
    fingerprint: Fingerprint,
    verdict: Verdict,
    response: Response<RB>,
    request: Option<Box<Parts>>,
    cancelled: Option<Disconnected>,
) -> impl Future<Output = Response<ResponseBody<RB>>>
where
    RB: Body<Data = Bytes>,
    St: Store,
{
    let (mut head, body) = response.into_parts();
    async move {
        let config = &claim.guard.config;
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
        let tally = &claim.guard.tally;
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
    cancelled: Option<&Disconnected>,
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

/// Takes the place of a response that would be a lie: what it speaks of is not there.
fn refuse_undone<RB, St>(claim: &Claim<St>, why: Undone, request: Option<Box<Parts>>) -> Response<ResponseBody<RB>>
where
    RB: Body<Data = Bytes>,
    St: Store,
{
    let guard = &claim.guard;
    let problem = undone(why);
    let request = request.map_or_else(|| Request::new(()).into_parts().0, |request| *request);
    let rendered = guard.config.rendering.render(&problem, &request);
    let outcome = Outcome::Refused(problem.kind());
    let (slot, attempt) = (Some(&claim.slot), Some(claim.attempt));
    guard.tally.report(outcome, slot, attempt, Some(rendered.status()));
    let mut response = rendered.map(|body| ResponseBody::kept(body, None));
    response.extensions_mut().insert(outcome);
    response
}

fn undone(why: Undone) -> Problem {
    match why {
        Undone::Lost => Problem::taken_over(),
        Undone::Failed => Problem::rolled_back(),
        Undone::Unknown => Problem::commit_unknown(),
    }
}
