//! The ways in which a claim ends, and the result of ending a claim.

use std::pin::pin;
use std::time::Duration;

use super::guard::Guard;
use super::store_call::bounded;
use crate::request::Slot;
use crate::store::{Held, Record, Store, StoreError, Token};

/// The ways in which a claim ends.
#[derive(Clone)]
pub(crate) enum Settlement {
    Complete {
        record: Record,
        ttl: Duration,
    },
    Release,
    /// The claim returns to the state that it had before it was taken over from a holder that died:
    /// the claim has lapsed, but keeps its fingerprint and number of attempts.
    Lapse,
}

impl Settlement {
    /// Returns the same settlement, with a different TTL if a record is stored.
    pub(crate) fn kept_for(self, ttl: Duration) -> Self {
        match self {
            Self::Complete { record, .. } => Self::Complete { record, ttl },
            other => other,
        }
    }
}

/// The result of ending a claim.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Settled {
    Yes,
    /// The lease lapsed and another attempt took over, so this attempt is fenced off.
    Lost,
    /// The store failed. The layer tries again in the background.
    Later,
    /// The operation's transaction was rolled back, or may have been.
    Undone(Undone),
}

/// The reason why an operation in atomic mode has no effect, although its handler returned a
/// response.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Undone {
    /// Another attempt took over the claim.
    Lost,
    /// The store refused the commit, or failed before the commit.
    Failed,
    /// The layer finds out in the background whether the transaction was committed.
    Unknown,
    /// The handler itself ended the transaction. The key is sealed.
    Broken,
}

/// Ends the claim in the store, with a single call.
pub(crate) async fn apply<St: Store>(
    guard: &Guard<St>,
    slot: &Slot,
    token: Token,
    settlement: &Settlement,
) -> Result<Held, StoreError> {
    let store_timeout = guard.config.store_timeout;
    match settlement {
        Settlement::Complete { record, ttl } => {
            let call = pin!(guard.store.complete(slot, token, record, *ttl));
            bounded("complete", store_timeout, call).await
        }
        Settlement::Release => {
            let call = pin!(guard.store.release(slot, token));
            bounded("release", store_timeout, call).await
        }
        Settlement::Lapse => {
            let call = pin!(guard.store.renew(slot, token, Duration::ZERO));
            bounded("renew", store_timeout, call).await
        }
    }
}
