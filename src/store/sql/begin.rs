//! What `begin` finds in a slot, and the outcome that it returns.

use std::time::Duration;

use super::value::{attempts, fingerprint, left, signed};
use crate::store::{ClaimOutcome, ClaimRequest, OnLapse, Record, StoreError};

/// How often a `begin` tries if other statements get in its way. After that, it returns [`BUSY`].
pub(super) const ROUNDS: u32 = 3;

/// The slot is in flight: other statements keep changing it.
pub(super) const BUSY: ClaimOutcome = ClaimOutcome::InFlight {
    lease_left: Duration::ZERO,
};

/// A row as `begin` sees it.
pub(super) struct Seen {
    pub(super) fingerprint: Vec<u8>,
    pub(super) token: i64,
    pub(super) attempt: i32,
    pub(super) lease_left: i64,
    pub(super) done: bool,
    /// Present if the row is done and its fingerprint does not conflict with the request's.
    pub(super) record: Option<Vec<u8>>,
}

impl Seen {
    /// Returns the outcome of a `begin` that did not get the slot. `None` if the slot is free for
    /// it, but another statement was in its way.
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
