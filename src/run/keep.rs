//! What is kept of a response: its body is read, the claim is settled, and the response goes out.

use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::pin::{Pin, pin};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::request::Parts;
use http::{HeaderMap, HeaderValue, Method, Request, Response, response};
use http_body::Body;

use super::claim::Claim;
use super::config::Config;
use super::ended::{Disconnected, Ended, Panic, to_its_end};
use super::settlement::{Settled, Settlement, Undone};
use super::store_call::within;
use super::stream::{AtEnd, held_by_stream};
use crate::answer::{Fate, Outcome, Problem, Verdict, WholeResponse};
use crate::body::{Collect, Collected, ResponseBody, declares_more_than};
use crate::store::{Record, Store};

/// What is known of the request when its response comes.
pub(crate) struct Asked {
    pub(crate) method: Method,
    /// In atomic mode: what a problem is rendered from, if the answer cannot be committed.
    pub(crate) head: Option<Box<Parts>>,
}

/// Judges a response by its head. `None`: the policy asks for the whole.
pub(crate) fn judge<B>(config: &Config, response: &Response<B>) -> Option<Verdict> {
    let extensions = response.extensions();
    // An interim response, as of a protocol switch, is a connection and no answer.
    if response.status().is_informational() {
        return Some(Verdict::Release);
    }
    // What an inner layer refused did not run; the refusal is not the operation's outcome.
    if let Some(Outcome::Refused(_) | Outcome::NotRetained) = extensions.get::<Outcome>() {
        return Some(Verdict::Release);
    }
    if let Some(verdict) = extensions.get::<Verdict>() {
        return Some(*verdict);
    }
    config.policy.verdict_on_head(response.status(), response.headers())
}

/// Keeps of a response what the verdict says, and settles the claim.
pub(crate) fn keep<RB, St>(
    claim: &mut Claim<St>,
    asked: Asked,
    verdict: Option<Verdict>,
    response: Response<RB>,
    cancelled: Option<Disconnected>,
) -> impl Future<Output = Response<ResponseBody<RB>>>
where
    RB: Body<Data = Bytes, Error: Send> + Send + 'static,
    St: Store,
{
    let (mut head, body) = response.into_parts();
    // A handler may have copied it from its own upstream; this response is none of a replay.
    remove_marker(&mut head.headers, &claim.guard.config);
    async move {
        let read = read_to_keep(claim, &asked.method, verdict, &mut head, body, cancelled.as_ref()).await;
        let tally = |claim: &Claim<St>, outcome| {
            let (slot, attempt) = (Some(&claim.slot), Some(claim.attempt));
            claim.guard.tally.report(outcome, slot, attempt, Some(head.status));
        };
        let (settlement, outcome, body, panicked) = match read {
            Read::Settle {
                settlement,
                outcome,
                body,
                panicked,
            } => (settlement, outcome, body, panicked),
            Read::Stream { read, rest, ttl, .. } if claim.has_begun_work() => {
                // A transaction cannot wait for a stream: it is committed with the tombstone now.
                let (settlement, outcome) = claim.settlement_of(Fate::Seal, not_retained(&head));
                (
                    settlement.kept_for(ttl),
                    outcome,
                    ResponseBody::overflowed(read, rest),
                    None,
                )
            }
            Read::Stream {
                read,
                rest,
                ttl,
                by_trailers,
            } => {
                tally(claim, Outcome::Sealed);
                let at_end = AtEnd {
                    done: not_retained(&head)(claim.fingerprint),
                    ttl,
                    head: by_trailers.then(|| Box::new((head.status, head.headers.clone()))),
                };
                let body = held_by_stream(claim.hand_on(), at_end, read, rest);
                head.extensions.insert(Outcome::Sealed);
                return Response::from_parts(head, body);
            }
        };
        // A failure has no effect to commit, whether its answer is stored or not. A sealed refusal is one
        // that the application calls done.
        let stored = outcome == Outcome::Executed;
        let settled = if head.status.is_server_error() || stored && head.status.is_client_error() {
            claim.settle(settlement).await
        } else {
            claim.succeed(settlement).await
        };
        let outcome = match settled {
            Settled::Yes | Settled::Later => outcome,
            Settled::Lost => Outcome::Released,
            Settled::Undone(why) => return refuse_undone(claim, why, asked.head),
        };
        tally(claim, outcome);
        if let Some(panic) = panicked {
            resume_unwind(panic);
        }
        head.extensions.insert(outcome);
        Response::from_parts(head, body)
    }
}

