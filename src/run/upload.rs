//! Streamed request bodies: they are observed while the handler reads them, and they affect the
//! outcome.

use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::request::Parts;
use smallvec::SmallVec;

use super::config::Config;
use super::ended::{self, Disconnected, to_its_end};
use super::store_call::within;
use crate::answer::Problem;
use crate::body::{BodyEnd, Ended, Tee, Witness, drain, expects_continue};
use crate::bounds::GuardedBody;
use crate::error::BoxError;
use crate::request::Fingerprint;
use crate::request::fingerprint::{BodyDigest, BodyPrint, HeadPrint};
use crate::request::integrity::{DeclaredDigests, DigestCheck, InvalidDigest, Vouch};

/// Observes a body while it arrives.
pub(crate) struct Arrival {
    limit: usize,
    /// Digests the parts of the body that the fingerprint covers. `None` if the fingerprint covers
    /// nothing, or after the body has ended.
    digest: Option<BodyDigest>,
    check: Option<DigestCheck>,
    /// The digests that the client declares for the body.
    vouched: SmallVec<[Vouch; 2]>,
    /// Set when the complete body has arrived.
    print: Option<BodyPrint>,
    held: Held,
    expects_continue: bool,
}

/// The part of a body that is held in memory, so that the body can be compared with a first
/// request's body that was held in memory.
enum Held {
    Nothing,
    /// The limit, and the data received so far.
    UpTo(usize, Vec<u8>),
    /// The body is longer than the limit.
    TooLong,
}

impl Arrival {
    /// Returns the observer for a request's body, and the fingerprint of its head.
    pub(crate) fn of(config: &Config, parts: &Parts, limit: usize) -> Result<(Fingerprint, Box<Self>), InvalidDigest> {
        let declared = DeclaredDigests::of(&parts.headers)?;
        let HeadPrint { fingerprint, body } = config.fingerprint.of_streamed(parts, config.max_request_body);
        let vouched = declared.as_ref().map(|declared| declared.vouches(&parts.headers));
        let arrival = Self {
            limit,
            digest: body,
            check: declared.map(|declared| declared.check()),
            vouched: vouched.unwrap_or_default(),
            print: None,
            held: Held::Nothing,
            expects_continue: expects_continue(&parts.headers),
        };
        Ok((fingerprint, Box::new(arrival)))
    }

    /// Holds the body in memory, if it has at most `limit` bytes.
    pub(crate) fn hold(&mut self, limit: usize) {
        self.held = Held::UpTo(limit, Vec::new());
    }

    /// Starts to observe the body.
    pub(crate) fn meet<B: GuardedBody>(self, body: B) -> Arc<Tee<B, Self>> {
        let limit = self.limit;
        Tee::unread(body, self, limit)
    }

    /// Whether the client declares a digest of the body that was already verified for the body
    /// `first`.
    pub(crate) fn is_vouched_for(&self, first: &BodyPrint) -> bool {
        self.vouched.iter().any(|vouch| first.vouched.contains(vouch))
    }
}

impl Witness for Arrival {
    fn data(&mut self, data: &[u8]) {
        if let Some(digest) = &mut self.digest {
            digest.data(data);
        }
        if let Some(check) = &mut self.check {
            check.data(data);
        }
        if let Held::UpTo(limit, held) = &mut self.held {
            if held.len().saturating_add(data.len()) > *limit {
                self.held = Held::TooLong;
            } else {
                held.extend_from_slice(data);
            }
        }
    }

    fn end(&mut self) -> Result<(), BoxError> {
        if self.check.take().is_some_and(|check| !check.finish()) {
            return Err("the request body does not match the digest that its header declares".into());
        }
        self.print = self.digest.take().map(|digest| BodyPrint {
            digest: digest.finish(),
            vouched: std::mem::take(&mut self.vouched),
        });
        Ok(())
    }
}

