//! Waiting, on dedicated connections, until replicas have a write.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use redis::aio::{ConnectionLike, MultiplexedConnection};
use redis::{Cmd, RedisError, RedisResult, Value};

use super::connect::{self, Origin};
use super::link::{Link, Question};
use super::request::Request;
use super::scripts::{By, is_no_script};

/// The number of connections for `WAIT`, which blocks its connection on the server. Up to this many
/// calls can wait at the same time. Further calls wait for their turn.
const CONNECTIONS: usize = 8;

/// How long a connection may be silent, in addition to the duration of `WAIT`. Large records use
/// these connections too.
const SILENCE: Duration = Duration::from_secs(3);

pub(super) struct Replicas {
    pub(super) wait: Wait,
    links: Vec<Link<MultiplexedConnection>>,
    turn: AtomicUsize,
}

/// The number of replicas to wait for, and the maximum waiting time.
#[derive(Debug, Clone, Copy)]
pub(super) struct Wait {
    pub(super) count: u32,
    pub(super) within: Duration,
}

/// Whether enough replicas have acknowledged the write.
pub(super) enum Acknowledged {
    Enough,
    TooFew(Option<RedisError>),
}

impl Replicas {
    /// Creates the links. Each link connects when it is first used.
    pub(super) fn new(origin: &Origin, wait: Wait) -> Self {
        Self {
            wait,
            links: (0..CONNECTIONS)
                .map(|_| connect::link(origin, SILENCE + wait.within))
                .collect(),
            turn: AtomicUsize::new(0),
        }
    }

    /// Returns one of the links, in rotation.
    pub(super) fn link(&self) -> &Link<MultiplexedConnection> {
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        &self.links[turn % self.links.len()]
    }
}

/// A request, followed by `WAIT` in the same round trip and on the same connection. `WAIT` covers
/// all earlier writes on that connection.
pub(super) struct Waited<'a> {
    pub(super) request: &'a Request<'a>,
    pub(super) wait: Option<Wait>,
}

impl<C: ConnectionLike + Send> Question<C> for Waited<'_> {
    type Answer = (Value, Acknowledged);

    async fn put_to(&self, connection: &mut C) -> RedisResult<Self::Answer> {
        let Some(wait) = self.wait else {
            let answer = self.request.put_to(connection).await?;
            return Ok((answer, Acknowledged::Enough));
        };
        let answer = wait.attempt(&self.request.command(By::Hash), connection).await;
        match answer {
            Err(error) if is_no_script(&error) => wait.attempt(&self.request.command(By::Code), connection).await,
            answer => answer,
        }
    }
}

impl Wait {
    async fn attempt<C: ConnectionLike + Send>(
        self,
        command: &Cmd,
        connection: &mut C,
    ) -> RedisResult<(Value, Acknowledged)> {
        let mut pipe = redis::pipe();
        // At least 1, because 0 would wait forever.
        let millis = super::scripts::millis(self.within).max(1);
        pipe.add_command(command.clone())
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
