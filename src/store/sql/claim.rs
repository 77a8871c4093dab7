//! The claim that a statement applies to.

use std::time::Duration;

use crate::request::Fingerprint;
use crate::store::{ClaimRequest, Slot, Token};

/// The claim that a transaction belongs to.
#[derive(Debug, Clone, Copy)]
pub(super) struct ClaimId {
    pub(super) slot: Slot,
    pub(super) token: Token,
    #[cfg_attr(
        not(feature = "postgres"),
        allow(dead_code, reason = "SQLite has no clients that stop responding")
    )]
    pub(super) lease: Duration,
}

impl ClaimId {
    pub(super) fn of(begin: &ClaimRequest) -> Self {
        Self {
            slot: begin.slot,
            token: begin.token,
            lease: begin.lease,
        }
    }
}

/// Returns a trial claim, which is written and then undone to check that the table works.
pub(super) fn trial() -> ClaimRequest {
    let minute = Duration::from_secs(60);
    let mut slot = [0; Slot::LEN];
    slot[..8].copy_from_slice(&Token::random().0.to_ne_bytes());
    slot[8..16].copy_from_slice(&Token::random().0.to_ne_bytes());
    ClaimRequest::new(Slot::from_bytes(slot), Fingerprint::from_bytes([0; Fingerprint::LEN]))
        .with_lease(minute)
        .with_ttl(minute)
}
