//! The state that the callers and the connections of one lane share.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::time::Instant;

use super::driver::Driver;
use super::queue::Queue;

/// How long a connection can take to close before it is dropped.
const CLOSE_WITHIN: Duration = Duration::from_secs(5);

/// The limits of a lane.
#[derive(Debug, Clone, Copy)]
pub(in crate::store::sql) struct Limits {
    /// The maximum number of connections.
    pub(in crate::store::sql) connections: usize,
    /// The maximum number of jobs that are sent together.
    pub(in crate::store::sql) batch: usize,
    /// The maximum number of waiting jobs.
    pub(in crate::store::sql) queue: usize,
    /// How long an answer can take. Callers usually give up earlier.
    pub(in crate::store::sql) answer: Duration,
    /// How long a connection can be idle and still be used. After that, the network may have
    /// dropped it.
    pub(in crate::store::sql) idle: Duration,
    /// The maximum age of a connection.
    pub(in crate::store::sql) age: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 2,
            batch: 64,
            queue: 1024,
            answer: Duration::from_secs(30),
            idle: Duration::from_secs(5 * 60),
            age: Duration::from_secs(30 * 60),
        }
    }
}

pub(super) struct Shared<D: Driver> {
    pub(super) driver: Arc<D>,
    pub(super) limits: Limits,
    /// The runtime of the lane's connections and callers.
    pub(super) runtime: Handle,
    /// Notifies subscribers when the lane is dropped.
    pub(super) alive: watch::Sender<()>,
    state: Mutex<State<D>>,
}

pub(super) struct State<D: Driver> {
    /// The idle connections. The list is empty as long as a job is waiting, because a connection
    /// that becomes free sends the waiting jobs.
    pub(super) idle: Vec<Live<D>>,
    /// The number of occupied seats: connections that are idle, in use, or being opened.
    pub(super) seats: usize,
    /// The number of connections that are in use or idle.
    pub(super) connected: usize,
    pub(super) queue: Queue<D>,
    /// Whether the last attempts to connect failed. If so, the next failed attempt reports the
    /// error to the callers immediately.
    pub(super) is_down: bool,
    /// The time until which the lane does not try to open another connection if it already has one,
    /// because the last attempt failed.
    pub(super) enough_until: Option<Instant>,
    /// Whether the store was dropped or closed, or the runtime was shut down. If so, connections
    /// are closed instead of kept.
    pub(super) is_closed: bool,
}

/// A connection, with the times at which it was opened and last used.
pub(super) struct Live<D: Driver> {
    pub(super) connection: D::Connection,
    pub(super) made: Instant,
    pub(super) used: Instant,
}

impl<D: Driver> Shared<D> {
    pub(super) fn new(driver: Arc<D>, limits: Limits, runtime: Handle) -> Self {
        let state = State {
            idle: Vec::new(),
            seats: 0,
            connected: 0,
            queue: Queue::new(limits.queue),
            is_down: false,
            enough_until: None,
            is_closed: false,
        };
        Self {
            driver,
            limits,
            runtime,
            alive: watch::Sender::new(()),
            state: Mutex::new(state),
        }
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State<D>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Closes the idle connections.
    pub(super) fn close_idle(&self) {
        let idle = self.state().take_idle();
        idle.into_iter().for_each(|live| self.close_one(live));
    }

    /// Closes a connection in the background.
    pub(super) fn close_one(&self, live: Live<D>) {
        self.runtime.spawn(async move {
            let _ = tokio::time::timeout(CLOSE_WITHIN, D::close(live.connection)).await;
        });
    }

    pub(super) fn is_closed(&self) -> bool {
        self.state().is_closed
    }

    /// Closes the idle connections immediately, and closes every other connection after its answer
    /// has arrived.
    pub(super) fn close(&self) {
        self.state().is_closed = true;
        self.close_idle();
    }
}

impl<D: Driver> State<D> {
    /// Takes a seat for another connection, if one can be opened.
    pub(super) fn take_seat(&mut self, limits: &Limits) -> bool {
        let enough = self.connected > 0 && self.enough_until.is_some_and(|until| Instant::now() < until);
        let taken = self.seats < limits.connections && !enough;
        self.seats += usize::from(taken);
        taken
    }

    pub(super) fn take_idle(&mut self) -> Vec<Live<D>> {
        self.seats -= self.idle.len();
        self.connected -= self.idle.len();
        std::mem::take(&mut self.idle)
    }
}

impl<D: Driver> Live<D> {
    pub(super) fn new(connection: D::Connection) -> Self {
        let now = Instant::now();
        Self {
            connection,
            made: now,
            used: now,
        }
    }

    pub(super) fn is_stale(&self, limits: &Limits) -> bool {
        self.used.elapsed() > limits.idle || self.made.elapsed() > limits.age
    }
}
