//! The rows returned by the statements that inspect a store.

use super::value::{attempts, fingerprint, left};
use crate::store::{Census, Entry, Phase, StoreError};

/// The result of `LOOK_UP`: the fingerprint, the attempt, the record's length, and the milliseconds
/// until the lease ends and until the row is forgotten.
pub(super) type EntryRow = (Vec<u8>, i32, Option<i64>, i64, i64);

pub(super) fn entry((print, attempt, bytes, lease_left, forgotten_in): EntryRow) -> Result<Entry, StoreError> {
    let phase = match bytes {
        Some(bytes) => Phase::Done {
            bytes: usize::try_from(bytes).unwrap_or_default(),
        },
        None => Phase::Running {
            attempt: attempts(attempt),
            lease_left: left(lease_left),
        },
    };
    Ok(Entry::new(fingerprint(&print)?, phase, left(forgotten_in)))
}

/// Converts the result of `COUNT`: the numbers of held claims, lapsed claims and records.
pub(super) fn census((running, lapsed, done): (i64, i64, i64)) -> Census {
    Census::new(running.unsigned_abs(), lapsed.unsigned_abs(), done.unsigned_abs())
}
