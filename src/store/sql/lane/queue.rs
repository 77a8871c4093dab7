//! The jobs that wait for a connection.

use std::collections::VecDeque;

use tokio::sync::oneshot::{self, Receiver, Sender};

use super::driver::Driver;
use super::failure::Failure;

/// The answer that a job's caller waits for.
type Answered<D> = Receiver<Result<<D as Driver>::Answer, Failure>>;

/// A bounded queue. A caller that gives up is removed from the queue.
pub(super) struct Queue<D: Driver> {
    jobs: VecDeque<Waiting<D>>,
    most: usize,
    next_ticket: u64,
}

/// A caller's place in the queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Ticket(u64);

/// The caller of a job, without the job.
pub(super) struct Caller<D: Driver> {
    ticket: Ticket,
    answer: Sender<Result<D::Answer, Failure>>,
    /// The number of times that the job was sent on a connection that broke.
    tries: u32,
    /// Whether the job must be sent alone, because it was in a batch that failed.
    alone: bool,
}

struct Waiting<D: Driver> {
    job: D::Job,
    caller: Caller<D>,
}

/// Jobs that are sent together.
pub(super) struct Batch<D: Driver> {
    pub(super) jobs: Vec<D::Job>,
    pub(super) callers: Vec<Caller<D>>,
}

impl<D: Driver> Queue<D> {
    pub(super) fn new(most: usize) -> Self {
        Self {
            jobs: VecDeque::new(),
            most,
            next_ticket: 0,
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.jobs.is_empty()
    }

    /// Adds a job that has already been sent `tries` times. A job that has been sent is not refused,
    /// because it may have taken effect.
    pub(super) fn add(&mut self, job: D::Job, tries: u32) -> Result<(Ticket, Answered<D>), Failure> {
        if self.jobs.len() >= self.most && tries == 0 && D::is_refused_when_full(&job) {
            let waiting = self.jobs.len();
            return Err(Failure::QueueFull { waiting });
        }
        let ticket = Ticket(self.next_ticket);
        self.next_ticket += 1;
        let (answer, receiver) = oneshot::channel();
        let caller = Caller {
            ticket,
            answer,
            tries,
            alone: tries > 0,
        };
        self.jobs.push_back(Waiting { job, caller });
        Ok((ticket, receiver))
    }

    /// Removes a caller that gives up, if the caller is still in the queue.
    pub(super) fn leave(&mut self, ticket: Ticket) {
        if let Some(at) = self.jobs.iter().position(|waiting| waiting.caller.ticket == ticket) {
            self.jobs.remove(at);
        }
    }

    /// Takes the first job and the jobs that can be sent together with it, up to `most` jobs in
    /// total.
    pub(super) fn take(&mut self, most: usize) -> Option<Batch<D>> {
        let first = self.jobs.pop_front()?;
        let alone = first.caller.alone;
        let mut batch = Batch {
            jobs: vec![first.job],
            callers: vec![first.caller],
        };
        let mut at = 0;
        while !alone && at < self.jobs.len() && batch.jobs.len() < most {
            let next = &self.jobs[at];
            if !next.caller.alone
                && D::joins(&next.job, &batch.jobs)
                && let Some(next) = self.jobs.remove(at)
            {
                batch.jobs.push(next.job);
                batch.callers.push(next.caller);
            } else {
                at += 1;
            }
        }
        Some(batch)
    }

    /// Puts the jobs of a failed batch back at the front, to be sent one by one.
    pub(super) fn put_back(&mut self, batch: Batch<D>) {
        for (job, mut caller) in batch.jobs.into_iter().zip(batch.callers).rev() {
            caller.alone = true;
            if !caller.has_left() {
                self.jobs.push_front(Waiting { job, caller });
            }
        }
    }

    /// Reports the failure to every waiting caller.
    pub(super) fn fail(&mut self, failure: &Failure) {
        for waiting in self.jobs.drain(..) {
            waiting.caller.tell(Err(failure.clone()));
        }
    }
}

impl<D: Driver> Caller<D> {
    fn has_left(&self) -> bool {
        self.answer.is_closed()
    }

    /// Waits until the caller has given up.
    pub(super) async fn leaves(&mut self) {
        self.answer.closed().await;
    }

    fn tell(self, answer: Result<D::Answer, Failure>) {
        // The caller may have given up in the meantime.
        let _ = self.answer.send(answer);
    }
}

impl<D: Driver> Batch<D> {
    pub(super) fn tell(self, answers: Vec<D::Answer>) {
        for (caller, answer) in self.callers.into_iter().zip(answers) {
            caller.tell(Ok(answer));
        }
    }

    /// Handles the loss of the connection on which the jobs were sent. Returns the jobs that can be
    /// sent once more, and reports the failure to the callers of the other jobs.
    pub(super) fn after_break(self, most_tries: u32, failure: &Failure) -> Self {
        let mut again = Self {
            jobs: Vec::new(),
            callers: Vec::new(),
        };
        for (mut job, mut caller) in self.jobs.into_iter().zip(self.callers) {
            caller.tries += 1;
            if caller.tries < most_tries {
                D::repeat(&mut job);
                again.jobs.push(job);
                again.callers.push(caller);
            } else {
                caller.tell(Err(failure.clone()));
            }
        }
        again
    }

    pub(super) fn fail(self, failure: &Failure) {
        for caller in self.callers {
            caller.tell(Err(failure.clone()));
        }
    }
}
