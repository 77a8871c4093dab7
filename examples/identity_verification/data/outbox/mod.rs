//! Events that are still to be delivered, one file for each kind of store.
//!
//! An event is appended in the same write as its decision, so either both exist or neither does. To
//! send the event, a server claims it for some time, measured by the store's clock. The event is
//! not due again before the claim lapses. So whatever happens to the server, some server sends the
//! event. The attempt number is a fencing token: a server that was frozen cannot postpone an event
//! that another server has claimed since.
//!
//! An event that was given up stays in the outbox, marked as failed. It is not sent until somebody
//! removes the mark by hand.

pub(super) mod memory;
pub(super) mod postgres;
pub(super) mod redis;
pub(super) mod sqlite;

use std::time::Duration;

use tokio::time::timeout;

use super::super::events::{Claimed, Outgoing};
use super::{Data, DataError, each};

/// How long a store may take for one of these calls.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);

impl Data {
    /// Claims events that are due. The events that have been due longest are claimed first.
    pub(crate) async fn claim_events(&self, limit: usize, lease: Duration) -> Result<Vec<Claimed>, DataError> {
        in_time(async { Ok(each!(self, data => data.claim_events(limit, lease).await)) }).await
    }

    /// Removes an event, even if another server has claimed it since.
    pub(crate) async fn event_delivered(&self, id: &str) -> Result<(), DataError> {
        in_time(async {
            each!(self, data => data.event_delivered(id).await);
            Ok(())
        })
        .await
    }

    /// Postpones the event by `delay`. `refused` says whether the subscriber refused the event.
    /// Does nothing if the claim has lapsed and the event has been claimed again.
    pub(crate) async fn postpone_event(
        &self,
        claimed: &Claimed,
        delay: Duration,
        refused: bool,
    ) -> Result<(), DataError> {
        in_time(async {
            each!(self, data => data.postpone_event(claimed, delay, refused).await);
            Ok(())
        })
        .await
    }

    /// Marks the event as failed. Does nothing if the claim has lapsed and the event has been
    /// claimed again.
    pub(crate) async fn give_up_event(&self, claimed: &Claimed) -> Result<(), DataError> {
        in_time(async {
            each!(self, data => data.give_up_event(claimed).await);
            Ok(())
        })
        .await
    }

    /// Returns the number of events that are still to be delivered.
    pub(crate) async fn pending_events(&self) -> Result<u64, DataError> {
        in_time(async { Ok(each!(self, data => data.pending_events().await)) }).await
    }
}

async fn in_time<T>(step: impl Future<Output = Result<T, DataError>>) -> Result<T, DataError> {
    timeout(ANSWER_WITHIN, step).await?
}

/// `event_id, body, attempts`, and for how many milliseconds the subscriber has refused the event
type Row = (String, String, i64, Option<i64>);

fn claimed((id, body, attempt, refused_for): Row) -> Claimed {
    Claimed {
        event: Outgoing { id, body: body.into() },
        attempt: attempt.unsigned_abs(),
        // If the clock was set back, this number is negative.
        refused_for: refused_for.map(|millis| Duration::from_millis(millis.try_into().unwrap_or(0))),
    }
}

fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

fn rows(limit: usize) -> i64 {
    i64::try_from(limit).unwrap_or(i64::MAX)
}
