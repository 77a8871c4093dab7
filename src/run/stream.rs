//! A response that is a stream: its claim is held until the stream ends, and then sealed.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::ready;

use bytes::Bytes;
use http_body::Body;

use super::claim::Claim;
use super::ended::{Ended, to_its_end};
use super::settlement::Settlement;
use crate::answer::Fate;
use crate::body::{ResponseBody, StreamEnd};
use crate::store::{Record, Store};

/// The body of a stream. `done` is kept if the stream is read to its end; else the outcome is unknown.
pub(crate) fn held_by_stream<RB, St>(
    claim: Claim<St>,
    done: Record,
    read: [Bytes; 2],
    rest: Pin<Box<RB>>,
) -> ResponseBody<RB>
where
    RB: Body<Data = Bytes> + Send + 'static,
    St: Store,
{
    // Behind a lock only so that a body that is `Sync` stays so.
    let held = Mutex::new((claim, done));
    let settle = move |end: StreamEnd<RB>| {
        let (claim, done) = held.into_inner().unwrap_or_else(PoisonError::into_inner);
        let guard = Arc::clone(&claim.guard);
        let config = &guard.config;
        match end {
            StreamEnd::Complete => complete(claim, done),
            StreamEnd::Failed => unknown(claim, Fate::Seal),
            StreamEnd::Panicked => unknown(claim, config.policy.on_panic),
            StreamEnd::Dropped(rest) => match config.cancel_on_disconnect {
                Some(fate) => unknown(claim, fate),
                None if config.drain_streams && !guard.is_overloaded() => {
                    guard.adopt(None, drain_and_settle(claim, done, rest));
                }
                None => unknown(claim, Fate::Seal),
            },
        }
    };
    ResponseBody::stream(read, rest, Box::new(settle))
}

/// Reads a stream to its end in the place of the client that left.
async fn drain_and_settle<RB, St>(claim: Claim<St>, done: Record, mut rest: Pin<Box<RB>>)
where
    RB: Body<Data = Bytes>,
    St: Store,
{
    let end = {
        let mut drain = std::pin::pin!(poll_fn(|cx| {
            loop {
                match ready!(rest.as_mut().poll_frame(cx)) {
                    Some(Ok(_)) => {}
                    Some(Err(_)) => return std::task::Poll::Ready(false),
                    None => return std::task::Poll::Ready(true),
                }
            }
        }));
        to_its_end(drain.as_mut(), None).await
    };
    match end {
        Ended::Returned(true) => complete(claim, done),
        Ended::Panicked(_) => {
            let fate = claim.guard.config.policy.on_panic;
            unknown(claim, fate);
        }
        Ended::Returned(false) | Ended::Cancelled => unknown(claim, Fate::Seal),
    }
}

fn complete<St: Store>(claim: Claim<St>, record: Record) {
    let ttl = claim.guard.config.ttl;
    claim.settle_detached(Settlement::Complete { record, ttl });
}

fn unknown<St: Store>(claim: Claim<St>, fate: Fate) {
    let (settlement, _) = claim.settlement_of(fate, Record::outcome_unknown);
    claim.settle_detached(settlement);
}
