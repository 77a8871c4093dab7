//! Requests a claim from the store, waits for the outcome of another request, and takes back a
//! claim if the store's answer was lost.

use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::Poll;
use std::time::Duration;

use smallvec::SmallVec;
use tokio::runtime::Handle;
use tokio::time::Instant;

use super::claim::Claim;
use super::ended::Disconnected;
use super::guard::Guard;
use super::pauses::Pauses;
use super::store_call::{Watch, at_once, bounded};
use crate::store::{ClaimOutcome, ClaimRequest, Held, Store, StoreError, StoreErrorKind, Token};

/// The store's decision.
pub(crate) enum Admission<St: Store> {
    /// The handler must run.
    Started(Claim<St>),
    /// The handler must not run.
    Found(ClaimOutcome),
    /// An outer layer on the same store has claimed the slot for this same request.
    HeldOutside,
}

/// The tokens and leases of outer layers that may have taken this same claim. Nearly every request
/// has at most one.
pub(crate) type OuterClaims = SmallVec<[(Token, Duration); 1]>;

/// A pending request to the store.
pub(crate) type Question<St> = Pin<Box<dyn Future<Output = Result<Admission<St>, StoreError>> + Send>>;

fn admission<St: Store>(guard: &Arc<Guard<St>>, begin: &ClaimRequest, begun: ClaimOutcome) -> Admission<St> {
    match begun {
        ClaimOutcome::Started { attempt } => Admission::Started(Claim::new(Arc::clone(guard), begin, attempt)),
        begun => Admission::Found(begun),
    }
}

/// Requests a claim from a store that answers immediately. Such a call does not need a boxed
/// future.
pub(crate) fn admit_now<St: Store>(
    guard: &Arc<Guard<St>>,
    begin: &ClaimRequest,
    outer: &[(Token, Duration)],
) -> Option<Result<Admission<St>, StoreError>> {
    if !St::IN_PROCESS {
        return None;
    }
    let watch = Watch::start("begin");
    let Poll::Ready(answer) = at_once(guard.store.begin(begin)) else {
        return None;
    };
    watch.stop(answer.is_ok());
    if answer.as_ref().is_ok_and(may_be_held_outside)
        && outer.iter().any(|(token, lease)| {
            let renewed = at_once(guard.store.renew(&begin.slot, *token, *lease));
            matches!(renewed, Poll::Ready(Ok(Held::Yes)))
        })
    {
        return Some(Ok(Admission::HeldOutside));
    }
    match answer {
        // Waiting needs the boxed future.
        Ok(ClaimOutcome::InFlight { .. }) if !guard.config.wait.is_zero() => None,
        answer => Some(
            answer
                .inspect_err(|error| take_back(guard, *begin, error))
                .map(|begun| admission(guard, begin, begun)),
        ),
    }
}

