//! A guarded request before the store's decision, and the responses that are sent without running
//! the handler.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use http::header::HeaderValue;
use http::request::Parts;
use http::{Request, Response};
use http_body::Body;

use super::admit::OuterClaims;
use super::breaker::was_not_asked;
use super::claim::Claim;
use super::guard::Guard;
use super::received::Received;
use super::store_call::warn_of;
use crate::answer::{Outcome, Problem};
use crate::body::ResponseBody;
use crate::bounds::{GuardedBody, GuardedService};
use crate::request::key::KeyText;
use crate::request::scope::Scoped;
use crate::request::{Fingerprint, IdempotencyKey, ScopeTag, Slot};
use crate::store::record::Opened;
use crate::store::{ClaimOutcome, ClaimRequest, Store, StoreError, Token};

/// A guarded request before the store's decision.
pub(crate) struct Exchange<S, St> {
    pub(crate) guard: Arc<Guard<St>>,
    /// The inner service. It is ready, or its readiness is checked before it is called.
    pub(crate) inner: S,
    pub(crate) parts: Parts,
    pub(crate) identity: Option<Identity>,
}

/// The key and its sender.
pub(crate) struct Identity {
    /// The key. `None` once it has been passed to the handler.
    pub(crate) key: Option<KeyText>,
    pub(crate) slot: Slot,
    pub(crate) scope: ScopeTag,
}

impl<S, St: Store> Exchange<S, St> {
    /// Finds the key in the body, if the key source needs the body. Returns `None` if the request
    /// has no key and can pass through.
    pub(crate) fn key_in(&self, body: &Bytes) -> Result<Option<KeyText>, Problem> {
        let config = &self.guard.config;
        match config.key.in_body(&self.parts, body).map_err(Problem::invalid_key)? {
            Some(key) => Ok(Some(KeyText::from(&*key))),
            None if config.require_key => Err(Problem::missing_key()),
            None => Ok(None),
        }
    }