/// Removes the marker of a replay. Responses have few headers, and names compare faster than they hash.
pub(crate) fn remove_marker(headers: &mut HeaderMap, config: &Config) {
    if headers.keys().any(|name| *name == config.replay_header) {
        headers.remove(&config.replay_header);
    }
}

/// What came of reading a response's body.
enum Read<RB: Body> {
    Settle {
        settlement: Settlement,
        outcome: Outcome,
        body: ResponseBody<RB>,
        panicked: Option<Panic>,
    },
    /// The response is a stream: what was read of it, and the rest.
    Stream {
        read: [Bytes; 2],
        rest: Pin<Box<RB>>,
        /// How long its tombstone is kept.
        ttl: Duration,
        /// Whether it is still to be judged, by its trailers.
        by_trailers: bool,
    },
}

/// The tombstone of a response that was not stored. What failed leaves in doubt what was done.
fn not_retained(head: &response::Parts) -> impl FnOnce(crate::request::Fingerprint) -> Record {
    move |fingerprint| {
        if head.status.is_server_error() {
            Record::outcome_unknown(fingerprint)
        } else {
            Record::response_not_retained_at(fingerprint, head.status, &head.headers)
        }
    }
}

/// Reads a response's body as far as it is to be kept.
async fn read_to_keep<RB, St>(
    claim: &Claim<St>,
    method: &Method,
    verdict: Option<Verdict>,
    head: &mut response::Parts,
    body: RB,
    cancelled: Option<&Disconnected>,
) -> Read<RB>
where
    RB: Body<Data = Bytes>,
    St: Store,
{
    let config = &claim.guard.config;
    let ttl = match verdict {
        Some(Verdict::StoreFor(ttl)) => Config::ttl_within_range(ttl),
        _ => config.ttl,
    };
    let settle = |fate, body, head: &response::Parts| {
        let (settlement, outcome) = claim.settlement_of(fate, not_retained(head));
        let settlement = settlement.kept_for(ttl);
        Read::Settle {
            settlement,
            outcome,
            body,
            panicked: None,
        }
    };
    let end_by_panic = |panic| {
        let (settlement, outcome) = claim.settlement_of(config.policy.on_panic, Record::outcome_unknown);
        Read::Settle {
            settlement,
            outcome,
            body: ResponseBody::kept(Bytes::new(), None),
            panicked: Some(panic),
        }
    };
    match verdict {
        Some(Verdict::Release) => return settle(Fate::Release, ResponseBody::live(body), head),
        Some(Verdict::Reopen) => return settle(Fate::Reopen, ResponseBody::live(body), head),
        Some(Verdict::Seal) => return settle(Fate::Seal, ResponseBody::live(body), head),
        Some(Verdict::Store | Verdict::StoreFor(_)) | None => {}
    }
    let by_trailers = verdict.is_none() && config.policy.judges_by_trailers();
    if config.policy.is_stream(&head.headers) {
        return Read::Stream {
            read: [Bytes::new(), Bytes::new()],
            rest: Box::pin(body),
            ttl,
            by_trailers,
        };
    }
    // The bodies of applications may panic wherever they are asked.
    match catch_unwind(AssertUnwindSafe(|| declares_more_than(&body, config.max_response_body))) {
        Ok(false) => {}
        Ok(true) => {
            let body = ResponseBody::overflowed([Bytes::new(), Bytes::new()], Box::pin(body));
            return settle(config.policy.on_lost_body, body, head);
        }
        Err(panic) => return end_by_panic(panic),
    }
    // Boxed, so that the rest can be handed on after it was polled.
    let mut collect = Collect::new(Box::pin(body), config.max_response_body);
    let collected = {
        let work = pin!(to_its_end(Pin::new(&mut collect), cancelled));
        within(config.response_body_within, work).await
    };
    let lost = config.policy.on_lost_body;
    let (data, trailers) = match collected {
        Ok(Ended::Returned(Collected::Whole { data, trailers })) => {
            match catch_unwind(AssertUnwindSafe(|| drop(collect))) {
                Ok(()) => (data, trailers),
                Err(panic) => return end_by_panic(panic),
            }
        }
        Ok(Ended::Returned(Collected::TooLarge { data, next })) if lost == Fate::Seal && by_trailers => {
            return Read::Stream {
                read: [data, next],
                rest: collect.into_parts().1,
                ttl,
                by_trailers,
            };
        }
        Ok(Ended::Returned(Collected::TooLarge { data, next })) => {
            return settle(
                lost,
                ResponseBody::overflowed([data, next], collect.into_parts().1),
                head,
            );
        }
        Ok(Ended::Returned(Collected::Failed { data, error })) => {
            return settle(lost, ResponseBody::failed(data, error), head);
        }
        Ok(Ended::Panicked(panic)) => return end_by_panic(panic),
        Err(_late) => {
            let (data, rest) = collect.into_parts();
            let read = [data, Bytes::new()];
            return match lost {
                Fate::Seal => Read::Stream {
                    read,
                    rest,
                    ttl,
                    by_trailers,
                },
                fate => settle(fate, ResponseBody::overflowed(read, rest), head),
            };
        }
        Ok(Ended::Cancelled) => {
            let fate = config.cancel_on_disconnect.unwrap_or(Fate::Seal);
            return settle(fate, ResponseBody::kept(Bytes::new(), None), head);
        }
    };
    let whole = WholeResponse {
        status: head.status,
        headers: &head.headers,
        body: &data,
        trailers: trailers.as_deref(),
    };
    let verdict = match verdict.map_or_else(|| catch_unwind(AssertUnwindSafe(|| config.policy.verdict(&whole))), Ok) {
        Ok(verdict) => verdict,
        Err(panic) => return end_by_panic(panic),
    };
    let ttl = match verdict {
        Verdict::Store => ttl,
        Verdict::StoreFor(ttl) => Config::ttl_within_range(ttl),
        Verdict::Release => return settle(Fate::Release, ResponseBody::kept(data, trailers), head),
        Verdict::Reopen => return settle(Fate::Reopen, ResponseBody::kept(data, trailers), head),
        Verdict::Seal => return settle(Fate::Seal, ResponseBody::kept(data, trailers), head),
    };
    announce_lifetime(config, ttl, head);
    let skip = config.skips(&head.headers, trailers.is_some());
    let (print, status, headers) = (claim.fingerprint, head.status, &head.headers);
    // What `HEAD` declares is the length of a body that is not there (RFC 9110, section 8.6).
    let record = if *method == Method::HEAD && data.is_empty() {
        Record::of_head(print, status, headers, skip)
    } else {
        Record::response(print, status, headers, skip, &data, trailers.as_deref())
    };
    Read::Settle {
        settlement: Settlement::Complete { record, ttl },
        outcome: Outcome::Executed,
        body: ResponseBody::kept(data, trailers),
        panicked: None,
    }
}

