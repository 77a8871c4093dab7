//! The pauses between attempts to connect.

use std::hash::{BuildHasher, RandomState};
use std::time::Duration;

/// After that many attempts in a row the callers are told.
pub(super) const ATTEMPTS: u32 = 6;
const FIRST: Duration = Duration::from_millis(25);

/// The pause after that attempt, which counts from 0: 25 ms, then twice as long each time, each made
/// longer or shorter by up to a half. Processes that lost one server at one moment do not all come back
/// at one moment.
pub(super) fn after(attempt: u32) -> Duration {
    let pause = FIRST * (1 << attempt.min(5));
    // The keys of each state differ, so this is a random number.
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
