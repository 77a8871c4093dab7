//! Handles the response: reads the part of its body that is to be stored, settles the claim, and
//! returns the response.

use std::future::Future;
use std::panic::resume_unwind;

use bytes::Bytes;
use http::header::CONTENT_LENGTH;
use http::request::Parts;
use http::{HeaderMap, Request, Response, response};
use http_body::Body;

use super::claim::Claim;
use super::config::Config;
use super::ended::Disconnected;
use super::read_response::{Read, not_retained, read_to_keep};
use super::settlement::{Settled, Settlement, Undone};
use super::stream::{AtEnd, held_by_stream};
use super::upload::{Upload, Uploaded, rest_of, so_far};
use crate::answer::{Fate, Outcome, Problem, Verdict, is_failure};
use crate::body::ResponseBody;
use crate::store::Store;

/// The information about the request that the layer needs when the response arrives.
pub(crate) struct Asked {
    pub(crate) is_head: bool,
    /// The head of the request, in atomic mode or if the body is streamed. If a problem replaces
    /// the response, the problem is rendered from this head.
    pub(crate) head: Option<Box<Parts>>,
}

/// Judges a response by its head. Returns `None` if the policy needs the complete response.
pub(crate) fn judge<B>(config: &Config, response: &Response<B>) -> Option<Verdict> {
    let extensions = response.extensions();
    // An interim response, for example for a protocol switch, concerns the connection and is not
    // the operation's response.
    if response.status().is_informational() {
        return Some(Verdict::Release);
    }
    // An operation that an inner layer refused did not run, so the refusal is not its outcome.
    if let Some(Outcome::Refused(_) | Outcome::NotRetained) = extensions.get::<Outcome>() {
        return Some(Verdict::Release);
    }
    if let Some(verdict) = extensions.get::<Verdict>() {
        return Some(*verdict);
    }
    config.policy.verdict_on_head(response.status(), response.headers())
}

/// Stores the response according to the verdict, and settles the claim.
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
    // A handler may have copied the marker from the response of its own upstream service. The
    // marker is removed, because the handler's response is not a replay.
    remove_marker(&mut head.headers, &claim.guard.config);
    async move {
        let tally = |claim: &Claim<St>, outcome, status| {
            let (slot, attempt) = (Some(&claim.slot), Some(claim.attempt));
            claim.guard.tally.report(outcome, slot, attempt, Some(status));
        };
        // This scope is separate, because a variable takes space until its scope ends, even after
        // its value has been moved.
        let announced;
        let (settlement, outcome, body, has_failed, panicked) = {
            let mut read = read_to_keep(claim, asked.is_head, verdict, &mut head, body, cancelled.as_ref()).await;
            announced = matches!(
                read,
                Read::Settle {
                    outcome: Outcome::Executed,
                    ..
                }
            );
            if let Some(upload) = claim.upload.clone() {
                // This future is boxed, so that uploads do not take space in the futures of other
                // requests.
                let ended = Box::pin(end_or_abandon(claim, &*upload, &head, &mut read, cancelled.as_ref())).await;
                if let Err(problem) = ended {
                    return refuse_instead(claim, &problem, asked.head);
                }
                if matches!(read, Read::Settle { .. }) {
                    claim.upload = None;
                }
            }
            match read {
                Read::Settle {
                    settlement,
                    outcome,
                    body,
                    has_failed,
                    panicked,
                } => (settlement, outcome, body, has_failed, panicked),
                Read::Stream { read, rest, ttl, .. } if claim.has_begun_work() => {
                    // A transaction cannot wait for a stream, so the transaction is committed with
                    // the tombstone now.
                    let (settlement, outcome) = claim.settlement_of(Fate::Seal, not_retained(&head));
                    (
                        settlement.kept_for(ttl),
                        outcome,
                        ResponseBody::overflowed(read, rest),
                        is_failure(head.status, &head.headers, None),
                        None,
                    )
                }
                Read::Stream {
                    read,
                    rest,
                    ttl,
                    by_trailers,
                } => {
                    tally(claim, Outcome::Sealed, head.status);
                    let length = head.headers.get(CONTENT_LENGTH).and_then(|value| value.to_str().ok());
                    let at_end = AtEnd {
                        done: not_retained(&head)(claim.fingerprint),
                        ttl,
                        length: length.and_then(|length| length.parse().ok()),
                        head: by_trailers.then(|| Box::new((head.status, head.headers.clone()))),
                    };
                    let body = held_by_stream(claim.hand_on(), at_end, read, rest);
                    head.extensions.insert(Outcome::Sealed);
                    return Response::from_parts(head, body);
                }
            }
        };
        // A failure has no effect to commit, whether or not its response is stored.
        let settled = claim.end(&settlement, !has_failed).await;
        let outcome = match settled {
            Settled::Yes | Settled::Later => outcome,
            Settled::Lost => Outcome::Released,
            Settled::Undone(why) => return refuse_instead(claim, &problem_of(why), asked.head),
        };
        if announced
            && outcome != Outcome::Executed
            && let Some(name) = &claim.guard.config.lifetime_header
        {
            // The response was not stored after all.
            head.headers.remove(name);
        }
        tally(claim, outcome, head.status);
        if let Some(panic) = panicked {
            resume_unwind(panic);
        }
        head.extensions.insert(outcome);
        Response::from_parts(head, body)
    }
}