/// Tells the client until when a retry gets this response.
fn announce_lifetime(config: &Config, ttl: Duration, head: &mut response::Parts) {
    if let Some(name) = &config.lifetime_header
        && let Some(end) = SystemTime::now().checked_add(ttl)
        && let Ok(value) = HeaderValue::try_from(httpdate::fmt_http_date(end))
    {
        head.headers.insert(name.clone(), value);
    }
}

/// Takes the place of a response that would be a lie: what it speaks of is not there.
fn refuse_undone<RB, St>(claim: &Claim<St>, why: Undone, request: Option<Box<Parts>>) -> Response<ResponseBody<RB>>
where
    RB: Body<Data = Bytes>,
    St: Store,
{
    let guard = &claim.guard;
    let problem = match why {
        Undone::Lost => Problem::taken_over(),
        Undone::Failed => Problem::rolled_back(),
        Undone::Unknown => Problem::commit_unknown(),
    };
    let request = request.map_or_else(|| Request::new(()).into_parts().0, |request| *request);
    let rendered = guard.config.rendering.render(&problem, &request);
    let outcome = Outcome::Refused(problem.kind());
    let (slot, attempt) = (Some(&claim.slot), Some(claim.attempt));
    guard.tally.report(outcome, slot, attempt, Some(rendered.status()));
    let mut response = rendered.map(|body| ResponseBody::kept(body, None));
    response.extensions_mut().insert(outcome);
    response
}
