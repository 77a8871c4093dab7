//! What a lane needs of a database.

use std::future::Future;

/// The database's part of a lane.
pub(in crate::store::sql) trait Driver: Send + Sync + Sized + 'static {
    type Connection: Send + 'static;
    /// One call of the store. It is asked again, from its clone, if its answer is lost.
    type Job: Clone + Send + Sync + 'static;
    type Answer: Send + 'static;

    /// The lane's name, as metrics have it.
    const NAME: &'static str;

    /// Makes a connection, ready for jobs. The driver bounds the time; a caller that leaves does not
    /// end it.
    fn connect(&self) -> impl Future<Output = Result<Self::Connection, sqlx::Error>> + Send;

    /// Whether the job can be sent together with these, which are one or more.
    fn joins(job: &Self::Job, batch: &[Self::Job]) -> bool;

    /// Waits until the connection may ask. What waits is taken out of the queue only then, so that a
    /// caller can leave until then.
    fn ready(&self, connection: &mut Self::Connection) -> impl Future<Output = ()> + Send {
        let _ = connection;
        std::future::ready(())
    }

    /// Whether the connection may ask at once. If not, a caller waits in the queue and not in place.
    fn is_ready(&self, connection: &mut Self::Connection) -> bool {
        let _ = connection;
        true
    }

    /// The connection is left idle.
    fn rest(connection: &mut Self::Connection) {
        let _ = connection;
    }

    /// Asks the jobs together: all take effect, or none does. One answer for each, in their order.
    ///
    /// It must not wait for a lock that a handler's transaction may hold.
    fn run(
        &self,
        connection: &mut Self::Connection,
        jobs: &[Self::Job],
    ) -> impl Future<Output = Result<Vec<Self::Answer>, sqlx::Error>> + Send;

    /// What is to blame for an error of [`run`](Self::run) or [`connect`](Self::connect).
    fn blame(&self, error: &sqlx::Error) -> Blame;

    /// Notes in the job that it may have taken effect already: its answer was lost, and it is asked
    /// again.
    fn repeat(job: &mut Self::Job);

    /// Closes a connection in good order. The lane bounds the time.
    fn close(connection: Self::Connection) -> impl Future<Output = ()> + Send;
}

/// What is to blame for an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::store::sql) enum Blame {
    /// What was asked, or a setting that another connection has too. The connection is fine.
    Job,
    /// Another transaction, which was in the way. The same connection may succeed at once.
    Timing,
    /// The connection: another one may do better, and the jobs are asked again on it.
    Connection,
}
