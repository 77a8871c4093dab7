//! Events that are still to be delivered, one file for each kind of store.
//!
//! An event is appended in the same write as the decision it tells of, so either both are there or
//! neither. To send it, a server claims it for a while by the store's clock: the event is not due
//! before the claim lapses. Whatever becomes of the server, then, the event is sent by somebody. The
//! number of the attempt fences: a server that was frozen does not postpone what another has claimed
//! since.
//!
//! An event that was given up stays, marked; nobody sends it until somebody unmarks it by hand.

pub(super) mod memory;
pub(super) mod postgres;
pub(super) mod redis;
pub(super) mod sqlite;

use std::time::Duration;

use tokio::time::timeout;

use super::super::events::{Claimed, Outgoing};
use super::{Data, DataError, each};

/// How long a store has for one of these.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);

impl Data {
    /// Claims events that are due, the longest due first.
    pub(crate) async fn claim_events(&self, limit: usize, lease: Duration) -> Result<Vec<Claimed>, DataError> {
        in_time(async { Ok(each!(self, data => data.claim_events(limit, lease).await)) }).await
    }

    /// Removes an event, whoever may have claimed it since.
    pub(crate) async fn event_delivered(&self, id: &str) -> Result<(), DataError> {
        in_time(async {
            each!(self, data => data.event_delivered(id).await);
            Ok(())
        })
        .await
    }

    /// The event is not due before that time is over; `refused` tells whether the subscriber does
    /// not want it. Does nothing if the claim has lapsed and another has been made.
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

    /// Marks the event as failed. Does nothing if the claim has lapsed and another has been made.
    pub(crate) async fn give_up_event(&self, claimed: &Claimed) -> Result<(), DataError> {
        in_time(async {
            each!(self, data => data.give_up_event(claimed).await);
            Ok(())
        })
        .await
    }

    /// How many events are still to be delivered.
    pub(crate) async fn pending_events(&self) -> Result<u64, DataError> {
        in_time(async { Ok(each!(self, data => data.pending_events().await)) }).await
    }
}

async fn in_time<T>(step: impl Future<Output = Result<T, DataError>>) -> Result<T, DataError> {
    timeout(ANSWER_WITHIN, step).await?
}

/// `event_id, body, attempts`, milliseconds since the subscriber refuses it
type Row = (String, String, i64, Option<i64>);

fn claimed((id, body, attempt, refused_for): Row) -> Claimed {
    Claimed {
        event: Outgoing { id, body: body.into() },
        attempt: attempt.unsigned_abs(),
        // A clock that was set back makes it negative.
        refused_for: refused_for.map(|millis| Duration::from_millis(millis.try_into().unwrap_or(0))),
    }
}

fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

fn rows(limit: usize) -> i64 {
    i64::try_from(limit).unwrap_or(i64::MAX)
}
