//! The seats that a lane's connections occupy. A lane has a limited number of seats. This module
//! opens, uses, gives back and replaces the connections.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::{Either, select};
use tokio::time::Instant;

use super::driver::{Blame, Driver};
use super::failure::Failure;
use super::pauses;
use super::queue::{Batch, Caller};
use super::shared::{Live, Shared};

/// The maximum number of times that a job is sent if connections break. Twice would not be enough:
/// the second connection may be as old as the first, and may be broken too.
pub(super) const MOST_TRIES: u32 = 3;
/// The maximum number of times that jobs are sent on one connection if other transactions
/// interfere.
const MOST_ROUNDS: u32 = 5;
/// How long to wait after a failed attempt to connect before opening another connection, if the
/// lane already has one.
const ENOUGH: Duration = Duration::from_secs(1);

/// The seat of one of a lane's connections. If the seat is dropped while its connection is waiting
/// for an answer, the connection is closed, because its state is unknown.
pub(super) struct Seat<D: Driver> {
    shared: Arc<Shared<D>>,
    live: Option<Live<D>>,
    /// Whether this value occupies the seat. An idle connection keeps its seat.
    is_taken: bool,
}

/// An error, and what is to blame for it.
pub(super) struct Failed {
    pub(super) blame: Blame,
    pub(super) failure: Failure,
}

impl<D: Driver> Seat<D> {
    fn taken(shared: &Arc<Shared<D>>, live: Option<Live<D>>) -> Self {
        Self {
            shared: Arc::clone(shared),
            live,
            is_taken: true,
        }
    }

    /// Returns the seat of an idle connection that is not stale. Closes the stale connections that
    /// it finds on the way.
    pub(super) fn idle(shared: &Arc<Shared<D>>) -> Option<Self> {
        let mut stale = Vec::new();
        let found = {
            let mut state = shared.state();
            loop {
                let Some(live) = state.idle.pop() else { break None };
                if !live.is_stale(&shared.limits) {
                    break Some(live);
                }
                state.seats -= 1;
                state.connected -= 1;
                stale.push(live);
            }
        };
        stale.into_iter().for_each(|live| shared.close_one(live));
        found.map(|live| Self::taken(shared, Some(live)))
    }

    /// Returns the seat if its connection can send jobs immediately. Otherwise, gives the
    /// connection back.
    pub(super) fn if_ready(mut self) -> Option<Self> {
        let live = self.live.as_mut()?;
        if self.shared.driver.is_ready(&mut live.connection) {
            return Some(self);
        }
        self.give_back();
        None
    }

    /// Serves waiting callers in the background, if a connection is idle or another one can be
    /// opened.
    pub(super) fn open(shared: &Arc<Shared<D>>) {
        let live = {
            let mut state = shared.state();
            if state.queue.is_empty() {
                return;
            }
            // A connection may have become idle since the caller looked for one.
            let live = state.idle.pop();
            if live.is_none() && !state.take_seat(&shared.limits) {
                return;
            }
            live
        };
        let shared = Arc::clone(shared);
        // The seat is created when the task begins, because dropping a seat opens another one. If
        // the runtime is shut down, the task is dropped before it begins, so no seat is dropped.
        shared
            .runtime
            .clone()
            .spawn(async move { Self::taken(&shared, live).serve().await });
    }

    /// Gives the connection back. Any waiting jobs are then sent on the connection in the
    /// background.
    pub(super) fn give_back(self) {
        if let Some(busy) = self.rest() {
            let runtime = busy.shared.runtime.clone();
            runtime.spawn(busy.serve());
        }
    }

    /// Leaves the connection idle if no job is waiting. Otherwise, returns the seat.
    fn rest(mut self) -> Option<Self> {
        let mut state = self.shared.state();
        if !state.queue.is_empty() {
            drop(state);
            return Some(self);
        }
        if !state.is_closed
            && let Some(mut live) = self.live.take()
        {
            D::rest(&mut live.connection);
            state.idle.push(live);
            self.is_taken = false;
        }
        drop(state);
        None
    }

    /// Sends all waiting jobs, including the jobs that arrive in the meantime.
    async fn serve(mut self) {
        loop {
            if self.live.is_none() && !self.connect().await {
                return;
            }
            if !self.shared.state().queue.is_empty()
                && let Some(live) = &mut self.live
            {
                self.shared.driver.ready(&mut live.connection).await;
            }
            let batch = self.shared.state().queue.take(self.shared.limits.batch);
            let Some(batch) = batch else {
                match self.rest() {
                    Some(busy) => self = busy,
                    None => return,
                }
                continue;
            };
            let is_shared = batch.jobs.len() > 1;
            self.answer(batch).await;
            if is_shared {
                // Callers that have received their answers get a chance to add their next jobs to
                // the next batch.
                tokio::task::yield_now().await;
            }
        }
    }

