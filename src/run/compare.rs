//! A duplicate of an operation that is done, whose body is streamed: it is read and compared, and not held.

use std::sync::Arc;
use std::task::{Context, Poll, ready};

use http::Response;

use super::exchange::Exchange;
use super::received::Received;
use super::upload::{Upload, problem_of};
use crate::answer::Problem;
use crate::body::ResponseBody;
use crate::bounds::{GuardedBody, GuardedService};
use crate::request::Fingerprint;
use crate::request::fingerprint::BodyPrint;
use crate::store::{ClaimOutcome, Record, Store, StoreError};

/// A duplicate whose body is being read.
pub(crate) struct Comparing<S, St> {
    exchange: Box<Exchange<S, St>>,
    upload: Arc<dyn Upload>,
    record: Record,
    first: BodyPrint,
}

/// What the duplicate's body is to be compared with. `None`: the record can be sent at once.
pub(crate) fn to_compare<B: GuardedBody>(
    record: &Record,
    fingerprint: &Fingerprint,
    received: &Received<B>,
) -> Result<Option<BodyPrint>, StoreError> {
    let Some(arrival) = received.arrival() else {
        return Ok(None);
    };
    let first = record.body_print()?;
    // What another rule covered cannot be compared.
    let same_rule = record.fingerprint().is_same_rule(fingerprint);
    Ok(first.filter(|first| same_rule && !arrival.is_vouched_for(first)))
}

impl<S, St: Store> Comparing<S, St> {
    pub(crate) fn new(
        exchange: Box<Exchange<S, St>>,
        upload: Arc<dyn Upload>,
        record: Record,
        first: BodyPrint,
    ) -> Self {
        Self {
            exchange,
            upload,
            record,
            first,
        }
    }

    pub(crate) fn poll<B>(&mut self, cx: &mut Context<'_>) -> Poll<Response<ResponseBody<S::ResponseBody>>>
    where
        S: GuardedService<B>,
        B: GuardedBody,
    {
        let ended = ready!(self.upload.poll_end(cx, false));
        let exchange = &self.exchange;
        let problem = ended.and_then(|ended| problem_of(ended.how, self.upload.limit()));
        if let Some(problem) = problem {
            self.upload.abandon();
            return Poll::Ready(exchange.refuse(problem));
        }
        let same = self
            .upload
            .print()
            .is_some_and(|print| print.digest == self.first.digest);
        let answered = match same {
            true => exchange.answer(ClaimOutcome::Done(self.record.clone())),
            false => Ok(exchange.refuse(Problem::key_reused())),
        };
        Poll::Ready(answered.unwrap_or_else(|error| exchange.refuse_for_store(&error)))
    }
}
