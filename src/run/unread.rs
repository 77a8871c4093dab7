//! Requests whose body is not held in memory. Their key is claimed when only the head has been
//! read.

use http_body::Body;

use super::exchange::Exchange;
use super::received::Received;
use super::stage::Stage;
use super::upload::Arrival;
use crate::answer::Problem;
use crate::body::declares_more_than;
use crate::bounds::{GuardedBody, GuardedService};
use crate::request::Fingerprint;
use crate::request::integrity::DeclaredDigests;
use crate::store::Store;

/// The information in the head of a request whose body is not held in memory.
pub(crate) struct Unread {
    fingerprint: Fingerprint,
    /// Observes the body as it arrives, if the body is streamed.
    arrival: Option<Box<Arrival>>,
}

impl<S, St: Store> Exchange<S, St> {
    /// Returns the information for claiming the key before the body is read, or `None` if the body
    /// is held in memory.
    pub(crate) fn to_claim_unread(&self, body: &impl Body) -> Result<Option<Unread>, Problem> {
        let config = &self.guard.config;
        let identified = self.identity.is_some();
        if let Some(limit) = config.stream_request_bodies.filter(|_| identified) {
            if declares_more_than(body, limit) {
                return Err(Problem::body_too_large(limit));
            }
            let (fingerprint, arrival) = Arrival::of(config, &self.parts, limit).map_err(Problem::invalid_digest)?;
            return Ok(Some(Unread {
                fingerprint,
                arrival: Some(arrival),
            }));
        }
        if identified && let Some(fingerprint) = config.fingerprint.of_head(&self.parts) {
            return Ok(Some(Unread {
                fingerprint,
                arrival: None,
            }));
        }
        // A body that declares a length above the limit is not read.
        match declares_more_than(body, config.max_request_body) {
            true => Err(Problem::body_too_large(config.max_request_body)),
            false => Ok(None),
        }
    }

    /// Claims the key without reading the body.
    pub(crate) fn claim_unread<B>(self: Box<Self>, unread: Unread, body: B) -> Stage<S, B, St>
    where
        S: GuardedService<B>,
        B: GuardedBody,
    {
        let Unread { fingerprint, arrival } = unread;
        self.claim(fingerprint, Received::Unread { body, arrival })
    }

    /// Checks that a body in memory matches the digest that its headers declare.
    pub(crate) fn check_digest(&self, body: &[u8]) -> Result<(), Problem> {
        match DeclaredDigests::of(&self.parts.headers).map_err(Problem::invalid_digest)? {
            Some(declared) if !declared.match_body(body) => Err(Problem::digest_mismatch()),
            _ => Ok(()),
        }
    }
}