    /// Opens the connection, and retries as long as a caller is waiting. If the connection cannot
    /// be opened, the seat becomes free again.
    async fn connect(&mut self) -> bool {
        for attempt in 0.. {
            if self.shared.state().queue.is_empty() {
                break;
            }
            let error = match self.shared.driver.connect().await {
                Ok(connection) => {
                    let mut state = self.shared.state();
                    state.connected += 1;
                    state.is_down = false;
                    drop(state);
                    self.live = Some(Live::new(connection));
                    return true;
                }
                Err(error) => error,
            };
            let may_pass = self.shared.driver.blame(&error) != Blame::Job;
            if self.gives_up(may_pass && attempt + 1 < pauses::ATTEMPTS, error) {
                break;
            }
            tokio::time::sleep(pauses::after(attempt)).await;
        }
        false
    }

    /// Returns whether the attempts to connect must stop. If so, the waiting callers get the error,
    /// unless another connection serves them or another seat is still trying to connect.
    fn gives_up(&mut self, may_go_on: bool, error: sqlx::Error) -> bool {
        let mut state = self.shared.state();
        if state.connected > 0 {
            state.enough_until = Some(Instant::now() + ENOUGH);
        } else if may_go_on && !state.is_down {
            return false;
        } else if state.seats == 1 {
            state.is_down = true;
            state.queue.fail(&error.into());
        }
        state.seats -= 1;
        self.is_taken = false;
        true
    }

    /// Sends a batch, and passes the answers to the callers.
    async fn answer(&mut self, mut batch: Batch<D>) {
        let asked = {
            let run = pin!(self.run(&batch.jobs));
            let left = pin!(all_leave(&mut batch.callers));
            match select(run, left).await {
                Either::Left((asked, _)) => asked,
                Either::Right(((), _)) => Err(Failed {
                    blame: Blame::Connection,
                    failure: Failure::Interrupted,
                }),
            }
        };
        match asked {
            Ok(answers) => batch.tell(answers),
            Err(Failed {
                blame: Blame::Connection,
                failure,
            }) => {
                self.discard();
                let again = match &failure {
                    Failure::Database(_) => batch.after_break(MOST_TRIES, &failure),
                    _ => return batch.fail(&failure),
                };
                self.shared.state().queue.put_back(again);
            }
            Err(Failed { failure, .. }) if batch.jobs.len() == 1 => batch.fail(&failure),
            // One of the jobs made the others fail.
            Err(_) => self.shared.state().queue.put_back(batch),
        }
    }

    /// Sends jobs on the connection.
    pub(super) async fn run(&mut self, jobs: &[D::Job]) -> Result<Vec<D::Answer>, Failed> {
        let Shared { driver, limits, .. } = &*self.shared;
        let failed = |blame, failure| Err(Failed { blame, failure });
        let Some(live) = &mut self.live else {
            return failed(Blame::Connection, Failure::Interrupted);
        };
        report_batch::<D>(jobs.len());
        for round in 1.. {
            let run = driver.run(&mut live.connection, jobs);
            let error = match tokio::time::timeout(limits.answer, run).await {
                Ok(Ok(answers)) if answers.len() == jobs.len() => {
                    live.used = Instant::now();
                    return Ok(answers);
                }
                Ok(Ok(_)) => sqlx::Error::Protocol("the number of answers does not match the number of jobs".into()),
                Ok(Err(error)) => error,
                Err(_) => return failed(Blame::Connection, Failure::Silent { within: limits.answer }),
            };
            let blame = driver.blame(&error);
            if blame != Blame::Timing || round == MOST_ROUNDS {
                return failed(blame, error.into());
            }
            tokio::task::yield_now().await;
        }
        failed(Blame::Job, Failure::Interrupted)
    }

    /// Closes the connection, whose state is unknown. Also closes the idle connections, because the
    /// cause of the failure has probably broken them too.
    fn discard(&mut self) {
        if let Some(live) = self.live.take() {
            self.shared.state().connected -= 1;
            self.shared.close_one(live);
        }
        self.shared.close_idle();
    }

    /// Closes the connection, whose state is unknown, and frees the seat.
    pub(super) fn give_up(mut self) {
        self.discard();
    }
}

impl<D: Driver> Drop for Seat<D> {
    fn drop(&mut self) {
        if !self.is_taken {
            return;
        }
        let mut state = self.shared.state();
        state.seats -= 1;
        let live = self.live.take();
        state.connected -= usize::from(live.is_some());
        drop(state);
        if let Some(live) = live {
            self.shared.close_one(live);
        }
        // The waiting callers may have been waiting for this connection.
        Self::open(&self.shared);
    }
}

/// With the feature `metrics`, reports how many jobs are sent together.
fn report_batch<D: Driver>(jobs: usize) {
    #[cfg(feature = "metrics")]
    metrics::histogram!("idempotency_store_batch_size", "lane" => D::NAME).record(jobs as f64);
    #[cfg(not(feature = "metrics"))]
    let _ = (D::NAME, jobs);
}

/// Waits until every caller has given up.
async fn all_leave<D: Driver>(callers: &mut [Caller<D>]) {
    for caller in callers {
        caller.leaves().await;
    }
}
