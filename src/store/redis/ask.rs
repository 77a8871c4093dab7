//! Calls to the server, which are repeated if the connection breaks or leads to the wrong server.

use redis::aio::ConnectionLike;
use redis::{RedisError, Value};

use super::RedisStore;
use super::doubt::{Doubt, doubt};
use super::failure::{Op, failed};
use super::link::{Link, Question, Unanswered};
use super::replicas::{Acknowledged, Waited};
use super::request::Request;
use super::scripts::{Call, Script};
use crate::request::Slot;
use crate::store::StoreError;

/// The maximum number of times that a request is sent, each time on a different connection.
pub(super) const TRIES: u32 = 3;

impl<C> RedisStore<C>
where
    C: ConnectionLike + Clone + Send + Sync + 'static,
{
    /// Calls a script on the shared connection.
    pub(super) async fn ask(&self, op: Op, script: &Script, slot: &Slot, args: &[&[u8]]) -> Result<Value, StoreError> {
        let key = self.key_bytes(slot);
        let call = Call {
            script,
            keys: &[&key],
            args,
        };
        put(&self.link, op, &call)
            .await
            .map_err(|unanswered| failed(op, unanswered.into()))
    }

    /// Sends a write to the server. If the store waits for replicas, also returns whether enough
    /// replicas have acknowledged the write.
    pub(super) async fn write(
        &self,
        op: Op,
        is_large: bool,
        request: &Request<'_>,
    ) -> Result<(Value, Acknowledged), Unanswered> {
        match &self.replicas {
            Some(replicas) => {
                let wait = Some(replicas.wait);
                put(replicas.link(), op, &Waited { request, wait }).await
            }
            None => {
                let link = if is_large { &self.large } else { &self.link };
                put(link, op, &Waited { request, wait: None }).await
            }
        }
    }
}

/// Sends a request, and repeats it on a different connection if that is useful and safe.
pub(super) async fn put<C, Q>(link: &Link<C>, op: Op, question: &Q) -> Result<Q::Answer, Unanswered>
where
    C: ConnectionLike + Clone + Send + Sync + 'static,
    Q: Question<C>,
{
    for _ in 1..TRIES {
        match link.put(question).await {
            Err(Unanswered::Asked(error)) if may_repeat(link, op, &error) => {}
            answer => return answer,
        }
    }
    link.put(question).await
}

/// Returns whether repeating a request is useful and safe. Repeating is useful if a different
/// connection may bring a better reply. Repeating is safe if the operation gives the same reply
/// when the server executes it a second time.
pub(super) fn may_repeat<C>(link: &Link<C>, op: Op, error: &RedisError) -> bool
where
    C: Clone + Send + Sync + 'static,
{
    match doubt(error) {
        Some(Doubt::Refused) => link.is_replaced_on_doubt(),
        Some(Doubt::Lost) => {
            matches!(op, Op::Begin | Op::Renew | Op::LookUp) && is_another_connection_next(link, error)
        }
        None => false,
    }
}

/// Returns whether the next request uses a new connection. A connection that was passed in may
/// reconnect on its own if it broke, but not if it was only silent.
pub(super) fn is_another_connection_next<C>(link: &Link<C>, error: &RedisError) -> bool
where
    C: Clone + Send + Sync + 'static,
{
    link.is_replaced_on_doubt() || error.is_connection_dropped() && !error.is_connection_refusal()
}