/// A streamed body of any type.
pub(crate) trait Upload: Send + Sync {
    /// Reads the rest of the body, unless the handler can still read the body. Returns
    /// `Ready(None)` if the handler can still read and `wait_for_reader` is `false`.
    fn poll_end(&self, cx: &mut Context<'_>, wait_for_reader: bool) -> Poll<Option<Ended>>;
    /// Returns how the body ended, if it has ended.
    fn ended(&self) -> Option<Ended>;
    /// Returns the digest of the parts that the fingerprint covers. `None` if the fingerprint
    /// covers nothing, or if the complete body has not arrived.
    fn print(&self) -> Option<BodyPrint>;
    /// Returns the body, if it was to be held in memory and is not too long.
    fn held(&self) -> Option<Bytes>;
    fn limit(&self) -> usize;
    /// Disposes of the rest of the body, which is not needed.
    fn abandon(&self);
}

impl<B: GuardedBody> Upload for Tee<B, Arrival> {
    fn poll_end(&self, cx: &mut Context<'_>, wait_for_reader: bool) -> Poll<Option<Ended>> {
        self.poll_end(cx, wait_for_reader)
    }

    fn ended(&self) -> Option<Ended> {
        self.ended()
    }

    fn print(&self) -> Option<BodyPrint> {
        self.witness(|arrival| arrival.print.clone())
    }

    fn held(&self) -> Option<Bytes> {
        self.witness(|arrival| match &arrival.held {
            Held::UpTo(_, held) => Some(Bytes::copy_from_slice(held)),
            Held::Nothing | Held::TooLong => None,
        })
    }

    fn limit(&self) -> usize {
        self.witness(|arrival| arrival.limit)
    }

    fn abandon(&self) {
        if !self.witness(|arrival| arrival.expects_continue)
            && let Some(rest) = self.take_rest()
        {
            drain(rest);
        }
    }
}

/// The effect of the body on an outcome that is about to be stored.
pub(crate) enum Uploaded {
    /// The body is complete.
    Whole(Option<BodyPrint>),
    /// The handler continues to read while the response is being sent.
    GoesOn,
    /// The body did not arrive completely, and the handler responded without the rest.
    RestMissing,
    /// The handler read an incomplete body. Nothing is stored, and the response is this problem.
    Failed(Problem),
    /// The client disconnected, and its operation must be cancelled.
    Cancelled,
}

impl Uploaded {
    pub(crate) fn into_problem(self) -> Option<Problem> {
        match self {
            Self::Failed(problem) => Some(problem),
            _ => None,
        }
    }
}

/// Reads the rest of a body after the handler has responded.
pub(crate) async fn rest_of(
    upload: &dyn Upload,
    wait_for_reader: bool,
    limit: Duration,
    cancelled: Option<&Disconnected>,
) -> Uploaded {
    let end = pin!(poll_fn(|cx| upload.poll_end(cx, wait_for_reader)));
    let end = pin!(to_its_end(end, cancelled));
    match within(limit, end).await {
        Ok(ended::Ended::Returned(Some(ended))) => what_it_says(upload, ended),
        Ok(ended::Ended::Returned(None)) => Uploaded::GoesOn,
        Ok(ended::Ended::Cancelled) => Uploaded::Cancelled,
        Ok(ended::Ended::Panicked(panic)) => std::panic::resume_unwind(panic),
        Err(_late) => Uploaded::RestMissing,
    }
}

/// Returns the effect of a body on the outcome, based on the part that was read.
pub(crate) fn so_far(upload: &dyn Upload) -> Uploaded {
    match upload.ended() {
        Some(ended) => what_it_says(upload, ended),
        None => Uploaded::GoesOn,
    }
}

fn what_it_says(upload: &dyn Upload, ended: Ended) -> Uploaded {
    match (problem_of(ended.how, upload.limit()), ended) {
        (None, _) => Uploaded::Whole(upload.print()),
        (Some(problem), ended) if ended.before_handler || ended.how == BodyEnd::Refused => Uploaded::Failed(problem),
        _ => Uploaded::RestMissing,
    }
}

/// Returns the problem for a body that ended in this way, if any.
pub(crate) fn problem_of(end: BodyEnd, limit: usize) -> Option<Problem> {
    match end {
        BodyEnd::Whole => None,
        BodyEnd::Refused => Some(Problem::digest_mismatch()),
        BodyEnd::TooLong => Some(Problem::body_too_large(limit)),
        BodyEnd::CutOff => Some(Problem::body_cut_off()),
        BodyEnd::BrokenOff => Some(Problem::body_unreadable()),
    }
}
