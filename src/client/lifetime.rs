//! How long a key can be sent before the server may have forgotten it.

use std::time::{Duration, SystemTime};

use http::header::DATE;
use http::{HeaderMap, HeaderValue};
use tokio::time::Instant;

/// The default lifetime. Servers keep keys for 24 hours, according to this crate's default and most
/// providers' documentation. The default lifetime is one hour shorter. The hour allows for network
/// delays, and for a server that counts from a different starting point.
pub(super) const DEFAULT: Duration = Duration::from_secs(23 * 3600);

/// The fraction of a server-reported lifetime that is not used: 1/24, the same fraction as in the
/// default lifetime. This margin is needed because dates are in whole seconds and an attempt takes
/// a while to arrive.
const SPARED: u32 = 24;

const EXPIRES: &str = "idempotency-expires";

/// The time for which an operation can be sent. This time is measured with the monotonic clock, so
/// setting the system clock does not change it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Lifetime {
    begun: Instant,
    /// The age of the operation when this process first saw it.
    before: Duration,
    /// The operation's own lifetime. `None` means the policy's lifetime.
    pub(super) own: Option<Duration>,
    /// The time when the server forgets the key, if the server has reported it.
    told: Option<Instant>,
}

impl Default for Lifetime {
    fn default() -> Self {
        Self {
            begun: Instant::now(),
            before: Duration::ZERO,
            own: None,
            told: None,
        }
    }
}

impl Lifetime {
    /// Records that this process first sees the operation now, and that the operation's age is
    /// already `before`.
    pub(super) fn begun_before(&mut self, before: Duration) {
        self.begun = Instant::now();
        self.before = before;
    }

    /// Records that the server will forget the key after `left`. If the server reports
    /// more than one such time, the earliest applies.
    pub(super) fn ends_within(&mut self, left: Duration, now: Instant) {
        // A time that the clock cannot represent is too far away to be a limit.
        if let Some(end) = now.checked_add(left - left / SPARED) {
            self.told = Some(self.told.map_or(end, |told| told.min(end)));
        }
    }

    pub(super) fn left(&self, by_default: Duration, now: Instant) -> Duration {
        let age = self.before.saturating_add(now.saturating_duration_since(self.begun));
        let left = self.own.unwrap_or(by_default).saturating_sub(age);
        match self.told {
            Some(told) => left.min(told.saturating_duration_since(now)),
            None => left,
        }
    }
}

/// Returns how long the server keeps the key after this response, if the response contains an HTTP
/// date (RFC 9110, section 5.6.7) in `Idempotency-Expires`. Values that cannot be read are ignored.
///
/// The date is compared with the server's own `Date` if that header is present, so a difference
/// between the two clocks does not matter.
pub(super) fn told_by(headers: &HeaderMap) -> Option<Duration> {
    let date = |value: &HeaderValue| httpdate::parse_http_date(value.to_str().ok()?.trim()).ok();
    let expires = headers.get_all(EXPIRES).iter().filter_map(date).min()?;
    let now = headers.get(DATE).and_then(date).unwrap_or_else(SystemTime::now);
    Some(expires.duration_since(now).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);
    const NOON: &str = "Tue, 24 Nov 2026 12:00:00 GMT";

    fn told(values: &[&str], date: Option<&str>) -> Option<Duration> {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(EXPIRES, HeaderValue::from_str(value).unwrap());
        }
        if let Some(date) = date {
            headers.insert(DATE, HeaderValue::from_str(date).unwrap());
        }
        told_by(&headers)
    }

    #[test]
    fn dates_are_read_and_nonsense_is_ignored() {
        let seconds = Duration::from_secs;
        for (values, expected) in [
            (&["Tue, 24 Nov 2026 12:00:07 GMT"][..], Some(seconds(7))),
            // The two older forms that RFC 9110, section 5.6.7, requires recipients to accept.
            (&["Tuesday, 24-Nov-26 12:00:07 GMT"], Some(seconds(7))),
            (&["Tue Nov 24 12:00:07 2026"], Some(seconds(7))),
            (&["Wed, 25 Nov 2026 12:00:00 GMT"], Some(24 * HOUR)),
            (&["Tue, 24 Nov 2026 11:59:59 GMT"], Some(seconds(0))),
            (
                &["Tue, 24 Nov 2026 12:00:07 GMT", "Tue, 24 Nov 2026 12:00:05 GMT"],
                Some(seconds(5)),
            ),
            (&["soon", "Tue, 24 Nov 2026 12:00:07 GMT"], Some(seconds(7))),
            (&["@1795521607"], None),
            (&["86400"], None),
            (&["2026-11-24T12:00:07Z"], None),
            (&["soon"], None),
            (&[""], None),
            (&[], None),
        ] {
            assert_eq!(told(values, Some(NOON)), expected, "{values:?}");
        }
    }

    #[test]
    fn without_a_date_the_clients_clock_is_used() {
        let later = httpdate::fmt_http_date(SystemTime::now() + HOUR);
        for date in [None, Some("unreadable")] {
            let left = told(&[&later], date).unwrap();
            assert!((3000..=3600).contains(&left.as_secs()), "{left:?}");
        }
    }

    #[test]
    fn the_earliest_end_applies_and_a_margin_is_kept() {
        let mut lifetime = Lifetime::default();
        let now = lifetime.begun;
        assert_eq!(lifetime.left(DEFAULT, now), 23 * HOUR);
        assert_eq!(lifetime.left(Duration::MAX, now), Duration::MAX);
        lifetime.ends_within(Duration::MAX, now);
        lifetime.ends_within(48 * HOUR, now);
        assert_eq!(lifetime.left(DEFAULT, now), 23 * HOUR, "never longer");
        lifetime.ends_within(24 * HOUR, now);
        assert_eq!(lifetime.left(DEFAULT, now), 23 * HOUR);
        lifetime.ends_within(12 * HOUR, now);
        lifetime.ends_within(24 * HOUR, now);
        assert_eq!(lifetime.left(DEFAULT, now), 12 * HOUR - HOUR / 2);
        assert_eq!(lifetime.left(DEFAULT, now + 11 * HOUR), HOUR / 2);
        assert_eq!(lifetime.left(DEFAULT, now + 12 * HOUR), Duration::ZERO);
        lifetime.own = Some(HOUR);
        assert_eq!(lifetime.left(DEFAULT, now), HOUR);
        lifetime.begun_before(HOUR / 4);
        assert_eq!(lifetime.left(DEFAULT, lifetime.begun), HOUR / 4 * 3);
        lifetime.begun_before(Duration::MAX);
        assert_eq!(lifetime.left(Duration::MAX, lifetime.begun), Duration::ZERO);
    }
}
