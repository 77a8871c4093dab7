//! The jobs that the store sends on its lane, and their answers.

use std::time::Duration;

use bytes::Bytes;

use crate::store::sql::begin::Seen;
use crate::store::sql::inspect::EntryRow;
use crate::store::{ClaimRequest, Held, Slot, Token};

#[derive(Clone)]
pub(super) enum Job {
    Claim(Claim),
    TakeOver(ClaimRequest),
    Change(Change),
    IsDone(Slot, Token),
    LookUp(Slot),
    Forget(Slot),
}

/// A claim on a slot that may have no row.
#[derive(Clone)]
pub(super) struct Claim {
    pub(super) request: ClaimRequest,
    /// Whether the claim may already have been made.
    pub(super) is_repeated: bool,
}

/// A change to a held claim.
#[derive(Clone)]
pub(super) struct Change {
    pub(super) slot: Slot,
    pub(super) token: Token,
    pub(super) what: What,
    /// Whether the change may already have been made.
    pub(super) is_repeated: bool,
    /// Whether another transaction has kept the row locked for a long time. If so, the change does
    /// not wait for the lock again.
    pub(super) skips_lock: bool,
}

#[derive(Clone)]
pub(super) enum What {
    Renew(Duration),
    Complete(Bytes, Duration),
    Release,
}

pub(super) enum Answer {
    Found(Found),
    /// The attempt number, if the slot was taken over.
    TakenOver(Option<i32>),
    Changed(Held),
    Done(bool),
    LookedUp(Option<EntryRow>),
    /// Whether the row had not yet expired.
    Forgotten(bool),
    /// Another transaction has locked the row. Retry later.
    Locked,
}

/// The result of a claim. Both fields are empty if the row is forgotten, or if another statement
/// interfered.
#[derive(Default)]
pub(super) struct Found {
    /// The attempt number, if the job claimed the slot.
    pub(super) started: Option<i32>,
    pub(super) seen: Option<Seen>,
}

/// The maximum total size of the records in one batch. A single record can be larger.
const MOST_BYTES: usize = 512 * 1024;

impl Job {
    /// Returns whether this job can be sent in one statement with the batch.
    pub(super) fn joins(&self, batch: &[Self]) -> bool {
        match (self, batch.first()) {
            // If several claims are for the same slot, the first one gets it, as if the claims had
            // arrived one after the other.
            (Self::Claim(_), Some(Self::Claim(_))) => true,
            (Self::TakeOver(claim), Some(Self::TakeOver(_))) => !batch
                .iter()
                .any(|other| matches!(other, Self::TakeOver(other) if other.slot == claim.slot)),
            (Self::Change(change), Some(Self::Change(first))) => {
                let others = || {
                    batch.iter().filter_map(|job| match job {
                        Self::Change(change) => Some(change),
                        _ => None,
                    })
                };
                std::mem::discriminant(&change.what) == std::mem::discriminant(&first.what)
                    && change.skips_lock == first.skips_lock
                    && others().all(|other| other.slot != change.slot)
                    && others().map(Change::bytes).sum::<usize>() + change.bytes() <= MOST_BYTES
            }
            _ => false,
        }
    }

    /// Notes that the job may already have taken effect.
    pub(super) fn repeat(&mut self) {
        match self {
            Self::Claim(claim) => claim.is_repeated = true,
            Self::Change(change) => change.is_repeated = true,
            Self::TakeOver(_) | Self::IsDone(..) | Self::LookUp(_) | Self::Forget(_) => {}
        }
    }

    /// Notes that the row was still locked when the change stopped waiting for the lock. The lock
    /// may be that of the same change, which was sent before on a connection that broke.
    pub(super) fn met_lock(&mut self) {
        if let Self::Change(change) = self {
            change.skips_lock = true;
            change.is_repeated = true;
        }
    }
}

impl Claim {
    pub(super) fn new(request: ClaimRequest) -> Self {
        Self {
            request,
            is_repeated: false,
        }
    }
}

impl Change {
    pub(super) fn new(slot: &Slot, token: Token, what: What) -> Self {
        Self {
            slot: *slot,
            token,
            what,
            is_repeated: false,
            skips_lock: false,
        }
    }

    fn bytes(&self) -> usize {
        self.what.record().len()
    }
}

impl What {
    /// Returns the lease or the TTL.
    pub(super) fn duration(&self) -> Duration {
        match self {
            Self::Renew(duration) | Self::Complete(_, duration) => *duration,
            Self::Release => Duration::ZERO,
        }
    }

    pub(super) fn record(&self) -> &[u8] {
        match self {
            Self::Complete(record, _) => record,
            Self::Renew(_) | Self::Release => &[],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slot(number: u8) -> Slot {
        Slot::from_bytes([number; Slot::LEN])
    }

    fn complete(number: u8, bytes: usize) -> Job {
        let record = Bytes::from(vec![0; bytes]);
        Job::Change(Change::new(
            &slot(number),
            Token(1),
            What::Complete(record, Duration::ZERO),
        ))
    }

    #[test]
    fn only_jobs_of_one_kind_and_of_different_slots_are_one_statement() {
        let claim = Job::Claim(Claim::new(ClaimRequest::new(
            slot(1),
            crate::Fingerprint::from_bytes([0; 16]),
        )));
        let release = Job::Change(Change::new(&slot(2), Token(1), What::Release));
        assert!(
            claim.joins(std::slice::from_ref(&claim)),
            "the first claim gets the slot"
        );
        assert!(!release.joins(std::slice::from_ref(&claim)));
        assert!(!release.joins(std::slice::from_ref(&release)));
        assert!(!complete(1, 1).joins(&[release]));
        assert!(!Job::LookUp(slot(1)).joins(&[Job::LookUp(slot(2))]));
        assert!(complete(1, 1).joins(&[complete(2, 1)]));
        assert!(!complete(1, 1).joins(&[complete(1, 1)]));
    }

    #[test]
    fn large_records_do_not_keep_small_ones_waiting() {
        assert!(complete(1, 1000).joins(&[complete(2, 1000)]));
        assert!(!complete(1, MOST_BYTES).joins(&[complete(2, 1)]));
        assert!(!complete(1, 1).joins(&[complete(2, MOST_BYTES)]));
    }
}