/// Requests a claim from the store. If `wait` is set, repeats the call until the outcome of the
/// other request is available or the waiting time has elapsed.
pub(crate) async fn admit<St: Store>(
    guard: Arc<Guard<St>>,
    mut begin: ClaimRequest,
    outer: OuterClaims,
    disconnected: Disconnected,
) -> Result<Admission<St>, StoreError> {
    let config = &guard.config;
    let mut deadline = None;
    let mut seen = None;
    for round in 0.. {
        let asked = Instant::now();
        let begun = match guard.breaker.enter() {
            Ok(permit) => {
                let begun = bounded("begin", config.claim_timeout(), pin!(guard.store.begin(&begin))).await;
                permit.report(&begun);
                begun.inspect_err(|error| take_back(&guard, begin, error))
            }
            Err(error) => Err(error),
        };
        let begun = match (begun, seen) {
            // The store failed during the wait, but it is known that the operation was running. So
            // this request must not run unprotected.
            (Err(_), Some(lease_left)) if config.fail_open => {
                // The failed call may have taken effect. If so, the claim of its token is given back
                // in the background, so the next call needs a token of its own.
                begin.token = guard.token();
                ClaimOutcome::InFlight { lease_left }
            }
            (begun, _) => begun?,
        };
        if seen.is_none() && may_be_held_outside(&begun) {
            for (token, lease) in &outer {
                // A claim that can be renewed with an outer layer's token belongs to the outer
                // layer. The claim keeps that layer's lease.
                let renewal = pin!(guard.store.renew(&begin.slot, *token, *lease));
                if bounded("renew", config.claim_timeout(), renewal).await? == Held::Yes {
                    return Ok(Admission::HeldOutside);
                }
            }
        }
        let nobody_waits = disconnected.load(Ordering::Relaxed);
        let lease_left = match admission(&guard, &begin, begun) {
            Admission::Started(mut claim) if !nobody_waits => {
                claim.hold(asked).await;
                return Ok(Admission::Started(claim));
            }
            Admission::Found(ClaimOutcome::InFlight { lease_left }) if !nobody_waits => lease_left,
            admission => return Ok(admission),
        };
        let left = deadline
            .get_or_insert_with(|| Instant::now() + config.wait)
            .saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(Admission::Found(ClaimOutcome::InFlight { lease_left }));
        }
        seen = Some(lease_left);
        let nap = left.min(lease_left).max(Duration::from_millis(1));
        let mut changed = pin!(tokio::time::timeout(nap, guard.store.changed(&begin.slot, round)));
        poll_fn(|cx| match disconnected.load(Ordering::Relaxed) {
            // The client has disconnected. One more call to `begin` finds out whether a claim must
            // be given back.
            true => Poll::Ready(()),
            false => changed.as_mut().poll(cx).map(drop),
        })
        .await;
    }
    unreachable!("the rounds do not end")
}

/// Whether the claim that was found may belong to an outer layer.
fn may_be_held_outside(begun: &ClaimOutcome) -> bool {
    matches!(
        begun,
        ClaimOutcome::InFlight { .. } | ClaimOutcome::Mismatch | ClaimOutcome::OutcomeUnknown
    )
}

/// Called after a `begin` whose answer was lost. Finds out in the background whether the call took
/// effect, and if so, gives the claim back, because it would otherwise block the key until its
/// lease expires.
///
/// It is safe to call `begin` again with the same token, whether or not the first call took effect.
/// Shutdown does not wait for this work: a claim that is not given back lapses.
fn take_back<St: Store>(guard: &Arc<Guard<St>>, begin: ClaimRequest, error: &StoreError) {
    let lost = matches!(error.kind(), StoreErrorKind::Timeout | StoreErrorKind::Unavailable) && !error.had_no_effect();
    let config = &guard.config;
    // Without a limit, this work would pile up during an outage. Claims beyond the limit lapse.
    if !lost || guard.taking_back.load(Ordering::Relaxed) >= config.max_detached {
        return;
    }
    let Ok(runtime) = Handle::try_current() else { return };
    guard.taking_back.fetch_add(1, Ordering::Relaxed);
    let owner = Arc::clone(guard);
    let asking = async move {
        let mut pauses = Pauses::default();
        loop {
            pauses.wait().await;
            let asked = pin!(owner.store.begin(&begin));
            match bounded("begin", owner.config.claim_timeout(), asked).await {
                Ok(ClaimOutcome::Started { attempt }) => {
                    let mut claim = Claim::new(Arc::clone(&owner), &begin, attempt);
                    return claim.give_back().await;
                }
                Ok(_) => return,
                Err(_) => {}
            }
        }
    };
    // The time limit is at least as long as the lease, because a lapsed claim would be mistaken for
    // an operation that died.
    let long = config.settle_within.max(config.lease);
    let guard = Arc::clone(guard);
    runtime.spawn(async move {
        let _ = tokio::time::timeout(long, asking).await;
        guard.taking_back.fetch_sub(1, Ordering::Relaxed);
    });
}
