//! A lane: the connections that a store has for itself, and the queue before them.
//!
//! Claims, renewals, records and releases do not travel on the application's pool: a transaction of a
//! handler does not keep them waiting, and what a handler did to a connection does not reach them.
//!
//! A caller that finds an idle connection asks on it in place. Everybody else waits in the queue, and
//! the next connection that becomes free asks all that waits together, as one statement or one short
//! transaction. Nothing is delayed to make a batch larger.
//!
//! - The queue is bounded. If it is full, the caller is told at once.
//! - A caller that leaves is taken out of the queue. If it leaves while its own connection waits for an
//!   answer, or all callers of a batch leave, the connection is closed: it is not used in doubt.
//! - A connection that broke is replaced, and what was asked on it is asked again on another one. Jobs
//!   carry tokens, so that asking twice does no harm.
//! - A batch that the database refuses is asked again one by one, so that one bad job fails alone.
//! - If no connection can be made, attempts are repeated for about a second, with pauses that differ from
//!   process to process. Then everybody who waits is told. From then on one attempt is enough to tell, until
//!   one succeeds.
//!
//! A connection belongs to the Tokio runtime on which it was made. So each runtime has connections of its
//! own, and the limits count for each. They are closed with the runtime, or with the store.

mod driver;
mod failure;
mod pauses;
mod queue;
mod seat;
mod shared;

use std::sync::{Arc, PoisonError, RwLock, Weak};

use tokio::runtime::Handle;

pub(super) use driver::{Blame, Driver};
pub(super) use failure::Failure;
use queue::Ticket;
use seat::Seat;
pub(super) use shared::Limits;
use shared::Shared;

/// The lanes of a store: one for each runtime that uses it.
pub(super) struct Lanes<D: Driver> {
    driver: Arc<D>,
    limits: Limits,
    lanes: RwLock<Vec<Arc<Shared<D>>>>,
}

impl<D: Driver> Lanes<D> {
    /// Connections are made when they are needed.
    pub(super) fn new(driver: D, limits: Limits) -> Self {
        Self {
            driver: Arc::new(driver),
            limits,
            lanes: RwLock::default(),
        }
    }

    #[cfg_attr(not(feature = "postgres"), allow(dead_code, reason = "SQLite's store does not ask"))]
    pub(super) fn driver(&self) -> &D {
        &self.driver
    }

    /// The answer to a job.
    pub(super) async fn ask(&self, mut job: D::Job) -> Result<D::Answer, Failure> {
        let shared = self.of_this_runtime()?;
        let mut tries = 0;
        if let Some(mut seat) = Seat::idle(&shared).and_then(Seat::if_ready) {
            match seat.run(std::slice::from_ref(&job)).await {
                Ok(mut answers) => {
                    seat.give_back();
                    return answers.pop().ok_or(Failure::Interrupted);
                }
                Err(failed) if failed.blame != Blame::Connection => {
                    seat.give_back();
                    return Err(failed.failure);
                }
                Err(failed) => {
                    seat.give_up();
                    let Failure::Database(_) = failed.failure else {
                        return Err(failed.failure);
                    };
                    D::repeat(&mut job);
                    tries = 1;
                }
            }
        }
        let (ticket, answer) = shared.state().queue.add(job, tries)?;
        let place = Place {
            shared: &shared,
            ticket,
        };
        Seat::open(&shared);
        let answer = answer.await;
        // It was taken out of the queue when it was asked.
        std::mem::forget(place);
        answer.unwrap_or(Err(Failure::Interrupted))
    }

    /// Closes the idle connections, and those in use when they have answered.
    pub(super) fn close(&self) {
        for lane in self.lanes.read().unwrap_or_else(PoisonError::into_inner).iter() {
            lane.close();
        }
    }

    fn of_this_runtime(&self) -> Result<Arc<Shared<D>>, Failure> {
        let runtime = Handle::try_current().map_err(|_| Failure::NoRuntime)?;
        let id = runtime.id();
        let of_id = |lanes: &[Arc<Shared<D>>]| lanes.iter().find(|lane| lane.runtime.id() == id).cloned();
        if let Some(lane) = of_id(&self.lanes.read().unwrap_or_else(PoisonError::into_inner)) {
            return Ok(lane);
        }
        let mut lanes = self.lanes.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(lane) = of_id(&lanes) {
            return Ok(lane);
        }
        lanes.retain(|lane| !lane.is_closed());
        let lane = Arc::new(Shared::new(Arc::clone(&self.driver), self.limits, runtime));
        close_with_runtime(&lane);
        lanes.push(Arc::clone(&lane));
        Ok(lane)
    }
}

impl<D: Driver> Drop for Lanes<D> {
    fn drop(&mut self) {
        self.close();
    }
}

/// Closes the lane when its runtime is shut down: its connections are of no use to another one.
fn close_with_runtime<D: Driver>(lane: &Arc<Shared<D>>) {
    struct Close<D: Driver>(Weak<Shared<D>>);
    impl<D: Driver> Drop for Close<D> {
        fn drop(&mut self) {
            if let Some(lane) = self.0.upgrade() {
                lane.close();
            }
        }
    }
    let close = Close(Arc::downgrade(lane));
    let mut alive = lane.alive.subscribe();
    lane.runtime.spawn(async move {
        let _close = close;
        // Ends with the lane.
        let _ = alive.changed().await;
    });
}

/// A caller's place in the queue, which it leaves when it is dropped.
struct Place<'a, D: Driver> {
    shared: &'a Arc<Shared<D>>,
    ticket: Ticket,
}

impl<D: Driver> Drop for Place<'_, D> {
    fn drop(&mut self) {
        self.shared.state().queue.leave(self.ticket);
    }
}

#[cfg(test)]
mod tests;
