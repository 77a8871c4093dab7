//! Waiting until replicas have a write, on connections that nothing else uses.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use redis::aio::ConnectionManager;
use redis::{Client, RedisError, RedisResult, Value};

use super::connect;
use super::link::Link;
use super::scripts::{By, Call, is_no_script};
use crate::store::StoreError;

/// `WAIT` blocks its connection at the server. So many can wait side by side; more wait their turn.
const CONNECTIONS: usize = 8;

pub(super) struct Replicas {
    pub(super) count: u32,
    pub(super) within: Duration,
    links: Vec<Link<ConnectionManager>>,
    turn: AtomicUsize,
}

/// Whether enough replicas have the write.
pub(super) enum Acknowledged {
    Enough,
    TooFew(Option<RedisError>),
}

impl Replicas {
    /// Connects when they are first used.
    pub(super) fn new(client: &Client, count: u32, within: Duration) -> Result<Self, StoreError> {
        let links = (0..CONNECTIONS)
            .map(|_| Ok(connect::link(connect::lazy(client.clone(), within)?, client, within)))
            .collect::<Result<_, _>>()?;
        Ok(Self {
            count,
            within,
            links,
            turn: AtomicUsize::new(0),
        })
    }

    /// Sends the call and `WAIT` in one round trip, on one connection: `WAIT` is about the writes
    /// of its own connection.
    pub(super) async fn send(&self, call: &Call<'_>) -> RedisResult<(Value, Acknowledged)> {
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        let link = &self.links[turn % self.links.len()];
        let (which, mut connection) = link.get();
        let mut answer = self.attempt(call, By::Hash, &mut connection).await;
        if answer.as_ref().is_err_and(is_no_script) {
            answer = self.attempt(call, By::Code, &mut connection).await;
        }
        link.learn(which, &answer);
        answer
    }

    async fn attempt(
        &self,
        call: &Call<'_>,
        by: By,
        connection: &mut ConnectionManager,
    ) -> RedisResult<(Value, Acknowledged)> {
        let mut pipe = redis::pipe();
        // At least one: zero would be for ever.
        let millis = super::scripts::millis(self.within).max(1);
        pipe.add_command(call.command(by))
            .cmd("WAIT")
            .arg(self.count)
            .arg(millis)
            .ignore_errors();
        let (answer, acknowledged): (RedisResult<Value>, RedisResult<u32>) = {
            let mut answers: Vec<RedisResult<Value>> = pipe.query_async(connection).await?;
            let waited = answers.pop().unwrap_or(Ok(Value::Nil));
            let answer = answers.pop().unwrap_or(Ok(Value::Nil));
            (answer, waited.and_then(|value| Ok(redis::from_redis_value(value)?)))
        };
        let acknowledged = match acknowledged {
            Ok(count) if count >= self.count => Acknowledged::Enough,
            Ok(_) => Acknowledged::TooFew(None),
            Err(error) => Acknowledged::TooFew(Some(error)),
        };
        Ok((answer?, acknowledged))
    }
}
