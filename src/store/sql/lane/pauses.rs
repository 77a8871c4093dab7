//! The pauses between attempts to connect.

use std::hash::{BuildHasher, RandomState};
use std::time::Duration;

/// The number of failed attempts in a row after which the callers get the error.
pub(super) const ATTEMPTS: u32 = 6;
const FIRST: Duration = Duration::from_millis(25);

/// Returns the pause after this attempt. Attempts are counted from 0. The first pause is 25 ms, and
/// each further pause is twice as long as the one before. Each pause is then lengthened or
/// shortened at random by up to half, so that processes that lost their connections at the same
/// moment do not all reconnect together.
pub(super) fn after(attempt: u32) -> Duration {
    let pause = FIRST * (1 << attempt.min(5));
    // Each `RandomState` has different random keys, so the hash is a random number.
    let percent = u32::try_from(RandomState::new().hash_one(attempt) % 101).unwrap_or_default();
    pause / 2 + pause * percent / 100
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_and_differ() {
        for attempt in 0..8 {
            let middle = FIRST * (1 << attempt.min(5));
            let pauses: Vec<_> = (0..50).map(|_| after(attempt)).collect();
            assert!(
                pauses.iter().all(|pause| (middle / 2..=middle * 3 / 2).contains(pause)),
                "{pauses:?}"
            );
            assert!(pauses.iter().any(|pause| *pause != pauses[0]));
        }
    }
}
