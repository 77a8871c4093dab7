//! The pause before the next attempt: exponential backoff with full jitter.

use std::time::Duration;

use uuid::Uuid;

/// Pauses that are each drawn uniformly between zero and an upper bound that doubles with each
/// attempt.
///
/// This is the "full jitter" from the AWS Architecture Blog post *Exponential Backoff And Jitter*
/// (2015). Of the methods compared there, full jitter needed the fewest calls, because clients that
/// failed at the same time do not retry at the same time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Backoff {
    /// The upper bound for the first pause.
    pub(super) base: Duration,
    /// The upper bound for every pause.
    pub(super) cap: Duration,
}

impl Backoff {
    /// Returns the pause after `failed` failed attempts. At least one attempt must have failed.
    pub(super) fn pause(self, failed: u32) -> Duration {
        self.bound(failed).mul_f64(random())
    }

    fn bound(self, failed: u32) -> Duration {
        let doubled = 2_u32
            .checked_pow(failed.saturating_sub(1))
            .and_then(|factor| self.base.checked_mul(factor));
        doubled.map_or(self.cap, |bound| bound.min(self.cap))
    }
}

/// Returns a random number from 0 up to, but not including, 1.
fn random() -> f64 {
    // The first 48 bits of a version 4 UUID are random (RFC 9562, section 5.4). They come from the
    // system's source of randomness.
    const BITS: i32 = 48;
    let (high, _) = Uuid::new_v4().as_u64_pair();
    (high >> (64 - BITS)) as f64 / 2_f64.powi(BITS)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn the_bound_doubles_up_to_the_cap() {
        let backoff = Backoff {
            base: 100 * MS,
            cap: 1000 * MS,
        };
        let bounds: Vec<_> = (1..7)
            .map(|failed| backoff.bound(failed) / MS.as_millis() as u32)
            .collect();
        assert_eq!(bounds, [100, 200, 400, 800, 1000, 1000].map(Duration::from_millis));
        assert_eq!(backoff.bound(u32::MAX), backoff.cap, "no overflow");
        let endless = Backoff {
            base: Duration::MAX,
            cap: Duration::MAX,
        };
        assert!(endless.pause(40) < Duration::MAX, "no overflow");
    }

    #[test]
    fn pauses_are_spread_over_the_whole_range() {
        let backoff = Backoff {
            base: 100 * MS,
            cap: 1000 * MS,
        };
        let pauses: Vec<_> = (0..2000).map(|_| backoff.pause(1)).collect();
        // Because of rounding, a pause can equal the upper bound.
        assert!(pauses.iter().all(|pause| *pause <= 100 * MS));
        // Each tenth contains 200 of the 2000 pauses on average. Fewer than 100 is 7 standard
        // deviations away.
        for tenth in 0..10 {
            let range = 10 * MS * tenth..10 * MS * (tenth + 1);
            let inside = pauses.iter().filter(|pause| range.contains(pause)).count();
            assert!(inside > 100, "{inside} pauses in {range:?}");
        }
    }
}
