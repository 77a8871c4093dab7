//! A lane: a store's own connections, and the queue in front of them.
//!
//! Claims, renewals, records and releases do not use the application's pool. So these calls do not
//! wait for a handler's transaction, and a handler's changes to a connection do not affect them.
//!
//! A caller that finds an idle connection uses it directly. Every other caller waits in the queue.
//! The next connection that becomes free sends all waiting jobs together, as one statement or one
//! short transaction. No job is delayed to make a batch larger.
//!
//! - The queue is bounded. If the queue is full, a new claim gets an error immediately. Renewals,
//!   records and releases of running operations are still accepted.
//! - A caller that gives up is removed from the queue. If a caller gives up while the connection
//!   that it uses directly is waiting for an answer, or if all callers in a batch give up, the
//!   connection is closed, because its state is unknown.
//! - A broken connection is replaced, and its jobs are sent again on a different connection. Jobs
//!   carry tokens, so sending a job twice does no harm.
//! - If the database refuses a batch, the jobs in the batch are sent again one by one, so that an
//!   invalid job does not make the other jobs fail.
//! - If no connection can be opened, the lane retries for about a second, with pauses that differ
//!   from process to process. Then every waiting caller gets the error. After that, until an
//!   attempt succeeds, every failed attempt reports the error immediately.
//!
//! A connection belongs to the Tokio runtime on which it was opened. So each runtime has its own
//! connections, and the limits apply to each runtime. The connections are closed when the runtime
//! is shut down, or when the store is dropped or closed.

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

/// A store's lanes: one for each runtime that uses the store.
pub(super) struct Lanes<D: Driver> {
    driver: Arc<D>,
    limits: Limits,
    lanes: RwLock<Vec<Arc<Shared<D>>>>,
}

impl<D: Driver> Lanes<D> {
    /// Creates the lanes. Connections are opened only when they are needed.
    pub(super) fn new(driver: D, limits: Limits) -> Self {
        Self {
            driver: Arc::new(driver),
            limits,
            lanes: RwLock::default(),
        }
    }

    #[cfg_attr(
        not(feature = "postgres"),
        allow(dead_code, reason = "the SQLite store does not call it")
    )]
    pub(super) fn driver(&self) -> &D {
        &self.driver
    }

    /// Sends a job and returns its answer.
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
        // The job was removed from the queue when it was sent.
        std::mem::forget(place);
        answer.unwrap_or(Err(Failure::Interrupted))
    }

    /// Closes the idle connections immediately, and closes each connection in use after its answer
    /// has arrived.
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

/// Closes the lane when its runtime is shut down, because a different runtime cannot use its
/// connections.
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
        // This task ends when the lane is dropped.
        let _ = alive.changed().await;
    });
}

/// A caller's place in the queue. Dropping this value removes the caller from the queue.
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
