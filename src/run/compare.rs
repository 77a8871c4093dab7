//! Compares a duplicate with the first request of a finished operation. This code runs if the store
//! cannot compare the two requests completely, because the first request's body was streamed or the
//! duplicate's body is being streamed.

use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::Response;

use super::exchange::Exchange;
use super::received::Received;
use super::upload::{Upload, problem_of};
use crate::answer::Problem;
use crate::body::ResponseBody;
use crate::bounds::{GuardedBody, GuardedService};
use crate::request::Fingerprint;
use crate::request::fingerprint::{BodyPrint, HeadPrint};
use crate::store::{ClaimOutcome, Record, Store, StoreError};

/// The result of comparing a duplicate with a record, before the duplicate's body is read.
pub(crate) enum Known {
    Same,
    Other,
    /// The body must be compared.
    Asks(First),
}

/// The available information about the first request's body.
pub(crate) enum First {
    /// The body was streamed.
    Streamed(BodyPrint),
    /// The body was held in memory.
    Held(Fingerprint),
}

impl<S, St: Store> Exchange<S, St> {
    /// Compares this request, whose claim was requested with the given fingerprint, with a record.
    pub(crate) fn compare<B: GuardedBody>(
        &self,
        record: &Record,
        fingerprint: &Fingerprint,
        received: &Received<B>,
    ) -> Result<Known, StoreError> {
        let first = record.fingerprint();
        match received {
            // The fingerprint does not cover the body.
            Received::Unread { arrival: None, .. } => Ok(Known::Same),
            Received::Whole(body) if first.is_streamed() && first.differs_in_streaming(fingerprint) => {
                Ok(match self.is_as_streamed(&first, record.body_print()?, body) {
                    true => Known::Same,
                    false => Known::Other,
                })
            }
            // The store has already compared the requests.
            Received::Whole(_) => Ok(Known::Same),
            Received::Unread {
                arrival: Some(arrival), ..
            } => {
                if first.differs_in_streaming(fingerprint) {
                    return Ok(Known::Asks(First::Held(first)));
                }
                let body = record.body_print()?;
                // A fingerprint that was made by a different rule cannot be compared.
                let same_rule = first.is_same_rule(fingerprint);
                let asks = body.filter(|first| same_rule && !arrival.is_vouched_for(first));
                Ok(asks.map_or(Known::Same, |first| Known::Asks(First::Streamed(first))))
            }
        }
    }

    /// Whether this request, whose body is held in memory, is the same as the first request, whose
    /// body was streamed.
    fn is_as_streamed(&self, first: &Fingerprint, first_body: Option<BodyPrint>, body: &Bytes) -> bool {
        let config = &self.guard.config;
        let HeadPrint {
            fingerprint,
            body: digest,
        } = config.fingerprint.of_streamed(&self.parts, config.max_request_body);
        if first.conflicts_with(&fingerprint) {
            return false;
        }
        let (Some(first), Some(mut digest)) = (first_body, digest) else {
            return true;
        };
        digest.data(body);
        digest.finish() == first.digest
    }
}

/// A duplicate whose body is being read.
pub(crate) struct Comparing<S, St> {
    exchange: Box<Exchange<S, St>>,
    upload: Arc<dyn Upload>,
    record: Record,
    first: First,
}

impl<S, St: Store> Comparing<S, St> {
    /// Starts to read the body of a request that is streamed. Returns the exchange as the error if
    /// the request is not streamed.
    pub(crate) fn new<B: GuardedBody>(
        exchange: Box<Exchange<S, St>>,
        received: Received<B>,
        record: Record,
        first: First,
    ) -> Result<Self, Box<Exchange<S, St>>> {
        let Received::Unread {
            body,
            arrival: Some(mut arrival),
        } = received
        else {
            return Err(exchange);
        };
        if let First::Held(_) = first {
            // If the first body was held in memory, it was not longer than the layer's limit.
            arrival.hold(exchange.guard.config.max_request_body);
        }
        Ok(Self {
            upload: arrival.meet(body),
            exchange,
            record,
            first,
        })
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
        let answered = match self.is_same() {
            true => exchange.answer(ClaimOutcome::Done(self.record.clone())),
            false => Ok(exchange.refuse(Problem::key_reused())),
        };
        Poll::Ready(answered.unwrap_or_else(|error| exchange.refuse_for_store(&error)))
    }

    fn is_same(&self) -> bool {
        match &self.first {
            First::Streamed(first) => self.upload.print().is_some_and(|print| print.digest == first.digest),
            First::Held(first) => self.upload.held().is_some_and(|body| {
                let source = &self.exchange.guard.config.fingerprint;
                !first.conflicts_with(&source.of(&self.exchange.parts, &body))
            }),
        }
    }
}
