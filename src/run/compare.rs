//! Duplicates of an operation that is done, where the store cannot compare the whole of two requests: the first
//! one's body was streamed, or this one's is.

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

/// What a record says to a duplicate, before its body is read.
pub(crate) enum Known {
    Same,
    Other,
    /// That is for the body to say.
    Asks(First),
}

/// What is known of the first request.
pub(crate) enum First {
    /// Its body was streamed.
    Streamed(BodyPrint),
    /// Its body was held.
    Held(Fingerprint),
}

impl<S, St: Store> Exchange<S, St> {
    /// What a record says to this request, whose claim was asked for under that fingerprint.
    pub(crate) fn compare<B: GuardedBody>(
        &self,
        record: &Record,
        fingerprint: &Fingerprint,
        received: &Received<B>,
    ) -> Result<Known, StoreError> {
        let first = record.fingerprint();
        match received {
            // Nothing of the body counts.
            Received::Unread { arrival: None, .. } => Ok(Known::Same),
            Received::Whole(body) if first.is_streamed() && first.differs_in_streaming(fingerprint) => {
                Ok(match self.is_as_streamed(&first, record.body_print()?, body) {
                    true => Known::Same,
                    false => Known::Other,
                })
            }
            // The store has compared them.
            Received::Whole(_) => Ok(Known::Same),
            Received::Unread {
                arrival: Some(arrival), ..
            } => {
                if first.differs_in_streaming(fingerprint) {
                    return Ok(Known::Asks(First::Held(first)));
                }
                let body = record.body_print()?;
                // What another rule covered cannot be compared.
                let same_rule = first.is_same_rule(fingerprint);
                let asks = body.filter(|first| same_rule && !arrival.is_vouched_for(first));
                Ok(asks.map_or(Known::Same, |first| Known::Asks(First::Streamed(first))))
            }
        }
    }

    /// Whether this request, whose body is held, is the first one, whose body was streamed.
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
    /// Reads the body of a request that is streamed. An error gives back the exchange of one that is not.
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
            // A body with more bytes than the layer holds was not held the first time.
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