/// Removes the header that marks a replay. Responses have few headers, and comparing names is
/// faster than hashing them.
pub(crate) fn remove_marker(headers: &mut HeaderMap, config: &Config) {
    if headers.keys().any(|name| *name == config.replay_header) {
        headers.remove(&config.replay_header);
    }
}

/// Waits for a streamed body to end. If the body fails, the claim is released or reopened.
async fn end_or_abandon<RB, St>(
    claim: &mut Claim<St>,
    upload: &dyn Upload,
    head: &response::Parts,
    read: &mut Read<RB>,
    cancelled: Option<&Disconnected>,
) -> Result<(), Problem>
where
    RB: Body<Data = Bytes>,
    St: Store,
{
    let ended = end_upload(claim, upload, head, read, cancelled).await;
    if ended.is_err() {
        let settlement = match read {
            Read::Settle {
                settlement: Settlement::Lapse,
                ..
            } => Settlement::Lapse,
            _ => Settlement::Release,
        };
        claim.settle(&settlement).await;
        upload.abandon();
    }
    ended
}

/// Waits for a streamed body to end, and adapts the settlement to how the body ended. If the body
/// fails, nothing is stored, because the handler responded to an incomplete request.
async fn end_upload<RB, St>(
    claim: &Claim<St>,
    upload: &dyn Upload,
    head: &response::Parts,
    read: &mut Read<RB>,
    cancelled: Option<&Disconnected>,
) -> Result<(), Problem>
where
    RB: Body<Data = Bytes>,
    St: Store,
{
    let config = &claim.guard.config;
    let (stores, was_read) = match read {
        Read::Settle { panicked: Some(_), .. } => return Ok(()),
        Read::Settle {
            settlement, outcome, ..
        } => (
            matches!(settlement, Settlement::Complete { .. }),
            *outcome == Outcome::Executed,
        ),
        Read::Stream { .. } => (true, false),
    };
    let uploaded = if stores {
        // The response body may be generated from the request body. The layer waits for the handler
        // to finish reading only if the layer has already read the whole response.
        rest_of(upload, was_read, config.response_body_within, cancelled).await
    } else {
        so_far(upload)
    };
    let Read::Settle {
        settlement, outcome, ..
    } = read
    else {
        // The tombstone for a stream is created when the stream ends.
        return uploaded.into_problem().map_or(Ok(()), Err);
    };
    match (uploaded, &mut *settlement) {
        (Uploaded::Failed(problem), _) => return Err(problem),
        (Uploaded::Whole(Some(print)), Settlement::Complete { record, .. }) => *record = record.with_body(&print),
        (Uploaded::RestMissing | Uploaded::GoesOn, Settlement::Complete { record, .. }) if was_read => {
            *record = not_retained(head)(claim.fingerprint);
            *outcome = Outcome::Sealed;
        }
        (Uploaded::Cancelled, _) => {
            let fate = config.cancel_on_disconnect.unwrap_or(Fate::Seal);
            (*settlement, *outcome) = claim.settlement_of(fate, not_retained(head));
        }
        _ => {}
    }
    Ok(())
}

/// Returns the problem that is sent in place of the handler's response, which would report an
/// effect that does not exist.
fn problem_of(why: Undone) -> Problem {
    match why {
        Undone::Lost => Problem::taken_over(),
        Undone::Failed => Problem::rolled_back(),
        Undone::Unknown => Problem::commit_unknown(),
        Undone::Broken => Problem::transaction_broken(),
    }
}

/// Returns a refusal in place of the handler's response.
fn refuse_instead<RB, St>(
    claim: &Claim<St>,
    problem: &Problem,
    request: Option<Box<Parts>>,
) -> Response<ResponseBody<RB>>
where
    RB: Body<Data = Bytes>,
    St: Store,
{
    let guard = &claim.guard;
    let request = request.map_or_else(|| Request::new(()).into_parts().0, |request| *request);
    let outcome = Outcome::Refused(problem.kind());
    let (slot, attempt) = (Some(&claim.slot), Some(claim.attempt));
    guard.respond(outcome, problem, &request, slot, attempt)
}
