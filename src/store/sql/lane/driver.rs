//! The lane's interface to a database.

use std::future::Future;

/// The database's part of a lane.
pub(in crate::store::sql) trait Driver: Send + Sync + Sized + 'static {
    type Connection: Send + 'static;
    /// One call of the store. If its answer is lost, a clone of it is sent again.
    type Job: Clone + Send + Sync + 'static;
    type Answer: Send + 'static;

    /// The lane's name in metrics.
    const NAME: &'static str;

    /// Opens a connection that is ready for jobs. The driver limits the time. A caller that leaves
    /// does not end the attempt.
    fn connect(&self) -> impl Future<Output = Result<Self::Connection, sqlx::Error>> + Send;

    /// Returns whether the job can be sent together with the jobs in `batch`, of which there is at
    /// least one.
    fn joins(job: &Self::Job, batch: &[Self::Job]) -> bool;

    /// Waits until the connection may send. Waiting jobs are taken out of the queue only then, so
    /// that a caller can leave until then.
    fn ready(&self, connection: &mut Self::Connection) -> impl Future<Output = ()> + Send {
        let _ = connection;
        std::future::ready(())
    }

    /// Returns whether the connection may send at once. If not, a caller waits in the queue, not on
    /// the connection.
    fn is_ready(&self, connection: &mut Self::Connection) -> bool {
        let _ = connection;
        true
    }

    /// Prepares the connection for being idle.
    fn rest(connection: &mut Self::Connection) {
        let _ = connection;
    }

    /// Sends the jobs together: all take effect, or none does. Returns one answer for each job, in
    /// the same order.
    ///
    /// It must not wait for a lock that a handler's transaction may hold.
    fn run(
        &self,
        connection: &mut Self::Connection,
        jobs: &[Self::Job],
    ) -> impl Future<Output = Result<Vec<Self::Answer>, sqlx::Error>> + Send;

    /// Returns what is to blame for an error of [`run`](Self::run) or [`connect`](Self::connect).
    fn blame(&self, error: &sqlx::Error) -> Blame;

    /// Notes in the job that it may already have taken effect: its answer was lost, and it is sent
    /// again.
    fn repeat(job: &mut Self::Job);

    /// Closes a connection cleanly. The lane limits the time.
    fn close(connection: Self::Connection) -> impl Future<Output = ()> + Send;
}

/// What is to blame for an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::store::sql) enum Blame {
    /// The job, or a setting that other connections share. The connection is fine.
    Job,
    /// Another transaction that was in the way. The same connection may succeed at once.
    Timing,
    /// The connection. Another connection may do better, and the jobs are sent again on it.
    Connection,
}
