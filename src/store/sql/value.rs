//! Fingerprints, tokens, times and counts as the databases store them.

use std::time::Duration;

use crate::request::Fingerprint;
use crate::store::{Held, Millis, StoreError, StoreErrorKind, Token};

/// Reads the column `fingerprint`.
pub(super) fn fingerprint(bytes: &[u8]) -> Result<Fingerprint, StoreError> {
    let bytes = bytes.try_into().map_err(|_| {
        StoreError::new(
            StoreErrorKind::Corrupt,
            "a stored fingerprint has the wrong length; check whether something else writes to the table",
        )
    })?;
    Ok(Fingerprint::from_bytes(bytes))
}

/// Converts a token, which is unsigned, to a database integer, which is signed.
pub(super) fn signed(token: Token) -> i64 {
    i64::from_ne_bytes(token.0.to_ne_bytes())
}

/// Returns a duration in milliseconds, rounded up. The maximum is ten thousand years, which is
/// small enough to be added to a value of any date type.
pub(super) fn millis(duration: Duration) -> i64 {
    const MOST: i64 = 10_000 * 366 * 24 * 60 * 60 * 1000;
    i64::try_from(Millis(0).after(duration).0).map_or(MOST, |millis| millis.min(MOST))
}

/// Converts the remaining milliseconds to a duration, which is zero if no time remains.
pub(super) fn left(millis: i64) -> Duration {
    Duration::from_millis(u64::try_from(millis).unwrap_or(0))
}

/// Reads the column `attempt`.
pub(super) fn attempts(attempt: i32) -> u32 {
    u32::try_from(attempt).unwrap_or(1)
}

/// Returns whether a statement changed the one claim that it was meant to change.
#[cfg_attr(
    not(feature = "_sqlite"),
    allow(dead_code, reason = "PostgreSQL reports which claims were changed")
)]
pub(super) fn held(rows: u64) -> Held {
    if rows == 1 { Held::Yes } else { Held::Lost }
}
