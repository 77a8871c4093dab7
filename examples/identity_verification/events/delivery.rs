//! The task that takes events from the outbox and sends them.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{Instant, sleep, timeout_at};
use tokio_util::sync::CancellationToken;

use super::super::data::Data;
use super::counts::Counts;
use super::event::Claimed;
use super::schedule::{Next, next, part_of};
use super::send::Sender;

/// The maximum number of events that this server sends at the same time.
const AT_ONCE: usize = 8;
/// How often to check the outbox for events that other servers left behind, and for events that are
/// due again.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// The longest interval between checks while the outbox cannot be reached.
const LOOK_AT_LEAST_EVERY: Duration = Duration::from_secs(30);

/// The deliveries, not yet started. Clones share the same deliveries.
#[derive(Clone)]
pub(crate) struct Deliveries {
    data: Data,
    sender: Sender,
    pub(crate) wake: Arc<Notify>,
    pub(crate) counts: Arc<Counts>,
}

/// Deliveries that run until they are stopped.
pub(crate) struct Running {
    data: Data,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl Deliveries {
    pub(crate) fn new(data: Data, sender: Sender) -> Self {
        Self {
            data,
            sender,
            wake: Arc::default(),
            counts: Arc::default(),
        }
    }

    /// Returns the number of events that are still to be delivered, by any server.
    pub(crate) async fn pending(&self) -> Option<u64> {
        self.data.pending_events().await.ok()
    }

    /// Starts the task. Call this method in a Tokio runtime.
    pub(crate) fn start(self) -> Running {
        let stop = CancellationToken::new();
        let data = self.data.clone();
        tracing::info!(subscriber = self.sender.subscriber(), "decisions are sent as events");
        let task = tokio::spawn(self.run(stop.clone()));
        Running { data, stop, task }
    }

    async fn run(self, stop: CancellationToken) {
        // A server that dies or hangs while it is sending loses its claim after this time, and the
        // event is sent again. The time is twice as long as sending can take, so that a server that
        // is still sending does not lose its claim.
        let claim_for = self.sender.timeout().saturating_mul(2);
        let mut sending = JoinSet::new();
        let mut look_again_in = LOOK_EVERY;
        while !stop.is_cancelled() {
            // Claim only as many events as can be sent now. If claimed events had to wait, their
            // claims could lapse.
            let free = AT_ONCE - sending.len();
            if free > 0 {
                match self.data.claim_events(free, claim_for).await {
                    Ok(claimed) => {
                        look_again_in = LOOK_EVERY;
                        for claimed in claimed {
                            sending.spawn(self.clone().deliver(claimed));
                        }
                    }
                    Err(error) => {
                        tracing::warn!(%error, "the outbox cannot be read");
                        look_again_in = (look_again_in * 2).min(LOOK_AT_LEAST_EVERY);
                    }
                }
            }
            // The interval is jittered, so that servers on one store do not all check at the same
            // time.
            let look_again = look_again_in / 2 + part_of(look_again_in);
            tokio::select! {
                () = stop.cancelled() => {}
                () = self.wake.notified() => {}
                () = sleep(look_again) => {}
                Some(ended) = sending.join_next() => report(ended),
            }
        }
        while let Some(ended) = sending.join_next().await {
            report(ended);
        }
    }

    async fn deliver(self, claimed: Claimed) {
        let (event_id, attempt) = (&claimed.event.id, claimed.attempt);
        let settled = match self.sender.send(&claimed.event).await {
            Ok(()) => {
                self.counts.count_delivered();
                tracing::debug!(event_id, attempt, "an event was delivered");
                self.data.event_delivered(event_id).await
            }
            Err(failure) => {
                self.counts.count_failure();
                match next(attempt, claimed.refused_for, &failure) {
                    Next::RetryIn(retry_in) => {
                        tracing::warn!(event_id, attempt, cause = %failure, ?retry_in, "an event could not be delivered");
                        let refused = failure.is_refusal();
                        self.data.postpone_event(&claimed, retry_in, refused).await
                    }
                    Next::GiveUp => {
                        self.counts.count_given_up();
                        tracing::error!(event_id, attempt, cause = %failure, "gave up on an event; it stays in the outbox, marked as failed");
                        self.data.give_up_event(&claimed).await
                    }
                }
            }
        };
        if let Err(error) = settled {
            // The event's claim will lapse.
            tracing::warn!(event_id, attempt, %error, "the outbox cannot be written to; the event will be sent again");
        }
    }
}

fn report(ended: Result<(), tokio::task::JoinError>) {
    if let Err(error) = ended {
        tracing::error!(%error, "sending an event failed; it will be sent again");
    }
}

impl Running {
    /// Stops taking events from the outbox. Events that are already being sent continue.
    pub(crate) fn take_no_more(&self) {
        self.stop.cancel();
    }

    /// Waits until the deadline for events that are being sent. An event that is not delivered by
    /// then stays in the outbox, and is sent again after its claim has lapsed.
    pub(crate) async fn end(mut self, deadline: Instant) {
        self.take_no_more();
        if timeout_at(deadline, &mut self.task).await.is_err() {
            self.task.abort();
            tracing::warn!("events that were being sent did not finish in time and will be sent again");
        }
        match self.data.pending_events().await {
            Ok(0) => {}
            Ok(events) if matches!(self.data, Data::Memory(_)) => {
                tracing::warn!(
                    events,
                    "events that were not delivered are lost, because they were in the memory of this process"
                );
            }
            Ok(events) => tracing::info!(events, "events stay in the outbox"),
            Err(error) => tracing::warn!(%error, "events may stay in the outbox"),
        }
    }
}
