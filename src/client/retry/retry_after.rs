//! `Retry-After` (RFC 9110, section 10.2.3): seconds, or a date.

use std::time::{Duration, SystemTime};

use http::HeaderMap;
use http::header::{DATE, RETRY_AFTER};

/// Returns how long the server asks the client to wait. Returns `None` if the header is missing, or
/// if its value is not valid: a negative or fractional number, or a date in an unknown format.
///
/// A date is compared with the server's own `Date` if that header is present, so a difference
/// between the two clocks does not matter. A date in the past means no pause.
pub(super) fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
        // A number that is too large to parse is still a long time, not an invalid value.
        return Some(Duration::from_secs(text.parse().unwrap_or(u64::MAX)));
    }
    let until = httpdate::parse_http_date(text).ok()?;
    let now = headers
        .get(DATE)
        .and_then(|date| httpdate::parse_http_date(date.to_str().ok()?).ok())
        .unwrap_or_else(SystemTime::now);
    Some(until.duration_since(now).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    fn of(value: &[u8], date: Option<&str>) -> Option<Duration> {
        let mut headers = HeaderMap::new();
        headers.insert(RETRY_AFTER, HeaderValue::from_bytes(value).unwrap());
        if let Some(date) = date {
            headers.insert(DATE, HeaderValue::from_str(date).unwrap());
        }
        retry_after(&headers)
    }

    #[test]
    fn seconds_dates_and_nonsense() {
        const NOON: &str = "Tue, 24 Nov 2026 12:00:00 GMT";
        let seconds = Duration::from_secs;
        for (value, date, expected) in [
            (&b"0"[..], None, Some(seconds(0))),
            (b"120", None, Some(seconds(120))),
            (b"31536000", None, Some(seconds(31_536_000))),
            (b"99999999999999999999999", None, Some(seconds(u64::MAX))),
            (b"Tue, 24 Nov 2026 12:00:07 GMT", Some(NOON), Some(seconds(7))),
            // The two older forms that RFC 9110, section 5.6.7, requires recipients to accept.
            (b"Tuesday, 24-Nov-26 12:00:07 GMT", Some(NOON), Some(seconds(7))),
            (b"Tue Nov 24 12:00:07 2026", Some(NOON), Some(seconds(7))),
            (b"Tue, 24 Nov 2026 11:00:00 GMT", Some(NOON), Some(seconds(0))),
            (b"Sun, 06 Nov 1994 08:49:37 GMT", None, Some(seconds(0))),
            (b"-1", None, None),
            (b"1.5", None, None),
            (b"", None, None),
            (b"soon", None, None),
            (b"1 2", None, None),
            (b"\xff", None, None),
        ] {
            assert_eq!(of(value, date), expected, "{value:?} {date:?}");
        }
        assert_eq!(retry_after(&HeaderMap::new()), None);
    }

    #[test]
    fn without_a_date_the_clients_clock_is_used() {
        let later = httpdate::fmt_http_date(SystemTime::now() + Duration::from_secs(3600));
        for date in [None, Some("unreadable")] {
            let wait = of(later.as_bytes(), date).unwrap();
            assert!((3000..=3600).contains(&wait.as_secs()), "{wait:?}");
        }
    }
}
