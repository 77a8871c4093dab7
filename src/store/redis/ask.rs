//! Asking the server, and asking once more if the connection broke.

use redis::aio::ConnectionLike;
use redis::{RedisResult, Value};

use super::RedisStore;
use super::failure::{Op, failed};
use super::replicas::Acknowledged;
use super::scripts::{Call, Script};
use crate::request::Slot;
use crate::store::StoreError;

impl<C> RedisStore<C>
where
    C: ConnectionLike + Clone + Send + Sync + 'static,
{
    /// Calls a script; once more if the connection broke and `op` may be repeated.
    pub(super) async fn ask(&self, op: Op, script: &Script, slot: &Slot, args: &[&[u8]]) -> Result<Value, StoreError> {
        let key = self.key(slot);
        let call = Call {
            script,
            keys: &[key.as_bytes()],
            args,
        };
        let mut answer = self.send(&call).await;
        if may_repeat(op, &answer) {
            answer = self.send(&call).await;
        }
        answer.map_err(|error| failed(op, error))
    }

    async fn send(&self, call: &Call<'_>) -> RedisResult<Value> {
        let (which, mut connection) = self.link.get();
        let answer = call.send(&mut connection).await;
        self.link.learn(which, &answer);
        answer
    }

    /// As [`ask`](Self::ask), and says whether enough replicas have the write, if the store waits for
    /// replicas.
    pub(super) async fn ask_all(
        &self,
        op: Op,
        script: &Script,
        slot: &Slot,
        args: &[&[u8]],
    ) -> Result<(Value, Acknowledged), StoreError> {
        let Some(replicas) = &self.replicas else {
            return Ok((self.ask(op, script, slot, args).await?, Acknowledged::Enough));
        };
        let key = self.key(slot);
        let call = Call {
            script,
            keys: &[key.as_bytes()],
            args,
        };
        let mut answer = replicas.send(&call).await;
        if may_repeat(op, &answer) {
            answer = replicas.send(&call).await;
        }
        answer.map_err(|error| failed(op, error))
    }
}

/// Whether the connection broke, and the operation, if it was done, answers the same again. A
/// `complete` would be told that its claim is lost.
fn may_repeat<T>(op: Op, answer: &RedisResult<T>) -> bool {
    matches!(op, Op::Begin | Op::Renew | Op::LookUp)
        && answer
            .as_ref()
            .is_err_and(|error| error.is_connection_dropped() && !error.is_connection_refusal())
}
