//! A connection that waits for an answer, and returns to the pool only after the answer has
//! arrived.

use std::ops::{Deref, DerefMut};

use sqlx::pool::PoolConnection;
use sqlx::{Database, Pool};

use super::pool::{acquire, close, put_back};

/// A connection that waits for an answer.
///
/// If this value is dropped before the answer arrives, the connection is closed. If the connection
/// were returned to the pool instead, it would occupy a place in the pool until an answer arrived,
/// which might never happen.
pub(super) struct Asking<DB: Database>(Option<PoolConnection<DB>>);

impl<DB: Database> Asking<DB> {
    pub(super) async fn acquire(pool: &Pool<DB>) -> Result<Self, sqlx::Error> {
        Ok(Self(Some(acquire(pool).await?)))
    }

    pub(super) fn answered(mut self) {
        if let Some(connection) = self.0.take() {
            put_back(connection, ());
        }
    }
}

impl<DB: Database> Deref for Asking<DB> {
    type Target = DB::Connection;

    fn deref(&self) -> &DB::Connection {
        match &self.0 {
            Some(connection) => connection,
            None => unreachable!("the connection is present until `answered` is called"),
        }
    }
}

impl<DB: Database> DerefMut for Asking<DB> {
    fn deref_mut(&mut self) -> &mut DB::Connection {
        match &mut self.0 {
            Some(connection) => connection,
            None => unreachable!("the connection is present until `answered` is called"),
        }
    }
}

impl<DB: Database> Drop for Asking<DB> {
    fn drop(&mut self) {
        if let Some(connection) = self.0.take() {
            close(connection, ());
        }
    }
}
