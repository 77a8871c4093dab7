//! Decides when an event that could not be delivered is retried.

use std::time::Duration;

use uuid::Uuid;

use super::send::NotDelivered;

/// The pause between the first two attempts. Each further pause is twice as long as the one before.
const FIRST_DELAY: Duration = Duration::from_secs(1);
pub(crate) const LONGEST_DELAY: Duration = Duration::from_secs(60 * 60);
/// How long an event that the subscriber refuses is retried. Standard Webhooks recommends several
/// days. While the subscriber is down or broken, an event is retried forever.
pub(crate) const GIVE_UP_AFTER: Duration = Duration::from_secs(3 * 24 * 60 * 60);

/// What to do with the event next.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Next {
    RetryIn(Duration),
    GiveUp,
}

/// Returns what to do after this attempt, if the subscriber had already refused the event for
/// `refused_for`.
pub(super) fn next(attempt: u64, refused_for: Option<Duration>, failure: &NotDelivered) -> Next {
    if failure.is_refusal() && refused_for.is_some_and(|refused| refused >= GIVE_UP_AFTER) {
        return Next::GiveUp;
    }
    let doublings = u32::try_from(attempt.saturating_sub(1)).unwrap_or(u32::MAX).min(16);
    let delay = FIRST_DELAY.saturating_mul(1 << doublings).min(LONGEST_DELAY);
    // The delay is jittered, so that events that failed together are not retried together.
    let delay = delay / 2 + part_of(delay / 2);
    let asked = failure.retry_after.unwrap_or_default().min(LONGEST_DELAY);
    Next::RetryIn(delay.max(asked))
}

/// Returns a random part of `whole`, from zero to all of it.
pub(super) fn part_of(whole: Duration) -> Duration {
    // The first four bytes of a version 4 UUID are random.
    let [a, b, c, d, ..] = *Uuid::new_v4().as_bytes();
    whole.mul_f64(f64::from(u32::from_be_bytes([a, b, c, d])) / f64::from(u32::MAX))
}
