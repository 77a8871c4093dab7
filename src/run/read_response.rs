//! Reads the part of a response body that is to be stored, and decides how the claim ends.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::{Pin, pin};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::{HeaderValue, response};
use http_body::Body;

use super::claim::Claim;
use super::config::Config;
use super::ended::{Disconnected, Ended, Panic, to_its_end};
use super::settlement::Settlement;
use super::store_call::within;
use crate::answer::{Fate, Outcome, Verdict, WholeResponse, is_failure};
use crate::body::{Collect, Collected, ResponseBody};
use crate::request::Fingerprint;
use crate::store::{Record, Store};

/// The result of reading a response body.
pub(crate) enum Read<RB: Body> {
    Settle {
        settlement: Settlement,
        outcome: Outcome,
        body: ResponseBody<RB>,
        /// Whether the operation failed, so that its effect must be rolled back in atomic mode.
        has_failed: bool,
        panicked: Option<Panic>,
    },
    /// The response is a stream. This variant holds the part that was already read, and the rest.
    Stream {
        read: [Bytes; 2],
        rest: Pin<Box<RB>>,
        /// How long the stream's tombstone is kept.
        ttl: Duration,
        /// Whether the trailers still decide the verdict.
        by_trailers: bool,
    },
}

/// The tombstone for a response that was not stored. After a server error, the operation's effect
/// is unknown.
pub(crate) fn not_retained(head: &response::Parts) -> impl FnOnce(Fingerprint) -> Record {
    move |fingerprint| {
        if head.status.is_server_error() {
            Record::outcome_unknown(fingerprint)
        } else {
            Record::response_not_retained_at(fingerprint, head.status, &head.headers)
        }
    }
}

/// Reads the part of a response body that is to be stored.
pub(crate) async fn read_to_keep<RB, St>(
    claim: &Claim<St>,
    is_head: bool,
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
            has_failed: is_failure(head.status, &head.headers, None),
            panicked: None,
        }
    };
    // The application treats a client error that it seals as completed.
    let seal = |body, head: &response::Parts| {
        let mut read = settle(Fate::Seal, body, head);
        if let Read::Settle { has_failed, .. } = &mut read {
            *has_failed = head.status.is_server_error();
        }
        read
    };
    let end_by_panic = |panic| {
        let (settlement, outcome) = claim.settlement_of(config.policy.on_panic, Record::outcome_unknown);
        Read::Settle {
            settlement,
            outcome,
            body: ResponseBody::kept(Bytes::new(), None),
            has_failed: true,
            panicked: Some(panic),
        }
    };
    match verdict {
        Some(Verdict::Release) => return settle(Fate::Release, ResponseBody::live(body), head),
        Some(Verdict::Reopen) => return settle(Fate::Reopen, ResponseBody::live(body), head),
        Some(Verdict::Seal) => return seal(ResponseBody::live(body), head),
        Some(Verdict::Store | Verdict::StoreFor(_)) | None => {}
    }
    let by_trailers = verdict.is_none() && config.policy.judges_by_trailers();
    let lost = config.policy.on_lost_body;
    if config.policy.is_stream(&head.headers) {
        return Read::Stream {
            read: [Bytes::new(), Bytes::new()],
            rest: Box::pin(body),
            ttl,
            by_trailers,
        };
    }
    // The application's bodies may panic in any of their methods.
    let declared = match catch_unwind(AssertUnwindSafe(|| body.size_hint().lower())) {
        Ok(declared) if declared <= config.max_response_body as u64 => declared,
        Ok(_) if lost == Fate::Seal && by_trailers => {
            return Read::Stream {
                read: [Bytes::new(), Bytes::new()],
                rest: Box::pin(body),
                ttl,
                by_trailers,
            };
        }
        Ok(_) => {
            let body = ResponseBody::overflowed([Bytes::new(), Bytes::new()], Box::pin(body));
            return settle(lost, body, head);
        }
        Err(panic) => return end_by_panic(panic),
    };
    // The body is boxed, so that the rest can be passed on after the body has been polled.
    let mut collect = Collect::new(Box::pin(body), config.max_response_body).expecting(declared);
    let collected = {
        let work = pin!(to_its_end(Pin::new(&mut collect), cancelled));
        within(config.response_body_within, work).await
    };
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
            let mut read = settle(lost, ResponseBody::failed(data, error), head);
            if let (true, Read::Settle { settlement, .. }) = (lost == Fate::Seal && by_trailers, &mut read) {
                // The status in the trailers did not arrive.
                *settlement = claim.settlement_of(lost, Record::outcome_unknown).0;
            }
            return read;
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
        Verdict::Seal => return seal(ResponseBody::kept(data, trailers), head),
    };
    let data = fitted(data);
    announce_lifetime(config, ttl, head);
    let skip = config.skips(&head.headers, trailers.is_some());
    let (print, status, headers) = (claim.fingerprint, head.status, &head.headers);
    // A response to `HEAD` declares the length of a body that it does not have (RFC 9110, section
    // 8.6).
    let record = if is_head && data.is_empty() {
        Record::of_head(print, status, headers, skip)
    } else {
        Record::response(print, status, headers, skip, &data, trailers.as_deref())
    };
    Read::Settle {
        settlement: Settlement::Complete { record, ttl },
        outcome: Outcome::Executed,
        has_failed: is_failure(head.status, &head.headers, trailers.as_deref()),
        body: ResponseBody::kept(data, trailers),
        panicked: None,
    }
}

/// Copies a large body if its buffer has much unused capacity, because the record shares that
/// buffer. Also copies a body whose buffer has other owners, because the buffer may be much larger
/// than the body, such as the read buffer of an HTTP client.
fn fitted(data: Bytes) -> Bytes {
    if !Record::shares_body(data.len()) {
        return data;
    }
    match data.try_into_mut() {
        Ok(buffer) if buffer.capacity() - buffer.len() > buffer.len() / 16 => Bytes::copy_from_slice(&buffer),
        Ok(buffer) => buffer.freeze(),
        Err(data) => Bytes::copy_from_slice(&data),
    }
}

/// Adds the header with the time at which the stored response expires.
pub(super) fn announce_lifetime(config: &Config, ttl: Duration, head: &mut response::Parts) {
    if let Some(name) = &config.lifetime_header
        && let Some(end) = SystemTime::now().checked_add(ttl)
        && let Ok(value) = HeaderValue::try_from(httpdate::fmt_http_date(end))
    {
        head.headers.insert(name.clone(), value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Large enough for a record to share its buffer.
    const LONG: usize = 256 * 1024;

    #[test]
    fn a_record_holds_no_more_memory_than_its_body() {
        let whole = Bytes::from(vec![7; LONG]);
        let at = whole.as_ptr();
        assert_eq!(fitted(whole).as_ptr(), at, "not copied");
        let mut roomy = Vec::with_capacity(2 * LONG);
        roomy.resize(LONG, 7);
        let at = roomy.as_ptr();
        assert_ne!(fitted(Bytes::from(roomy)).as_ptr(), at, "much capacity is unused");
        let buffer = Bytes::from(vec![7; 4 * LONG]);
        let part = fitted(buffer.slice(LONG..2 * LONG));
        assert!(
            !buffer.as_ptr_range().contains(&part.as_ptr()),
            "the buffer has another owner"
        );
        assert_eq!(part, buffer.slice(..LONG));
    }
}
