//! Counts how often each outcome occurred, and logs an event for each request.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicU64, Ordering};

use http::{Response, StatusCode};

use super::outcome::Outcome;
use super::problem::ProblemKind;
use crate::request::Slot;

/// The name of the counter for requests that pass through.
const UNGUARDED: &str = "unguarded";

/// The outcomes that are not refusals. In the counters, they are followed by the problem kinds in
/// the order of [`ProblemKind::ALL`].
const UNREFUSED: [Outcome; 7] = [
    Outcome::Executed,
    Outcome::Released,
    Outcome::Sealed,
    Outcome::Replayed,
    Outcome::NotRetained,
    Outcome::Unprotected,
    Outcome::Reopened,
];

const COUNTERS: usize = UNREFUSED.len() + ProblemKind::ALL.len();

fn index(outcome: Outcome) -> usize {
    match outcome {
        Outcome::Executed => 0,
        Outcome::Released => 1,
        Outcome::Sealed => 2,
        Outcome::Replayed => 3,
        // Responses based on a tombstone have a separate outcome.
        Outcome::NotRetained | Outcome::Refused(ProblemKind::ResponseNotRetained) => 4,
        Outcome::Unprotected => 5,
        Outcome::Reopened => 6,
        Outcome::Refused(kind) => UNREFUSED.len() + kind as usize,
    }
}

/// Returns every outcome that has a separate counter.
fn outcomes() -> impl Iterator<Item = Outcome> {
    let refusals = ProblemKind::ALL.iter().copied().map(Outcome::Refused);
    let refusals = refusals.filter(|refusal| *refusal != Outcome::Refused(ProblemKind::ResponseNotRetained));
    UNREFUSED.into_iter().chain(refusals)
}

/// The number of requests per outcome since the layer was built.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    guarded: [AtomicU64; COUNTERS],
    unguarded: AtomicU64,
}

impl Tally {
    /// Counts and logs a guarded request. `status` is `None` if the inner service returned no
    /// response.
    pub(crate) fn report(
        &self,
        outcome: Outcome,
        slot: Option<&Slot>,
        attempt: Option<u32>,
        status: Option<StatusCode>,
    ) {
        self.guarded[index(outcome)].fetch_add(1, Ordering::Relaxed);
        count(outcome.as_str());
        tracing::event!(
            target: "tower_idempotency",
            tracing::Level::DEBUG,
            outcome = outcome.as_str(),
            slot = slot.map(tracing::field::display),
            attempt,
            status = status.map(|status| status.as_u16()),
            "request guarded"
        );
    }

    /// Creates a response, and counts and logs the request, even if one of the application's closures
    /// panics in `create`.
    pub(crate) fn report_of<B>(
        &self,
        outcome: Outcome,
        slot: Option<&Slot>,
        attempt: Option<u32>,
        create: impl FnOnce() -> Response<B>,
    ) -> Response<B> {
        match catch_unwind(AssertUnwindSafe(create)) {
            Ok(mut response) => {
                self.report(outcome, slot, attempt, Some(response.status()));
                response.extensions_mut().insert(outcome);
                response
            }
            Err(panic) => {
                self.report(outcome, slot, attempt, None);
                resume_unwind(panic)
            }
        }
    }

    /// Counts and logs a request that passed through.
    pub(crate) fn report_unguarded(&self) {
        self.unguarded.fetch_add(1, Ordering::Relaxed);
        count(UNGUARDED);
        tracing::event!(
            target: "tower_idempotency",
            tracing::Level::TRACE,
            outcome = UNGUARDED,
            "request passed through"
        );
    }

    /// Returns the name and count of every outcome, including outcomes that did not occur.
    pub(crate) fn counts(&self) -> impl Iterator<Item = (&'static str, u64)> + '_ {
        let guarded = outcomes().map(|outcome| (outcome.as_str(), &self.guarded[index(outcome)]));
        guarded
            .chain(std::iter::once((UNGUARDED, &self.unguarded)))
            .map(|(name, count)| (name, count.load(Ordering::Relaxed)))
    }
}

#[cfg(feature = "metrics")]
fn count(outcome: &'static str) {
    metrics::counter!("idempotency_requests_total", "outcome" => outcome).increment(1);
}

#[cfg(not(feature = "metrics"))]
fn count(_: &'static str) {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn contract_7_every_outcome_is_counted_under_its_own_name() {
        let tally = Tally::default();
        for (times, outcome) in (1..).zip(outcomes()) {
            for _ in 0..times {
                tally.report(outcome, None, None, None);
            }
        }
        tally.report_unguarded();
        let counts: Vec<_> = tally.counts().collect();
        for (times, outcome) in (1..).zip(outcomes()) {
            assert!(counts.contains(&(outcome.as_str(), times)), "{outcome} in {counts:?}");
        }
        assert!(counts.contains(&("unguarded", 1)));
        let mut names: Vec<_> = counts.iter().map(|(name, _)| name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), outcomes().count() + 1, "names differ");
    }
}
