//! The jobs that the store sends to its writer, and their answers.

use std::sync::Arc;
use std::time::Duration;

use crate::store::sql::begin::Seen;
use crate::store::{ClaimRequest, ScopeTag, Slot, Token};

/// A call that changes something.
#[derive(Clone)]
pub(super) enum Write {
    Claim(ClaimRequest),
    Complete(Completion),
    Single(Single),
}

/// A call whose statements are not combined with the statements of other calls.
#[derive(Clone)]
pub(super) enum Single {
    Renew(Slot, Token, Duration),
    Release {
        slot: Slot,
        token: Token,
        /// Whether the claim may already have been released.
        again: bool,
    },
    Forget(Slot),
    /// Reads whether a transaction that may still be open has written the record.
    IsDone(Slot, Token),
    /// Processes rows that are due. Forgotten rows are removed, and the other rows are postponed.
    Sweep {
        forgotten: Vec<i64>,
        others: Vec<i64>,
    },
    ForgetScope(ScopeTag, u32),
}

/// The record of a claim.
#[derive(Clone)]
pub(super) struct Completion {
    pub(super) slot: Slot,
    pub(super) token: Token,
    pub(super) record: Arc<Vec<u8>>,
    pub(super) ttl: Duration,
    /// Whether the record may already have been written.
    pub(super) again: bool,
}

pub(super) enum Written {
    /// The slot was claimed, with this attempt number.
    Claimed(i32),
    /// The slot was not claimed, and has these contents.
    Taken(Option<Seen>),
    /// The number of rows that were changed.
    Rows(u64),
    Is(bool),
    /// The number of removed rows, and the number of removed rows that had not expired.
    Forgotten {
        rows: usize,
        counted: u64,
    },
    Swept {
        rows: u64,
        took: Duration,
    },
}

/// The result of a job. If an error affects only one job, the error is that job's answer.
pub(super) type Answer = Result<Written, Arc<sqlx::Error>>;
