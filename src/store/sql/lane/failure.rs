//! The reasons why a job got no answer.

use std::sync::Arc;
use std::time::Duration;

/// The reason why a job got no answer. Several callers can share one failure.
#[derive(Debug, Clone)]
pub(in crate::store::sql) enum Failure {
    /// The database's error from a failed job or from a failed attempt to open a connection.
    Database(Arc<sqlx::Error>),
    /// The queue is full. The job was not sent.
    QueueFull { waiting: usize },
    /// The database did not answer.
    Silent { within: Duration },
    /// The task that sent the job ended without an answer: its runtime was shut down, or it
    /// panicked.
    Interrupted,
    /// The caller is not in a Tokio runtime.
    NoRuntime,
}

impl From<sqlx::Error> for Failure {
    fn from(error: sqlx::Error) -> Self {
        Self::Database(Arc::new(error))
    }
}
