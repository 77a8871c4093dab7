//! The lane's interface to a database.

use std::future::Future;

/// The database's part of a lane.
pub(in crate::store::sql) trait Driver: Send + Sync + Sized + 'static {
    type Connection: Send + 'static;
    /// One call from the store. If the answer is lost, a clone of the job is sent again.
    type Job: Clone + Send + Sync + 'static;
    type Answer: Send + 'static;

    /// The lane's name in metrics.
    const NAME: &'static str;

    /// Opens a connection that is ready for jobs. The driver limits how long the attempt can take.
    /// The attempt continues even if a caller gives up.
    fn connect(&self) -> impl Future<Output = Result<Self::Connection, sqlx::Error>> + Send;

    /// Returns whether the job can be sent together with the jobs in `batch`, which contains at
    /// least one job.
    fn joins(job: &Self::Job, batch: &[Self::Job]) -> bool;

    /// Returns whether the job gets an error if the queue is full. The jobs of an operation that is
    /// running do not, because the operation would lose its claim or its record. Their number is
    /// limited by the number of running operations.
    fn is_refused_when_full(job: &Self::Job) -> bool;

    /// Waits until the connection is allowed to send jobs. Jobs are taken out of the queue only
    /// after this wait, so a caller that gives up in the meantime only leaves the queue.
    fn ready(&self, connection: &mut Self::Connection) -> impl Future<Output = ()> + Send {
        let _ = connection;
        std::future::ready(())
    }

    /// Returns whether the connection can send jobs immediately. If not, a caller waits in the
    /// queue instead of occupying the connection.
    fn is_ready(&self, connection: &mut Self::Connection) -> bool {
        let _ = connection;
        true
    }

    /// Called when the connection becomes idle.
    fn rest(connection: &mut Self::Connection) {
        let _ = connection;
    }

    /// Sends the jobs together. Either all of the jobs take effect, or none do. Returns one answer
    /// for each job, in the same order.
    ///
    /// An implementation must not wait for a lock that a handler's transaction may hold.
    fn run(
        &self,
        connection: &mut Self::Connection,
        jobs: &[Self::Job],
    ) -> impl Future<Output = Result<Vec<Self::Answer>, sqlx::Error>> + Send;

    /// Returns what is to blame for an error from [`run`](Self::run) or [`connect`](Self::connect).
    fn blame(&self, error: &sqlx::Error) -> Blame;

    /// Marks a job that may already have taken effect, and that is sent again because its answer
    /// was lost.
    fn repeat(job: &mut Self::Job);

    /// Closes a connection cleanly. The lane limits how long closing can take.
    fn close(connection: Self::Connection) -> impl Future<Output = ()> + Send;
}

/// The part that is to blame for an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::store::sql) enum Blame {
    /// The job, or a setting that other connections share. The connection is not at fault.
    Job,
    /// Another transaction that interfered. The jobs may succeed immediately on the same
    /// connection.
    Timing,
    /// The connection. The jobs are sent again on a different connection, where they may succeed.
    Connection,
}
