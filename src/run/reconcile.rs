//! Calls the application's reconciler before anything runs, to find out what happened to an
//! operation whose earlier attempt died.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::pin::Pin;

use bytes::Bytes;
use http::Response;
use http_body::Body;

use super::claim::Claim;
use super::ended::{Ended, to_its_end};
use super::exchange::Exchange;
use super::read_response::announce_lifetime;
use super::settlement::Settlement;
use crate::answer::{Lapsed, Outcome, Problem, Reconciled, Reconciler};
use crate::body::ResponseBody;
use crate::request::IdempotencyKey;
use crate::store::{ClaimOutcome, Record, Store};

/// Calls the application's reconciler for an operation whose earlier attempt died. Returns `None`
/// if the operation must run.
pub(crate) async fn reconcile<S, RB, St>(
    // Mutable, because a shared borrow across an await would require a `Sync` service.
    exchange: &mut Exchange<S, St>,
    claim: &mut Claim<St>,
    body: Option<&Bytes>,
    reconciler: &Reconciler,
) -> Option<Response<ResponseBody<RB>>>
where
    RB: Body<Data = Bytes>,
    St: Store,
{
    let key = exchange.parts.extensions.get::<IdempotencyKey>()?.clone();
    let lapsed = Lapsed {
        key,
        request: exchange.parts.clone(),
        body: body.cloned().unwrap_or_default(),
        has_body: body.is_some(),
    };
    let asked = match catch_unwind(AssertUnwindSafe(|| reconciler.ask(lapsed))) {
        // Like a handler, the reconciler continues after its client has disconnected.
        Ok(mut asking) => to_its_end(Pin::new(&mut asking), None).await,
        Err(panic) => Ended::Panicked(panic),
    };
    let response = match asked {
        Ended::Returned(Ok(Reconciled::Run)) => return None,
        Ended::Returned(Ok(Reconciled::Done(response))) => response,
        Ended::Returned(Err(error)) => {
            tracing::warn!(
                target: "tower_idempotency",
                slot = %claim.slot,
                error = &*error as &(dyn std::error::Error + 'static),
                "the reconciler could not find out what happened to an operation; the next retry will try again"
            );
            claim.give_back().await;
            return Some(exchange.refuse(Problem::outcome_unknown()));
        }
        Ended::Panicked(panic) => {
            claim.give_back().await;
            let tally = &claim.guard.tally;
            tally.report(Outcome::Reopened, Some(&claim.slot), Some(claim.attempt), None);
            resume_unwind(panic)
        }
        Ended::Cancelled => return None,
    };
    let config = &claim.guard.config;
    let (mut head, body) = response.into_parts();
    announce_lifetime(config, config.ttl, &mut head);
    let skip = config.skips(&head.headers, false);
    let record = Record::response(claim.fingerprint, head.status, &head.headers, skip, &body, None);
    let ttl = config.ttl;
    let kept = record.clone();
    claim.settle(&Settlement::Complete { record: kept, ttl }).await;
    Some(
        exchange
            .answer(ClaimOutcome::Done(record))
            .unwrap_or_else(|error| exchange.refuse_for_store(&error)),
    )
}
