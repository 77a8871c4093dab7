//! The row that `begin` finds in a slot, and the outcome that `begin` returns.

use std::time::Duration;

use super::value::{attempts, fingerprint, left, signed};
use crate::store::{ClaimOutcome, ClaimRequest, OnLapse, Record, StoreError};

/// The number of times that `begin` tries to get the slot if other statements interfere. After the
/// last attempt, `begin` returns [`BUSY`].
pub(super) const ROUNDS: u32 = 3;

/// The outcome for a slot that other statements keep changing or locking: the slot is reported as
/// in flight. The lease is unknown, and a request that waits must not try again at once.
pub(super) const BUSY: ClaimOutcome = ClaimOutcome::InFlight {
    lease_left: Duration::from_secs(1),
};

/// A row as `begin` reads it.
pub(super) struct Seen {
    pub(super) fingerprint: Vec<u8>,
    pub(super) token: i64,
    pub(super) attempt: i32,
    pub(super) lease_left: i64,
    pub(super) done: bool,
    /// The record, or `None` if the row has no record or the row's fingerprint conflicts with the
    /// request's fingerprint.
    pub(super) record: Option<Vec<u8>>,
}

impl Seen {
    /// Returns the outcome for a `begin` that did not get the slot, or `None` if the slot is free
    /// but another statement interfered.
    pub(super) fn decide(self, begin: &ClaimRequest) -> Result<Option<ClaimOutcome>, StoreError> {
        let conflicts = fingerprint(&self.fingerprint)?.conflicts_with(&begin.fingerprint);
        if let Some(record) = self.record {
            return Record::from_shared(record.into()).map(|record| Some(ClaimOutcome::Done(record)));
        }
        Ok(if !self.done && self.token == signed(begin.token) {
            Some(ClaimOutcome::Started {
                attempt: attempts(self.attempt),
            })
        } else if conflicts {
            Some(ClaimOutcome::Mismatch)
        } else if self.lease_left > 0 {
            Some(ClaimOutcome::InFlight {
                lease_left: left(self.lease_left),
            })
        } else if begin.on_lapse == OnLapse::Refuse {
            Some(ClaimOutcome::OutcomeUnknown)
        } else {
            None
        })
    }
}
