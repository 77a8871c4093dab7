//! How a claim ends, and what came of ending it.

use std::pin::pin;
use std::time::Duration;

use super::guard::Guard;
use super::store_call::bounded;
use crate::request::Slot;
use crate::store::{Held, Record, Store, StoreError, Token};

/// How a claim ends.
#[derive(Clone)]
pub(crate) enum Settlement {
    Complete {
        record: Record,
        ttl: Duration,
    },
    Release,
    /// Back to what it was before it was taken over from a holder that died: lapsed, and remembered
    /// with its fingerprint and attempts.
    Lapse,
}

impl Settlement {
    /// The same, with another TTL if something is kept.
    pub(crate) fn kept_for(self, ttl: Duration) -> Self {
        match self {
            Self::Complete { record, .. } => Self::Complete { record, ttl },
            other => other,
        }
    }
}

/// What came of ending a claim.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Settled {
    Yes,
    /// The lease lapsed and another attempt took over: fenced off.
    Lost,
    /// The store failed; it is tried again in the background.
    Later,
    /// The operation's transaction is rolled back, or may be.
    Undone(Undone),
}

/// Why an operation in atomic mode has no effect, although its handler answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Undone {
    /// Another attempt took the claim over.
    Lost,
    /// The store refused the commit, or failed before it.
    Failed,
    /// Whether it is committed is found out in the background.
    Unknown,
    /// The handler ended the transaction by itself; the key is sealed.
    Broken,
}

/// Tells the store once how the claim ends.
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
