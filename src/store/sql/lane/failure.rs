//! Why a lane has no answer.

use std::sync::Arc;
use std::time::Duration;

/// Why a lane has no answer. One failure can be that of many callers.
#[derive(Debug, Clone)]
pub(in crate::store::sql) enum Failure {
    /// The database's error, of a connection that could not be made or of what was asked.
    Database(Arc<sqlx::Error>),
    /// The queue is full.
    QueueFull { waiting: usize },
    /// The database did not answer.
    Silent { within: Duration },
    /// The task that asked ended without an answer: its runtime was shut down, or it panicked.
    Interrupted,
    /// The caller is not in a Tokio runtime.
    NoRuntime,
}

impl From<sqlx::Error> for Failure {
    fn from(error: sqlx::Error) -> Self {
        Self::Database(Arc::new(error))
    }
}