    /// Determines who sent the key.
    pub(crate) fn identify(&mut self, key: KeyText) -> Result<(), Problem> {
        let scoped = self.guard.config.scope.slot(&self.parts, key.as_bytes());
        let Scoped { slot, tag, doubts } = scoped.map_err(|unavailable| {
            tracing::error!(
                target: "tower_idempotency",
                error = &*unavailable.0 as &(dyn std::error::Error + 'static),
                "the scope of a request cannot be determined"
            );
            Problem::scope_unavailable()
        })?;
        if doubts.overlooks_cookie && !self.guard.warned_of_cookie.swap(true, Ordering::Relaxed) {
            tracing::warn!(
                target: "tower_idempotency",
                "a request has a Cookie header but no Authorization header: under the default scope, such requests \
                 share their keys; set a scope that separates your sessions"
            );
        }
        if let Some(scheme) = doubts.changing_scheme
            && !self.guard.warned_of_scheme.swap(true, Ordering::Relaxed)
        {
            tracing::warn!(
                target: "tower_idempotency",
                scheme,
                "the scope has `Authorization` credentials that change with every request, so no retry is recognized; \
                 set a scope that stays the same, such as `ScopeSource::extension` with the user or tenant"
            );
        }
        self.identity = Some(Identity {
            key: Some(key),
            slot,
            scope: tag,
        });
        Ok(())
    }

    /// Whether this request has passed through an outer idempotency layer that guards it. If so, a
    /// replay from this layer is the outer layer's first response, and is sent without the replay
    /// marker.
    fn is_inside_another_layer(&self) -> bool {
        let Some(identity) = &self.identity else {
            return false;
        };
        let key = self.parts.extensions.get::<IdempotencyKey>();
        match identity.key {
            Some(_) => key.is_some(),
            // The key in the extensions is this layer's own.
            None => key.is_some_and(IdempotencyKey::is_inside_another_layer),
        }
    }

    /// The claims that outer idempotency layers have on the same slot. Without their tokens, a layer
    /// that shares its store with an outer layer would mistake its own request for a different
    /// request in flight.
    pub(crate) fn claims_of_outer_layers(&self) -> OuterClaims {
        match (self.parts.extensions.get::<IdempotencyKey>(), &self.identity) {
            (Some(outer), Some(identity)) => {
                let claims = outer.claims_for(&identity.slot);
                claims.map(|(token, lease)| (Token(token), lease)).collect()
            }
            _ => OuterClaims::new(),
        }
    }

    /// Inserts the key into the extensions for the handler.
    pub(crate) fn tell_handler(&mut self, claim: &Claim<St>) {
        if let Some((key, slot)) = self.take_key() {
            let key = IdempotencyKey::new(key, slot, claim.attempt);
            self.insert(key.claimed(claim.token().0, self.lease()));
        }
    }

    /// Like `tell_handler`, but for a request without a claim.
    pub(crate) fn tell_handler_unprotected(&mut self) {
        if let Some((key, slot)) = self.take_key() {
            self.insert(IdempotencyKey::new(key, slot, 1));
        }
    }

    fn take_key(&mut self) -> Option<(KeyText, Slot)> {
        let identity = self.identity.as_mut()?;
        Some((identity.key.take()?, identity.slot))
    }

    /// Returns the lease of this layer's claims. If a claim is in this process's memory, its holder
    /// cannot die without the claim. Such a claim lapses when it is dropped, rather than after a
    /// period of time.
    fn lease(&self) -> Duration {
        match St::IN_PROCESS {
            true => Duration::MAX,
            false => self.guard.config.lease,
        }
    }

    /// Inserts a key that remembers the claims of outer layers.
    fn insert(&mut self, key: IdempotencyKey) {
        let extensions = &mut self.parts.extensions;
        if let Some(outer) = extensions.insert(key)
            && let Some(key) = extensions.get_mut::<IdempotencyKey>()
        {
            key.set_outer(outer);
        }
    }

    /// Returns the claim to request, or `None` if the request was not identified.
    pub(crate) fn claim_request(&self, fingerprint: Fingerprint) -> Option<ClaimRequest> {
        let config = &self.guard.config;
        let identity = self.identity.as_ref()?;
        Some(ClaimRequest {
            slot: identity.slot,
            scope: identity.scope,
            fingerprint,
            token: self.guard.token(),
            lease: self.lease(),
            ttl: config.ttl,
            on_lapse: config.policy.on_lapse,
            is_to_settle: false,
        })
    }

    /// Creates the response from the store's result, without running the handler.
    pub(crate) fn answer<RB>(&self, begun: ClaimOutcome) -> Result<Response<ResponseBody<RB>>, StoreError>
    where
        RB: Body<Data = Bytes>,
    {
        let record = match begun {
            ClaimOutcome::Done(record) => record,
            ClaimOutcome::Mismatch => return Ok(self.refuse(Problem::key_reused())),
            ClaimOutcome::OutcomeUnknown => return Ok(self.refuse(Problem::outcome_unknown())),
            ClaimOutcome::InFlight { .. } | ClaimOutcome::Started { .. } => {
                return Ok(self.refuse(Problem::in_flight()));
            }
        };
        Ok(match record.open()? {
            Opened::NotRetained { status, locations } => {
                self.respond(Outcome::NotRetained, &Problem::not_retained(status, locations))
            }
            Opened::Unknown => self.respond(Outcome::NotRetained, &Problem::outcome_unknown()),
            Opened::Response(replay) => {
                let marker = self.guard.config.replay_header.clone();
                let mut response = replay.head.map(|()| ResponseBody::kept(replay.body, replay.trailers));
                if !self.is_inside_another_layer() {
                    response.headers_mut().insert(marker, HeaderValue::from_static("true"));
                }
                let Some(hook) = &self.guard.config.on_replay else {
                    return Ok(self.finish(Outcome::Replayed, response));
                };
                self.guard.tally.report_of(Outcome::Replayed, self.slot(), None, || {
                    let (mut head, body) = response.into_parts();
                    (hook.0)(&self.parts, &mut head);
                    Response::from_parts(head, body)
                })
            }
        })
    }

    pub(crate) fn refuse<RB>(&self, problem: Problem) -> Response<ResponseBody<RB>>
    where
        RB: Body<Data = Bytes>,
    {
        self.respond(Outcome::Refused(problem.kind()), &problem)
    }

    fn respond<RB>(&self, outcome: Outcome, problem: &Problem) -> Response<ResponseBody<RB>>
    where
        RB: Body<Data = Bytes>,
    {
        self.guard.respond(outcome, problem, &self.parts, self.slot(), None)
    }

    fn finish<RB: Body>(
        &self,
        outcome: Outcome,
        mut response: Response<ResponseBody<RB>>,
    ) -> Response<ResponseBody<RB>> {
        let tally = &self.guard.tally;
        tally.report(outcome, self.slot(), None, Some(response.status()));
        response.extensions_mut().insert(outcome);
        response
    }

    fn slot(&self) -> Option<&Slot> {
        self.identity.as_ref().map(|identity| &identity.slot)
    }

    /// Returns the inner service and the request to pass to it.
    pub(crate) fn into_request<B: GuardedBody>(self, body: Received<B>) -> (S, Request<B>) {
        (self.inner, Request::from_parts(self.parts, body.into_body()))
    }

    /// Calls the inner service, which is ready.
    pub(crate) fn call<B>(self, body: Received<B>) -> S::Future
    where
        S: GuardedService<B>,
        B: GuardedBody,
    {
        let (mut inner, request) = self.into_request(body);
        inner.call(request)
    }

    /// Refuses the request because the store failed before the handler ran and the layer fails
    /// closed.
    pub(crate) fn refuse_for_store<RB>(&self, error: &StoreError) -> Response<ResponseBody<RB>>
    where
        RB: Body<Data = Bytes>,
    {
        // The circuit breaker has already logged this failure.
        if !was_not_asked(error) {
            self.warn_of(error, "the store failed; the request is refused");
        }
        self.refuse(Problem::store_unavailable())
    }

    pub(crate) fn warn_of(&self, error: &StoreError, message: &'static str) {
        if let Some(identity) = &self.identity {
            warn_of(error, &identity.slot, message);
        }
    }
}
