//! Streamed responses. The claim for a stream is kept until the stream ends, and the key is then
//! sealed.

use std::future::poll_fn;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::ready;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, StatusCode};
use http_body::Body;
use tokio::runtime::Handle;

use super::claim::Claim;
use super::ended::{Ended, to_its_end};
use super::settlement::Settlement;
use super::upload::so_far;
use crate::answer::{Fate, Verdict, WholeResponse};
use crate::body::{ResponseBody, StreamEnd};
use crate::store::{Record, Store};

/// The tombstone to store when a stream has been read to its end.
pub(crate) struct AtEnd {
    /// The tombstone.
    pub(crate) done: Record,
    pub(crate) ttl: Duration,
    /// The length that the response declares, if any.
    pub(crate) length: Option<u64>,
    /// The head, if the trailers decide whether the tombstone is stored.
    pub(crate) head: Option<Box<(StatusCode, HeaderMap)>>,
}

/// Returns the body of a stream. If the body is not read to its end, the outcome is unknown.
pub(crate) fn held_by_stream<RB, St>(
    claim: Claim<St>,
    at_end: AtEnd,
    read: [Bytes; 2],
    rest: Pin<Box<RB>>,
) -> ResponseBody<RB>
where
    RB: Body<Data = Bytes> + Send + 'static,
    St: Store,
{
    let length = at_end.length;
    // The only purpose of the lock is to keep a `Sync` body `Sync`.
    let held = Mutex::new((claim, at_end));
    let home = Handle::try_current().ok();
    let settle = move |end: StreamEnd<RB>| {
        let (claim, at_end) = held.into_inner().unwrap_or_else(PoisonError::into_inner);
        let guard = Arc::clone(&claim.guard);
        let config = &guard.config;
        let home = home.as_ref();
        match end {
            StreamEnd::Complete(trailers) => complete(claim, at_end, trailers.as_deref(), home),
            StreamEnd::Failed => unknown(claim, Fate::Seal, home),
            StreamEnd::Panicked => unknown(claim, config.policy.on_panic, home),
            StreamEnd::Dropped { was_read: true, .. } if at_end.head.is_none() => complete(claim, at_end, None, home),
            StreamEnd::Dropped { rest, .. } => match config.cancel_on_disconnect {
                Some(fate) => unknown(claim, fate, home),
                None if config.drain_streams && !guard.is_overloaded() => {
                    guard.adopt(home, drain_and_settle(claim, at_end, rest));
                }
                None => unknown(claim, Fate::Seal, home),
            },
        }
    };
    ResponseBody::stream(read, rest, length, Box::new(settle))
}

/// Reads a stream to its end in place of the client that disconnected.
async fn drain_and_settle<RB, St>(claim: Claim<St>, at_end: AtEnd, mut rest: Pin<Box<RB>>)
where
    RB: Body<Data = Bytes>,
    St: Store,
{
    let mut trailers = None;
    let end = {
        let mut drain = std::pin::pin!(poll_fn(|cx| {
            loop {
                match ready!(rest.as_mut().poll_frame(cx)) {
                    Some(Ok(frame)) => trailers = frame.into_trailers().ok().or(trailers.take()),
                    Some(Err(_)) => return std::task::Poll::Ready(false),
                    None => return std::task::Poll::Ready(true),
                }
            }
        }));
        to_its_end(drain.as_mut(), None).await
    };
    match end {
        Ended::Returned(true) => complete(claim, at_end, trailers.as_ref(), None),
        Ended::Panicked(_) => {
            let fate = claim.guard.config.policy.on_panic;
            unknown(claim, fate, None);
        }
        Ended::Returned(false) | Ended::Cancelled => unknown(claim, Fate::Seal, None),
    }
}

fn complete<St: Store>(claim: Claim<St>, at_end: AtEnd, trailers: Option<&HeaderMap>, home: Option<&Handle>) {
    let AtEnd {
        done: record,
        ttl,
        head,
        ..
    } = at_end;
    let config = &claim.guard.config;
    let verdict = head.map(|head| {
        let ended = WholeResponse {
            status: head.0,
            headers: &head.1,
            body: &Bytes::new(),
            trailers,
        };
        catch_unwind(AssertUnwindSafe(|| config.policy.verdict(&ended)))
    });
    let verdict = match verdict.transpose() {
        Ok(verdict) => verdict,
        Err(_panic) => {
            let fate = config.policy.on_panic;
            return unknown(claim, fate, home);
        }
    };
    // A handler that continued to read while it responded may have reached the end of an incomplete
    // body.
    let failed = claim
        .upload
        .as_deref()
        .is_some_and(|upload| so_far(upload).into_problem().is_some());
    let record = claim.knowing_body(record);
    let settlement = match verdict {
        _ if failed => claim.settlement_of(Fate::Release, |_| record).0,
        Some(Verdict::Release) => claim.settlement_of(Fate::Release, |_| record).0,
        Some(Verdict::Reopen) => claim.settlement_of(Fate::Reopen, |_| record).0,
        Some(Verdict::Store | Verdict::StoreFor(_) | Verdict::Seal) | None => Settlement::Complete { record, ttl },
    };
    claim.settle_detached(settlement, home);
}

fn unknown<St: Store>(claim: Claim<St>, fate: Fate, home: Option<&Handle>) {
    let (settlement, _) = claim.settlement_of(fate, Record::outcome_unknown);
    claim.settle_detached(settlement, home);
}
