//! The outcome of a request: the response extension, the event and the count.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};

use http::StatusCode;

use crate::problem::ProblemKind;
use crate::scope::Slot;

/// How a guarded request ended. It is in the extensions of every response of a guarded request, so
/// that outer layers can log or count it.
///
/// ```
/// use tower_idempotency::Outcome;
///
/// fn log<B>(response: &http::Response<B>) {
///     if let Some(outcome) = response.extensions().get::<Outcome>() {
///         println!("idempotency: {outcome}");
///     }
/// }
/// # log(&http::Response::new(()));
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Outcome {
    /// It ran, and its response is stored.
    Executed,
    /// It ran, and nothing is kept: the key is free.
    Released,
    /// It ran, and a tombstone is kept.
    Sealed,
    /// It did not run: the stored response was sent.
    Replayed,
    /// It did not run: a tombstone says that the operation is done, or must not run again.
    NotRetained,
    /// The store failed and the layer was told to fail open: it ran unprotected.
    Unprotected,
    /// It did not run.
    Refused(ProblemKind),
}

impl Outcome {
    /// The name it is logged and counted under.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Executed => "executed",
            Self::Released => "released",
            Self::Sealed => "sealed",
            Self::Replayed => "replayed",
            Self::NotRetained => "not-retained",
            Self::Unprotected => "unprotected",
            Self::Refused(kind) => kind.slug(),
        }
    }

    /// Its place in [`OUTCOMES`].
    fn index(self) -> usize {
        match self {
            Self::Executed => 0,
            Self::Released => 1,
            Self::Sealed => 2,
            Self::Replayed => 3,
            // Answers from a tombstone have an outcome of their own.
            Self::NotRetained | Self::Refused(ProblemKind::ResponseNotRetained) => 4,
            Self::Unprotected => 5,
            Self::Refused(ProblemKind::MissingKey) => 6,
            Self::Refused(ProblemKind::InvalidKey) => 7,
            Self::Refused(ProblemKind::ScopeUnavailable) => 8,
            Self::Refused(ProblemKind::BodyTooLarge) => 9,
            Self::Refused(ProblemKind::BodyUnreadable) => 10,
            Self::Refused(ProblemKind::KeyReused) => 11,
            Self::Refused(ProblemKind::InFlight) => 12,
            Self::Refused(ProblemKind::OutcomeUnknown) => 13,
            Self::Refused(ProblemKind::StoreUnavailable) => 14,
            Self::Refused(ProblemKind::Overloaded) => 15,
        }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The name under which requests that pass through are counted.
const UNGUARDED: &str = "unguarded";

/// All outcomes, in the order of [`Outcome::index`].
const OUTCOMES: [Outcome; 16] = [
    Outcome::Executed,
    Outcome::Released,
    Outcome::Sealed,
    Outcome::Replayed,
    Outcome::NotRetained,
    Outcome::Unprotected,
    Outcome::Refused(ProblemKind::MissingKey),
    Outcome::Refused(ProblemKind::InvalidKey),
    Outcome::Refused(ProblemKind::ScopeUnavailable),
    Outcome::Refused(ProblemKind::BodyTooLarge),
    Outcome::Refused(ProblemKind::BodyUnreadable),
    Outcome::Refused(ProblemKind::KeyReused),
    Outcome::Refused(ProblemKind::InFlight),
    Outcome::Refused(ProblemKind::OutcomeUnknown),
    Outcome::Refused(ProblemKind::StoreUnavailable),
    Outcome::Refused(ProblemKind::Overloaded),
];

/// How many requests had which outcome, since the layer was built.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    guarded: [AtomicU64; OUTCOMES.len()],
    unguarded: AtomicU64,
}

impl Tally {
    /// Counts and logs a guarded request. `status` is none when the inner service gave no response.
    pub(crate) fn report(
        &self,
        outcome: Outcome,
        slot: Option<&Slot>,
        attempt: Option<u32>,
        status: Option<StatusCode>,
    ) {
        self.guarded[outcome.index()].fetch_add(1, Ordering::Relaxed);
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

    /// Every outcome's name and count, those that did not occur included.
    pub(crate) fn counts(&self) -> impl Iterator<Item = (&'static str, u64)> + '_ {
        let guarded = OUTCOMES
            .iter()
            .zip(&self.guarded)
            .map(|(outcome, count)| (outcome.as_str(), count));
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
        for (times, outcome) in (1..).zip(OUTCOMES) {
            for _ in 0..times {
                tally.report(outcome, None, None, None);
            }
        }
        tally.report_unguarded();
        let counts: Vec<_> = tally.counts().collect();
        for (times, outcome) in (1..).zip(OUTCOMES) {
            assert!(counts.contains(&(outcome.as_str(), times)), "{outcome} in {counts:?}");
        }
        assert!(counts.contains(&("unguarded", 1)));
        let mut names: Vec<_> = counts.iter().map(|(name, _)| name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), OUTCOMES.len() + 1, "names differ");
    }
}
